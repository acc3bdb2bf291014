// What each instruction computes.

/** Whole division, rounded down. */
const floorDiv = (a, b) => {
  const rest = a % notZero(b);
  const cut = (a - rest) / b;
  return (rest !== 0 && rest < 0 !== b < 0 ? cut - 1 : cut) + 0;
};
const truncDiv = (a, b) => (a - (a % notZero(b))) / b + 0;
/** The remainder that has the sign of the divisor. */
const remainder = (a, b) => {
  const rest = a % notZero(b);
  return (rest !== 0 && rest < 0 !== b < 0 ? rest + b : rest) + 0;
};

/** @template {number | bigint} T @param {T} divisor @returns {T} */
function notZero(divisor) {
  if (divisor == 0) throw new Error("the mask divides by zero");
  return divisor;
}

const cross = (a, b, f) => {
  const ends = [f(a.low, b.low), f(a.low, b.high), f(a.high, b.low), f(a.high, b.high)];
  return [Math.min(...ends), Math.max(...ends)];
};
const size = (a) => Math.max(Math.abs(a.low), Math.abs(a.high));
const within = (a) => [-size(a), size(a)];
const inInt32 = (a) => a.low >= RANGES.int32[0] && a.high <= RANGES.int32[1];
const bitBounds = (a, b) => (a.low >= 0 && b.low >= 0 ? [0, RANGES.int32[1]] : RANGES.int32);
const bits = (f) => ({ number: f, big: f, bounds: bitBounds, fits: (a, b) => inInt32(a) && inInt32(b) });

/**
 * Operations of two integers: on doubles where the bounds of the result allow it, else on BigInts.
 * @type {Record<string, {number: Function, big: Function, bounds: Function, fits?: Function}>}
 */
const OF_INTEGERS = {
  add: { number: (a, b) => a + b, big: (a, b) => a + b, bounds: (a, b) => [a.low + b.low, a.high + b.high], loop: NUMBER_LOOPS.add },
  sub: { number: (a, b) => a - b, big: (a, b) => a - b, bounds: (a, b) => [a.low - b.high, a.high - b.low], loop: NUMBER_LOOPS.sub },
  mul: {
    number: (a, b) => a * b + 0,
    big: (a, b) => a * b,
    bounds: (a, b) => cross(a, b, (x, y) => x * y),
  },
  min: {
    number: Math.min,
    big: (a, b) => (a < b ? a : b),
    bounds: (a, b) => [Math.min(a.low, b.low), Math.min(a.high, b.high)],
  },
  max: {
    number: Math.max,
    big: (a, b) => (a > b ? a : b),
    bounds: (a, b) => [Math.max(a.low, b.low), Math.max(a.high, b.high)],
  },
  floordiv: {
    number: floorDiv,
    big: (a, b) => a / notZero(b) - (a % b !== 0n && a < 0n !== b < 0n ? 1n : 0n),
    bounds: (a) => [-size(a) - 1, size(a) + 1],
  },
  truncdiv: { number: truncDiv, big: (a, b) => a / notZero(b), bounds: within },
  remainder: {
    number: remainder,
    big: (a, b) => {
      const rest = a % notZero(b);
      return rest !== 0n && rest < 0n !== b < 0n ? rest + b : rest;
    },
    bounds: (a, b) => [Math.min(0, b.low), Math.max(0, b.high)],
  },
  fmod: { number: (a, b) => (a % notZero(b)) + 0, big: (a, b) => a % notZero(b), bounds: within },
  and: { ...bits((a, b) => a & b) },
  or: { ...bits((a, b) => a | b) },
  xor: { ...bits((a, b) => a ^ b) },
};

/** A shift by so many bits that none is left, or by less than none, leaves zero, or the sign. @param {string} dtype */
const shifts = (dtype) => ({
  shl: {
    number: (a, b) => (b < 0 || b >= BITS[dtype] ? 0 : a * 2 ** b + 0),
    big: (a, b) => (b < 0n || b >= BITS[dtype] ? 0n : a << b),
    bounds: (a, b) => [-size(a) * 2 ** Math.min(64, size(b)), size(a) * 2 ** Math.min(64, size(b))],
  },
  shr: {
    number: (a, b) => Math.floor(a / 2 ** (b < 0 || b >= BITS[dtype] ? BITS[dtype] : b)),
    big: (a, b) => a >> (b < 0n || b >= BITS[dtype] ? BigInt(BITS[dtype]) : b),
    bounds: (a) => [Math.min(a.low, -1), Math.max(a.high, 0)],
  },
});

const OF_INTEGER = {
  neg: { number: (a) => -a + 0, big: (a) => -a, bounds: (a) => [-a.high, -a.low] },
  abs: { number: Math.abs, big: (a) => (a < 0n ? -a : a), bounds: (a) => [0, size(a)] },
  not: { number: (a) => -a - 1, big: (a) => ~a, bounds: (a) => [-a.high - 1, -a.low - 1] },
  sign: { number: Math.sign, big: (a) => (a > 0n ? 1n : a < 0n ? -1n : 0n), bounds: () => [-1, 1] },
};

/** Each gets the function that rounds to its dtype, for steps in between. */
const OF_FLOATS = {
  add: () => (a, b) => a + b,
  sub: () => (a, b) => a - b,
  mul: () => (a, b) => a * b,
  div: () => (a, b) => a / b,
  min: () => Math.min,
  max: () => Math.max,
  fmod: () => (a, b) => a % b,
  truncdiv: (round) => (a, b) => Math.trunc(round(a / b)),
  remainder: (round) => (a, b) => {
    const rest = a % b;
    return rest !== 0 && rest < 0 !== b < 0 ? round(rest + b) : rest;
  },
  floordiv: (round) => (a, b) => {
    if (b === 0) return a / b;
    const rest = a % b;
    let found = round(round(a - rest) / b);
    if (rest !== 0 && rest < 0 !== b < 0) found = round(found - 1);
    const down = Math.floor(found);
    return found - down > 0.5 ? down + 1 : down;
  },
};

const OF_FLOAT = {
  neg: (a) => -a,
  abs: Math.abs,
  sign: (a) => (a > 0 ? 1 : 0) - (a < 0 ? 1 : 0),
  sqrt: Math.sqrt,
  floor: Math.floor,
  ceil: Math.ceil,
  trunc: Math.trunc,
  round: evenly,
};

const COMPARISONS = {
  lt: (a, b) => a < b,
  le: (a, b) => a <= b,
  gt: (a, b) => a > b,
  ge: (a, b) => a >= b,
  eq: (a, b) => a == b, // a double and a BigInt are compared as numbers
  ne: (a, b) => a != b,
};

/** @param {any} operation @param {string} dtype @param {Plane[]} args @returns {Plane} */
function integers(operation, dtype, args) {
  const doubles = args.every((arg) => arg.data instanceof Float64Array);
  if (doubles && (!operation.fits || operation.fits(...args))) {
    const [low, high] = operation.bounds(...args);
    if (low >= -SAFE && high <= SAFE) {
      const found = together(operation.number, args, Float64Array, operation.loop);
      return wrapped(dtype, { ...found, low, high });
    }
  }
  return fromBig(dtype, together(operation.big, args.map(asBig), BigInt64Array));
}

/** @param {Function} f @param {Plane[]} args @param {Function} Data @param {Function} [loop] that computes f, for doubles */
function together(f, args, Data, loop = looped(f)) {
  return args.length === 1 ? each(f, args[0], Data) : zipped(loop, args[0], args[1], Data);
}

/** @param {string} name @param {string} dtype @param {Plane[]} args @returns {Plane} */
function floats(name, dtype, args) {
  const round = ROUNDS[dtype];
  const f = args.length === 1 ? OF_FLOAT[name] : OF_FLOATS[name](round);
  const rounds = args.length === 1 ? (a) => round(f(a)) : (a, b) => round(f(a, b));
  return together(dtype === "float64" ? f : rounds, args, Float64Array);
}

/** The result of an operation of numbers. @param {string} name @param {string} dtype @param {Plane[]} args @returns {Plane} */
function computed(name, dtype, args) {
  if (name in COMPARISONS) return compared(name, args);
  if (name === "cast") return cast(dtype, args[0]);
  if (name === "where") return chosen([args[2], args[1]], args[0], dtype);
  if (name === "choose") return chosen(args.slice(1), wrappedIndex(args[0], args.length - 1), dtype);
  if (dtype === "bool") return bools(name, args);
  if (isFloat(dtype)) return floats(name, dtype, args);
  const known = args.length === 1 ? OF_INTEGER[name] : (OF_INTEGERS[name] ?? shifts(dtype)[name]);
  return integers(known, dtype, args);
}

/** @param {string} name @param {Plane[]} args @returns {Plane} */
function compared(name, args) {
  const doubles = args.every((arg) => arg.data instanceof Float64Array);
  const loop = doubles ? COMPARING_LOOPS[name] : looped(COMPARISONS[name]);
  return { ...zipped(loop, args[0], args[1], Uint8Array), low: 0, high: 1 };
}

/** @param {string} name @param {Plane[]} args @returns {Plane} */
function bools(name, args) {
  const found = args.length === 1 ? each((a) => a ^ 1, args[0], Uint8Array) : zipped(BOOL_LOOPS[name], ...args, Uint8Array);
  return { ...found, low: 0, high: 1 };
}

/** One of several planes for each pair. @param {Plane[]} choices @param {Plane} which @param {string} dtype @returns {Plane} */
function chosen(choices, which, dtype) {
  const big = choices.some((choice) => choice.data instanceof BigInt64Array);
  const planes = big ? choices.map(asBig) : choices;
  const rows = Math.max(which.rows, ...planes.map((one) => one.rows));
  const cols = Math.max(which.cols, ...planes.map((one) => one.cols));
  const out = new planes[0].data.constructor(rows * cols);
  for (let row = 0, at = 0; row < rows; row++) {
    for (let col = 0; col < cols; col++, at++) {
      const one = planes[Number(which.data[placeIn(which, row, col)])];
      out[at] = one.data[placeIn(one, row, col)];
    }
  }
  const low = Math.min(...planes.map((one) => one.low));
  const high = Math.max(...planes.map((one) => one.high));
  const found = plane(rows, cols, out, low, high);
  return big ? fromBig(dtype, found) : found;
}

/** @param {Plane} one @param {number} row @param {number} col */
function placeIn(one, row, col) {
  return (one.rows > 1 ? row * one.cols : 0) + (one.cols > 1 ? col : 0);
}

/** Indices into `length` entries; those below zero count from the end. @param {Plane} index @param {number} length */
function wrappedIndex(index, length) {
  const at = (x) => {
    const place = Number(x);
    if (place >= length || place < -length) throw new Error(`index ${x} is outside a table of ${length} entries`);
    return place < 0 ? place + length : place;
  };
  if (index.low >= 0 && index.high < length) return index;
  return each(at, index, Float64Array);
}
