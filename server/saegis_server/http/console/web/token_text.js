/**
 * Token text: a text as its tokens, coloured by a number, each of which can be chosen by mouse and arrow keys.
 * @module
 */

import { make } from "./elements.js";

/**
 * @typedef {{text: string, heat?: number | null, mark?: string, title?: string, starts?: string}} Shown
 *   heat: from 0 to 1. mark: classes such as "differs" or "moved". starts: what begins at this token.
 */

/** What a token shows that would not be seen. @param {string} text */
export function visible(text) {
  return text.replaceAll("\n", "↵\n").replaceAll("\t", "⇥");
}

/**
 * The tokens. With onChosen they are buttons, one of which at a time is in the order of the Tab key.
 * @param {Shown[]} tokens
 * @param {{label: string, onChosen?: (place: number) => void}} options
 */
export function tokenText(tokens, { label, onChosen }) {
  const shown = tokens.map(({ text, heat, mark = "", title, starts }, place) => {
    const attributes = { class: `token ${mark}`, title, "data-starts": starts };
    const node = onChosen
      ? make(
          "button",
          {
            ...attributes,
            type: "button",
            tabindex: place === 0 ? 0 : -1,
            "aria-label": `token ${place}: ${JSON.stringify(text)}${title ? `, ${title}` : ""}`,
            onclick: () => choose(place),
          },
          visible(text),
        )
      : make("span", attributes, visible(text));
    if (heat) node.style.setProperty("--heat", String(Math.min(1, Math.max(0, heat))));
    return node;
  });

  /** @param {number} place */
  function choose(place) {
    shown.forEach((node, at) => {
      node.tabIndex = at === place ? 0 : -1;
      node.classList.toggle("chosen", at === place);
    });
    shown[place].focus();
    onChosen?.(place);
  }

  const text = make("div", { class: "tokens", role: "group", "aria-label": label }, shown);
  if (onChosen) {
    text.addEventListener("keydown", (/** @type {KeyboardEvent} */ event) => {
      const step = { ArrowRight: 1, ArrowLeft: -1 }[event.key];
      const at = shown.indexOf(document.activeElement);
      if (step && shown[at + step]) {
        event.preventDefault();
        choose(at + step);
      }
    });
  }
  return text;
}
