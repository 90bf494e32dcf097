"""Tokens per second against llama.cpp on a CPU: bfloat16 and weights of eight bits.

    python -m venv other
    CMAKE_ARGS=-DGGML_NATIVE=ON other/bin/pip install llama-cpp-python==0.3.36
    python tests/benchmarks/against_llamacpp.py --llama other/bin/python

SmolLM2-135M-Instruct, a prompt of 60 tokens, 64 new tokens a row, plain sampling, all cores.
llama.cpp runs through its batch interface: the prompt is computed once and given to all sequences,
every step is one batch of all rows, each drawn by a sampler of llama.cpp's own. It is run with one
cache for all sequences and with one for each; the quicker counts. Its files are made by its own
quantiser from the file that ours is read from. Each side is a process of its own; they take turns.
"""

from __future__ import annotations

import argparse
import ctypes
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

NEW_TOKENS = 64
FORMATS = {"bf16": "LLAMA_FTYPE_MOSTLY_BF16", "q8_0": "LLAMA_FTYPE_MOSTLY_Q8_0"}
OURS: dict[str, dict[str, Any]] = {
    "bf16": {"dtype": "bfloat16"},
    "int8": {"dtype": "bfloat16", "weights": "int8"},
}
AGAINST = {"bf16": "bf16", "int8": "q8_0"}


# -- where llama.cpp is installed ----------------------------------------------------------------


def quiet() -> Any:
    """The module, told to say nothing."""
    import llama_cpp

    silent = llama_cpp.llama_log_callback(lambda *_: None)
    quiet.kept = silent  # type: ignore[attr-defined]
    llama_cpp.llama_log_set(silent, ctypes.c_void_p())
    llama_cpp.llama_backend_init()
    return llama_cpp


def quantise(source: str, folder: str) -> None:
    """Files of all formats in a folder, from one of any format."""
    llama = quiet()
    for name, kind in FORMATS.items():
        settings = llama.llama_model_quantize_default_params()
        settings.ftype, settings.allow_requantize = getattr(llama, kind), True
        made = str(Path(folder) / f"{name}.gguf").encode()
        if llama.llama_model_quantize(source.encode(), made, ctypes.byref(settings)):
            raise RuntimeError(f"llama.cpp does not make {name} of {source}")


class Llama:
    """llama.cpp with one model, in this process.

    Args:
        file: the model.
        prompt: token ids.
        unified: one cache for all sequences.
        threads: so many.
        packed: its weights may be laid out anew for the processor.
    """

    def __init__(
        self, file: str, prompt: list[int], unified: bool, threads: int, packed: bool = True
    ) -> None:
        self._llama, self._prompt = quiet(), prompt
        self._unified, self._threads = unified, threads
        settings = self._llama.llama_model_default_params()
        settings.use_extra_bufts = packed
        self._model = self._llama.llama_model_load_from_file(file.encode(), settings)
        self._vocabulary = self._llama.llama_model_get_vocab(self._model)
        self._words = self._llama.llama_vocab_n_tokens(self._vocabulary)

    def __call__(self, rows: int, seed: int) -> float:
        """Tokens per second."""
        tokens, seconds = self.grow([self._prompt], rows, NEW_TOKENS, seed)
        return tokens / seconds

    def grow(self, prompts: list[list[int]], rows: int, new: int, seed: int) -> tuple[int, float]:
        """So many rows to each prompt, none of them known; new tokens, and the seconds of all."""
        llama, count = self._llama, len(prompts) * rows
        settings = llama.llama_context_default_params()
        settings.n_seq_max, settings.n_batch, settings.n_ubatch = count, 512, 512
        longest = max(map(len, prompts)) + new
        cells = sum(map(len, prompts)) + count * new if self._unified else longest * count
        settings.n_ctx, settings.kv_unified = -(-cells // (32 * count)) * 32 * count, self._unified
        settings.n_threads = settings.n_threads_batch = self._threads
        context = llama.llama_init_from_model(self._model, settings)
        if not context:
            raise RuntimeError(f"llama.cpp makes no context for {count} rows")
        memory = llama.llama_get_memory(context)
        samplers = []
        for row in range(count):
            samplers.append(llama.llama_sampler_init_dist((seed << 16) + row))
        batch = llama.llama_batch_init(max(count, 512), 0, 1)

        def decode(tokens: list[int], places: list[int], sequences: list[int], last: bool) -> None:
            batch.n_tokens = len(tokens)
            for i, (token, place, sequence) in enumerate(
                zip(tokens, places, sequences, strict=True)
            ):
                batch.token[i], batch.pos[i] = token, place
                batch.n_seq_id[i], batch.seq_id[i][0] = 1, sequence
                batch.logits[i] = not last or i == len(tokens) - 1
            if llama.llama_decode(context, batch):
                raise RuntimeError("llama.cpp does not decode")

        def draw(sequences: list[int], asked: list[int]) -> dict[int, int]:
            """The next token of rows that go on."""
            drawn = {
                row: llama.llama_sampler_sample(samplers[row], context, at)
                for row, at in zip(sequences, asked, strict=True)
            }
            draws.append(len(drawn))
            ended = llama.llama_vocab_is_eog
            return {r: t for r, t in drawn.items() if not ended(self._vocabulary, t)}

        started = time.perf_counter()
        draws: list[int] = []
        running: dict[int, int] = {}
        for which, prompt in enumerate(prompts):
            first = which * rows
            for at in range(0, len(prompt), 512):
                part = prompt[at : at + 512]
                decode(part, list(range(at, at + len(part))), [first] * len(part), True)
            for row in range(first + 1, first + rows):
                llama.llama_memory_seq_cp(memory, first, row, -1, -1)
            running |= draw(list(range(first, first + rows)), [-1] * rows)
        for step in range(new - 1):
            if not running:
                break
            places = [len(prompts[row // rows]) + step for row in running]
            decode(list(running.values()), places, list(running), False)
            running = draw(list(running), list(range(len(running))))
        seconds = time.perf_counter() - started
        llama.llama_batch_free(batch)
        for sampler in samplers:
            llama.llama_sampler_free(sampler)
        llama.llama_free(context)
        return sum(draws), seconds


# -- ours ----------------------------------------------------------------------------------------


def by_ppl(
    source: str, prompt: list[int], threads: int, settings: dict[str, Any]
) -> Callable[[int, int], float]:
    """The same with ppl."""
    import torch
    from generate_vs_ppl import by_ppl as run

    import ppl

    torch.set_num_threads(threads)
    lm = ppl.load(source, device="cpu", **settings)
    text = ppl.Text(prompt, lm.codec)
    return lambda rows, seed: run(lm, text, rows, seed, NEW_TOKENS)


def serve(run: Callable[[int, int], float]) -> None:
    """Answers lines `[rows, seed]` with tokens per second."""
    run(2, 0)
    print("ready", flush=True)
    for line in sys.stdin:
        print(json.dumps(run(*json.loads(line))), flush=True)


class Side:
    """A process that is asked in turn."""

    def __init__(self, python: str, told: dict[str, Any], busy: bool) -> None:
        command = [python, __file__, "--side", json.dumps(told), *["--busy"] * busy]
        pipes: dict[str, Any] = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
        here = Path(__file__).parent
        self._process = subprocess.Popen(command, **pipes, text=True, cwd=here)
        self._answer("ready")

    def __call__(self, rows: int, seed: int) -> float:
        assert self._process.stdin
        print(json.dumps([rows, seed]), file=self._process.stdin, flush=True)
        return float(self._answer())

    def _answer(self, wanted: str | None = None) -> str:
        assert self._process.stdout
        for line in self._process.stdout:
            if wanted is None or line.strip() == wanted:
                return line
        raise RuntimeError(f"a side ended: {self._process.args}")

    def close(self) -> None:
        """Ends it."""
        self._process.terminate()
        self._process.wait(60)


def main() -> None:
    parser = argparse.ArgumentParser(
        description="llama.cpp on a CPU against ppl, tokens per second"
    )
    parser.add_argument("--llama", help="python of an environment that has llama-cpp-python")
    parser.add_argument("--rows", type=int, nargs="+", default=[1, 8, 32, 64])
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1, help="of each side")
    parser.add_argument(
        "--busy",
        action="store_true",
        help="one thread, and seconds of the processor: where others work",
    )
    parser.add_argument("--compile", action="store_true", help="ours with compile=True")
    parser.add_argument("--side", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.side:
        told = json.loads(options.side)
        if options.busy:
            time.perf_counter = time.process_time
        if "quantise" in told:
            quantise(**told["quantise"])
        elif "llama" in told:
            serve(Llama(**told["llama"]))
        else:
            serve(by_ppl(**told["ppl"]))
        return
    if not options.llama:
        parser.error("say with --llama which python has llama-cpp-python (see this file)")
    sys.path.append(str(Path(__file__).parents[2] / "examples"))
    from generate_vs_ppl import PROMPT_TOKENS, STORY
    from machine import machine
    from smollm2 import find_gguf

    import ppl

    source = str(find_gguf())
    prompt = ppl.load(source, device="cpu").encode(STORY)[:PROMPT_TOKENS]
    if options.busy:
        options.threads = 1
    asked = {"prompt": prompt, "threads": options.threads}
    print(f"{machine()}; {options.threads} threads a side")
    seconds = " of processor time" * options.busy
    how = ", ours with compile=True" * options.compile
    print(f"tokens/s{seconds}, medians of {options.repeats}, the sides taking turns{how}\n")
    with tempfile.TemporaryDirectory() as folder:
        told = {"quantise": {"source": source, "folder": folder}}
        subprocess.run([options.llama, __file__, "--side", json.dumps(told)], check=True)
        sides: dict[str, Side] = {}
        try:
            for name in FORMATS:
                for unified in (True, False):
                    file = str(Path(folder) / f"{name}.gguf")
                    given: dict[str, Any] = {"file": file, **asked, "unified": unified}
                    sides[f"{name} {unified}"] = Side(options.llama, {"llama": given}, options.busy)
            for name, settings in OURS.items():
                settings = {**settings, "compile": options.compile}
                given = {"source": source, **asked, "settings": settings}
                sides[f"ppl {name}"] = Side(sys.executable, {"ppl": given}, options.busy)
            table(sides, options.rows, options.repeats)
        finally:
            for side in sides.values():
                side.close()
    print(f"\nload at the end: {machine().split('load ')[1].split(';')[0]}")


def table(sides: dict[str, Side], rows: list[int], repeats: int) -> None:
    """Asks all sides in turn, and prints."""
    print(f"{'rows':>4}" + "".join(f"{f'llama.cpp {n}':>16}" for n in FORMATS), end="")
    print("".join(f"{f'ppl {n}':>12}" for n in OURS), end="")
    print("".join(f"{f'{n} / {other}':>14}" for n, other in AGAINST.items()), flush=True)
    for count in rows:
        runs = [[side(count, 1 + i) for side in sides.values()] for i in range(repeats)]
        medians = [statistics.median(speeds) for speeds in zip(*runs, strict=True)]
        speeds = dict(zip(sides, medians, strict=True))
        theirs = {n: max(speeds[f"{n} True"], speeds[f"{n} False"]) for n in FORMATS}
        ours = {n: speeds[f"ppl {n}"] for n in OURS}
        print(f"{count:>4}" + "".join(f"{x:>16.1f}" for x in theirs.values()), end="")
        print("".join(f"{x:>12.1f}" for x in ours.values()), end="")
        print("".join(f"{ours[n] / theirs[o]:>14.2f}" for n, o in AGAINST.items()), flush=True)


if __name__ == "__main__":
    main()
