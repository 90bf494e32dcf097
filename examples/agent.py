"""An agent of four steps with a calculator and a price list, under SMC and MCTS.

The program lets a model write a step, runs the tool that the step calls (`ppl.call`: once, told to
forks), shows the model what came back, and weighs the step by a rule that knows no answer: a call
must work and be new, a sum must have each price that was heard times its number. The searchers run
it as it is.

    python examples/agent.py                          # offline, with a scripted writer that errs
    python examples/agent.py --model smollm2          # SmolLM2, where it is installed
    python examples/agent.py --model Qwen/Qwen2.5-0.5B-Instruct
"""

from __future__ import annotations

import argparse
import ast
import json
import operator
import re
import warnings
from collections.abc import Callable, Iterator, Mapping
from functools import lru_cache
from itertools import pairwise

import pyro
import torch
from smollm2 import find_gguf

import ppl
from ppl.errors import ToolError
from ppl.searchers import MCTS, SMC, BestOfN, Searcher
from ppl.tools import tool_calls
from ppl.verifiers import verifier

QUESTION = "What do 3 lamps and 2 chairs cost together?"
PRICES = {"lamp": 12, "chair": 31}
STEPS = 4

# -- the tools ------------------------------------------------------------------------------------

_OPERATIONS: dict[type, Callable[[float, float], float]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
}


def calculate(expression: str) -> int:
    """The value of sums and products of whole numbers."""

    def value(node: ast.AST) -> int:
        match node:
            case ast.Expression(body=body):
                return value(body)
            case ast.Constant(value=int(number)):
                return number
            case ast.BinOp(left=left, op=op, right=right) if type(op) in _OPERATIONS:
                return int(_OPERATIONS[type(op)](value(left), value(right)))
        raise ValueError(f"{expression!r} is no sum of products")

    return value(ast.parse(expression, mode="eval"))


async def look_up(item: str) -> int:
    """The price of an item; a real one would wait for a server, together with all particles."""
    return PRICES[item.removesuffix("s")]


TOOLS: Mapping[str, Callable[..., object]] = {"calculate": calculate, "look_up": look_up}
INSTRUCTIONS = """Answer with one line. To call a tool, write only
<tool_call>{"name": "look_up", "arguments": {"item": "lamp"}}</tool_call>
<tool_call>{"name": "calculate", "arguments": {"expression": "2*3+4"}}</tool_call>
Look up every price, then calculate, then write: answer NUMBER"""

# -- the program ----------------------------------------------------------------------------------


def agent(question: str, lm: ppl.LanguageModel) -> int | None:
    """At most four lines, each a tool call or the answer."""
    text = lm.chat(f"{INSTRUCTIONS}\n\n{question}")
    for t in range(STEPS):
        step = pyro.sample(f"step_{t}", lm(text, until="\n", max_tokens=90))
        text = text + step
        try:
            calls = tool_calls(lm, step, format="hermes")
            said = [
                ppl.call(f"call_{t}_{i}", TOOLS[c.name], *c.arguments.values(), seconds=5)
                for i, c in enumerate(calls)
                if c.name in TOOLS
            ]
        except ToolError as error:
            said, calls = [f"error: {str(error).rpartition(': ')[2]}"], []
        answer = re.match(r"\s*answer (-?[0-9]+)", step.text)
        if said:
            text = text + "".join(f"<tool_response>{each}</tool_response>\n" for each in said)
        pyro.sample(f"sound_{t}", sound(text), obs=True)
        if answer:
            return int(answer[1])
        if step.finished:
            break
    return None


@verifier(aggregate="prod")
def sound(text: ppl.Text) -> float:
    """Whether the last line is sensible: the rules of the game, without any knowledge of prices."""
    lines = [line for line in text.text.splitlines() if line.strip()]
    heard = dict(pairwise(lines))  # what followed each line
    prices = {
        item: found[1]
        for item in re.findall(r"[0-9]+ ([a-z]+)s", QUESTION)
        for line, answer in heard.items()
        if f'"{item}"' in line and (found := re.match(r"<tool_response>([0-9]+)<", answer))
    }
    if not lines:
        return 0.02
    if "<tool_response>" in lines[-1]:  # a tool was called
        call = lines[-2] if len(lines) > 1 else ""
        if "error:" in lines[-1] or call in lines[:-2]:
            return 0.02
        if "calculate" not in call:
            return 0.98
        wanted = re.findall(r"([0-9]+) ([a-z]+)s", QUESTION)
        return 0.98 if all(f"{n}*{prices.get(item)}" in call for n, item in wanted) else 0.05
    answer = re.match(r"\s*answer (-?[0-9]+)", lines[-1])
    last = lines[-2] if len(lines) > 2 and "calculate" in lines[-3] else ""
    return 0.98 if answer and f">{answer[1]}<" in last else 0.02


# -- a writer without weights ---------------------------------------------------------------------


@lru_cache(maxsize=100_000)
def script(prefix: str) -> dict[str, float]:
    """The next character: of lines that fit what was said, spelled out once one is begun."""
    said = prefix.partition(QUESTION)[2]
    *before, begun = said.split("\n")
    heard = re.findall(r"<tool_response>(-?[0-9]+)<", "\n".join(before))
    lines = {f"{line}\n": p for line, p in options(before, heard) if f"{line}\n".startswith(begun)}
    weights: dict[str, float] = {}
    for line, p in lines.items():
        weights[line[len(begun)]] = weights.get(line[len(begun)], 0.0) + p
    total = sum(weights.values())
    return {letter: p / total for letter, p in weights.items()}


def options(before: list[str], heard: list[str]) -> Iterator[tuple[str, float]]:
    """What the writer might say next, and how gladly: often something hasty."""

    def call(name: str, **arguments: str) -> str:
        return f"<tool_call>{json.dumps({'name': name, 'arguments': arguments})}</tool_call>"

    calculated = "calculate" in "".join(before)
    gladly = 0.1 if calculated else 0.5
    yield call("look_up", item="lamp"), gladly
    yield call("look_up", item="chair"), gladly
    yield call("look_up", item="sofa"), 0.1  # nobody has asked for one
    yield '<tool_call>{"name": "look_up"</tool_call>', 0.1  # malformed
    if heard:
        a, b = heard[0], heard[-1]
        yield call("calculate", expression=f"{a}+{b}"), 0.2
        yield call("calculate", expression=f"3*{a}+2*{b}"), 0.3
        yield call("calculate", expression=f"2*{a}+3*{b}"), 0.3
        yield f"answer {b}", 3.0 if calculated else 0.3


def writer() -> ppl.TableLM:
    """A language model over characters that follows the script."""
    letters = sorted({*map(chr, range(32, 127)), "\n", "\x00"})
    return ppl.TableLM(
        script, symbols="".join(letters), end="\x00", context_length=4000, name="script"
    )


def load(model: str) -> ppl.LanguageModel:
    """The scripted writer, SmolLM2, or any model that `ppl.load` takes."""
    if model == "script":
        return writer()
    return ppl.load(find_gguf() if model == "smollm2" else model)


def main(argv: list[str] | None = None) -> dict[str, ppl.Posterior]:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", default="script", help="script, smollm2, or a model's name")
    parser.add_argument("--width", type=int, default=16, help="particles, simulations, samples")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args(argv)
    torch.set_num_threads(1)
    lm = load(args.model)
    right = sum(n * PRICES[item] for n, item in ((3, "lamp"), (2, "chair")))
    print(f"{QUESTION} ({right})\n")
    print(f"{'searcher':<24}{'best':>8}{'vote':>8}{'P(right)':>10}{'tool calls':>12}{'tokens':>9}")
    searchers: list[Searcher] = [BestOfN(1), BestOfN(args.width), SMC(args.width), MCTS(args.width)]
    found = {}
    for searcher in searchers:
        with warnings.catch_warnings():  # of a model that never comes to an answer
            warnings.simplefilter("ignore")
            posterior = searcher.run(agent, QUESTION, lm, seed=args.seed)
        name = repr(searcher).partition("(")[0] + f"({args.width if found else 1})"
        found[name] = posterior
        share = posterior.marginal().get(right, 0.0)
        cost = posterior.cost
        print(
            f"{name:<24}{posterior.best!s:>8}{posterior.vote()!s:>8}{share:>10.2f}"
            f"{cost.tool_calls:>12}{cost.lm_tokens:>9}"
        )
    best = found[f"SMC({args.width})"].best_sample
    if best is not None and best.text is not None:
        print(f"\nthe best particle of SMC:\n{best.text.text}")
    return found


if __name__ == "__main__":
    main()
