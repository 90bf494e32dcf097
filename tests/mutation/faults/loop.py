"""Faults in the loop, the batches, the turns and the accounts."""

from fault import Fault

LOOP, BATCH, TURNS = "ppl/runtime/loop.py", "ppl/runtime/batch.py", "ppl/runtime/turns.py"
WAVE, COST = "ppl/runtime/wave.py", "ppl/language/cost.py"
TESTS, ACCOUNTS = (
    "tests/test_loop.py tests/test_loop_alone.py tests/test_loop_parks.py",
    "tests/test_accounts.py",
)

FAULTS = [
    Fault("ppl/runtime/awake.py", "pulse.waiting == 1", "False", "tests/test_watching.py -k stop"),
    Fault(
        "ppl/runtime/awake.py",
        "not pulse.waiting and",
        "False and",
        "tests/test_watching.py -k pulse",
    ),
    Fault(BATCH, "running.session.cancel(mine)", "pass", f"{TESTS} -k drawn_no_further"),
    Fault(BATCH, "if len(searches) > 1:", "if False:", f"{TESTS} -k verifier"),
    Fault(
        BATCH,
        "len({g.search for g, _, _ in rows}) == 1",
        "bool(rows)",
        f"{TESTS} -k bad_question",
    ),
    Fault(
        LOOP,
        "if account is not None and account.out_of_time:",
        "if False:",
        f"{TESTS} -k starves_nobody",
    ),
    Fault(
        LOOP,
        "        with self._mutex:\n            if self._thread is not threading.current_thread():\n"
        "                return\n",
        "",
        f"{TESTS} -k loops_thread",
    ),
    Fault(TURNS, "            seat.arriving = True\n", "", f"{TESTS} -k driven_away"),
    Fault(
        TURNS,
        "seat.thread, seat.arriving = me, True\n",
        "seat.thread = me\n",
        f"{TESTS} -k control_c",
    ),
    Fault(TURNS, "            gc.disable()\n", "", f"{TESTS} -k collects"),
    Fault(TURNS, '("self") is waiting', '("self") is not None', f"{TESTS} -k joins"),
    Fault(TURNS, "code in _JOINING", "code in _JOINING[:0]", f"{TESTS} -k joins"),
    Fault(WAVE, "self.eager = quorum is not None", "self.eager = False", f"{TESTS} -k quorum"),
    Fault(
        WAVE, "any(p.thread is not thread for p in self.particles)", "False", f"{TESTS} -k pickled"
    ),
    Fault(
        LOOP,
        "share_seconds(time.perf_counter() - started, accounts)",
        "pass",
        f"{ACCOUNTS} -k taken_in",
    ),
    Fault(COST, "self.verifier_tokens - self.draws)", "self.verifier_tokens)", ACCOUNTS),
    Fault(COST, "seconds * count / total", "seconds", f"{ACCOUNTS} -k add_up"),
    Fault(COST, '"reused_tokens": "verifier_reused_tokens",', "", f"{ACCOUNTS} -k pages"),
]
