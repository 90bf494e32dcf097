"use strict";
// The map: checkpoints to the right, a line for every branch. A line's width is the posterior
// probability that went through it, a dot's colour the verifier's value. Only what is in sight is
// drawn.

const TOP = 64, LEFT = 26, RIGHT = 190, BELOW = 16;
const READABLE = 16, GLANCE = 3.5; // pixels a line: words fit; the shape is still to be seen
const board = document.getElementById("map");
const canvas = document.getElementById("canvas");
const extent = document.getElementById("extent");
const view = { pitch: 24, column: 120 };
let placed = []; // nodes that were drawn, for the pointer

const xOf = (i) => LEFT + nodes.depth[i] * view.column;
const yOf = (i) => TOP + (visible.line[i] + 0.7) * view.pitch;

/** Chooses the scale at which all that is visible fits; unless `whole`, not so small that little is
 * seen: then it is to be read, and the strip at the side shows the whole. */
function fit(whole) {
  const deep = Math.max(1, depths.length - 1);
  view.column = Math.max(9, Math.min(210, (board.clientWidth - LEFT - RIGHT) / deep));
  const pitch = (board.clientHeight - TOP - BELOW) / Math.max(1, visible.lines + 0.4);
  view.pitch = whole ? Math.max(0.3, Math.min(26, pitch)) : pitch < GLANCE ? READABLE : Math.min(26, pitch);
  board.scrollTo(0, 0);
}

function zoom(factor, y) {
  const at = (board.scrollTop + y - TOP) / view.pitch;
  view.pitch = Math.max(0.5, Math.min(60, view.pitch * factor));
  view.column = Math.max(9, Math.min(420, view.column * Math.sqrt(factor)));
  measure();
  board.scrollTop = at * view.pitch + TOP - y;
  draw();
}

function measure() {
  const deep = Math.max(1, depths.length - 1);
  extent.style.width = `${LEFT + deep * view.column + RIGHT}px`;
  extent.style.height = `${TOP + (visible.lines + 0.4) * view.pitch + BELOW}px`;
}

function draw() {
  const ratio = window.devicePixelRatio || 1;
  const wide = board.clientWidth, high = board.clientHeight;
  if (canvas.width !== Math.round(wide * ratio) || canvas.height !== Math.round(high * ratio)) {
    canvas.width = Math.round(wide * ratio);
    canvas.height = Math.round(high * ratio);
    canvas.style.width = `${wide}px`;
    canvas.style.height = `${high}px`;
  }
  const pen = canvas.getContext("2d");
  const left = board.scrollLeft, top = board.scrollTop;
  pen.setTransform(ratio, 0, 0, ratio, 0, 0);
  pen.clearRect(0, 0, wide, high);
  pen.translate(-left, -top);
  pen.lineCap = "round";
  pen.lineJoin = "round";
  pen.textBaseline = "alphabetic";
  const seen = { left, top, right: left + wide, bottom: top + high };
  columns(pen, seen);
  placed = visible.rows.filter((i) => {
    const p = nodes.parent[i], y = yOf(i), y0 = p < 0 ? y : yOf(p), x = xOf(i);
    return Math.max(y, y0) >= top - 30 && Math.min(y, y0) <= seen.bottom + 30 &&
      x >= left - 220 && x - view.column <= seen.right;
  });
  edges(pen);
  dots(pen, seen);
  labels(pen, seen);
  heads(pen, seen);
  drawStrip();
}

/** Light bands under every other step, and a dashed line where particles were resampled. */
function columns(pen, seen) {
  for (let d = 1; d < depths.length; d += 2) {
    pen.fillStyle = document.documentElement.dataset.theme === "dark" ? "rgba(255,255,255,.022)" : "rgba(29,37,48,.025)";
    pen.fillRect(LEFT + (d - 0.5) * view.column, seen.top, view.column, seen.bottom - seen.top);
  }
  if (!roundsAreSteps) return;
  pen.setLineDash([3, 4]);
  pen.strokeStyle = ink.lit;
  pen.lineWidth = 1;
  pen.beginPath();
  data.rounds.forEach((note, t) => {
    if (!note.resampled) return;
    const x = Math.round(LEFT + (t + 1) * view.column) + 0.5;
    pen.moveTo(x, seen.top);
    pen.lineTo(x, seen.bottom);
  });
  pen.globalAlpha = 0.45;
  pen.stroke();
  pen.globalAlpha = 1;
  pen.setLineDash([]);
}

function edges(pen) {
  const strokes = [[], [], []]; // came to nothing, kept, highlighted
  for (const i of placed) {
    if (nodes.parent[i] < 0) continue;
    strokes[lit[i] ? 2 : nodes.fate[i] === KEPT ? 1 : 0].push(i);
  }
  pen.strokeStyle = ink.pale;
  pen.lineWidth = view.pitch < 4 ? 0.7 : 1.1;
  pen.beginPath();
  for (const i of strokes[0]) edge(pen, i);
  pen.stroke();
  for (const kind of [1, 2]) {
    pen.strokeStyle = kind === 2 ? ink.lit : ink.kept;
    for (const i of strokes[kind]) {
      const flow = Math.sqrt(mass[i]) * Math.min(8, view.pitch * 0.28);
      pen.lineWidth = Math.max(kind === 2 ? 2.4 : view.pitch < 4 ? 0.8 : 1.2, flow);
      pen.beginPath();
      edge(pen, i);
      pen.stroke();
    }
  }
}

function edge(pen, i) {
  const p = nodes.parent[i];
  branch(pen, xOf(p), yOf(p), xOf(i), yOf(i));
}

function dots(pen, seen) {
  const r = Math.max(1.1, Math.min(5, view.pitch * 0.24));
  const dead = [];
  for (const i of placed) {
    const x = xOf(i), y = yOf(i);
    if (y < seen.top || y > seen.bottom) continue;
    if (nodes.fate[i] === DEAD) { dead.push(i); continue; }
    const out = nodes.fate[i] === DROPPED || nodes.fate[i] === SIMULATED;
    if (view.pitch < 4 && out && !lit[i]) continue;
    pen.globalAlpha = out && !lit[i] ? 0.55 : 1;
    pen.fillStyle = nodes.parent[i] < 0 ? ink.ink : colourOf(goodness(i));
    disc(pen, x, y, lit[i] ? r + 1 : out ? r * 0.8 : r);
    pen.fill();
    pen.globalAlpha = 1;
    if (nodes.finished[i] && view.pitch >= 8) {
      pen.lineWidth = 1.4;
      pen.strokeStyle = ink.ink;
      disc(pen, x, y, r + 2.6);
      pen.stroke();
    }
    if (folded(i) && visible.row[i] >= 0 && view.pitch >= 6) {
      pen.fillStyle = ink.soft;
      pen.font = `10px ${ink.sans}`;
      pen.fillText(`▸ ${count(below[i] - 1)}`, x + r + 5, y + 3.5);
    }
    if (i === state.node) {
      pen.lineWidth = 2;
      pen.strokeStyle = ink.lit;
      disc(pen, x, y, r + 5);
      pen.stroke();
    }
  }
  pen.strokeStyle = ink.dead;
  pen.lineWidth = Math.max(1.4, Math.min(2.2, view.pitch / 8));
  pen.beginPath();
  for (const i of dead) cross(pen, xOf(i), yOf(i), Math.max(2, Math.min(4.2, view.pitch * 0.24)));
  pen.stroke();
}

function labels(pen, seen) {
  const all = view.pitch >= 12 && view.column >= 44;
  const some = view.column >= 44;
  for (const i of placed) {
    const p = nodes.parent[i], x = xOf(i), y = yOf(i);
    if (y < seen.top + TOP - 14 || y > seen.bottom + 4) continue;
    const strong = lit[i];
    if (p >= 0 && (all || (some && strong) || (some && matching[i]))) {
      const bent = visible.line[p] !== visible.line[i];
      const x0 = xOf(p) + (bent ? Math.min(26, view.column * 0.45) : 11);
      const out = nodes.fate[i] !== KEPT;
      pen.font = `${strong ? "600 " : ""}${view.pitch >= 16 ? 11.5 : 10}px ${ink.mono}`;
      const words = brief(nodes.step[i], 80);
      const room = x - x0 - (nodes.finished[i] ? 11 : 9);
      if (matching[i]) {
        pen.fillStyle = ink.mark;
        pen.fillRect(x0 - 2, y - 13, Math.min(room, pen.measureText(words).width) + 4, 12);
      }
      write(pen, words, x0, y - 4.5, room, strong ? ink.lit : out ? ink.faint : ink.ink, !all || strong);
    }
    if (nodes.fate[i] === DEAD && view.pitch >= 9) {
      pen.font = `11px ${ink.mono}`;
      write(pen, nodes.site[i] >= 0 ? data.sites[nodes.site[i]] : "weight zero", x + 10, y + 4, 150, ink.dead, true);
    } else if (nodes.finished[i] || (carried.has(i) && !children[i].length)) {
      ending(pen, i, x, y);
    }
  }
}

/** The answer at the end of a line: its words, and a bar as long as its probability. */
function ending(pen, i, x, y) {
  const best = i === winner;
  if (view.pitch < 10 && !(best || lit[i])) return;
  const mine = carried.get(i) || [];
  const answer = mine.length ? data.candidates[mine[0]].answer : nodes.result[i];
  if (answer < 0) return;
  const strong = best || lit[i];
  pen.font = `${strong ? "700" : "400"} ${strong ? 13 : view.pitch >= 16 ? 11.5 : 10}px ${ink.mono}`;
  const text = `${best ? "★ " : ""}${brief(data.answers[answer], 40)}${mine.length > 1 ? ` ×${mine.length}` : ""}`;
  write(pen, text, x + 12, y + 4, 104, strong ? ink.lit : mine.length ? ink.ink : ink.faint, true);
  if (!mine.length) return;
  pen.fillStyle = strong ? ink.lit : ink.kept;
  pen.fillRect(x + 120, y - 4, Math.max(1, 30 * mass[i]), 8);
  pen.font = `10.5px ${ink.sans}`;
  pen.fillStyle = ink.soft;
  pen.fillText(share(mass[i]), x + 124 + Math.max(1, 30 * mass[i]), y + 4);
}

/** The strip above: per step how many particles there were, ended there (dropped), died there. The
 * bar: those on the way to the final set, those that came to nothing, the dead. */
function heads(pen, seen) {
  pen.fillStyle = ink.panel;
  pen.fillRect(seen.left, seen.top, seen.right - seen.left, TOP - 12);
  pen.fillStyle = ink.rule;
  pen.fillRect(seen.left, seen.top + TOP - 12, seen.right - seen.left, 1);
  const most = Math.max(...depths.map((d) => d.all), 1);
  const y = seen.top;
  for (let d = 1; d < depths.length; d++) {
    const x0 = LEFT + (d - 1) * view.column + 11, room = view.column - 20;
    if (x0 > seen.right || x0 + room < seen.left || room < 3) continue;
    const c = depths[d], unit = room / most;
    let x = x0;
    for (const [n, colour] of [[c.kept, ink.kept], [c.finished, ink.soft], [c.dropped, ink.pale], [c.dead, ink.dead]]) {
      pen.fillStyle = colour;
      pen.fillRect(x, y + 24, n * unit, 7);
      x += n * unit;
    }
    if (room < 34) continue;
    pen.font = `11px ${ink.sans}`;
    write(pen, `step ${d}`, x0, y + 17, room, ink.soft, false);
    const parts = [[`${c.all}`, ink.ink], c.ended ? [`−${c.ended}`, ink.soft] : null, c.dead ? [`✕${c.dead}`, ink.dead] : null];
    let at = x0;
    for (const part of parts) {
      if (!part || at + pen.measureText(part[0]).width > x0 + room) continue;
      pen.fillStyle = part[1];
      pen.fillText(part[0], at, y + 45);
      at += pen.measureText(part[0]).width + 7;
    }
    const note = roundsAreSteps ? data.rounds[d - 1] : null;
    if (note && note.resampled && room > 40) {
      pen.font = `600 11px ${ink.sans}`;
      pen.fillStyle = ink.lit;
      const words = room > 118 ? "↻ resampled" : "↻";
      pen.fillText(words, x0 + room - pen.measureText(words).width + 4, y + 17);
    }
  }
}

/** The node under the pointer: its dot, or the line and words that lead to it; -1 if none. */
function nodeAt(event) {
  const box = board.getBoundingClientRect();
  const x = event.clientX - box.left + board.scrollLeft, y = event.clientY - box.top + board.scrollTop;
  if (event.clientY - box.top < TOP - 12) return -1;
  let best = -1, least = Math.max(6, view.pitch * 0.7);
  for (const i of placed) {
    const xi = xOf(i), dy = Math.abs(y - yOf(i) + (x < xi - 8 ? 5 : 0));
    const dx = x > xi + (carried.has(i) ? 160 : 9) ? x - xi - 9 : x < xi - view.column + 12 ? xi - view.column + 12 - x : 0;
    const distance = dy + dx;
    if (distance < least) { least = distance; best = i; }
  }
  return best;
}

/** Scrolls the map so that a node is in sight. */
function bringOnMap(i) {
  if (visible.row[i] < 0) return;
  const x = xOf(i), y = yOf(i);
  if (y < board.scrollTop + TOP || y > board.scrollTop + board.clientHeight - 20) board.scrollTop = y - board.clientHeight / 2;
  if (x - view.column < board.scrollLeft || x > board.scrollLeft + board.clientWidth - 60) board.scrollLeft = x - board.clientWidth / 2;
}

// -- the whole at the side ------------------------------------------------------------------------

const strip = document.getElementById("strip");
let stripOf = ""; // what the strip's picture shows, so that scrolling does not draw it anew
const stripPicture = document.createElement("canvas");

/** All of the tree in a narrow strip, where the map shows only a part of it. */
function drawStrip() {
  const high = board.clientHeight, wide = 84, full = board.scrollHeight;
  strip.hidden = full < 1.3 * high;
  if (strip.hidden) return;
  const ratio = window.devicePixelRatio || 1;
  const shows = [high, ratio, visible.rows.length, visible.lines, state.path, state.node, state.q, state.answer, state.site, document.documentElement.dataset.theme].join();
  if (shows !== stripOf) {
    stripOf = shows;
    strip.style.height = `${high}px`;
    strip.width = stripPicture.width = wide * ratio;
    strip.height = stripPicture.height = high * ratio;
    const pen = stripPicture.getContext("2d");
    pen.setTransform(ratio, 0, 0, ratio, 0, 0);
    const unit = (high - 8) / Math.max(1, visible.lines), column = (wide - 16) / Math.max(1, depths.length - 1);
    const place = (i) => [8 + nodes.depth[i] * column, 4 + (visible.line[i] + 0.5) * unit];
    const marks = (kind, colour, thick, mark) => {
      pen.fillStyle = colour;
      for (const i of visible.rows) if (nodes.parent[i] >= 0 && kind(i)) mark(...place(i), thick);
    };
    const bar = (x, y, thick) => pen.fillRect(x - column, y - thick / 2, column, thick);
    const spot = (x, y, thick) => pen.fillRect(x - thick / 2 - 1, y - thick / 2, thick, thick);
    const line = Math.max(0.5, Math.min(2, unit * 0.7));
    marks((i) => nodes.fate[i] !== KEPT, ink.pale, line, bar);
    marks((i) => nodes.fate[i] === KEPT, ink.kept, line, bar);
    marks((i) => nodes.fate[i] === DEAD, ink.dead, 3, spot);
    marks((i) => matching[i], ink.good, 3, spot);
    marks((i) => lit[i], ink.lit, 2.5, bar);
  }
  const pen = strip.getContext("2d");
  pen.setTransform(1, 0, 0, 1, 0, 0);
  pen.clearRect(0, 0, strip.width, strip.height);
  pen.drawImage(stripPicture, 0, 0);
  pen.setTransform(ratio, 0, 0, ratio, 0, 0);
  pen.strokeStyle = ink.lit;
  pen.globalAlpha = 0.9;
  pen.strokeRect(1, 1 + (board.scrollTop / full) * (high - 2), wide - 2, Math.max(6, (high / full) * (high - 2)));
  pen.globalAlpha = 0.08;
  pen.fillStyle = ink.lit;
  pen.fillRect(1, 1 + (board.scrollTop / full) * (high - 2), wide - 2, Math.max(6, (high / full) * (high - 2)));
  pen.globalAlpha = 1;
}

strip.addEventListener("pointermove", (event) => { if (event.buttons) stripTo(event); });
strip.addEventListener("pointerdown", stripTo);
function stripTo(event) {
  board.scrollTop = (event.offsetY / strip.clientHeight) * board.scrollHeight - board.clientHeight / 2;
}
