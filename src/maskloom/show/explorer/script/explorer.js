// Puts an explorer into an element of the page.

const FRAME = 14; // milliseconds of work before the screen is drawn again
const COUNTING = 80; // milliseconds of counting in cells before they are drawn again

class Explorer {
  /** @param {Element} root @param {Model} model */
  constructor(root, model) {
    this.root = root;
    this.model = model;
    this.reader = new Reader(model);
    this.view = new View(model.sizes);
    this.layers = new Layers(this.reader);
    /** @type {Layer[]} */
    this.choices = model.scores ? ["mask", "tiles", "attention"] : ["mask", "tiles"];
    this.layer = "mask";
    /** The pair that is told of, and the one that stays when the pointer leaves. @type {number[] | null} */
    this.cursor = null;
    this.held = null;
    this.build();
    this.painter = new Painter(this.canvas, model, this.view, this.layers);
  }

  build() {
    const { model } = this;
    const [q, k] = model.sizes;
    const title = shownToken(model.title);
    const help = `${title}: ${q} queries and ${k} keys. Arrow keys move a cursor.`;
    this.canvas = element("canvas", { tabIndex: 0, role: "img", "aria-label": help });
    this.panel = new Panel(model, { toggle: (leaf) => this.toggle(leaf) });
    this.tools = toolbar(this);
    const size = element("p", {}, `${grouped(q)} queries × ${grouped(k)} keys`);
    const header = element("header", {}, element("div.words", {}, element("h1", {}, title), size), this.tools.whole);
    this.root.append(header, element("div.stage", {}, this.canvas, this.panel.whole));
  }

  /** Whether it is dark now, by its own switch or by what the reader prefers. */
  get isDark() {
    return (this.root.dataset.theme ?? (matchMedia("(prefers-color-scheme: dark)").matches ? "dark" : "light")) === "dark";
  }

  start() {
    listen(this);
    new ResizeObserver(() => this.resize()).observe(this.canvas);
    matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => this.recolour());
    new MutationObserver(() => this.recolour()).observe(this.root, { attributeFilter: ["data-theme"] });
    this.painter.resize();
    if (this.isAlone) {
      addEventListener("hashchange", () => this.follow());
      this.follow();
    }
    this.recolour();
    this.update();
  }

  /** Whether the page is there for this explorer alone. */
  get isAlone() {
    return document.body.classList.contains("explorer-page");
  }

  follow() {
    follow(this, location.hash.slice(1));
    this.layers.clear(this.layers.colours);
    this.update();
  }

  resize() {
    this.painter.resize();
    this.draw();
  }

  recolour() {
    this.layers.clear(coloursOf(this.root));
    this.draw();
  }

  switchTheme() {
    this.root.dataset.theme = this.isDark ? "light" : "dark"; // and `start` hears of it
  }

  // -- what a user does ------------------------------------------------------------------------------------------------

  /** @param {MouseEvent} event @returns {[number, number]} pixels down and across, from the corner of the mask */
  pointIn(event) {
    const box = this.canvas.getBoundingClientRect();
    return [event.clientY - box.top - this.painter.top, event.clientX - box.left - this.painter.left];
  }

  /** @param {number[] | null} point */
  point(point) {
    if (this.held) return;
    this.tell(point && this.view.pairAt(point));
  }

  /** @param {number[]} point */
  hold(point) {
    const pair = this.view.pairAt(point);
    this.held = this.held || !pair ? null : pair;
    this.tell(pair);
    this.remember();
  }

  release() {
    this.held = null;
    this.tell(null);
    this.remember();
  }

  /** @param {number[]} way */
  step(way) {
    const { view, model } = this;
    const jump = (axis) => Math.max(1, Math.round(1 / view.pixels[axis]));
    const from = this.cursor ?? view.middle.map((at, axis) => Math.floor(at) - way[axis] * jump(axis));
    const to = from.map((at, axis) => Math.min(Math.max(at + way[axis] * jump(axis), 0), model.sizes[axis] - 1));
    this.held = to;
    view.show(to);
    this.tell(to);
    this.remember();
  }

  moveBy(down, across) {
    this.view.moveBy(down, across);
    this.remember();
    this.draw();
  }

  zoom(factor, point) {
    this.view.zoom(factor, point);
    this.remember();
    this.draw();
  }

  zoomAtCursor(factor) {
    const point = this.cursor?.map((at, axis) => this.view.pixelOf(at + 0.5, axis));
    const seen = point?.every((at, axis) => at >= 0 && at <= this.view.room[axis]);
    this.zoom(factor, seen ? point : undefined);
  }

  whole() {
    this.view.whole();
    this.remember();
    this.draw();
  }

  /** @param {Layer} layer */
  show(layer) {
    this.layer = layer;
    this.update();
  }

  /** @param {"row" | "head"} which @param {number} at */
  choose(which, at) {
    this.reader[which] = at;
    this.changed();
  }

  /** @param {number} leaf */
  toggle(leaf) {
    const { off } = this.reader;
    if (!off.delete(leaf)) off.add(leaf);
    this.changed();
  }

  // -- what follows ----------------------------------------------------------------------------------------------------

  changed() {
    this.reader.changed();
    this.layers.clear(this.layers.colours);
    this.update();
  }

  update() {
    const { reader, layer } = this;
    this.tools.press(reader, layer);
    this.panel.explain(reader, layer);
    this.tell(this.cursor);
    this.remember();
  }

  /** @param {number[] | null} pair */
  tell(pair) {
    this.cursor = pair;
    this.tried(() => this.panel.tell(this.reader, pair));
    this.draw();
  }

  remember() {
    if (!this.isAlone) return;
    clearTimeout(this.waiting);
    this.waiting = setTimeout(() => remember(linkOf(this)), 150);
  }

  draw() {
    this.root.dataset.state = "working";
    this.frame ??= requestAnimationFrame(() => {
      this.frame = undefined;
      this.paint();
    });
  }

  /** Draw what there is time for, and the rest in the next frames. */
  paint() {
    const end = performance.now() + FRAME;
    const whole = this.tried(() => this.painter.paint(this, () => performance.now() > end));
    if (!whole) this.draw();
    else if (this.reader.cells.open.length) this.counting ??= setTimeout(() => this.count());
    else this.root.dataset.state = "done";
  }

  /** Count in cells for a while, and draw them. */
  count() {
    this.counting = undefined;
    const end = performance.now() + COUNTING;
    this.tried(() => this.reader.cells.count(() => performance.now() > end));
    this.layers.recount();
    this.draw();
  }

  /** What `work` returns; where the mask cannot be evaluated (a table is read behind its end, say), its cells are drawn. */
  tried(work) {
    if (this.reader.failure !== null) return work();
    try {
      return work();
    } catch (error) {
      this.reader.fail(error.message);
      this.panel.explain(this.reader, this.layer);
      return false;
    }
  }
}

/** @param {HTMLElement} root */
async function mount(root) {
  try {
    const model = await new Model(JSON.parse(root.querySelector("script").textContent)).load();
    const explorer = new Explorer(root, model);
    explorer.start();
    root.dispatchEvent(new CustomEvent("maskloom-explorer", { detail: explorer, bubbles: true }));
  } catch (error) {
    root.append(element("p.failed", { role: "alert" }, `The mask cannot be shown: ${error.message}`));
    throw error;
  }
}

document.querySelectorAll("[data-maskloom-explorer]").forEach(mount);
