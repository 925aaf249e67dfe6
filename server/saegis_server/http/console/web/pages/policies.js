/**
 * Policies: what is in force and since when, what the rules say, what they would do, and what they cover.
 * @module
 */

import { ask } from "../answers.js";
import { get, post, wordsOf } from "../api.js";
import { base64Of, bytesOf, filesOf } from "../bundle_files.js";
import { coverageOf } from "../coverage.js";
import { inCommon } from "../difference.js";
import { button, choice, fill, labelled, make, table, told } from "../elements.js";
import { nameOf, steeringOf } from "../program.js";
import { receiptInWords } from "../receipt_words.js";
import { remember, state } from "../state.js";
import { tokenText } from "../token_text.js";

export const title = "Policies";
const CHANGES = { CHANGE_KIND_ADDED: "new", CHANGE_KIND_REMOVED: "gone", CHANGE_KIND_CHANGED: "says something else" };
/** The files of a bundle that are compared line by line. */
const COMPARED = /\.(yaml|yml|md|json)$/;
const LONGEST_SHOWN = 40_000;
/** How many pages of the audit log are counted at most, and how many records one has. */
const [MOST_PAGES, LARGEST_PAGE] = [50, 100];

/** @param {import("../main.js").Place} place */
export async function show({ root, rest }) {
  /** @type {any} */
  let listed = { policies: [] };
  try {
    listed = await get("/v1/policies");
  } catch (error) {
    fill(root, make("p", { class: "error", role: "alert" }, wordsOf(error)), attempts());
    return;
  }
  const names = listed.policies.map((/** @type {any} */ each) => each.active.name);
  const chosen = names.includes(rest[0]) ? rest[0] : names[0];
  const one = make("div", {});
  fill(
    root,
    make(
      "p",
      { class: "quiet" },
      names.length ? `In force for you: ${listed.policy_revision.replaceAll(",", ", ")}.` : "No policy in force concerns you: every request is denied.",
    ),
    names.length > 1
      ? labelled("Policy", choice(names.map((/** @type {string} */ name) => [name, name]), chosen, (name) => (location.hash = `#/policies/${encodeURIComponent(name)}`)))
      : null,
    await decisionSection(),
    attempts(),
    one,
  );
  if (chosen) await showPolicy(one, chosen);
}

/** What the rules say, as the server decides for a request without edits. */
async function decisionSection() {
  const view = make("div", {});
  const decide = async (/** @type {unknown} */ steering) => {
    try {
      const { decision } = await post("/v1/policies/evaluate", steering ? { steering } : {});
      fill(view, decisionInWords(decision));
    } catch (error) {
      fill(view, make("p", { class: "error", role: "alert" }, wordsOf(error)));
    }
  };
  await decide(undefined);
  const { changes, watches } = state.program;
  const own = [...changes.map(({ feature }) => nameOf(feature)), ...watches.map(nameOf)];
  return make(
    "section",
    { class: "panel", "aria-label": "Rules in words" },
    make("h2", {}, "What is decided on a request"),
    make(
      "div",
      { class: "row" },
      button("An ordinary one", () => decide(undefined)),
      button("One with the program of Play", () => decide(steeringOf(state.program)), { disabled: !own.length, title: own.join(", ") }),
    ),
    view,
  );
}

/** @param {any} decision */
function decisionInWords(decision) {
  const denials = decision.denials.map((/** @type {any} */ each) => {
    const name = [each.policy, each.rule].filter(Boolean).join("/") || "a rule that is not told";
    return make("li", {}, make("strong", { class: "harmful" }, "denied "), `by ${name}${each.field ? ` at ${each.field}` : ""}: ${each.message}`);
  });
  const rules = decision.rules.map((/** @type {any} */ rule) => {
    const of = rule.labels.length ? ` of ${rule.labels.join(", ")}` : "";
    const mode = { RULE_MODE_ENFORCE: "", RULE_MODE_AUDIT: " It is recorded only.", RULE_MODE_SHADOW: " It is counted only." };
    return make(
      "li",
      {},
      make("strong", {}, `${rule.policy}/${rule.rule}`),
      `: ${rule.action}${of}${rule.conditional ? ", when its condition holds" : ", always"}.`,
      mode[/** @type {keyof typeof mode} */ (rule.mode)] || "",
      rule.reason ? ` “${rule.reason}”` : "",
    );
  });
  return [
    make("p", { class: decision.allowed ? "allowed" : "harmful" }, decision.allowed ? "It may run, under these rules:" : "It may not run."),
    make("ul", { class: "sentences" }, denials, rules.length || denials.length ? rules : make("li", { class: "quiet" }, "no rules that are told")),
  ];
}

/** Where texts are tried, and how often each rule has acted. */
function attempts() {
  const counts = make("div", {}, countsSection());
  return [trySection(() => fill(counts, countsSection())), counts];
}

/**
 * Ask with a text, and tell what the rules did.
 * @param {() => void} onAnswer
 */
function trySection(onAnswer) {
  const text = make("textarea", { rows: 3, spellcheck: "false" });
  text.value = state.question.prompt;
  const view = make("div", { "aria-live": "polite" });
  const attempt = async () => {
    fill(view, make("p", { class: "quiet" }, "asking …"));
    const question = { ...state.question, prompt: text.value };
    try {
      const answer = await ask(question, undefined, []);
      remember(answer);
      state.answers = { plain: answer, steered: null };
      state.question.prompt = text.value;
      fill(view, attemptInWords(answer));
      onAnswer();
    } catch (error) {
      fill(view, make("p", { class: "error", role: "alert" }, wordsOf(error)));
    }
  };
  return make(
    "section",
    { class: "panel", "aria-label": "Try a text" },
    make("h2", {}, "Try a text"),
    labelled("A request that anyone might make", text),
    button("Ask under the policies", attempt, { class: "main" }),
    view,
  );
}

/**
 * An answer with its tokens, those marked at which a rule's condition first held, and its receipt.
 * @param {import("../answers.js").Answer} answer
 */
function attemptInWords(answer) {
  const rules = answer.receipt.rules;
  const held = (/** @type {number} */ at) => rules.filter((/** @type {any} */ rule) => rule.first_held === at).map((/** @type {any} */ rule) => rule.rule);
  const shown = answer.tokens.map(({ text }, at) => ({
    text,
    mark: held(at).length ? "put-out" : "",
    title: held(at).map((/** @type {string} */ rule) => `the condition of ${rule} held here first`).join("; "),
  }));
  const onPrompt = held(-1);
  return [
    make("h2", {}, answer.finish === "content_filter" ? "The answer, ended by a rule" : "The answer"),
    onPrompt.length ? make("p", {}, `On the prompt the condition of ${onPrompt.join(", ")} held.`) : null,
    shown.length ? tokenText(shown, { label: "The answer" }) : make("p", { class: "quiet" }, "No token was told."),
    rules.length
      ? table(
          "What each rule did",
          ["rule", "what it does", "condition held", "acted", "ended"],
          rules.map((/** @type {any} */ rule) => [
            rule.rule,
            rule.action,
            rule.conditional ? phases(rule.held) : "has none",
            phases(rule.acted),
            rule.stopped || "–",
          ]),
        )
      : null,
    receiptInWords(answer.receipt),
  ];
}

/** @param {{prompt: number, completion: number} | undefined} tokens */
function phases(tokens) {
  if (!tokens) return "–";
  if (!tokens.prompt && !tokens.completion) return "nowhere";
  return `${told(tokens.prompt)} of the prompt, ${told(tokens.completion)} of the answer`;
}

/** How often each rule did something: in the answers of this tab, and in those of the audit log for who may read it. */
function countsSection() {
  const { receipts } = state;
  const own = countTable(`The last ${told(receipts.length)} answers of this tab`, receipts.flatMap((receipt) => receipt.rules));
  const all = make("div", { "aria-live": "polite" });
  return make(
    "section",
    { class: "panel", "aria-label": "Counts by rule" },
    make("h2", {}, "Counts by rule"),
    own || make("p", { class: "quiet" }, "No rule has governed an answer of this tab."),
    button("Count in the audit log", () => countAudit(all)),
    all,
  );
}

/**
 * A table of what rules did, one row for each of them; null where there are none.
 * @param {string} caption
 * @param {any[]} rules what rules did to single answers, as receipts and records tell it
 */
function countTable(caption, rules) {
  /** @type {Map<string, {acted: number, held: number, stopped: number}>} */
  const counts = new Map();
  const some = (/** @type {any} */ tokens) => (tokens && tokens.prompt + tokens.completion ? 1 : 0);
  for (const rule of rules) {
    const name = `${rule.policy}/${rule.rule}`;
    const entry = counts.get(name) || { acted: 0, held: 0, stopped: 0 };
    entry.acted += some(rule.acted);
    entry.held += some(rule.held);
    entry.stopped += rule.stopped ? 1 : 0;
    counts.set(name, entry);
  }
  const rows = [...counts].map(([name, each]) => [name, told(each.held), told(each.acted), told(each.stopped)]);
  return rows.length ? table(caption, ["rule", "answers in which its condition held", "in which it acted", "that it ended"], rows) : null;
}

/** Count over the newest pages of the audit log. @param {HTMLElement} view */
async function countAudit(view) {
  /** @type {any[]} */
  const records = [];
  let from = "";
  try {
    for (let page = 0; page < MOST_PAGES; page += 1) {
      fill(view, make("p", { class: "quiet" }, `reading, ${told(records.length)} records so far …`));
      const answer = await get("/v1/audit", { page_size: LARGEST_PAGE, page_token: from });
      records.push(...answer.records);
      from = answer.next_page_token;
      if (!from) break;
    }
    const answers = records.filter(({ kind }) => kind === "answer");
    const caption = `The ${told(answers.length)} ${from ? "newest " : ""}answers of the audit log, of all tenants`;
    const rules = answers.flatMap((record) => (Array.isArray(record.rules) ? record.rules : []));
    fill(view, countTable(caption, rules) || make("p", { class: "quiet" }, `No rule did anything in ${caption.toLowerCase()}.`));
  } catch (error) {
    fill(view, make("p", { class: "error", role: "alert" }, wordsOf(error)));
  }
}

/**
 * @param {HTMLElement} root
 * @param {string} name
 */
async function showPolicy(root, name) {
  const path = `/v1/policies/${encodeURIComponent(name)}`;
  const [{ policy }, { revisions }] = await Promise.all([get(path), get(`${path}/revisions`)]);
  const bundle = make("div", {});
  const compared = make("div", { "aria-live": "polite" });
  const bundleOf = async (/** @type {string | undefined} */ digest) =>
    filesOf(bytesOf((await get(path, { include_bundle: "true", digest })).bundle));

  /** Show what is in force says otherwise than another revision. @param {any} revision */
  async function compare(revision) {
    try {
      const found = differences(await bundleOf(revision.digest), await bundleOf(undefined));
      const heading = make("h2", {}, `From ${revision.revision} to what is in force`);
      fill(compared, heading, found.length ? found : make("p", {}, "Their files are the same."));
    } catch (error) {
      fill(compared, make("p", { class: "error", role: "alert" }, wordsOf(error)));
    }
  }

  fill(
    root,
    make(
      "section",
      { class: "panel", "aria-label": "Policy" },
      make("h2", {}, `The policy ${name}`),
      make("p", {}, policy.description || "Its author wrote nothing of it, or it is not told."),
      table(
        "Revisions, newest first",
        ["revision", "serial", "put in force", "by", "signed by", "digest", "difference"],
        revisions.map((/** @type {any} */ each) => [
          make("span", {}, each.revision, each.active ? make("strong", {}, " in force") : "", each.shadow ? " beside it, without acting" : ""),
          each.serial,
          each.put_time ? new Date(each.put_time).toLocaleString("en-GB") : "–",
          each.put_by,
          each.signed_by || "nobody",
          make("code", {}, each.digest.slice(0, 16)),
          each.active ? "–" : button("Compare", () => compare(each), { "aria-label": `Compare ${each.revision} with what is in force` }),
        ]),
      ),
      compared,
    ),
    bundle,
  );
  try {
    const files = await bundleOf(undefined);
    fill(bundle, coverageOf(files.get("calibration.json") || ""), filesSection(files), candidateSection(files));
  } catch (error) {
    fill(bundle, make("p", { class: "quiet" }, `Its files are not shown. ${wordsOf(error)}`), candidateSection(new Map()));
  }
}

/** @param {Map<string, string | null>} files */
function filesSection(files) {
  return make(
    "section",
    { class: "panel", "aria-label": "Files" },
    make("h2", {}, "Its files"),
    [...files].map(([name, text]) =>
      make(
        "details",
        {},
        make("summary", {}, name),
        make("pre", { tabindex: 0, "aria-label": name }, text === null ? "no text" : text.slice(0, LONGEST_SHOWN)),
      ),
    ),
  );
}

/**
 * A bundle from the reader's machine, checked by the server and compared with what is in force.
 * @param {Map<string, string | null>} files
 */
function candidateSection(files) {
  const view = make("div", { "aria-live": "polite" });
  const input = make("input", { type: "file", accept: ".tar,.gz,.tgz" });
  input.addEventListener("change", async () => {
    const [file] = input.files || [];
    if (!file) return;
    try {
      const bytes = new Uint8Array(await file.arrayBuffer());
      const answer = await post("/v1/policies/validate", { bundle: base64Of(bytes) });
      fill(view, checkInWords(answer), differences(files, await filesOf(bytes)));
    } catch (error) {
      fill(view, make("p", { class: "error", role: "alert" }, wordsOf(error)));
    }
  });
  return make(
    "section",
    { class: "panel", "aria-label": "Compare another revision" },
    make("h2", {}, "Compare another revision"),
    labelled("A bundle (tar, compressed or not). It is checked, and not put in force.", input),
    view,
  );
}

/** @param {any} answer */
function checkInWords(answer) {
  const said = (/** @type {any} */ each) => `${[each.file, each.line || "", each.path].filter(Boolean).join(":")} ${each.message}`.trim();
  const lines = [
    ...answer.problems.map((/** @type {any} */ each) => make("li", { class: "harmful" }, `wrong: ${said(each)}`)),
    ...answer.warnings.map((/** @type {any} */ each) => make("li", {}, `hardly meant: ${said(each)}`)),
    ...answer.cases.map((/** @type {any} */ each) => make("li", {}, `its case “${each.name}” ${each.passed ? "passes" : `fails: ${each.failures.join("; ")}`}`)),
    ...(answer.changes?.changes || []).map((/** @type {any} */ each) => make("li", {}, make("code", {}, each.key), ` ${CHANGES[/** @type {keyof typeof CHANGES} */ (each.change)] || ""}`)),
  ];
  return [
    make("p", { class: answer.valid ? "allowed" : "harmful" }, answer.valid ? "It could be put in force." : "It could not be put in force."),
    make("ul", { class: "sentences" }, lines.length ? lines : make("li", {}, "It says the same as what is in force.")),
  ];
}

/**
 * The lines in which files of two bundles differ.
 * @param {Map<string, string | null>} old
 * @param {Map<string, string | null>} other
 */
function differences(old, other) {
  const names = [...new Set([...old.keys(), ...other.keys()])].filter((name) => COMPARED.test(name) && old.get(name) !== other.get(name));
  return names.map((name) => {
    const [before, after] = [old, other].map((files) => (files.get(name) || "").split("\n"));
    const [kept, same] = inCommon(before, after);
    const gone = before.filter((_, at) => !kept[at]);
    const come = after.filter((_, at) => !same[at]);
    return make(
      "details",
      { open: true },
      make("summary", {}, `${name}: ${told(gone.length)} lines gone, ${told(come.length)} new`),
      make(
        "pre",
        { tabindex: 0, "aria-label": `differences of ${name}` },
        gone.map((line) => make("span", { class: "removed" }, `− ${line}\n`)),
        come.map((line) => make("span", { class: "added" }, `+ ${line}\n`)),
      ),
    );
  });
}
