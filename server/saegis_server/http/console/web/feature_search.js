/**
 * Feature search: finds features by words, and offers what can be done with each.
 * @module
 */

import { get, wordsOf } from "./api.js";
import { button, fill, labelled, make, share, told } from "./elements.js";
import { featureOf } from "./program.js";

/** @typedef {import("./program.js").Feature} Feature */

const PAUSE_MS = 200;
const FOUND = 12;

/**
 * A field and what it finds. A whole number finds the feature of that index.
 * @param {Record<string, (feature: Feature) => unknown>} acts words of buttons, and what they do with a feature
 * @param {{saes: any[]}} model
 */
export function featureSearch(acts, model) {
  const field = make("input", { type: "search", placeholder: "words of a label, a language, or an index" });
  const found = make("ul", { class: "found" });
  const status = make("p", { class: "quiet", role: "status" });
  let timer = 0;
  let last = 0;

  async function search() {
    const number = (last += 1);
    const query = field.value.trim();
    try {
      const features = /^\d+$/.test(query) ? await byIndex(query) : await byWords(query);
      if (number === last) fill(found, features.map(row));
    } catch (error) {
      if (number === last) fill(found);
      if (number === last) fill(status, wordsOf(error));
    }
  }

  /** @param {string} query */
  async function byWords(query) {
    const answer = await get("/v1/features/search", { query, page_size: FOUND });
    fill(status, answer.total_size ? `${told(answer.total_size)} found` : "Nothing found.");
    return answer.features;
  }

  /** @param {string} index */
  async function byIndex(index) {
    const asked = model.saes.map((sae) => get(`/v1/features/${encodeURIComponent(sae.id)}/${index}`));
    const answers = await Promise.allSettled(asked);
    const features = answers.flatMap((answer) => (answer.status === "fulfilled" ? [answer.value.feature] : []));
    if (!features.length) throw /** @type {PromiseRejectedResult} */ (answers[0]).reason;
    fill(status, "");
    return features;
  }

  /** @param {any} feature */
  function row(feature) {
    const facts = [
      feature.languages.join(" "),
      feature.density === undefined ? "" : `on ${share(feature.density)} of tokens`,
    ];
    return make(
      "li",
      {},
      make(
        "a",
        { href: `#/feature/${encodeURIComponent(feature.sae)}/${feature.index}` },
        feature.label || `feature ${feature.index}`,
      ),
      make("span", { class: "quiet" }, ` ${feature.index} · ${facts.filter(Boolean).join(" · ")}`),
      feature.harmful ? make("strong", { class: "harmful" }, " harmful") : null,
      make(
        "span",
        { class: "row" },
        Object.entries(acts).map(([words, act]) =>
          button(words, () => act(featureOf(feature)), {
            "aria-label": `${words}: ${feature.label || `feature ${feature.index}`}`,
          }),
        ),
      ),
    );
  }

  field.addEventListener("input", () => {
    clearTimeout(timer);
    timer = window.setTimeout(search, PAUSE_MS);
  });
  field.addEventListener("focus", () => {
    if (!found.childElementCount) search();
  });
  return make("section", { class: "search" }, labelled("Find features", field), status, found);
}
