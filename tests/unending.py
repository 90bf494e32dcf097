"""Functions for `allowed=` that do not return, or not soon; a process of replicas imports them."""

from __future__ import annotations

import time


def endless(new):
    """Does not return after two tokens."""
    while len(new) > 1:
        pass
    return (40, 41)


def slow(new):
    """Takes its time, and returns."""
    time.sleep(0.02)
    return (40, 41)


def slower(new):
    """Takes longer than a test's patience for calls that nobody waits for."""
    time.sleep(1.0)
    return (40, 41)
