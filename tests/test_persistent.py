"""Values that grow: old versions stay as they were, and sizes do not matter."""

from __future__ import annotations

import pickle
import random

import pytest

from ppl.searchers.trees.persistent import IntMap, Log


def test_a_map_is_a_dictionary_of_which_every_version_stays():
    rng = random.Random(0)
    versions: list[tuple[IntMap[str], dict[int, str]]] = [(IntMap(), {})]
    for t in range(3000):
        one, plain = versions[rng.randrange(max(0, len(versions) - 50), len(versions))]
        number = rng.choice([rng.randrange(40), rng.randrange(5000), 32**3 + rng.randrange(40)])
        versions.append((one.set(number, f"{t}"), {**plain, number: f"{t}"}))
    for one, plain in versions[::97]:
        assert dict(one) == plain
        assert len(one) == len(plain)
        assert list(one) == sorted(plain)
        assert one == plain
        assert pickle.loads(pickle.dumps(one)) == plain
    one, plain = versions[-1]
    for missing in (-1, 31, 32**6):
        if missing not in plain:
            assert missing not in one
            with pytest.raises(KeyError):
                one[missing]


def test_a_log_is_a_list_of_which_every_version_stays():
    rng = random.Random(1)
    versions: list[tuple[Log[int], list[int]]] = [(Log(), [])]
    for t in range(500):
        one, plain = versions[rng.randrange(max(0, len(versions) - 5), len(versions))]
        new = [t] * rng.randrange(3)
        versions.append((one.append(*new), [*plain, *new]))
    for one, plain in versions:
        assert list(one) == plain == one
        assert len(one) == len(plain)
        assert bool(one) == bool(plain)
        assert one[1:3] == plain[1:3]
        assert pickle.loads(pickle.dumps(one)) == one
        if plain:
            assert (one[0], one[-1]) == (plain[0], plain[-1])
        with pytest.raises(IndexError):
            one[len(plain)]
