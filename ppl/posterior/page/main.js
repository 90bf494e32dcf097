"use strict";
// The state of the page, which is also its address (#q=..&answer=..&fold=..), and the keys.

const KEYS = [
  ["↑ ↓", "previous, next row"], ["← →", "fold, unfold; to the parent, the child"], ["Home End", "first, last row"],
  ["Enter", "highlight the path of a row"], ["/", "search"], ["n N", "next, previous match"], ["[ ]", "previous, next candidate"],
  ["b", "the best candidate"], ["f", "fold or unfold a row"], ["+ − 0", "zoom, fit"], ["t", "light or dark"], ["Esc", "clear search and filters"], ["?", "these keys"],
];

/** Changes the state, and all that follows from it; `show`: scroll to what was chosen. */
function set(change, show) {
  Object.assign(state, change);
  if ("fold" in change) state.toggled.clear();
  if (show) reveal();
  refresh();
  const refit = ["fold", "answer", "site", "dropped"].some((name) => name in change);
  if (refit) fit();
  if ("q" in change && visible.matches.length && !(state.node >= 0 && matching[state.node])) {
    const first = visible.matches[0];
    bringInOutline(first);
    measure();
    bringOnMap(first);
  }
  render(show);
  remember();
}

/** Unfolds what hides the chosen node, and drops filters that would. */
function reveal() {
  const end = state.path >= 0 ? data.candidates[state.path].node : state.node;
  for (let i = end < 0 ? -1 : nodes.parent[end]; i >= 0; i = nodes.parent[i]) if (folded(i)) state.toggled.set(i, false);
}

function render(show) {
  measure();
  const end = state.path >= 0 ? data.candidates[state.path].node : state.node;
  if (show && end >= 0) { bringOnMap(end); bringInOutline(end); }
  draw();
  renderOutline();
  renderAnswers();
  renderEnds();
  renderDetails();
  byId("matches").textContent = state.q ? `${count(visible.matches.length)} match${visible.matches.length === 1 ? "" : "es"}` : "";
  byId("fold").value = state.fold;
  byId("dropped").checked = state.dropped;
  if (byId("q").value !== state.q) byId("q").value = state.q;
  Object.assign(document.body.dataset, {
    nodes: size, visible: visible.rows.length, lines: visible.lines, matches: visible.matches.length,
    answer: state.answer >= 0 ? data.answers[state.answer] : "", dead: state.site >= 0 ? data.sites[state.site] : "",
    fold: state.fold, path: state.path, node: state.node >= 0 ? nodes.id[state.node] : "", lit: lit.reduce((a, b) => a + b, 0),
    drawn: placed.length, ready: "yes",
  });
}

function remember() {
  const parts = new URLSearchParams();
  if (state.q) parts.set("q", state.q);
  if (state.answer >= 0) parts.set("answer", data.answers[state.answer]);
  if (state.site >= 0) parts.set("dead", data.sites[state.site]);
  if (state.fold !== "auto") parts.set("fold", state.fold);
  if (!state.dropped) parts.set("dropped", "0");
  if (state.path !== (data.best ?? -1)) parts.set("path", state.path);
  if (state.node >= 0) parts.set("node", nodes.id[state.node]);
  if (state.theme) parts.set("theme", state.theme);
  try {
    history.replaceState(null, "", `#${parts}`);
  } catch { /* a frame without an address of its own, as in notebooks */ }
}

/** The state that an address asks for. */
function recall() {
  const asked = new URLSearchParams(location.hash.slice(1));
  const whole = (name, fallback) => (/^-?\d+$/.test(asked.get(name) || "") ? Number(asked.get(name)) : fallback);
  const fold = asked.get("fold") || "auto";
  state.q = asked.get("q") || "";
  state.answer = asked.has("answer") ? data.answers.indexOf(asked.get("answer")) : -1;
  state.site = asked.has("dead") ? data.sites.indexOf(asked.get("dead")) : -1;
  state.fold = fold === "none" || /^\d+$/.test(fold) ? fold : "auto";
  state.dropped = asked.get("dropped") !== "0";
  const chosen = state.answer >= 0 ? data.candidates.findIndex((c) => c.answer === state.answer) : data.best ?? -1;
  const candidate = whole("path", asked.has("node") || state.site >= 0 ? -1 : chosen);
  state.path = candidate < data.candidates.length && data.candidates[candidate] && data.candidates[candidate].node >= 0 ? candidate : -1;
  state.node = asked.has("node") ? nodes.id.indexOf(whole("node", -1)) : state.site >= 0 && state.path < 0 ? nodes.site.indexOf(state.site) : -1;
  state.theme = ["light", "dark"].includes(asked.get("theme")) ? asked.get("theme") : "";
  state.toggled.clear();
  paintTheme();
  foldChoices();
  reveal();
  refresh();
  fit();
  if (state.q && visible.matches.length) bringInOutline(visible.matches[0]);
  render(asked.has("path") || asked.has("node"));
}

function paintTheme() {
  const dark = state.theme ? state.theme === "dark" : matchMedia("(prefers-color-scheme: dark)").matches;
  document.documentElement.dataset.theme = dark ? "dark" : "light";
  readColours();
  renderLegend();
}

function foldChoices() {
  const names = [["auto", "as needed"], ["none", "nothing"]];
  for (let d = 1; d < Math.min(depths.length, 41); d++) names.push([String(d), `from step ${d}`]);
  if (!names.some(([value]) => value === state.fold)) names.push([state.fold, `from step ${state.fold}`]);
  byId("fold").replaceChildren(...names.map(([value, text]) => {
    const option = element("option", "", text);
    option.value = value;
    return option;
  }));
}

// -- keys and pointer -----------------------------------------------------------------------------

function move(by) {
  const end = state.node >= 0 ? state.node : state.path >= 0 ? data.candidates[state.path].node : -1;
  const at = end >= 0 && visible.row[end] >= 0 ? visible.row[end] + by : by > 0 ? 0 : visible.rows.length - 1;
  const next = visible.rows[Math.max(0, Math.min(visible.rows.length - 1, at))];
  if (next !== undefined) set({ node: next, path: -1 }, true);
}

function toggle(i, shut) {
  if (i < 0 || !children[i].length) return;
  state.toggled.set(i, shut);
  set({});
}

function step(match) { // to the next or previous match
  const list = visible.matches;
  if (!list.length) return;
  const at = list.indexOf(state.node);
  set({ node: list[(at + match + list.length) % list.length], path: -1 }, true);
}

function candidate(by) {
  const n = data.candidates.length;
  for (let k = 1, at = state.path; k <= n; k++) {
    at = (at + by + n) % n;
    if (data.candidates[at].node >= 0) { set({ path: at, node: -1 }, true); return; }
  }
}

document.addEventListener("keydown", (event) => {
  const typing = event.target.matches("input[type=search]");
  if (event.ctrlKey || event.metaKey || event.altKey) return;
  if (event.key === "Escape") {
    event.target.blur();
    set({ q: "", answer: -1, site: -1 });
    return;
  }
  if (typing) {
    if (event.key === "Enter") step(event.shiftKey ? -1 : 1);
    return;
  }
  if (event.target.matches("select") || (event.target.matches("button, input") && [" ", "Enter"].includes(event.key))) return;
  const i = state.node >= 0 ? state.node : state.path >= 0 ? data.candidates[state.path].node : -1;
  const page = Math.max(1, Math.floor(outline.clientHeight / ROW) - 1);
  const inDetails = byId("details").contains(event.target);
  const keys = {
    ArrowDown: () => move(1), ArrowUp: () => move(-1), PageDown: () => move(page), PageUp: () => move(-page), Home: () => move(-size), End: () => move(size),
    ArrowRight: () => (i >= 0 && isShut(i) ? toggle(i, false) : move(1)),
    ArrowLeft: () => (i >= 0 && children[i].length && !isShut(i) ? toggle(i, true) : i >= 0 && nodes.parent[i] >= 0 && set({ node: nodes.parent[i], path: -1 }, true)),
    Enter: () => i >= 0 && set({ node: i, path: (carried.get(i) || [-1])[0] }, true),
    f: () => toggle(i, !isShut(i)), "/": () => byId("q").focus(), n: () => step(1), N: () => step(-1), "]": () => candidate(1), "[": () => candidate(-1),
    b: () => data.best !== null && set({ path: data.best, node: -1 }, true),
    "+": () => zoom(1.4, board.clientHeight / 2), "=": () => zoom(1.4, board.clientHeight / 2), "-": () => zoom(1 / 1.4, board.clientHeight / 2), 0: () => { fit(true); render(); },
    t: () => byId("theme").click(), "?": () => byId("help").click(),
  };
  if (!(event.key in keys) || (inDetails && /^(Arrow|Page|Home|End)/.test(event.key))) return;
  event.preventDefault();
  keys[event.key]();
});

outline.addEventListener("scroll", () => requestAnimationFrame(renderOutline));
outline.addEventListener("click", (event) => {
  const row = event.target.closest(".line");
  if (!row) return;
  const i = Number(row.dataset.node);
  if (event.target.classList.contains("caret")) toggle(i, !isShut(i));
  else set({ node: i, path: (carried.get(i) || [-1])[0] }, true);
});
outline.addEventListener("dblclick", (event) => {
  const row = event.target.closest(".line");
  if (row) toggle(Number(row.dataset.node), !isShut(Number(row.dataset.node)));
});

board.addEventListener("scroll", () => requestAnimationFrame(draw));
board.addEventListener("wheel", (event) => {
  if (!event.ctrlKey && !event.shiftKey) return;
  event.preventDefault();
  zoom(event.deltaY < 0 ? 1.25 : 0.8, event.clientY - board.getBoundingClientRect().top);
}, { passive: false });
board.addEventListener("click", (event) => {
  const i = nodeAt(event);
  if (i < 0) return;
  if (folded(i) && isShut(i)) state.toggled.set(i, false);
  set({ node: i, path: (carried.get(i) || [-1])[0] }, true);
});
board.addEventListener("dblclick", (event) => { const i = nodeAt(event); toggle(i, i >= 0 && !isShut(i)); });
board.addEventListener("mousemove", (event) => {
  const i = nodeAt(event), tip = byId("tip");
  tip.hidden = i < 0;
  board.style.cursor = i < 0 ? "" : "pointer";
  if (i < 0) return;
  const text = visibly(nodes.step[i].slice(0, 600), false).trim() || (nodes.parent[i] < 0 ? "start" : "(no words)");
  tip.textContent = `${text}\n${fateOf(i)} · value ${short(nodes.value[i] ?? 0)} · log-weight ${short(nodes.lw[i])}`;
  const box = board.closest(".stage").getBoundingClientRect();
  tip.style.left = `${Math.min(event.clientX - box.left + 14, box.width - tip.offsetWidth - 8)}px`;
  tip.style.top = `${event.clientY - box.top + 18}px`;
});
board.addEventListener("mouseleave", () => { byId("tip").hidden = true; });

byId("q").addEventListener("input", () => set({ q: byId("q").value }));
byId("fold").addEventListener("change", () => set({ fold: byId("fold").value }));
byId("dropped").addEventListener("change", () => set({ dropped: byId("dropped").checked }));
byId("zoom-in").addEventListener("click", () => zoom(1.4, board.clientHeight / 2));
byId("zoom-out").addEventListener("click", () => zoom(1 / 1.4, board.clientHeight / 2));
byId("zoom-fit").addEventListener("click", () => { fit(true); render(); });
byId("theme").addEventListener("click", () => {
  state.theme = document.documentElement.dataset.theme === "dark" ? "light" : "dark";
  paintTheme();
  render();
  remember();
});
byId("help").addEventListener("click", () => {
  const keys = byId("keys");
  keys.hidden = !keys.hidden;
  byId("help").setAttribute("aria-expanded", !keys.hidden);
  keys.replaceChildren(...KEYS.map(([key, what]) => {
    const row = element("div");
    row.append(element("kbd", "", key), what);
    return row;
  }));
  resized();
});

let known = "";
function resized() {
  const now = `${board.clientWidth}x${board.clientHeight}`;
  if (now === known) return;
  known = now;
  fit();
  render();
}
new ResizeObserver(resized).observe(board);
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => { paintTheme(); render(); });
window.addEventListener("hashchange", recall);

renderFacts();
paintTheme();
renderRounds();
renderCost();
recall();
