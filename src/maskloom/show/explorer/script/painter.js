// Draws what is seen on the canvas.

const LEAST_OF_ELEMENTS = 0.4; // pixels of an element from which on elements are drawn, and not cells
const EDGE = 10; // right of the mask and under it

class Painter {
  /** @param {HTMLCanvasElement} canvas @param {Model} model @param {View} view @param {Layers} layers */
  constructor(canvas, model, view, layers) {
    Object.assign(this, { canvas, model, view, layers });
    this.context = canvas.getContext("2d");
    this.axes = new Axes(this);
  }

  /** Fit the canvas to its place on the page. */
  resize() {
    const { canvas, view } = this;
    const { clientWidth: width, clientHeight: height } = canvas;
    this.ratio = devicePixelRatio || 1;
    canvas.width = Math.max(1, Math.round(width * this.ratio));
    canvas.height = Math.max(1, Math.round(height * this.ratio));
    [this.top, this.left] = this.axes.rooms(height, width);
    view.resize(height - this.top - EDGE, width - this.left - EDGE);
  }

  /**
   * @param {{layer: Layer, cursor: number[] | null}} shown @param {() => boolean} enough whether time is up
   * @returns {boolean} whether all could be drawn
   */
  paint({ layer, cursor }, enough) {
    const { context, layers, canvas, ratio } = this;
    context.setTransform(ratio, 0, 0, ratio, 0, 0);
    context.fillStyle = layers.colours.ground;
    context.fillRect(0, 0, canvas.width, canvas.height);
    context.save();
    context.beginPath();
    context.rect(this.left - 1, this.top - 1, this.view.room[1] + 2, this.view.room[0] + 2);
    context.clip();
    context.translate(this.left, this.top);
    const whole = this.content(layer, enough);
    this.grid(layer);
    if (cursor) this.crosshair(cursor);
    context.restore();
    this.axes.draw(cursor);
    this.overview();
    return whole;
  }

  /** @param {Layer} layer @param {() => boolean} enough */
  content(layer, enough) {
    const { layers, model } = this;
    if (layer === "tiles") {
      const image = layers.tiles();
      const size = layers.reader.cells.size.map((cell, axis) => Math.max(cell, model.block[axis]));
      this.image(image, [0, 0], [image.height * size[0], image.width * size[1]]);
      return true;
    }
    const covers = layer === "attention";
    if (covers) {
      const { side, rows, cols } = model.scores;
      this.image(layers.scores(), [0, 0], [rows * side, cols * side]);
    }
    const elements = this.drawsElements;
    if (!elements || !covers) this.cells(covers);
    return !elements || this.elements(covers, enough);
  }

  /** The cells of the mask, or what covers hidden ones. @param {boolean} covers */
  cells(covers) {
    const { layers, view, ratio } = this;
    const { size, rows, cols } = layers.reader.cells;
    const least = Math.min(...view.pixels.map((pixels, axis) => pixels * size[axis])) * ratio;
    const together = covers ? 1 : Math.max(1, Math.ceil(1 / least));
    const image = covers ? layers.cover() : layers.mask(together);
    this.image(image, [0, 0], [image.height * size[0] * together, image.width * size[1] * together]);
  }

  get drawsElements() {
    return this.layers.reader.runs && Math.min(...this.view.pixels) >= LEAST_OF_ELEMENTS;
  }

  /** @param {boolean} covers @param {() => boolean} enough */
  elements(covers, enough) {
    const { side } = this.layers;
    const [rows, cols] = [0, 1].map((axis) => this.view.span(axis).map((at) => at / side));
    let whole = true;
    for (let row = Math.floor(rows[0]); row < rows[1]; row++) {
      for (let col = Math.floor(cols[0]); col < cols[1]; col++) {
        const chunk = this.layers.chunk(row, col, covers, enough);
        if (chunk) this.image(chunk, [row * side, col * side], [chunk.height, chunk.width]);
        whole &&= chunk !== null;
      }
    }
    return whole;
  }

  /** An image at a position, over so many elements. */
  image(image, start, lengths) {
    const { context, view, model, ratio } = this;
    const ends = start.map((at, axis) => Math.min(at + lengths[axis], model.sizes[axis]));
    const snapped = (position, axis) => Math.round(view.pixelOf(position, axis) * ratio) / ratio;
    const [y, x] = start.map(snapped);
    const [bottom, right] = ends.map(snapped);
    const parts = start.map((at, axis) => (ends[axis] - at) / lengths[axis]);
    const [high, wide] = [image.height * parts[0], image.width * parts[1]];
    context.imageSmoothingEnabled = (right - x) * ratio < wide;
    context.imageSmoothingQuality = "high";
    context.drawImage(image, 0, 0, wide, high, x, y, right - x, bottom - y);
  }

  /** Lines between elements, and between tiles. @param {Layer} layer */
  grid(layer) {
    const { view, model, layers } = this;
    if (Math.min(...view.pixels) >= 14) this.lines([1, 1], layers.colours.ground, 1);
    const far = model.block.every((size, axis) => size * view.pixels[axis] >= 12);
    if (far && (layer === "tiles" || Math.min(...view.pixels) >= 1)) this.lines(model.block, layers.colours.line, 1);
    this.frame();
  }

  /** @param {number[]} every positions from one line to the next */
  lines(every, colour, width) {
    const { context, view } = this;
    context.strokeStyle = colour;
    context.lineWidth = width;
    context.beginPath();
    for (const axis of [0, 1]) {
      const [start, stop] = view.span(axis);
      for (let at = Math.ceil(start / every[axis]) * every[axis]; at <= stop; at += every[axis]) {
        const place = Math.round(view.pixelOf(at, axis)) + 0.5;
        const other = 1 - axis;
        const ends = [0, this.model.sizes[other]].map((end) => view.pixelOf(end, other));
        context.moveTo(...(axis === 0 ? [ends[0], place] : [place, ends[0]]));
        context.lineTo(...(axis === 0 ? [ends[1], place] : [place, ends[1]]));
      }
    }
    context.stroke();
  }

  frame() {
    const { context, view, model, layers } = this;
    const [y, x] = [0, 1].map((axis) => view.pixelOf(0, axis));
    const [bottom, right] = [0, 1].map((axis) => view.pixelOf(model.sizes[axis], axis));
    context.strokeStyle = layers.colours.line;
    context.lineWidth = 1;
    context.strokeRect(Math.round(x) - 0.5, Math.round(y) - 0.5, Math.round(right - x) + 1, Math.round(bottom - y) + 1);
  }

  /** The row and the column of the cursor, and its element. @param {number[]} cursor */
  crosshair(cursor) {
    const { context, view, layers } = this;
    const [y, x] = cursor.map((at, axis) => view.pixelOf(at, axis));
    const [high, wide] = view.pixels.map((size) => Math.max(size, 1));
    const [start, stop] = [0, 1].map((end) => [0, 1].map((axis) => view.pixelOf(end * this.model.sizes[axis], axis)));
    context.globalAlpha = 0.16;
    context.fillStyle = layers.colours.cursor;
    context.fillRect(start[1], y, stop[1] - start[1], high);
    context.fillRect(x, start[0], wide, stop[0] - start[0]);
    context.globalAlpha = 1;
    context.strokeStyle = layers.colours.cursor;
    context.lineWidth = 2;
    const grow = Math.max(0, 7 - Math.min(high, wide)) / 2;
    context.strokeRect(x - grow, y - grow, wide + 2 * grow, high + 2 * grow);
  }

  /** So many cells together as have a pixel each in the overview. */
  get smallest() {
    const { rows, cols } = this.layers.reader.cells;
    return Math.max(1, Math.ceil(Math.max(rows, cols) / (96 * this.ratio)));
  }

  /** The whole, small, with what is seen, when that is a part. */
  overview() {
    const { context, view, layers, model } = this;
    if (view.isWhole) return;
    const [sizes, stretch] = [model.sizes, view.stretch];
    const scale = Math.min(96 / (sizes[0] * stretch[0]), 96 / (sizes[1] * stretch[1]));
    const [high, wide] = sizes.map((size, axis) => Math.max(size * stretch[axis] * scale, 4));
    const [y, x] = [this.top + view.room[0] - high - 12, this.left + view.room[1] - wide - 12];
    context.fillStyle = layers.colours.ground;
    context.fillRect(x - 5, y - 5, wide + 10, high + 10);
    context.imageSmoothingEnabled = true;
    context.drawImage(layers.mask(this.smallest), x, y, wide, high);
    const [top, left] = [0, 1].map((axis) => view.span(axis)[0] / sizes[axis]);
    const [tall, long] = [0, 1].map((axis) => (view.span(axis)[1] - view.span(axis)[0]) / sizes[axis]);
    context.strokeStyle = layers.colours.line;
    context.lineWidth = 1;
    context.strokeRect(x - 4.5, y - 4.5, wide + 9, high + 9);
    context.strokeStyle = layers.colours.cursor;
    context.lineWidth = 2;
    context.strokeRect(x + left * wide - 1, y + top * high - 1, Math.max(4, long * wide) + 2, Math.max(4, tall * high) + 2);
  }
}
