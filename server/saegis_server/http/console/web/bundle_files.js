/**
 * Bundle files: what is in a policy's bundle, a tar archive, compressed or not.
 * @module
 */

const BLOCK = 512;
const GZIP = [0x1f, 0x8b];
/** The most bytes that a bundle is unpacked to. */
const LARGEST = 64 * 2 ** 20;

/** @param {string} text */
export function bytesOf(text) {
  return Uint8Array.from(atob(text), (each) => each.charCodeAt(0));
}

/** @param {Uint8Array} bytes */
export function base64Of(bytes) {
  let text = "";
  for (const byte of bytes) text += String.fromCharCode(byte);
  return btoa(text);
}

/** @param {Uint8Array} bytes */
async function plain(bytes) {
  if (!GZIP.every((byte, at) => bytes[at] === byte)) return bytes;
  const reader = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("gzip")).getReader();
  const parts = [];
  let size = 0;
  for (;;) {
    const { value, done } = await reader.read();
    if (done) break;
    parts.push(value);
    size += value.length;
    if (size > LARGEST) throw new Error("the bundle is too large to be shown");
  }
  return new Uint8Array(await new Blob(parts).arrayBuffer());
}

/**
 * The text of each file of an archive, by its path; null for one that is no text. Throws for no archive.
 * @param {Uint8Array} archive
 * @returns {Promise<Map<string, string | null>>}
 */
export async function filesOf(archive) {
  const tar = await plain(archive);
  const decoder = new TextDecoder();
  const strict = new TextDecoder("utf-8", { fatal: true });
  const field = (/** @type {number} */ at, /** @type {number} */ length) => decoder.decode(tar.subarray(at, at + length)).split("\0")[0].trim();
  const files = new Map();
  for (let at = 0; at + BLOCK <= tar.length && tar[at] !== 0; ) {
    const size = Number.parseInt(field(at + 124, 12) || "0", 8);
    if (!Number.isInteger(size) || field(at + 257, 5) !== "ustar") throw new Error("this is no tar archive");
    const prefix = field(at + 345, 155);
    const name = [prefix, field(at, 100)].filter(Boolean).join("/").replace(/^\.\//, "");
    const kind = String.fromCharCode(tar[at + 156]);
    if (kind === "0" || kind === "\0") {
      const content = tar.subarray(at + BLOCK, at + BLOCK + size);
      try {
        files.set(name, name.endsWith(".safetensors") ? null : strict.decode(content));
      } catch {
        files.set(name, null);
      }
    }
    at += BLOCK * (1 + Math.ceil(size / BLOCK));
  }
  return files;
}
