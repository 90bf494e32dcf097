"""Faults in the engine's memory: prefix tree, slots, trunks, what is kept of keys and values."""

from fault import Fault

BASE, PREFIX = "ppl/lm/base.py", "ppl/lm/engine/prefix.py"
SLOTS, RUNS = "ppl/lm/engine/slots.py", "ppl/lm/engine/runs.py"
MEMORY, PASSES = "ppl/lm/engine/memory.py", "ppl/lm/engine/passes.py"
TRUNK, KEPT, REACH = (
    "ppl/lm/engine/trunk.py",
    "ppl/lm/engine/kv.py",
    "ppl/lm/engine/reach.py",
)

EVICTING, PACKING = "ppl/lm/engine/evicting.py", "ppl/lm/engine/packing.py"
GIVEN_UP, HEADS = "ppl/lm/eviction.py", "tests/test_eviction.py"

FILLED = "tests/test_prefill.py"
COMPANY, TOGETHER = "ppl/lm/company.py", "tests/test_company.py"
DECODERS, KV = "tests/test_decoders.py", "tests/test_kv.py"
WORK, LONG = "tests/test_engine_work.py", "tests/test_engine_memory.py"
ENGINES = f"tests/test_engine.py {WORK} tests/test_attention.py"
ANY = f"{ENGINES} -k 'interleaving or split or evicted or once or grown'"
TRUNKS = "tests/test_trunk.py"

FAULTS = [
    # Running batches beside each other.
    Fault(COMPANY, "== 1 and but in self._members:", "== 1:", TOGETHER),
    Fault(
        COMPANY,
        "            self.give_way(count - model.most_rows(texts[:count], lengths[:count]), member)\n",
        "            pass\n",
        f"{TOGETHER} -k middle",
    ),
    Fault(MEMORY, "self.slots.give_way(missing)", "pass", f"{TOGETHER} -k middle"),
    Fault(MEMORY, "max(1, min(wanted, most // 2))", "1", f"{TOGETHER} -k half_as_many"),
    Fault(
        COMPANY,
        "(len(others) + most) // (len(working) + 1)",
        "len(others) + most",
        f"{TOGETHER} -k equal_share",
    ),
    Fault(
        COMPANY,
        "if any(other._waiting for other in working):",
        "if working:",
        f"{TOGETHER} -k equal_share",
    ),
    Fault(
        "ppl/lm/decode.py",
        "if len(self.held) < len(self._rows):",
        "if False:",
        f"{TOGETHER} -k given_way",
    ),
    Fault(
        "ppl/lm/guessing.py",
        "company.room(small, longest)",
        "small.batch_rows(longest)",
        f"{TOGETHER} -k small_model",
    ),
    Fault("ppl/lm/huggingface.py", "drafts.fresh()", "pass", "tests/test_fresh.py"),
    Fault(
        COMPANY,
        "others = [row for other in working for row in other.held]",
        "others: list[Held] = []",
        f"{TOGETHER} -k 'middle or threads'",
    ),
    # The prefix tree.
    Fault(RUNS, "!= b[: i + 1])", "!= b[: i + 1]) + 1", ANY),
    Fault(
        PREFIX,
        "states[max(start - edge.start, 0) :]",
        "states[max(start - edge.start - 1, 0) :]",
        f"{ENGINES} -k hidden",
    ),
    Fault(PREFIX, "start = edges[-1].start", "start = last.start", f"{TRUNKS} -k shortened"),
    Fault(
        PREFIX,
        "edge.tokens[at:], edge.start + at, upper",
        "edge.tokens[at:], edge.start, upper",
        f"{WORK} -k 'evicted or hidden or grown'",
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
        f"{WORK} -k 'evicted or memory'",
    ),
    Fault(
        PREFIX,
        "[(leaf.needed, leaf.used,",
        "[(leaf.needed, -leaf.used,",
        f"{WORK} -k 'evicted or memory'",
    ),
    Fault(PREFIX, "edge.slot.edges.add(upper)", "pass", ANY),
    Fault(
        PREFIX,
        "None\n        slot.edges.discard(edge)\n",
        "None\n",
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
        "common_prefix(run, there)\n                return\n",
        "common_prefix(run, there)\n",
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
    Fault(RUNS, "max(start, self.start) - first", "self.start - first", f"{TRUNKS} {ENGINES}"),
    Fault(
        "ppl/lm/engine/spans.py",
        "max(self._keys, default=0) <= price",
        "min(self._keys, default=0) <= price",
        "tests/test_attention.py -k can_pay",
    ),
    Fault(
        SLOTS,
        "        self.empty(slot, keep)\n        self.clock",
        "        self.clock",
        f"{WORK} -k 'evicted or taken_first or made_before'",
    ),
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
        f"{LONG} -k long_enough",
    ),
    Fault(
        SLOTS,
        "copy_, self.content(a).clone()))",
        "copy_, self.content(a)))",
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
        "moves.append(exchange)",
        "pass",
        f"{ENGINES} {DECODERS} -k 'interleaving or company'",
    ),
    Fault(SLOTS, "before[start + len(slots)] - before[start]", "0", "tests/test_slots.py"),
    # Memory.
    Fault(MEMORY, "slot.busy or slot in claimed:", "slot.busy:", ANY),
    Fault(
        MEMORY,
        "slot is None or slot.busy or",
        "slot is None or",
        f"{WORK} {TOGETHER} -k 'draws_alone or do_not_matter'",
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
    # Many tokens of several texts in one pass.
    Fault(RUNS, "size < whole and size <= length", "size <= length", f"{FILLED} -k waits"),
    Fault(RUNS, "size < whole and size <= length", "size < whole", f"{FILLED} -k waits"),
    Fault(PASSES, "done, done - base, *own", "done, 0, *own", f"{FILLED} -k siblings"),
    Fault(
        "ppl/lm/engine/prefill.py",
        "runs.append(run_of(part.piece.kv, keys, values, part.start, count))",
        "pass",
        f"{FILLED} -k before_them",
    ),
    Fault(
        "ppl/lm/engine/prefill.cpp",
        "return job.column + token(n); };",
        "return job.column + token(n) + 1; };",
        f"{FILLED} -k before_them",
    ),
    Fault(
        "ppl/lm/engine/together.h",
        "(from_there > at) | (last[v] < at)",
        "from_there > at",
        f"{FILLED} -k before_them",
    ),
    Fault(
        "ppl/lm/engine/together.h",
        "const int steps = (part + 1) / 2;",
        "const int steps = part / 2;",
        f"{FILLED} -k before_them",
    ),
    Fault(  # noticed where the processor has units for whole matrices
        "ppl/lm/engine/flash.h",
        "_mm512_reduce_max_ps(to) + 1 - place",
        "_mm512_reduce_max_ps(to) - place",
        f"{FILLED} -k before_them",
    ),
    Fault(
        "ppl/lm/engine/flash.h",
        "for (int t = seen; t < steps; t++)",
        "for (int t = steps; t < steps; t++)",
        f"{FILLED} -k before_them",
    ),
    Fault(
        "ppl/lm/engine/flash.h",
        "_mm512_mul_ps(_mm512_sub_ps((__m512)most[v], top), scale)",
        "_mm512_fmadd_ps((__m512)most[v], scale, minus)",
        "tests/test_whole_texts.py -k short_runs",
    ),
    Fault(
        "ppl/lm/engine/prefill.cpp",
        "alone ? GROUP",
        "alone ? 2 * GROUP",
        "tests/test_whole_texts.py -k not_finite",
    ),
    Fault(
        "ppl/lm/engine/building.py",
        "for name in names for part",
        "for name in names[:0] for part",
        "tests/test_native.py -k included",
    ),
    # One copy of a common beginning.
    Fault(RUNS, "part.segment.rows -= 1", "pass", f"{LONG} -k left_behind"),
    Fault(RUNS, "self._held.nbytes -= self.piece.nbytes", "pass", f"{TRUNKS} -k shortened"),
    Fault(
        SLOTS,
        "self.pool.segment(piece, slot.base, trunk=True)",
        "self.pool.segment(piece, slot.base)",
        f"{LONG} -k left_behind",
    ),
    Fault(MEMORY, "fork.stand(slot.trunk)", "pass", f"{TRUNKS} -k copies_less"),
    Fault(MEMORY, "piece[max(base - at, 0) :]", "piece", f"{LONG} -k beginning"),
    Fault(
        TRUNK,
        "torch.logaddexp(self.mass, other.mass)",
        "torch.maximum(self.mass, other.mass)",
        f"{TRUNKS} -k parts_of_attention",
    ),
    Fault(
        RUNS,
        "parts.append(Part(segment, segment.start, stop))",
        "parts.append(Part(segment, edge.start, stop))",
        f"{TRUNKS} -k stays_whole",
    ),
    Fault(
        PREFIX,
        "        # Whoever interrupts",
        "        slot.edges.discard(edge)\n        # Whoever interrupts",
        "tests/test_slots.py -k interrupts",
    ),
    Fault(RUNS, "if a.trunk != b.trunk:", "if False:", f"{TRUNKS} -k no_keys_in_common"),
    # What is kept of keys and values.
    Fault(KEPT, "keys > positions - self.window", "keys >= positions - self.window", KV),
    Fault(KEPT, "(keys < self.sinks)", "(keys <= self.sinks)", KV),
    Fault(KEPT, "clamp_(-127, 127)", "clamp_(-120, 120)", f"{KV} -k 'bits or compressed'"),
    Fault(
        KEPT,
        "(self.window if self.evicts is None else self.evicts.delay) - 1",
        "(self.window if self.evicts is None else self.evicts.delay) - 2",
        f"{KV} -k behind",
    ),
    Fault(KEPT, 'return f"{name} kv={self}" if self else name', "return name", f"{KV} -k named"),
    Fault(
        RUNS,
        "near = edge.stop > length - reach or",
        "near = edge.stop > length or",
        f"{KV} -k behind",
    ),
    Fault(
        SLOTS,
        "            self.pool.lose(edge, start, stop)\n",
        "            pass\n",
        f"{KV} -k behind",
    ),
    Fault(MEMORY, "fork.hole, fork.left = slot.hole, slot.left", "pass", f"{KV} -k behind"),
    Fault(REACH, "keys = keys + lost * (keys >= at)", "pass", f"{KV} -k 'interleaving or window'"),
    Fault(BASE, "if value.kv != mine:", "if False:", f"{KV} -k 'named or refused'"),
    # What heads give up.
    Fault(EVICTING, "keys > at - self", "keys >= at - self", f"{HEADS} -k 'counts or teacher'"),
    Fault(
        EVICTING, "kept = stays[row, head,", "kept = stays[row, head * 0,", f"{HEADS} -k teacher"
    ),
    Fault(
        EVICTING,
        "self._evicts.score(layer, inputs, new, positions))",
        "self._evicts.score(0, inputs, new, positions))",
        f"{HEADS} -k 'teacher or packed'",
    ),
    Fault(
        PACKING, "argsort(dim=-1, stable=True)", "argsort(dim=-1)[..., :0]", f"{HEADS} -k packed"
    ),
    Fault(PACKING, "scores > 0.5", "scores > -0.5", f"{HEADS} -k 'packed and dms'"),
    Fault(
        SLOTS,
        "stop = (slot.length - keep) // group * group",
        "stop = (slot.length - keep + group) // group * group",
        f"{HEADS} -k packed",
    ),
    Fault(
        RUNS,
        "there = not slot.hole[0] < self.length < slot.hole[1] + reach",
        "there = True",
        f"{HEADS} -k cut_back",
    ),
    Fault(
        "ppl/lm/engine/engine.py",
        "self.pool.states(self.pool.known(text), start)",
        "self.pool.states(self.pool.match(text, start), start)",
        f"{HEADS} -k cut_back",
    ),
    Fault(
        GIVEN_UP, '{digest.hexdigest()}, {delay})"', '{delay})"', f"{HEADS} -k 'names or refused'"
    ),
    Fault(GIVEN_UP, "norms * (1 + _LONGER *", "norms * (1 - _LONGER *", f"{HEADS} -k interleaving"),
]
