// Above the picture: batch row and head, what is shown, zoom, light or dark.

/** @param {Explorer} explorer */
function toolbar(explorer) {
  const { model, choices } = explorer;
  const batch = selector(model.members.batch, (at) => explorer.choose("row", at));
  const heads = selector(model.members.heads, (at) => explorer.choose("head", at));
  const named = choices.map((layer) => [layer, layer[0].toUpperCase() + layer.slice(1)]);
  const shows = segments("Show", named, (layer) => explorer.show(layer));
  const parts = [batch.whole, heads.whole, shows.group, zoomButtons(explorer), themeButton(explorer)];
  const press = (reader, layer) => {
    if (batch.select) batch.select.value = String(reader.row);
    if (heads.select) heads.select.value = String(reader.head);
    shows.press(layer);
  };
  return { whole: element("div.tools", {}, ...parts.filter(Boolean)), press };
}

/** @param {Explorer} explorer */
function zoomButtons(explorer) {
  return element(
    "div.segments",
    { role: "group", "aria-label": "Zoom" },
    button("−", "Zoom out", () => explorer.zoomAtCursor(1 / STEP)),
    button("+", "Zoom in", () => explorer.zoomAtCursor(STEP)),
    button("All", "The whole mask", () => explorer.whole()),
  );
}

/** @param {Explorer} explorer */
function themeButton(explorer) {
  const found = button("◐", "Light or dark", () => explorer.switchTheme());
  found.classList.add("theme");
  return found;
}

/** @param {string} sign @param {string} name @param {() => void} act */
function button(sign, name, act) {
  return element("button", { type: "button", title: name, "aria-label": name, onclick: act }, sign);
}

/** A row of buttons of which one is pressed. @param {string} name @param {[string, string][]} choices value and label @param {(value: string) => void} choose */
function segments(name, choices, choose) {
  const buttons = choices.map(([value, words]) => element("button", { type: "button", value, onclick: () => choose(value) }, words));
  const group = element("div.segments", { role: "group", "aria-label": name }, ...buttons);
  const press = (value) => buttons.forEach((button) => button.setAttribute("aria-pressed", String(button.value === value)));
  return { group, press };
}

/** A choice among batch rows or heads. @param {any} members @param {(at: number) => void} choose */
function selector(members, choose) {
  if (!members.varies) return { whole: null, select: null };
  const options = members.chosen.map((number, at) => element("option", { value: String(at) }, String(number)));
  const select = element("select", { onchange: () => choose(Number(select.value)), disabled: options.length < 2 }, ...options);
  const count = members.count === null ? "" : ` of ${members.count}`;
  return { whole: element("label.member", {}, members.item, select, count), select };
}
