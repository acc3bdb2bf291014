// The mask as an expression of its operands, some of which may be switched off.

/** @typedef {{leaf: number} | {join: "and" | "or" | "xor" | "not", of: Expression[]}} Expression */

/** The expression without the operands that are off; null where nothing is left. @param {Expression} whole @param {Set<number>} off @returns {Expression | null} */
function without(whole, off) {
  if ("leaf" in whole) return off.has(whole.leaf) ? null : whole;
  const parts = whole.of.map((part) => without(part, off)).filter((part) => part !== null);
  if (!parts.length) return null;
  return parts.length === 1 && whole.join !== "not" ? parts[0] : { join: whole.join, of: parts };
}

/** The operands of an expression. @param {Expression | null} whole @returns {number[]} */
function leavesOf(whole) {
  if (whole === null) return [];
  return "leaf" in whole ? [whole.leaf] : whole.of.flatMap(leavesOf);
}

/** The value of an expression for one pair; without operands nothing is hidden. @param {Expression | null} whole @param {(leaf: number) => boolean} value @returns {boolean} */
function truth(whole, value) {
  if (whole === null) return true;
  if ("leaf" in whole) return value(whole.leaf);
  const parts = whole.of.map((part) => truth(part, value));
  if (whole.join === "not") return !parts[0];
  if (whole.join === "and") return parts.every(Boolean);
  return whole.join === "or" ? parts.some(Boolean) : parts.filter(Boolean).length % 2 === 1;
}

/** The operands whose flip alone changes the value. @param {Expression | null} whole @param {(leaf: number) => boolean} value @returns {number[]} */
function deciding(whole, value) {
  const now = truth(whole, value);
  return leavesOf(whole).filter((leaf) => truth(whole, (other) => value(other) !== (other === leaf)) !== now);
}

/** The value of an expression for many pairs. @param {Expression | null} whole @param {(leaf: number) => Plane} value @returns {Plane} */
function truths(whole, value) {
  if (whole === null) return constant("bool", 1);
  if ("leaf" in whole) return value(whole.leaf);
  const parts = whole.of.map((part) => truths(part, value));
  if (whole.join === "not") return computed("not", "bool", parts);
  return parts.reduce((left, right) => computed(whole.join, "bool", [left, right]));
}

const EMPTY = 0;
const PARTIAL = 1;
const FULL = 2;

/** @type {Record<string, (left: number, right: number) => number>} */
const JOINED_STATES = {
  and: Math.min,
  or: Math.max,
  xor: (left, right) => (left === PARTIAL || right === PARTIAL ? PARTIAL : left === right ? EMPTY : FULL),
};

/**
 * The states of tiles that follow from those of the operands: EMPTY and FULL are certain, PARTIAL may be any.
 * @param {Expression | null} whole @param {number} length how many tiles @param {(leaf: number) => Uint8Array | undefined} held
 * @returns {Uint8Array}
 */
function statesOf(whole, length, held) {
  if (whole === null) return new Uint8Array(length).fill(FULL);
  if ("leaf" in whole) return held(whole.leaf) ?? new Uint8Array(length).fill(PARTIAL);
  const parts = whole.of.map((part) => statesOf(part, length, held));
  if (whole.join === "not") return parts[0].map((state) => FULL - state);
  const join = JOINED_STATES[whole.join];
  return parts.reduce((left, right) => left.map((state, at) => join(state, right[at])));
}
