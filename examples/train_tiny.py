"""Train the embedded tiny model from nothing: tokenizer, language model, step verifier.

    python examples/train_tiny.py tokenizer lm prm evaluate --out build/tiny

Recipe.  A byte-level BPE is trained on our own questions.  A small Llama decoder is trained on
worked solutions (loss on the solution only), first of a wide mixture of problems, then of one near
the evaluated difficulty.  A process reward model of the same shape starts from the decoder and is
trained on steps the decoder itself sampled at temperature 1, each labelled exactly: right so far,
and the right answer can still be reached.  No stage but ``evaluate`` sees a held-out problem (see
``tiny_data.py``).  Training is limited by wall time, so two runs differ a little.  Every stage
reads the folders of the stages before it (``OUT/lm``, ``OUT/prm``).  Needs no GPU.
"""

from __future__ import annotations

import argparse
import copy
import json
import math
import shutil
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from random import Random

import torch
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import (
    AutoModelForCausalLM,
    AutoModelForTokenClassification,
    AutoTokenizer,
    LlamaConfig,
    LlamaForCausalLM,
    LlamaForTokenClassification,
    PreTrainedTokenizerFast,
)

sys.path[:0] = [str(Path(__file__).resolve().parent), str(Path(__file__).resolve().parents[1])]
from tiny_data import (  # noqa: E402
    Task,
    countdown_character_labels,
    countdown_item,
    slipping_countdown,
    step_labels,
    training_item,
)

from ppl.tasks import TASKS, Judge, Problem, problems  # noqa: E402

END, PAD, USER, ASSISTANT = "<|end|>", "<|pad|>", "<|user|>", "<|assistant|>"
CHAT_TEMPLATE = (
    "{% for message in messages %}"
    "{% if message['role'] == 'assistant' %}{{ message['content'] + '<|end|>' }}"
    "{% elif message['role'] == 'user' %}"
    "{{ '<|user|>' + message['content'] + '<|assistant|>' }}"
    "{% else %}{{ message['content'] }}{% endif %}{% endfor %}"
)
STAGES = ("tokenizer", "lm", "prm", "evaluate")


@dataclass(frozen=True)
class Size:
    """Sizes of one run; ``SMOKE`` is for a test that only shows that the stages run."""

    hidden: int = 192
    layers: int = 4
    heads: int = 4
    intermediate: int = 512
    vocabulary: int = 768
    batch: int = 64
    tokenizer_items: int = 20_000
    sampled: int = 10_000
    held_out: int = 500


SMOKE = Size(32, 1, 2, 64, 400, 16, 400, 64, 16)


# --- tokenizer ------------------------------------------------------------------------------


def train_tokenizer(folder: Path, size: Size, seed: int) -> None:
    """Lossless byte-level BPE; digits and newlines stand alone, operators only join spaces.

    Merges may therefore cross the spaces of a question, but in a solution, which has no spaces,
    every character is one token and each step ends with one ``"\\n"`` token.
    """
    rng = Random(seed)
    tokenizer = Tokenizer(models.BPE())
    pieces = pre_tokenizers.Split(Regex(r" ?[-+*/()=;,] ?|\d|\n"), "isolated")
    bytes_ = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([pieces, bytes_])
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=size.vocabulary,
        special_tokens=[PAD, END, USER, ASSISTANT],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
        min_frequency=2,
    )
    questions = (training_item(rng).question for _ in range(size.tokenizer_items))
    tokenizer.train_from_iterator(questions, trainer)
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        eos_token=END,
        pad_token=PAD,
        additional_special_tokens=[USER, ASSISTANT],
        chat_template=CHAT_TEMPLATE,
        clean_up_tokenization_spaces=False,
        model_max_length=512,
    )
    fast.save_pretrained(folder)
    inline_chat_template(folder)


def inline_chat_template(folder: Path) -> None:
    """Keep the chat template in tokenizer_config.json, the one file every reader knows."""
    path = folder / "tokenizer_config.json"
    config = json.loads(path.read_text())
    config["chat_template"] = CHAT_TEMPLATE
    config["tokenizer_class"] = "PreTrainedTokenizerFast"  # the name that every version knows
    path.write_text(json.dumps(config, indent=2, ensure_ascii=False) + "\n")
    (folder / "chat_template.jinja").unlink(missing_ok=True)


class Encoder:
    """Question and response to token ids."""

    def __init__(self, folder: Path) -> None:
        self.tokenizer = AutoTokenizer.from_pretrained(folder)
        self.end = int(self.tokenizer.eos_token_id)
        self.pad = int(self.tokenizer.pad_token_id)
        self.newline = self.ids("\n")[0]

    def ids(self, text: str) -> list[int]:
        return list(self.tokenizer.encode(text, add_special_tokens=False))

    def prompt(self, question: str) -> list[int]:
        """Exactly what the chat template renders."""
        return self.ids(f"{USER}{question}{ASSISTANT}")


# --- language model -------------------------------------------------------------------------


def batches(
    encoder: Encoder, rng: Random, batch: int, narrow: bool = False
) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Endless ``(ids, targets)``, each ``[batch, time]``; targets are -100 outside solutions.

    Sequences are bucketed by length within a chunk, so little of a batch is padding.
    """
    while True:
        rows = []
        for _ in range(batch * 16):
            item = training_item(rng, narrow)
            prompt = encoder.prompt(item.question)
            rows.append((prompt, [*encoder.ids(item.solution), encoder.end]))
        rows.sort(key=lambda row: len(row[0]) + len(row[1]))
        groups = [rows[i : i + batch] for i in range(0, len(rows), batch)]
        rng.shuffle(groups)
        for group in groups:
            yield pad_rows(group, encoder.pad)


def pad_rows(
    rows: Sequence[tuple[list[int], list[int]]], pad: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """Right-padded ids and next-token targets, both ``[rows, time]``."""
    width = max(len(prompt) + len(solution) for prompt, solution in rows)
    ids = torch.full((len(rows), width), pad)
    targets = torch.full((len(rows), width), -100)
    for i, (prompt, solution) in enumerate(rows):
        row = torch.tensor(prompt + solution)
        ids[i, : len(row)] = row
        # Position p predicts token p + 1: the last prompt token predicts the first of the solution.
        targets[i, len(prompt) - 1 : len(row) - 1] = row[len(prompt) :]
    return ids, targets


def optimizer_for(model: torch.nn.Module, rate: float) -> torch.optim.AdamW:
    return torch.optim.AdamW(model.parameters(), lr=rate, betas=(0.9, 0.98), weight_decay=0.01)


def schedule(step: int, done: float, warmup: int) -> float:
    """Learning-rate factor: linear warmup in steps, cosine in the fraction of the time spent."""
    return min(1.0, (step + 1) / warmup) * (0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * done)))


def new_decoder(encoder: Encoder, size: Size) -> LlamaForCausalLM:
    config = LlamaConfig(
        vocab_size=len(encoder.tokenizer),
        hidden_size=size.hidden,
        num_hidden_layers=size.layers,
        num_attention_heads=size.heads,
        num_key_value_heads=size.heads,
        intermediate_size=size.intermediate,
        max_position_embeddings=512,
        tie_word_embeddings=True,
        bos_token_id=None,
        eos_token_id=encoder.end,
        pad_token_id=encoder.pad,
    )
    return LlamaForCausalLM(config)


def train_lm(folder: Path, size: Size, seed: int, minutes: float, narrow: bool = False) -> None:
    """Train the decoder for a wall time; writes ``folder`` at the end and every five minutes.

    With ``narrow`` the decoder already in ``folder`` is trained further on the narrow mixture.
    """
    torch.manual_seed(seed)
    encoder = Encoder(folder)
    if narrow:
        model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    else:
        model = new_decoder(encoder, size)
    print(f"lm: {sum(p.numel() for p in model.parameters()):,} parameters", flush=True)
    rate = 1.5e-3 if narrow else 2e-3
    optimizer = optimizer_for(model, rate)
    start, step, seen, saved, total = time.monotonic(), 0, 0, 0.0, 0.0
    for ids, targets in batches(encoder, Random(seed + 1 + narrow), size.batch, narrow):
        done = (time.monotonic() - start) / (60 * minutes)
        if done >= 1:
            break
        for group in optimizer.param_groups:
            group["lr"] = rate * schedule(step, done, 50 if narrow else 200)
        with torch.autocast("cpu", torch.bfloat16):
            hidden = model.model(input_ids=ids, use_cache=False).last_hidden_state
            wanted = targets != -100
            logits = model.lm_head(hidden[wanted])
        loss = torch.nn.functional.cross_entropy(logits.float(), targets[wanted])
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        step, seen, total = step + 1, seen + ids.numel(), total + loss.item()
        if step % 50 == 0:
            spent = time.monotonic() - start
            print(
                f"{spent:6.0f} s  step {step}  loss {total / 50:.4f}  {seen / spent:.0f} tokens/s",
                flush=True,
            )
            total = 0.0
        if time.monotonic() - start - saved > 300:
            saved = time.monotonic() - start
            save(model, folder)
    save(model, folder)


def save(model: torch.nn.Module, folder: Path) -> None:
    """Write the weights as float16 and declare float32, in which every loader then computes.

    Half the bytes on disk; the live model is not touched.
    """
    copy.deepcopy(model).to(torch.float16).save_pretrained(folder)
    path = folder / "config.json"
    config = json.loads(path.read_text())
    config["dtype"] = "float32"
    path.write_text(json.dumps(config, indent=2) + "\n")
    for file in folder.iterdir():
        file.chmod(0o644)


# --- sampling -------------------------------------------------------------------------------


@dataclass(frozen=True)
class Sample:
    """One response of the model: prompt ids, response ids (with ``<|end|>`` where it ended)."""

    task: Task
    truth: str
    prompt: list[int]
    response: list[int]
    text: str
    ended: bool

    @property
    def answer(self) -> str | None:
        """The last line, or None where the response never ended."""
        return self.text.split("\n")[-1] if self.ended else None


@torch.inference_mode()
def sample(
    model: LlamaForCausalLM,
    encoder: Encoder,
    asked: Sequence[tuple[Task, str, str]],
    batch: int = 256,
    max_tokens: int = 112,
) -> list[Sample]:
    """One response at temperature 1 to each ``(task, truth, question)``, in order.

    Prompts of similar length share a left-padded batch.
    """
    model.eval()
    prompts = [encoder.prompt(question) for _, _, question in asked]
    order = sorted(range(len(asked)), key=lambda i: (asked[i][0], len(prompts[i])))
    out: dict[int, Sample] = {}
    for start in range(0, len(order), batch):
        chunk = order[start : start + batch]
        width = max(len(prompts[i]) for i in chunk)
        ids = torch.tensor([[encoder.pad] * (width - len(prompts[i])) + prompts[i] for i in chunk])
        mask = torch.tensor(
            [[0] * (width - len(prompts[i])) + [1] * len(prompts[i]) for i in chunk]
        )
        generated = model.generate(
            input_ids=ids,
            attention_mask=mask,
            do_sample=True,
            temperature=1.0,
            top_k=0,
            top_p=1.0,
            max_new_tokens=max_tokens,
            pad_token_id=encoder.pad,
        )
        for i, row in zip(chunk, generated[:, width:].tolist(), strict=True):
            ended = encoder.end in row
            response = row[: row.index(encoder.end) + 1] if ended else row
            text = encoder.tokenizer.decode(response[:-1] if ended else response)
            task, truth, _ = asked[i]
            out[i] = Sample(task, truth, prompts[i], response, text, ended)
    return [out[i] for i in range(len(asked))]


def labelled(encoder: Encoder, one: Sample) -> tuple[list[int], list[bool]]:
    """Positions in ``prompt + response`` where steps end, and the exact label of each."""
    ends = [i for i, t in enumerate(one.response) if t in (encoder.newline, encoder.end)]
    steps = one.text.split("\n")
    if not one.ended:
        steps = steps[:-1]  # the last line was cut off and has no end to score
    labels = step_labels(one.task, one.truth, steps, one.ended)
    return [len(one.prompt) + i for i in ends], labels


# --- process reward model -------------------------------------------------------------------


@dataclass(frozen=True)
class Row:
    """Token ids of prompt and response, and what is known at their positions.

    ``ends`` labels the step ends; ``inner`` labels characters inside countdown steps, where the
    same question (can this still be completed?) has an exact answer too.  Knowing the very digit
    at which a line goes wrong teaches far more than one label per line.
    """

    ids: list[int]
    ends: dict[int, bool]
    inner: dict[int, bool]


def row_of(encoder: Encoder, one: Sample) -> Row:
    places, labels = labelled(encoder, one)
    inner: dict[int, bool] = {}
    # Characters are found by position, so each must be one token (in a sane response they are).
    if one.task == "countdown" and len(one.text) == len(one.response) - one.ended:
        steps = one.text.split("\n")[: len(labels)]
        at = len(one.prompt)
        for marks in countdown_character_labels(one.truth, steps, one.ended):
            inner |= {at + i: mark for i, mark in enumerate(marks) if mark is not None}
            at += len(marks) + 1  # one token per character, then the newline
    return Row(one.prompt + one.response, dict(zip(places, labels, strict=True)), inner)


def own_rows(lm: Path, encoder: Encoder, size: Size, rng: Random) -> list[Row]:
    """Labelled responses that the decoder gives to fresh training problems at temperature 1."""
    start = time.monotonic()
    # Mostly near the evaluated difficulty, some of the wide mixture.
    items = [training_item(rng, narrow=rng.random() < 0.8) for _ in range(size.sampled)]
    policy = AutoModelForCausalLM.from_pretrained(lm)
    samples = sample(policy, encoder, [(i.task, i.truth, i.question) for i in items])
    rows = [row for one in samples if (row := row_of(encoder, one)).ends]
    labels = [label for row in rows for label in row.ends.values()]
    good = sum(labels) / len(labels)
    spent = time.monotonic() - start
    print(f"prm: {len(rows)} responses in {spent:.0f} s, {good:.3f} of steps good", flush=True)
    return rows


def slip_rows(encoder: Encoder, n: int, rng: Random) -> list[Row]:
    """Labelled countdown responses with made-up mistakes: endless, and free of sampling."""
    rows = []
    for _ in range(n):
        item = countdown_item(rng, narrow=rng.random() < 0.8)
        numbers, target = item.truth.split("=")
        text = slipping_countdown([int(k) for k in numbers.split(",")], int(target), rng)
        response = [*encoder.ids(text), encoder.end]
        prompt = encoder.prompt(item.question)
        rows.append(row_of(encoder, Sample(item.task, item.truth, prompt, response, text, True)))
    return rows


def train_prm(
    lm: Path, folder: Path, size: Size, seed: int, minutes: float, more: bool = False
) -> None:
    """Train the verifier from the decoder (``more``: go on from the one already in ``folder``).

    For three quarters of the time every other batch has made-up mistakes; the rest of the time only
    the decoder's own responses are seen, whose frequencies the probabilities have to match.
    """
    torch.manual_seed(seed)
    encoder = Encoder(lm)
    rng = Random(seed + 3 + more)
    rows = own_rows(lm, encoder, size, rng)
    model = AutoModelForTokenClassification.from_pretrained(
        folder if more else lm,
        id2label={0: "bad", 1: "good"},
        label2id={"bad": 0, "good": 1},
    )
    optimizer = optimizer_for(model, 1e-3)
    rows.sort(key=lambda row: len(row.ids))
    groups = [rows[i : i + size.batch] for i in range(0, len(rows), size.batch)]
    start, step, own, total = time.monotonic(), 0, 0, 0.0
    while (done := (time.monotonic() - start) / (60 * minutes)) < 1:
        for group in optimizer.param_groups:
            group["lr"] = 1e-3 * schedule(step, done, 50)
        if done < 0.75 and step % 2:
            batch = slip_rows(encoder, size.batch, rng)
        else:
            if own % len(groups) == 0:
                rng.shuffle(groups)
            batch = groups[own % len(groups)]
            own += 1
        ids, ends, inner = prm_batch(batch, encoder.pad)
        with torch.autocast("cpu", torch.bfloat16):
            logits = model(input_ids=ids, use_cache=False).logits.float().flatten(0, 1)
        loss = torch.nn.functional.cross_entropy(logits, ends.flatten(), ignore_index=-100)
        if (inner != -100).any():
            loss = loss + torch.nn.functional.cross_entropy(
                logits, inner.flatten(), ignore_index=-100
            )
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        step, total = step + 1, total + loss.item()
        if step % 50 == 0:
            print(
                f"{time.monotonic() - start:6.0f} s  step {step}  loss {total / 50:.4f}"
                f"  epoch {own / len(groups):.1f}",
                flush=True,
            )
            total = 0.0
    save(model, folder)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(lm / name, folder / name)


def prm_batch(rows: Sequence[Row], pad: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Right-padded ids, labels of step ends, labels inside steps, each ``[rows, time]``.

    Labels are -100 where nothing is known.
    """
    width = max(len(row.ids) for row in rows)
    ids = torch.full((len(rows), width), pad)
    ends, inner = torch.full_like(ids, -100), torch.full_like(ids, -100)
    for i, row in enumerate(rows):
        ids[i, : len(row.ids)] = torch.tensor(row.ids)
        for target, known in ((ends, row.ends), (inner, row.inner)):
            target[i, list(known)] = torch.tensor(list(known.values()), dtype=torch.long)
    return ids, ends, inner


# --- evaluation -----------------------------------------------------------------------------


def wilson(right: int, n: int, z: float = 1.96) -> tuple[float, float]:
    """95% Wilson interval of a proportion."""
    p, d = right / n, 1 + z * z / n
    half = z * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n)) / d
    middle = (p + z * z / (2 * n)) / d
    return middle - half, middle + half


def auc(scores: Sequence[float], labels: Sequence[bool]) -> float:
    """Area under the ROC curve (Mann-Whitney, ties count half); NaN without both labels."""
    order = sorted(range(len(scores)), key=lambda i: scores[i])
    ranks = [0.0] * len(scores)
    at = 0
    while at < len(order):
        end = at
        while end + 1 < len(order) and scores[order[end + 1]] == scores[order[at]]:
            end += 1
        for i in order[at : end + 1]:
            ranks[i] = (at + end) / 2 + 1
        at = end + 1
    good = sum(labels)
    bad = len(labels) - good
    if not good or not bad:
        return math.nan
    total = sum(rank for rank, label in zip(ranks, labels, strict=True) if label)
    return (total - good * (good + 1) / 2) / (good * bad)


@torch.inference_mode()
def step_scores(
    model: LlamaForTokenClassification, encoder: Encoder, samples: Sequence[Sample]
) -> list[list[float]]:
    """Probability of "good" at each step end of each response, in order."""
    model.eval()
    out: list[list[float]] = []
    for start in range(0, len(samples), 128):
        chunk = samples[start : start + 128]
        places = [labelled(encoder, one)[0] for one in chunk]
        ids, *_ = prm_batch([Row(one.prompt + one.response, {}, {}) for one in chunk], encoder.pad)
        good = model(input_ids=ids, use_cache=False).logits.softmax(-1)[..., 1]
        out += [good[i, place].tolist() for i, place in enumerate(places)]
    return out


def held_out_truth(problem: Problem) -> str:
    """What :func:`tiny_data.step_labels` needs to know about an evaluation problem."""
    metadata = json.loads(problem.metadata)
    if problem.task == "arithmetic":
        return str(metadata["expression"]).replace(" ", "")
    return f"{','.join(map(str, metadata['numbers']))}={metadata['target']}"


def evaluate(lm: Path, prm: Path, size: Size, seed: int) -> dict[str, dict[str, float]]:
    """Single-sample accuracy at temperature 1 and step AUC on held-out problems, per task."""
    torch.manual_seed(seed)
    encoder = Encoder(lm)
    policy = AutoModelForCausalLM.from_pretrained(lm)
    verifier = AutoModelForTokenClassification.from_pretrained(prm)
    out: dict[str, dict[str, float]] = {}
    pooled: tuple[list[float], list[bool]] = ([], [])
    with Judge() as judge:
        for task in TASKS:
            asked = problems(task, size.held_out, seed)
            samples = sample(
                policy, encoder, [(task, held_out_truth(p), p.question) for p in asked]
            )
            right = sum(judge.score_many(asked, [one.answer for one in samples]))
            low, high = wilson(right, len(asked))
            scores = [s for row in step_scores(verifier, encoder, samples) for s in row]
            labels = [label for one in samples for label in labelled(encoder, one)[1]]
            pooled[0].extend(scores)
            pooled[1].extend(labels)
            out[task] = {
                "problems": len(asked),
                "right": right,
                "accuracy": right / len(asked),
                "low": low,
                "high": high,
                "steps": len(labels),
                "good_steps": sum(labels),
                "auc": auc(scores, labels),
            }
    out["pooled"] = {"steps": len(pooled[1]), "good_steps": sum(pooled[1]), "auc": auc(*pooled)}
    for name, row in out.items():
        print(name, " ".join(f"{k}={v:.4g}" for k, v in row.items()), flush=True)
    return out


def main(argv: Sequence[str] | None = None) -> int:
    """Run the given stages in order."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("stages", nargs="*", help=f"any of: {' '.join(STAGES)} (default: all)")
    parser.add_argument("--out", type=Path, help="folder for lm/ and prm/")
    parser.add_argument("--minutes", type=float, default=15.0, help="wall time of LM training")
    parser.add_argument(
        "--narrow-minutes", type=float, default=8.5, help="then on the narrow mixture"
    )
    parser.add_argument("--prm-minutes", type=float, default=14.0, help="wall time of PRM training")
    parser.add_argument("--more", action="store_true", help="prm: go on from OUT/prm")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--held-out", type=int, help="evaluation problems per task")
    parser.add_argument("--smoke", action="store_true", help="tiny sizes, a few seconds per stage")
    args = parser.parse_args(argv)
    stages = args.stages or list(STAGES)
    if unknown := set(stages) - set(STAGES):
        parser.error(f"unknown stage {', '.join(sorted(unknown))}: choose from {' '.join(STAGES)}")
    # Evaluation alone measures the shipped model; training never overwrites it by default.
    shipped = Path(__file__).resolve().parents[1] / "ppl" / "tiny"
    out = args.out or (shipped if stages == ["evaluate"] else Path("build/tiny"))
    size = SMOKE if args.smoke else Size()
    if args.held_out:
        size = replace(size, held_out=args.held_out)
    lm, prm = out / "lm", out / "prm"
    if "tokenizer" in stages:
        train_tokenizer(lm, size, args.seed)
    if "lm" in stages:
        train_lm(lm, size, args.seed, 0.05 if args.smoke else args.minutes)
        train_lm(lm, size, args.seed, 0.03 if args.smoke else args.narrow_minutes, narrow=True)
    if "prm" in stages:
        train_prm(lm, prm, size, args.seed, 0.03 if args.smoke else args.prm_minutes, args.more)
    if "evaluate" in stages:
        evaluate(lm, prm, size, args.seed)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
