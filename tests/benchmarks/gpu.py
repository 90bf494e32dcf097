"""Tokens per second on a GPU, against `transformers` and the bandwidth of the device's memory.

    python tests/benchmarks/gpu.py --shape qwen2.5-1.5b
    python tests/benchmarks/gpu.py --shape qwen2.5-7b --rows 1 64 --profile
    python tests/benchmarks/gpu.py --shape tiny --context 64 --new-tokens 16   # a trial on a CPU

Models have the published shapes and random weights, made on the device in bfloat16: nothing is
downloaded, and no row ends early, because the stand-in tokenizer's end token is outside of the
vocabulary. All sides draw the same number of tokens by plain sampling, `shared` from one prompt or
`separate` from a prompt a row: `generate()` with its own cache, continuous batching (with flash
attention where transformers finds it, and never), and ours: plain, with CUDA graphs, with graphs of
compiled steps, and with graphs and keys and values in eight bits. vLLM runs in this process, last,
where it is installed, with random weights of its own. Every run has new prompts, so that no side
remembers one.

Each is timed with one new token and with `--new-tokens` more. The first is the prompt's time; the
difference is decoding, whose bound is the memory: a step reads all weights once, and the keys and
values of every row (those of a shared prompt once), at the bandwidth of a large copy. From some
hundred rows on arithmetic takes as long, and the bound is out of reach. Memory is the peak that
torch allocated, and its ratio to the weights with the byte budget that ours are given; continuous
batching takes most of the device whatever it needs.
"""

from __future__ import annotations

import argparse
import contextlib
import functools
import gc
import importlib.util
import math
import os
import platform
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import transformers
from machine import machine
from shapes import SHAPES, Numbers, kv_bytes_per_token, random_model
from torch.profiler import ProfilerActivity, profile
from transformers import ContinuousBatchingConfig, GenerationConfig
from transformers.generation.continuous_batching.utils import WorkloadHints

import ppl
from ppl.lm.base import ContinueRequest
from ppl.lm.engine.slots import bucket

Prompts = Sequence[tuple[int, ...]]
Run = Callable[[Prompts, int], list[int]]
"""Prompts, one a row, and new tokens of each; how many each row got."""


@dataclass(frozen=True)
class Setting:
    """One cell: so many rows, their prompts of `context` tokens shared or not, `new` to draw."""

    shared: bool
    rows: int
    context: int
    new: int

    def prompts(self, vocabulary: int, seed: int) -> Prompts:
        generator = torch.Generator().manual_seed(seed)
        count = 1 if self.shared else self.rows
        ids = torch.randint(vocabulary, (count, self.context), generator=generator).tolist()
        return [tuple(ids[row % count]) for row in range(self.rows)]


def step_bytes(model: Any, setting: Setting) -> float:
    """Bytes that a decode step must read, on average over the new tokens."""
    weights = sum(p.nbytes for p in model.parameters())  # a tied matrix is one parameter
    if not model.config.tie_word_embeddings:
        weights -= model.get_input_embeddings().weight.nbytes  # some rows of it only
    own = 1 + setting.new / 2
    if setting.shared:
        keys = setting.context + setting.rows * own
    else:
        keys = setting.rows * (setting.context + own)
    return weights + kv_bytes_per_token(model) * keys


def budget(model: Any, setting: Setting) -> int:
    """The `kv_bytes` with which all rows run side by side: slots may take half of it."""
    hidden = model.config.hidden_size * model.dtype.itemsize
    slot = bucket(setting.context + 1 + setting.new) + 1
    return 2 * setting.rows * slot * (kv_bytes_per_token(model) + hidden)


@contextlib.contextmanager
def by_generate(model: Any, setting: Setting) -> Iterator[Run]:
    def run(prompts: Prompts, new: int) -> list[int]:
        ids = torch.tensor(prompts, device=model.device)
        with torch.inference_mode():
            out = model.generate(
                ids, attention_mask=torch.ones_like(ids), generation_config=_sampling(new)
            )
        return [len(row) for row in out[:, ids.shape[1] :].tolist()]

    yield run


@contextlib.contextmanager
def by_batching(model: Any, setting: Setting, flash: bool) -> Iterator[Run]:
    """Continuous batching; its thread and cache live as long as the context.

    Rows that share a prompt are its return sequences, which share its pages.
    """
    config = _sampling(1 + setting.new)
    config.eos_token_id = -1  # in its own words: none
    # On a GPU its own default, most of what is free; of a CPU's memory that would be too much.
    share = None if model.device.type == "cuda" else 0.02
    config.num_return_sequences = setting.rows if setting.shared else 1
    hints = WorkloadHints(
        max_prompt_length=setting.context,
        max_generated_length=1 + setting.new,
        num_requests=setting.rows,
    )
    try:
        with model.continuous_batching_context_manager(
            generation_config=config,
            continuous_batching_config=ContinuousBatchingConfig(
                auto_switch_to_flash=flash, max_memory_percent=share
            ),
            workload_hints=hints,
            timeout=10,
        ) as manager:

            def run(prompts: Prompts, new: int) -> list[int]:
                asked = prompts[:1] if setting.shared else prompts
                manager.add_requests([list(p) for p in asked], max_new_tokens=new)
                lengths: list[int] = []
                while len(lengths) < setting.rows:
                    result = manager.get_result(timeout=1)
                    if result is None and not manager.is_running():
                        raise RuntimeError("its thread has ended")
                    if result is not None and result.error is not None:
                        raise RuntimeError(result.error)
                    if result is not None and result.is_finished():
                        lengths.append(len(result.generated_tokens))
                return lengths

            yield run
    finally:
        model.set_attn_implementation("sdpa")  # left otherwise where its warm-up fails


@functools.lru_cache(maxsize=1)
def _vllm(folder: str, rows: int, length: int) -> Any:
    """An engine of a model of this configuration, for so many rows; it starts in a minute."""
    os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"
    from vllm import LLM

    return LLM(
        model=folder,
        skip_tokenizer_init=True,
        load_format="dummy",
        dtype="bfloat16",
        enable_prefix_caching=True,
        max_model_len=length,
        max_num_seqs=rows,
        gpu_memory_utilization=0.4,
        disable_log_stats=True,
    )


@contextlib.contextmanager
def by_vllm(model: Any, setting: Setting) -> Iterator[Run]:
    if importlib.util.find_spec("vllm") is None:
        raise RuntimeError("vllm is not installed here")
    from vllm import SamplingParams

    folder = Path(tempfile.gettempdir()) / f"gpu-benchmark-{model.config.hidden_size}"
    model.config.save_pretrained(folder)
    engine = _vllm(str(folder), 256, setting.context + setting.new + 8)

    def run(prompts: Prompts, new: int) -> list[int]:
        wanted = SamplingParams(max_tokens=new, ignore_eos=True, detokenize=False)
        asked: list[Any] = [{"prompt_token_ids": list(prompt)} for prompt in prompts]
        answers = engine.generate(asked, wanted, use_tqdm=False)
        return [len(answer.outputs[0].token_ids) for answer in answers]

    yield run


@contextlib.contextmanager
def by_ppl(
    model: Any, setting: Setting, graphs: bool, compile: bool = False, kv: str = "full"
) -> Iterator[Run]:
    lm = _language_model(model, setting, graphs, compile, kv)

    def run(prompts: Prompts, new: int) -> list[int]:
        lm.engine.pool.clear()
        drawn = lm.sample_batch(_requests(lm, prompts, new))
        return [0 if d is None else len(d.value.tokens) for d in drawn]

    yield run


# Whether steps are captured, and compiled, and what is kept of keys and values.
OURS = {
    "ppl": (False, False, "full"),
    "ppl-graphs": (True, False, "full"),
    "ppl-compiled": (True, True, "full"),
    "graphs-kv-int8": (True, False, "int8"),
}
SIDES: dict[str, Callable[[Any, Setting], contextlib.AbstractContextManager[Run]]] = {
    "generate": by_generate,
    "batching": lambda model, setting: by_batching(model, setting, flash=True),
    "batching-sdpa": lambda model, setting: by_batching(model, setting, flash=False),
    "ppl": lambda model, setting: by_ppl(model, setting, *OURS["ppl"]),
    "ppl-graphs": lambda model, setting: by_ppl(model, setting, *OURS["ppl-graphs"]),
    "ppl-compiled": lambda model, setting: by_ppl(model, setting, *OURS["ppl-compiled"]),
    "graphs-kv-int8": lambda model, setting: by_ppl(model, setting, *OURS["graphs-kv-int8"]),
    "vllm": by_vllm,
}


def _sampling(new: int) -> GenerationConfig:
    """Plain sampling without an end."""
    return GenerationConfig(
        do_sample=True,
        temperature=1.0,
        top_k=0,
        top_p=1.0,
        max_new_tokens=new,
    )


def _language_model(
    model: Any, setting: Setting, graphs: bool, compile: bool = False, kv: str = "full"
) -> ppl.HFModel:
    return ppl.HFModel(
        model,
        Numbers(model.config.vocab_size),
        name="random",
        kv_bytes=budget(model, setting),
        graphs=graphs,
        compile=compile,
        kv=kv,
    )


def _requests(lm: ppl.HFModel, prompts: Prompts, new: int) -> list[ContinueRequest]:
    texts = [ppl.Text(prompt, lm.codec) for prompt in prompts]
    return [ContinueRequest(lm, lm(t, max_tokens=new).spec, key) for key, t in enumerate(texts)]


def timed(call: Callable[[], object], device: torch.device) -> float:
    """Seconds, with everything that the device was asked for done."""
    synchronize(device)
    started = time.perf_counter()
    call()
    synchronize(device)
    return time.perf_counter() - started


def synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def free(device: torch.device) -> None:
    """Gives back what nobody holds, and counts the peak anew."""
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(device)


def copy_bandwidth(device: torch.device) -> float:
    """Bytes per second, read and written, of a copy that no cache holds."""
    size = 1 << 31 if device.type == "cuda" else 1 << 27
    source = torch.ones(size, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)

    def copies() -> None:
        for _ in range(10):
            target.copy_(source)

    copies()
    seconds = statistics.median(timed(copies, device) for _ in range(3))
    return 10 * 2 * source.nbytes / seconds


@dataclass(frozen=True)
class Measured:
    """Seconds up to the first token and of all tokens; peak bytes, NaN on a CPU."""

    first: float
    whole: float
    peak: float


def measure(model: Any, side: str, setting: Setting, repeats: int) -> Measured | str:
    """Medians, or why the side refuses."""
    device, new = model.device, 1 + setting.new
    free(device)
    seeds = iter(range(1, 1000))

    def seconds(run: Run, count: int) -> float:
        prompts = setting.prompts(model.config.vocab_size, next(seeds))
        got: list[int] = []
        spent = timed(lambda: got.extend(run(prompts, count)), device)
        if got != [count] * setting.rows:
            raise RuntimeError(f"drew {got} tokens, not {count} for each of {setting.rows} rows")
        return spent

    try:
        with SIDES[side](model, setting) as run:
            for _ in range(2):  # kernels are chosen, graphs captured, memory allocated
                seconds(run, new)
            seconds(run, 1)
            pairs = [(seconds(run, 1), seconds(run, new)) for _ in range(repeats)]
        peak = torch.cuda.max_memory_allocated(device) if device.type == "cuda" else math.nan
    except Exception as refusal:
        return f"refused: {' '.join(str(refusal).split())[:90] or type(refusal).__name__}"
    first, whole = (statistics.median(column) for column in zip(*pairs, strict=True))
    return Measured(first, whole, peak)


def profile_step(model: Any, setting: Setting, graphs: bool, compile: bool, kv: str) -> None:
    """Prints where the time of a decode step goes, on average over several, as they may be one
    burst, and how long the device waits."""
    device, several = model.device, min(16, setting.new // 4)
    free(device)
    try:
        lm = _language_model(model, setting, graphs, compile, kv)
    except Exception as refusal:
        print(f"refused: {' '.join(str(refusal).split())[:90]}")
        return
    session = lm.session()
    for request in _requests(lm, setting.prompts(model.config.vocab_size, 0), 1 + setting.new):
        session.submit(request)

    def steps() -> None:
        for _ in range(several):
            session.step()

    for _ in range(3):
        session.step()
    wall = statistics.median(timed(steps, device) for _ in range(2)) / several
    activities = [ProfilerActivity.CPU]
    activities += [ProfilerActivity.CUDA] if device.type == "cuda" else []
    with profile(activities=activities) as profiler:
        steps()
        synchronize(device)
    session.close()
    order = "self_device_time_total" if device.type == "cuda" else "self_cpu_time_total"
    averages = profiler.key_averages()
    print(averages.table(sort_by=order, row_limit=16, max_name_column_width=70))
    if device.type == "cuda":
        # Rows of the host repeat the times of the kernels that they started.
        kernels = [
            event.self_device_time_total
            for event in profiler.events()
            if event.device_type == torch.autograd.DeviceType.CUDA and not event.is_user_annotation
        ]
        busy, count = sum(kernels) / 1e6 / several, len(kernels) / several
        print(
            f"a step: {wall * 1e3:.2f} ms without the profiler; {count:.0f} kernels and copies, "
            f"{busy * 1e3:.2f} ms; the device idles for {max(0.0, 1 - busy / wall):.0%}"
        )
    else:
        print(f"a step: {wall * 1e3:.2f} ms without the profiler; no GPU")


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--shape", default="qwen2.5-1.5b", choices=list(SHAPES))
    parser.add_argument("--rows", type=int, nargs="+", default=[1, 8, 64, 256])
    parser.add_argument("--context", type=int, default=512, help="tokens of a prompt")
    parser.add_argument("--new-tokens", type=int, default=64, help="after the first; 8 or more")
    both = ["shared", "separate"]
    parser.add_argument("--prompts", nargs="+", default=both, choices=both)
    parser.add_argument("--sides", nargs="+", default=list(SIDES), choices=list(SIDES))
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument(
        "--profile", action="store_true", help="one decode step of ours with most rows, by part"
    )
    options = parser.parse_args(arguments)
    if options.new_tokens < 8:
        parser.error("--new-tokens: fewer than 8 are too few to time")
    device = torch.device(options.device)
    if device.type == "cuda":
        device = torch.device("cuda", device.index or 0)
        torch.cuda.set_device(device)
    transformers.logging.set_verbosity_error()
    settings = [
        Setting(prompts == "shared", rows, options.context, options.new_tokens)
        for prompts in options.prompts
        for rows in options.rows
    ]

    print(machine())
    if device.type == "cuda":
        about = torch.cuda.get_device_properties(device)
        print(f"{about.name}, {about.total_memory / 1e9:.0f} GB, CUDA {torch.version.cuda}", end="")
    else:
        print("no GPU", end="")
    print(f"; transformers {transformers.__version__}, Python {platform.python_version()}")
    bandwidth = copy_bandwidth(device)
    free(device)
    model = random_model(options.shape, device)
    weights = sum(p.nbytes for p in model.parameters())
    print(
        f"{options.shape}, bfloat16, random weights of {weights / 1e9:.2f} GB; copies "
        f"{bandwidth / 1e9:.0f} GB/s; prompts of {options.context} tokens, 1 + "
        f"{options.new_tokens} new; medians of {options.repeats}\n"
    )
    print(
        f"{'prompts':<9}{'rows':>5}  {'side':<15}{'first s':>9}{'tokens/s':>10}"
        f"{'decode/s':>10}{'bound/s':>10}{'share':>7}{'peak GB':>9}{'/ budget':>9}"
    )

    def table(sides: Sequence[str]) -> None:
        for setting in settings:
            bound = setting.rows * bandwidth / step_bytes(model, setting)
            for side in sides:
                how = "shared" if setting.shared else "separate"
                start = f"{how:<9}{setting.rows:>5}  {side:<15}"
                got = measure(model, side, setting, options.repeats)
                if isinstance(got, str):
                    print(start + got, flush=True)
                    continue
                decoding = got.whole - got.first
                speed = setting.rows * setting.new / decoding if decoding > 0 else math.nan
                print(
                    f"{start}{got.first:>9.3f}{setting.rows * (1 + setting.new) / got.whole:>10.1f}"
                    f"{speed:>10.1f}{bound:>10.1f}{speed / bound:>7.1%}{got.peak / 1e9:>9.2f}"
                    f"{got.peak / (weights + budget(model, setting)):>9.2f}",
                    flush=True,
                )

    table([side for side in options.sides if side != "vllm"])
    for setting in settings if options.profile else ():
        for side in options.sides if setting.rows == max(options.rows) else ():
            if side in OURS:
                how = "shared" if setting.shared else "separate"
                print(f"\none decode step, {setting.rows} rows, {how}, {side}")
                profile_step(model, setting, *OURS[side])
    if "vllm" in options.sides:  # what it holds is no other side's
        print()
        table(["vllm"])
    print(f"\nload at the end: {machine().split('load ')[1].split(';')[0]}")


if __name__ == "__main__":
    main()
