"""Whether model-written code can be isolated here; tests that run some say that they need it.

What is to end by itself has long enough for any machine, also for one that stands still meanwhile.
"""

from __future__ import annotations

import pytest

from ppl.errors import SandboxError
from ppl.verifiers import Sandbox

PATIENT = Sandbox(seconds=60.0)


def working() -> bool:
    try:
        PATIENT.require()
    except SandboxError:
        return False
    return True


needs_bubblewrap = pytest.mark.skipif(not working(), reason="needs a working bubblewrap")
