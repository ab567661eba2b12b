// Elements made from text only: nothing here, or anywhere in this page, takes HTML from data.

const SVG = "http://www.w3.org/2000/svg";

export const find = (id) => document.getElementById(id);

export function element(tag, { text, ...attributes } = {}, ...children) {
  return fill(document.createElement(tag), text, attributes, children);
}

export function drawn(tag, { text, ...attributes } = {}, ...children) {
  return fill(document.createElementNS(SVG, tag), text, attributes, children);
}

function fill(node, text, attributes, children) {
  if (text !== undefined) node.textContent = text;
  for (const [name, value] of Object.entries(attributes)) {
    if (value !== undefined && value !== false) node.setAttribute(name, value === true ? "" : value);
  }
  node.append(...children);
  return node;
}

export function instance(templateId) {
  return find(templateId).content.firstElementChild.cloneNode(true);
}

// Setting the same text again would have a screen reader say it again.
export function say(node, text) {
  if (node.textContent !== text) node.textContent = text;
}
