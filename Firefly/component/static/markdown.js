// A model's Markdown as DOM nodes. Every piece of its text becomes a text node, never HTML, so nothing in it can run.
"use strict";

function element(tag, text, ...children) {
  const node = document.createElement(tag);
  if (text) node.textContent = text;
  node.append(...children);
  return node;
}

// `code`, **bold** and *emphasis*; anything else stays as it was written.
function inline(text) {
  const nodes = [];
  const marks = /`([^`\n]+)`|\*\*([^*\n]+)\*\*|(?<![\w*])\*([^*\s][^*\n]*)\*(?![\w*])/g;
  let end = 0;
  for (const match of text.matchAll(marks)) {
    nodes.push(text.slice(end, match.index));
    const [, code, bold, emphasis] = match;
    nodes.push(code ? element("code", code) : bold ? element("strong", bold) : element("em", emphasis));
    end = match.index + match[0].length;
  }
  return [...nodes, text.slice(end)];
}

const LIST_ITEM = /^\s*(?:[-*+]|(\d{1,9})[.)])\s+(.*)$/;

function cells(line) {
  return line.trim().replace(/^\||\|$/g, "").split("|").map((cell) => cell.trim());
}

function row(line, tag) {
  return element("tr", "", ...cells(line).map((cell) => element(tag, "", ...inline(cell))));
}

// Takes lines from `start` while `keep` holds; returns them.
function take(lines, start, keep) {
  let end = start;
  while (end < lines.length && keep(lines[end], end)) end += 1;
  return lines.slice(start, end);
}

function startsBlock(lines, i) {
  const line = lines[i];
  return /^\s*```|^#{1,6}\s|^>/.test(line) || LIST_ITEM.test(line) || isTable(lines, i);
}

function isTable(lines, i) {
  const rule = lines[i + 1] ?? "";
  return lines[i].includes("|") && rule.includes("|") && cells(rule).every((cell) => /^:?-{2,}:?$/.test(cell));
}

// Returns [node, number of lines it took].
function block(lines, i) {
  const line = lines[i];
  if (/^\s*```/.test(line)) {
    const body = take(lines, i + 1, (l) => !/^\s*```\s*$/.test(l)); // a fence still open while the answer streams is fine
    return [element("pre", "", element("code", body.join("\n"))), body.length + 2];
  }
  if (/^#{1,6}\s/.test(line)) {
    const level = Math.min(5, 2 + line.match(/^#+/)[0].length);
    return [element(`h${level}`, "", ...inline(line.replace(/^#+\s+/, ""))), 1];
  }
  if (line.startsWith(">")) {
    const quoted = take(lines, i, (l) => l.startsWith(">"));
    return [element("blockquote", "", ...inline(quoted.map((l) => l.replace(/^>\s?/, "")).join("\n"))), quoted.length];
  }
  if (LIST_ITEM.test(line)) {
    const numbered = LIST_ITEM.exec(line)[1];
    const items = take(lines, i, (l) => LIST_ITEM.test(l) && !LIST_ITEM.exec(l)[1] === !numbered);
    const list = element(numbered ? "ol" : "ul", "", ...items.map((l) => element("li", "", ...inline(LIST_ITEM.exec(l)[2]))));
    if (numbered) list.start = Number(numbered);
    return [list, items.length];
  }
  if (isTable(lines, i)) {
    const body = take(lines, i + 2, (l) => l.includes("|"));
    return [element("table", "", row(line, "th"), ...body.map((l) => row(l, "td"))), body.length + 2];
  }
  const text = take(lines, i, (l, at) => l.trim() && (at === i || !startsBlock(lines, at)));
  return [element("p", "", ...inline(text.join("\n"))), text.length];
}

function markdown(text) {
  const lines = text.split("\n");
  const nodes = [];
  for (let i = 0; i < lines.length; ) {
    if (!lines[i].trim()) { i += 1; continue; }
    const [node, count] = block(lines, i);
    nodes.push(node);
    i += count;
  }
  return nodes;
}
