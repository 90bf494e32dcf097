"""A reward head on a language model's own hidden states: is this line of account right?

The head reads the states of the last `WINDOW` tokens up to the end of a line, which hold its
sentence and the number before. The engine that writes the text has computed them already, all but
that of the last token, which the next line needs anyway: a verdict costs next to nothing.

It is trained on rollouts and their answers alone, not on accounts. Of the rollouts that went
through a beginning of an account, the share that ends right is a Monte Carlo estimate of its value
(Wang et al. 2024, "Math-Shepherd"). A whole account is right if all its lines are: its chance is
taken as the product of theirs, which are fitted by maximum likelihood of all outcomes, so that
rollouts that share a line say together whether it is right.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

import ppl
from ppl.runtime.verdict import JudgeRequest
from ppl.verifiers import Verifier

WINDOW = 24  # tokens that the head looks back on
BATCH = 8  # stories a training step


class LineHead(nn.Module):
    """A small transformer over the last states, read at the last of them.

    Args:
        hidden: width of the states.
        width, layers: of the head.
    """

    def __init__(self, hidden: int, width: int = 96, layers: int = 2) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(hidden)
        self.narrow = nn.Linear(hidden, width)
        self.place = nn.Parameter(torch.zeros(WINDOW, width))
        layer = nn.TransformerEncoderLayer(
            width, 4, 2 * width, dropout=0.2, batch_first=True, norm_first=True
        )
        self.encoder = nn.TransformerEncoder(layer, layers, enable_nested_tensor=False)
        self.out = nn.Linear(width, 1)

    def forward(self, states: Tensor) -> Tensor:
        """Log-odds `[n]` of "this line is right" from states `[n, WINDOW, hidden]`."""
        inner = self.encoder(self.narrow(self.norm(states)) + self.place)
        odds: Tensor = self.out(inner[:, -1])[:, 0]
        return odds

    def save(self, path: Path) -> None:
        """Weights as float16."""
        save_file({k: v.half().contiguous() for k, v in self.state_dict().items()}, path)

    @staticmethod
    def load(path: Path) -> LineHead:
        """What `save` wrote."""
        weights = {k: v.float() for k, v in load_file(path).items()}
        width, hidden = weights["narrow.weight"].shape
        layers = len({k.split(".")[2] for k in weights if k.startswith("encoder.layers.")})
        head = LineHead(hidden, width, layers)
        head.load_state_dict(weights)
        return head.eval()


class HeadVerifier(Verifier):
    """The head as a likelihood of every line, on states of the model's own engine.

    Args:
        lm: the model that writes.
        head: trained on its states.
    """

    name, meaning, aggregate, floor = "line head", "step", "prod", 1e-4

    def __init__(self, lm: ppl.HFModel, head: LineHead) -> None:
        self.lm, self.head = lm, head.eval()

    @torch.inference_mode()
    def judge(self, requests: Sequence[JudgeRequest]) -> list[Sequence[float]]:
        """Log-probability that each new line is right."""
        asked = [
            (i, request.text.tokens[:end], request.ledger)
            for i, request in enumerate(requests)
            for end in request.text.step_ends[request.since :]
        ]
        found = states(self.lm, [tokens for _, tokens, _ in asked], [a for _, _, a in asked])
        answers: list[list[float]] = [[] for _ in requests]
        values = nn.functional.logsigmoid(self.head(found.float()).double())
        for (i, _, _), value in zip(asked, values.tolist(), strict=True):
            answers[i].append(value)
        return [*answers]


def states(
    lm: ppl.HFModel,
    texts: Sequence[tuple[int, ...]],
    ledgers: Sequence[ppl.language.cost.Account | None] = (),
) -> Tensor:
    """Last hidden states `[n, WINDOW, hidden]` at the end of each text."""
    payers = [
        None if a is None else (a.of(lm), "verifier_tokens", "verifier_reused_tokens")
        for a in ledgers
    ]
    rows = max(1, lm.engine.batch_rows(max(map(len, texts), default=1)))
    found: list[Tensor] = []
    for at in range(0, len(texts), rows):
        part = texts[at : at + rows]
        found += lm.engine.hidden(part, [len(t) - WINDOW for t in part], payers[at : at + rows])
    return torch.stack(found)


@dataclass(frozen=True)
class Rollouts:
    """Rollouts of some stories.

    Attributes:
        states: of all distinct beginnings, at the end of their last line `[n, WINDOW, hidden]`.
        lines: for each rollout the places of its lines' beginnings in `states`.
        right: whether each rollout's answer is right.
        owner: whose story each is.
    """

    states: Tensor
    lines: Sequence[Sequence[int]]
    right: Sequence[bool]
    owner: Sequence[int]

    def values(self) -> tuple[Tensor, Tensor]:
        """For each beginning the share of rollouts through it that end right, and how many."""
        hits, visits = torch.zeros(len(self.states)), torch.zeros(len(self.states))
        for lines, right in zip(self.lines, self.right, strict=True):
            for place in lines:
                visits[place] += 1
                hits[place] += right
        return hits / visits.clamp(min=1), visits


def joined(first: Rollouts, second: Rollouts) -> Rollouts:
    """The rollouts of both, whose stories stay apart."""
    places, stories = len(first.states), max(first.owner, default=-1) + 1
    return Rollouts(
        torch.cat([first.states, second.states]),
        [*first.lines, *([p + places for p in lines] for lines in second.lines)],
        [*first.right, *second.right],
        [*first.owner, *(owner + stories for owner in second.owner)],
    )


def fit(
    head: LineHead,
    rollouts: Rollouts,
    watched: Sequence[int] = (),
    rounds: int = 8,
    rate: float = 1e-3,
    seed: int = 0,
) -> list[tuple[float, float]]:
    """Trains the head in place.

    The loss of a rollout is the cross-entropy of its outcome under the product of its lines'
    chances. A step takes all rollouts of `BATCH` stories that are drawn for it; a round has as many
    steps as would go through all. Dropout draws from torch's own generator.

    Args:
        head: what is trained.
        rollouts: of which those of the watched stories are left out.
        watched: stories whose loss is looked at after every round; the head is left as it was when
            that was least. None: as it is in the end.
        rounds, rate: of AdamW, with one cycle of learning rates.
        seed: of the stories that are drawn.

    Returns:
        The mean loss of every round, and that of the watched stories after it (NaN without any).
    """
    generator = torch.Generator().manual_seed(seed)
    apart = set(watched)
    by_story: dict[int, list[int]] = {}
    for i, owner in enumerate(rollouts.owner):
        by_story.setdefault(owner, []).append(i)
    outside = [i for story in sorted(apart) for i in by_story.get(story, [])]
    stories = [story for story in sorted(by_story) if story not in apart]
    steps = -(-len(stories) // BATCH)
    optimiser = torch.optim.AdamW(head.parameters(), lr=rate, weight_decay=0.05)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, rate, total_steps=rounds * steps)
    losses: list[tuple[float, float]] = []
    best = head.state_dict()
    for _ in range(rounds):
        head.train()
        total = 0.0
        for _ in range(steps):
            drawn = torch.randperm(len(stories), generator=generator).tolist()[:BATCH]
            loss = outcome_loss(head, rollouts, [i for s in drawn for i in by_story[stories[s]]])
            optimiser.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(head.parameters(), 1.0)
            optimiser.step()
            schedule.step()
            total += float(loss.detach())
        head.eval()
        with torch.no_grad():
            seen = float(outcome_loss(head, rollouts, outside)) if outside else float("nan")
        losses.append((total / steps, seen))
        if not outside or seen <= min(loss for _, loss in losses):
            best = {name: weight.clone() for name, weight in head.state_dict().items()}
    head.load_state_dict(best)
    return losses


def outcome_loss(head: LineHead, rollouts: Rollouts, chosen: Sequence[int]) -> Tensor:
    """Mean cross-entropy of the chosen rollouts' outcomes under the product of their lines."""
    places = sorted({place for i in chosen for place in rollouts.lines[i]})
    index = {place: j for j, place in enumerate(places)}
    logs = nn.functional.logsigmoid(head(rollouts.states[places].float()))
    sums = torch.stack([logs[[index[p] for p in rollouts.lines[i]]].sum() for i in chosen])
    right = torch.tensor([float(rollouts.right[i]) for i in chosen])
    sums = sums.clamp(max=-1e-6)
    return -(right * sums + (1 - right) * torch.log(-torch.expm1(sums))).mean()
