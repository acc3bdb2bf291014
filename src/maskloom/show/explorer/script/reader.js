// What the mask says, of a batch row and a head, with the operands that are on.

/**
 * @typedef {{values: (boolean | null)[], visible: boolean | null, deciding: number[]}} Told
 */

class Reader {
  /** @param {Model} model */
  constructor(model) {
    this.model = model;
    this.row = 0;
    this.head = 0;
    /** @type {Set<number>} */
    this.off = new Set();
    this.changed();
  }

  /** To be called after the batch row, the head or the operands have changed. */
  changed() {
    const { model } = this;
    this.expression = without(model.expression, this.off);
    this.runs = model.runs(this.expression);
    /** Why the mask could not be evaluated somewhere. @type {string | null} */
    this.failure = null;
    this.cells = new CellGrid(this);
  }

  /** From now on the mask is not evaluated, and its cells stay as they are. @param {string} message */
  fail(message) {
    this.failure = message;
    this.runs = false;
    this.cells.open = [];
  }

  /** @param {Float64Array} queries @param {Float64Array} keys @returns {Plane} 1 where a pair is visible */
  visible(queries, keys) {
    const leaves = leavesOf(this.expression);
    const planes = this.model.machine.run(leaves.map((leaf) => this.model.operands[leaf].slot), this.pairs(queries, keys));
    const found = new Map(leaves.map((leaf, at) => [leaf, planes[at]]));
    return truths(this.expression, (leaf) => found.get(leaf));
  }

  pairs(queries, keys) {
    const { batch, heads } = this.model.members;
    return { b: batch.chosen[this.row], h: heads.chosen[this.head], queries, keys };
  }

  /** What each operand says of one pair, and which alone decide. @param {number} query @param {number} key @returns {Told} */
  tell(query, key) {
    const pairs = this.pairs(Float64Array.of(query), Float64Array.of(key));
    const values = this.model.operands.map(({ slot }) => this.valueOf(slot, pairs));
    if (!this.runs) return { values, visible: this.cells.certain(query, key), deciding: [] };
    const value = (leaf) => values[leaf] === true;
    return { values, visible: truth(this.expression, value), deciding: deciding(this.expression, value) };
  }

  /** @param {number | null} slot @param {Pairs} pairs @returns {boolean | null} */
  valueOf(slot, pairs) {
    if (slot === null) return null;
    try {
      return this.model.machine.run([slot], pairs)[0].data[0] === 1;
    } catch (error) {
      this.fail(error.message);
      return null;
    }
  }

  /** The state of the tile of a pair. @param {number} query @param {number} key @returns {number} */
  tileAt(query, key) {
    const spans = [query, key].map((at, axis) => this.tileSpan(at, axis));
    const told = this.model.tiles && !this.off.size;
    if (told || !this.runs || spans[0].length * spans[1].length > 2 ** 18) return this.cells.tileAt(query, key);
    const share = shareOf(this.visible(positions(spans[0]), positions(spans[1])), spans[0].length, spans[1].length);
    const cut = spans.some(({ length }, axis) => length < this.model.block[axis]);
    return share === 0 ? EMPTY : share === 1 && !cut ? FULL : PARTIAL;
  }

  /** The positions of a tile. @param {number} at @param {number} axis 0 for queries, 1 for keys */
  tileSpan(at, axis) {
    const size = this.model.block[axis];
    const start = Math.floor(at / size) * size;
    return { start, length: Math.min(size, this.model.sizes[axis] - start) };
  }
}
