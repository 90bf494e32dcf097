"""How many searches a second an endpoint answers, and how many requests share a batch.

    python tests/benchmarks/serve_load.py [--requests 200] [--clients 1 8 64 200]

Closed loop: each client asks again as soon as it is answered; server and clients share one process.
(a) a table model under SMC(4): what the endpoint costs beside its models; (b) the embedded pair
`tiny-lines` under SMC(8), one problem a request. The row "direct" runs the same searches with
`run_many`, which is the least that they can take. CPU time is that of server and clients together.
"""

from __future__ import annotations

import argparse
import asyncio
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import torch
from machine import machine

import ppl
from ppl.lm.decode import Session
from ppl.searchers import SMC
from ppl.serve import Limits, Question, background
from ppl.serve.programs import steps
from ppl.tasks.lines import held_out_problems
from ppl.verifiers import PRM, FunctionVerifier, Verifier

sys.path.append(str(Path(__file__).parents[1]))

from programs import more_a


class Watched:
    """Counts the rows of a model's batches: of each step, how many there are."""

    def __init__(self, lm: ppl.LanguageModel) -> None:
        self.rows: list[int] = []
        session = lm.session

        def watched() -> Any:
            made: Session = session()
            step, waiting = made.step, {}  # tickets that have no answer yet
            submit, cancel = made.submit, made.cancel

            def submitted(request: Any) -> int:
                ticket = submit(request)
                waiting[ticket] = request
                return ticket

            def cancelled(tickets: Any) -> None:
                for ticket in tickets:
                    waiting.pop(ticket, None)
                cancel(tickets)

            def stepped() -> Any:
                self.rows.append(len({id(r.ledger.book) for r in waiting.values() if r.ledger}))
                answers = step()
                for ticket in answers:
                    waiting.pop(ticket, None)
                return answers

            made.submit, made.cancel, made.step = submitted, cancelled, stepped  # type: ignore
            return made

        lm.session = watched  # type: ignore[method-assign]

    def mean(self) -> float:
        """Searches in a step, on average, since the last time this was asked."""
        found = float(np.mean(self.rows)) if self.rows else 0.0
        self.rows.clear()
        return found


async def load(
    url: str, model: str, questions: Sequence[str], clients: int
) -> tuple[list[float], float, list[str]]:
    """Seconds of each answer and of all, and what was answered."""
    seconds: list[float] = [0.0] * len(questions)
    told = [""] * len(questions)
    turns = iter(range(len(questions)))
    limits = httpx.Limits(max_connections=None, max_keepalive_connections=None)
    async with httpx.AsyncClient(limits=limits, timeout=600) as api:

        async def client() -> None:
            for i in turns:
                body = {
                    "model": model,
                    "messages": [{"role": "user", "content": questions[i]}],
                    "seed": i,
                }
                began = time.perf_counter()
                answer = await api.post(f"{url}/chat/completions", json=body)
                seconds[i] = time.perf_counter() - began
                answer.raise_for_status()
                told[i] = answer.json()["choices"][0]["message"]["content"]

        began = time.perf_counter()
        await asyncio.gather(*(client() for _ in range(clients)))
        return seconds, time.perf_counter() - began, told


def measure(
    name: str,
    make: Callable[[], tuple[ppl.LanguageModel, Verifier]],
    searcher: SMC,
    questions: Sequence[str],
    clients: Sequence[int],
    say: Callable[[str], None] = print,
) -> None:
    """Prints a table. Each row has fresh models: what one has computed, the next would reuse."""
    say(f"\n{name}, {searcher!r}, {len(questions)} requests")
    say("clients   requests/s   p50 ms   p95 ms   CPU ms each   searches in a step")
    lm, verifier = make()
    watched = Watched(lm)
    asked = [Question(lm, verifier, messages=({"role": "user", "content": q},)) for q in questions]
    searcher.run_many(steps, asked[:2], seed=1000)  # warm
    watched.mean()
    began, before = time.perf_counter(), time.process_time()
    direct = searcher.run_many(steps, asked, seed=range(len(asked)))
    took, spent = time.perf_counter() - began, 1000 * (time.process_time() - before) / len(asked)
    rate, shared = len(asked) / took, watched.mean()
    say(f" direct   {rate:10.1f}        -        -   {spent:11.1f}   {shared:18.1f}")
    expected = []
    for posterior in direct:
        assert isinstance(posterior, ppl.Posterior)
        vote = posterior.vote(key=lambda text: text.answer)
        expected.append(str(posterior.best if vote is None else vote))
    limits = Limits(running=256, waiting=1000)
    for number in clients:
        lm, verifier = make()
        watched = Watched(lm)
        with background({"m": lm}, verifier=verifier, searcher=searcher, limits=limits) as server:
            before = time.process_time()
            seconds, took, told = asyncio.run(load(server.url, "m", questions, number))
            assert told == expected  # whatever shared its batch
            p50, p95 = (1000 * float(np.quantile(seconds, q)) for q in (0.5, 0.95))
            spent = 1000 * (time.process_time() - before) / len(questions)
            rate, shared = len(questions) / took, watched.mean()
            say(
                f"{number:7d}   {rate:10.1f}   {p50:6.0f}   {p95:6.0f}   {spent:11.1f}   "
                f"{shared:18.1f}"
            )


def main(argv: Sequence[str] | None = None) -> None:
    """Measures both."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--requests", type=int, default=200)
    parser.add_argument("--clients", type=int, nargs="+", default=[1, 8, 64, 200])
    asked = parser.parse_args(argv)
    torch.set_num_threads(1)
    print(machine())
    measure("a table", _table, SMC(4), ["ab"] * asked.requests, asked.clients)
    problems = [problem.question for problem in held_out_problems("chain", asked.requests)]
    measure("tiny-lines", _tiny_lines, SMC(8), problems, asked.clients)


def _table() -> tuple[ppl.LanguageModel, Verifier]:
    probabilities = {"a": 0.4, "b": 0.3, "\n": 0.2, "$": 0.1}
    lm = ppl.TableLM(probabilities, symbols="^ab\n$", context_length=48)
    return lm, FunctionVerifier(more_a, name="more_a")


def _tiny_lines() -> tuple[ppl.LanguageModel, Verifier]:
    return ppl.load("tiny-lines"), PRM.load("tiny-lines")


if __name__ == "__main__":
    main()
