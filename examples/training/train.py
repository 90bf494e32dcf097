"""Train the embedded decoder and process reward model from nothing, in one command.

    python examples/training/train.py --out build/tiny --minutes 160         # two CPU cores
    python examples/training/train.py --out build/tiny --device cuda --minutes 5 --workers 14

Stages, each resumed from its checkpoint when the command is given again:

1. `decoder`: imitates the careless solver (fresh responses in every batch, loss on the response).
2. `reward`: on trees of right responses with wrong branches (see `data.py`): cross-entropy at every
   token, with more weight at line ends; a pairwise loss between a right and a wrong line after the
   same right lines; a language-model loss on right tokens through the embeddings, which teaches it
   what would be right.
3. `own`: the same, and half of every step on responses that the decoder itself samples, in their
   natural frequencies, at a lower learning rate.
4. `calibrate`: slope and intercept of the log-odds on fresh own responses, folded into the last
   layer.

Batch `i` of a stage depends on `--seed` and `i` only. The length is set by steps (`--scale` for
more of them); with `--minutes` a slow machine takes fewer (the learning rate follows whichever is
spent first).
"""

from __future__ import annotations

import argparse
import json
import math
import multiprocessing
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import asdict, dataclass, field, replace
from multiprocessing.pool import Pool
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import torch
from data import (
    LINE_TASKS,
    UNKNOWN,
    Array,
    Tree,
    labelled_response,
    response_batch,
    stack,
    stream,
    training_problem,
    tree_batch,
)
from networks import (
    Shape,
    hidden_states,
    load_decoder,
    load_reward,
    log_odds,
    new_decoder,
    new_reward,
    parameters,
    sample,
    save,
    to_device,
    tree_log_odds,
)
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits, cross_entropy, softplus
from vocabulary import prompt

Batches = dict[str, dict[str, Array]]


@dataclass(frozen=True)
class Recipe:
    """Sizes and lengths. `rows` are per task and step."""

    decoder: Shape = field(default_factory=lambda: Shape(160, 4, 5, 432))
    reward: Shape = field(default_factory=lambda: Shape(192, 6, 6, 512))
    decoder_rows: int = 32
    decoder_steps: int = 4500
    decoder_rate: float = 2e-3
    reward_rows: int = 16
    reward_steps: int = 6500
    reward_rate: float = 1.5e-3
    own_responses: int = 6000  # per task
    own_rows: int = 32
    own_steps: int = 700
    own_rate: float = 4e-4
    calibration_responses: int = 2000  # per task
    minutes: tuple[float, float, float] = (0.25, 0.58, 0.17)  # shares of decoder, reward, own

    def scaled(self, factor: float) -> Recipe:
        names = ("decoder_steps", "reward_steps", "own_steps")
        return replace(self, **{n: round(factor * getattr(self, n)) for n in names})


SMOKE = Recipe(
    Shape(32, 1, 2, 64), Shape(32, 1, 2, 64), 8, 6, 1e-3, 4, 6, 1e-3, 8, 4, 4, 1e-3, 8
)  # shows that the stages run


@dataclass
class Run:
    """Where and how a run happens."""

    out: Path
    device: str
    seed: int
    minutes: float | None
    pool: Pool | None  # processes that make data; None where a caller makes its own
    bfloat16: bool
    checkpoint_seconds: float = 300

    def autocast(self) -> Any:
        return torch.autocast(self.device, torch.bfloat16) if self.bfloat16 else nullcontext()


# --- one training loop for all stages ---------------------------------------------------------


def fit(
    run: Run,
    name: str,
    model: torch.nn.Module,
    batches: Callable[[int], Iterator[Batches]],
    losses: Callable[[Batches], Iterator[dict[str, Tensor]]],
    *,
    steps: int,
    rate: float,
    share: float,
) -> None:
    """Trains to `steps` or to the stage's share of the minutes, from its checkpoint if it has one.

    `batches(start)` is the stream from batch `start` on; `losses(batch)` yields the named parts of
    the loss, task by task, so that only one task's activations are held at a time.
    """
    path = run.out / f"{name}.checkpoint.pt"
    optimizer = torch.optim.AdamW(model.parameters(), lr=rate, betas=(0.9, 0.98), weight_decay=0.01)
    step, before, tokens = 0, 0.0, 0
    if path.exists():
        state = torch.load(path, map_location=run.device)
        model.load_state_dict(state["model"])
        optimizer.load_state_dict(state["optimizer"])
        step, before, tokens = state["step"], state["seconds"], state["tokens"]
        print(f"{name}: resumed at step {step}", flush=True)
    model.train()
    start = saved = time.monotonic()
    limit = 60 * run.minutes * share if run.minutes else math.inf
    said: dict[str, list[Tensor]] = {}

    def checkpoint() -> None:
        state = {"model": model.state_dict(), "optimizer": optimizer.state_dict(), "step": step}
        state |= {"seconds": before + time.monotonic() - start, "tokens": tokens}
        torch.save(state, path.with_suffix(".new"))
        path.with_suffix(".new").replace(path)

    for batch in batches(step):
        seconds = before + time.monotonic() - start
        done = max(step / steps, seconds / limit)
        if done >= 1:
            break
        warmup = min(1.0, (step + 1) / max(1.0, 0.05 * steps))
        for group in optimizer.param_groups:
            group["lr"] = rate * warmup * (0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * done)))
        optimizer.zero_grad(set_to_none=True)
        for parts in losses(batch):
            total = torch.stack(list(parts.values())).sum() / len(batch)
            total.backward()  # type: ignore[no-untyped-call]
            for part, value in parts.items():
                said.setdefault(part, []).append(value.detach())
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        step += 1
        tokens += sum(int((arrays["ids"] != 0).sum()) for arrays in batch.values())
        if step % 100 == 0 or step == steps:
            means = "  ".join(f"{k} {float(torch.stack(v).mean()):.4f}" for k, v in said.items())
            print(
                f"{name} {seconds:6.0f} s  step {step}  {tokens / 1e6:.1f}M tokens  {means}",
                flush=True,
            )
            said = {}
        if time.monotonic() - saved > run.checkpoint_seconds:
            checkpoint()
            saved = time.monotonic()
    checkpoint()
    seconds = before + time.monotonic() - start
    work = 6 * parameters(model) * tokens
    report = {"steps": step, "tokens": tokens, "seconds": round(seconds, 1)}
    report |= {"parameters": parameters(model), "flops": float(f"{work:.3g}"), "device": run.device}
    print(f"{name}: {report}", flush=True)
    (run.out / f"{name}.json").write_text(json.dumps(report, indent=2) + "\n")


# --- stages -----------------------------------------------------------------------------------


def decoder_loss(run: Run, model: Any, rows: dict[str, Array]) -> Tensor:
    """Cross-entropy of the responses' tokens."""
    batch = to_device(rows, run.device)
    with run.autocast():
        hidden = model.model(input_ids=batch["ids"], use_cache=False).last_hidden_state
        wanted = batch["targets"] != UNKNOWN
        logits = model.lm_head(hidden[wanted])
    return cross_entropy(logits.float(), batch["targets"][wanted])


def train_decoder(run: Run, recipe: Recipe) -> None:
    torch.manual_seed(run.seed)
    model: Any = new_decoder(recipe.decoder).to(run.device)

    def losses(batch: Batches) -> Iterator[dict[str, Tensor]]:
        for task, arrays in batch.items():
            yield {f"lm {task}": decoder_loss(run, model, arrays)}

    def batches(start: int) -> Iterator[Batches]:
        stop = recipe.decoder_steps
        return stream(run.pool, response_batch, recipe.decoder_rows, run.seed, start, stop)

    fit(
        run,
        "decoder",
        model,
        batches,
        losses,
        steps=recipe.decoder_steps,
        rate=recipe.decoder_rate,
        share=recipe.minutes[0],
    )
    save(model, run.out / "lm")


def reward_losses(run: Run, model: Any, batch: dict[str, Array]) -> dict[str, Tensor]:
    """Cross-entropy at tokens and line ends, pairwise at line ends, language model."""
    rows = to_device(batch, run.device)
    with run.autocast():
        hidden = hidden_states(model, rows)
        wanted = rows["target"] != UNKNOWN
        vocabulary_logits = hidden[wanted] @ model.model.embed_tokens.weight.T
    odds = log_odds(model, hidden.float())
    known = rows["label"] != UNKNOWN
    inside, end = known & (rows["end"] == 0), known & (rows["end"] == 1)
    truth = rows["label"].float()
    parts = {
        "inside": 0.5 * binary_cross_entropy_with_logits(odds[inside], truth[inside]),
        "end": binary_cross_entropy_with_logits(odds[end], truth[end]),
    }
    if len(rows["pairs"]):
        row, good, bad = rows["pairs"].T
        parts["pair"] = 0.5 * softplus(odds[row, bad] - odds[row, good]).mean()
    if wanted.any():
        parts["lm"] = 0.5 * cross_entropy(vocabulary_logits.float(), rows["target"][wanted])
    return parts


def train_reward(run: Run, recipe: Recipe) -> None:
    torch.manual_seed(run.seed + 1)
    model: Any = new_reward(recipe.reward).to(run.device)

    def losses(batch: Batches) -> Iterator[dict[str, Tensor]]:
        for task, arrays in batch.items():
            parts = reward_losses(run, model, arrays)
            yield {f"end {task}" if k == "end" else k: v for k, v in parts.items()}

    def batches(start: int) -> Iterator[Batches]:
        stop = recipe.reward_steps
        return stream(run.pool, tree_batch, recipe.reward_rows, run.seed + 1, start, stop)

    fit(
        run,
        "reward",
        model,
        batches,
        losses,
        steps=recipe.reward_steps,
        rate=recipe.reward_rate,
        share=recipe.minutes[1],
    )
    save(model, run.out / "prm")


def own_trees(run: Run, task: str, count: int, seed: int) -> list[Tree]:
    """Labelled responses of the decoder to fresh training problems."""
    rng = Random(f"{seed}:own:{task}")
    torch.manual_seed(seed)
    decoder = load_decoder(run.out / "lm", run.device)
    problems = [training_problem(task, rng) for _ in range(count)]
    responses = sample(decoder, [prompt(p.question) for p in problems])
    right = sum(p.check(r.text) for p, r in zip(problems, responses, strict=True))
    print(f"own: {task}: {right / count:.3f} of {count} sampled answers right", flush=True)
    return [labelled_response(p, r.groups) for p, r in zip(problems, responses, strict=True)]


def train_on_own(run: Run, recipe: Recipe) -> None:
    model: Any = load_reward(run.out / "prm", run.device)
    trees = {t: own_trees(run, t, recipe.own_responses, run.seed + 2) for t in LINE_TASKS}

    def losses(batch: Batches) -> Iterator[dict[str, Tensor]]:
        for task, arrays in batch.items():
            parts = reward_losses(run, model, arrays)
            yield {f"end {task}" if k == "end" else k: v for k, v in parts.items()}

    def batches(start: int) -> Iterator[Batches]:
        rows, stop = recipe.reward_rows // 2, recipe.own_steps
        made = stream(run.pool, tree_batch, rows, run.seed + 3, start, stop)
        for index, batch in enumerate(made, start):
            rng = Random(f"{run.seed}:own:{index}")
            for task, pool in trees.items():
                batch[f"own {task}"] = stack(rng.sample(pool, min(recipe.own_rows, len(pool))))
            yield batch

    fit(
        run,
        "own",
        model,
        batches,
        losses,
        steps=recipe.own_steps,
        rate=recipe.own_rate,
        share=recipe.minutes[2],
    )
    save(model, run.out / "prm")


def calibrate(run: Run, recipe: Recipe) -> None:
    """Logistic regression of labels on log-odds at line ends, every task counting equally."""
    model: Any = load_reward(run.out / "prm", run.device)
    odds, labels, weights = [], [], []
    for task in LINE_TASKS:
        trees = own_trees(run, task, recipe.calibration_responses, run.seed + 4)
        for one, row in zip(trees, tree_log_odds(model, trees), strict=True):
            at = [
                i for i, (e, y) in enumerate(zip(one.end, one.label, strict=True)) if e and y >= 0
            ]
            odds += [float(row[i]) for i in at]
            labels += [one.label[i] for i in at]
        weights += [1 / (len(odds) - len(weights))] * (len(odds) - len(weights))
    slope, intercept = platt(np.array(odds), np.array(labels, dtype=float), np.array(weights))
    print(f"calibrate: log-odds -> {slope:.3f} * log-odds + {intercept:.3f}", flush=True)
    with torch.no_grad():
        model.score.weight.mul_(slope)
        model.score.bias.mul_(slope)
        model.score.bias[1].add_(intercept)
    save(model, run.out / "prm")
    (run.out / "calibrate.json").write_text(json.dumps({"slope": slope, "intercept": intercept}))


def platt(
    odds: np.ndarray[Any, Any], labels: np.ndarray[Any, Any], weights: np.ndarray[Any, Any]
) -> tuple[float, float]:
    """Slope and intercept of a weighted logistic regression, by Newton's method from (1, 0)."""
    x = np.stack([odds, np.ones_like(odds)], 1)
    beta = np.array([1.0, 0.0])
    for _ in range(50):
        p = 1 / (1 + np.exp(-x @ beta))
        gradient = x.T @ (weights * (labels - p)) - 1e-4 * (beta - [1.0, 0.0])
        curvature = (x * (weights * p * (1 - p))[:, None]).T @ x + 1e-4 * np.eye(2)
        beta = beta + np.linalg.solve(curvature, gradient)
    return float(beta[0]), float(beta[1])


STAGES = {
    "decoder": train_decoder,
    "reward": train_reward,
    "own": train_on_own,
    "calibrate": calibrate,
}


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, required=True, help="folder for lm/, prm/, checkpoints")
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"))
    parser.add_argument("--minutes", type=float, help="wall time of the three training stages")
    parser.add_argument("--workers", type=int, default=1, help="processes that make data")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--float32",
        action="store_true",
        help="no bfloat16 autocast (for a CPU without AVX512-BF16)",
    )
    parser.add_argument("--scale", type=float, default=1.0, help="times as many steps")
    parser.add_argument("--smoke", action="store_true", help="tiny sizes: shows that it runs")
    args = parser.parse_args(argv)
    args.out.mkdir(parents=True, exist_ok=True)
    recipe = (SMOKE if args.smoke else Recipe()).scaled(args.scale)
    (args.out / "recipe.json").write_text(json.dumps(asdict(recipe), indent=2) + "\n")
    # Forked before anything has threads or a CUDA context: the workers start at once.
    with multiprocessing.get_context("fork").Pool(args.workers) as pool:
        torch.backends.cuda.matmul.allow_tf32 = True
        run = Run(args.out, args.device, args.seed, args.minutes, pool, not args.float32)
        for name, stage in STAGES.items():
            if (args.out / f"{name}.json").exists():
                print(f"{name}: done before", flush=True)
            else:
                stage(run, recipe)


if __name__ == "__main__":
    main()
