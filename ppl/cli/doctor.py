"""`ppl doctor`: what is installed, what hardware there is, what would be fast, what is missing."""

from __future__ import annotations

import platform
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Annotated, Any

import typer
from rich.markup import escape
from rich.table import Table

from ppl.cli import extras as optional
from ppl.cli import machine as hardware
from ppl.cli.terminal import print_json, stdout
from ppl.posterior.shown import several

_CORE = ("torch", "transformers", "pyro-ppl", "numpy", "rich", "typer")


@dataclass(frozen=True)
class Check:
    """Something that was tried.

    Attributes:
        name: what.
        good: whether it works.
        said: what was found.
        remedy: the command that helps, "" if nothing has to.
    """

    name: str
    good: bool
    said: str
    remedy: str = ""


def doctor(
    measure: Annotated[
        bool, typer.Option("--speed/--no-speed", help="Measure the processor, for a second.")
    ] = True,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Say what is installed, what would be fast, and which command brings what is missing."""
    versions = {name: _version(name) for name in _CORE}
    machine = hardware.machine()
    checks = [_models(), _sandbox()]
    found = optional.extras()
    speed = hardware.speed() if measure else None
    advice = _advice(machine)
    if as_json:
        print_json(
            {
                "ppl": optional.own_version(),
                "python": platform.python_version(),
                "packages": versions,
                "machine": asdict(machine),
                "speed": None if speed is None else asdict(speed),
                "checks": [asdict(c) for c in checks],
                "extras": [asdict(e) for e in found],
                "advice": advice,
            }
        )
    else:
        _print(versions, machine, speed, checks, found, advice)
    if not checks[0].good:
        raise typer.Exit(1)


def _version(package: str) -> str | None:
    from importlib.metadata import PackageNotFoundError, version

    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _models() -> Check:
    """Whether the embedded pair answers a question."""
    from ppl.errors import PPLError
    from ppl.lm.loading import load

    try:
        lm = load("tiny-lines")
        drawn = lm(lm.chat("Start with 40: a+8"), max_tokens=4).sample()
    except (PPLError, OSError, RuntimeError) as error:
        return Check(
            "embedded models", False, str(error), "pip install --force-reinstall ppl-search"
        )
    return Check("embedded models", True, f"tiny-lines writes {len(drawn.tokens)} tokens")


def _sandbox() -> Check:
    """Whether programs that a model has written can be run."""
    from ppl.errors import PPLError
    from ppl.verifiers import UnitTests

    try:
        (outcome,) = UnitTests("assert f() == 1", names=["f"]).outcomes(["def f(): return 1"])
    except PPLError as error:
        return Check("sandbox", False, str(error), "apt-get install bubblewrap")
    return Check("sandbox", outcome.status == "passed", "runs programs that models write")


def _advice(machine: hardware.Machine) -> list[str]:
    """Which settings are for this machine."""
    said = _on_gpus(machine) if machine.accelerators else _on_a_processor(machine)
    if machine.threads > machine.cores:
        said.append(
            f"torch uses {machine.threads} threads on {machine.cores} cores:"
            f" export OMP_NUM_THREADS={machine.cores}"
        )
    elif machine.threads < machine.cores and not machine.accelerators:
        said.append(
            f"torch uses {machine.threads} of {machine.cores} cores: quickest for the embedded"
            " models; for larger ones torch.set_num_threads, or OMP_NUM_THREADS, takes all"
        )
    if machine.available is not None:
        held = [
            f"{_largest(width, machine.available)} in {dtype}"
            for dtype, width in (("float32", 4), ("bfloat16", 2))
        ]
        said.append(f"the memory that is free now holds models of up to: {', '.join(held)}")
    said.append("which setting is for what: docs/engine.md")
    return said


def _on_a_processor(machine: hardware.Machine) -> list[str]:
    said = ["models are float32, whatever their files have, unless dtype= (--dtype) says otherwise"]
    if machine.bfloat16:
        said.append(
            "dtype='bfloat16' (--dtype bfloat16) for models larger than the embedded ones: half the"
            " memory, and this processor has instructions for it"
        )
    else:
        said.append(
            "dtype='bfloat16' (--dtype bfloat16) halves the memory; this processor has no"
            " instructions for it, so for speed compare it with float32, the default"
        )
    if not machine.compiler:
        said.append(
            "the engine's own programs, weights='int8' and compile= need a C++ compiler: apt-get"
            " install g++"
        )
    else:
        if "avx512_vnni" in machine.instructions:
            rows = "any number of" if "amx_int8" in machine.instructions else "one to four"
            said.append(
                "weights='int8' with dtype='bfloat16' (--weights int8 --dtype bfloat16) for"
                f" {rows} rows at once: another model, half of the weights to read"
            )
        said.append("compile='auto' (--compile auto) for runs of many minutes")
    said.append(
        "there is no accelerator: for models of several billion parameters start a vLLM server"
        " elsewhere and pass --model http://HOST:8000/v1"
    )
    return said


def _on_gpus(machine: hardware.Machine) -> list[str]:
    gpus = [name for name in machine.accelerators if name.startswith("cuda")]
    if not gpus:
        return ["device='mps' (--device mps) takes the accelerator; not measured, so compare"]
    said = [
        "the first GPU is taken, in bfloat16, unless device= (--device) and dtype= (--dtype) say"
        " otherwise",
        "ppl.load(..., graphs=True, compile=True) for runs of minutes on a GPU",
    ]
    if len(gpus) > 1:
        said.append(f"replicas={len(gpus)} (--replicas {len(gpus)}) takes all GPUs, a copy on each")
    return said


def _largest(width: int, free: int) -> str:
    """The largest of some sizes whose weights, and an eighth more, fit."""
    fits = [name for name, size in hardware.SIZES.items() if 9 / 8 * width * size < free]
    return fits[-1] if fits else "none of these"


def _print(
    versions: dict[str, str | None],
    machine: hardware.Machine,
    speed: hardware.Speed | None,
    checks: Sequence[Check],
    found: Sequence[optional.Extra],
    advice: Sequence[str],
) -> None:
    console = stdout()
    packages = ", ".join(f"{n} {v or 'MISSING'}" for n, v in versions.items())
    console.print(f"ppl {optional.own_version()}, Python {platform.python_version()}, {packages}")
    memory = "" if machine.memory is None else f", {machine.memory / 2**30:.0f} GiB of memory"
    cores, threads = several(machine.cores, "core"), several(machine.threads, "thread")
    console.print(f"{machine.processor}: {cores}, {threads} in torch{memory}")
    console.print(f"accelerators: {', '.join(machine.accelerators) or 'none'}")
    console.print()
    table = Table(box=None, pad_edge=False, show_header=False)
    for check in checks:
        remedy = "" if check.good or not check.remedy else f": {check.remedy}"
        table.add_row(_mark(check.good), check.name, escape(check.said + remedy))
    for extra in found:
        said = extra.brings if not extra.missing else f"{extra.brings}: {extra.install}"
        table.add_row(_mark(not extra.missing), extra.name, escape(said))
    console.print(table)
    if speed is not None:
        console.print()
        console.print(
            f"{speed.flops / 1e9:.0f} GFLOP/s in float32, {speed.bandwidth / 1e9:.0f} GB/s;"
            " bounds for tokens a second:"
        )
        console.print(_speeds(speed))
    console.print()
    for line in advice:
        console.print(f"- {escape(line)}", soft_wrap=True)


def _mark(good: bool) -> str:
    return "[green]there[/green]" if good else "[yellow]missing[/yellow]"


def _speeds(speed: hardware.Speed) -> Table:
    table = Table(box=None, pad_edge=False)
    table.add_column("model")
    for batch in (1, hardware.BATCH):
        table.add_column(f"{batch} at once", justify="right")
    for name, parameters in hardware.SIZES.items():
        bounds: list[Any] = [speed.tokens(parameters, batch) for batch in (1, hardware.BATCH)]
        table.add_row(name, *(f"{b:,.1f}" if b < 10 else f"{b:,.0f}" for b in bounds))
    return table
