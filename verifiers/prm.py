"""Process reward models: a token-level head that says, at the end of each step, how good it was.

Runs on the same engine as language models: a step's score costs the step's tokens, the prefix is
reused. Probabilities come from logits in float32, never from a rounded probability.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import AutoModelForTokenClassification

from ppl.errors import PRMFormatError, PromptError
from ppl.lm.engine import Engine
from ppl.lm.huggingface import HFCodec
from ppl.lm.load import TINY, load_pretrained
from ppl.text import Text
from ppl.verdict import Aggregate, JudgeRequest, Meaning, Verifier, check_declared

Tokens = tuple[int, ...]


class PRM(Verifier):
    """A Hugging Face token-classification model read at the last token of every step.

    Its probability is softmax(bad, good)[good] at that token. The text's own token ids are used
    where model and reward model share a vocabulary; otherwise prompt and steps are encoded one by
    one with the reward model's tokenizer, so that a step's tokens never depend on what follows.

    Args:
        model: a token-classification model in evaluation mode.
        tokenizer: its tokenizer.
        name: shown in messages.
        aggregate: how step scores form the potential. `"last"` suits scores that mean "right so far
            and can still be completed"; `"prod"` suits scores of the step alone.
        good, bad: names of the two labels in the model's configuration.
        floor: scores are clipped to [floor, 1 - floor].
        kv_bytes: memory for cached keys and values.

    Raises:
        PRMFormatError: the model's labels are not the declared ones.
        UnsupportedModelError: the model cannot be forked exactly.
    """

    def __init__(
        self,
        model: Any,
        tokenizer: Any,
        *,
        name: str,
        meaning: Meaning = "value",
        aggregate: Aggregate = "last",
        good: str = "good",
        bad: str = "bad",
        floor: float = 1e-6,
        kv_bytes: int = 2 << 30,
    ) -> None:
        check_declared(name, meaning, aggregate)
        if not 0 <= floor < 0.5:
            raise ValueError(f"floor={floor}: must be in [0, 0.5)")
        self.name, self.meaning, self.aggregate, self.floor = name, meaning, aggregate, floor
        self._good, self._bad = _label_indices(model, name, good, bad)
        self._head = _head(model, name)
        self.engine = Engine(model.eval(), name=name, capacity=kv_bytes)
        self.codec = HFCodec(tokenizer, frozenset(), name)
        self._vocabulary: dict[str, int] = tokenizer.get_vocab()
        self._same: dict[int, bool] = {}

    @staticmethod
    def load(
        source: str | Path,
        *,
        aggregate: Aggregate = "last",
        good: str = "good",
        bad: str = "bad",
        floor: float = 1e-6,
        dtype: torch.dtype | None = None,
        device: str | torch.device | None = None,
        revision: str | None = None,
        token: str | None = None,
        kv_bytes: int = 2 << 30,
    ) -> PRM:
        """A reward model by name: `"tiny"`, a folder, or a Hugging Face Hub id.

        Raises:
            ModelNotFoundError: there is no such model.
            PRMFormatError: its labels are not the declared ones.
        """
        model, tokenizer = load_pretrained(
            AutoModelForTokenClassification,
            TINY / "prm" if str(source) == "tiny" else source,
            dtype=dtype,
            device=device,
            revision=revision,
            token=token,
        )
        return PRM(
            model,
            tokenizer,
            name=f"PRM({str(source)!r})",
            aggregate=aggregate,
            good=good,
            bad=bad,
            floor=floor,
            kv_bytes=kv_bytes,
        )

    @torch.inference_mode()
    def judge(self, requests: Sequence[JudgeRequest]) -> list[Sequence[float]]:
        rendered = [self._render(r) for r in requests]
        rows = self.engine.batch_rows(max(len(tokens) for tokens, _ in rendered))
        results: list[Sequence[float]] = []
        for begin in range(0, len(requests), rows):
            part = rendered[begin : begin + rows]
            accounts = [
                None
                if r.ledger is None
                else (r.ledger, "verifier_tokens", "verifier_reused_tokens")
                for r in requests[begin : begin + rows]
            ]
            texts = [tokens for tokens, _ in part]
            hidden = self.engine.hidden(texts, [positions[0] for _, positions in part], accounts)
            for states, (_, positions) in zip(hidden, part, strict=True):
                results.append(self._scores(states[[p - positions[0] for p in positions]]))
        return results

    def _scores(self, states: Tensor) -> list[float]:
        """Log-probability of "good" for `[n, hidden]` states."""
        logits = self._head(states).float()[:, [self._bad, self._good]]
        scores: list[float] = torch.log_softmax(logits.double(), dim=-1)[:, 1].tolist()
        return scores

    def _render(self, request: JudgeRequest) -> tuple[Tokens, list[int]]:
        """Token ids up to the last score, and the positions of the new scores."""
        text = request.text
        if self._shares_vocabulary(text):
            tokens, ends = text.tokens, text.step_ends
        else:
            tokens, ends = self._encode(text)
        wanted = ends[request.since :] or (len(tokens),)
        if wanted[-1] > self.engine.context_length:
            raise PromptError(
                f"{request.label}: the text has {wanted[-1]} tokens, verifier {self.name} holds "
                f"{self.engine.context_length}: take fewer or shorter steps"
            )
        return tokens[: wanted[-1]], [end - 1 for end in wanted]

    def _encode(self, text: Text) -> tuple[Tokens, tuple[int, ...]]:
        tokens = self.codec.chat([{"role": "user", "content": text.prompt}])
        ends = []
        for step in text.steps:
            tokens += self.codec.encode(step)
            ends.append(len(tokens))
        return tokens, tuple(ends)

    def _shares_vocabulary(self, text: Text) -> bool:
        which = id(text.codec)
        if which not in self._same:
            tokenizer = getattr(text.codec, "tokenizer", None)
            self._same[which] = tokenizer is not None and tokenizer.get_vocab() == self._vocabulary
        return self._same[which]


def _label_indices(model: Any, name: str, good: str, bad: str) -> tuple[int, int]:
    labels: dict[int, str] = {int(i): str(s) for i, s in model.config.id2label.items()}
    index = {label: i for i, label in labels.items()}
    if good not in index or bad not in index:
        raise PRMFormatError(
            f"{name} has the labels {sorted(index)}, but {good!r} and {bad!r} were declared: pass "
            "good= and bad= as the model's configuration calls them"
        )
    return index[good], index[bad]


def _head(model: Any, name: str) -> Any:
    for attribute in ("score", "classifier"):
        head = getattr(model, attribute, None)
        if head is not None:
            return head
    raise PRMFormatError(
        f"{name} is a {type(model).__name__} without a token-level head (score or classifier)"
    )
