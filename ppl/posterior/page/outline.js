"use strict";
// The outline: the same tree in words, a row a node; only the rows in sight are elements.

const ROW = 24, SPARE = 8, DEEPEST = 20;
const outline = document.getElementById("outline");
const lines = document.getElementById("lines");

function element(tag, className, text) {
  const made = document.createElement(tag);
  if (className) made.className = className;
  if (text !== undefined) made.textContent = text;
  return made;
}

/** Text with the searched words marked; text nodes only. */
function marked(parent, text) {
  const q = state.q && visibly(state.q, true).toLowerCase();
  const lower = text.toLowerCase();
  if (!q || lower.length !== text.length) { parent.textContent = text; return; }
  let from = 0;
  for (let at = lower.indexOf(q); at >= 0; at = lower.indexOf(q, from)) {
    parent.append(text.slice(from, at), element("mark", "", text.slice(at, at + q.length)));
    from = at + q.length;
  }
  parent.append(text.slice(from));
}

function lineOf(i) {
  const fate = nodes.fate[i];
  const row = element("div", "line");
  row.id = `n${nodes.id[i]}`;
  row.dataset.node = i;
  row.style.top = `${visible.row[i] * ROW}px`;
  row.setAttribute("role", "treeitem");
  row.setAttribute("aria-level", nodes.depth[i] + 1);
  row.setAttribute("aria-selected", i === state.node);
  if (children[i].length) row.setAttribute("aria-expanded", !isShut(i));
  if (fate === DROPPED || fate === SIMULATED || fate === DEAD) row.classList.add("out");
  if (fate === DEAD) row.classList.add("dead");
  if (lit[i]) row.classList.add("lit");
  if (i === state.node) row.classList.add("here");
  const rails = element("span", "rails");
  rails.style.width = `${14 * Math.min(nodes.depth[i], DEEPEST) + 6}px`;
  const caret = element("span", "caret", children[i].length ? (isShut(i) ? "▶" : "▼") : "");
  const dot = element("span", fate === DEAD ? "dot cross" : nodes.finished[i] ? "dot ring" : "dot", fate === DEAD ? "✕" : "");
  dot.style.background = nodes.parent[i] < 0 ? ink.ink : colourOf(goodness(i));
  const step = element("span", "step");
  const root = nodes.parent[i] < 0 && !nodes.step[i];
  if (root) step.textContent = "start";
  else marked(step, brief(nodes.step[i], 300) || "(no words)");
  const note = element("span", "note");
  const mine = carried.get(i);
  if (mine) {
    note.append(`${i === winner ? "★ " : ""}`, element("b", "", brief(data.answers[data.candidates[mine[0]].answer], 40)), `${mine.length > 1 ? ` ×${mine.length}` : ""}  ${share(mass[i])}`);
  } else if (isShut(i)) note.textContent = `${count(below[i] - 1)} below · ${fateOf(i)}`;
  else if (fate !== KEPT) note.textContent = fateOf(i);
  const value = element("span", "figure", root ? "" : short(nodes.value[i] ?? 0));
  value.title = "verifier's value";
  const weight = element("span", "figure", root ? "" : short(nodes.lw[i]));
  weight.title = "log-weight";
  row.append(rails, caret, dot, step, note, value, weight);
  row.setAttribute("aria-label", `${nodes.depth[i]}: ${step.textContent}; value ${value.textContent || "none"}; ${fateOf(i)}`);
  return row;
}

/** True if a node's children are not shown right now. */
function isShut(i) {
  const next = visible.rows[visible.row[i] + 1];
  return children[i].length > 0 && !(next !== undefined && nodes.parent[next] === i);
}

function renderOutline() {
  lines.style.height = `${visible.rows.length * ROW}px`;
  const first = Math.max(0, Math.floor(outline.scrollTop / ROW) - SPARE);
  const last = Math.min(visible.rows.length, Math.ceil((outline.scrollTop + outline.clientHeight) / ROW) + SPARE);
  lines.replaceChildren(...visible.rows.slice(first, last).map(lineOf));
  const here = state.node >= 0 && document.getElementById(`n${nodes.id[state.node]}`);
  if (here) outline.setAttribute("aria-activedescendant", here.id);
  else outline.removeAttribute("aria-activedescendant");
  document.body.dataset.elements = lines.childElementCount;
}

function bringInOutline(i) {
  const at = visible.row[i] * ROW;
  if (visible.row[i] < 0) return;
  if (at < outline.scrollTop) outline.scrollTop = at - ROW;
  else if (at > outline.scrollTop + outline.clientHeight - 2 * ROW) outline.scrollTop = at - outline.clientHeight / 2;
}
