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
