"""An OpenAI-compatible endpoint whose answers are searches.

    serve({"tiny-lines": ppl.load("tiny-lines")}, verifier=PRM.load("tiny-lines"))

A request names a model, and a searcher behind a colon if it likes (`"tiny-lines:SMC(16)"`).
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Any

from ppl.language import checks
from ppl.language.arguments import checked
from ppl.lm.base import LanguageModel
from ppl.runtime.verdict import Verifier
from ppl.searchers.search import Searcher
from ppl.serve.gate import Gate
from ppl.serve.limits import Limits
from ppl.serve.offer import Menu, Offer
from ppl.serve.programs import Question
from ppl.serve.thread import Running, running
from ppl.serve.wire import ASGI

if TYPE_CHECKING:
    from ppl.serve.server import Server

__all__ = ["Limits", "Offer", "Question", "app", "background", "serve"]


@checked
def app(
    models: Mapping[str, Offer | LanguageModel | str],
    *,
    verifier: Verifier | str | None = None,
    searcher: Searcher[Any] | str | None = None,
    programs: Mapping[str, Callable[[Question], Any] | str] | None = None,
    limits: Limits | None = None,
    api_key: str | Collection[str] | None = None,
    keep_alive: float = 5.0,
) -> ASGI:
    """The endpoint as an ASGI application, to be run by any ASGI server, in one process.

    Args:
        models: by the name that requests use: an `Offer`, a model, or a name for `ppl.load`.
        verifier: of the models that bring none; a name is for `PRM.load`.
        searcher: of requests that name none; `BestOfN(16)` unless given.
        programs: the operator's own, by name: functions of a `Question`, or import paths
            (`"module:function"`). Requests may choose among these and `"steps"` and `"whole"`.
        limits: what is granted.
        api_key: wanted as a bearer token; several are all good. None serves anybody.
        keep_alive: seconds between two comments of a stream that still searches.

    Raises:
        ImportError: starlette is missing.
        ArgumentError: there is no model, or something is none of what it should be.
    """
    checks.positive(keep_alive=keep_alive)
    keys = [api_key] if isinstance(api_key, str) else list(api_key or ())
    if not all(isinstance(key, str) and key for key in keys) or (api_key is not None and not keys):
        raise ValueError("api_key: one that is empty lets anybody in; pass None if that is meant")
    try:
        from ppl.serve.application import Application
    except ImportError as error:
        raise _missing(error) from error
    menu = Menu(models, verifier=verifier, searcher=searcher, programs=programs)
    return Application(menu, limits=limits or Limits(), api_keys=keys, keep_alive=keep_alive)


@checked
def serve(
    models: Mapping[str, Offer | LanguageModel | str],
    *,
    host: str = "127.0.0.1",
    port: int = 8000,
    grace: float = 30.0,
    log_level: str = "info",
    **options: Any,
) -> None:
    """Serves until Ctrl-C or SIGTERM.

    Then nobody is let in, searches that run have `grace` seconds to end, and what is late is
    abandoned and told so (503). A second Ctrl-C waits for nothing.

    Args:
        models: see `app`.
        host, port: where; `"0.0.0.0"` lets other machines in: pass `api_key`, too.
        grace: seconds.
        log_level: of uvicorn: `"warning"` leaves a line for each request out.
        **options: of `app`.

    Raises:
        ImportError: starlette or uvicorn is missing.
    """
    _check_place(port, grace)
    server, _ = _server(models, grace, options, host=host, port=port, log_level=log_level)
    server.run()


@checked
def background(
    models: Mapping[str, Offer | LanguageModel | str],
    *,
    host: str = "127.0.0.1",
    port: int = 0,
    grace: float = 5.0,
    log_level: str = "critical",
    **options: Any,
) -> AbstractContextManager[Running]:
    """Serves in a thread of this process as long as a `with` block runs: for notebooks and tests.

    Args:
        models: see `app`.
        host, port: where; port 0 takes a free one.
        grace: seconds that searches have to end when the block does.
        log_level: of uvicorn.
        **options: of `app`.

    Returns:
        A context manager; its value has the address, `url`, up to and including `/v1`.

    Raises:
        ImportError: starlette or uvicorn is missing.
    """
    _check_place(port, grace)
    server, gate = _server(models, grace, options, log_level=log_level, log_config=None)
    return running(server, gate, host, port)


def _check_place(port: int, grace: float) -> None:
    checks.count(least=0, port=port)
    checks.nonnegative(grace=grace)


def _server(
    models: Mapping[str, Any], grace: float, options: Mapping[str, Any], **uvicorns: Any
) -> tuple[Server, Gate]:
    application: Any = app(models, **options)
    try:
        from ppl.serve.server import make
    except ImportError as error:
        raise _missing(error) from error
    limits = options.get("limits") or Limits()
    server = make(application, grace=grace, body_seconds=limits.body_seconds, **uvicorns)
    return server, application.gate


def _missing(error: ImportError) -> ImportError:
    return ImportError(
        f"the endpoint needs starlette and uvicorn ({error}): pip install 'ppl-search[serve]'"
    )
