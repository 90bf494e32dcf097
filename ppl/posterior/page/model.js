"use strict";
// The data of the page and what follows from them: the tree, what is visible, what matches.

const data = JSON.parse(document.getElementById("data").textContent);
const nodes = data.nodes;
const size = nodes.id.length;
const [KEPT, DROPPED, DEAD, FINISHED, SIMULATED] = data.fates.keys();
const AUTO_LIMIT = 400; // nodes from which on subtrees that came to nothing are folded at first

const children = Array.from({ length: size }, () => []);
const roots = [];
for (let i = 0; i < size; i++) {
  if (nodes.parent[i] < 0) roots.push(i);
  else children[nodes.parent[i]].push(i);
}

// Candidates by the node where they ended, and of every subtree: its size, the candidates in it,
// the best probability and value. Parents come before their children, so one sweep suffices.
const carried = new Map();
data.candidates.forEach((c, k) => {
  if (!carried.has(c.node)) carried.set(c.node, []);
  carried.get(c.node).push(k);
});
const below = new Int32Array(size).fill(1);
const mass = new Float64Array(size);
const promise = new Float64Array(size);
const height = new Int32Array(size);
for (let i = size - 1; i >= 0; i--) {
  for (const k of carried.get(i) || []) mass[i] += data.candidates[k].p;
  promise[i] = Math.max(promise[i], nodes.fate[i] === DEAD ? -1 : nodes.value[i] || 0);
  const p = nodes.parent[i];
  if (p < 0) continue;
  below[p] += below[i];
  mass[p] += mass[i];
  promise[p] = Math.max(promise[p], promise[i]);
  height[p] = Math.max(height[p], height[i] + 1);
}

const winner = data.best === null ? -1 : data.candidates[data.best].node;
const onWinner = new Uint8Array(size);
for (let i = winner; i >= 0; i = nodes.parent[i]) onWinner[i] = 1;

// The winner's line first, then by what came of a branch: what matters is on top.
const rank = { [KEPT]: 0, [FINISHED]: 1, [DROPPED]: 2, [SIMULATED]: 3, [DEAD]: 4 };
for (const list of children) {
  list.sort((a, b) =>
    onWinner[b] - onWinner[a] || mass[b] - mass[a] || rank[nodes.fate[a]] - rank[nodes.fate[b]] ||
    promise[b] - promise[a] || a - b);
}

// Rounds by depth, rollouts apart.
const depths = [];
for (let i = 0; i < size; i++) {
  const d = nodes.depth[i];
  while (depths.length <= d) depths.push({ kept: 0, dropped: 0, dead: 0, finished: 0, all: 0, ended: 0 });
  if (nodes.fate[i] === SIMULATED) continue;
  depths[d].all++;
  if (!children[i].length && nodes.fate[i] !== KEPT && nodes.fate[i] !== DEAD) depths[d].ended++;
  depths[d][data.fates[nodes.fate[i]]]++;
}
// Where rounds are steps (as in particle methods) notes stand at their depth.
const roundsAreSteps = data.rounds.length > 0 && data.rounds.length === depths.length - 1 &&
  data.rounds.every((note) => "ess" in note);

// A scale for values that are all tiny (densities, long products) would be of one colour: rank then.
const ranked = (() => {
  const sorted = nodes.value.filter((v, i) => v !== null && i > 0).sort((a, b) => a - b);
  if (sorted.length < 4 || sorted[Math.floor(0.95 * sorted.length)] >= 0.1) return null;
  const at = (v) => { // binary search
    let low = 0, high = sorted.length;
    while (low < high) { const m = (low + high) >> 1; if (sorted[m] < v) low = m + 1; else high = m; }
    return low / Math.max(1, sorted.length - 1);
  };
  return at;
})();

/** How good a node looked, from 0 to 1. */
function goodness(i) {
  const v = nodes.value[i];
  if (v === null) return 0;
  return ranked ? ranked(v) : Math.max(0, Math.min(1, v));
}

/** From the root to node i. */
function pathTo(i) {
  const path = [];
  for (; i >= 0; i = nodes.parent[i]) path.push(i);
  return path.reverse();
}

// -- what is visible ----------------------------------------------------------------------------

const state = {
  q: "", answer: -1, site: -1, fold: "auto", dropped: true, path: -1, node: -1, theme: "",
  toggled: new Map(), // nodes that were folded (true) or unfolded (false) by hand
};
const visible = { rows: [], row: new Int32Array(size).fill(-1), matches: [], line: new Int32Array(size), lines: 0 };
const matching = new Uint8Array(size);
const lit = new Uint8Array(size); // on the path of the highlighted candidate or node

function folded(i) {
  if (!children[i].length) return false;
  if (state.toggled.has(i)) return state.toggled.get(i);
  if (state.fold === "none") return false;
  if (state.fold === "auto") {
    return size > AUTO_LIMIT && nodes.fate[i] !== KEPT && nodes.parent[i] >= 0;
  }
  return nodes.depth[i] >= Number(state.fold);
}

/** Marks the ancestors of every node for which `wanted` holds, and themselves. */
function upwards(wanted) {
  const marked = new Uint8Array(size);
  for (let i = size - 1; i >= 0; i--) {
    if (wanted(i)) marked[i] = 1;
    if (marked[i] && nodes.parent[i] >= 0) marked[nodes.parent[i]] = 1;
  }
  return marked;
}

/** What is searched of a node: its step, and what was chosen at its sites. */
function wordsOf(i) {
  return [nodes.step[i], ...(nodes.sites[i] || []).map(([site, value]) => `${site} ${value}`)];
}

/** Recomputes everything that follows from the state. */
function refresh() {
  const q = state.q.toLowerCase();
  matching.fill(0);
  visible.matches = [];
  if (q) for (let i = 0; i < size; i++) if (wordsOf(i).some((words) => words.toLowerCase().includes(q))) matching[i] = 1;
  const opened = q ? upwards((i) => matching[i]) : null;

  let passes = null;
  if (state.answer >= 0) {
    passes = upwards((i) => nodes.result[i] === state.answer ||
      (carried.get(i) || []).some((k) => data.candidates[k].answer === state.answer));
  } else if (state.site >= 0) {
    passes = upwards((i) => nodes.site[i] === state.site);
  }

  lit.fill(0);
  const end = state.path >= 0 ? data.candidates[state.path].node : state.node;
  for (let i = end; i >= 0; i = nodes.parent[i]) lit[i] = 1;

  visible.rows = [];
  visible.row.fill(-1);
  visible.line.fill(-1);
  visible.lines = 0;
  const stack = roots.slice().reverse();
  while (stack.length) {
    const i = stack.pop();
    visible.row[i] = visible.rows.length;
    visible.rows.push(i);
    if (matching[i]) visible.matches.push(i);
    const p = nodes.parent[i];
    // A node continues the line of its parent if it is the first child that is shown.
    visible.line[i] = p >= 0 && visible.line[p] === visible.lines - 1 && !visible.taken.has(p)
      ? visible.line[p] : visible.lines++;
    if (p >= 0) visible.taken.add(p);
    if (folded(i) && !(opened && opened[i] && below[i] > 1 && holdsMatch(i, opened))) continue;
    const list = children[i];
    for (let k = list.length - 1; k >= 0; k--) {
      const c = list[k];
      if (passes && !passes[c]) continue;
      if (!state.dropped && nodes.fate[c] !== KEPT && !(passes && passes[c])) continue;
      stack.push(c);
    }
  }
  visible.taken.clear();
}
visible.taken = new Set();

/** True if a node below i matches: then a fold opens by itself. */
function holdsMatch(i, opened) {
  return children[i].some((c) => opened[c]);
}

// -- words --------------------------------------------------------------------------------------

const ODD = /[\u0000-\u001f\u007f-\u009f\u00ad\u061c\u200b-\u200f\u2028-\u202e\u2060-\u206f\ufeff\ufff9-\ufffb]|[\ud800-\udbff](?![\udc00-\udfff])|(?<![\ud800-\udbff])[\udc00-\udfff]/g;

/** Shows what cannot be seen, or would turn the line around: controls, marks of direction. */
function visibly(text, inLine) {
  return text.replace(ODD, (c) => {
    if (c === "\n") return inLine ? "⏎" : "\n";
    if (c === "\t") return inLine ? "→" : "\t";
    const code = c.charCodeAt(0);
    return code < 32 ? String.fromCharCode(0x2400 + code) : `⟨U+${code.toString(16).toUpperCase().padStart(4, "0")}⟩`;
  });
}

/** A step in one line of at most `most` characters. */
function brief(text, most) {
  const cut = text.length > most ? text.slice(0, most) : text;
  const line = visibly(cut.trim(), true);
  return text.length > most ? `${line}…` : line;
}

const share = (p) => (p === null ? "–" : p >= 0.9995 ? "100%" : p >= 0.1 ? `${(100 * p).toFixed(0)}%` : p >= 0.001 ? `${(100 * p).toFixed(1)}%` : p > 0 ? "<0.1%" : "0");
const short = (x) => (x === null || x === undefined ? "–∞" : Math.abs(x) >= 1000 || (x !== 0 && Math.abs(x) < 0.001) ? x.toExponential(1) : x.toFixed(Math.abs(x) < 10 ? 3 : 1));
const count = (n) => n.toLocaleString("en-US");

/** What became of a node, in a word or two. */
function fateOf(i) {
  const answers = (carried.get(i) || []).map((k) => data.answers[data.candidates[k].answer]);
  switch (nodes.fate[i]) {
    case DEAD: return nodes.site[i] >= 0 ? `killed at ${data.sites[nodes.site[i]]}` : "weight zero";
    case FINISHED: return "finished, not in the final set";
    case SIMULATED: return "a rollout";
    case DROPPED: return children[i].length ? "came to nothing" : "dropped";
    default: return answers.length ? `final: ${answers[0]}` : "kept";
  }
}
