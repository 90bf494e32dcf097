"""Faults in language models, the engine and servers."""

from __future__ import annotations

from fault import Fault

ENGINE, SERVER = "ppl/lm/engine", "ppl/lm/server"
DECODERS, LOADING, FLAKY = "tests/test_decoders.py", "tests/test_loading.py", "tests/test_flaky.py"
SETTING, INTERRUPTS = "tests/test_setting.py", "tests/test_interrupts.py"
PRODUCTS, WHOLE = "tests/test_products.py", "tests/test_whole.py"
EIGHT = "tests/test_quantised.py -k bit_for_bit"  # noticed where the processor has AMX
FILLS = "tests/test_whole_texts.py"
SAYS = "tests/test_loading_says.py"
ADAPTERS, REPLICAS = "tests/test_several_adapters.py", "tests/test_replicas.py"
ATTENTION, CHECKS = f"{ENGINE}/attention.py", "ppl/language/checks.py"
FINITE = "tests/test_families.py -k not_finite"
LAZY, IMPORTS = "tests/test_lazy.py", "tests/test_imports.py"
LOW_RANK = "tests/test_low_rank.py"
JUDGING, FUNCTIONS = "tests/test_judging_adapters.py", "tests/test_replica_functions.py"

FAULTS = [
    Fault(
        f"{ENGINE}/beside.py", " or running.whose is not self._whose", "", f"{LOW_RANK} -k engines"
    ),
    # What is imported when.
    Fault("ppl/lazy.py", "            setattr(front, name, found)  # asked for once\n", "", LAZY),
    Fault("ppl/lazy.py", 'name[0] != "_" and ', "", f"{LAZY} -k not_there"),
    Fault("ppl/lazy.py", "{*vars(front), *home, *", "{*vars(front), *", f"{LAZY} -k listed"),
    Fault(
        "ppl/posterior/models.py",
        "_RENAMED.get(path, path)",
        "path",
        "tests/test_stored_searches.py -k name_that_it_had",
    ),
    Fault(
        "ppl/lm/server/model.py",
        "from ppl.lm.server.client import Client\n",
        "from ppl.lm.quiet import quiet_transformers\nfrom ppl.lm.server.client import Client\n",
        f"{IMPORTS} -k runs_its_models_alone",
    ),
    Fault(f"{ENGINE}/slots.py", "if slot.used > clock:", "if slot.used < clock:", DECODERS),
    Fault(
        f"{ENGINE}/engine.py",
        "self.pool.insert(tokens[: slot.length], slot)",
        "self.pool.insert(tokens, slot)",
        DECODERS,
    ),
    Fault(f"{ENGINE}/decoder.py", "- count]", "- count - 1]", DECODERS),
    Fault(f"{ENGINE}/decoder.py", "if number not in going:", "if number in going:", DECODERS),
    Fault(f"{ENGINE}/slots.py", "            self.pool.clear()\n", "", f"{DECODERS} -k had"),
    Fault(f"{ENGINE}/building.py", "if said < 0:", "if said > 0:", "tests/test_shortage.py"),
    Fault(f"{ENGINE}/slots.py", "            if edge.slot is slot:\n    ", "", INTERRUPTS),
    # What is not finite, in passes of the library.
    Fault(ATTENTION, "looks = attention_mask is not None and", "looks = False and", FINITE),
    Fault(ATTENTION, "masked_fill(meets[..., None], torch.nan)", "clone()", FINITE),
    Fault(ATTENTION, "(seen & spoilt[:, :, None]).any(-1)", "spoilt[:, :, None].any(-1)", FINITE),
    Fault(f"{ENGINE}/slots.py", "[copy.data_ptr()] = self", "[0] = self", FINITE),
    Fault("ppl/lm/sources.py", "else path.stem", "else str(path)", "tests/test_gguf_names.py"),
    Fault("ppl/lm/sources.py", "+ file.read()", "", "tests/test_gguf_names.py"),
    Fault(CHECKS, '{f"{p}iB": 1024**i', '{f"{p}iB": 1000**i', "tests/test_checks.py"),
    Fault(CHECKS, "math.floor(Fraction(said[1])", "int(float(said[1])", "tests/test_checks.py"),
    Fault(f"{ENGINE}/passes.py", "ids.min() < 0 or ", "", DECODERS),
    Fault(f"{ENGINE}/admission.py", "not 2 <= wanted", "not 1 <= wanted", LOADING),
    Fault(f"{ENGINE}/linear.py", "or layer in read", "", LOADING),
    # Products and steps of our own.
    Fault(f"{ENGINE}/products.cpp", "% each * SIDE_BY_SIDE", "% each", PRODUCTS),
    Fault(f"{ENGINE}/matrices.h", "at % each * 2 * SIDE", "at % each * SIDE", PRODUCTS),
    Fault(f"{ENGINE}/matrices.h", "filled == inputs ? rows", "filled ? rows", PRODUCTS),
    Fault(
        f"{ENGINE}/int8_matrices.h",
        "add(g - 1, 0, half, count)",
        "add(g - 1, 0, half, half)",
        EIGHT,
    ),
    Fault(f"{ENGINE}/int8_matrices.h", "weights + LINE, 2 * LINE", "weights + LINE, LINE", EIGHT),
    Fault(f"{ENGINE}/int8.cpp", "finite ? 0.0f : NAN", "0.0f", EIGHT),
    Fault(f"{ENGINE}/int8.cpp", "rows - row < each ? rows - row : each", "each", EIGHT),
    Fault(f"{ENGINE}/products.cpp", "vectors * (part + 1)", "vectors * part", PRODUCTS),
    Fault(
        f"{ENGINE}/linear.py", "x.numel() <= self.own.most", "x.numel() > self.own.most", PRODUCTS
    ),
    Fault(f"{ENGINE}/passes.py", "self.as_steps(len(slots))", "self.stepwise", WHOLE),
    Fault(
        f"{ENGINE}/attention.cpp",
        "slots && repeats(slots, rows)",
        "false",
        "tests/test_native.py",
    ),
    Fault(f"{ENGINE}/unaltered.py", "any(self._hooks) or ", "", WHOLE),
    Fault(f"{ENGINE}/unaltered.py", ' or any("forward" in own for own in self._own)', "", WHOLE),
    Fault(f"{ENGINE}/unaltered.py", "map(dict.values, self._inside)", "()", f"{WHOLE} -k altered"),
    Fault(
        f"{ENGINE}/linear.py",
        "            output = outputs[number]\n",
        "            output = self._given[1][number]\n",
        "tests/test_linear.py -k threads",
    ),
    Fault(f"{ENGINE}/linear.py", "if x.requires_grad and", "if False and", "tests/test_linear.py"),
    Fault(f"{ENGINE}/setting.py", "if torch.is_autocast_enabled(kind)", "if False", SETTING),
    Fault(
        f"{ENGINE}/setting.py",
        "_inside.get() and torch.is_inference_mode_enabled()",
        "_inside.get() or torch.is_inference_mode_enabled()",
        SETTING,
    ),
    Fault(
        f"{ENGINE}/setting.py",
        "_inside.get() and torch.is_inference_mode_enabled()",
        "_inside.get()",
        SETTING,
    ),
    Fault(f"{ENGINE}/decoder.py", "self._engine.slots.drop_since(clock)", "pass", INTERRUPTS),
    Fault("ppl/lm/decode.py", "        self._decoder.advance([], [])  #", "        #", INTERRUPTS),
    Fault(
        f"{ENGINE}/setting.py",
        "self._leave(failure)  # leaving inference mode twice is leaving it",
        "pass",
        INTERRUPTS,
    ),
    Fault(
        f"{ENGINE}/building.py",
        "            _refused[kept.name] = said\n",
        "            pass\n",
        "tests/test_quantised.py -k refuses",
    ),
    Fault(
        f"{ENGINE}/quantised.py",
        "_TILE, dtype=torch.float32)",
        "_TILE)",
        "tests/test_quantised.py -k one_type",
    ),
    Fault(
        f"{ENGINE}/engine.py",
        "        torch.set_num_threads(1)",
        "        pass",
        "tests/test_concurrency.py -k forked",
    ),
    Fault(f"{ENGINE}/layers.h", "(a * one) - rounded(b", "(a * one) + rounded(b", WHOLE),
    Fault(
        f"{ENGINE}/slots.py",
        "for move in moves[at:]:",
        "for move in []:",
        "tests/test_interrupts.py",
    ),
    Fault(f"{ENGINE}/whole.cpp", "kept[l].firsts, query));", "nullptr, query));", FILLS),
    Fault(f"{ENGINE}/whole.cpp", "if (l) layers.go_on(", "if (l > 1) layers.go_on(", FILLS),
    Fault(f"{ENGINE}/whole.py", "and whole.stands:", "and True:", FILLS),
    Fault(f"{ENGINE}/selfcheck.py", "whole.fills = _fills(engine)", "pass", FILLS),
    Fault(f"{ENGINE}/pages.py", "2 * nbytes >= page", "nbytes >= page", "tests/test_pages.py"),
    Fault("ppl/lm/sampling.py", "limit - _rounding(log_probs)", "limit", "tests/test_sampling.py"),
    Fault("ppl/lm/loading.py", "max(fitting, key=len)", "min(fitting, key=len)", LOADING),
    Fault("ppl/lm/pretrained.py", '("ForTokenClassification", "ForPro', '("ForPro', SAYS),
    Fault(f"{ENGINE}/counters.py", "takes_whole(1)", "takes_whole(2)", SAYS),
    Fault(
        f"{ENGINE}/engine.py",
        "if self.capacity < self._memory.least:",
        "if self.capacity < 1:",
        f"{LOADING} -k megabytes",
    ),
    Fault("ppl/lm/held.py", "vars(view).update(vars(self))", "pass", f"{SAYS} -k cannot_be_sent"),
    Fault("ppl/lm/base.py", "OF_MODELS.get(name)", "None", f"{SAYS} -k other_models"),
    Fault("ppl/cli/doctor.py", "9 / 8 * width * size", "9 / 8 * size", SAYS),
    Fault(
        f"{SERVER}/answer.py",
        "isinstance(value, bool) or not isinstance(value, int) or not 0",
        "not isinstance(value, int) or not 0",
        FLAKY,
    ),
    Fault(f"{SERVER}/answer.py", "not value <= _ROUNDING", "value > _ROUNDING", FLAKY),
    Fault(f"{SERVER}/answer.py", "if reused > length:", "if reused < 0:", FLAKY),
    Fault(f"{SERVER}/client.py", "if -math.inf in answer.log_probs:", "if False:", FLAKY),
    Fault(f"{SERVER}/client.py", "if answer.model != self._answering:", "if False:", FLAKY),
    Fault(f"{SERVER}/endpoint.py", "_LATER = {408, 425, 429}", "_LATER = {429}", FLAKY),
    Fault(f"{SERVER}/endpoint.py", "max(asked, own)", "own", FLAKY),
    Fault(f"{SERVER}/endpoint.py", "future.cancel()", "pass", f"{FLAKY} -k ctrl_c"),
    Fault(f"{SERVER}/flight.py", "_GRACE = 0.5", "_GRACE = 30.0", f"{FLAKY} -k half_a_second"),
    Fault(
        "ppl/lm/running.py",
        "while len(results) < len(tickets):",
        "while session.running:",
        "tests/test_server.py -k spent_time",
    ),
    # Windows of compiled steps.
    Fault(
        f"{ENGINE}/together.h",
        "place + t < few ? low[v]",
        "place + t <= few ? low[v]",
        "tests/test_native.py -k first_tokens",
    ),
    Fault(
        f"{ENGINE}/compiled.py",
        "torch.maximum(low, self.keeps.near(self.positions))",
        "low",
        "tests/test_kv.py -k 'both_kept'",
    ),
    # Adapters beside the weights, and copies of a model.
    Fault(f"{ENGINE}/beside.py", "* kept[:, None]", "", f"{ADAPTERS} -k one_batch"),
    Fault(
        f"{ENGINE}/beside.py",
        "gone.add(self._gone.popleft())",
        "self._gone.popleft()",
        f"{ADAPTERS} -k go_with",
    ),
    Fault(f"{ENGINE}/lowrank.h", "        low += share.rank;\n", "", f"{LOW_RANK} -k close_to"),
    Fault(f"{ENGINE}/lowrank.h", "low[at + r] - first", "low[at + r]", f"{LOW_RANK} -k same_bits"),
    Fault(f"{ENGINE}/whole.py", "[*call, beside]", "[*call, None]", f"{LOW_RANK} -k every_kind"),
    Fault(f"{ENGINE}/prefill.py", "self.trunk, self.adapter)", "self.trunk)", LOW_RANK),
    Fault(f"{ENGINE}/unaltered.py", "type(h) is not Thin", "False", f"{LOW_RANK} -k refused"),
    Fault(f"{ENGINE}/adapted.py", "adapters.agrees = True", "pass", f"{LOW_RANK} -k refused"),
    Fault(
        f"{ENGINE}/beside.py",
        'layer that has none is what it was."""\n        self.laid.clear()\n',
        'layer that has none is what it was."""\n',
        "tests/test_adapters_ahead.py -k as_it_was",
    ),
    Fault("ppl/lm/adapter.py", "if weight in shared:", "if False:", "tests/test_adapters.py"),
    Fault(
        "ppl/lm/adapter.py",
        "            break  # the first",
        "#",
        "tests/test_adapters.py -k scales",
    ),
    Fault(
        "ppl/lm/adapter.py",
        " and layer.endswith(found.copied)",
        "",
        "tests/test_adapters.py -k was_copied",
    ),
    Fault(
        "ppl/lm/adapter.py",
        "not in _BEGUN",
        "in ()",
        "tests/test_adapters.py -k more_than_low_rank",
    ),
    Fault(
        f"{ENGINE}/beside.py",
        "        self._rows = None  # of a pass that failed",
        "        #",
        f"{LOW_RANK} -k failed",
    ),
    Fault(
        f"{ENGINE}/burst.py",
        "if window.slots is None:",
        "if False:",
        "tests/test_bursts.py -k something_else",
    ),
    Fault(
        "ppl/runtime/replicas.py", "(-seen[c], now[c])", "(now[c],)", f"{REPLICAS} -k goes_where"
    ),
    Fault(
        "ppl/lm/replica.py",
        "            self._drawing.close()\n",
        "",
        "tests/test_copies_ahead.py -k who_failed",
    ),
    Fault(
        "ppl/lm/replica.py",
        "                alone.close()\n",
        "",
        "tests/test_copies_ahead.py -k no_memory_busy",
    ),
    Fault(
        "ppl/lm/engine/beside.py",
        "                thin.hook.remove()\n",
        "",
        "tests/test_adapters_ahead.py -k as_it_was",
    ),
    Fault(
        "ppl/lm/engine/adapted.py",
        "engine.slots.drop_since(before)",
        "pass",
        "tests/test_several_adapters.py -k others_are_refused",
    ),
    Fault(
        "ppl/lm/replica.py",
        "            calling.run(self.ticket, self.stop.after, token)\n",
        "",
        f"{REPLICAS} -k half_way",
    ),
    Fault(
        "ppl/runtime/link.py",
        "now == before and now[0] in self._left",
        "now[0] in self._left",
        f"{FUNCTIONS} -k calls_return",
    ),
    Fault("ppl/runtime/link.py", "if same == _LOOKS:", "if same:", f"{FUNCTIONS} -k calls_return"),
    Fault("ppl/runtime/link.py", "self.process.process.kill()", "pass", f"{FUNCTIONS} -k ends"),
    Fault(
        "ppl/lm/replica.py",
        "under = None if ask.under is None else watched(ask.under)",
        "under = ask.under",
        f"{FUNCTIONS} -k brings_along",
    ),
    Fault("ppl/runtime/replicas.py", "self.kv = about.kv", "pass", f"{REPLICAS} -k it_copies"),
    Fault(
        "ppl/runtime/replicas.py",
        "and row.ticket not in self._again:",
        "and self._again:",
        f"{REPLICAS} -k dies",
    ),
    Fault(
        "ppl/lm/huggingface.py",
        'vars(self).get("origin") if weights is None else None',
        'vars(self).get("origin")',
        f"{JUDGING} -k no_other_law",
    ),
    Fault(
        "ppl/lm/huggingface.py",
        "name = self._keeps.named(name)",
        "pass",
        f"{JUDGING} -k what_the_base_keeps",
    ),
    # Scores that others compute.
    Fault(
        "ppl/runtime/batch.py",
        "isinstance(request, ScoreRequest) and request.model.elsewhere",
        "False",
        "tests/test_loop.py -k slow_server",
    ),
    Fault(
        f"{SERVER}/flight.py",
        "replace(row.drawn, log_prob_under=score)",
        "row.drawn",
        "tests/test_loop.py -k slow_server",
    ),
    Fault(
        f"{SERVER}/answer.py",
        "self.prompt_log_probs[-length:]",
        "self.prompt_log_probs[-length - 1 :]",
        "tests/test_server.py",
    ),
    Fault(
        f"{SERVER}/answer.py",
        "request.ledger.add(scored_tokens=length)",
        "pass",
        "tests/test_loop.py -k slow_server",
    ),
    Fault(
        "ppl/lm/settings.py",
        "error.args = (_in_words(error.args[0], said),)",
        "pass",
        "tests/test_loading.py -k 'are_none or do_not_have'",
    ),
    Fault(
        "ppl/lm/origin.py",
        "tuple(value) if isinstance(value, list) else value",
        "value",
        f"{REPLICAS} -k kept_in_files",
    ),
    Fault(
        "ppl/lm/conversation.py",
        'message["role"] != "assistant"',
        'message["role"] == "system"',
        "tests/test_chat.py -k does_not_know",
    ),
    Fault(
        "ppl/cli/loading.py",
        'if name != "options"]',
        "if name]",
        "tests/test_cli_loading.py -k options_of",
    ),
    Fault(
        "ppl/cli/serve.py",
        "if own and name not in models:",
        "if own:",
        "tests/test_cli_loading.py -k aliases",
    ),
    Fault(f"{SERVER}/probe.py", "reversed(texts)][::-1]", "texts]", f"{FLAKY} -k at_start"),
]
