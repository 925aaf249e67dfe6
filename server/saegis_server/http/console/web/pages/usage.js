/**
 * Usage: which features fire most in what is written for everybody, in which phase and for which class of tenants,
 * and which have changed.
 * @module
 */

import { get, post, wordsOf } from "../api.js";
import { meter } from "../charts.js";
import { button, choice, fill, labelled, make, share, table, told } from "../elements.js";
import { state } from "../state.js";

export const title = "Usage";
const LIMIT = 25;
/** The choice of all that was counted since the baseline was kept. */
const SINCE = "baseline";
const asked = { sae: "", source: "USAGE_SOURCE_SAMPLED", phase: "PHASE_ALL", order: "USAGE_ORDER_FIRED", window: "", tenant_class: "" };
/** @type {Record<string, [string, string][]>} */
const CHOICES = {
  source: [
    ["USAGE_SOURCE_SAMPLED", "every feature, sampled"],
    ["USAGE_SOURCE_WATCHED", "the watched features, every token"],
  ],
  phase: [
    ["PHASE_ALL", "prompts and answers"],
    ["PHASE_PROMPT", "prompts"],
    ["PHASE_COMPLETION", "answers"],
  ],
  order: [
    ["USAGE_ORDER_FIRED", "fired most often"],
    ["USAGE_ORDER_MEAN", "highest mean"],
    ["USAGE_ORDER_MAX", "largest activation"],
    ["USAGE_ORDER_LAST_FIRED", "fired last"],
    ["USAGE_ORDER_CHANGE", "surely changed"],
  ],
  window: [
    ["", "all that is known"],
    ["600s", "the last 10 minutes"],
    ["3600s", "the last hour"],
    ["86400s", "the last day"],
    ["604800s", "the last week"],
  ],
};

/** @param {{root: HTMLElement}} place */
export async function show({ root }) {
  const view = make("div", { "aria-live": "polite" });
  asked.sae ||= state.model.saes[0]?.id || "";
  const reload = () => load(view);
  const select = (/** @type {string} */ words, /** @type {keyof typeof asked} */ name, /** @type {[string, string][]} */ options) =>
    labelled(words, choice(options, asked[name], (value) => ((asked[name] = value), reload())));
  const tenants = make("input", { type: "text", value: asked.tenant_class, placeholder: "everybody's" });
  tenants.addEventListener("change", () => ((asked.tenant_class = tenants.value.trim()), reload()));
  fill(
    root,
    make(
      "section",
      { class: "panel", "aria-label": "What is counted" },
      make(
        "div",
        { class: "row" },
        select("SAE", "sae", state.model.saes.map((/** @type {any} */ sae) => [sae.id, sae.id])),
        select("Counted", "source", CHOICES.source),
        select("In", "phase", CHOICES.phase),
        select("First", "order", CHOICES.order),
        select("Over", "window", state.baseline ? [[SINCE, "since the baseline"], ...CHOICES.window] : CHOICES.window),
        labelled("Class of tenants (watched features)", tenants),
      ),
      make(
        "div",
        { class: "row" },
        button("Count again", reload),
        button("Keep as the baseline", () => keepBaseline(root, view)),
        state.baseline ? button("Forget the baseline", () => forgetBaseline(root)) : null,
      ),
    ),
    view,
  );
  await reload();
}

/** The request: what is chosen, without what is left open. */
function request() {
  const { window: over, tenant_class: tenants, source, ...rest } = asked;
  // By a clock that runs evenly, since the server's may tell another time of day.
  const since = Math.max((performance.now() - state.baselineKept) / 1000, 0.001);
  const window = over === SINCE ? `${since.toFixed(3)}s` : over;
  const isSampled = source === "USAGE_SOURCE_SAMPLED";
  return {
    ...rest,
    source,
    limit: LIMIT,
    ...(window && isSampled ? { window } : {}),
    ...(tenants && !isSampled ? { tenant_class: tenants } : {}),
  };
}

/** @param {HTMLElement} view */
async function load(view) {
  try {
    const withBaseline = state.baseline && asked.source === "USAGE_SOURCE_SAMPLED";
    const answer = withBaseline
      ? await post("/v1/usage", { ...request(), baseline: state.baseline })
      : await get("/v1/usage", request());
    fill(view, usage(answer));
  } catch (error) {
    fill(view, make("p", { class: "error", role: "alert" }, wordsOf(error)));
  }
}

/**
 * Keep what is told as the baseline, and from now on tell what comes after it.
 * @param {HTMLElement} root
 * @param {HTMLElement} view
 */
async function keepBaseline(root, view) {
  try {
    state.baseline = (await post("/v1/usage", { ...request(), make_baseline: true })).baseline;
    state.baselineKept = performance.now();
    asked.window = SINCE;
    await show({ root });
  } catch (error) {
    fill(view, make("p", { class: "error", role: "alert" }, wordsOf(error)));
  }
}

/** @param {HTMLElement} root */
async function forgetBaseline(root) {
  state.baseline = null;
  if (asked.window === SINCE) asked.window = "";
  await show({ root });
}

/** @param {any} answer */
function usage(answer) {
  const { features, fired_count: fired, tokens, sampled_every: every, start_time: from, end_time: to } = answer;
  const most = Math.max(...features.map((/** @type {any} */ each) => each.rate || 0), Number.MIN_VALUE);
  const against = state.baseline ? `the baseline of ${time(state.baseline.end_time)}` : "the period before";
  const period = from && to ? `from ${time(from)} to ${time(to)}` : "since the server began";
  return [
    make(
      "p",
      { class: "quiet" },
      `${answer.sae} at ${answer.site}: ${told(fired)} features fired ${period}`,
      tokens === undefined ? "" : `, at ${told(Number(tokens))} tokens looked at`,
      every > 1 ? ` (one of ${every} steps)` : "",
      ". Changes are against ",
      against,
      "; a change is sure where it holds for all features together with 95 % certainty.",
    ),
    features.length
      ? table(
          "Features",
          ["feature", "rate", "active at", "mean", "largest", "before", "change", "surely at least"],
          features.map((/** @type {any} */ each) => [
            make("a", { href: `#/feature/${encodeURIComponent(each.feature.sae)}/${each.feature.index}` }, each.feature.label || `feature ${each.feature.index}`),
            make("span", {}, meter((each.rate || 0) / most), share(each.rate)),
            told(Number(each.fired)),
            told(each.mean_activation),
            told(each.max_activation),
            share(each.previous_rate),
            times(each.log_rate_ratio),
            each.sure_log_rate_ratio ? make("strong", {}, times(each.sure_log_rate_ratio)) : "–",
          ]),
        )
      : make("p", { class: "quiet" }, asked.order === "USAGE_ORDER_CHANGE" ? "No feature has surely changed." : "Nothing has fired yet."),
  ];
}

/** A ratio from its logarithm. @param {number | undefined} log */
function times(log) {
  return log === undefined ? "–" : `× ${told(Math.exp(log))}`;
}

/** @param {string} text */
function time(text) {
  return new Date(text).toLocaleString("en-GB", { dateStyle: "short", timeStyle: "short" });
}
