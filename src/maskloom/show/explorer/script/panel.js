// Beside the picture: the pair that is pointed at, the operands, and the legend.

const STATES = ["empty", "partial", "full"];
const KEYS = [
  ["drag, wheel, pinch", "move and zoom"],
  ["click", "hold the pair, or let it go"],
  ["← ↑ ↓ →", "next pair; with Shift, move the view"],
  ["+ − 0", "zoom in, zoom out, all"],
  ["Escape", "no pair"],
];

class Panel {
  /** @param {Model} model @param {{toggle: (leaf: number) => void}} actions */
  constructor(model, actions) {
    this.model = model;
    this.pair = element("dl.pair");
    this.live = element("p.live", { "aria-live": "polite" });
    this.rows = model.operands.map((operand, leaf) => operandRow(operand, () => actions.toggle(leaf)));
    this.note = element("p.note");
    this.legend = element("div.legend");
    const help = KEYS.map(([keys, does]) => element("li", {}, element("kbd", {}, keys), ` ${does}`));
    this.whole = element(
      "aside.panel",
      {},
      section("Pair", this.pair, this.live),
      section(model.operands.length > 1 ? "Operands" : "Operand", element("ul.operands", {}, ...this.rows.map(({ row }) => row))),
      section("Legend", this.legend, this.note),
      element("details.help", { open: true }, element("summary", {}, "Keys"), element("ul", {}, ...help)),
    );
  }

  /** @param {Reader} reader @param {number[] | null} pair */
  tell(reader, pair) {
    const told = pair && reader.tell(pair[0], pair[1]);
    this.pair.replaceChildren(...(pair ? factsOf(reader, pair, told).flatMap(([name, value]) => fact(name, value)) : [hint()]));
    this.live.textContent = pair ? inOneLine(pair, told) : "";
    this.rows.forEach((one, leaf) => showOperand(one, told, leaf, reader.off.has(leaf)));
  }

  /** @param {Reader} reader @param {Layer} layer */
  explain(reader, layer) {
    this.legend.replaceChildren(...legendOf(reader, layer));
    this.note.textContent = notesOf(reader, layer).join(" ");
  }
}

function section(name, ...children) {
  return element("section", {}, element("h2", {}, name), ...children);
}

const hint = () => element("p.hint", {}, "Point at the picture, or press an arrow key.");

/** @param {any} operand @param {() => void} toggle */
function operandRow(operand, toggle) {
  const box = element("input", { type: "checkbox", checked: true, onchange: toggle });
  const name = element("code", {}, shownToken(operand.name));
  const value = element("span.value");
  const mark = element("span.mark");
  const row = element("li", {}, element("label", {}, box, name), element("span.told", {}, mark, value));
  if (operand.reason) row.append(element("p.note", {}, `Drawn by cells: ${operand.reason}.`));
  return { row, box, value, mark };
}

/** @param {any} one @param {Told | null} told @param {number} leaf @param {boolean} isOff */
function showOperand({ row, box, value, mark }, told, leaf, isOff) {
  box.checked = !isOff;
  const decides = Boolean(told && told.deciding.includes(leaf));
  row.classList.toggle("off", isOff);
  row.classList.toggle("decides", decides);
  mark.textContent = decides ? "decides" : "";
  const says = told ? told.values[leaf] : undefined;
  value.textContent = says === undefined ? "" : says === null ? "?" : says ? "visible" : "hidden";
  value.dataset.value = value.textContent;
}

/** @param {Reader} reader @param {number[]} pair @param {Told} told @returns {[string, string | Node][]} */
function factsOf(reader, pair, told) {
  const { model } = reader;
  const documents = model.documentsAt(reader.row, pair[0], pair[1]);
  const sides = [model.tokens.queries, model.tokens.keys].map((tokens, side) => {
    const ids = documents.map((both) => both[side]).map((id) => (id === null || id < 0 ? "none" : String(id)));
    return [String(pair[side]), tokens ? `“${shownToken(tokens[pair[side]])}”` : "", ids.length ? `document ${ids.join(", ")}` : ""];
  });
  const span = [0, 1].map((axis) => Math.floor(pair[axis] / model.block[axis]));
  const facts = [
    ["query", lines(sides[0])],
    ["key", lines(sides[1])],
    ["this pair is", verdict(told.visible)],
    ["its tile is", `${STATES[reader.tileAt(pair[0], pair[1])]}, row ${span[0]}, column ${span[1]}`],
  ];
  if (model.scores) facts.push(["attention", weightIn(reader, pair)]);
  return facts;
}

const lines = (parts) => element("span.side", {}, ...parts.filter(Boolean).map((part, at) => element(`bdi.part${at}`, {}, part)));

function verdict(visible) {
  const words = visible === null ? "not known here" : visible ? "visible" : "hidden";
  return element("span.value", { "data-value": words }, words);
}

/** @param {Reader} reader @param {number[]} pair */
function weightIn(reader, pair) {
  const { side, cols, exact } = reader.model.scores;
  const at = Math.floor(pair[0] / side) * cols + Math.floor(pair[1] / side);
  const weight = shownWeight(gridOf(reader.model.scores, reader.row, reader.head).values[at]);
  return `${exact ? "" : "about "}${weight}${side > 1 ? `, the mean of ${side} × ${side}` : ""}`;
}

function fact(name, value) {
  return [element("dt", {}, name), element("dd", {}, value)];
}

/** @param {number[]} pair @param {Told} told */
function inOneLine(pair, told) {
  const visible = told.visible === null ? "not known" : told.visible ? "visible" : "hidden";
  return `query ${pair[0]}, key ${pair[1]}: ${visible}`;
}

// -- legend --------------------------------------------------------------------------------------------------------------

function swatch(name, words) {
  return element("span.entry", {}, element(`i.swatch.${name}`), words);
}

/** @param {Reader} reader @param {Layer} layer */
function legendOf(reader, layer) {
  if (layer === "tiles") return [swatch("visible", "full"), swatch("partial", "partial"), swatch("hidden", "empty")];
  if (layer === "mask") return [swatch("visible", "visible"), swatch("some", "visible in part"), swatch("hidden", "hidden")];
  const { low, high, top } = gridOf(reader.model.scores, reader.row, reader.head);
  const end = high > top ? `≥ ${shownWeight(top)}` : shownWeight(top);
  return [
    element("span.entry", {}, shownWeight(low), element("i.scale"), end),
    swatch("hidden", "hidden"),
    swatch("odd", "not finite"),
  ];
}

/** @param {Reader} reader @param {Layer} layer @returns {string[]} */
function notesOf(reader, layer) {
  const { model, cells } = reader;
  const found = [];
  const [high, wide] = layer === "tiles" ? model.block.map((tile, axis) => Math.max(tile, cells.size[axis])) : cells.size;
  if (layer === "tiles") found.push(`A square is a tile of ${high} × ${wide} pairs.`);
  else if (layer === "mask" && high * wide > 1) found.push(`From afar a cell is ${high} × ${wide} pairs; the stronger its colour, the more are visible.`);
  if (reader.failure) found.push(`The mask cannot be evaluated everywhere (${reader.failure}): the picture is of cells.`);
  else if (!reader.runs) found.push("An operand that is on cannot be evaluated in the browser: the picture is of cells that were measured before.");
  if (reader.off.size === 0 && !model.cells.exact && layer !== "tiles") found.push("Shares of cells are estimated.");
  if (reader.off.size && leavesOf(reader.expression).length === 0) found.push("No operand is on: nothing is hidden.");
  if (layer === "attention" && model.scores.side > 1) found.push(`Weights are means of ${model.scores.side} × ${model.scores.side} pairs.`);
  return found;
}
