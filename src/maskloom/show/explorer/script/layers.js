// Images of the mask: of cells, tiles, weights, and of elements in chunks.

const CHUNKS = [256, 128, 64]; // elements along the side of a chunk; of masks of many operations fewer
const MOST_OPERATIONS = [100, 400, Infinity];
const MOST_KEPT = 1.5e7; // elements

/**
 * How a layer is drawn: the mask, the states of tiles, or weights with hidden pairs covered.
 * @typedef {"mask" | "tiles" | "attention"} Layer
 */

class Layers {
  /** @param {Reader} reader */
  constructor(reader) {
    this.reader = reader;
    /** @type {Map<string, HTMLCanvasElement>} */
    this.chunks = new Map();
    this.side = CHUNKS[MOST_OPERATIONS.findIndex((most) => reader.model.machine.code.length <= most)];
    this.clear({});
  }

  /** Forget all images. @param {Record<string, string>} colours */
  clear(colours) {
    this.colours = colours;
    this.chunks.clear();
    this.images = new Map();
  }

  /** Forget what counting in cells has changed. */
  recount() {
    for (const name of this.images.keys()) if (name !== "scores") this.images.delete(name);
  }

  /** @param {string} name @param {() => HTMLCanvasElement} make */
  image(name, make) {
    if (!this.images.has(name)) this.images.set(name, make());
    return this.images.get(name);
  }

  /** The cells of the mask; several together where they are smaller than a pixel. @param {number} together */
  mask(together) {
    return this.image(`mask${together}`, () => {
      const palette = Array.from({ length: LEVELS + 1 }, (_, level) => pixel(levelColour(this.colours, level)));
      const { levels, rows, cols } = pooled(this.reader.cells, together);
      return imageOf(rows, cols, (at) => palette[levels[at]]);
    });
  }

  /** What covers hidden cells of weights. */
  cover() {
    const hidden = pixel(parsed(this.colours.hidden));
    const { levels, rows, cols } = this.reader.cells;
    return this.image("cover", () => imageOf(rows, cols, (at) => (levels[at] === 0 ? hidden : 0)));
  }

  tiles() {
    const palette = ["hidden", "partial", "visible"].map((name) => pixel(parsed(this.colours[name])));
    return this.image("tiles", () => {
      const { state, rows, cols } = this.reader.cells.tiles();
      return imageOf(rows, cols, (at) => palette[state[at]]);
    });
  }

  /** The weights of a batch row and head. */
  scores() {
    const { scores } = this.reader.model;
    const { values, low, top } = gridOf(scores, this.reader.row, this.reader.head);
    const palette = Array.from({ length: 256 }, (_, at) => pixel(heat(at / 255)));
    const odd = pixel(parsed(this.colours.odd));
    const of = (value) => (Number.isNaN(value) ? odd : palette[Math.round(255 * partOf(value, low, top))]);
    return this.image("scores", () => imageOf(scores.rows, scores.cols, (at) => of(values[at])));
  }

  /**
   * Elements of a chunk; null if there was no time. @param {number} row @param {number} col @param {boolean} covers
   * @param {() => boolean} enough @returns {HTMLCanvasElement | null}
   */
  chunk(row, col, covers, enough) {
    const key = `${row},${col},${covers}`;
    const known = this.chunks.get(key);
    if (!known && enough()) return null;
    const found = known ?? this.made(row, col, covers);
    this.chunks.delete(key);
    this.chunks.set(key, found); // the last one is the one used last
    if (this.chunks.size * this.side ** 2 > MOST_KEPT) this.chunks.delete(this.chunks.keys().next().value);
    return found;
  }

  made(row, col, covers) {
    const { sizes } = this.reader.model;
    const [queries, keys] = [row, col].map((at, axis) => {
      const start = at * this.side;
      return positions({ start, length: Math.min(this.side, sizes[axis] - start) });
    });
    const plane = this.reader.visible(queries, keys);
    const [hidden, visible] = [pixel(parsed(this.colours.hidden)), covers ? 0 : pixel(parsed(this.colours.visible))];
    const shown = filled(plane, queries.length, keys.length);
    return imageOf(queries.length, keys.length, (at) => (shown[at] ? visible : hidden));
  }
}

/** Where a weight is between the first and the last colour. */
const partOf = (value, low, top) => Math.min(Math.max((value - low) / (top - low || 1), 0), 1);

/**
 * Levels of groups of cells: their mean, but none and all only where all cells have none and all.
 * @param {{levels: Uint8Array, rows: number, cols: number}} cells @param {number} together cells along a side
 */
function pooled(cells, together) {
  if (together === 1) return cells;
  const [rows, cols] = [cells.rows, cells.cols].map((count) => Math.ceil(count / together));
  const [sums, counts] = [new Uint32Array(rows * cols), new Uint32Array(rows * cols)];
  for (let row = 0, at = 0; row < cells.rows; row++) {
    for (let col = 0; col < cells.cols; col++, at++) {
      const group = Math.floor(row / together) * cols + Math.floor(col / together);
      sums[group] += cells.levels[at];
      counts[group] += 1;
    }
  }
  const mean = (sum, group) => {
    if (sum === 0 || sum === LEVELS * counts[group]) return sum / counts[group];
    return Math.min(Math.max(Math.round(sum / counts[group]), 1), LEVELS - 1);
  };
  return { levels: Uint8Array.from(sums, mean), rows, cols };
}
