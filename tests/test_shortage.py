"""Programs of our own where memory is short: on small stacks of threads, and where none is left."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from compiler import needs_compiler

pytestmark = needs_compiler
HERE = Path(__file__).parent

BEGIN = """
import resource, sys, threading, torch
from ppl.lm.engine.prefill import Job, Packed
from ppl.lm.engine.native import attend
from ppl.lm.engine.products import Own
from ppl.lm.engine.quantised import Int8Linear

def fill():
    kv = [(torch.zeros(2, 2, 400, 256).bfloat16(),) for _ in range(2)]
    jobs = [Job(tuple(range(n)), 0, 0, own, torch.zeros(0), ())
            for n, own in zip((300, 70), kv)]
    new = [torch.ones(370, heads, 1, 256).bfloat16() for heads in (6, 2, 2)]
    return Packed(jobs).attend(*new, ((0, 0), (0, 1)), 0.1, None, None)
"""
SMALL = """
torch.set_num_threads(2)
found = []
threading.stack_size(256 << 10)
thread = threading.Thread(target=lambda: found.append(fill()))
thread.start()
thread.join()
print(found[0].shape, bool((found[0] == 1).all()))
"""
NONE = """
def eight():
    layer = Int8Linear(torch.nn.Linear(64, 8))
    x = torch.zeros(1_000_000, 64)
    return lambda: layer(x)

def filled():
    weight = torch.zeros(32, 40).bfloat16()
    own = Own(torch.ops.mkldnn._reorder_linear_weight(weight, 1), weight, None)
    x = torch.zeros(1_000_000, 40).bfloat16()
    return lambda: own(x)

with torch.inference_mode():
    try:
        run = {"eight": eight, "filled": filled}[sys.argv[1]]()
    except RuntimeError as error:  # no such instructions
        print("skipped", error)
        sys.exit()
    run()
    taken = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
    # Room for what it gives, not for what it needs besides.
    resource.setrlimit(resource.RLIMIT_AS, (taken + 66_000_000,) * 2)
    try:
        run()
    except MemoryError as error:
        print(error)
"""


def said(code: str, *arguments: str, **environment: str) -> str:
    done = subprocess.run(
        [sys.executable, "-c", BEGIN + code, *arguments],
        capture_output=True, text=True, timeout=900, cwd=HERE, check=False,
        env={**os.environ, **environment},
    )  # fmt: skip
    assert done.returncode == 0, (done.returncode, done.stderr[-2000:])
    return done.stdout.strip()


@pytest.mark.skipif(sys.platform != "linux", reason="stacks of threads are set as on Linux")
def test_wide_heads_need_no_more_stack_than_threads_have_anywhere():
    assert said(SMALL, OMP_STACKSIZE="256K") == "torch.Size([370, 1, 6, 256]) True"


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
@pytest.mark.parametrize("program", ["eight", "filled"])
def test_without_memory_there_is_an_error_that_says_what_helps(program):
    told = said(NONE, program)
    if told.startswith("skipped"):
        pytest.skip(told)
    assert "no memory" in told
    assert "kv_bytes=" in told
