// The place that a link leads to, in the address after "#".

/** @param {Explorer} explorer @returns {string} */
function linkOf({ view, reader, layer, held }) {
  const { batch, heads } = reader.model.members;
  const parts = new URLSearchParams();
  if (batch.varies) parts.set("b", String(batch.chosen[reader.row]));
  if (heads.varies) parts.set("h", String(heads.chosen[reader.head]));
  if (!view.isWhole) {
    parts.set("q", view.middle[0].toFixed(2));
    parts.set("k", view.middle[1].toFixed(2));
    parts.set("z", String(Number(view.scale.toPrecision(5))));
  }
  if (reader.off.size) parts.set("off", [...reader.off].sort((a, b) => a - b).join("."));
  if (layer !== "mask") parts.set("layer", layer);
  if (held) parts.set("at", held.join("."));
  return parts.toString();
}

/** Go where a link says; what it does not say, or says wrongly, stays as it is at first. @param {Explorer} explorer @param {string} text */
function follow(explorer, text) {
  const { view, reader } = explorer;
  const { model } = reader;
  const parts = new URLSearchParams(text);
  const number = (name) => (parts.has(name) && Number.isFinite(Number(parts.get(name))) ? Number(parts.get(name)) : null);
  const list = (name) => (parts.get(name) ?? "").split(/[.,]/).filter(Boolean).map(Number);
  reader.row = Math.max(0, model.members.batch.chosen.indexOf(number("b") ?? 0));
  reader.head = Math.max(0, model.members.heads.chosen.indexOf(number("h") ?? 0));
  reader.off = new Set(list("off").filter((leaf) => leaf in model.operands));
  reader.changed();
  explorer.layer = explorer.choices.includes(parts.get("layer")) ? parts.get("layer") : "mask";
  const at = list("at");
  const exists = at.length === 2 && at.every((place, axis) => Number.isInteger(place) && place >= 0 && place < model.sizes[axis]);
  explorer.held = exists ? at : null;
  explorer.cursor = explorer.held;
  view.whole();
  if (number("z") !== null) {
    view.zoom(number("z") / view.scale);
    view.moveTo([number("q") ?? view.middle[0], number("k") ?? view.middle[1]]);
  }
}

/** Put the link into the address, where the page has one. @param {string} text */
function remember(text) {
  try {
    history.replaceState(null, "", text ? `#${text}` : location.pathname + location.search);
  } catch {
    // a frame without an address
  }
}
