// The cells of the whole mask, and its tiles.

const LEVELS = 15; // of the share of visible pairs in a cell: 0 is none, 15 is all
const UNKNOWN = 7; // the level of a cell that is not counted yet
const MOST_WHOLE = 2 ** 25; // pairs that are evaluated to count in cells
const SAMPLE = 32; // queries and keys of a cell, if not all
const AT_ONCE = 2 ** 16; // pairs

/** @param {{start: number, length: number}} span */
function positions({ start, length }) {
  return Float64Array.from({ length }, (_, at) => start + at);
}

/** The share of ones. @param {Plane} plane */
function shareOf({ data, rows: own, cols }) {
  let sum = 0;
  for (let at = 0; at < data.length; at++) sum += data[at];
  return sum / (own * cols);
}

/** How many queries see each key. @param {Plane} plane @param {number} queries @param {number} keys */
function sumsOf(plane, queries, keys) {
  const sums = new Float64Array(keys);
  const times = plane.rows === 1 ? queries : 1;
  const step = plane.cols > 1 ? 1 : 0;
  for (let row = 0; row < plane.rows; row++) {
    for (let key = 0, at = row * plane.cols; key < keys; key++, at += step) sums[key] += times * plane.data[at];
  }
  return sums;
}

/** The level of a share; none and all are certain only where every pair was evaluated. @param {number} share @param {boolean} every */
function levelOf(share, every) {
  if (every && (share === 0 || share === 1)) return share * LEVELS;
  return Math.max(1, Math.min(LEVELS - 1, Math.round(share * LEVELS)));
}

/** The cells of the whole mask: measured if all operands are on, else as those say, and then counted here. */
class CellGrid {
  /** @param {Reader} reader */
  constructor(reader) {
    const { size, shape, shares, states } = reader.model.cells;
    this.reader = reader;
    this.size = size;
    [this.rows, this.cols] = shape;
    /** Numbers of cells that are not counted yet. @type {number[]} */
    this.open = [];
    this.levels = reader.off.size === 0 ? gridOf(reader.model.shares, reader.row, reader.head) : this.joined();
  }

  /** Cells that follow from the states of the operands. */
  joined() {
    const { expression, model, row, head } = this.reader;
    const held = model.states.map((states) => gridOf(states, row, head));
    const states = statesOf(expression, this.rows * this.cols, (leaf) => held[leaf]);
    const levels = states.map((state) => (state === EMPTY ? 0 : state === FULL ? LEVELS : UNKNOWN));
    for (let at = 0; at < states.length; at++) if (states[at] === PARTIAL) this.open.push(at);
    if (!this.reader.runs) this.open = [];
    /** Whether every pair of open cells is evaluated. */
    this.whole = this.open.length * this.size[0] * this.size[1] <= MOST_WHOLE;
    this.open.reverse();
    return levels;
  }

  /** Counts in some open cells. @param {() => boolean} enough */
  count(enough) {
    while (this.open.length && !enough()) this.countSome();
  }

  /** Counts in open cells of one row, which are evaluated together. */
  countSome() {
    const row = Math.floor(this.open.at(-1) / this.cols);
    const down = this.span(row, 0);
    const every = this.whole || (down.length <= SAMPLE && this.size[1] <= SAMPLE);
    const picked = every ? positions : spread;
    const queries = picked(down);
    const cells = [];
    let keys = 0;
    while (this.open.length && Math.floor(this.open.at(-1) / this.cols) === row && keys * queries.length < AT_ONCE) {
      const at = this.open.pop();
      cells.push({ at, keys: picked(this.span(at % this.cols, 1)) });
      keys += cells.at(-1).keys.length;
    }
    this.fill(queries, cells, keys, every);
  }

  /** @param {Float64Array} queries @param {{at: number, keys: Float64Array}[]} cells @param {number} length of all keys @param {boolean} every whether all pairs are evaluated */
  fill(queries, cells, length, every) {
    const keys = new Float64Array(length);
    cells.reduce((start, cell) => (keys.set(cell.keys, start), start + cell.keys.length), 0);
    const sums = sumsOf(this.reader.visible(queries, keys), queries.length, length);
    let start = 0;
    for (const cell of cells) {
      const found = sums.subarray(start, start + cell.keys.length).reduce((sum, one) => sum + one, 0);
      this.levels[cell.at] = levelOf(found / (queries.length * cell.keys.length), every);
      start += cell.keys.length;
    }
  }

  span(place, axis) {
    const start = place * this.size[axis];
    return { start, length: Math.min(this.size[axis], this.reader.model.sizes[axis] - start) };
  }

  /** The level of a pair's cell. @param {number} query @param {number} key */
  at(query, key) {
    return this.levels[Math.floor(query / this.size[0]) * this.cols + Math.floor(key / this.size[1])];
  }

  /** Whether a pair is visible, if its cell says so. @returns {boolean | null} */
  certain(query, key) {
    const level = this.at(query, key);
    return level === 0 ? false : level === LEVELS ? true : null;
  }

  /** The state of the tile of a pair, or of the cell, if that is larger. */
  tileAt(query, key) {
    return this.tiles().state[this.tiles().place(query, key)];
  }

  /** The states of tiles, or of cells of several tiles, as far as cells are counted. */
  tiles() {
    if (this.known?.open !== this.open.length) this.known = { ...tilesIn(this), open: this.open.length };
    return this.known;
  }
}

/** Some positions of a span, with the first and the last. */
function spread({ start, length }) {
  const count = Math.min(SAMPLE, length);
  return Float64Array.from({ length: count }, (_, at) => start + Math.round((at * (length - 1)) / Math.max(1, count - 1)));
}

/** @param {CellGrid} cells */
function tilesIn(cells) {
  const { reader } = cells;
  const { block, sizes, tiles } = reader.model;
  const size = block.map((tile, axis) => Math.max(tile, cells.size[axis]));
  const [rows, cols] = size.map((tile, axis) => Math.ceil(sizes[axis] / tile));
  const place = (query, key) => Math.floor(query / size[0]) * cols + Math.floor(key / size[1]);
  if (tiles && !reader.off.size) return { size, rows, cols, state: gridOf(tiles, reader.row, reader.head), place };
  const least = new Uint8Array(rows * cols).fill(LEVELS);
  const most = new Uint8Array(rows * cols);
  for (let row = 0, at = 0; row < cells.rows; row++) {
    for (let col = 0; col < cells.cols; col++, at++) {
      const tile = place(row * cells.size[0], col * cells.size[1]);
      least[tile] = Math.min(least[tile], cells.levels[at]);
      most[tile] = Math.max(most[tile], cells.levels[at]);
    }
  }
  const whole = (tile) => (Math.floor(tile / cols) + 1) * size[0] <= sizes[0] && ((tile % cols) + 1) * size[1] <= sizes[1];
  const state = least.map((level, tile) => (most[tile] === 0 ? EMPTY : level === LEVELS && whole(tile) ? FULL : PARTIAL));
  return { size, rows, cols, state, place };
}
