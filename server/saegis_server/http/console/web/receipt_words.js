/**
 * Receipt words: what a receipt says, as sentences.
 * @module
 */

import { make, share, table, told } from "./elements.js";

const MODES = {
  RULE_MODE_ENFORCE: "in force",
  RULE_MODE_AUDIT: "recorded only",
  RULE_MODE_SHADOW: "counted only, beside the rules in force",
};

/** @param {number} count @param {string} noun */
function many(count, noun) {
  return `${told(count)} ${noun}${count === 1 ? "" : "s"}`;
}

/** @param {{prompt: number, completion: number} | undefined} tokens */
function tokensIn(tokens) {
  if (!tokens) return "at tokens that were not counted";
  const { prompt, completion } = tokens;
  if (!prompt && !completion) return "nowhere";
  const parts = [prompt ? `${told(prompt)} of the prompt` : "", completion ? `${told(completion)} of the answer` : ""];
  return `at ${many(prompt + completion, "token")}: ${parts.filter(Boolean).join(" and ")}`;
}

/** @param {any} target */
function targetName(target) {
  if (target.label) return `${target.label} (${target.index})`;
  if (target.index !== undefined) return `feature ${target.index}`;
  return `the direction ${target.direction.slice(0, 8)}`;
}

/**
 * The sentences of a receipt.
 * @param {any} receipt
 * @returns {string[]}
 */
export function sentences(receipt) {
  const lines = [receipt.steered ? "The answer was steered: at least one token was moved." : "No token was moved."];
  if (receipt.policy_revision) {
    lines.push(
      `It was governed by ${receipt.policy_revision.replaceAll(",", ", ")}; ` +
        (receipt.ruled ? "rules of the operator were in force for it." : "none of the operator's rules applied."),
    );
  } else {
    lines.push("The operator has no policy in force here.");
  }
  if (receipt.ruled && !receipt.rules.length) lines.push("The operator does not tell what the rules are.");
  for (const edit of receipt.edits) {
    const name = edit.operation.replace("OPERATION_", "").toLowerCase().replaceAll("_", " ");
    lines.push(`Your edit ${edit.edit + 1} (${name} ${targetName(edit.target)}) acted ${tokensIn(edit.target.tokens)}.`);
  }
  for (const rule of receipt.rules) lines.push(ruleSentence(rule));
  for (const site of receipt.sites) lines.push(...siteSentences(site));
  if (receipt.first_token_steered) lines.push("The text's first token was steered too.");
  const { queue_seconds: queue, prefill_seconds: prefill, decode_seconds: decode } = receipt.timings || {};
  if (decode !== undefined) {
    lines.push(`It waited ${told(queue)} s, took ${told(prefill)} s to its first token and ${told(decode)} s from there.`);
  }
  return lines;
}

/** @param {any} rule */
function ruleSentence(rule) {
  const of = rule.labels.length ? ` of ${rule.labels.join(", ")}` : "";
  const parts = [`The rule ${rule.policy}/${rule.rule} (${rule.action}${of}, ${MODES[rule.mode] || "of unknown mode"})`];
  if (rule.conditional) {
    if (rule.held && (rule.held.prompt || rule.held.completion)) {
      const first = rule.first_held === -1 ? "on the prompt" : `first at token ${rule.first_held} of the answer`;
      parts.push(`had its condition met ${tokensIn(rule.held)}${rule.first_held === undefined ? "" : `, ${first}`}`);
    } else parts.push("never had its condition met");
  }
  if (rule.acted) parts.push(`acted ${tokensIn(rule.acted)}`);
  if (rule.stopped) parts.push(`ended ${many(rule.stopped, "answer")}`);
  if (parts.length === 1) parts.push("applied");
  return `${parts[0]} ${parts.slice(1).join("; ")}.${rule.reason ? ` Its reason: “${rule.reason}”` : ""}`;
}

/** @param {any} site */
function siteSentences(site) {
  const { tokens_edited: edited, bans_fired: fired } = site;
  if (edited === undefined) return [`At ${site.site} the operator does not tell what the rules did.`];
  const moved = edited
    ? `${many(edited, "token")} moved, by ${share(site.mean_relative_norm)} of the activation's norm in the mean and ` +
      `${share(site.largest_relative_norm)} at most`
    : "no token was moved";
  const bans = site.bans ? `; bans found a feature awake ${many(fired, "time")} and put it out` : "";
  return [`At ${site.site} ${moved}${bans}.`];
}

/**
 * A receipt in words, with its names and numbers beneath.
 * @param {any} receipt
 */
export function receiptInWords(receipt) {
  const names = [
    ["decision", receipt.decision_id, `#/audit?decision_id=${encodeURIComponent(receipt.decision_id || "")}`],
    ["program", receipt.program_digest],
    ["model", receipt.model],
    ["policies", receipt.policy_revision],
    ["trace", receipt.trace_id],
  ].filter(([, value]) => value);
  return make(
    "section",
    { class: "receipt", "aria-label": "Receipt in words" },
    make("ul", { class: "sentences" }, sentences(receipt).map((line) => make("li", {}, line))),
    table("What names it", ["name", "value"], names.map(([name, value, address]) => [
        name,
        address ? make("a", { href: address }, make("code", {}, value)) : make("code", {}, value),
      ])),
    make("details", {}, make("summary", {}, "The receipt as JSON"), make("pre", { tabindex: 0 }, JSON.stringify(receipt, null, 2))),
  );
}
