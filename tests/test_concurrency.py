"""Searches in other processes, and one cache for all of them.

What threads, forks, cancellations and interrupts do to running searches is in `test_loop.py`, what
becomes of helper processes in `test_processes.py`.
"""

from __future__ import annotations

import errno
import importlib.util
import os
import pickle
import sys
import threading
import time
from pathlib import Path

import pytest
from programs import toy
from scripts import run_script

import ppl
from ppl.lm import gguf
from ppl.searchers import SMC

SPAWN = """
import multiprocessing as mp
from ppl.searchers import SMC
from programs import toy

def search(seed):
    return sorted(SMC(4).run(toy, "prod", seed=seed).marginal().items())

if __name__ == "__main__":
    with mp.get_context("spawn").Pool(1) as pool:
        print(pool.map(search, [1, 2]) == [search(1), search(2)])
"""

JOBLIB = """
import joblib
from ppl.searchers import SMC
from programs import toy

if __name__ == "__main__":
    alone = [SMC(4).run(toy, "prod", seed=s) for s in (1, 2)]
    for backend in ("loky", "threading"):
        run = joblib.Parallel(n_jobs=2, backend=backend)
        found = run(joblib.delayed(SMC(4).run)(toy, "prod", seed=s) for s in (1, 2))
        print([p.marginal() for p in found] == [p.marginal() for p in alone])
"""


@pytest.mark.parametrize("how", ["spawn", "joblib"])
def test_a_search_in_another_process_gives_what_it_gives_here(how, tmp_path):
    if how == "joblib" and importlib.util.find_spec("joblib") is None:
        pytest.skip("needs joblib")
    script = tmp_path / "script.py"
    script.write_text(SPAWN if how == "spawn" else JOBLIB)
    said = run_script(script, warnings="default")
    assert said.split() == ["True"] * (1 if how == "spawn" else 2)


def test_threads_that_score_with_one_model_get_what_one_thread_gets(tiny):
    lm, _ = tiny
    texts = [lm.prompt(f"{i} + {i} = ") for i in range(12)]
    value = lm.continuation("4")
    alone = [float(lm(text).log_prob(value)) for text in texts]
    found: dict[int, float] = {}
    threads = [
        threading.Thread(target=lambda i=i: found.update({i: float(lm(texts[i]).log_prob(value))}))
        for i in range(12)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [found[i] for i in range(12)] == pytest.approx(alone, abs=1e-4)


# -- the cache of converted models ---------------------------------------------------------------


class Written:
    """A model, or a tokenizer, that writes a file of its name, slowly or not at all."""

    def __init__(self, name: str, error: Exception | None = None) -> None:
        self.name, self.error = name, error

    def save_pretrained(self, folder: Path) -> None:
        (folder / self.name).write_text("begun")
        time.sleep(0.1)
        if self.error is not None:
            raise self.error
        (folder / self.name).write_text("whole")


@pytest.fixture
def file(tmp_path, monkeypatch):
    """A GGUF file that is read as two `Written`, and an empty cache."""
    monkeypatch.setenv("PPL_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(gguf, "_read", lambda path: (Written("model"), Written("tokenizer")))
    path = tmp_path / "model.gguf"
    path.write_bytes(b"GGUF")
    return path


FORK = """
import os, signal, sys, torch, ppl
from engines import make, some_texts

torch.set_num_threads(2)
lm, text = make(), some_texts()[1]
before = lm.engine.hidden([text] * 3, [0] * 3)[0]
child = os.fork()
if child == 0:
    signal.alarm(300)  # it would wait for threads that are not there
    lm.engine.pool.clear()
    again = lm.engine.hidden([text] * 3, [0] * 3)[0]
    os._exit(0 if torch.allclose(before, again, atol=1e-4) else 1)
print(os.waitpid(child, 0)[1], torch.get_num_threads())
"""


def test_a_model_runs_on_in_a_child_that_was_forked():
    assert run_script(FORK, warnings="ignore") == "0 2"


def whole(folder: Path) -> bool:
    return [(folder / name).read_text() for name in ("model", "tokenizer")] == ["whole"] * 2


@pytest.mark.skipif(sys.version_info >= (3, 12), reason="Python itself warns of fork with threads")
def test_processes_that_convert_one_file_at_once_all_find_it_whole(file):
    children = []
    for _ in range(3):
        child = os.fork()
        if child == 0:
            try:
                os._exit(0 if whole(gguf.converted(file)) else 1)
            except BaseException:
                os._exit(2)
        children.append(child)
    folder = gguf.converted(file)
    assert whole(folder)
    assert [os.waitpid(child, 0)[1] for child in children] == [0] * 3
    assert list(folder.parent.iterdir()) == [folder]


def test_a_file_is_converted_once(file, monkeypatch):
    folder = gguf.converted(file)
    monkeypatch.setattr(gguf, "_read", None)
    assert gguf.converted(file) == folder


@pytest.mark.parametrize("where", ["model", "tokenizer"])
def test_a_full_disk_is_told_from_a_broken_file(file, where, monkeypatch):
    full = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    parts = [Written(name, full if name == where else None) for name in ("model", "tokenizer")]
    monkeypatch.setattr(gguf, "_read", lambda path: tuple(parts))
    with pytest.raises(ppl.PPLError, match=r"cannot be kept in .*No space left.*PPL_CACHE"):
        gguf.converted(file)
    assert list((gguf.cache_folder() / "gguf").iterdir()) == []
    monkeypatch.setattr(gguf, "_read", lambda path: (Written("model"), Written("tokenizer")))
    assert whole(gguf.converted(file))


@pytest.mark.parametrize("error", [errno.EROFS, errno.EACCES])
def test_a_cache_that_cannot_be_written_names_the_remedy(file, error, monkeypatch):
    def refused(*_, **__):
        raise OSError(error, os.strerror(error))

    with monkeypatch.context() as patched:
        patched.setattr(gguf.tempfile, "mkdtemp", refused)
        with pytest.raises(ppl.PPLError, match=r"cannot be kept in .*PPL_CACHE"):
            gguf.converted(file)
    monkeypatch.setenv("PPL_CACHE", str(file))  # a file where the folder should be
    with pytest.raises(ppl.PPLError, match=r"cannot be kept in .*PPL_CACHE"):
        gguf.converted(file)


def test_what_was_converted_is_found_in_a_cache_that_can_only_be_read(file, monkeypatch):
    folder = gguf.converted(file)

    def refused(*_, **__):
        raise OSError(errno.EROFS, os.strerror(errno.EROFS))

    monkeypatch.setattr(Path, "mkdir", refused)
    assert gguf.converted(file) == folder


# -- searches as values --------------------------------------------------------------------------


def test_a_begun_search_goes_on_in_another_thread_and_after_pickling():
    whole_run = SMC(4).run(toy, "prod", seed=5)
    search = SMC(4).begin(toy, "prod", seed=5)
    search.step()
    copy = pickle.loads(pickle.dumps(search))
    found = []
    thread = threading.Thread(target=lambda: found.append(search.run()))
    thread.start()
    thread.join()
    assert found[0].marginal() == whole_run.marginal() == copy.run().marginal()
