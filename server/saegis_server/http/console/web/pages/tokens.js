/**
 * Tokens: a text coloured by any feature, before and after the edits, and all that is known of each token.
 * @module
 */

import { ask, inputOf } from "../answers.js";
import { ApiError, post, wordsOf } from "../api.js";
import { button, choice, fill, labelled, make, share, table, told } from "../elements.js";
import { featureSearch } from "../feature_search.js";
import { overlaid } from "../pictures.js";
import { featuresIn, isSame, nameOf, steeringOf } from "../program.js";
import { remember, state } from "../state.js";
import { tokenText } from "../token_text.js";

/** @typedef {import("../answers.js").Answer} Answer */
/** @typedef {import("../program.js").Feature} Feature */
/** @typedef {{id: number | null, text: string}} Place */
/**
 * What is read. answer: as it ran, with its readings; null where nothing was asked but the text looked at.
 * strongest: each place's strongest features, read without steering. withAnswer: whether the answer's tokens count.
 * @typedef {{places: Place[], answer: Answer | null, program: any, strongest: any[][], withAnswer: boolean,
 *   denied: string, pictures: any[]}} Reading pictures: where the prompt's pictures lie among the places.
 */
/** @typedef {{feature: Feature, before: (number | null)[], after: (number | null)[] | null}} Colour */

export const title = "Tokens";
const STRONGEST = 8;
const OFFERED = 10;

/** @param {import("../main.js").Place} place */
export async function show({ root }) {
  const view = make("div", { "aria-live": "polite" });
  const text = make("textarea", { rows: 4, spellcheck: "false" });
  text.value = state.question.prompt;
  const texts = make(
    "div",
    {},
    labelled("Text", text),
    button("Read it", () => read(() => readText(text.value), view), { class: "main" }),
    make("p", { class: "quiet" }, "It is read as a plain text, without and with the edits of the page Play."),
  );
  const sources = [
    ...(state.answers.steered ? [["steered", "The last answer with your edits"]] : []),
    ...(state.answers.plain ? [["plain", "The last answer without your edits"]] : []),
    ["text", "A text"],
  ];
  const source = choice(sources, sources[0][0], (value) => take(value));

  /** @param {string} value */
  function take(value) {
    texts.hidden = value !== "text";
    fill(view);
    if (value === "text") return undefined;
    const answer = /** @type {Answer} */ (state.answers[/** @type {"plain" | "steered"} */ (value)]);
    const program = value === "steered" ? state.ran : { changes: [], watches: [] };
    return read(() => readAnswer(answer, program), view);
  }

  fill(root, make("section", { class: "panel", "aria-label": "What is read" }, labelled("What to look at", source), texts), view);
  await take(sources[0][0]);
}

/**
 * @param {() => Promise<Reading>} reader
 * @param {HTMLElement} view
 */
async function read(reader, view) {
  fill(view, make("p", { class: "quiet" }, "reading …"));
  try {
    new TokensView(await reader(), view).show();
  } catch (error) {
    fill(view, make("p", { class: "error", role: "alert" }, wordsOf(error)));
  }
}

/**
 * @param {Answer} answer
 * @param {any} program
 * @returns {Promise<Reading>}
 */
async function readAnswer(answer, program) {
  const prompt = await post("/v1/tokenize", inputOf(answer.question));
  if (prompt.token_ids.length !== answer.promptLength) throw new Error("the prompt's tokens have changed: ask again");
  /** @type {Place[]} */
  const places = [
    ...prompt.token_ids.map((/** @type {number} */ id, /** @type {number} */ at) => ({ id, text: prompt.tokens[at] })),
    ...answer.tokens,
  ];
  return { places, answer, program, withAnswer: true, ...(await strongestOf(places, answer.question)) };
}

/**
 * @param {string} text
 * @returns {Promise<Reading>}
 */
async function readText(text) {
  const prompt = await post("/v1/tokenize", { text });
  const places = prompt.token_ids.map((/** @type {number} */ id, /** @type {number} */ at) => ({ id, text: prompt.tokens[at] }));
  const program = structuredClone(state.program);
  const features = featuresIn(program);
  const answer = features.length ? await askAgain(textQuestion(text), program, features) : null;
  const found = await strongestOf(places, textQuestion(text));
  const plain = answer || /** @type {any} */ ({ question: textQuestion(text), watched: [] });
  return { places, answer: plain, program, withAnswer: false, ...found };
}

/**
 * A question whose prompt is all that counts.
 * @param {string} text
 */
function textQuestion(text) {
  return { ...state.question, mode: /** @type {const} */ ("completion"), prompt: text, temperature: 0, most: 1 };
}

/**
 * @param {import("../answers.js").Question} question
 * @param {any} program
 * @param {Feature[]} features
 */
async function askAgain(question, program, features) {
  const answer = await ask(question, steeringOf(program, { reads: features }), features);
  remember(answer);
  return answer;
}

/**
 * Read tokens once more, under the same program: what follows the last opening of an assistant's turn counts as the
 * answer again. So the very tokens that are shown are read, whatever would be written now: an answer of the same
 * seed may differ once in a long while, since what else runs in a step changes the last bits of its logits.
 * @param {Place[]} places
 * @param {import("../answers.js").Question} question
 * @param {any} program
 * @param {Feature[]} features
 */
function readAgain(places, question, program, features) {
  const asked = { ...textQuestion(""), model: question.model, tokens: places.map(({ id }) => id) };
  return askAgain(asked, program, features);
}

/**
 * What Inspect is asked to read: the tokens as they are or, where some are a picture's, the conversation without the
 * answer, whose tokens are the first ones.
 * @param {Place[]} places
 * @param {import("../answers.js").Question} question
 */
function inspected(places, question) {
  if (question.mode === "chat" && question.pictures.length) return inputOf(question);
  return { token_ids: { ids: places.map(({ id }) => id) } };
}

/**
 * The strongest features of each place, read without steering, or why they are not told.
 * @param {Place[]} places
 * @param {import("../answers.js").Question} question
 */
async function strongestOf(places, question) {
  try {
    const asked = { ...inspected(places, question), top_k: STRONGEST, sae: state.model.saes[0]?.id };
    const { tokens, sae, pictures = [] } = await post("/v1/inspect", asked);
    return {
      denied: "",
      pictures,
      strongest: places.map((_, at) =>
        (tokens[at]?.features || []).map((/** @type {any} */ each) => ({ sae, max: null, isLeftOut: tokens[at].left_out, ...each })),
      ),
    };
  } catch (error) {
    return { denied: wordsOf(error), pictures: [], strongest: places.map(() => []) };
  }
}

/** The view of one reading: what colours it, its tokens, and the drawer of the chosen one. */
class TokensView {
  /**
   * @param {Reading} reading
   * @param {HTMLElement} root
   */
  constructor(reading, root) {
    this.reading = reading;
    this.root = root;
    this.blocks = make("div", {});
    this.drawer = make("aside", { class: "drawer", hidden: true, "aria-label": "The chosen token", "aria-live": "polite" });
    this.status = make("p", { class: "quiet", role: "status" });
    this.body = make("div", { class: "withdrawer" }, this.blocks, this.drawer);
    /** @type {Colour | null} */
    this.colour = null;
    this.body.addEventListener("keydown", (/** @type {KeyboardEvent} */ event) => {
      if (event.key === "Escape") this.close();
    });
  }

  show() {
    const search = featureSearch({ Colour: (feature) => this.paint(feature) }, state.model);
    fill(
      this.root,
      this.reading.denied ? make("p", { class: "error" }, `Strongest features are not shown. ${this.reading.denied}`) : null,
      make(
        "details",
        {},
        make("summary", {}, "Colour by another feature"),
        search,
      ),
      make("div", { class: "row", role: "group", "aria-label": "Colour by" }, this.offered().map((feature) => button(nameOf(feature), () => this.paint(feature)))),
      this.status,
      this.body,
    );
    const [first] = this.offered();
    if (first) this.paint(first);
    else this.draw();
  }

  /** The features that are offered for colour: those that were read, then those that are strongest in the text. */
  offered() {
    const found = [...(this.reading.answer?.watched || [])];
    /** @type {Map<number, {feature: Feature, sum: number}>} */
    const sums = new Map();
    for (const { index, label, sae, activation, isLeftOut } of this.reading.strongest.flat()) {
      if (isLeftOut) continue;
      const entry = sums.get(index) || { feature: { sae, index, label, max: null }, sum: 0 };
      entry.sum += activation;
      sums.set(index, entry);
    }
    for (const { feature } of [...sums.values()].sort((one, other) => other.sum - one.sum)) {
      if (found.length < OFFERED && !found.some((each) => isSame(each, feature))) found.push(feature);
    }
    return found;
  }

  /**
   * Colour by a feature: by its readings as it ran or, where nobody asked for them then, as they are read again.
   * @param {Feature} feature
   */
  async paint(feature) {
    const { answer } = this.reading;
    this.status.textContent = `reading ${nameOf(feature)} …`;
    try {
      const own = /** @type {Answer} */ (answer);
      const watch = own.watched.findIndex((each) => isSame(each, feature));
      const from = watch < 0 ? await this.readAgain(feature) : own;
      this.colour = { feature, ...from.readingsAt(Math.max(watch, 0)) };
      this.status.textContent = `Coloured by ${nameOf(feature)}.`;
    } catch (error) {
      this.status.textContent = `${wordsOf(error)} Shown as it is read without steering.`;
      await this.paintPlain(feature);
    }
    this.draw();
  }

  /**
   * The tokens read again, with the readings of a feature at each. What cannot be read so is asked again from its
   * seed: what pictures are shown in, and what rules of the operator acted on. Throws where that is answered otherwise.
   * @param {Feature} feature
   * @returns {Promise<Answer>}
   */
  async readAgain(feature) {
    const { places, answer, program, withAnswer } = this.reading;
    const { question, text, receipt } = /** @type {Answer} */ (answer);
    if (!question.pictures.length && !receipt?.ruled) {
      try {
        return await readAgain(places, question, program, [feature]);
      } catch (error) {
        // Such as a policy that takes no tokens as they are, or a text that fills the context.
        if (!(error instanceof ApiError)) throw error;
      }
    }
    const again = await askAgain(question, program, [feature]);
    if (withAnswer && again.text !== text) throw new Error("The same question was answered otherwise.");
    return again;
  }

  /** @param {Feature} feature */
  async paintPlain(feature) {
    const { places, answer } = this.reading;
    const input = inspected(places, /** @type {Answer} */ (answer).question);
    const ref = { sae: feature.sae, index: feature.index };
    try {
      const { values } = await post("/v1/inspect", { ...input, top_k: 0, sae: feature.sae, features: [ref] });
      this.colour = { feature, before: values[0].activations, after: null };
    } catch (error) {
      this.status.textContent = wordsOf(error);
    }
  }

  draw() {
    const { before = [], after = null } = this.colour || {};
    const values = [...before, ...(after || [])].map((value) => value ?? 0);
    const scale = this.colour?.feature.max || Math.max(...values, Number.MIN_VALUE);
    const block = (/** @type {string} */ name, /** @type {(number | null)[]} */ list, /** @type {boolean} */ marks) => [
      make("h2", {}, name),
      tokenText(this.tokens(list, scale, marks), { label: name, onChosen: (place) => this.open(place) }),
    ];
    const shown = this.reading.answer?.question.pictures || [];
    const pictures = this.reading.pictures.map(({ grids = [] }, at) => overlaid(shown[at], grids, before, scale));
    const isEdited = after && this.reading.program.changes.length;
    const ruled = this.reading.answer?.receipt?.ruled;
    fill(
      this.blocks,
      pictures.length ? make("div", { role: "group", "aria-label": "Pictures, coloured where the feature is read" }, pictures) : null,
      isEdited || ruled ? [block("Before edits and rules", before, false), block("After them", after || [], true)] : block("The text", before, true),
      key(scale),
    );
  }

  /**
   * @param {(number | null)[]} values
   * @param {number} scale
   * @param {boolean} marks
   */
  tokens(values, scale, marks) {
    const { places, answer, withAnswer } = this.reading;
    const prompt = withAnswer ? /** @type {Answer} */ (answer).promptLength : places.length;
    const moved = answer?.usage ? answer.moved : [];
    const out = answer?.usage ? this.putOut() : [];
    const held = this.held();
    return places.map(({ text }, place) => {
      const facts = [];
      const classes = [];
      if (values[place] !== null && values[place] !== undefined) facts.push(told(values[place]));
      if (marks && moved[place]) {
        classes.push("moved");
        facts.push(`moved by ${share(moved[place])}`);
      }
      if (marks && out[place]) {
        classes.push("put-out");
        facts.push("a ban put a feature out");
      }
      if (marks && held.has(place - prompt)) facts.push(...(held.get(place - prompt) || []));
      if (marks && held.has(place - prompt)) classes.push("put-out");
      const starts = withAnswer && place === prompt ? "answer" : undefined;
      return { text, heat: (values[place] || 0) / scale, mark: classes.join(" "), title: facts.join("; "), starts };
    });
  }

  /** At which places a banned feature was awake before and is not after. */
  putOut() {
    const { answer, program } = this.reading;
    const asked = /** @type {Answer} */ (answer);
    const out = /** @type {boolean[]} */ ([]);
    for (const { feature, operation } of program.changes) {
      const watch = asked.watched.findIndex((each) => isSame(each, feature));
      if (operation !== "ban" || watch < 0) continue;
      const { before, after } = asked.readingsAt(watch);
      before.forEach((value, place) => (out[place] ||= (value ?? 0) > 0 && (after[place] ?? 1) <= 0));
    }
    return out;
  }

  /** What rules' conditions first held at which token of the answer. */
  held() {
    /** @type {Map<number, string[]>} */
    const found = new Map();
    for (const { rule, first_held: first } of this.reading.answer?.receipt?.rules || []) {
      if (first !== undefined && this.reading.withAnswer) {
        found.set(first, [...(found.get(first) || []), `the condition of ${rule} held here first`]);
      }
    }
    return found;
  }

  close() {
    this.drawer.hidden = true;
    this.body.classList.remove("open");
  }

  /**
   * Tell all of one token.
   * @param {number} place
   */
  open(place) {
    const { places, answer, strongest, withAnswer } = this.reading;
    const { id, text } = places[place];
    const isAnswer = withAnswer && place >= /** @type {Answer} */ (answer).promptLength;
    const token = isAnswer ? /** @type {Answer} */ (answer).tokens[place - /** @type {Answer} */ (answer).promptLength] : null;
    const moved = answer?.usage ? answer.moved[place] : null;
    const done = moved === null || moved === undefined ? "What was done at this token was not told." : moved ? `It was moved by ${share(moved)} of the activation's norm.` : "It was not moved.";
    this.drawer.hidden = false;
    this.body.classList.add("open");
    fill(
      this.drawer,
      make("div", { class: "row" }, make("h2", {}, `Token ${place}: ${JSON.stringify(text)}`), button("Close", () => this.close())),
      make("p", { class: "quiet" }, `${isAnswer ? "of the answer" : "of the prompt"}, id ${id ?? "unknown"}. ${done}`),
      this.readRows(place),
      token
        ? table(
            "How likely it was",
            ["token", "probability"],
            [[make("strong", {}, token.text), told(Math.exp(token.logprob ?? NaN))], ...token.top.filter((top) => top.text !== token.text).map((top) => [top.text, told(Math.exp(top.logprob))])],
          )
        : null,
      table(
        "Strongest features, read without steering",
        ["feature", "activation", "act"],
        strongest[place].map((each) => [
          make("a", { href: `#/feature/${encodeURIComponent(each.sae)}/${each.index}` }, each.label || `feature ${each.index}`),
          told(each.activation),
          button("Colour", () => this.paint(each), { "aria-label": `Colour by ${each.label || each.index}` }),
        ]),
      ),
    );
  }

  /** @param {number} place */
  readRows(place) {
    const answer = this.reading.answer;
    const read = (answer?.usage ? answer.watched : []).map((feature, watch) => {
      const { before, after, setTo } = /** @type {Answer} */ (answer).readingsAt(watch);
      return [nameOf(feature), told(before[place]), told(setTo[place]), told(after[place])];
    });
    if (this.colour && !read.some(([name]) => name === nameOf(/** @type {Colour} */ (this.colour).feature))) {
      read.push([nameOf(this.colour.feature), told(this.colour.before[place]), "–", told(this.colour.after?.[place])]);
    }
    return read.length ? table("What was read", ["feature", "before", "set to", "after"], read) : null;
  }
}

/** What the marks mean. @param {number} scale */
function key(scale) {
  return make(
    "p",
    { class: "key" },
    make("span", {}, `full colour: ${told(scale)}`),
    make("span", {}, make("span", { class: "token moved" }, "moved"), " by an edit or a rule"),
    make("span", {}, make("span", { class: "token put-out" }, "put out"), " by a ban, or where a rule's condition held"),
    make("span", {}, "arrow keys go from token to token, Escape closes the drawer"),
  );
}
