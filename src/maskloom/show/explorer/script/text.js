// Tokens as text that is seen: nothing in them has an effect, and none is invisible.

const LONGEST_LABEL = 16;

/** Characters that do not print, that turn text around, or are half of a pair. */
const UNSEEN = /[\u0000-\u001f\u007f-\u00a0\u00ad\u061c\u115f\u1160\u180e\u200b-\u200f\u2028-\u202f\u205f-\u206f\u3164\ufe00-\ufe0f\ufeff\uffa0\ufff0-\ufffb]|[\ud800-\udbff](?![\udc00-\udfff])|(?<![\ud800-\udbff])[\udc00-\udfff]/g;

/** @param {string} token */
function shownToken(token) {
  const seen = token.replace(UNSEEN, (letter) => named(letter.charCodeAt(0)));
  const blanks = (text) => "␣".repeat(text.length);
  return seen.replace(/^ +/, blanks).replace(/ +$/, blanks);
}

/** @param {number} code */
function named(code) {
  if (code < 32) return String.fromCharCode(0x2400 + code);
  return `⟨${code.toString(16).toUpperCase().padStart(4, "0")}⟩`;
}

/** @param {string} token cut where it is long */
function label(token) {
  const letters = [...shownToken(token)];
  return letters.length <= LONGEST_LABEL ? letters.join("") : `${letters.slice(0, LONGEST_LABEL - 1).join("")}…`;
}

/** A token beside other words, whichever way its script runs. @param {string} token */
const apart = (token) => `\u2068${token}\u2069`;

/** @param {number} number with spaces between thousands */
const grouped = (number) => number.toLocaleString("en-US").replaceAll(",", "\u2009");

/** @param {number} weight */
function shownWeight(weight) {
  if (Number.isNaN(weight)) return "not finite";
  return weight !== 0 && Math.abs(weight) < 1e-3 ? weight.toExponential(2) : String(Number(weight.toPrecision(3)));
}

/** The positions to label: multiples of 1, 2 or 5 times a power of ten, so far apart. @param {[number, number]} span @param {number} least positions between two */
function ticks([start, stop], least) {
  let step = 1;
  for (let power = 1; step < least; power *= 10) {
    step = [1, 2, 5, 10].map((digit) => digit * power).find((one) => one >= least) ?? step;
  }
  const found = [];
  for (let at = Math.ceil(start / step) * step; at < stop; at += step) found.push(at);
  return found;
}
