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
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
)

sys.path[:0] = [str(Path(__file__).resolve().parent), str(Path(__file__).resolve().parents[1])]
from tiny_countdown import countdown_item, slipping_countdown  # noqa: E402
from tiny_data import training_item  # noqa: E402
from tiny_evaluation import evaluate  # noqa: E402
from tiny_responses import (  # noqa: E402
    ASSISTANT,
    END,
    PAD,
    USER,
    Encoder,
    Row,
    Sample,
    prm_batch,
    row_of,
    sample,
)

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
    sampled: int = 9_000
    responses: int = 3
    held_out: int = 500


SMOKE = Size(32, 1, 2, 64, 400, 16, 400, 32, 2, 16)


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


# --- process reward model -------------------------------------------------------------------


def own_rows(lm: Path, encoder: Encoder, size: Size, rng: Random) -> list[Row]:
    """Labelled responses that the decoder gives to fresh training problems at temperature 1."""
    start = time.monotonic()
    # Mostly near the evaluated difficulty, some of the wide mixture.
    asked = [training_item(rng, narrow=rng.random() < 0.8) for _ in range(size.sampled)]
    # Several responses to one problem: what tells them apart is the response, not the problem.
    items = [item for item in asked for _ in range(size.responses)]
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


# --- stages


def main(argv: Sequence[str] | None = None) -> int:
    """Run the given stages in order."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("stages", nargs="*", help=f"any of: {' '.join(STAGES)} (default: all)")
    parser.add_argument("--out", type=Path, help="folder for lm/ and prm/")
    parser.add_argument("--minutes", type=float, default=15.0, help="wall time of LM training")
    parser.add_argument(
        "--narrow-minutes", type=float, default=24.0, help="then on the narrow mixture"
    )
    parser.add_argument("--prm-minutes", type=float, default=28.0, help="wall time of PRM training")
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
        evaluate(lm, prm, size.held_out, args.seed)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
