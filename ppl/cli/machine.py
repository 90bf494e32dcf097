"""What this machine is and how fast: measured within a second, with bounds for any model."""

from __future__ import annotations

import os
import platform
import shlex
import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

SIZES = {"135M": 0.135e9, "0.5B": 0.5e9, "1.5B": 1.5e9, "7B": 7e9}
BATCH = 16
_INSTRUCTIONS = ("avx512_bf16", "amx_bf16", "avx512_vnni", "amx_int8")


@dataclass(frozen=True)
class Machine:
    """Hardware.

    Attributes:
        processor: its name.
        cores: that this process may use.
        threads: that torch uses.
        memory: bytes, None if not told.
        available: bytes of memory that are free for use, None if not told.
        accelerators: names with their memory.
        compiler: the C++ compiler with which the engine's programs are built, "" if there is none.
        instructions: which the processor has of those that settle what is fast: for products in
            bfloat16 and of eight bits.
    """

    processor: str
    cores: int
    threads: int
    memory: int | None
    available: int | None
    accelerators: tuple[str, ...]
    compiler: str
    instructions: tuple[str, ...] = ()

    @property
    def bfloat16(self) -> bool:
        """Whether the processor multiplies numbers in bfloat16."""
        return bool({"avx512_bf16", "amx_bf16"} & set(self.instructions))


@dataclass(frozen=True)
class Speed:
    """Of the processor, in float32.

    Attributes:
        flops: floating point operations a second, of a large product of matrices.
        bandwidth: bytes of memory read a second.
    """

    flops: float
    bandwidth: float

    def tokens(self, parameters: float, batch: int, width: int = 4) -> float:
        """A bound on the tokens a second of a decoder: every pass reads all weights once, and
        multiplies and adds each of them once a token.

        Args:
            parameters: of the model.
            batch: sequences that are extended at once.
            width: bytes of a weight.
        """
        reading = width * parameters / self.bandwidth
        computing = 2 * parameters * batch / self.flops
        return batch / max(reading, computing)


def machine() -> Machine:
    """This one."""
    import torch

    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    memory = _meminfo()
    found = []
    if torch.cuda.is_available():
        for i in range(torch.cuda.device_count()):
            about = torch.cuda.get_device_properties(i)
            found.append(f"cuda:{i} {about.name}, {about.total_memory / 2**30:.0f} GiB")
    if torch.backends.mps.is_available():
        found.append("mps (Apple)")
    compiler = shlex.split(os.environ.get("CXX", "g++"))
    return Machine(
        _processor(),
        cores or 1,
        torch.get_num_threads(),
        memory.get("MemTotal"),
        memory.get("MemAvailable"),
        tuple(found),
        (shutil.which(compiler[0]) or "") if compiler else "",
        tuple(name for name in _INSTRUCTIONS if name in _cpuinfo("flags").split()),
    )


def speed(seconds: float = 0.3) -> Speed:
    """Measures for about twice so many seconds."""
    import torch

    square = torch.ones(768, 768)
    long = torch.ones(16 << 20)  # 64 MiB: more than caches hold
    product = _fastest(lambda: square @ square, seconds)
    reading = _fastest(long.sum, seconds)
    return Speed(2 * 768**3 / product, long.nbytes / reading)


def _fastest(work: Callable[[], object], seconds: float) -> float:
    """The shortest time of a call; others on the machine only make it longer."""
    work()
    best, end = float("inf"), time.perf_counter() + seconds
    while time.perf_counter() < end:
        began = time.perf_counter()
        work()
        best = min(best, time.perf_counter() - began)
    return best


def _processor() -> str:
    return _cpuinfo("model name") or platform.processor() or platform.machine()


def _cpuinfo(name: str) -> str:
    """What the system says of the first processor, "" if nothing."""
    try:
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            key, _, said = line.partition(":")
            if key.strip() == name:
                return said.strip()
    except OSError:
        pass
    return ""


def _meminfo() -> dict[str, int]:
    """Sizes in bytes by name; empty where the system does not tell them so."""
    try:
        lines = Path("/proc/meminfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return {}
    rows = (line.split() for line in lines)
    return {r[0].rstrip(":"): int(r[1]) * 1024 for r in rows if len(r) == 3 and r[1].isdecimal()}
