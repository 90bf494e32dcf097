"""What runs in the sandbox around a planner's module; handed over as a text, and never imported.

A step is a function of its particle's text, its memory, and what it was answered so far. Where it
asks for something new, `step` is left by an exception, and the request goes out; it is called again
from its beginning with one answer more, as a fork of a program is. So nothing waits in here, one
interpreter serves all particles, and it keeps nothing of any of them.

Uses the standard library only. The code of the module runs in the same interpreter: what it breaks
here, it breaks for itself.
"""

import ast
import json
import linecache
import math
import traceback
from collections.abc import Iterable
from types import AsyncGeneratorType, CodeType, CoroutineType, GeneratorType
from typing import Any

FILE = "module.py"  # in tracebacks
LOADED: dict[str, CodeType] = {}
OWN = ("text", "step", "finished")


class Asked(BaseException):
    """The step waits for an answer."""


class Over(BaseException):
    """The step ends here: the text has ended, or the particle is given up."""


class State:
    """What a module's `step` is given; its methods are all that a step can do."""

    text: str
    step: int
    finished: bool
    _engine: "Engine"

    def __init__(
        self, text: str, step: int, finished: bool, memory: dict[str, Any], engine: "Engine"
    ) -> None:
        self.__dict__.update(memory, text=text, step=step, finished=finished, _engine=engine)

    def extend(
        self, until: str | Iterable[str] | None = None, max_tokens: int | None = None
    ) -> str:
        """Lets the follower write on; what it wrote."""
        strings = [until] if isinstance(until, str) else until
        if strings is not None:
            strings = list(strings)
            if not strings or not all(isinstance(s, str) and s for s in strings):
                raise TypeError(f"extend(until={until!r}): a string, or several")
        whole = isinstance(max_tokens, int) and not isinstance(max_tokens, bool) and max_tokens > 0
        if not (max_tokens is None or whole):
            raise TypeError(f"extend(max_tokens={max_tokens!r}): a whole number above 0")
        if self.finished:
            raise self._engine.ends(Over())
        mask = self._engine.mask
        answer = self._engine.ask(
            {"do": "extend", "until": strings, "max_tokens": max_tokens, "mask": mask}
        )
        self.__dict__.update(text=self.text + answer["text"], finished=answer["finished"])
        written: str = answer["text"]
        return written

    def observe(self, words: str) -> None:
        """Writes words for the follower; the particle pays their probability."""
        if not isinstance(words, str) or not words:
            raise TypeError(f"observe({words!r}): a string that is not empty")
        if self.finished:
            self.require(False)
        self._engine.ask({"do": "observe", "words": words})
        self.__dict__["text"] = self.text + words

    def hint(self, note: object) -> None:
        """A note to the follower, which is no part of the text."""
        note = str(note)
        if note:
            self._engine.hints.append(note)

    def mask(self, only: str | None = None, never: str = "", end: bool = True) -> None:
        """Which characters the extends of this step may write, and whether the text may end."""
        if not (only is None or isinstance(only, str)) or not isinstance(never, str):
            raise TypeError(f"mask(only={only!r}, never={never!r}): strings of characters")
        self._engine.mask = {"only": only, "never": never, "end": bool(end)}

    def twist(self, log_value: float) -> None:
        """How promising the text is, as a logarithm; taken back at the end of the next step."""
        total = self._engine.twist + float(log_value)
        if not math.isfinite(total):
            raise ValueError(f"twist({log_value!r}): a finite number, and finite in sum")
        self._engine.twist = total

    def require(self, condition: object) -> None:
        """Gives the particle up unless the condition holds."""
        if not condition:
            self._engine.rejected = True
            raise self._engine.ends(Over())

    def finish(self) -> None:
        """Ends the text here, as it is."""
        self.__dict__["finished"] = True
        raise self._engine.ends(Over())


class Engine:
    """Answers that there are, and what is asked for beyond them."""

    def __init__(self, answers: list[tuple[str, dict[str, Any]]]) -> None:
        self.answers, self.next = answers, 0
        self.waiting: dict[str, Any] | None = None
        self.left: BaseException | None = None
        self.hints: list[str] = []
        self.mask: dict[str, Any] | None = None
        self.twist, self.rejected = 0.0, False

    def ends(self, how: BaseException) -> BaseException:
        """Notes that the step was left on purpose, in case it catches everything."""
        self.left = how
        return how

    def ask(self, request: dict[str, Any]) -> dict[str, Any]:
        """The answer to a request, if it was asked before."""
        if self.left is not None:
            raise self.left
        request["hints"], self.hints = self.hints, []
        line = json.dumps(request, sort_keys=True)
        if self.next == len(self.answers):
            self.waiting = request
            raise self.ends(Asked())
        asked, answer = self.answers[self.next]
        self.next += 1
        if asked != line:
            raise RuntimeError(
                f"step() is not deterministic: it asked for {asked}, and then for {line}; keep "
                "clocks, random numbers and the order of sets out of it"
            )
        return answer


def fresh() -> dict[str, Any]:
    """The module, executed anew: particles share no globals."""
    space: dict[str, Any] = {"__name__": "module"}
    exec(LOADED[FILE], space)
    return space


def ran(name: str, returned: Any) -> Any:
    """What a function of the module returned; a TypeError if it has not run at all."""
    if isinstance(returned, GeneratorType | CoroutineType | AsyncGeneratorType):
        raise TypeError(f"{name}() has not run: write a plain function, without async and yield")
    return returned


def load(source: str) -> str:
    """Takes the module in; its two prompts, None where it has none, and what is wrong with it."""
    try:
        lines = source.splitlines(keepends=True)
        linecache.cache[FILE] = (len(source), None, lines, FILE)
        LOADED[FILE] = compile(source, FILE, "exec")
        space = fresh()
    except BaseException as error:
        return json.dumps({"error": told(error)})
    lacks = [name for name in ("step", "check") if not callable(space.get(name))]
    if lacks:
        return json.dumps({"error": f"the module defines no function {' and no '.join(lacks)}"})
    prompts = {name: space.get(name) for name in ("prior", "proposal")}
    wrong = [n for n, p in prompts.items() if not (p is None or (isinstance(p, str) and p))]
    if wrong:
        return json.dumps({"error": f"{wrong[0]} is no string"})
    return json.dumps(prompts)


def move(step: int, text: str, finished: bool, memory: str, answers: str) -> str:
    """Runs a step as far as its answers go: its next request, or how it ended."""
    engine = Engine(json.loads(answers))
    state = State(text, step, finished, ast.literal_eval(memory), engine)
    try:
        ran("step", fresh()["step"](state))
    except BaseException as error:
        if error is not engine.left:
            return json.dumps({"error": told(error)})
    else:
        if engine.left is not None:
            return json.dumps(
                {"error": "step() caught what ends it: catch Exception, not everything"}
            )
    if engine.rejected:
        return json.dumps({"do": "reject"})
    if engine.waiting is not None:
        return json.dumps(engine.waiting, sort_keys=True)
    try:
        kept_now = kept(state)
    except BaseException as error:
        return json.dumps({"error": told(error)})
    done = {"do": "end", "finished": bool(state.finished), "memory": kept_now}
    return json.dumps(done | {"twist": engine.twist, "hints": engine.hints})


def judge(text: str) -> str:
    """Whether the module's `check` takes a text."""
    try:
        return json.dumps({"right": bool(ran("check", fresh()["check"](text)))})
    except BaseException as error:
        return json.dumps({"error": told(error)})


def kept(state: State) -> str:
    """What a state remembers, as a literal."""
    memory = {n: v for n, v in vars(state).items() if n not in OWN and n != "_engine"}
    literal = repr(memory)
    try:
        same = ast.literal_eval(literal) == memory
    except (ValueError, SyntaxError):
        same = False
    if not same:
        raise TypeError(
            "what a step keeps in its state is numbers, strings, None, and lists, tuples, sets and "
            f"dicts of them, not {literal[:200]}"
        )
    if len(literal) > 20_000:
        raise ValueError(f"the state keeps {len(literal)} characters; at most 20000")
    return literal


def told(error: BaseException) -> str:
    """The last lines of a traceback: those of the module, and the error."""
    frames = [f for f in traceback.extract_tb(error.__traceback__) if f.filename == FILE]
    lines = [f"line {f.lineno}, in {f.name}: {f.line}"[:200] for f in frames[-3:]]
    said = traceback.format_exception_only(error)
    return "\n".join([*lines, "".join(said).strip()[:400]])
