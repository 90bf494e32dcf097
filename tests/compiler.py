"""A C++ compiler for `compile=True`; tests that need one say so."""

from __future__ import annotations

import os
import shlex
import shutil

import pytest

needs_compiler = pytest.mark.skipif(
    shutil.which(shlex.split(os.environ.get("CXX", "g++"))[0]) is None,
    reason="needs a C++ compiler (g++, or CXX)",
)
