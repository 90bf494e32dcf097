"""Python as a tool: model-written code in the sandbox, answered by what it prints."""

from __future__ import annotations

from dataclasses import dataclass, field

from ppl.errors import ArgumentError
from ppl.language import checks
from ppl.language.arguments import check_fields, shown
from ppl.verifiers.exact.sandbox import Check, Sandbox

_MOST = 16_000  # what leaves the sandbox is limited to 64 KiB, and a character may take four bytes

# Runs where the code runs, so it may be fooled by the code: into saying something else, no more.
_RUN = """
import ast, contextlib, io, traceback
def run(code, most):
    out = io.StringIO()
    space = {"__name__": "__main__"}
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(out):
        try:
            tree = ast.parse(code)
            last = tree.body.pop() if tree.body and isinstance(tree.body[-1], ast.Expr) else None
            exec(compile(tree, "<code>", "exec"), space)
            if last is not None:
                value = eval(compile(ast.Expression(last.value), "<code>", "eval"), space)
                if value is not None:
                    print(repr(value))
        except BaseException as error:
            print(traceback.format_exception_only(error)[-1].strip())
    return out.getvalue()[:most]
"""


@dataclass(frozen=True)
class Python:
    """Runs model-written Python in a fresh sandboxed interpreter, as a notebook's cell is run.

        said = ppl.call("run", Python(), code, seconds=30)

    The answer is what the code prints, then the value of its last line if that is an expression,
    or the last line of the traceback. Running out of time or memory is an answer, too: a model can
    go on from it. Every call starts two interpreters, some tenths of a second; with `seconds=` of
    `ppl.call` those of all particles run side by side.

    Attributes:
        sandbox: the limits.
        most: characters of the answer; the rest is cut off.

    Raises:
        SandboxError: (when called) code cannot be isolated here; the message says what helps.
    """

    sandbox: Sandbox = field(default_factory=Sandbox)
    most: int = 4000

    def __post_init__(self) -> None:
        check_fields(self)
        checks.count(most=self.most)
        if self.most > _MOST:
            raise ArgumentError(f"most={self.most}: at most {_MOST} characters leave the sandbox")

    def __call__(self, code: str) -> str:
        """What the code says."""
        if not isinstance(code, str):
            raise ArgumentError(f"code={shown(code)}: a string")
        # Through a string literal: what the code says stays within it.
        test = f"result = run({code!r}, {self.most})"
        outcome = self.sandbox.run(Check(_RUN, ("run",), (test,)))
        if outcome.status == "passed":
            return str(outcome.results[0])
        said = {"timeout": outcome.why, "oom": "out of memory"}.get(outcome.status, outcome.why)
        return f"stopped: {said}"[: self.most]
