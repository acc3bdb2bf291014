// Labels above and beside the mask: positions, or tokens.

const ROOM = [34, 62]; // above and beside the mask, for numbers
const MOST_ROOM = [170, 0.3]; // pixels for tokens, and the share of the canvas
const LETTERS = "12px system-ui, sans-serif";

class Axes {
  /** @param {Painter} painter */
  constructor(painter) {
    this.painter = painter;
    const { keys, queries } = painter.model.tokens;
    /** Pixels that labels want, above and beside the mask. */
    this.wanted = [this.roomFor(keys, ROOM[0]), this.roomFor(queries, ROOM[1])];
  }

  /** Pixels for the longest of some tokens. @param {string[] | null} tokens @param {number} least */
  roomFor(tokens, least) {
    if (!tokens) return least;
    this.painter.context.font = `600 ${LETTERS}`;
    const some = tokens.length > 4096 ? tokens.filter((_, at) => at % Math.ceil(tokens.length / 4096) === 0) : tokens;
    const longest = some.reduce((most, token) => (label(token).length > label(most).length ? token : most), "");
    const wide = this.painter.context.measureText(`${label(longest)} ${tokens.length}`).width + 16;
    return Math.round(Math.min(Math.max(wide, least), MOST_ROOM[0]));
  }

  /** The pixels that labels get, above and beside the mask. @param {number[]} sizes of the canvas */
  rooms(...sizes) {
    return sizes.map((size, axis) => Math.round(Math.max(ROOM[axis], Math.min(this.wanted[axis], MOST_ROOM[1] * size))));
  }

  /** @param {number[] | null} cursor */
  draw(cursor) {
    const { context } = this.painter;
    context.font = LETTERS;
    context.textBaseline = "middle";
    for (const axis of [0, 1]) this.axis(axis, cursor);
  }

  /** @param {number} axis 0 for queries, down the side; 1 for keys, along the top @param {number[] | null} cursor */
  axis(axis, cursor) {
    const { view, model } = this.painter;
    const tokens = axis === 0 ? model.tokens.queries : model.tokens.keys;
    const size = view.pixels[axis];
    const least = tokens && size >= 12 ? 15 : axis === 0 ? 22 : 12 + 7 * String(model.sizes[1]).length;
    const at = cursor?.[axis];
    const far = (tick) => at === undefined || Math.abs(tick - at) * size >= least;
    const places = size >= least ? ticks(view.span(axis), 1) : ticks(view.span(axis), least / size);
    for (const place of places) if (place !== at && far(place)) this.label(axis, place, this.words(tokens, place, size), false);
    if (at !== undefined) this.label(axis, at, this.words(tokens, at, LARGEST), true);
  }

  /** A token and its position, or the position alone where tokens would not all be named. */
  words(tokens, place, size) {
    return tokens && size >= 12 ? `${apart(label(tokens[place]))} ${place}` : String(place);
  }

  /** @param {number} axis @param {number} place @param {string} words @param {boolean} strong */
  label(axis, place, words, strong) {
    const { context, view, layers, model, left, top } = this.painter;
    const middle = view.pixelOf(place, axis) + view.pixels[axis] / 2;
    if (middle < -1 || middle > view.room[axis] + 1) return;
    const edge = Math.max(view.pixelOf(0, 1 - axis), 0) - 6;
    const turned = axis === 1 && model.tokens.keys !== null && words.includes(" ");
    const rooms = axis === 0 ? left - 12 : turned ? top - 12 : undefined;
    context.save();
    if (axis === 0) context.translate(left + edge, top + middle);
    else context.translate(left + middle, top + edge - (turned ? 0 : 5));
    if (turned) context.rotate(-Math.PI / 2);
    context.textAlign = axis === 0 ? "right" : turned ? "left" : "center";
    context.fillStyle = strong ? layers.colours.cursor : layers.colours.faint;
    if (strong) context.font = `600 ${LETTERS}`;
    context.fillText(words, 0, 0, rooms);
    context.restore();
  }
}
