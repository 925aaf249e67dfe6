/**
 * Elements: makes the page's nodes from values, never from markup, so that no text can become code.
 * @module
 */

const SVG = "http://www.w3.org/2000/svg";
const SVG_TAGS = new Set(["svg", "rect", "line", "text", "title", "path"]);

/**
 * A new element. An attribute whose name begins with "on" is a listener; true sets it without a value; null,
 * undefined and false leave it out; a child may be a node, a text, a list of both, or null.
 * @param {string} tag
 * @param {Record<string, unknown>} [attributes]
 * @param {...unknown} children
 * @returns {any}
 */
export function make(tag, attributes = {}, ...children) {
  const element = SVG_TAGS.has(tag) ? document.createElementNS(SVG, tag) : document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (value === null || value === undefined || value === false) continue;
    if (name.startsWith("on")) element.addEventListener(name.slice(2), /** @type {EventListener} */ (value));
    else if (name === "value") /** @type {any} */ (element).value = value;
    else element.setAttribute(name, value === true ? "" : String(value));
  }
  element.append(...children.flat(3).filter((child) => child !== null && child !== undefined).map(asNode));
  return element;
}

/** @param {unknown} child */
function asNode(child) {
  return child instanceof Node ? child : document.createTextNode(String(child));
}

/**
 * Put these children in the place of an element's own.
 * @param {Element} element
 * @param {...unknown} children
 */
export function fill(element, ...children) {
  element.replaceChildren(
    ...children.flat(3).filter((child) => child !== null && child !== undefined).map(asNode),
  );
}

/**
 * A labelled control: the label's text stands before it.
 * @param {string} text
 * @param {Element} control
 * @param {Record<string, unknown>} [attributes]
 */
export function labelled(text, control, attributes = {}) {
  return make("label", { class: "labelled", ...attributes }, make("span", {}, text), control);
}

/**
 * A choice of one of several: [value, words] each.
 * @param {[string, string][]} options
 * @param {string} chosen
 * @param {(value: string) => void} onChoice
 * @param {Record<string, unknown>} [attributes]
 */
export function choice(options, chosen, onChoice, attributes = {}) {
  const select = make(
    "select",
    { ...attributes, onchange: () => onChoice(select.value) },
    options.map(([value, words]) => make("option", { value, selected: value === chosen }, words)),
  );
  select.value = chosen;
  return select;
}

/**
 * A button.
 * @param {string} words
 * @param {() => unknown} act
 * @param {Record<string, unknown>} [attributes]
 */
export function button(words, act, attributes = {}) {
  return make("button", { type: "button", onclick: act, ...attributes }, words);
}

/**
 * A table: rows of cells, each a text or a node. The first cell of a row heads it.
 * @param {string} caption
 * @param {string[]} heads
 * @param {unknown[][]} rows
 */
export function table(caption, heads, rows) {
  return make(
    "div",
    { class: "scrolls", tabindex: 0, role: "region", "aria-label": caption },
    make(
      "table",
      {},
      make("caption", {}, caption),
      make("thead", {}, make("tr", {}, heads.map((head) => make("th", { scope: "col" }, head)))),
      make(
        "tbody",
        {},
        rows.map(([first, ...rest]) =>
          make("tr", {}, make("th", { scope: "row" }, first), rest.map((cell) => make("td", {}, cell))),
        ),
      ),
    ),
  );
}

/**
 * A number as people read it: four digits that count.
 * @param {number | null | undefined} value
 */
export function told(value) {
  if (value === null || value === undefined || Number.isNaN(value)) return "–";
  if (Number.isInteger(value)) return value.toLocaleString("en");
  return Math.abs(value) >= 1e5 || Math.abs(value) < 1e-4 ? value.toExponential(2) : String(+value.toPrecision(4));
}

/**
 * A share as a percentage.
 * @param {number | null | undefined} value
 */
export function share(value) {
  return value === null || value === undefined ? "–" : `${+(value * 100).toPrecision(3)} %`;
}

/**
 * A button that copies a text and says so.
 * @param {() => string} text
 */
export function copyButton(text, words = "Copy") {
  const made = button(words, async () => {
    try {
      await navigator.clipboard.writeText(text());
      made.textContent = "Copied";
    } catch {
      made.textContent = "The browser refuses";
    }
    setTimeout(() => (made.textContent = words), 1500);
  });
  return made;
}
