"""Files that mean harm, or are damaged: refused by name, and nothing in them is run."""

from __future__ import annotations

import ast
import contextlib
import io
import random
import re
import zipfile
from pathlib import Path

import numpy as np
import pytest
from files import Payload, refused, rewrite
from programs import toy

import ppl
from ppl.errors import SearchStateError
from ppl.searchers import SMC


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "posterior"
    SMC(3).run(toy, "prod", seed=0).save(path)
    return path


ROOT = Path(__file__).resolve().parents[1]


def npy(array) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, array, allow_pickle=True)
    return buffer.getvalue()


def nested(depth: int) -> bytes:
    return b'{"a":' * depth + b"1" + b"}" * depth


TENSOR = b'{"value": {"tensor": {"type": "float32", "shape": [1], "start": 0}}}'
HOSTILE = {
    "a path out of the folder": ({"../../evil": lambda _: b"x"}, r"'\.\./\.\./evil' has no name"),
    "an absolute path": ({"/etc/passwd": lambda _: b"x"}, "'/etc/passwd' has no name"),
    "a program": ({"run.py": lambda _: b"x"}, "'run.py' has no name of this format"),
    "a pickle among arrays": (
        {"arrays/float32.npy": lambda _: npy(np.array([Payload()])),
         "history.jsonl": lambda _: TENSOR},
        "arrays/float32.npy is no array of numbers",
    ),
    "an array of another type": (
        {"arrays/float32.npy": lambda _: npy(np.array(["a"])), "history.jsonl": lambda _: TENSOR},
        "holds no saved posterior",
    ),
    "elements that are not there": (
        {"arrays/float32.npy": lambda _: npy(np.zeros(0, np.float32)),
         "history.jsonl": lambda _: TENSOR},
        "cannot reshape",
    ),
    "an entry less": ({"history.jsonl": lambda _: TENSOR}, "'arrays/float32.npy' is missing"),
    "no meta": ({"meta.json": lambda _: None}, "'meta.json' is missing"),
    "a meta that is a list": ({"meta.json": lambda _: b"[]"}, r"meta\.json is no JSON object"),
    "a meta that is a number": ({"meta.json": lambda _: b"2"}, r"meta\.json is no JSON object"),
    "deep JSON": ({"history.jsonl": lambda _: nested(9_000)}, "history.jsonl, line 1 is no JSON"),
    "deep values": (
        {"history.jsonl": lambda _: b'{"a":' + b'{"tuple":[' * 300 + b"1" + b"]}" * 300 + b"}"},
        "nested more than 200 deep",
    ),
    "no JSON": ({"samples.jsonl": lambda _: b"{"}, "samples.jsonl, line 1 is no JSON"),
    "NaN": ({"history.jsonl": lambda _: b'{"a": NaN}'}, "NaN is no number of JSON"),
    "infinite": ({"history.jsonl": lambda _: b'{"a": 1e999}'}, "1e999 is too large for a float"),
    "an unknown kind": ({"history.jsonl": lambda _: b'{"a": {"eval": "1"}}'}, "kind 'eval'"),
    "a kind of searches": (
        {"history.jsonl": lambda _: b'{"a": {"function": "os:system"}}'}, "kind 'function'",
    ),
    "two kinds": ({"history.jsonl": lambda _: b'{"a": {"int": "1", "set": []}}'}, "2 keys"),
    "a circle of ids": ({"tokens.jsonl": lambda _: b"[0,[1]]"}, "block 0 follows block 0"),
    "records that are not there": (
        {"samples.jsonl": lambda old: re.sub(rb'"records":\[\d+', b'"records":[999', old)},
        "holds no saved posterior",
    ),
    "a weight that is none": (
        {"samples.jsonl": lambda old: re.sub(rb'"log_weight":[^,]*', b'"log_weight":"x"', old)},
        "column 'log_weight' of Sample holds 'x', no float",
    ),
    "a hidden column": (
        {"records.jsonl": lambda old: re.sub(rb'"kind"', b'"_distribution":1,"kind"', old)},
        "'_distribution' is no column of Record",
    ),
    "a bomb": ({"history.jsonl": lambda _: b" " * 50_000_000}, r"would unpack \d+ bytes to 5000"),
}  # fmt: skip


@pytest.mark.parametrize("what", HOSTILE)
def test_files_that_mean_harm_are_refused_by_name(what, file):
    changes, match = HOSTILE[what]
    rewrite(file, changes)
    refused(file, match)
    assert not Payload.ran


def test_entries_are_never_doubled(file):
    with pytest.warns(UserWarning, match="Duplicate"), zipfile.ZipFile(file, "a") as archive:
        archive.writestr("meta.json", "{}")
    refused(file, "two entries 'meta.json'")


def test_no_damage_escapes_as_another_error(file):
    """Bytes that are flipped, ends that are cut off, JSON that is something else."""
    content, rng = file.read_bytes(), random.Random(0)
    for _ in range(150):
        broken = bytearray(content)
        for _ in range(rng.randint(1, 4)):
            broken[rng.randrange(len(broken))] = rng.randrange(256)
        file.write_bytes(
            bytes(broken[: rng.randint(1, len(broken))] if rng.random() < 0.3 else broken)
        )
        loads_or_is_refused(file)
    file.write_bytes(content)
    with zipfile.ZipFile(file) as archive:
        entries = {name: archive.read(name) for name in archive.namelist()}
    others = [
        b"null",
        b"-1",
        b"1e999",
        b'"x"',
        b"[]",
        b"{}",
        b'{"tuple":1}',
        b'{"text":99}',
        b"true",
    ]
    for _ in range(300):
        name = rng.choice([n for n in entries if n.endswith(("json", "jsonl")) and entries[n]])
        spans = [
            m.span(1)
            for m in re.finditer(rb'[:\[,](-?[\d.]+|"[^"]*"|\[\]|true|null)', entries[name])
        ]
        a, b = rng.choice(spans)
        changed = entries[name][:a] + rng.choice(others) + entries[name][b:]
        rewrite(file, {name: lambda _, changed=changed: changed})
        loads_or_is_refused(file)
        file.write_bytes(content)


def loads_or_is_refused(file: Path) -> None:
    with contextlib.suppress(SearchStateError):  # and no other error
        ppl.Posterior.load(file)


def test_nothing_here_unpickles():
    rooms = [ROOT / "ppl", ROOT / "searchers", ROOT / "verifiers"]
    barred = {"pickle", "cPickle", "dill", "cloudpickle", "marshal", "shelve", "joblib"}
    # The pipe to a process of our own that holds a copy of a model, which nobody else can reach.
    pipe = ROOT / "ppl" / "lm" / "replica.py"
    for path in (p for room in rooms for p in room.rglob("*.py") if p != pipe):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            names = []
            if isinstance(node, ast.Import):
                names = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom):
                names = [str(node.module)]
            assert not barred & {name.partition(".")[0] for name in names}, path
