"""Errors as OpenAI's clients expect them: a status, a type, the parameter, a code."""

from __future__ import annotations

import re
from typing import Any

from ppl.errors import (
    AllParticlesDeadError,
    ArgumentError,
    GrammarError,
    NoAllowedTokenError,
    PPLError,
    PromptError,
    SearchStateError,
    ServerError,
    StepNeverEndedError,
    TokenizerError,
)

# Errors that speak of what was asked. Others speak of the operator's programs, files and addresses,
# and are told to the log.
_ABOUT_THE_REQUEST = (
    AllParticlesDeadError,
    ArgumentError,
    GrammarError,
    NoAllowedTokenError,
    SearchStateError,
    StepNeverEndedError,
    TokenizerError,
)


class RefusedError(PPLError):
    """A request that is not answered.

    Attributes:
        status: HTTP's.
        param: the field of the request that is at fault, or None.
        code: what happened, in a word that programs may compare.
        retry_after: seconds after which the request may be made again, or None.
    """

    def __init__(
        self,
        status: int,
        message: str,
        *,
        param: str | None = None,
        code: str | None = None,
        retry_after: int | None = None,
    ) -> None:
        super().__init__(message)
        self.status, self.param, self.code, self.retry_after = status, param, code, retry_after

    @property
    def body(self) -> dict[str, Any]:
        """What is answered."""
        kind = "invalid_request_error"
        if self.status >= 500:
            kind = "server_error"
        elif self.status == 429:
            kind = "rate_limit_error"
        said = {"message": str(self), "type": kind, "param": self.param, "code": self.code}
        return {"error": said}

    @property
    def headers(self) -> list[tuple[str, str]]:
        """What goes with it."""
        found = []
        if self.retry_after is not None:
            found.append(("Retry-After", str(self.retry_after)))
        if self.status == 401:
            found.append(("WWW-Authenticate", "Bearer"))
        if self.status == 408:  # the rest of it would be read as the next request
            found.append(("Connection", "close"))
        return found


def refusal(error: BaseException, name: str) -> RefusedError:
    """How an error of a search is told.

    A search that failed would fail again, so it gets a status that clients do not repeat (422). A
    model's server that failed may recover (502).

    Args:
        error: what was raised.
        name: of the request, by which the operator finds it in the log.
    """
    if isinstance(error, RefusedError):
        return error
    code = re.sub(r"(?<!^)(?=[A-Z][a-z])", "_", type(error).__name__).lower()
    code = code.removesuffix("_error")
    if isinstance(error, PromptError):
        return RefusedError(400, str(error), param="messages or prompt", code=code)
    if isinstance(error, _ABOUT_THE_REQUEST):
        return RefusedError(422, str(error), code=code)
    where = f"the server's log has more under {name}"
    if isinstance(error, ServerError):
        return RefusedError(502, f"the model's own server failed; {where}", code=code)
    if isinstance(error, PPLError):
        return RefusedError(422, f"the search failed ({type(error).__name__}); {where}", code=code)
    return RefusedError(500, f"an error of this server; {where}", code="internal_error")


def is_expected(error: BaseException) -> bool:
    """True for what the client is told in full, so that no log needs it."""
    return isinstance(error, (RefusedError, PromptError, *_ABOUT_THE_REQUEST))
