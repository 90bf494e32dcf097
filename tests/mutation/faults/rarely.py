"""Faults that show themselves once in many runs: locks, threads, forks, garbage."""

from fault import Fault

LOOP, TURNS, TESTS = "ppl/runtime/loop.py", "ppl/runtime/turns.py", "tests/test_rarely.py"

FAULTS = [
    Fault(
        "ppl/language/cached.py",
        "TYPE_CHECKING or sys.version_info >= (3, 12)",
        "True",
        f"{TESTS} -k computed",
    ),
    Fault("ppl/locks.py", "each._at_fork_reinit()", "pass", f"{TESTS} -k free"),
    Fault("ppl/lm/server/endpoint.py", "self._lock = lock()", "", f"{TESTS} -k free"),
    Fault("ppl/lazy.py", "_FIRST = lock()", "_FIRST = __import__('threading').Lock()", TESTS),
    Fault(TURNS, "and self._holder is holder", "", f"{TESTS} -k after_its_turn"),
    Fault(TURNS, ' and bool(found.get("block", True))', "", f"{TESTS} -k lives"),
    Fault(
        TURNS,
        "    before=_looking.acquire, after_in_parent=_looking.release, "
        "after_in_child=_looking.release\n",
        "",
        f"{TESTS} -k free",
    ),
    Fault(LOOP, "atexit.register(TURNS.dismiss, _FAREWELL)", "", f"{TESTS} -k interpreter"),
    Fault(
        TURNS,
        "                if self._holder is None or self._holder.thread == me:  # hands it on\n"
        "                    self._holder = others[0]\n",
        "",
        f"{TESTS} -k dismissed",
    ),
    Fault(TURNS, "other.interrupted = SystemExit()", "pass", f"{TESTS} -k interpreter"),
    Fault(LOOP, "and job in self._jobs", "", f"{TESTS} -k of_a_parent"),
    Fault(LOOP, "not (job.over or future.cancelled())", "not future.cancelled()", TESTS),
    Fault(LOOP, "if came:", "if False:", f"{TESTS} -k does_not_end"),
    Fault(LOOP, "                    future.set_exception(error)\n\n", "\n", f"{TESTS} -k awaits"),
    Fault("ppl/runtime/awake.py", "pulse.timer = None  #", "#", f"{TESTS} -k not_kept"),
    Fault(
        "ppl/language/errand.py",
        "        finally:\n            loop.close()\n",
        "        finally:\n            pass\n",
        f"{TESTS} -k handed_out",
    ),
    Fault(
        "ppl/runtime/coroutine.py",
        "_marks.own = object()",
        "_marks.own = threading.get_ident()",
        f"{TESTS} -k mark",
    ),
    Fault(
        "ppl/runtime/worker.py",
        "if self._reader is not threading.current_thread():",
        "if True:",
        f"{TESTS} -k given_up",
    ),
    Fault("ppl/runtime/worker.py", "if not stream.closed:", "if True:", f"{TESTS} -k its_reader"),
]
