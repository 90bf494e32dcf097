"""Problems, worked solutions and exact step labels for the embedded tiny model.

Everything here is our own generator: no item of any published data set is used. Two tasks, in
`tiny_arithmetic.py` and `tiny_countdown.py`.

Training and evaluation are disjoint by construction: every problem has a canonical key, and a
key whose hash is 0 modulo 8 (:func:`ppl.tasks.held_out`) is never generated here, while the
evaluation keeps only such keys.

The question strings follow the templates of the Apache-2.0 package ``reasoning-gym``, so that
the model can be asked its questions verbatim.
"""

from __future__ import annotations

from collections.abc import Sequence
from random import Random

from tiny_arithmetic import arithmetic_item, good_arithmetic_steps
from tiny_countdown import countdown_item, good_countdown_steps
from tiny_item import Item, Task


def training_item(rng: Random, narrow: bool = False) -> Item:
    """One problem of the training mixture, never held out: 45% arithmetic, 55% countdown.

    The narrow mixture, near the difficulty that is evaluated, is for the end of training.
    """
    return arithmetic_item(rng, narrow) if rng.random() < 0.45 else countdown_item(rng, narrow)


def step_labels(task: Task, truth: str, steps: Sequence[str], ended: bool = True) -> list[bool]:
    """One label per step: the prefix up to it is right and can still be completed.

    ``steps`` are the lines of a response.  With ``ended`` the last one is the final line
    (followed by ``<|end|>``); otherwise every step was followed by a newline.
    """
    check = good_arithmetic_steps if task == "arithmetic" else good_countdown_steps
    good = check(truth, steps, ended)
    return [i < good for i in range(len(steps))]
