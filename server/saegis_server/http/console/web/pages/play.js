/**
 * Play: asks the model without and with a program of edits, side by side from one seed.
 * @module
 */

import { ask, requestOf } from "../answers.js";
import { ApiError, wordsOf } from "../api.js";
import { inCommon } from "../difference.js";
import { button, choice, copyButton, fill, labelled, make, told } from "../elements.js";
import { featureSearch } from "../feature_search.js";
import { pictureBox, withoutBytes } from "../pictures.js";
import * as program from "../program.js";
import { remember, state } from "../state.js";
import { tokenText } from "../token_text.js";

/** @typedef {import("../answers.js").Answer} Answer */
/** @typedef {import("../program.js").Feature} Feature */

export const title = "Play";
/** Where the answers stand: on the page as it is shown now, also where they were asked for on an earlier one. */
let columns = make("div");
const WITHOUT_READINGS = " Without the readings for the page Tokens (untick the box above) it may be allowed.";

/** @param {import("../main.js").Place} place */
export function show({ root, query }) {
  const notice = make("p", { class: "error", role: "alert", hidden: true });
  const link = query.get("p") || "";
  if (link && link !== state.link) takeLink(link, notice);
  const edits = make("ul", { class: "edits", "aria-label": "Edits and watches" });
  const forms = make("section", { class: "forms", "aria-label": "The request in other forms" });
  columns = make("div", { class: "columns" });

  function changed() {
    fill(edits, editRows(changed));
    fill(forms, formsOf());
  }
  const search = featureSearch(
    {
      Steer: (feature) => add(feature, "clamp", changed),
      Ban: (feature) => add(feature, "ban", changed),
      Watch: (feature) => watch(feature, changed),
    },
    state.model,
  );
  const settings = questionForm(() => fill(forms, formsOf()), () => run(running));
  const running = settings.running;
  fill(
    root,
    notice,
    make("div", { class: "halves" }, settings.form, make("section", { "aria-label": "Program" }, search, edits)),
    columns,
    forms,
  );
  changed();
  if (state.answers.plain || state.answers.steered) showAnswers();
  else fill(columns, make("p", { class: "quiet" }, "Ask, and both answers come here: without your edits and with them."));
}

/**
 * Fill the question and the program from a link. Nothing is asked before the person says so.
 * @param {string} text
 * @param {HTMLElement} notice
 */
function takeLink(text, notice) {
  state.link = text;
  try {
    const { question, ...rest } = program.unpacked(text);
    state.program = program.checked(rest);
    const { mode, prompt, system, seed, temperature, most } = question;
    const knows = mode === "chat" || mode === "completion";
    if (!knows || ![seed, temperature, most].every(Number.isFinite)) throw new Error("the link has no question");
    const told = { mode, prompt: String(prompt), system: String(system), seed, temperature, most };
    Object.assign(state.question, told, { pictures: [] });
    state.answers = { plain: null, steered: null };
  } catch (error) {
    notice.hidden = false;
    notice.textContent = `The link cannot be read: ${wordsOf(error)}`;
  }
}

/** @param {Feature} feature @param {string} operation @param {() => void} changed */
function add(feature, operation, changed) {
  const { first = 0 } = program.OPERATIONS[operation];
  state.program.changes.push({ feature, operation, value: first, phase: "all" });
  changed();
}

/** @param {Feature} feature @param {() => void} changed */
function watch(feature, changed) {
  if (!state.program.watches.some((each) => program.isSame(each, feature))) state.program.watches.push(feature);
  changed();
}

/** @param {() => void} changed @param {() => void} onAsk */
function questionForm(changed, onAsk) {
  const { question } = state;
  /** @param {"seed" | "temperature" | "most"} name @param {Record<string, number>} range */
  const number = (name, range) => {
    const field = make("input", { type: "number", value: question[name], ...range });
    field.addEventListener("input", () => {
      if (Number.isFinite(field.valueAsNumber)) question[name] = field.valueAsNumber;
      changed();
    });
    return field;
  };
  /** @param {"prompt" | "system"} name @param {number} rows */
  const text = (name, rows) => {
    const field = make("textarea", { rows, spellcheck: "false" });
    field.value = question[name];
    field.addEventListener("input", () => {
      question[name] = field.value;
      changed();
    });
    return field;
  };
  const prompt = text("prompt", 4);
  prompt.addEventListener("keydown", (/** @type {KeyboardEvent} */ event) => {
    if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) onAsk();
  });
  const system = labelled("System message", text("system", 2), { hidden: question.mode !== "chat" });
  const pictures = make("div", { hidden: question.mode !== "chat" });
  if (state.model.sees_pictures) fill(pictures, pictureBox(question.pictures, changed));
  const modes = [...(state.model.has_chat_template ? [["chat", "Chat"]] : []), ["completion", "Completion"]];
  const mode = choice(modes, question.mode, (value) => {
    question.mode = /** @type {"chat" | "completion"} */ (value);
    system.hidden = pictures.hidden = value !== "chat";
    changed();
  });
  const reads = make("input", { type: "checkbox", checked: state.reads });
  reads.addEventListener("change", () => (state.reads = reads.checked));
  const askButton = button("Ask both", onAsk, { class: "main", title: "Ctrl+Enter in the prompt" });
  const stop = button("Stop", () => {}, { hidden: true });
  const status = make("span", { class: "quiet", role: "status" });
  const form = make(
    "section",
    { class: "question", "aria-label": "Question" },
    labelled("Prompt", prompt),
    pictures,
    system,
    make(
      "div",
      { class: "row" },
      labelled("As", mode),
      labelled("Seed", number("seed", { step: 1 })),
      labelled("Temperature", number("temperature", { min: 0, max: 2, step: 0.1 })),
      labelled("Most tokens", number("most", { min: 1, step: 1 })),
    ),
    make("label", { class: "check" }, reads, " tell at each token what the edited features did, for the page Tokens"),
    make("div", { class: "row" }, askButton, stop, linkButton(), status),
  );
  return { form, running: { askButton, stop, status } };
}

/** A button that copies the address of this question and program. */
function linkButton() {
  return copyButton(() => {
    // Nor are pictures in a link: they would be too long for one.
    const { model: _, pictures: __, ...question } = state.question;
    const url = new URL(location.href);
    state.link = program.packed({ ...state.program, question });
    url.hash = `/play?p=${state.link}`;
    history.replaceState(null, "", url);
    return url.href;
  }, "Copy a link");
}

/** @param {() => void} changed */
function editRows(changed) {
  const { changes, watches } = state.program;
  const rows = changes.map((change, at) => editRow(change, () => changes.splice(at, 1), changed));
  const watched = watches.map((feature, at) =>
    make(
      "li",
      { class: "edit" },
      make("span", { class: "feature" }, program.nameOf(feature)),
      make("span", { class: "quiet" }, "watched"),
      button("Remove", () => (watches.splice(at, 1), changed()), { "aria-label": `Remove the watch of ${program.nameOf(feature)}` }),
    ),
  );
  const none = make("li", { class: "quiet" }, "No edits yet: find a feature above and steer, ban or watch it.");
  return rows.length + watched.length ? [...rows, ...watched] : none;
}

/**
 * One edit with its slider, in units of the feature's maximum.
 * @param {import("../program.js").Change} change
 * @param {() => unknown} remove
 * @param {() => void} changed
 */
function editRow(change, remove, changed) {
  const name = program.nameOf(change.feature);
  const { low, high, maxima } = program.OPERATIONS[change.operation];
  const amount = make("output", { class: "amount" });
  const tell = () => fill(amount, amountWords(change));
  const slider = make("input", {
    type: "range",
    min: low ?? 0,
    max: high ?? 1,
    step: 0.01,
    value: change.value,
    "aria-label": `Amount for ${name}`,
    hidden: low === undefined,
  });
  if (maxima && change.feature.max === null) Object.assign(slider, { max: 100, step: 0.5, value: change.value });
  slider.addEventListener("input", () => {
    change.value = slider.valueAsNumber;
    tell();
  });
  slider.addEventListener("change", changed);
  tell();
  /** @type {[string, string][]} */
  const operations = Object.entries(program.OPERATIONS).map(([key, { words }]) => [key, words]);
  return make(
    "li",
    { class: "edit" },
    make("a", { class: "feature", href: `#/feature/${encodeURIComponent(change.feature.sae)}/${change.feature.index}` }, name),
    choice(
      operations,
      change.operation,
      (operation) => {
        Object.assign(change, { operation, value: program.OPERATIONS[operation].first ?? 0 });
        changed();
      },
      { "aria-label": `Operation on ${name}` },
    ),
    slider,
    amount,
    choice(program.PHASES, change.phase, (phase) => ((change.phase = phase), changed()), { "aria-label": `Where ${name} is changed` }),
    button("Remove", () => (remove(), changed()), { "aria-label": `Remove the edit of ${name}` }),
  );
}

/** @param {import("../program.js").Change} change */
function amountWords({ feature, operation, value }) {
  const { low, maxima } = program.OPERATIONS[operation];
  if (low === undefined) return "";
  if (!maxima) return `× ${told(value)}`.replace("× ", operation === "ban" ? "" : "× ");
  return feature.max === null ? told(value) : `${told(value)} × its maximum (${told(value * feature.max)})`;
}

/** The request as JSON, curl, Python and policy YAML. */
function formsOf() {
  const { path, body } = requestOf(state.question, program.steeringOf(state.program));
  const texts = {
    JSON: () => JSON.stringify(body, null, 2),
    curl: () => program.curlOf(path, body),
    Python: () => program.pythonOf(state.question.mode === "chat", body),
    "Policy YAML": () => program.policyOf(state.program),
  };
  return Object.entries(texts).map(([name, text]) =>
    make(
      "details",
      {},
      make("summary", {}, name),
      copyButton(text, `Copy ${name}`),
      make("pre", { tabindex: 0, "aria-label": name }, withoutBytes(text())),
    ),
  );
}

/**
 * Ask both and show them as they come.
 * @param {{askButton: HTMLButtonElement, stop: HTMLButtonElement, status: HTMLElement}} controls
 */
async function run({ askButton, stop, status }) {
  if (askButton.disabled) return;
  const control = new AbortController();
  askButton.disabled = true;
  stop.hidden = false;
  stop.onclick = () => control.abort();
  status.textContent = "asking …";
  const question = { ...state.question, pictures: [...state.question.pictures] };
  const ran = structuredClone(state.program);
  const reads = state.reads && ran.changes.length + ran.watches.length ? program.featuresIn(ran) : undefined;
  const watched = reads || ran.watches;
  state.answers = { plain: null, steered: null };
  state.ran = ran;
  /** @type {Record<string, string>} */
  const errors = {};
  /** @param {"plain" | "steered"} name @param {Promise<Answer>} asked */
  const kept = async (name, asked) => {
    try {
      remember((state.answers[name] = await asked));
    } catch (error) {
      errors[name] = wordsOf(error) + (name === "steered" && reads && isAboutReadings(error) ? WITHOUT_READINGS : "");
    }
  };
  const grown = (/** @type {"plain" | "steered"} */ name) => (/** @type {Answer} */ answer) => {
    state.answers[name] = answer;
    showAnswers(errors);
  };
  await Promise.all([
    kept("plain", ask(question, undefined, [], grown("plain"), control.signal)),
    kept("steered", ask(question, program.steeringOf(ran, { reads }), watched, grown("steered"), control.signal)),
  ]);
  for (const name of Object.keys(errors)) {
    const answer = state.answers[/** @type {"plain" | "steered"} */ (name)];
    if (answer && !answer.receipt) state.answers[/** @type {"plain" | "steered"} */ (name)] = null;
  }
  showAnswers(errors);
  askButton.disabled = false;
  stop.hidden = true;
  status.textContent = Object.keys(errors).length ? "" : "done";
}

/** Whether the readings that the page Tokens needs were refused, and not an edit. @param {unknown} error */
function isAboutReadings(error) {
  return error instanceof ApiError && /^steering\.(watches|read_)/.test(error.param);
}

/**
 * Both answers, what they do not have in common marked.
 * @param {Record<string, string>} [errors]
 */
function showAnswers(errors = {}) {
  const { plain, steered } = state.answers;
  const texts = [plain, steered].map((answer) => (answer ? answer.tokens.map(({ text }) => text) : []));
  const [plainSame, steeredSame] = plain && steered ? inCommon(texts[0], texts[1]) : [[], []];
  fill(
    columns,
    column("Without your edits", plain, plainSame, errors.plain, plain !== null && steered !== null),
    column("With your edits", steered, steeredSame, errors.steered, plain !== null && steered !== null),
  );
}

/**
 * @param {string} name
 * @param {Answer | null} answer
 * @param {boolean[]} same
 * @param {string | undefined} error
 * @param {boolean} compares
 */
function column(name, answer, same, error, compares) {
  const tokens = (answer?.tokens || []).map(({ text, logprob, top }, at) => ({
    text,
    mark: compares && !same[at] ? "differs" : "",
    title: [`probability ${told(Math.exp(logprob ?? NaN))}`, ...top.map((each) => `${each.text} ${told(Math.exp(each.logprob))}`)].join("\n"),
  }));
  const differing = same.filter((each) => !each).length;
  return make(
    "section",
    { class: "answer", "aria-label": name },
    make("h2", {}, name),
    error ? make("p", { class: "error", role: "alert" }, error) : null,
    tokens.length ? tokenText(tokens, { label: `${name}: the answer` }) : null,
    answer?.receipt
      ? make(
          "p",
          { class: "quiet" },
          `${endWords(answer.finish)} · ${told(answer.usage.completion_tokens)} tokens`,
          compares ? ` · ${differing} differ` : "",
          answer.receipt.steered ? " · steered" : " · not moved",
          answer.receipt.ruled ? " · under the operator's rules" : "",
          name === "With your edits" ? [" · ", make("a", { href: "#/tokens" }, "its tokens"), " · ", make("a", { href: "#/receipt?of=steered" }, "its receipt")] : null,
        )
      : null,
  );
}

/** @param {string} finish */
function endWords(finish) {
  const words = { stop: "ended by itself", length: "as long as asked for", content_filter: "ended by a rule of the operator", abort: "broken off by the server" };
  return words[/** @type {keyof typeof words} */ (finish)] || finish;
}
