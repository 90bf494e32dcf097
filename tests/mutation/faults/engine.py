"""Faults in sampling, decoding, scoring, masks, tables and the engine's memory."""

from fault import Fault

SAMPLING, DECODE, BASE = "ppl/lm/sampling.py", "ppl/lm/decode.py", "ppl/lm/base.py"
STOPPING, TEXTS = "ppl/lm/stopping.py", "ppl/lm/texts.py"
MASKS, TABLE, COST = "ppl/lm/masks.py", "ppl/lm/table.py", "ppl/language/cost.py"
ENGINE, PREFIX = "ppl/lm/engine/engine.py", "ppl/lm/engine/prefix.py"
SLOTS, RUNS = "ppl/lm/engine/slots.py", "ppl/lm/engine/runs.py"
MEMORY, DECODER = "ppl/lm/engine/memory.py", "ppl/lm/engine/decoder.py"
PASSES, TRUNK = "ppl/lm/engine/passes.py", "ppl/lm/engine/trunk.py"
KEPT, REACH = "ppl/lm/engine/kv.py", "ppl/lm/engine/reach.py"

DRAWS, DECODERS, ENGINES = (
    "tests/test_sampling.py",
    "tests/test_decoders.py",
    "tests/test_engine.py",
)
MASKED, TEXT, ERRORS = "tests/test_masks.py", "tests/test_text.py", "tests/test_errors.py"
SITES, SEARCHERS, LAW = (
    "tests/test_sites.py",
    "tests/test_searchers.py",
    "tests/exact/test_one_law.py",
)
ANY = f"{ENGINES} -k 'interleaving or split or evicted or once or grown or full'"

KV = "tests/test_kv.py"
STANDING = f"{ENGINES} tests/test_trunk.py -k 'standing or trunk'"

FAULTS = [
    # From logits to tokens.
    Fault(
        SAMPLING, "logits / torch.as_tensor(divisor,", "logits * torch.as_tensor(divisor,", DRAWS
    ),
    Fault(SAMPLING, "np.where(temperature == 0, 1, top_k)", "top_k", DRAWS),
    Fault(SAMPLING, "rank[None, :] >= torch.as_tensor", "rank[None, :] > torch.as_tensor", DRAWS),
    Fault(SAMPLING, "before = probs.cumsum(-1) - probs", "before = probs.cumsum(-1)", DRAWS),
    Fault(
        SAMPLING,
        "before >= limit - _rounding(log_probs)",
        "before > limit + _rounding(log_probs)",
        DRAWS,
    ),
    Fault(SAMPLING, ") & (limit < 1)", ")", "tests/test_sampling.py -k beside_one"),
    Fault(
        SAMPLING,
        "log_probs.double() < least - _rounding(log_probs)",
        "log_probs.double() <= least",
        DRAWS,
    ),
    Fault(
        SAMPLING,
        "ordered.double().exp()",
        "ordered.exp()",
        "tests/test_sampling.py -k many_tokens",
        equivalent="on a CPU torch adds up in float64 anyway",
    ),
    Fault(
        SAMPLING,
        "scatter_(1, order, drop_sorted)\n    return torch.log_softmax(",
        "scatter_(1, order, drop_sorted)\n    return (lambda x, dim: x)(",
        DRAWS,
    ),
    Fault(
        SAMPLING,
        "found = torch.searchsorted(mass, u * total, right=True)",
        "found = torch.searchsorted(mass, u * total)",
        DRAWS,
    ),
    Fault(
        SAMPLING, "which > 0, mass.gather(1, (which - 1)", "which > 0, mass.gather(1, which", DRAWS
    ),
    Fault(SAMPLING, "torch.minimum(inside, last)", "inside", DRAWS),
    Fault(
        SAMPLING,
        "mass = probs.cumsum(-1, dtype=torch.float64)",
        "mass = probs.cumsum(-1).double()",
        "tests/test_sampling.py -k added_up",
    ),
    Fault(
        SAMPLING,
        ".double().log() - total.log()",
        ".double().log()",
        DRAWS,
        equivalent="a softmax sums to one up to its rounding",
    ),
    Fault(SAMPLING, "logits = _keep_only(logits, allowed)\n", "pass\n", MASKED),
    Fault(
        SAMPLING,
        "uniforms[p]) for p in parts]",
        "uniforms[: p.stop - p.start]) for p in parts]",
        f"{DRAWS} {ENGINES} -k 'shorter or frequencies or sixteen'",
    ),
    Fault(SAMPLING, "np.minimum(uniforms, 1 - 2.0**-52)", "uniforms", DRAWS),
    # Rows.
    Fault(
        DECODE,
        "if ledger.tokens_left < count or",
        "if ledger.tokens_left < 1 or",
        "tests/test_laws.py -k exceeded",
    ),
    Fault(
        DECODE,
        "_admit([rows[j] for j in keep])",
        "_admit(rows)",
        f"{DECODERS} tests/test_loop.py tests/test_loop_alone.py tests/test_loop_parks.py",
    ),
    Fault(
        DECODE,
        "for row in (*rows, *self._waiting):",
        "for row in rows:",
        f"{DECODERS} -k rows_that_wait",
    ),
    Fault(
        DECODE,
        "None if row.new else row.request.ledger",
        "row.request.ledger",
        f"{DECODERS} -k half_way",
    ),
    Fault(DECODE, "len(self.new) == self.limit:", "len(self.new) > self.limit:", TEXT),
    Fault(
        DECODE,
        "room if spec.max_tokens is None else min(spec.max_tokens, room)",
        "spec.max_tokens or room",
        f"{ERRORS} {ENGINES} {DECODERS} -k 'context or never_end or last_place'",
    ),
    Fault(
        DECODE,
        "np.array([len(row.new) for row in rows])",
        "np.array([0 for row in rows])",
        f"{DECODERS} -k independent_draws",
    ),
    Fault(
        DECODE,
        "np.array([len(row.new) for row in rows])",
        "np.array([row.length for row in rows])",
        "tests/test_golden.py",
    ),
    Fault(
        DECODE,
        "_draw_tokens(logits, drawing, self._keys[keep])",
        "_draw_tokens(logits, drawing, self._keys[: len(keep)])",
        f"{DECODERS} tests/test_loop.py tests/test_loop_alone.py tests/test_loop_parks.py",
    ),
    Fault(
        DECODE,
        "for j in keep], self._keys[keep]",
        "for j in keep], self._keys[: len(keep)]",
        f"{DECODERS} -k as_if_alone",
    ),
    Fault(
        STOPPING,
        "cut = spec.max_tokens is not None and len(tokens) == limit",
        "cut = len(tokens) == limit",
        f"{DECODERS} -k probability_zero",
    ),
    Fault(
        STOPPING,
        "if reason is not None and count < len(tokens):",
        "if False:",
        f"{DECODERS} -k probability_zero",
    ),
    Fault(
        STOPPING,
        "if len(tokens) > limit:",
        "if False:",
        f"{DECODERS} -k probability_zero",
    ),
    Fault(
        DECODE,
        "return self.under if same_steps or could_be_drawn(model, asked) else",
        "return self.under if same_steps or True else",
        f"{SEARCHERS} -k stops_where",
    ),
    Fault(
        DECODE,
        "spec.allowed_after(tokens[:t], request.label",
        "spec.allowed_after((), request.label",
        f"{SITES} -k callable",
    ),
    Fault(
        DECODE,
        "spec.allowed_after(tokens[:t], request.label",
        "spec.allowed_after(tokens[: t + 1], request.label",
        f"{SITES} -k callable",
    ),
    Fault(
        DECODE,
        "return spec.allowed_after(row.new,",
        "return spec.allowed_after((),",
        f"{LAW} -k state",
    ),
    Fault(DECODE, "chosen.double().sum()", "chosen.sum()", f"{DECODERS} -k product_of"),
    Fault(
        DECODE,
        "        row.under += log_prob\n",
        "        row.under = log_prob\n",
        f"{SEARCHERS} -k same_text",
    ),
    Fault(
        DECODE,
        "[spec.warp for _, _, spec in others]",
        "[row.request.spec.warp for _, row, _ in others]",
        f"{SEARCHERS} -k same_text",
    ),
    Fault(
        DECODE,
        "for _, row, spec in others]\n    log_probs",
        "for _, row, _ in others for spec in [row.request.spec]]\n    log_probs",
        f"{SEARCHERS} {LAW} -k 'same_text or state'",
    ),
    Fault(
        DECODE,
        "[spec.warp] * len(tokens), allowed)\n    chosen",
        "[spec.warp] * len(tokens), [None] * len(tokens))\n    chosen",
        MASKED,
    ),
    Fault(
        DECODE,
        "request.ledger.add(scored_tokens=len(request.value.tokens))",
        "pass",
        f"{DECODERS} -k is_scored",
    ),
    Fault(
        DECODE,
        "if not math.isfinite(log_prob):",
        "if False:",
        f"{ERRORS} -k 'broken or probability_zero'",
    ),
    Fault(
        DECODE,
        "self._waiting.extendleft(self._rows[j] for j in reversed(keep[most:]))",
        "pass",
        f"{ENGINES} -k half_way",
    ),
    Fault(
        DECODE,
        "row.unwanted = row.unwanted or row.ticket in tickets",
        "row.unwanted = row.unwanted",
        "tests/test_loop.py tests/test_loop_alone.py tests/test_loop_parks.py",
    ),
    # What a language model's distribution is.
    Fault(
        BASE,
        "if greedy and target is None:",
        "if False:",
        "tests/exact/test_optimality.py -k greedy",
    ),
    Fault(
        BASE,
        "under = spec if target is None else under",
        "pass",
        "tests/exact/test_optimality.py -k for_nothing",
    ),
    Fault(
        BASE,
        "Warp(temperature=0.0)",
        "Warp(temperature=1.0)",
        "tests/exact/test_optimality.py -k greedy",
    ),
    Fault(
        BASE,
        "if len(text.tokens) >= self.context_length:",
        "if len(text.tokens) > self.context_length:",
        f"{ERRORS} -k prompts",
    ),
    Fault(
        BASE,
        "allowed(tuple(new))",
        "allowed(tuple(new[:-1]))",
        f"{SITES} {LAW} -k 'callable or state'",
    ),
    Fault(
        BASE,
        "allowed = allowed.clone()  # it may",
        "pass  # it may",
        f"{DECODERS} -k one_mask",
    ),
    Fault(BASE, "visit.text = self.text + entry.value", "visit.text = self.text", SEARCHERS),
    Fault(
        BASE,
        "(high << 32) | low",
        "low",
        f"{DRAWS} {TEXT} tests/test_programs.py",
        equivalent="32 bits of a key are a key",
    ),
    Fault(
        TEXTS,
        "if finished and not (tokens and tokens[-1] in ends):",
        "if finished:",
        f"{TEXT} -k by_hand",
    ),
    Fault(
        MASKS,
        "mask = pad(mask[:size], (0, max(0, size - codec_size)))",
        "mask = mask[:size]",
        f"{MASKED} -k tokenizer",
    ),
    Fault(
        TABLE,
        "elif len(tokens) == limit:",
        "elif len(tokens) == limit - 1:",
        "tests/exact/test_evidence.py -k toy",
    ),
    Fault(TABLE, "if token in ends:", "if False:", "tests/exact/test_evidence.py -k toy"),
    # The prefix tree.
    Fault(RUNS, "if a[i] != b[i])", "if a[i] != b[i]) + 1", ANY),
    Fault(
        PREFIX,
        "states[max(start - edge.start, 0) :]",
        "states[max(start - edge.start - 1, 0) :]",
        f"{ENGINES} -k hidden",
    ),
    Fault(
        PREFIX,
        "start = edges[-1].start",
        "start = last.start",
        f"{ENGINES} -k shortened",
    ),
    Fault(
        PREFIX,
        "edge.tokens[at:], edge.start + at, upper",
        "edge.tokens[at:], edge.start, upper",
        ANY,
    ),
    Fault(
        PREFIX,
        "parent.slot is whose and not parent.children:",
        "parent.slot is whose:",
        f"{ENGINES} {DECODERS} -k interleaving",
    ),
    Fault(
        PREFIX,
        "            del leaf  # and with it its segment\n",
        '            self.gone = [*getattr(self, "gone", []), leaf]\n',
        f"{ENGINES} -k 'memory or evicted or interleaving'",
    ),
    Fault(
        PREFIX,
        "[(leaf.needed, leaf.used,",
        "[(leaf.needed, -leaf.used,",
        f"{ENGINES}",
    ),
    Fault(PREFIX, "edge.slot.edges.add(upper)", "pass", ANY),
    Fault(
        PREFIX,
        "edge.slot.edges.discard(edge)\n        edge.segment, edge.slot",
        "edge.segment, edge.slot",
        ANY,
    ),
    Fault(
        PREFIX,
        "self.view(edge.slot, edge.start, edge.start + size)",
        "self.view(edge.slot, 0, size)",
        ANY,
    ),
    Fault(
        PREFIX,
        "            whole = shared == len(child.tokens)",
        "            whole = True",
        f"{ENGINES} -k parts_within",
    ),
    Fault(
        PREFIX,
        "at = min(edge.stop, match.length)",
        "at = edge.start",
        f"{ENGINES} -k company",
        equivalent="the last run in a slot is then a piece of its own, of the same content",
    ),
    # Slots.
    Fault(SLOTS, "        self.empty(slot, keep)\n        self.clock", "        self.clock", ANY),
    Fault(SLOTS, "if e.stop > keep]", "if e.start > keep]", ANY),
    Fault(
        SLOTS,
        "slot.shorten(min(slot.length, keep))",
        "pass",
        f"{ENGINES} -k taken_first",
    ),
    Fault(
        SLOTS,
        "max((e.stop for e in slot.edges), default=0)",
        "slot.length",
        f"{ENGINES} -k taken_first",
    ),
    Fault(
        SLOTS,
        "-(-max(length, 1) // _BUCKET) * _BUCKET",
        "max(length, 1) // _BUCKET * _BUCKET",
        f"{ENGINES} -k 'interleaving or last_place'",
    ),
    Fault(
        SLOTS,
        "size = max(a.tail, b.tail)",
        "size = min(a.tail, b.tail)",
        f"{ENGINES} {DECODERS} -k 'interleaving or company'",
    ),
    Fault(
        SLOTS,
        "            self.content(slot).copy_(content)\n",
        "",
        f"{ENGINES} {DECODERS} -k 'interleaving or company'",
    ),
    Fault(
        SLOTS,
        "a.index, b.index = b.index, a.index",
        "pass",
        f"{ENGINES} {DECODERS} -k 'interleaving or company'",
    ),
    # Memory.
    Fault(MEMORY, "slot.busy or slot in claimed:", "slot.busy:", ANY),
    Fault(
        MEMORY,
        "slot is None or slot.busy or",
        "slot is None or",
        f"{DECODERS} {ENGINES} -k interleaving",
    ),
    Fault(
        MEMORY,
        "fork.length, fork.state = slot.length, slot.state",
        "fork.state = slot.state",
        DECODERS,
    ),
    Fault(
        MEMORY,
        "self.capacity // 2 // self._slot_nbytes(length)",
        "self.capacity // self._slot_nbytes(length)",
        f"{ENGINES} -k memory",
    ),
    Fault(
        MEMORY,
        "self.pool.trim(nbytes, {*spare, *own.values()})",
        "pass",
        f"{ENGINES} -k made_before",
    ),
    Fault(
        MEMORY,
        "            slot.length = matches[text].length\n",
        "            slot.length = 0\n",
        f"{ENGINES} -k 'once or nothing'",
    ),
    # One copy of a common beginning.
    Fault(RUNS, "part.segment.rows -= 1", "pass", STANDING),
    Fault(RUNS, "self._held.nbytes -= self.piece.nbytes", "pass", STANDING),
    Fault(
        SLOTS,
        "self.pool.segment(piece, slot.base, trunk=True)",
        "self.pool.segment(piece, slot.base)",
        STANDING,
    ),
    Fault(MEMORY, "fork.stand(slot.trunk)", "pass", STANDING),
    Fault(MEMORY, "piece[max(base - at, 0) :]", "piece", STANDING),
    Fault(
        TRUNK,
        "torch.logaddexp(self.mass, other.mass)",
        "torch.maximum(self.mass, other.mass)",
        STANDING,
    ),
    Fault(PASSES, "if a.trunk != b.trunk:", "if False:", STANDING),
    # What is kept of keys and values.
    Fault(KEPT, "keys > positions - self.window", "keys >= positions - self.window", KV),
    Fault(KEPT, "(keys < self.sinks)", "(keys <= self.sinks)", KV),
    Fault(KEPT, "clamp_(-127, 127)", "clamp_(-120, 120)", f"{KV} -k 'bits or compressed'"),
    Fault(
        KEPT,
        "return self.window - 1",
        "return self.window - 2",
        f"{KV} -k 'interleaving or behind'",
    ),
    Fault(KEPT, 'return f"{name} kv={self}" if self else name', "return name", f"{KV} -k named"),
    Fault(
        RUNS,
        "near = edge.stop > length - reach or",
        "near = edge.stop > length or",
        f"{KV} -k 'interleaving or behind'",
    ),
    Fault(SLOTS, "            self.pool.lose(edge, start, stop)\n", "            pass\n", KV),
    Fault(MEMORY, "            fork.hole = slot.hole\n", "", f"{KV} -k 'interleaving or behind'"),
    Fault(REACH, "keys = keys + lost * (keys >= at)", "pass", f"{KV} -k 'interleaving or window'"),
    Fault(BASE, "if value.kv != mine:", "if False:", f"{KV} -k 'named or refused'"),
    # What is booked.
    Fault(
        ENGINE,
        "len(text) if text in paid else matches[text].length",
        "matches[text].length",
        f"{ENGINES} tests/test_accounts.py -k 'once or flops or truth or totals'",
    ),
    Fault(
        ENGINE,
        "ledger.add(**{reused: -len(prefix)})",
        "pass",
        f"{ENGINES} -k computed_once",
    ),
    Fault(
        ENGINE,
        "        self._share_prefixes(shared, unique, first_payers)\n",
        "",
        f"{ENGINES} -k once",
    ),
    Fault(
        DECODER,
        'None if a is None else (a, "prompt_tokens", "reused_tokens")',
        'None if a is None else (a, "reused_tokens", "prompt_tokens")',
        "tests/test_accounts.py",
    ),
    Fault(DECODER, "where = {text: first + i for", "where = {text: i for", DECODERS),
    Fault(COST, '- self.book.totals["verifier_calls"]', "", "tests/test_laws.py -k exceeded"),
    Fault(
        COST,
        'return limit - self.book.totals["lm_tokens"]',
        "return limit",
        "tests/test_laws.py -k exceeded",
    ),
    Fault(
        COST, "models.get(name, ModelCost()) + spent", "spent", "tests/test_accounts.py -k add_up"
    ),
    Fault(
        COST,
        "return Account, (self.budget, self.cost, self.elapsed)",
        "return Account, (self.budget, None, self.elapsed)",
        "tests/test_accounts.py -k pages",
    ),
    Fault(
        COST,
        "return Account, (self.budget, self.cost, self.elapsed)",
        "return Account, (self.budget, self.cost)",
        "tests/test_accounts.py -k where_it_was",
    ),
    Fault(
        COST,
        "if limit is None or self.verifying:\n            return math.inf\n"
        '        return limit - self.book.totals["lm_calls"]',
        "if limit is None:\n            return math.inf\n"
        '        return limit - self.book.totals["lm_calls"]',
        "tests/test_accounts.py -k pages",
    ),
    Fault(
        COST,
        "self.elapsed >= limit",
        "False",
        "tests/test_accounts.py -k where_it_was",
    ),
]
