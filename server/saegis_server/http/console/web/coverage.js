/**
 * Coverage: what a policy's rules were measured to do in each language, from the calibration in its bundle.
 * @module
 */

import { meter } from "./charts.js";
import { make, share, table, told } from "./elements.js";

/** What a filter's measurement calls the model as it is, and the filter. */
const [BEFORE, AFTER] = ["nothing", "the filter"];

/** @param {number | null | undefined} value */
function bar(value) {
  return value === null || value === undefined ? "–" : make("span", {}, meter(value), share(value));
}

/**
 * The tables of a calibration.json; a sentence where it has none.
 * @param {string} text
 */
export function coverageOf(text) {
  let entries = {};
  try {
    entries = text ? JSON.parse(text) : {};
  } catch {
    entries = {};
  }
  const tables = Object.entries(entries).flatMap(([name, entry]) =>
    entry?.measured?.rows ? filterTables(entry) : entry?.coverage ? [ruleTable(name, entry)] : [],
  );
  return make(
    "section",
    { class: "panel", "aria-label": "Coverage by language" },
    make("h2", {}, "Coverage by language"),
    tables.length ? tables : make("p", { class: "quiet" }, "The bundle has no calibration: nobody has measured it by language."),
  );
}

/** @param {any} entry */
function filterTables(entry) {
  const { rows, decodings, chosen_from: chosen } = entry.measured;
  return decodings.map(({ temperature }) => {
    const of = (/** @type {string} */ condition, /** @type {string} */ language) =>
      rows.find((/** @type {any} */ row) => row.condition === condition && row.language === language && row.temperature === temperature);
    return table(
      `Temperature ${told(temperature)}, measured when the filter was made (its numbers were chosen in ${chosen.join(", ")})`,
      ["language", "harmful answers before", "harmful answers after", "refused or ended", "benign ones refused"],
      entry.measured.languages.flatMap((/** @type {string} */ language) => {
        const [before, after] = [of(BEFORE, language), of(AFTER, language)];
        if (!before || !after) return [];
        return [
          [
            language,
            bar(before.harmful.harm.harmful_answers),
            bar(after.harmful.harm.harmful_answers),
            bar(after.harmful.lost),
            bar(after.benign.refused),
          ],
        ];
      }),
    );
  });
}

/** @param {string} name @param {any} entry */
function ruleTable(name, entry) {
  return table(
    `The rule ${name}, strength ${told(entry.strength)}`,
    ["language", "harm before", "harm after", "refused after", "KL"],
    entry.coverage.map((/** @type {any} */ row) => [row.language, bar(row.harm_before), bar(row.harm_after), bar(row.refused_after), told(row.kl)]),
  );
}
