"""Questions and responses of the embedded tiny model as token ids, sampled and labelled."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from tiny_countdown import countdown_characters
from tiny_data import step_labels
from tiny_item import Task
from transformers import AutoTokenizer, LlamaForCausalLM

END, PAD, USER, ASSISTANT = "<|end|>", "<|pad|>", "<|user|>", "<|assistant|>"


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


@dataclass(frozen=True)
class Row:
    """Token ids of prompt and response, and what is known at their positions.

    ``ends`` labels the step ends; ``inner`` labels characters inside countdown steps, where the
    same question (can this still be completed?) has an exact answer too. Knowing the very digit
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
        for marks in countdown_characters(one.truth, steps, labels, one.ended):
            inner |= {at + i: mark for i, mark in enumerate(marks) if mark is not None}
            at += len(marks) + 1  # one token per character, then the newline
    return Row(one.prompt + one.response, dict(zip(places, labels, strict=True)), inner)


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
