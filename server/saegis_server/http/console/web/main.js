/**
 * Main: shows the page that the address names, and asks for a token where the server wants one.
 * @module
 */

import { get, keepToken, token, wordsOf } from "./api.js";
import { fill, make } from "./elements.js";
import * as audit from "./pages/audit.js";
import * as feature from "./pages/feature.js";
import * as play from "./pages/play.js";
import * as policies from "./pages/policies.js";
import * as receipt from "./pages/receipt.js";
import * as tokens from "./pages/tokens.js";
import * as usage from "./pages/usage.js";
import { state } from "./state.js";

/** @type {Record<string, {title: string, show: (place: Place) => unknown}>} */
const PAGES = { play, tokens, feature, usage, policies, receipt, audit };
/** @typedef {{root: HTMLElement, rest: string[], query: URLSearchParams}} Place */

const content = /** @type {HTMLElement} */ (document.getElementById("content"));
const dialog = /** @type {HTMLDialogElement} */ (document.getElementById("asking"));
const field = /** @type {HTMLInputElement} */ (document.getElementById("token"));
let shown = 0;

/** Where the address points: #/PAGE/REST?QUERY. */
function place() {
  const [path, query = ""] = location.hash.replace(/^#\/?/, "").split("?");
  const [name, ...rest] = path.split("/");
  return { name: Object.hasOwn(PAGES, name) ? name : "play", rest: rest.map(decodeURIComponent), query };
}

async function show() {
  const { name, rest, query } = place();
  const page = PAGES[name];
  const number = (shown += 1);
  document.title = `${page.title} · Saegis`;
  fill(
    /** @type {Element} */ (document.getElementById("pages")),
    Object.entries(PAGES).map(([key, { title }]) =>
      make("a", { href: `#/${key}`, "aria-current": key === name && "page" }, title),
    ),
  );
  const root = make("div", { class: `page page-${name}` });
  fill(content, make("h1", {}, page.title), root);
  try {
    await know();
    if (number === shown) await page.show({ root, rest, query: new URLSearchParams(query) });
  } catch (error) {
    root.prepend(make("p", { class: "error", role: "alert" }, wordsOf(error)));
  }
}

/** Learn once what is served. */
async function know() {
  if (state.model) return;
  state.model = await get("/v1/model");
  const { id, saes, has_chat_template: chats } = state.model;
  state.question.model = id;
  if (!chats) state.question.mode = "completion";
  const features = saes.map((/** @type {any} */ sae) => `${sae.id}: ${sae.feature_count.toLocaleString("en")}`);
  fill(/** @type {Element} */ (document.getElementById("served")), [id, ...features].join(" · "));
}

function askWho() {
  if (dialog.open) return;
  field.value = token();
  dialog.showModal();
}

/** @param {string} value */
function answerWho(value) {
  keepToken(value);
  dialog.close();
  state.model = null;
  show();
}

document.getElementById("who")?.addEventListener("click", askWho);
document.getElementById("token-use")?.addEventListener("click", () => answerWho(field.value.trim()));
document.getElementById("token-forget")?.addEventListener("click", () => answerWho(""));
document.getElementById("token-close")?.addEventListener("click", () => dialog.close());
field.addEventListener("keydown", (event) => {
  if (event.key === "Enter") answerWho(field.value.trim());
});
window.addEventListener("saegis-unknown", askWho);
window.addEventListener("hashchange", () => {
  if (location.hash.startsWith("#/")) show();
});
show();
