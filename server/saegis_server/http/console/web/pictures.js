/**
 * Pictures: dropped, pasted or chosen, kept in the tab, and shown small on a canvas. They leave it only with a question.
 * @module
 */

import { button, fill, make } from "./elements.js";

/** @typedef {{name: string, url: string}} Picture The file as a data URL, as it was. */

const KINDS = ["image/png", "image/jpeg", "image/webp"];
/** How high a picture is shown, in pixels. */
const HEIGHT = 72;

/**
 * A place for pictures: files dropped on it or pasted into it, a button for the keyboard, and what is there.
 * @param {Picture[]} pictures changed in place
 * @param {() => void} changed
 */
export function pictureBox(pictures, changed) {
  const list = make("ul", { class: "pictures", "aria-label": "Pictures of the question" });
  const problem = make("p", { class: "error", role: "alert", hidden: true });
  const input = make("input", { type: "file", accept: KINDS.join(","), multiple: true, hidden: true, tabindex: -1 });
  const box = make(
    "section",
    { class: "drop", "aria-label": "Pictures" },
    button("Add pictures", () => input.click(), { title: "PNG, JPEG or WebP; or drop them here" }),
    make("span", { class: "quiet" }, " or drop them here: the model sees them before the prompt"),
    input,
    list,
    problem,
  );

  function tell() {
    fill(
      list,
      pictures.map((picture, at) =>
        make(
          "li",
          {},
          thumbnail(picture),
          button("Remove", () => (pictures.splice(at, 1), tell(), changed()), { "aria-label": `Remove ${picture.name}` }),
        ),
      ),
    );
  }
  /** @param {Iterable<File>} files */
  async function take(files) {
    problem.hidden = true;
    for (const file of files) {
      if (KINDS.includes(file.type)) pictures.push({ name: file.name || "picture", url: await urlOf(file) });
      else {
        problem.hidden = false;
        problem.textContent = `${file.name} is no PNG, JPEG or WebP file.`;
      }
    }
    tell();
    changed();
  }
  input.addEventListener("change", () => {
    void take([...(input.files || [])]);
    input.value = "";
  });
  box.addEventListener("dragover", (/** @type {DragEvent} */ event) => {
    event.preventDefault();
    box.classList.add("over");
  });
  box.addEventListener("dragleave", () => box.classList.remove("over"));
  box.addEventListener("drop", (/** @type {DragEvent} */ event) => {
    event.preventDefault();
    box.classList.remove("over");
    void take([...(event.dataTransfer?.files || [])]);
  });
  box.addEventListener("paste", (/** @type {ClipboardEvent} */ event) => void take([...(event.clipboardData?.files || [])]));
  tell();
  return box;
}

/**
 * The bytes of a picture, as base64.
 * @param {Picture} picture
 */
export function base64Of({ url }) {
  return url.slice(url.indexOf(",") + 1);
}

/**
 * Texts with the bytes of pictures cut short, for people.
 * @param {string} text
 */
export function withoutBytes(text) {
  return text.replace(/(;base64,[A-Za-z0-9+/]{16})[A-Za-z0-9+/=]+/g, "$1…");
}

/** @param {Blob} file @returns {Promise<string>} */
function urlOf(file) {
  return new Promise((resolve, reject) => {
    const reader = new FileReader();
    reader.onload = () => resolve(String(reader.result));
    reader.onerror = () => reject(reader.error);
    reader.readAsDataURL(file);
  });
}

/**
 * A picture drawn on a canvas; nothing is loaded for it.
 * @param {Picture} picture
 */
export async function drawn(picture) {
  const bytes = Uint8Array.from(atob(base64Of(picture)), (letter) => letter.charCodeAt(0));
  return createImageBitmap(new Blob([bytes]));
}

/**
 * A picture with the strength of a feature laid over it, and where its tokens are.
 * @param {Picture} picture
 * @param {{first_token: number, rows: number, columns: number, left?: number, top?: number, right?: number,
 *   bottom?: number}[]} grids as Inspect tells them
 * @param {(number | null)[]} values the strength at each place of the text
 * @param {number} scale what full colour means
 */
export function overlaid(picture, grids, values, scale) {
  const whole = grids.length > 1 ? grids.slice(0, -1) : grids;
  const strongest = Math.max(0, ...whole.flatMap((grid) => cellsOf(grid).map(({ place }) => values[place] ?? 0)));
  const words = `${picture.name}: at its strongest ${strongest.toPrecision(3)}`;
  const canvas = make("canvas", { class: "overlaid", role: "img", "aria-label": words, title: words });
  drawn(picture).then((image) => {
    const scaled = Math.max(1, 240 / Math.max(image.width, image.height));
    [canvas.width, canvas.height] = [Math.round(image.width * scaled), Math.round(image.height * scaled)];
    const context = canvas.getContext("2d");
    context.drawImage(image, 0, 0, canvas.width, canvas.height);
    for (const { place, left, top, width, height } of whole.flatMap(cellsOf)) {
      context.fillStyle = `rgb(255 80 0 / ${0.75 * Math.min(1, Math.max(0, (values[place] ?? 0) / scale))})`;
      context.fillRect(left * canvas.width, top * canvas.height, width * canvas.width, height * canvas.height);
    }
  }, () => {});
  return canvas;
}

/**
 * The cells of a grid, each with its place in the text and where it lies, in shares of the picture.
 * @param {{first_token: number, rows: number, columns: number, left?: number, top?: number, right?: number,
 *   bottom?: number}} grid
 */
function cellsOf({ first_token, rows, columns, left = 0, top = 0, right = 0, bottom = 0 }) {
  const [width, height] = [(right - left) / columns, (bottom - top) / rows];
  return Array.from({ length: rows * columns }, (_, at) => ({
    place: first_token + at,
    left: left + (at % columns) * width,
    top: top + Math.floor(at / columns) * height,
    width,
    height,
  }));
}

/** @param {Picture} picture */
function thumbnail(picture) {
  const canvas = make("canvas", { height: HEIGHT, width: HEIGHT, role: "img", "aria-label": picture.name });
  drawn(picture).then(
    (image) => {
      canvas.width = Math.max(1, Math.round((HEIGHT * image.width) / image.height));
      canvas.getContext("2d").drawImage(image, 0, 0, canvas.width, HEIGHT);
    },
    () => canvas.setAttribute("aria-label", `${picture.name}, which this browser cannot show`),
  );
  return canvas;
}
