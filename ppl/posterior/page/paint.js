"use strict";
// Colours and pens of the map.

let ink = {}; // the page's colours, read from the style sheet whenever the theme changes

function readColours() {
  const style = getComputedStyle(document.documentElement);
  for (const name of ["paper", "panel", "ink", "soft", "faint", "rule", "lit", "lit-soft", "dead", "good", "mark", "kept", "pale", "mono", "sans"]) {
    ink[name] = style.getPropertyValue(`--${name}`).trim();
  }
}

// From poor to good: told apart also by those who do not see red and green as two.
const SCALE = {
  light: [[217, 98, 43], [230, 194, 92], [18, 133, 122]],
  dark: [[240, 138, 82], [232, 207, 124], [63, 192, 174]],
};

/** The colour of a goodness from 0 to 1. */
function colourOf(x) {
  const scale = SCALE[document.documentElement.dataset.theme === "dark" ? "dark" : "light"];
  const at = Math.max(0, Math.min(1, x)) * 2;
  const k = Math.min(1, Math.floor(at));
  const mix = scale[k].map((c, j) => Math.round(c + (scale[k + 1][j] - c) * (at - k)));
  return `rgb(${mix.join(",")})`;
}

/** The path of a branch: away from the parent's line, then along the child's. */
function branch(pen, x0, y0, x1, y1) {
  pen.moveTo(x0, y0);
  if (y0 === y1) { pen.lineTo(x1, y1); return; }
  const bend = Math.min(26, (x1 - x0) * 0.45);
  pen.bezierCurveTo(x0 + bend * 0.75, y0, x0 + bend * 0.25, y1, x0 + bend, y1);
  pen.lineTo(x1, y1);
}

function cross(pen, x, y, r) {
  pen.moveTo(x - r, y - r); pen.lineTo(x + r, y + r);
  pen.moveTo(x + r, y - r); pen.lineTo(x - r, y + r);
}

function disc(pen, x, y, r) {
  pen.beginPath();
  pen.arc(x, y, r, 0, 2 * Math.PI);
}

/** Writes text, cut to a width, with a halo of the ground so that lines do not run through it. */
function write(pen, text, x, y, room, colour, halo) {
  let shown = text;
  if (room < 12) return;
  if (pen.measureText(shown).width > room) {
    let low = 0, high = shown.length;
    while (low < high) {
      const m = (low + high + 1) >> 1;
      if (pen.measureText(`${shown.slice(0, m)}…`).width <= room) low = m; else high = m - 1;
    }
    if (!low) return;
    shown = `${shown.slice(0, low)}…`;
  }
  if (halo) {
    pen.lineWidth = 3.5;
    pen.strokeStyle = ink.panel;
    pen.strokeText(shown, x, y);
  }
  pen.fillStyle = colour;
  pen.fillText(shown, x, y);
}
