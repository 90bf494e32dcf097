"""Posteriors as files: see `ppl.posterior.container` for the format."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

from ppl.language.codec import Codec
from ppl.language.cost import Cost, ModelCost
from ppl.posterior.container import Container, write
from ppl.posterior.decoder import DAMAGED, Decoder, build
from ppl.posterior.encoder import Encoder

S = TypeVar("S")


def save(
    path: str | Path,
    samples: Sequence[Any],
    nodes: Sequence[Mapping[str, Any]],
    history: Sequence[Mapping[str, Any]],
    cost: Cost,
    models: Sequence[Mapping[str, Any]],
    **settings: Any,
) -> None:
    """Writes a posterior, whole or not at all.

    Args:
        path: the file.
        samples: dataclasses with `records`.
        nodes: rows of the genealogy.
        history: rows of notes.
        cost: what it cost.
        models: what is known of those asked, see `ppl.posterior.models.about`.
        settings: the rest, plain data by name.

    Raises:
        SearchStateError: a value is no data (it is named), or the file cannot be written.
    """
    encoder = Encoder(strings=True)
    rows = []
    for i, sample in enumerate(samples):
        names = [f.name for f in dataclasses.fields(sample) if f.name != "records"]
        row = encoder.row({n: getattr(sample, n) for n in names}, f"sample {i}")
        row["records"] = [encoder.record(r, f"sample {i}") for r in sample.records]
        rows.append(row)
    tables = {
        "samples": rows,
        "nodes": [encoder.row(node, f"node {node.get('node')}") for node in nodes],
        "history": rows_of(encoder, history),
        **encoder.tables,
    }
    meta = {
        **encoder.row(settings, "the posterior"),
        "cost": cost_row(cost),
        "models": list(models),
        "tokenizers": encoder.tokenizers,
    }
    write(path, "posterior", meta, tables, encoder.arrays)


def load(path: str | Path, sample: type[S]) -> dict[str, Any]:
    """Reads what `save` wrote; runs nothing.

    Args:
        path: the file.
        sample: the class of samples.

    Returns:
        What was given to `save`, by name.

    Raises:
        SearchStateError: there is no such file, or it holds something else.
    """
    container = Container(path, "posterior")
    with damage(container):
        meta = dict(container.meta)
        decoder = decoder_of(container)
        samples = []
        for row in container.rows("samples"):
            numbers = row.pop("records")
            records = tuple(decoder.records[number] for number in numbers)
            samples.append(decoder.build(sample, row, records=records))
        return {
            "samples": samples,
            "nodes": [decoder.row(row) for row in container.rows("nodes")],
            "history": [decoder.row(row) for row in container.rows("history")],
            "cost": cost_of(meta["cost"]),
            "models": list(meta["models"]),
            **{name: decoder.value(meta[name]) for name in ("log_evidence", "searcher", "stopped")},
        }


@contextmanager
def damage(container: Container) -> Iterator[None]:
    """Names the file of whatever cannot be decoded inside."""
    try:
        yield
    except DAMAGED as error:
        what = error if isinstance(error, ValueError) else f"{type(error).__name__}: {error}"
        container.refuse(str(what))


def decoder_of(
    container: Container, *, codecs: Sequence[Codec] = (), devices: bool = False
) -> Decoder:
    """The decoder of a file."""
    return Decoder(
        container.rows,
        container.meta["tokenizers"],
        container.array,
        codecs=codecs,
        devices=devices,
    )


def rows_of(encoder: Encoder, notes: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Notes of rounds as rows."""
    return [encoder.row(note, f"the note of round {i}") for i, note in enumerate(notes, start=1)]


def cost_row(cost: Cost) -> dict[str, Any]:
    """A cost by the names of its columns."""
    row = {f.name: getattr(cost, f.name) for f in dataclasses.fields(cost) if f.name != "models"}
    return {**row, "models": {n: dataclasses.asdict(m) for n, m in cost.models.items()}}


def cost_of(row: Mapping[str, Any]) -> Cost:
    """The cost of a row. Columns that it lacks get their default.

    Raises:
        ValueError: a column is not known here.
    """
    models = {str(name): build(ModelCost, model) for name, model in row["models"].items()}
    return build(Cost, {**row, "models": models})
