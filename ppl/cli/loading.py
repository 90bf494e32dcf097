"""The options with which models are loaded: the same for every command that loads any."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from typing import Annotated, Any, get_type_hints

import typer

_PANEL = "How models are loaded"
_SERVERS = ("http://", "https://")
# What is of judges, too.
_BOTH = ("device", "dtype")
_COMPILE = {"auto": "auto", "on": True, "off": False}


def _option(flag: str, said: str, **more: Any) -> Any:
    return typer.Option(flag, help=said, rich_help_panel=_PANEL, **more)


@dataclass(frozen=True)
class Loading:
    """What the options say; None where one is not given. They are written here alone:
    `with_loading` gives them to a command.

    Raises:
        typer.BadParameter: a value is none that there is; it names the flag.
    """

    device: Annotated[str | None, _option("--device", "'cpu', 'cuda', 'cuda:1', ...")] = None
    dtype: Annotated[str | None, _option("--dtype", "'float32', 'bfloat16', ... or 'auto'.")] = None
    adapter: Annotated[str | None, _option("--adapter", "A LoRA adapter: folder or Hub id.")] = None
    weights: Annotated[str | None, _option("--weights", "'int8': in eight bits, on a CPU.")] = None
    kv: Annotated[
        str | None,
        _option("--kv", "What is kept of keys and values: 'int8', 'window(512, 4)', ..."),
    ] = None
    kv_bytes: Annotated[
        str | None, _option("--kv-bytes", "For keys and values: '2GiB', '2GB', or bytes.")
    ] = None
    context_length: Annotated[
        int | None, _option("--context-length", "Tokens of a text.", min=2)
    ] = None
    compile: Annotated[str | None, _option("--compile", "'auto', 'on' or 'off': decode steps.")] = (
        None
    )
    replicas: Annotated[
        int | None, _option("--replicas", "Copies, in so many processes.", min=1)
    ] = None
    graphs: Annotated[bool | None, _option("--graphs", "On a GPU: steps as CUDA graphs.")] = None
    drafts: Annotated[
        str | None,
        _option("--drafts", "'siblings': guess tokens, for texts that repeat themselves."),
    ] = None

    def __post_init__(self) -> None:
        from ppl.language.checks import nbytes
        from ppl.lm.drafts import Drafts
        from ppl.lm.engine.kv import KV
        from ppl.lm.placement import check_weights, device_here, dtype_of

        def weights(said: str) -> None:
            check_weights(said, device_here(self.device), True)

        checks: dict[str, Callable[[Any], object]] = {
            "device": device_here,
            "dtype": dtype_of,
            "weights": weights,
            "kv": KV.read,
            "kv_bytes": lambda said: nbytes(kv_bytes=said),
            "drafts": Drafts,
        }
        for name, check in checks.items():
            said = getattr(self, name)
            try:
                if said is not None:
                    check(said)
            except ValueError as error:
                raise typer.BadParameter(str(error), param_hint=_flag(name)) from error
        if self.compile is not None and self.compile not in _COMPILE:
            raise typer.BadParameter(
                f"{self.compile!r}: one of {', '.join(_COMPILE)}", param_hint="--compile"
            )

    @property
    def given(self) -> dict[str, Any]:
        """The settings that are given, as `ppl.load` takes them."""
        from ppl.language.checks import nbytes

        found = {f.name: getattr(self, f.name) for f in fields(self)}
        given = {name: value for name, value in found.items() if value is not None}
        if "compile" in given:
            given["compile"] = _COMPILE[given["compile"]]
        if "kv_bytes" in given:
            given["kv_bytes"] = nbytes(kv_bytes=given["kv_bytes"])
        return given

    def of_model(self, name: str, judged: bool = False) -> dict[str, Any]:
        """Those for a language model.

        Args:
            judged: whether there is a judge, for which some may be meant.

        Raises:
            typer.BadParameter: it runs behind a server, which has settings of its own.
        """
        if not name.startswith(_SERVERS):
            return self.given
        own = self.given.keys() - {"context_length"} - set(_BOTH if judged else ())
        if own:
            flags = ", ".join(map(_flag, sorted(own)))
            raise typer.BadParameter(
                f"{name}: how a model behind a server runs is the server's affair; leave it out",
                param_hint=flags,
            )
        return {n: v for n, v in self.given.items() if n == "context_length"}

    @property
    def of_judge(self) -> dict[str, Any]:
        """Those for a reward model."""
        return {name: value for name, value in self.given.items() if name in _BOTH}

    def named(self, name: str) -> str:
        """What a model is called that is loaded so."""
        from ppl.lm.engine.kv import KV
        from ppl.lm.engine.quantised import name_with
        from ppl.lm.sources import name_of

        name = name_of(name) if self.adapter is None else f"{name_of(name)}+{self.adapter}"
        return KV.read(self.kv or "full").named(name_with(name, self.weights))

    def refuse_for_several(self, models: Sequence[str]) -> None:
        """Raises typer.BadParameter for an adapter and several models, of which it fits one."""
        if self.adapter is not None and len(models) > 1:
            raise typer.BadParameter(
                f"it is of one model, and here are {len(models)}: give one --model",
                param_hint="--adapter",
            )


def with_loading(command: Callable[..., None]) -> Callable[..., None]:
    """Gives a command the options of `Loading` in the place of its parameter `options`, which is
    one."""
    signature = inspect.signature(command, eval_str=True)
    hints = get_type_hints(Loading, include_extras=True)
    names = [field.name for field in fields(Loading)]
    added = [
        inspect.Parameter(
            name, inspect.Parameter.KEYWORD_ONLY, default=None, annotation=hints[name]
        )
        for name in names
    ]
    own = [each for name, each in signature.parameters.items() if name != "options"]

    @functools.wraps(command)
    def run(**given: Any) -> None:
        options = Loading(**{name: given.pop(name, None) for name in names})
        command(**given, options=options)

    run.__signature__ = signature.replace(parameters=[*own, *added])  # type: ignore[attr-defined]
    return run


def _flag(name: str) -> str:
    return f"--{name.replace('_', '-')}"
