"""Whether model-written code can be isolated here; tests that run some say that they need it."""

from __future__ import annotations

import pytest

from ppl.errors import SandboxError
from ppl.verifiers import Sandbox


def working() -> bool:
    try:
        Sandbox().require()
    except SandboxError:
        return False
    return True


needs_bubblewrap = pytest.mark.skipif(not working(), reason="needs a working bubblewrap")
