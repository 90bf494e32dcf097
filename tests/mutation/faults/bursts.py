"""Faults where rows are ahead of what they have shown."""

from fault import Fault

BURST, BURSTS = "ppl/lm/engine/burst.py", "ppl/lm/engine/burst.cpp"
FOLLOWS, FOLLOWED = "ppl/lm/leading.py", "tests/test_leading.py"
LEADING, BESIDE = "ppl/lm/engine/leading.py", "tests/test_bursts.py"
REPLAYS, CAPTURED = "ppl/lm/engine/replays.py", "tests/test_replays.py"

FAULTS = [
    # Rows that follow what is known.
    Fault(FOLLOWS, "if i == len(known) or token != known[i]:", "if i == len(known):", FOLLOWED),
    Fault(FOLLOWS, "len(row.new) + np.arange(count)", "np.arange(count)", FOLLOWED),
    Fault(LEADING, "(stem)\n            stem.text = text", "(stem)", FOLLOWED),
    Fault(FOLLOWS, "self._uniforms = Uniforms(", "Uniforms(", FOLLOWED),
    Fault(FOLLOWS, "            super()._go_on(list(range(len(rows))))\n", "", FOLLOWED),
    Fault(FOLLOWS, "or self._waiting or any(", "or any(", FOLLOWED),
    Fault(FOLLOWS, " or _broke(payers):", ":", FOLLOWED),
    # Bursts.
    Fault(FOLLOWS, "self._decoder.settle([row.text[:-1] for row in rows])", "pass", FOLLOWED),
    Fault(FOLLOWS, "for row in rows]), _left(rows))", "for row in rows]), _MOST)", FOLLOWED),
    Fault(FOLLOWS, "(tokens >= 0) & np.isfinite(log_probs)", "tokens >= 0", FOLLOWED),
    Fault(FOLLOWS, "min(most, row.limit - len(row.new))", "most", FOLLOWED),
    Fault(FOLLOWS, "if paused or self._waiting", "if self._waiting", FOLLOWED),
    Fault(BURST, "slot.length += count", "slot.length += made", FOLLOWED),
    Fault(BURST, "int(drawn.sum())", "rows * made", BESIDE),
    Fault(BURST, "weight.data_ptr() == self._where", "weight is not None", FOLLOWED),
    Fault(BURST, "self._unaltered() and ", "", FOLLOWED),
    Fault(BURSTS, "columns[r]++, positions[r]++", "columns[r]++", FOLLOWED),
    Fault(BURSTS, "cosines + made * rows * dim, *sine", "cosines, *sine", FOLLOWED),
    Fault(BURSTS, " || pauses[d][now[d]]", "", BESIDE),
    Fault(BURSTS, "if (parted || !left", "if (!left", BESIDE),
    Fault(BURSTS, "parted |= next[r] >= 0 && next", "parted |= next", BESIDE),
    Fault(BURSTS, "wide(from[i]) / temperatures[d]", "wide(from[i]) / temperatures[0]", BESIDE),
    Fault(BURST, "np.maximum.at(allowed, of, steps)", "allowed[of] = 1", BESIDE),
    Fault(BURST, "np.ascontiguousarray(np.minimum(uniforms, 1 - 2.0**-52))", "uniforms", BESIDE),
    Fault(LEADING, "self._logits = self._logits[:1].expand", "self._logits[:1].expand", BESIDE),
    Fault(BURSTS, "if (made && !going[r]) {", "if (false) {", BESIDE),
    Fault(BURSTS, "paused > idle", "paused", BESIDE),
    Fault(BURSTS, "idle -= paused;", "", BESIDE),
    Fault(BURSTS, "&& ++drawn[r] == steps[r]", "&& !++drawn[r]", BESIDE),
    Fault(BURSTS, "uniforms + made * draws", "uniforms", FOLLOWED),
    Fault(BURSTS, "row + columns[r] * column", "row + 0 * column", FOLLOWED),
    Fault(BURSTS, "states + slots[r] * row", "states + r * row", BESIDE),
    Fault(FOLLOWS, "len(made[0]) - 1", "0", BESIDE),
    Fault("ppl/lm/row.py", "len(self.new), self.computed)", "len(self.new), 0)", BESIDE),
    Fault(LEADING, "if any(stem.slot is None for stem in self._stems):", "if False:", BESIDE),
    Fault(LEADING, "self._engine.slots.drop_since(clock)", "pass", BESIDE),
    Fault(BURST, "and len(weight) >= head.out_features", "", BESIDE),
    Fault(BURST, "self._head, self._embeddings", "self._head, self._base.embed_tokens", BESIDE),
    Fault("ppl/lm/stopping.py", "string and string[-1] != _NO_CHARACTER", "string", BESIDE),
    Fault("ppl/lm/engine/prefix.py", "edges[-1].used = self._clock", "pass", BESIDE),
    Fault(FOLLOWS, "spec.allowed is None and", "spec and", FOLLOWED),
    Fault(FOLLOWS, "row.request.under is None", "row.request", FOLLOWED),
    Fault(
        "ppl/lm/engine/prefix.py", "len(edges[-1].children) == 1:", "edges[-1].children:", FOLLOWED
    ),
    # Steps captured with their draws.
    Fault(REPLAYS, "numbers[1:] = numbers[1:].roll(-1, 0)", "pass", CAPTURED),
    Fault(REPLAYS, "numbers[1 : 1 + most, where]", "numbers[1 : 1 + most]", CAPTURED),
    Fault(REPLAYS, "logits / numbers[0].to(logits.dtype)[:, None]", "logits", CAPTURED),
    Fault(REPLAYS, "table[1:] += 1", "table[1] += 1", CAPTURED),
    Fault(REPLAYS, "table[2].clamp_(max=self._slots.length)", "pass", CAPTURED),
    Fault(
        REPLAYS,
        "draw_plainly(logits, numbers[1])",
        "draw_plainly(logits.cpu(), numbers[1])",
        CAPTURED,
    ),
    Fault(REPLAYS, "int(finite.argmin()) + 1", "most", CAPTURED),
    Fault(REPLAYS, "int(finite.argmin()) + 1", "int(finite.argmin())", CAPTURED),
    Fault(REPLAYS, "if head(hidden).shape[1] > engine.vocabulary:", "if False:", CAPTURED),
    Fault("ppl/lm/engine/graphs.py", "range(replays - 1)", "range(replays)", CAPTURED),
    Fault("ppl/lm/engine/graphs.py", "with _CAPTURING, ", "with ", "tests/test_graphs.py"),
    Fault(
        "ppl/lm/engine/bursts.py", "engine.drop(slot)\n        engine.pool", "engine.pool", CAPTURED
    ),
    Fault(
        LEADING, "                stem.text = text\n            self", "            self", CAPTURED
    ),
    Fault(LEADING, "self._engine.runner.unwanted(len(stem.text) - len(text))", "pass", CAPTURED),
    Fault(
        FOLLOWS,
        "deque([step[i] for i in keep] for step in self._drawn if keep)",
        "self._drawn",
        CAPTURED,
    ),
    Fault(FOLLOWS, "self._uniforms.keep(keep)", "pass", CAPTURED),
    Fault(FOLLOWS, "(self._waiting and rows) else", "False else", CAPTURED),
    Fault("ppl/lm/engine/passes.py", "Common(self.price if graphs else 0)", "Common()", CAPTURED),
]
