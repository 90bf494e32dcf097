"""Programs per second: the pool of interpreters started ahead, against fresh ones for each.

python tests/benchmarks/unit_tests.py --programs 100 --workers 2
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import time
from collections.abc import Sequence

from ppl.verifiers import Check, Sandbox
from ppl.verifiers.exact.pool import Pool


def main(argv: Sequence[str] | None = None) -> dict[str, float]:
    """Prints and returns programs per second by method."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--programs", type=int, default=100)
    parser.add_argument("--workers", type=int, default=2, help="programs at a time, in the pool")
    options = parser.parse_args(argv)
    checks = [
        Check(f"def f(x): return x + {i}", ("f",), (f"assert f(2) == {i + 2}",))
        for i in range(options.programs)
    ]
    rates = {}

    begun = time.perf_counter()
    for check in checks:  # what an unprotected judge does
        source = f"{check.source}\n{check.tests[0]}"
        subprocess.run([sys.executable, "-I", "-S", "-c", source], check=True)
    rates["subprocess, no isolation"] = len(checks) / (time.perf_counter() - begun)

    sandbox = Sandbox()
    sandbox.require()
    begun = time.perf_counter()
    assert all(sandbox.run(check).status == "passed" for check in checks)
    rates["fresh sandbox each"] = len(checks) / (time.perf_counter() - begun)

    with Pool(sandbox, options.workers) as pool:
        pool.run(checks[:1])  # warm
        begun = time.perf_counter()
        assert all(outcome.status == "passed" for outcome in pool.run(checks))
        rates[f"pool of {options.workers}"] = len(checks) / (time.perf_counter() - begun)
    for method, rate in rates.items():
        print(f"{method:<26} {rate:8.1f} programs/s")
    return rates


if __name__ == "__main__":
    main()
