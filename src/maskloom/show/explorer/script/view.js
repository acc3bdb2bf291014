// Which part of the mask is on the screen.

const LARGEST = 48; // pixels of an element
const NARROWEST = 4; // the longer side of the whole is drawn at most so many times as long as the other

class View {
  /** @param {[number, number]} sizes queries and keys */
  constructor(sizes) {
    this.sizes = sizes;
    this.room = [1, 1];
    this.scale = 1;
    this.middle = [sizes[0] / 2, sizes[1] / 2];
    this.stretch = [Math.max(1, sizes[1] / (NARROWEST * sizes[0])), Math.max(1, sizes[0] / (NARROWEST * sizes[1]))];
  }

  /** Pixels of an element, down and across: equal, but for masks that are much longer than wide. @returns {[number, number]} */
  get pixels() {
    return this.stretch.map((stretch) => Math.min(this.scale * stretch, Math.max(this.scale, LARGEST)));
  }

  /** The scale at which all is seen. */
  get fit() {
    return Math.min(...this.room.map((room, axis) => room / (this.sizes[axis] * this.stretch[axis])));
  }

  /** @param {number} height @param {number} width in pixels */
  resize(height, width) {
    const all = this.isWhole;
    this.room = [Math.max(1, height), Math.max(1, width)];
    if (all) this.whole();
    else this.moveTo(this.middle);
  }

  get isWhole() {
    return this.scale <= this.fit * 1.001 || this.room[0] === 1;
  }

  whole() {
    this.scale = Math.min(this.fit, LARGEST);
    this.moveTo([this.sizes[0] / 2, this.sizes[1] / 2]);
  }

  /** Bring a position to the middle, as far as the mask reaches. @param {number[]} middle */
  moveTo(middle) {
    this.middle = middle.map((at, axis) => {
      const seen = this.room[axis] / this.pixels[axis];
      const size = this.sizes[axis];
      return seen >= size ? size / 2 : Math.min(Math.max(at, seen / 2), size - seen / 2);
    });
  }

  /** @param {number} down @param {number} across in pixels */
  moveBy(down, across) {
    const [high, wide] = this.pixels;
    this.moveTo([this.middle[0] + down / high, this.middle[1] + across / wide]);
  }

  /** Zoom, and leave what is at a point there. @param {number} factor @param {[number, number]} point pixels down and across */
  zoom(factor, point = [this.room[0] / 2, this.room[1] / 2]) {
    const held = this.positionAt(point);
    this.scale = Math.min(Math.max(this.scale * factor, Math.min(this.fit, LARGEST)), LARGEST);
    const { pixels, room } = this;
    this.moveTo(held.map((at, axis) => at - (point[axis] - room[axis] / 2) / pixels[axis]));
  }

  /** @param {number[]} point pixels down and across @returns {number[]} query and key, with fractions */
  positionAt(point) {
    return point.map((at, axis) => this.middle[axis] + (at - this.room[axis] / 2) / this.pixels[axis]);
  }

  /** @param {number} position @param {number} axis @returns {number} pixels */
  pixelOf(position, axis) {
    return (position - this.middle[axis]) * this.pixels[axis] + this.room[axis] / 2;
  }

  /** The pair at a point, if there is one. @param {number[]} point @returns {number[] | null} */
  pairAt(point) {
    const pair = this.positionAt(point).map(Math.floor);
    return pair.every((at, axis) => at >= 0 && at < this.sizes[axis]) ? pair : null;
  }

  /** The positions that are seen: first, and after the last. @param {number} axis */
  span(axis) {
    const half = this.room[axis] / 2 / this.pixels[axis];
    return [
      Math.max(0, Math.floor(this.middle[axis] - half)),
      Math.min(this.sizes[axis], Math.ceil(this.middle[axis] + half)),
    ];
  }

  /** Move so that a pair is seen. @param {number[]} pair */
  show(pair) {
    const moved = pair.map((at, axis) => {
      const half = this.room[axis] / 2 / this.pixels[axis];
      const room = Math.min(half, 2);
      return Math.min(Math.max(this.middle[axis], at + 1 + room - half), at - room + half);
    });
    this.moveTo(moved);
  }
}
