/**
 * Program: what a request changes and watches, and its forms: JSON, curl, Python, policy YAML, and a link.
 * @module
 */

/**
 * @typedef {{sae: string, index: number, label: string, max: number | null}} Feature
 * @typedef {{feature: Feature, operation: string, value: number, phase: string}} Change
 * @typedef {{changes: Change[], watches: Feature[]}} Program
 */

/**
 * The operations: words; the slider's range and first value; whether the value is in units of the feature's maximum;
 * and what policies call the operation and its number, if they have it.
 * @type {Record<string, {words: string, low?: number, high?: number, first?: number, maxima?: boolean, rule?: string[]}>}
 */
export const OPERATIONS = {
  clamp: { words: "set to", low: 0, high: 2, first: 1, maxima: true, rule: ["clamp", "value"] },
  clamp_if_active: { words: "where active, set to", low: 0, high: 2, first: 1, maxima: true, rule: ["clamp", "value"] },
  add: { words: "add", low: -1, high: 1, first: 0.5, maxima: true },
  cap: { words: "keep at most at", low: 0, high: 1, first: 0.25, maxima: true, rule: ["cap", "value"] },
  floor: { words: "keep at least at", low: 0, high: 1, first: 0.25, maxima: true, rule: ["floor", "value"] },
  scale: { words: "multiply by", low: 0, high: 4, first: 2, rule: ["scale", "factor"] },
  ablate: { words: "remove", rule: ["scale", "factor"] },
  ban: { words: "ban, with strength", low: 0, high: 4, first: 2, rule: ["ban", "strength"] },
};
/** @type {[string, string][]} */
export const PHASES = [
  ["all", "everywhere"],
  ["prompt", "in the prompt"],
  ["completion", "in the answer"],
];
const LARGEST_LINK = 16_384;

/**
 * A feature of the API's answers.
 * @param {any} told
 * @returns {Feature}
 */
export function featureOf(told) {
  return { sae: told.sae, index: told.index, label: told.label || "", max: told.max_activation ?? null };
}

/** @param {Feature} feature */
export function nameOf(feature) {
  return feature.label ? `${feature.label} (${feature.index})` : `feature ${feature.index}`;
}

/**
 * @param {Feature} one
 * @param {Feature} other
 */
export function isSame(one, other) {
  return one.sae === other.sae && one.index === other.index;
}

/**
 * The features that a program changes or watches, each once; those that are watched first.
 * @param {Program} program
 */
export function featuresIn(program) {
  /** @type {Feature[]} */
  const found = [];
  for (const feature of [...program.watches, ...program.changes.map((change) => change.feature)]) {
    if (!found.some((each) => isSame(each, feature))) found.push(feature);
  }
  return found;
}

/**
 * The contract's Steering in JSON; undefined for nothing.
 * reads: whether every token tells its readings of these features and how far it was moved.
 * @param {Program} program
 * @param {{reads?: Feature[]}} [options]
 */
export function steeringOf(program, { reads } = {}) {
  const watched = reads || program.watches;
  const edits = program.changes.map(editOf);
  /** @type {Record<string, unknown>} */
  const steering = {};
  if (edits.length) steering.edits = edits;
  if (watched.length) steering.watches = watched.map((feature) => ({ feature: refOf(feature) }));
  if (reads) Object.assign(steering, { read_prompt: true, read_moves: true });
  return Object.keys(steering).length ? steering : undefined;
}

/** @param {Feature} feature */
function refOf({ sae, index }) {
  return { sae, index };
}

/** @param {Change} change */
function editOf({ feature, operation, value, phase }) {
  const { low, maxima } = OPERATIONS[operation];
  /** @type {Record<string, unknown>} */
  const edit = { operation: `OPERATION_${operation.toUpperCase()}`, feature: refOf(feature) };
  if (low !== undefined) edit.value = value;
  if (maxima) edit.unit = feature.max === null ? "UNIT_FEATURE" : "UNIT_MAX_ACTIVATION";
  if (phase !== "all") edit.phase = `PHASE_${phase.toUpperCase()}`;
  return edit;
}

/**
 * A shell command that makes a request.
 * @param {string} path
 * @param {unknown} body
 */
export function curlOf(path, body) {
  const quoted = JSON.stringify(body, null, 2).replaceAll("'", "'\\''");
  return [
    `curl ${location.origin}${path} \\`,
    "  -H 'content-type: application/json' -H \"authorization: Bearer $SAEGIS_TOKEN\" \\",
    `  -d '${quoted}'`,
  ].join("\n");
}

/**
 * A Python program that makes a request with OpenAI's client.
 * @param {boolean} isChat
 * @param {Record<string, unknown>} body
 */
export function pythonOf(isChat, { steering, ...body }) {
  const fields = Object.entries({ ...body, ...(steering ? { extra_body: { steering } } : {}) });
  return [
    "import os",
    "",
    "import openai",
    "",
    `client = openai.OpenAI(base_url="${location.origin}/v1", api_key=os.environ.get("SAEGIS_TOKEN", "none"))`,
    `answer = client.${isChat ? "chat.completions" : "completions"}.create(`,
    ...fields.map(([name, value]) => `    ${name}=${literal(value, 1)},`),
    ")",
    `print(answer.choices[0].${isChat ? "message.content" : "text"})`,
  ].join("\n");
}

/**
 * A JSON value as Python writes it.
 * @param {unknown} value
 * @param {number} depth
 * @returns {string}
 */
function literal(value, depth) {
  if (value === true) return "True";
  if (value === false) return "False";
  if (value === null || value === undefined) return "None";
  if (typeof value !== "object") return JSON.stringify(value);
  const [open, close] = Array.isArray(value) ? "[]" : "{}";
  const entries = Array.isArray(value)
    ? value.map((each) => literal(each, depth + 1))
    : Object.entries(value).map(([key, each]) => `${JSON.stringify(key)}: ${literal(each, depth + 1)}`);
  const line = `${open}${entries.join(", ")}${close}`;
  if (line.length < 80) return line;
  const indent = "    ".repeat(depth);
  return `${open}\n${entries.map((entry) => `${indent}    ${entry},\n`).join("")}${indent}${close}`;
}

/**
 * A policy whose rules do to every request what the program does to one.
 * @param {Program} program
 */
export function policyOf(program) {
  const head = ["apiVersion: saegis.dev/v1", "kind: Policy", "name: from-console", "serial: 1", 'revision: "1"'];
  const rules = [
    ...program.changes.flatMap((change, at) => ruleOf(change, at)),
    ...program.watches.flatMap((feature, at) => [
      `  - id: watch-${at + 1}`,
      ...reasonOf(feature),
      `    watch: {features: [${selectorOf(feature)}]}`,
    ]),
  ];
  return [...head, 'match: {tenants: ["*"]}', rules.length ? "rules:" : "rules: []", ...rules, ""].join("\n");
}

/**
 * @param {Change} change
 * @param {number} at
 */
function ruleOf({ feature, operation, value, phase }, at) {
  const { rule, maxima } = OPERATIONS[operation];
  if (!rule) return [`  # ${nameOf(feature).replace(/\s+/g, " ")}: a rule has no “${operation}”`];
  const parts = [`features: [${selectorOf(feature)}]`, `${rule[1]}: ${operation === "ablate" ? 0 : value}`];
  if (maxima) parts.push(`unit: ${feature.max === null ? "feature" : "max_activation"}`);
  if (operation === "clamp_if_active") parts.push("if_active: true");
  if (phase !== "all") parts.push(`phase: ${phase}`);
  return [
    `  - id: ${operation.replaceAll("_", "-")}-${at + 1}`,
    ...reasonOf(feature),
    `    ${rule[0]}: {${parts.join(", ")}}`,
  ];
}

/** @param {Feature} feature */
function reasonOf(feature) {
  return feature.label ? [`    reason: ${JSON.stringify(feature.label)}`] : [];
}

/** @param {Feature} feature */
function selectorOf({ sae, index }) {
  return `{sae: ${JSON.stringify(sae)}, index: ${index}}`;
}

/**
 * What a link carries, as letters that a fragment may have.
 * @param {unknown} value
 */
export function packed(value) {
  const bytes = new TextEncoder().encode(JSON.stringify(value));
  const text = Array.from(bytes, (byte) => String.fromCharCode(byte)).join("");
  return btoa(text).replaceAll("+", "-").replaceAll("/", "_").replaceAll("=", "");
}

/**
 * What a link carried. Throws where it is none of ours.
 * @param {string} text
 */
export function unpacked(text) {
  if (text.length > LARGEST_LINK) throw new Error("the link is too long");
  const bytes = Uint8Array.from(atob(text.replaceAll("-", "+").replaceAll("_", "/")), (each) => each.charCodeAt(0));
  return JSON.parse(new TextDecoder("utf-8", { fatal: true }).decode(bytes));
}

/**
 * A program from outside, taken apart and put together again, so that it holds nothing else. Throws for others.
 * @param {any} value
 * @returns {Program}
 */
export function checked(value) {
  return {
    changes: Array.from(value.changes, ({ feature, operation, value: amount, phase }) => {
      const known = Object.hasOwn(OPERATIONS, operation) && PHASES.some(([name]) => name === phase);
      if (!known || !Number.isFinite(amount)) throw new Error("the link has an edit that does not exist");
      return { feature: checkedFeature(feature), operation, value: amount, phase };
    }),
    watches: Array.from(value.watches, checkedFeature),
  };
}

/**
 * @param {any} value
 * @returns {Feature}
 */
function checkedFeature({ sae, index, label, max }) {
  if (typeof sae !== "string" || !Number.isInteger(index) || index < 0) throw new Error("the link has no such feature");
  return { sae, index, label: String(label || ""), max: Number.isFinite(max) ? max : null };
}
