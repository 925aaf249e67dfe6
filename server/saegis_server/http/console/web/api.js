/**
 * API: the server's HTTP API, asked in the name of whom the tab's token names.
 * @module
 */

const TOKEN = "saegis.token";

/** What the server refused, in its own words. */
export class ApiError extends Error {
  /**
   * @param {number} status
   * @param {{message?: string, code?: string, param?: string | null, metadata?: Record<string, string>}} error
   */
  constructor(status, error) {
    super(error.message || `the server answered ${status}`);
    this.status = status;
    this.code = error.code || "";
    this.param = error.param || "";
    this.metadata = error.metadata || {};
  }

  /** What happened, in words for people. */
  get words() {
    if (this.status === 401) return "The server does not know you: give it your token (button at the top).";
    if (this.metadata.role) {
      return `You may not do this: it needs the role “${this.metadata.role}”, which your token does not have.`;
    }
    if (this.status === 403) return `Denied: ${this.message}.`;
    if (this.status === 429) return `Too much at once: ${this.message}. Try again in a moment.`;
    return this.param && !this.message.startsWith(this.param) ? `${this.param}: ${this.message}` : this.message;
  }
}

/**
 * What went wrong, in words.
 * @param {unknown} error
 */
export function wordsOf(error) {
  if (error instanceof ApiError) return error.words;
  if (error instanceof DOMException && error.name === "AbortError") return "Stopped.";
  if (error instanceof TypeError && /fetch|network/i.test(error.message)) return "The server does not answer.";
  return String(error instanceof Error ? error.message : error);
}

/** The tab's token; "" without one. */
export function token() {
  return sessionStorage.getItem(TOKEN) || "";
}

/**
 * Keep a token for this tab, or forget it.
 * @param {string} value
 */
export function keepToken(value) {
  if (value) sessionStorage.setItem(TOKEN, value);
  else sessionStorage.removeItem(TOKEN);
}

/**
 * @param {string} path
 * @param {RequestInit} init
 */
async function ask(path, init) {
  const headers = new Headers(init.headers);
  if (token()) headers.set("authorization", `Bearer ${token()}`);
  const response = await fetch(path, { ...init, headers, credentials: "omit", redirect: "error" });
  if (response.ok) return response;
  const body = await response.json().catch(() => ({}));
  if (response.status === 401) window.dispatchEvent(new Event("saegis-unknown"));
  throw new ApiError(response.status, body.error || {});
}

/**
 * The JSON of a path.
 * @param {string} path
 * @param {Record<string, string | number | undefined>} [query]
 * @param {AbortSignal} [signal]
 */
export async function get(path, query = {}, signal) {
  const given = Object.entries(query).filter(([, value]) => value !== undefined && value !== "");
  const search = new URLSearchParams(given.map(([name, value]) => [name, String(value)])).toString();
  return (await ask(search ? `${path}?${search}` : path, { signal })).json();
}

/**
 * The JSON that a body is answered with.
 * @param {string} path
 * @param {unknown} body
 * @param {AbortSignal} [signal]
 */
export async function post(path, body, signal) {
  return (await send(path, body, signal)).json();
}

/**
 * @param {string} path
 * @param {unknown} body
 * @param {AbortSignal} [signal]
 */
function send(path, body, signal) {
  const headers = { "content-type": "application/json" };
  return ask(path, { method: "POST", headers, body: JSON.stringify(body), signal });
}

/**
 * Each event of a stream, as its JSON. Throws ApiError where the stream ends in one, or before it has ended.
 * @param {string} path
 * @param {unknown} body
 * @param {AbortSignal} [signal]
 */
export async function* events(path, body, signal) {
  const response = await send(path, body, signal);
  const reader = /** @type {ReadableStream<Uint8Array>} */ (response.body).getReader();
  const decoder = new TextDecoder();
  let text = "";
  for (;;) {
    const { value, done } = await reader.read();
    text += decoder.decode(value, { stream: !done });
    const parts = text.split("\n\n");
    text = /** @type {string} */ (parts.pop());
    for (const part of parts) {
      const data = part.replace(/^data: /, "");
      if (data === "[DONE]") return;
      const event = JSON.parse(data);
      if (event.error) throw new ApiError(response.status, event.error);
      yield event;
    }
    if (done) throw new ApiError(response.status, { message: "the answer broke off" });
  }
}
