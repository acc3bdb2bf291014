// Colours of the canvas, which the style sheet says.

/** @typedef {[number, number, number]} Colour red, green and blue */

const NAMES = ["hidden", "partial", "visible", "ground", "ink", "faint", "line", "cursor", "odd"];
const FAINTEST = 0.3; // how far from hidden to visible the colours of cells reach that are neither
const STRONGEST = 0.85;
const VIRIDIS = ["#440154", "#472d7b", "#3b528b", "#2c728e", "#21918c", "#28ae80", "#5ec962", "#addc30", "#fde725"].map(parsed);

/** @param {string} text "#rrggbb" @returns {Colour} */
function parsed(text) {
  const number = parseInt(text.trim().slice(1), 16);
  return [number >> 16, (number >> 8) & 255, number & 255];
}

/** The colours that hold now. @param {Element} element @returns {Record<string, string>} */
function coloursOf(element) {
  const style = getComputedStyle(element);
  return Object.fromEntries(NAMES.map((name) => [name, style.getPropertyValue(`--${name}`).trim()]));
}

/** @param {Colour} low @param {Colour} high @param {number} part @returns {Colour} */
function mixed(low, high, part) {
  return low.map((from, at) => Math.round(from + (high[at] - from) * part));
}

/** The colour of a cell of which so many levels are visible. @param {Record<string, string>} colours @param {number} level @returns {Colour} */
function levelColour(colours, level) {
  const part = level === 0 || level === LEVELS ? level / LEVELS : FAINTEST + ((STRONGEST - FAINTEST) * level) / LEVELS;
  return mixed(parsed(colours.hidden), parsed(colours.visible), part);
}

/** @param {number} part from 0 to 1 @returns {Colour} */
function heat(part) {
  const at = Math.min(Math.max(part, 0), 1) * (VIRIDIS.length - 1);
  const low = Math.min(Math.floor(at), VIRIDIS.length - 2);
  return mixed(VIRIDIS[low], VIRIDIS[low + 1], at - low);
}

/** An image of numbers. @param {number} rows @param {number} cols @param {(at: number) => number} colour of each entry, as 0xAABBGGRR */
function imageOf(rows, cols, colour) {
  const canvas = document.createElement("canvas");
  canvas.width = cols;
  canvas.height = rows;
  const context = canvas.getContext("2d");
  const image = context.createImageData(cols, rows);
  const pixels = new Uint32Array(image.data.buffer);
  for (let at = 0; at < pixels.length; at++) pixels[at] = colour(at);
  context.putImageData(image, 0, 0);
  return canvas;
}

/** @param {Colour} colour @param {number} alpha @returns {number} as `imageOf` wants it */
function pixel([red, green, blue], alpha = 255) {
  return ((alpha << 24) | (blue << 16) | (green << 8) | red) >>> 0;
}
