"""Weights move to large pages as they are, and only where the system has them."""

from __future__ import annotations

import re
from pathlib import Path

import torch

from ppl.lm.engine import pages
from ppl.lm.engine.pages import Range, enlarge, mostly


def large_kib(address: int) -> int:
    """KiB in large pages of the mapping that has an address."""
    inside = False
    for line in Path("/proc/self/smaps").read_text().splitlines():
        if found := re.match(r"([0-9a-f]+)-([0-9a-f]+) ", line):
            inside = int(found[1], 16) <= address < int(found[2], 16)
        elif inside and line.startswith("AnonHugePages:"):
            return int(line.split()[1])
    return 0


def test_memory_is_moved_as_it_is():
    numbers = torch.arange(8 << 20, dtype=torch.int32)  # 32 MiB
    before, address = numbers.clone(), numbers.data_ptr()
    moved = enlarge([Range(address, numbers.nbytes)])
    assert numbers.data_ptr() == address
    assert torch.equal(numbers, before)
    assert moved <= numbers.nbytes + (2 << 20)
    if moved:  # the system had some
        assert large_kib(address + numbers.nbytes // 2) >= moved // 2048


def test_pages_are_those_that_are_mostly_weights():
    assert mostly([Range(100, 100)], 100) == [100]
    assert mostly([Range(0, 40), Range(40, 10), Range(151, 40)], 100) == [0]  # 50, 40 of 100
    assert mostly([Range(149, 1000)], 100) == [100, *range(200, 1100, 100)]
    assert mostly([Range(151, 60), Range(211, 70)], 100) == [200]


def test_little_memory_and_a_system_that_says_never_are_left_alone(monkeypatch, tmp_path):
    small, large = torch.zeros(1 << 20), torch.ones(8 << 20)
    assert enlarge([Range(small.data_ptr(), small.nbytes)]) == 0
    monkeypatch.setattr(pages, "_SETTINGS", tmp_path)
    asked = [Range(large.data_ptr(), large.nbytes)]
    assert enlarge(asked) == 0  # it says nothing
    (tmp_path / "enabled").write_text("always madvise [never]\n")
    (tmp_path / "hpage_pmd_size").write_text("2097152\n")
    assert enlarge(asked) == 0
