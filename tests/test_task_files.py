"""Tasks from files and from the hub."""

from __future__ import annotations

import json
import sys
import types
from pathlib import Path

import pytest

from ppl.errors import TaskError
from ppl.tasks import load

# -- files and the hub ---------------------------------------------------------------------------

SUMS = [
    {"id": "a", "question": "1/4 + 1/4", "answer": "1/2", "level": 1},
    {"id": "b", "question": "2 + 2", "answer": 4, "level": 2},
]


def jsonl(path: Path, records: list[dict]) -> str:
    path.write_text("\n".join(map(json.dumps, records)) + "\n\n", encoding="utf-8")
    return str(path)


def test_json_lines(tmp_path: Path):
    task = load(jsonl(tmp_path / "sums.jsonl", SUMS))
    assert task.name == "sums"
    assert [(p.id, p.question, p.gold) for p in task] == [
        ("a", "1/4 + 1/4", "1/2"),
        ("b", "2 + 2", "4"),
    ]
    assert task[1].meta["level"] == 2
    assert [task.score(task[0], a) for a in ("0.5", "$\\frac12$", "0.25")] == [True, True, False]
    assert task.licence == "not stated"
    letters = load(str(tmp_path / "sums.jsonl"), score="text", licence="CC0")
    assert letters.score(letters[0], "0.5") is False
    assert letters.licence == "CC0"


def test_a_map_of_fields_and_worked_solutions(tmp_path: Path):
    records = [{"q": "5 + 5?", "a": "First 5, then 5 more.\n#### 10", "answer": "unused"}]
    path = jsonl(tmp_path / "own.jsonl", records)
    task = load(path, fields={"question": "q", "solution": "a"})
    assert (task[0].id, task[0].question, task[0].gold) == ("own/0", "5 + 5?", "10")
    whole = load(path, fields={"question": "q", "gold": "a"})
    assert str(whole[0].gold).endswith("#### 10")
    with pytest.raises(
        TaskError, match=r"line 1: there is no field 'z' for 'question'; it has q, a"
    ):
        load(path, fields={"question": "z"})
    with pytest.raises(TaskError, match=r"line 1: which field is the question"):
        load(path)
    with pytest.raises(TaskError, match="fields: 'prompt' is unknown"):
        load(path, fields={"prompt": "q"})


def test_csv(tmp_path: Path):
    path = tmp_path / "sums.csv"
    path.write_text('\ufeffprompt,target,note\r\n"2, 3 and 4: sum?",9,"two\nlines"\r\n1+1?,2,\r\n')
    task = load(str(path))
    assert [(p.id, p.question, p.gold) for p in task] == [
        ("sums/0", "2, 3 and 4: sum?", "9"),
        ("sums/1", "1+1?", "2"),
    ]
    assert task[0].meta["note"] == "two\nlines"
    path.write_text("question,answer\n1,2,3\n")
    with pytest.raises(TaskError, match="line 2 has not as many cells"):
        load(str(path))


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"{nothing\n", "line 1 is no JSON"),
        (b"[1]\n", "line 1 is no JSON object"),
        (b'{"question": "?", "answer": 1e999}\n', "1e999 is too large for a float"),
        (b'{"question": "?", "answer": NaN}\n', "NaN is no number of JSON"),
        (b"\xff\xfe{}", "not in UTF-8"),
        (b"\n\n", "not one problem"),
        (b'{"question": "a", "answer": 1}\n{"question": "b"}', "line 2: which field is the gold"),
        (b'{"question": "a", "solution": ""}', "states no answer"),
        (
            b'{"id": 1, "question": "a", "gold": 1}\n{"id": 1, "question": "b", "gold": 1}',
            "both called",
        ),
    ],
)
def test_broken_files_name_the_line(tmp_path: Path, content: bytes, said: str):
    path = tmp_path / "broken.jsonl"
    path.write_bytes(content)
    with pytest.raises(TaskError, match=said):
        load(str(path))


def test_a_file_that_is_not_there(tmp_path: Path):
    with pytest.raises(TaskError, match="cannot be read: No such file"):
        load(str(tmp_path / "none.jsonl"))


def test_ids_of_the_hub_go_to_the_package_datasets(monkeypatch):
    asked = []

    class Rows(list):
        info = types.SimpleNamespace(license="mit")

    def load_dataset(*args: object, **settings: object) -> Rows:
        asked.append((args, settings))
        if args[0] == "owner/none":
            raise FileNotFoundError("no such data set")
        return Rows({"question": f"{i} + 1", "answer": f"so #### {i + 1}"} for i in range(5))

    module = types.ModuleType("datasets")
    module.load_dataset = load_dataset  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "datasets", module)
    task = load("openai/gsm8k", config="main", split="train", n=3, fields={"solution": "answer"})
    assert asked == [(("openai/gsm8k", "main"), {"split": "train", "revision": None})]
    assert [(p.id, p.gold) for p in task] == [(f"openai/gsm8k/{i}", str(i + 1)) for i in range(3)]
    assert task.licence == "mit"
    with pytest.raises(TaskError, match="datasets cannot load 'owner/none'"):
        load("owner/none")
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(TaskError, match="pip install datasets"):
        load("openai/gsm8k")


@pytest.mark.parametrize("name", ["", "nothing", "lines/chess", "tiny/chess", "a/b/c", "file.txt"])
def test_unknown_tasks_are_told_what_there_is(name: str):
    with pytest.raises(TaskError, match=r"lines/chain.*gsm8k.*\.jsonl"):
        load(name)


def test_unknown_settings_are_told_what_there_are():
    with pytest.raises(TaskError, match="level=3 is unknown; its settings are n, seed"):
        load("lines/chain", level=3)
    with pytest.raises(TaskError, match=r"n=3 is unknown; it has no settings; task\[:20\] has"):
        load("gsm8k", n=3)
