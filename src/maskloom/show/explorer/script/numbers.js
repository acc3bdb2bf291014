// Numbers as torch has them: integers of a width that wrap around, floats that round.

/**
 * A value for a rectangle of pairs: `rows` is 1 where it is the same for all queries, `cols` where it is for all keys.
 * Integers are doubles while they are at most 2^53 in size, with bounds that hold them, else BigInts.
 * @typedef {{rows: number, cols: number, data: Float64Array | BigInt64Array | Uint8Array, low: number, high: number}} Plane
 */

const SAFE = 2 ** 53;

/** The least and the largest number of each integer dtype that doubles hold. */
const RANGES = {
  uint8: [0, 2 ** 8 - 1],
  int8: [-(2 ** 7), 2 ** 7 - 1],
  int16: [-(2 ** 15), 2 ** 15 - 1],
  int32: [-(2 ** 31), 2 ** 31 - 1],
};

/** Wraps a whole number, at most 2^53 in size, around. */
const WRAPS = {
  uint8: (x) => x & 255,
  int8: (x) => (x << 24) >> 24,
  int16: (x) => (x << 16) >> 16,
  int32: (x) => x | 0,
};

const BITS = { uint8: 8, int8: 8, int16: 16, int32: 32, int64: 64 };

/** Rounds a double to a float dtype. torch computes half precision in float32, and so rounds twice. */
const ROUNDS = {
  float64: (x) => x,
  float32: Math.fround,
  float16: (x) => roundedTo(Math.fround(x), 11, -24, 65504),
  bfloat16: (x) => roundedTo(Math.fround(x), 8, -133, 3.3895313892515355e38),
};

/** @param {string} dtype */
const isFloat = (dtype) => dtype in ROUNDS;
/** @param {string} dtype */
const isInteger = (dtype) => dtype in BITS;

/**
 * The nearest number with so many bits, halves to even.
 * @param {number} x @param {number} bits @param {number} least exponent of the smallest number @param {number} most
 */
function roundedTo(x, bits, least, most) {
  if (x === 0 || !Number.isFinite(x)) return x;
  const exponent = Math.max(exponentOf(x) - bits + 1, least);
  const unit = 2 ** exponent;
  const found = evenly(x / unit) * unit;
  return Math.abs(found) > most ? Math.sign(x) * Infinity : found;
}

/** floor(log2(|x|)), exactly. @param {number} x */
function exponentOf(x) {
  const size = Math.abs(x);
  let found = Math.floor(Math.log2(size));
  if (2 ** found > size) found -= 1;
  if (2 ** (found + 1) <= size) found += 1;
  return found;
}

/** The nearest whole number, halves to even. @param {number} x */
function evenly(x) {
  const below = Math.floor(x);
  const part = x - below;
  if (part !== 0.5) return part < 0.5 ? below : below + 1;
  return below % 2 === 0 ? below : below + 1;
}

/** A BigInt as float32: rounded once, and not by way of a double. @param {bigint} x */
function bigToSingle(x) {
  const size = x < 0n ? -x : x;
  const shift = BigInt(Math.max(0, size.toString(2).length - 50));
  const rest = size & ((1n << shift) - 1n);
  const kept = Number((size >> shift) | (rest ? 1n : 0n));
  return Math.fround((x < 0n ? -kept : kept) * 2 ** Number(shift));
}

/** @param {number} rows @param {number} cols @param {Plane["data"]} data @returns {Plane} */
function plane(rows, cols, data, low = -Infinity, high = Infinity) {
  return { rows, cols, data, low, high };
}

/** A plane of one number. @param {string} dtype @param {number | string} value @returns {Plane} */
function constant(dtype, value) {
  if (dtype === "bool") return plane(1, 1, Uint8Array.of(Number(value)));
  if (isInteger(dtype) && typeof value === "string") return plane(1, 1, BigInt64Array.of(BigInt(value)));
  const number = value === "inf" ? Infinity : value === "-inf" ? -Infinity : Number(value);
  const found = plane(1, 1, Float64Array.of(number));
  return isInteger(dtype) ? withBounds(found) : found;
}

/** The same integers as BigInts. @param {Plane} given @returns {Plane} */
function asBig(given) {
  if (given.data instanceof BigInt64Array) return given;
  return plane(given.rows, given.cols, BigInt64Array.from(given.data, BigInt));
}

/** Integers as doubles, with bounds, if all are small enough. @param {Plane} given @returns {Plane} */
function asDoubles(given) {
  const limit = BigInt(SAFE);
  for (const x of given.data) if (x > limit || x < -limit) return given;
  return withBounds(plane(given.rows, given.cols, Float64Array.from(given.data, Number)));
}

/** The plane with the bounds of its numbers. @param {Plane} given @returns {Plane} */
function withBounds(given) {
  let low = Infinity;
  let high = -Infinity;
  for (const x of given.data) {
    if (x < low) low = x;
    if (x > high) high = x;
  }
  return { ...given, low, high };
}

/** Integers of a dtype: doubles that may lie outside its range are wrapped around. @param {string} dtype @param {Plane} given */
function wrapped(dtype, given) {
  const range = RANGES[dtype];
  if (!range || (given.low >= range[0] && given.high <= range[1])) return given;
  const wrap = WRAPS[dtype];
  given.data.forEach((x, at) => {
    given.data[at] = wrap(x);
  });
  return { ...given, low: range[0], high: range[1] };
}

/** BigInts as integers of a dtype. @param {string} dtype @param {Plane} given @returns {Plane} */
function fromBig(dtype, given) {
  if (dtype === "int64") return asDoubles(given);
  const bits = BITS[dtype];
  const narrow = dtype === "uint8" ? (x) => BigInt.asUintN(bits, x) : (x) => BigInt.asIntN(bits, x);
  const data = Float64Array.from(given.data, (x) => Number(narrow(x)));
  return plane(given.rows, given.cols, data, ...RANGES[dtype]);
}

/** @param {string} dtype @param {Plane} given @param {string} to @returns {Plane} */
function cast(dtype, given, to = dtype) {
  const { rows, cols, data } = given;
  if (to === "bool") return plane(rows, cols, Uint8Array.from(data, (x) => (x != 0 ? 1 : 0)), 0, 1);
  if (isFloat(to)) return plane(rows, cols, Float64Array.from(data, toFloat(to)));
  if (data instanceof BigInt64Array) return fromBig(to, given);
  if (data instanceof Uint8Array) return plane(rows, cols, Float64Array.from(data), 0, 1);
  if (Number.isFinite(given.low)) return wrapped(to, { ...given, data: RANGES[to] ? data.slice() : data });
  return fromFloats(to, given);
}

/** @param {string} dtype */
function toFloat(dtype) {
  const round = ROUNDS[dtype];
  return (x) => (typeof x === "bigint" ? (dtype === "float64" ? Number(x) : round(bigToSingle(x))) : round(x));
}

/** Floats as integers: cut, and what an integer cannot hold becomes the least one, as processors do. */
function fromFloats(dtype, given) {
  const size = dtype === "int64" ? 2 ** 63 : 2 ** 31;
  const cut = (x) => (x >= -size && x < size ? Math.trunc(x) + 0 : -size);
  const data = Float64Array.from(given.data, cut);
  const found = withBounds(plane(given.rows, given.cols, data));
  if (found.low < -SAFE || found.high > SAFE) return fromBig(dtype, asBig(found));
  return wrapped(dtype, found);
}

/** The numbers of a plane for each of so many rows and columns. @param {Plane} given @param {number} height @param {number} width */
function filled({ rows, cols, data }, height, width) {
  if (rows === height && cols === width) return data;
  const out = new data.constructor(height * width);
  for (let row = 0; row < height; row++) {
    const from = rows > 1 ? row * cols : 0;
    if (cols > 1) out.set(data.subarray(from, from + width), row * width);
    else out.fill(data[from], row * width, (row + 1) * width);
  }
  return out;
}
