/**
 * Audit: finds what was decided on requests, and what was done for them, by rule, tenant and time.
 * @module
 */

import { get, wordsOf } from "../api.js";
import { button, fill, labelled, make, table, told } from "../elements.js";

export const title = "Audit";
const PAGE = 25;

/** @param {import("../main.js").Place} place */
export async function show({ root, query }) {
  const view = make("div", { "aria-live": "polite" });
  const more = make("p", {});
  const field = (/** @type {string} */ name, type = "text", value = query.get(name) || "") => make("input", { type, name, value });
  const fields = { tenant: field("tenant"), rule: field("rule"), decision_id: field("decision_id") };
  const times = { start_time: field("start_time", "datetime-local"), end_time: field("end_time", "datetime-local") };
  const denied = make("input", { type: "checkbox" });

  /** What is asked for: local times as moments, and nothing that is left empty. */
  function wanted() {
    const texts = Object.entries(fields).map(([name, { value }]) => [name, value.trim()]);
    const moments = Object.entries(times).map(([name, { value }]) => [name, value && new Date(value).toISOString()]);
    return { ...Object.fromEntries([...texts, ...moments]), ...(denied.checked ? { denied: "true" } : {}) };
  }

  /** @param {Record<string, string>} asked @param {string} [from] */
  async function search(asked, from = "") {
    try {
      const answer = await get("/v1/audit", { ...asked, page_size: PAGE, page_token: from });
      if (!from) fill(view);
      view.append(recordsTable(answer.records));
      const rest = answer.next_page_token;
      fill(more, rest ? button("Look at older ones", () => search(asked, rest)) : "The log has no older ones.");
    } catch (error) {
      fill(view, make("p", { class: "error", role: "alert" }, wordsOf(error)));
      fill(more);
    }
  }

  fill(
    root,
    make(
      "section",
      { class: "panel", "aria-label": "What is looked for" },
      make(
        "div",
        { class: "row" },
        labelled("Tenant", fields.tenant),
        labelled("Rule, alone or as policy/rule", fields.rule),
        labelled("Decision", fields.decision_id),
        labelled("From", times.start_time),
        labelled("Until", times.end_time),
      ),
      make("label", { class: "check" }, denied, " denials alone"),
      button("Search", () => search(wanted()), { class: "main" }),
    ),
    view,
    more,
  );
  await search(wanted());
}

/** @param {any[]} records */
function recordsTable(records) {
  if (!records.length) return make("p", { class: "quiet" }, "Nothing was found in the part of the log that was looked at.");
  return table(
    "Decisions and answers, newest first",
    ["when", "what", "tenant", "who", "rules", "record"],
    records.map((record) => [
      new Date(record.time).toLocaleString("en-GB"),
      whatHappened(record),
      record.tenant,
      record.principal || "–",
      rulesOf(record).join(", ") || "–",
      make("details", {}, make("summary", {}, `number ${told(record.seq)}`), make("pre", { tabindex: 0 }, JSON.stringify(record, null, 2))),
    ]),
  );
}

/** @param {any} record */
function whatHappened(record) {
  if (record.kind === "answer") return `answer: ${listOf(record.finish_reasons).join(", ")}`;
  return record.allowed ? "allowed" : make("strong", { class: "harmful" }, "denied");
}

/** The rules that denied a request, or that did anything for it. @param {any} record */
function rulesOf(record) {
  const rules = record.kind === "answer" ? listOf(record.rules) : [...listOf(record.denials), ...listOf(record.would_deny)];
  return [...new Set(rules.map((rule) => `${rule.policy}/${rule.rule}`))];
}

/** What the operator has masked is a text in the place of a list. @param {any} value @returns {any[]} */
function listOf(value) {
  return Array.isArray(value) ? value : [];
}
