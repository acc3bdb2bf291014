// The mask of a page: its sizes, operands, measured cells, tokens, documents and weights.

/**
 * Numbers by batch row and head of the page: each distinct grid once, and which one it is.
 * @typedef {{grids: any[], which: number[][]}} Grids
 */

class Model {
  /** @param {any} given the page's data */
  constructor(given) {
    this.title = given.title;
    this.mask = given.mask;
    /** @type {[number, number]} queries and keys */
    this.sizes = given.sizes;
    this.block = given.block;
    this.members = { batch: given.batch, heads: given.heads };
    /** @type {Expression} */
    this.expression = given.expression;
    /** @type {{name: string, slot: number | null, reason: string | null}[]} */
    this.operands = given.operands;
    this.cells = given.cells;
    this.given = given;
  }

  /** Reads what is stored. */
  async load() {
    const { given } = this;
    const tables = await Promise.all(given.tables.map(load));
    this.machine = new Machine(given.code, tables.map(tableOf));
    this.shares = await grids(given.cells.shares);
    /** The tiles that the tables of a block mask say. @type {Grids | null} */
    this.tiles = given.cells.tiles && (await grids(given.cells.tiles));
    this.states = await Promise.all(given.cells.states.map(grids));
    this.tokens = await loadTokens(given.tokens);
    this.documents = await Promise.all(given.documents.map(loadDocuments));
    this.scores = given.scores && (await loadScores(given.scores));
    return this;
  }

  /** Whether the page can evaluate an expression. @param {Expression | null} expression */
  runs(expression) {
    return leavesOf(expression).every((leaf) => this.operands[leaf].slot !== null);
  }

  /** The ids of the documents that a query and a key are in. @param {number} row of the page's batch rows @param {number} query @param {number} key */
  documentsAt(row, query, key) {
    return this.documents.map(({ queries, keys }) => [idAt(queries, row, query), idAt(keys, row, key)]);
  }
}

/** @param {{numbers: Stored, count: number, which: number[][]}} given @returns {Promise<Grids>} */
async function grids({ numbers, count, which }) {
  return { which, grids: parted(await load(numbers), count) };
}

/** An array in equal parts. @param {any} numbers @param {number} count */
function parted(numbers, count) {
  const length = numbers.length / count;
  return Array.from({ length: count }, (_, at) => numbers.subarray(at * length, (at + 1) * length));
}

/** The grid of a batch row and head. @param {Grids} held @param {number} row @param {number} head */
const gridOf = (held, row, head) => held.grids[held.which[row][head]];

async function loadTokens({ queries, keys, same }) {
  const ofQueries = queries && (await loadJson(queries));
  const ofKeys = same ? ofQueries : keys && (await loadJson(keys));
  return { queries: ofQueries, keys: ofKeys };
}

async function loadDocuments({ queries, keys }) {
  const side = async ({ ids, length, which }) => ({ ids: await load(ids), length, which });
  return { queries: await side(queries), keys: await side(keys) };
}

/** @returns {number | null} */
function idAt({ ids, length, which }, row, position) {
  return position < length ? Number(ids[which[which.length > 1 ? row : 0] * length + position]) : null;
}

/** Weights as numbers; those that are not finite are NaN. */
async function loadScores({ side, shape, grids: stored, which }) {
  const held = await Promise.all(
    stored.map(async ({ low, high, top, book, numbers }) => ({ low, high, top, values: weights(await load(numbers), book) })),
  );
  return { side, rows: shape[0], cols: shape[1], exact: stored.every(({ book }) => book === null), grids: held, which };
}

/** @param {any} data weights, or the numbers of levels @param {number[] | null} book the weights of levels 1, 2, ... */
function weights(data, book) {
  if (book === null) return data;
  const levels = Float32Array.of(NaN, ...book);
  const found = new Float32Array(data.length);
  for (let at = 0; at < found.length; at++) found[at] = levels[data[at]];
  return found;
}
