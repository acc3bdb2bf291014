// Elements of the page, made without HTML text.

/**
 * @param {string} name a tag, perhaps with classes: "div.pair" @param {Record<string, any>} attributes properties, and
 * attributes with a dash in them @param {(Node | string)[]} children
 * @returns {any}
 */
function element(name, attributes = {}, ...children) {
  const [tag, ...classes] = name.split(".");
  const found = document.createElement(tag);
  if (classes.length) found.className = classes.join(" ");
  for (const [key, value] of Object.entries(attributes)) {
    if (key.includes("-") || key === "role") found.setAttribute(key, value);
    else found[key] = value;
  }
  found.append(...children);
  return found;
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
