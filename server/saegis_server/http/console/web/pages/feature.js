/**
 * Feature: what is known of one feature: its label, examples, histogram, languages, and how it is used.
 * @module
 */

import { get, wordsOf } from "../api.js";
import { bars, meter } from "../charts.js";
import { button, fill, make, share, table, told } from "../elements.js";
import { featureSearch } from "../feature_search.js";
import { featureOf, isSame, OPERATIONS } from "../program.js";
import { state } from "../state.js";
import { tokenText } from "../token_text.js";

export const title = "Feature";
/** How long the periods are whose usage is told, in seconds, and their names. */
const WINDOWS = /** @type {[number, string][]} */ ([
  [600, "10 minutes"],
  [3600, "hour"],
  [21_600, "6 hours"],
  [86_400, "day"],
  [604_800, "week"],
]);
/** How many features an answer about usage has at most. */
const MOST = 1000;
/** How many neighbours are shown. */
const NEIGHBOURS = 10;

/** @param {import("../main.js").Place} place */
export async function show({ root, rest }) {
  const [sae, index] = rest;
  const open = (/** @type {any} */ feature) => (location.hash = `#/feature/${encodeURIComponent(feature.sae)}/${feature.index}`);
  const search = featureSearch({ Open: open }, state.model);
  if (index === undefined) {
    fill(root, search, make("p", { class: "quiet" }, "Choose a feature, and what is known of it comes here."));
    return;
  }
  const answer = await get(`/v1/features/${encodeURIComponent(sae)}/${encodeURIComponent(index)}`);
  const { feature, histogram, examples = [] } = answer;
  const alike = make("section", { class: "panel", "aria-label": "Neighbours" }, make("h2", {}, "Its neighbours"));
  const usage = make("section", { class: "panel", "aria-label": "Usage" }, make("h2", {}, "Usage over time"));
  fill(
    root,
    make(
      "div",
      { class: "halves" },
      facts(feature),
      make("div", {}, histogramOf(histogram), languages(feature)),
    ),
    examplesOf(examples),
    alike,
    usage,
    make("details", {}, make("summary", {}, "Another feature"), search),
  );
  alike.append(await neighboursOf(feature));
  usage.append(await usageOf(feature));
}

/** @param {any} feature */
function facts(feature) {
  const rows = [
    ["SAE and index", `${feature.sae}, ${feature.index}`],
    ["place", feature.site],
    ["largest activation recorded", told(feature.max_activation)],
    ["active on", feature.density === undefined ? "–" : `${share(feature.density)} of tokens`],
    ["firings that the label explains", share(feature.precision)],
    ["subjects", feature.subjects.join(", ") || "–"],
    ["languages", feature.languages.join(", ") || "–"],
  ];
  const done = make("span", { class: "quiet", role: "status" });
  const act = (/** @type {string} */ words, /** @type {() => void} */ add) =>
    button(words, () => {
      add();
      fill(done, "Added to the program of ", make("a", { href: "#/play" }, "Play"), ".");
    });
  const own = featureOf(feature);
  const change = (/** @type {string} */ operation) => () =>
    state.program.changes.push({ feature: own, operation, value: OPERATIONS[operation].first ?? 0, phase: "all" });
  const watch = () => {
    if (!state.program.watches.some((each) => isSame(each, own))) state.program.watches.push(own);
  };
  return make(
    "section",
    { class: "panel", "aria-label": "What it is" },
    make("h2", {}, feature.label || `Feature ${feature.index}, without a label`, feature.harmful ? make("strong", { class: "harmful" }, " harmful") : null),
    table("What is recorded", ["what", "value"], rows),
    make("div", { class: "row" }, act("Steer", change("clamp")), act("Ban", change("ban")), act("Watch", watch), done),
  );
}

/** @param {any} histogram */
function histogramOf(histogram) {
  const heading = make("h2", {}, "How strongly it fires");
  if (!histogram || !histogram.counts.length) {
    return make("section", { class: "panel", "aria-label": "Histogram" }, heading, make("p", { class: "quiet" }, "Nobody has gathered that for this SAE."));
  }
  const counts = histogram.counts.map(Number);
  const width = histogram.bin_width;
  const firing = counts.reduce((/** @type {number} */ sum, /** @type {number} */ count) => sum + count, 0);
  return make(
    "section",
    { class: "panel", "aria-label": "Histogram" },
    heading,
    bars(
      counts.map((/** @type {number} */ value, /** @type {number} */ at) => ({
        value,
        words: `${told(at * width)} to ${told((at + 1) * width)}: ${told(value)} tokens`,
      })),
      { label: `Histogram of activations: ${firing} firing tokens`, low: "0", high: told(counts.length * width), isLog: true },
    ),
    make("p", { class: "quiet" }, `Active at ${told(firing)} of ${told(Number(histogram.tokens))} tokens read. Heights are logarithmic.`),
  );
}

/** @param {any} feature */
function languages(feature) {
  const recall = feature.recall || {};
  const precision = feature.precision_by_language || {};
  const names = [...new Set([...Object.keys(recall), ...Object.keys(precision)])].sort();
  return make(
    "section",
    { class: "panel", "aria-label": "Languages" },
    names.length
      ? table(
          "By language",
          ["language", "of what the label means, it fires on", "of its firings, the label explains"],
          names.map((name) => [name, bar(recall[name]), bar(precision[name])]),
        )
      : make("p", { class: "quiet" }, "Nobody has measured it by language."),
  );
}

/** @param {number | undefined} part */
function bar(part) {
  return part === undefined ? "–" : make("span", {}, meter(part), share(part));
}

/** @param {any[]} examples */
function examplesOf(examples) {
  return make(
    "section",
    { class: "panel", "aria-label": "Examples" },
    make("h2", {}, "Where it fires most strongly"),
    examples.length
      ? examples.map(({ tokens, activations, strongest }, at) => {
          const most = Math.max(...activations, Number.MIN_VALUE);
          const shown = tokens.map((/** @type {string} */ text, /** @type {number} */ place) => ({
            text,
            heat: activations[place] / most,
            title: told(activations[place]),
            mark: place === strongest ? "chosen" : "",
          }));
          return make("blockquote", {}, tokenText(shown, { label: `example ${at + 1}` }), make("span", { class: "quiet" }, told(most)));
        })
      : make("p", { class: "quiet" }, "Nobody has gathered examples for this SAE."),
  );
}

/** The features whose decoder rows are most alike. @param {any} feature */
async function neighboursOf(feature) {
  const path = `/v1/features/${encodeURIComponent(feature.sae)}/${feature.index}`;
  try {
    const { neighbours } = await get(path, { neighbour_count: NEIGHBOURS });
    return table(
      "By the cosine of what they write",
      ["feature", "cosine", "largest activation"],
      neighbours.map((/** @type {any} */ each) => [
        make("a", { href: `#/feature/${encodeURIComponent(each.feature.sae)}/${each.feature.index}` }, each.feature.label || `feature ${each.feature.index}`),
        make("span", {}, meter(each.cosine), told(each.cosine)),
        told(each.feature.max_activation),
      ]),
    );
  } catch (error) {
    return make("p", { class: "quiet" }, wordsOf(error));
  }
}

/**
 * The feature's rate in each period that lies between two windows, oldest first.
 * @param {any} feature
 */
async function usageOf(feature) {
  try {
    const windows = await Promise.all(
      WINDOWS.map(([seconds]) => get("/v1/usage", { sae: feature.sae, limit: MOST, window: `${seconds}s` })),
    );
    return usageTable(feature, windows);
  } catch (error) {
    return make("p", { class: "quiet" }, wordsOf(error));
  }
}

/**
 * @param {any} feature
 * @param {any[]} windows
 */
function usageTable(feature, windows) {
  let [fired, tokens, start] = [0, 0, ""];
  const rows = [];
  for (const [at, window] of windows.entries()) {
    if (window.start_time === start) break;
    const own = window.features.find((/** @type {any} */ each) => each.feature.index === feature.index);
    const isCut = !own && window.features.length === MOST;
    const [allFired, allTokens] = [Number(own?.fired || 0), Number(window.tokens || 0)];
    const rate = allTokens > tokens ? (allFired - fired) / (allTokens - tokens) : null;
    const name = at === 0 ? `last ${WINDOWS[at][1]}` : `before, up to a ${WINDOWS[at][1]} ago`;
    rows.push([name, told(allTokens - tokens), isCut ? "too rare to be told" : told(allFired - fired), isCut ? "–" : share(rate)]);
    [fired, tokens, start] = [allFired, allTokens, window.start_time];
  }
  return table("What it did in what was written for everybody", ["when", "tokens looked at", "active at", "rate"], rows);
}
