/**
 * Receipt: what was done to an answer, in words: one of this tab's, or one that is pasted.
 * @module
 */

import { wordsOf } from "../api.js";
import { button, choice, fill, labelled, make } from "../elements.js";
import { receiptInWords } from "../receipt_words.js";
import { state } from "../state.js";

export const title = "Receipt";

/** @param {import("../main.js").Place} place */
export function show({ root, query }) {
  const view = make("div", { "aria-live": "polite" });
  const tell = (/** @type {any} */ receipt) => {
    try {
      fill(view, receiptInWords(receipt));
    } catch (error) {
      fill(view, make("p", { class: "error", role: "alert" }, `This is no receipt: ${wordsOf(error)}`));
    }
  };
  const pasted = make("textarea", { rows: 5, spellcheck: "false" });
  const read = () => {
    try {
      tell(receiptIn(JSON.parse(pasted.value)));
    } catch (error) {
      fill(view, make("p", { class: "error", role: "alert" }, `This is no JSON: ${wordsOf(error)}`));
    }
  };
  /** @type {[string, string][]} */
  const names = state.receipts.map((receipt, at) => [String(at), nameOf(receipt, at)]);
  const wanted = query.get("of") === "steered" ? state.answers.steered?.receipt : null;
  const first = Math.max(0, state.receipts.indexOf(wanted));
  fill(
    root,
    make(
      "section",
      { class: "panel", "aria-label": "Which receipt" },
      names.length
        ? labelled("An answer of this tab", choice(names, String(first), (at) => tell(state.receipts[Number(at)])))
        : make("p", { class: "quiet" }, "This tab has no answers yet: ask on the page Play."),
      make(
        "details",
        { open: !names.length },
        make("summary", {}, "Another answer"),
        labelled("Its JSON, whole or the receipt alone", pasted),
        button("Read it", read),
      ),
    ),
    view,
  );
  if (names.length) tell(state.receipts[first]);
}

/**
 * The receipt in an answer's JSON, wherever it stands.
 * @param {any} value
 */
function receiptIn(value) {
  return value.saegis?.receipt || value.receipt || value;
}

/**
 * @param {any} receipt
 * @param {number} at
 */
function nameOf(receipt, at) {
  const what = receipt.steered ? "steered" : "not moved";
  return `${at === 0 ? "the newest" : `${at + 1}`}: ${what}${receipt.ruled ? ", ruled" : ""}, decision ${receipt.decision_id || "unnamed"}`;
}
