"""Scripts that tests run in an interpreter of their own."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent


def run_script(script: str | Path, *arguments: str, warnings: str = "error") -> str:
    """What a script prints, given as its text or as a file, in an interpreter of its own that finds
    this library and these tests; warnings raise unless said otherwise."""
    paths = [str(HERE), str(HERE.parent), os.environ.get("PYTHONPATH", "")]
    source = [script] if isinstance(script, Path) else ["-c", script]
    done = subprocess.run(
        [sys.executable, "-W", warnings, *source, *arguments],
        check=False,
        capture_output=True,
        text=True,
        timeout=900,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(paths)},
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout.strip()
