/**
 * Charts: bars, drawn without any library.
 * @module
 */

import { make, told } from "./elements.js";

const WIDTH = 640;
const HEIGHT = 160;
const FOOT = 22;

/**
 * Bars of values of at least 0, left to right.
 * @param {{value: number | null, words: string}[]} bars words: what a bar says of itself
 * @param {{label: string, low: string, high: string, isLog?: boolean}} options low, high: what stands at the ends
 */
export function bars(bars, { label, low, high, isLog = false }) {
  const scale = (/** @type {number} */ value) => (isLog ? Math.log1p(value) : value);
  const most = Math.max(...bars.map(({ value }) => scale(value || 0)), Number.MIN_VALUE);
  const step = WIDTH / Math.max(1, bars.length);
  const top = Math.max(...bars.map(({ value }) => value || 0));
  return make(
    "svg",
    { class: "chart", viewBox: `0 0 ${WIDTH} ${HEIGHT + FOOT}`, role: "img", "aria-label": label },
    bars.map(({ value, words }, at) => {
      const height = (scale(value || 0) / most) * (HEIGHT - 16);
      return make(
        "rect",
        {
          class: value === null ? "bar unknown" : "bar",
          x: at * step + 0.5,
          y: HEIGHT - Math.max(height, value ? 1 : 0),
          width: Math.max(1, step - 1),
          height: Math.max(height, value ? 1 : 0),
        },
        make("title", {}, words),
      );
    }),
    make("line", { class: "axis", x1: 0, x2: WIDTH, y1: HEIGHT, y2: HEIGHT }),
    make("text", { x: 0, y: HEIGHT + 16 }, low),
    make("text", { x: WIDTH, y: HEIGHT + 16, "text-anchor": "end" }, high),
    make("text", { x: WIDTH, y: 12, "text-anchor": "end" }, `highest: ${told(top)}`),
  );
}

/**
 * One bar in a line of text.
 * @param {number} part from 0 to 1
 */
export function meter(part) {
  const made = make("span", { class: "meter", "aria-hidden": "true" });
  made.style.setProperty("--part", String(Math.min(1, Math.max(0, part))));
  return made;
}
