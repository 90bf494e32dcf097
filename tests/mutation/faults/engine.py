"""Faults in sampling, decoding, scoring, masks, tables and passes."""

from fault import Fault

SAMPLING, DECODE, BASE = "ppl/lm/sampling.py", "ppl/lm/decode.py", "ppl/lm/base.py"
STOPPING, TEXTS, ROW = "ppl/lm/stopping.py", "ppl/lm/texts.py", "ppl/lm/row.py"
MASKS, TABLE, COST = "ppl/lm/masks.py", "ppl/lm/table.py", "ppl/language/cost.py"
ENGINE, DECODER = "ppl/lm/engine/engine.py", "ppl/lm/engine/decoder.py"

DRAWS, DECODERS = "tests/test_sampling.py", "tests/test_decoders.py"
ENGINES = (
    "tests/test_engine.py tests/test_engine_work.py tests/test_graphs.py tests/test_compiled.py "
    "tests/test_attention.py"
)
INVERTED = "tests/test_inversion.py"
MASKED, TEXT, ERRORS = "tests/test_masks.py", "tests/test_text.py", "tests/test_errors.py"
SITES, SEARCHERS = "tests/test_sites.py", "tests/test_searchers.py"
LAW = "tests/exact/test_one_law.py"
DRAFTING, GUESSING = "ppl/lm/drafting.py", "ppl/lm/engine/drafts.py"
DRAFTS = "tests/test_engine_drafts.py"
PACE, PACES = "ppl/lm/pace.py", "tests/test_pace.py"

FAULTS = [
    # From logits to tokens.
    Fault(
        SAMPLING,
        "invert if plain or all(warp.only_heats for warp in warps)",
        "invert if True",
        INVERTED,
    ),
    Fault(SAMPLING, "keeps_all and self.temperature > 0", "keeps_all", INVERTED),
    Fault("ppl/lm/engine/draw.cpp", "block ? mass[block - 1] : 0", "0", INVERTED),
    Fault(
        "ppl/lm/engine/inversion.py",
        "if draws_alike(logits.dtype) else None",
        "",
        INVERTED,
    ),
    Fault(
        "ppl/lm/engine/inversion.py",
        "> sampling.ONE_LEVEL or not _same_digits():",
        "> sampling.ONE_LEVEL:",
        f"{INVERTED} -k small_program",
    ),
    Fault(
        "ppl/lm/engine/cumulate.cpp",
        "(first + std::min(k, count - 1)) * size",
        "first * size",
        f"{INVERTED} -k every_digit",
    ),
    Fault(
        DECODE, "any(row.request.spec.allowed is not None", "all(row.request.spec.allowed", MASKED
    ),
    Fault(
        SAMPLING, "logits / torch.as_tensor(divisor,", "logits * torch.as_tensor(divisor,", DRAWS
    ),
    Fault(
        SAMPLING,
        "log_probs.masked_fill(empty[:, None], -torch.inf)",
        "log_probs",
        "tests/test_masks.py -k dead_alone",
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
    Fault(
        SAMPLING,
        "logits = _keep_only(logits if plain else heated(logits, warps), allowed)\n",
        "logits = logits if plain else heated(logits, warps)\n",
        MASKED,
    ),
    Fault(
        SAMPLING,
        "uniforms[p], own) for p in parts]",
        "uniforms[: p.stop - p.start], own) for p in parts]",
        f"{DRAWS} {ENGINES} -k 'shorter or frequencies or sixteen'",
    ),
    Fault(SAMPLING, "uniforms.clamp(max=1 - 2.0**-52)", "uniforms", DRAWS),
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
        f"{DECODERS} -k pay_for_nothing",
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
    Fault(ROW, "len(self.new) == self.limit:", "len(self.new) > self.limit:", TEXT),
    Fault(
        ROW,
        "room if spec.max_tokens is None else min(spec.max_tokens, room)",
        "spec.max_tokens or room",
        f"{ERRORS} {ENGINES} {DECODERS} -k 'context or never_end or last_place'",
    ),
    Fault(
        DECODE,
        "(row.request.key, len(row.new))",
        "(row.request.key, 0)",
        f"{DECODERS} tests/test_loop.py tests/test_loop_alone.py tests/test_loop_parks.py",
    ),
    Fault(
        DECODE,
        "(row.request.key, len(row.new))",
        "(row.request.key, row.length)",
        "tests/test_golden.py",
    ),
    Fault(
        DECODE,
        "self._uniforms.next()[keep]",
        "self._uniforms.next()[: len(keep)]",
        f"{DECODERS} tests/test_loop.py tests/test_loop_alone.py tests/test_loop_parks.py",
    ),
    Fault(
        "ppl/language/randomness.py",
        "self._made = self._made[rows]",
        "self._made = self._made[: len(rows)]",
        f"{DECODERS} -k as_if_alone",
    ),
    Fault(
        "ppl/language/randomness.py",
        "self._positions + np.arange(_AHEAD)",
        "self._positions + 0 * np.arange(_AHEAD)",
        f"{DECODERS} -k independent_draws",
    ),
    Fault(
        "ppl/language/randomness.py",
        "self._positions += _AHEAD",
        "pass",
        "tests/test_sampling.py -k side_by_side",
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
        ROW,
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
    Fault(BASE, "visit.wrote(self.text, entry.value)", "visit.text = self.text", SEARCHERS),
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
        "            self._share_prefixes(shared, unique, who)\n",
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
    # Guesses of next tokens.
    Fault(
        DRAFTING,
        "used[alive[at]][depth] == token",
        "used[alive[at]][depth] == used[alive[at]][depth]",
        f"{DRAFTS} -k 'order'",
    ),
    Fault(
        DRAFTING,
        "uniforms(keys, np.array([len(row.new) for row in some]))",
        "uniforms(keys, np.array([0 for row in some]))",
        f"{DRAFTS} -k 'bills and False'",
    ),
    Fault(
        DRAFTING,
        "if ahead.lead == 0 and ahead.outcome is not None:",
        "if ahead.outcome is not None:",
        f"{DRAFTS} -k 'order or budgets'",
    ),
    Fault(
        GUESSING,
        "stem.slot.shorten(length)",
        "stem.slot.shorten(length + 1)",
        f"{DRAFTS} -k 'wrongly and False'",
    ),
    Fault(
        GUESSING, "return () if known else guess", "return guess", f"{DRAFTS} -k 'bills and False'"
    ),
    Fault(
        "ppl/lm/ngrams.py",
        "if low <= uniform < high:",
        "if low <= 1 - uniform < high:",
        "tests/test_ngrams.py -k 'context'",
    ),
    Fault(
        "ppl/lm/engine/blocks.py",
        "saves = slot.tail > slot.base and (new - 1) * slot.tail > price",
        "saves = slot.tail > slot.base",
        f"{DRAFTS} -k 'bits'",
    ),
    Fault(PACE, "0.7, 2.0, 0.005", "0.7, 20.0, 0.005", f"{PACES} -k no_more"),
    Fault(PACE, "kept * gained / len(chains)", "gained / len(chains)", f"{PACES} -k 'alone'"),
    Fault(PACE, "balance.left - (cost - 1) > -_DEBT", "balance.left < 9", f"{PACES} -k 'allowed'"),
    Fault(PACE, "or packs(rows + 1) or not packs(rows)", "or True", f"{PACES} -k 'leaves'"),
]
