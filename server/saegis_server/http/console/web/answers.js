/**
 * Answers: asks the model, and gathers what a stream tells of one answer.
 * @module
 */

import { events } from "./api.js";
import { base64Of } from "./pictures.js";

/**
 * @typedef {{text: string, id: number | null, logprob: number | null, top: {text: string, logprob: number}[]}} Token
 * @typedef {{before: number[], after: number[], setTo: number[]}} Readings
 * @typedef {{mode: "chat" | "completion", prompt: string, system: string, seed: number, temperature: number,
 *   most: number, model: string, pictures: import("./pictures.js").Picture[], tokens?: (number | null)[]}} Question
 *   tokens: the prompt's, where they are known, in place of its text
 * @typedef {import("./program.js").Feature} Feature
 */

/** How many alternatives each token tells. */
const ALTERNATIVES = 5;

/** One answer, while it comes and when it is there. */
export class Answer {
  /**
   * @param {Question} question
   * @param {Feature[]} watched
   */
  constructor(question, watched) {
    this.question = question;
    /** Whose readings there are, in their order. */
    this.watched = watched;
    /** @type {Token[]} */
    this.tokens = [];
    this.text = "";
    this.finish = "";
    /** @type {any} */
    this.receipt = null;
    /** @type {any} */
    this.usage = null;
    /** @type {Readings[]} At the tokens' own places; see `readingsAt`. */
    this.promptReadings = watched.map(noReadings);
    /** @type {Readings[]} At the places before each token of the answer. */
    this.readings = watched.map(noReadings);
    /** @type {Map<string, number[]>} */
    this.promptMoves = new Map();
    /** @type {Map<string, number[]>} */
    this.moves = new Map();
  }

  /** How many tokens the prompt has, once that is told. */
  get promptLength() {
    return this.usage ? this.usage.prompt_tokens : 0;
  }

  /**
   * The readings of a watched feature at each place of prompt and answer, null where none was told: the last
   * token of an answer is never read.
   * @param {number} watch
   * @returns {{before: (number | null)[], after: (number | null)[], setTo: (number | null)[]}}
   */
  readingsAt(watch) {
    const own = this.promptReadings[watch];
    const told = this.readings[watch];
    /** @param {"before" | "after" | "setTo"} name */
    const at = (name) =>
      this.places((place) =>
        place < this.promptLength ? own[name][place] : told[name][place - this.promptLength + 1],
      );
    return { before: at("before"), after: at("after"), setTo: at("setTo") };
  }

  /** How far each place was moved, at the site that moved it most; null where that was not told. */
  get moved() {
    return this.places((place) => {
      const values = [...this.moves.keys()].map((site) =>
        place < this.promptLength
          ? this.promptMoves.get(site)?.[place]
          : this.moves.get(site)?.[place - this.promptLength + 1],
      );
      const found = values.filter((value) => value !== undefined);
      return found.length ? Math.max(.../** @type {number[]} */ (found)) : undefined;
    });
  }

  /**
   * @param {(place: number) => number | undefined} of
   * @returns {(number | null)[]}
   */
  places(of) {
    return Array.from({ length: this.promptLength + this.tokens.length }, (_, place) => of(place) ?? null);
  }

  /**
   * Take an event of the stream.
   * @param {any} event
   */
  take(event) {
    for (const choice of event.choices) {
      this.text += choice.delta?.content ?? choice.text ?? "";
      this.tokens.push(...tokensOf(choice.logprobs, choice.token_ids || []));
      this.finish = choice.finish_reason || this.finish;
    }
    this.usage = event.usage || this.usage;
    const told = event.saegis || {};
    this.receipt = told.receipt || this.receipt;
    gather(this.readings, told.watched);
    gather(this.promptReadings, told.prompt_watched);
    gatherMoves(this.moves, told.moves);
    gatherMoves(this.promptMoves, told.prompt_moves);
  }
}

/** @returns {Readings} */
function noReadings() {
  return { before: [], after: [], setTo: [] };
}

/**
 * @param {Readings[]} readings
 * @param {any[]} [entries]
 */
function gather(readings, entries = []) {
  for (const { watch, before, after, set_to: setTo } of entries) {
    readings[watch].before.push(...before);
    readings[watch].after.push(...after);
    readings[watch].setTo.push(...setTo);
  }
}

/**
 * @param {Map<string, number[]>} moves
 * @param {any[]} [entries]
 */
function gatherMoves(moves, entries = []) {
  for (const { site, relative_norms: norms } of entries) {
    moves.set(site, [...(moves.get(site) || []), ...norms]);
  }
}

/**
 * The tokens of a piece, from either shape of log probabilities.
 * @param {any} told
 * @param {number[]} ids
 * @returns {Token[]}
 */
function tokensOf(told, ids) {
  if (!told) return [];
  if (told.content) {
    return told.content.map((/** @type {any} */ entry, /** @type {number} */ at) => ({
      text: entry.token,
      id: ids[at] ?? null,
      logprob: entry.logprob,
      top: entry.top_logprobs.map((/** @type {any} */ top) => ({ text: top.token, logprob: top.logprob })),
    }));
  }
  return told.tokens.map((/** @type {string} */ text, /** @type {number} */ at) => ({
    text,
    id: ids[at] ?? null,
    logprob: told.token_logprobs[at],
    top: Object.entries(told.top_logprobs?.[at] || {}).map(([other, logprob]) => ({ text: other, logprob })),
  }));
}

/**
 * Where a question goes, and its body as people would write it.
 * @param {Question} question
 * @param {unknown} steering
 * @returns {{path: string, body: Record<string, unknown>}}
 */
export function requestOf(question, steering) {
  const { mode, prompt, system, seed, temperature, most, tokens } = question;
  const isChat = mode === "chat";
  const shown = question.pictures.map(({ url }) => ({ type: "image_url", image_url: { url } }));
  const content = shown.length ? [...shown, { type: "text", text: prompt }] : prompt;
  const messages = [...(system ? [{ role: "system", content: system }] : []), { role: "user", content }];
  return {
    path: isChat ? "/v1/chat/completions" : "/v1/completions",
    body: {
      model: question.model,
      ...(isChat ? { messages } : { prompt: tokens || prompt }),
      max_tokens: most,
      temperature,
      seed,
      ...(steering ? { steering } : {}),
    },
  };
}

/**
 * The prompt of a question as the contract's Tokenize and Inspect take it.
 * @param {Question} question
 */
export function inputOf({ mode, prompt, system, pictures }) {
  if (mode !== "chat") return { text: prompt };
  const shown = pictures.map((picture) => ({ image: { data: base64Of(picture) } }));
  const said = shown.length ? { parts: [...shown, { text: prompt }] } : { content: prompt };
  const messages = [...(system ? [{ role: "system", content: system }] : []), { role: "user", ...said }];
  return { chat: { messages } };
}

/**
 * Ask, and tell the answer each time that it has grown.
 * @param {Question} question
 * @param {unknown} steering
 * @param {Feature[]} watched
 * @param {(answer: Answer) => void} [onGrown]
 * @param {AbortSignal} [signal]
 */
export async function ask(question, steering, watched, onGrown = () => {}, signal) {
  const { path, body } = requestOf(question, steering);
  const answer = new Answer(question, watched);
  const alternatives =
    question.mode === "chat" ? { logprobs: true, top_logprobs: ALTERNATIVES } : { logprobs: ALTERNATIVES };
  const told = { ...body, ...alternatives, return_token_ids: true, stream: true };
  for await (const event of events(path, { ...told, stream_options: { include_usage: true } }, signal)) {
    answer.take(event);
    onGrown(answer);
  }
  return answer;
}
