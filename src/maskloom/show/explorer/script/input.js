// Pointer, wheel and keyboard.

const ARROWS = { ArrowUp: [-1, 0], ArrowDown: [1, 0], ArrowLeft: [0, -1], ArrowRight: [0, 1] };
const STEP = 1.5; // of a key that zooms
const STILL = 4; // pixels that a click may move

/** @param {Explorer} explorer */
function listen(explorer) {
  const { canvas } = explorer;
  const pointers = new Map();
  let moved = 0;
  const place = (event) => explorer.pointIn(event);
  canvas.addEventListener("wheel", (event) => onWheel(explorer, event), { passive: false });
  canvas.addEventListener("keydown", (event) => onKey(explorer, event));
  canvas.addEventListener("dblclick", (event) => explorer.zoom(2, place(event)));
  canvas.addEventListener("pointerdown", (event) => {
    try {
      canvas.setPointerCapture(event.pointerId);
    } catch {
      // a pointer that is gone already
    }
    if (!pointers.size) moved = 0;
    pointers.set(event.pointerId, place(event));
  });
  canvas.addEventListener("pointermove", (event) => {
    const before = pointers.get(event.pointerId);
    if (!before) return explorer.point(place(event));
    const after = place(event);
    moved += Math.hypot(after[0] - before[0], after[1] - before[1]);
    if (pointers.size === 1) explorer.moveBy(before[0] - after[0], before[1] - after[1]);
    else if (pointers.size === 2) pinch(explorer, pointers, event.pointerId, after);
    return pointers.set(event.pointerId, after);
  });
  const up = (event) => {
    if (pointers.delete(event.pointerId) && !pointers.size && event.type === "pointerup" && moved < STILL) {
      explorer.hold(place(event));
    }
  };
  for (const name of ["pointerup", "pointercancel"]) canvas.addEventListener(name, up);
  canvas.addEventListener("pointerleave", () => explorer.point(null));
}

/** Two pointers: their distance zooms, their middle moves. */
function pinch(explorer, pointers, moving, after) {
  const before = pointers.get(moving);
  const [, still] = [...pointers].find(([id]) => id !== moving);
  const far = (point) => Math.max(1, Math.hypot(point[0] - still[0], point[1] - still[1]));
  explorer.moveBy((before[0] - after[0]) / 2, (before[1] - after[1]) / 2);
  explorer.zoom(far(after) / far(before), [(after[0] + still[0]) / 2, (after[1] + still[1]) / 2]);
}

/** Among other things on a page the wheel scrolls the page, until the picture has been chosen. @param {Explorer} explorer @param {WheelEvent} event */
function onWheel(explorer, event) {
  if (!explorer.isAlone && document.activeElement !== explorer.canvas && !event.ctrlKey) return;
  event.preventDefault();
  const lines = event.deltaMode === 1 ? 16 : event.deltaMode === 2 ? 400 : 1;
  const [down, across] = [event.deltaY * lines, event.deltaX * lines];
  if (event.shiftKey) explorer.moveBy(0, down || across);
  else if (Math.abs(across) > Math.abs(down)) explorer.moveBy(0, across);
  else explorer.zoom(2 ** (-Math.max(-240, Math.min(240, down)) / (event.ctrlKey ? 60 : 240)), explorer.pointIn(event));
}

/** @param {Explorer} explorer @param {KeyboardEvent} event */
function onKey(explorer, event) {
  if (event.ctrlKey || event.metaKey || event.altKey) return;
  const arrow = ARROWS[event.key];
  if (arrow && event.shiftKey) explorer.moveBy(...arrow.map((way, axis) => (way * explorer.view.room[axis]) / 5));
  else if (arrow) explorer.step(arrow);
  else if (event.key === "+" || event.key === "=") explorer.zoomAtCursor(STEP);
  else if (event.key === "-" || event.key === "_") explorer.zoomAtCursor(1 / STEP);
  else if (event.key === "0" || event.key === "Home") explorer.whole();
  else if (event.key === "Escape") explorer.release();
  else return;
  event.preventDefault();
}
