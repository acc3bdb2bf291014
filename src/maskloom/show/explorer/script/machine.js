// Runs instructions for rectangles of pairs.

/**
 * @typedef {{data: ArrayLike<number | bigint>, low: number, high: number}} Table
 * @typedef {{b: number, h: number, queries: Float64Array, keys: Float64Array}} Pairs
 */

const INPUTS = 4;

class Machine {
  /** @param {any[][]} code instructions: an operation, a dtype, arguments @param {Table[]} tables */
  constructor(code, tables) {
    this.code = code;
    this.tables = tables;
    /** @type {Map<string, {order: number[], last: Map<number, number>}>} */
    this.plans = new Map();
  }

  /** The values of some slots for all pairs of these queries and keys. @param {number[]} slots @param {Pairs} pairs @returns {Plane[]} */
  run(slots, pairs) {
    const { order, last } = this.plan(slots);
    const values = new Map(inputs(pairs).entries());
    for (const slot of order) {
      values.set(slot, this.step(this.code[slot - INPUTS], values));
      for (const used of last.get(slot) ?? []) values.delete(used);
    }
    return slots.map((slot) => values.get(slot));
  }

  /** The instructions that these slots need, in order, and after each the slots that are needed no more. @param {number[]} slots */
  plan(slots) {
    const key = slots.join();
    if (!this.plans.has(key)) this.plans.set(key, this.planned(slots));
    return this.plans.get(key);
  }

  planned(slots) {
    const needed = new Set(slots);
    for (let at = this.code.length - 1; at >= 0; at--) {
      if (needed.has(at + INPUTS)) for (const slot of slotsOf(this.code[at])) needed.add(slot);
    }
    const order = [...needed].filter((slot) => slot >= INPUTS).sort((a, b) => a - b);
    const seen = new Set(slots);
    const last = new Map();
    for (const slot of [...order].reverse()) {
      const ends = slotsOf(this.code[slot - INPUTS]).filter((used) => !seen.has(used));
      for (const used of ends) seen.add(used);
      last.set(slot, ends);
    }
    return { order, last };
  }

  /** @param {any[]} instruction @param {Map<number, Plane>} values @returns {Plane} */
  step([operation, dtype, ...args], values) {
    if (operation === "const") return constant(dtype, args[0]);
    if (operation === "read") return this.read(dtype, args, values);
    return computed(operation, dtype, args.map((slot) => values.get(slot)));
  }

  /** `[table, inner, place, slot, size, slot, size, ...]`: entries of `inner` numbers each, at indices. */
  read(dtype, [table, inner, place, ...layout], values) {
    let flat = plane(1, 1, Float64Array.of(0), 0, 0);
    for (let at = 0; at < layout.length; at += 2) {
      const size = layout[at + 1];
      const index = wrappedIndex(values.get(layout[at]), size);
      flat = zipped(looped((before, here) => before * size + here), flat, index, Float64Array);
    }
    const { data, low, high } = this.tables[table];
    const Data = dtype === "bool" ? Uint8Array : typeof data[0] === "bigint" ? BigInt64Array : Float64Array;
    const out = each((entry) => data[entry * inner + place], flat, Data).data;
    const whole = isInteger(dtype) || dtype === "bool";
    return whole ? plane(flat.rows, flat.cols, out, low, high) : plane(flat.rows, flat.cols, out);
  }
}

/** The slots that an instruction reads. @param {any[]} instruction @returns {number[]} */
function slotsOf([operation, , ...args]) {
  if (operation === "const") return [];
  return operation === "read" ? args.slice(3).filter((_, at) => at % 2 === 0) : args;
}

/** @param {Pairs} pairs @returns {Plane[]} */
function inputs({ b, h, queries, keys }) {
  return [
    plane(1, 1, Float64Array.of(b), b, b),
    plane(1, 1, Float64Array.of(h), h, h),
    withBounds(plane(queries.length, 1, queries)),
    withBounds(plane(1, keys.length, keys)),
  ];
}
