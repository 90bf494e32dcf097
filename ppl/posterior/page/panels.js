"use strict";
// What stands around the map: facts, answers, ends, rounds, cost, and the details of a path.

const byId = (id) => document.getElementById(id);
const LONG = 4000; // characters of a step that are shown before one asks for all

function button(className, action) {
  const made = element("button", className);
  made.type = "button";
  made.addEventListener("click", action);
  return made;
}

function renderFacts() {
  byId("searcher").textContent = visibly(data.searcher || "Posterior", true);
  byId("searcher").title = data.searcher;
  byId("prompt").textContent = visibly(data.prompt, false);
  byId("prompt").hidden = !data.prompt;
  byId("prompt").addEventListener("click", () => byId("prompt").classList.toggle("whole"));
  const facts = [["best", data.best === null ? "none" : brief(data.answers[data.candidates[data.best].answer], 60), "win"]];
  if (data.vote !== null) facts.push(["vote", brief(data.vote, 60), ""]);
  if (data.logEvidence !== null) facts.push(["log evidence", short(data.logEvidence), ""]);
  facts.push(["eff. sample size", `${short(data.ess)} / ${data.candidates.length}`, ""]);
  facts.push(["tokens", count(data.cost.lm_tokens), ""], ["seconds", short(data.cost.seconds), ""]);
  if (data.stopped !== "done") facts.push(["stopped by", data.stopped, ""]);
  byId("facts").replaceChildren(...facts.map(([name, value, kind]) => {
    const pair = element("div", kind);
    const shown = element("dd", "", value);
    shown.title = value;
    pair.append(element("dt", "", name), shown);
    return pair;
  }));
}

/** Answers by falling probability: [answer, probability, candidates]. */
const ballot = (() => {
  const found = new Map();
  data.candidates.forEach((c, k) => {
    if (!found.has(c.answer)) found.set(c.answer, [c.answer, 0, []]);
    found.get(c.answer)[1] += c.p;
    found.get(c.answer)[2].push(k);
  });
  const rows = [...found.values()];
  for (const row of rows) row[2].sort((a, b) => data.candidates[b].p - data.candidates[a].p || a - b);
  const answered = (row) => data.candidates[row[2][0]].answered;
  return rows.sort((a, b) => answered(b) - answered(a) || b[1] - a[1] || b[2].length - a[2].length || a[0] - b[0]);
})();
let shownAnswers = 10;

function renderAnswers() {
  const items = ballot.slice(0, shownAnswers).map(([answer, p, people], place) => {
    const item = element("li");
    const choice = button(`choice${place === 0 && p > 0 ? " first" : ""}`, () => set(state.answer === answer ? { answer: -1 } : { answer, site: -1, path: people[0], node: -1 }));
    choice.setAttribute("aria-pressed", state.answer === answer);
    const gauge = element("span", "gauge");
    const filled = element("i");
    filled.style.width = `${100 * p}%`;
    gauge.append(filled);
    const name = element("span", "name", brief(data.answers[answer], 80));
    name.title = data.answers[answer];
    choice.append(name, element("span", "number", `${share(p)} · ${people.length}`), gauge);
    choice.title = `Show only what led to ${data.answers[answer]}`;
    item.append(choice);
    if (state.answer === answer || (state.path >= 0 && data.candidates[state.path].answer === answer)) {
      const row = element("div", "people");
      for (const k of people.slice(0, 60)) {
        const one = button("", () => set({ path: state.path === k ? -1 : k, node: -1 }, true));
        one.textContent = k;
        one.title = `candidate ${k}: probability ${share(data.candidates[k].p)}, score ${short(data.candidates[k].score)}`;
        one.setAttribute("aria-pressed", state.path === k);
        row.append(one);
      }
      item.append(row);
    }
    return item;
  });
  if (ballot.length > shownAnswers) {
    const item = element("li");
    const more = button("more", () => { shownAnswers += 100; renderAnswers(); });
    more.textContent = `${count(ballot.length - shownAnswers)} more`;
    item.append(more);
    items.push(item);
  }
  byId("answers").replaceChildren(...items);
}

function renderEnds() {
  const leaves = { kept: 0, dropped: 0, finished: 0, simulated: 0, dead: 0 };
  const killed = new Map();
  for (let i = 0; i < size; i++) {
    if (children[i].length) continue;
    leaves[data.fates[nodes.fate[i]]]++;
    if (nodes.fate[i] === DEAD) killed.set(nodes.site[i], (killed.get(nodes.site[i]) || 0) + 1);
  }
  const most = Math.max(1, ...Object.values(leaves));
  const rows = [["in the final set", leaves.kept, "", -1], ["dropped on the way", leaves.dropped, "", -1]];
  if (leaves.finished) rows.push(["finished, not kept", leaves.finished, "", -1]);
  if (leaves.simulated) rows.push(["rollouts", leaves.simulated, "", -1]);
  const sites = [...killed].sort((a, b) => b[1] - a[1]);
  for (const [site, n] of sites.slice(0, 30)) rows.push([`✕ ${site >= 0 ? data.sites[site] : "weight zero"}`, n, "dead", site]);
  byId("ends").replaceChildren(...rows.map(([name, n, kind, site]) => {
    const item = element("li");
    const choice = kind === "dead" && site >= 0 ? button("choice dead", () => set(state.site === site ? { site: -1 } : { site, answer: -1, path: -1, node: nodes.site.indexOf(site) })) : element("div", "choice");
    if (site >= 0) {
      choice.setAttribute("aria-pressed", state.site === site);
      choice.title = `Show only what died at ${data.sites[site]}`;
    }
    const gauge = element("span", "gauge");
    const filled = element("i");
    filled.style.width = `${(100 * n) / most}%`;
    gauge.append(filled);
    choice.append(element("span", "name", brief(name, 60)), element("span", "number", count(n)), gauge);
    item.append(choice);
    return item;
  }));
}

function table(target, head, rows) {
  const made = rows.map((cells) => {
    const row = element("tr", cells.className || "");
    for (const cell of cells) {
      const td = element("td");
      if (typeof cell === "number") {
        td.className = "spark";
        const filled = element("i");
        filled.style.width = `${100 * Math.min(1, cell)}%`;
        td.append(filled);
      } else td.textContent = cell;
      row.append(td);
    }
    return row;
  });
  const top = element("tr");
  for (const name of head) top.append(element("th", "", name));
  byId(target).replaceChildren(...(head.length ? [top] : []), ...made);
}

function renderRounds() {
  byId("s-rounds").hidden = !data.rounds.length;
  const n = data.candidates.length;
  const rows = data.rounds.slice(0, 200).map((note, t) => {
    const parents = new Map(); // who of round t had offspring
    if (roundsAreSteps) for (let i = 0; i < size; i++) if (nodes.depth[i] === t + 2 && nodes.fate[i] !== SIMULATED) parents.set(nodes.parent[i], (parents.get(nodes.parent[i]) || 0) + 1);
    const row = "ess" in note
      ? [String(t + 1), (note.ess ?? 0) / n, short(note.ess), note.resampled ? `↻ ${parents.size} of ${depths[t + 1] ? depths[t + 1].all : n}` : ""]
      : [String(t + 1), Object.entries(note).slice(0, 3).map(([name, value]) => `${name} ${typeof value === "number" ? short(value) : value}`).join(", ")];
    if (note.resampled) row.className = "again";
    return row;
  });
  const sized = data.rounds.some((note) => "ess" in note);
  table("rounds", sized ? ["", "", "ESS", "had offspring"] : [], rows);
}

function renderCost() {
  const c = data.cost;
  const rows = [
    ["tokens written", count(c.lm_tokens)], ["prompt tokens computed", count(c.prompt_tokens)], ["reused from the cache", count(c.reused_tokens)],
    ["verifier tokens", count(c.verifier_tokens)], ["model calls", count(c.lm_calls)], ["verifier calls", count(c.verifier_calls)],
    ["seconds", short(c.seconds)], ["nodes", count(size)],
  ];
  for (const [name, m] of Object.entries(c.models)) rows.push([`by ${brief(name, 40)}`, count(m.computed)]);
  table("cost", [], rows);
}

function renderLegend() {
  const chip = (sample, text) => {
    const made = element("span");
    made.append(sample, text);
    return made;
  };
  const ramp = element("i");
  ramp.style.cssText = `width:64px;height:8px;border-radius:4px;background:linear-gradient(to right,${colourOf(0)},${colourOf(0.5)},${colourOf(1)})`;
  const stroke = (colour, wide) => {
    const made = element("i");
    made.style.cssText = `width:22px;height:${wide}px;border-radius:3px;background:${colour}`;
    return made;
  };
  const sign = element("b", "", "✕");
  sign.style.color = ink.dead;
  const parts = [chip(ramp, ranked ? "value, by rank" : "value, 0 to 1"), chip(stroke(ink.lit, 4), "highlighted"), chip(stroke(ink.kept, 3), "kept, as wide as probable"), chip(stroke(ink.pale, 2), "dropped")];
  if (depths.some((d) => d.dead)) parts.push(chip(sign, "dead"));
  byId("legend").replaceChildren(...parts);
}

function renderDetails() {
  const box = byId("details");
  const end = state.path >= 0 ? data.candidates[state.path].node : state.node;
  if (end < 0) {
    box.replaceChildren(element("p", "sub", "Choose a node, or a candidate of an answer: its path is shown here."));
    return;
  }
  const parts = [];
  if (state.path >= 0) {
    const c = data.candidates[state.path];
    parts.push(element("h3", "", `${state.path === data.best ? "★ " : ""}candidate ${state.path}: ${brief(data.answers[c.answer], 120)}`));
    parts.push(element("div", "sub", `probability ${share(c.p)} · score ${short(c.score)} · log-weight ${short(c.lw)} · ${c.finished ? "finished" : "not finished"}`));
  } else {
    parts.push(element("h3", "", nodes.depth[end] ? `node ${nodes.id[end]}, step ${nodes.depth[end]}` : `node ${nodes.id[end]}, the start`));
    parts.push(element("div", "sub", `${fateOf(end)}${children[end].length ? ` · ${count(below[end] - 1)} below it, with ${share(mass[end])} of the probability` : ""}`));
  }
  if (nodes.fate[end] === DEAD) parts.push(element("div", "verdict", nodes.site[end] >= 0 ? `Killed at the site “${data.sites[nodes.site[end]]}”: its weight became zero there.` : "Its weight became zero."));
  const sheet = element("table");
  const head = element("tr");
  for (const name of ["", "step", "tokens", "value", "log w"]) head.append(element("th", "", name));
  sheet.append(head);
  for (const i of pathTo(end)) {
    if (nodes.parent[i] < 0 && !nodes.step[i]) continue;
    sheet.append(detail(i, end));
  }
  parts.push(sheet);
  box.replaceChildren(...parts);
}

function detail(i, end) {
  const row = element("tr", i === end ? "here" : "");
  row.addEventListener("click", () => set({ node: i, path: -1 }, true));
  const text = element("td", "text");
  const step = nodes.step[i].replace(/\n$/, "");
  marked(text, visibly(step.slice(0, LONG), false) || "(no words)");
  if (step.length > LONG) {
    const all = button("more", (event) => { event.stopPropagation(); text.textContent = visibly(step, false); });
    all.textContent = `… all ${count(step.length)} characters`;
    text.append(all);
  }
  for (const [site, value] of nodes.sites[i] || []) {
    const line = element("div", "site"), chosen = element("span");
    marked(chosen, brief(value, 300));
    line.append(element("b", "", visibly(site, true)), " ", chosen);
    line.title = value;
    text.append(line);
  }
  const worth = element("td");
  const gauge = element("span", "worth"), filled = element("i");
  filled.style.width = `${100 * goodness(i)}%`;
  filled.style.background = colourOf(goodness(i));
  gauge.append(filled);
  worth.append(gauge, short(nodes.value[i] ?? 0));
  row.append(element("td", "", String(nodes.depth[i])), text, element("td", "", nodes.tokens[i] === null ? "" : String(nodes.tokens[i])), worth, element("td", "", short(nodes.lw[i])));
  return row;
}
