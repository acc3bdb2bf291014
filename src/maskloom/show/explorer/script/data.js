// What the page was given: arrays in base64, perhaps compressed.

/** @typedef {{type: string, length: number, packed: boolean, text: string}} Stored */

const DIGITS = new Uint8Array(128);
[..."ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/"].forEach((letter, at) => {
  DIGITS[letter.charCodeAt(0)] = at;
});

const ARRAYS = {
  bool: Uint8Array,
  uint8: Uint8Array,
  int8: Int8Array,
  int16: Int16Array,
  uint16: Uint16Array,
  int32: Int32Array,
  int64: BigInt64Array,
  float32: Float32Array,
  float64: Float64Array,
};

/** @param {string} text @returns {Uint8Array} */
function fromBase64(text) {
  const length = Math.floor((text.replace(/=+$/, "").length * 3) / 4);
  const bytes = new Uint8Array(length);
  for (let at = 0, to = 0; to < length; at += 4) {
    const [a, b, c, d] = [0, 1, 2, 3].map((step) => DIGITS[text.charCodeAt(at + step)] ?? 0);
    const group = (a << 18) | (b << 12) | (c << 6) | d;
    bytes[to++] = group >> 16;
    if (to < length) bytes[to++] = (group >> 8) & 255;
    if (to < length) bytes[to++] = group & 255;
  }
  return bytes;
}

/** @param {Uint8Array} bytes */
async function inflated(bytes) {
  const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("deflate-raw"));
  return new Uint8Array(await new Response(stream).arrayBuffer());
}

/** The numbers of a stored array. @param {Stored} stored @param {Uint8Array} bytes @returns {any} */
function numbersIn(stored, bytes) {
  if (stored.type === "bits") return bitsIn(bytes, stored.length);
  return new ARRAYS[stored.type](bytes.buffer, bytes.byteOffset, stored.length);
}

/** @param {Uint8Array} bytes @param {number} length */
function bitsIn(bytes, length) {
  const out = new Uint8Array(length);
  for (let at = 0; at < length; at++) out[at] = (bytes[at >> 3] >> (7 - (at & 7))) & 1;
  return out;
}

/** @param {Stored} stored */
async function load(stored) {
  const bytes = fromBase64(stored.text);
  return numbersIn(stored, stored.packed ? await inflated(bytes) : bytes);
}

/** Text that is stored as ASCII. @param {Stored} stored */
async function loadJson(stored) {
  const bytes = await load(stored);
  let text = "";
  for (let at = 0; at < bytes.length; at += 8192) text += String.fromCharCode(...bytes.subarray(at, at + 8192));
  return JSON.parse(text);
}

/** A table for the machine: its numbers, and the bounds of integers. @param {ArrayLike<any>} data @returns {Table} */
function tableOf(data) {
  let low = Infinity;
  let high = -Infinity;
  for (let at = 0; at < data.length; at++) {
    if (data[at] < low) low = data[at];
    if (data[at] > high) high = data[at];
  }
  return { data, low: Number(low), high: Number(high) };
}
