// The loops that operations run in.

/**
 * Loops over the keys of one query: `n` results from `to` on, of numbers from `i` and `j` on, with steps of 0 or 1. Each stands
 * for itself, and always gets arrays of the same type, so that the browser compiles it to a few machine instructions.
 * @type {Record<string, (out: any, to: number, a: any, i: number, di: number, b: any, j: number, dj: number, n: number) => void>}
 */
const COMPARING_LOOPS = {
  lt: (out, to, a, i, di, b, j, dj, n) => {
    for (let k = 0; k < n; k++, i += di, j += dj) out[to + k] = a[i] < b[j] ? 1 : 0;
  },
  le: (out, to, a, i, di, b, j, dj, n) => {
    for (let k = 0; k < n; k++, i += di, j += dj) out[to + k] = a[i] <= b[j] ? 1 : 0;
  },
  gt: (out, to, a, i, di, b, j, dj, n) => {
    for (let k = 0; k < n; k++, i += di, j += dj) out[to + k] = a[i] > b[j] ? 1 : 0;
  },
  ge: (out, to, a, i, di, b, j, dj, n) => {
    for (let k = 0; k < n; k++, i += di, j += dj) out[to + k] = a[i] >= b[j] ? 1 : 0;
  },
  eq: (out, to, a, i, di, b, j, dj, n) => {
    for (let k = 0; k < n; k++, i += di, j += dj) out[to + k] = a[i] === b[j] ? 1 : 0;
  },
  ne: (out, to, a, i, di, b, j, dj, n) => {
    for (let k = 0; k < n; k++, i += di, j += dj) out[to + k] = a[i] !== b[j] ? 1 : 0;
  },
};

const BOOL_LOOPS = {
  and: (out, to, a, i, di, b, j, dj, n) => {
    for (let k = 0; k < n; k++, i += di, j += dj) out[to + k] = a[i] & b[j];
  },
  or: (out, to, a, i, di, b, j, dj, n) => {
    for (let k = 0; k < n; k++, i += di, j += dj) out[to + k] = a[i] | b[j];
  },
  xor: (out, to, a, i, di, b, j, dj, n) => {
    for (let k = 0; k < n; k++, i += di, j += dj) out[to + k] = a[i] ^ b[j];
  },
};
Object.assign(BOOL_LOOPS, { mul: BOOL_LOOPS.and, add: BOOL_LOOPS.or, min: BOOL_LOOPS.and, max: BOOL_LOOPS.or });

const NUMBER_LOOPS = {
  add: (out, to, a, i, di, b, j, dj, n) => {
    for (let k = 0; k < n; k++, i += di, j += dj) out[to + k] = a[i] + b[j];
  },
  sub: (out, to, a, i, di, b, j, dj, n) => {
    for (let k = 0; k < n; k++, i += di, j += dj) out[to + k] = a[i] - b[j];
  },
};

/** The loop of an operation without one of its own. @param {Function} f */
const looped = (f) => (out, to, a, i, di, b, j, dj, n) => {
  for (let k = 0; k < n; k++, i += di, j += dj) out[to + k] = f(a[i], b[j]);
};

/** @param {Function} loop @param {Plane} a @param {Plane} b @param {Function} Data @returns {Plane} */
function zipped(loop, a, b, Data) {
  const rows = Math.max(a.rows, b.rows);
  const cols = Math.max(a.cols, b.cols);
  const out = new Data(rows * cols);
  const [stepA, stepB] = [a.cols > 1 ? 1 : 0, b.cols > 1 ? 1 : 0];
  const [downA, downB] = [a.rows > 1 ? a.cols : 0, b.rows > 1 ? b.cols : 0];
  for (let row = 0; row < rows; row++) {
    loop(out, row * cols, a.data, row * downA, stepA, b.data, row * downB, stepB, cols);
  }
  return plane(rows, cols, out);
}

/** @param {Function} f @param {Plane} a @param {Function} Data @returns {Plane} */
function each(f, { rows, cols, data }, Data) {
  const out = new Data(data.length);
  for (let at = 0; at < out.length; at++) out[at] = f(data[at]);
  return plane(rows, cols, out);
}
