/**
 * State: what the pages of this tab share: the question, the program, and the last answers.
 * @module
 */

/** @typedef {import("./answers.js").Answer} Answer */

export const state = {
  /** @type {import("./answers.js").Question} */
  question: { mode: "chat", prompt: "", system: "", seed: 1, temperature: 0.7, most: 48, model: "", pictures: [] },
  /** @type {import("./program.js").Program} */
  program: { changes: [], watches: [] },
  /** Whether steered answers tell their readings at each token. */
  reads: true,
  /** @type {{plain: Answer | null, steered: Answer | null}} */
  answers: { plain: null, steered: null },
  /** @type {any} The program under which `answers.steered` was made. */
  ran: null,
  /** @type {any[]} The receipts of this tab's answers, newest first. */
  receipts: [],
  /** The link that was taken or made last, so that going back to it takes nothing anew. */
  link: "",
  /** @type {any} What /v1/model says. */
  model: null,
  /** @type {any} A baseline of usage to compare with. */
  baseline: null,
  /** When that was kept, by the page's own clock in milliseconds. */
  baselineKept: 0,
};

/** How many receipts a tab remembers. */
const MOST_RECEIPTS = 200;

/** @param {Answer} answer */
export function remember(answer) {
  if (!answer.receipt) return;
  state.receipts.unshift(answer.receipt);
  state.receipts.length = Math.min(state.receipts.length, MOST_RECEIPTS);
}
