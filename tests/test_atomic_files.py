"""A file is written whole or not at all, with the permissions that it should have."""

from __future__ import annotations

import errno
import os
import random
import resource
import signal
import stat
import time
import warnings
from pathlib import Path

import pytest
from files import there_and_back

import ppl
from ppl.errors import SearchStateError
from ppl.posterior import container


def posterior(value) -> ppl.Posterior:
    sample = ppl.Sample(value, 0.0, 0.0, True, 0, None, ())
    return ppl.Posterior([sample], log_evidence=None, cost=ppl.Cost())


def held(path: Path):
    return ppl.Posterior.load(path).samples[0].value


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


@pytest.mark.parametrize("umask", [0o022, 0o077, 0o002])
def test_new_files_have_the_permissions_that_the_umask_says(umask, tmp_path):
    before = os.umask(umask)
    try:
        posterior(1).save(tmp_path / "p")
    finally:
        os.umask(before)
    assert mode(tmp_path / "p") == 0o666 & ~umask


def test_existing_files_keep_theirs(tmp_path):
    path = tmp_path / "p"
    for permissions in (0o640, 0o604, 0o444):
        posterior(permissions).save(path)
        path.chmod(permissions)
        posterior(-permissions).save(path)
        assert (mode(path), held(path)) == (permissions, -permissions)


def test_symlinks_stay_and_what_they_point_to_is_written(tmp_path):
    (tmp_path / "inner").mkdir()
    for link, target in (("a", "inner/real"), ("b", "a")):
        (tmp_path / link).symlink_to(target)
    for value in (1, 2):
        posterior(value).save(tmp_path / "b")
        assert held(tmp_path / "inner" / "real") == held(tmp_path / "a") == value
    assert (tmp_path / "a").is_symlink()
    assert (tmp_path / "b").is_symlink()
    assert os.listdir(tmp_path / "inner") == ["real"]  # noqa: PTH208


@pytest.mark.parametrize("path", ["/proc/self/p", "{}/nowhere/p", "{}", "/dev/null"])
def test_places_that_cannot_be_written_are_named(path, tmp_path):
    path = path.format(tmp_path)
    with pytest.raises(SearchStateError, match=f"^{path} cannot be written"):
        posterior(1).save(path)


def test_a_folder_that_is_read_only_is_named(tmp_path, monkeypatch):
    posterior(1).save(tmp_path / "p")

    def no_writing(path, flags, mode=0o777):
        if flags & os.O_CREAT:
            raise OSError(errno.EROFS, os.strerror(errno.EROFS), path)
        return opened(path, flags, mode)

    opened = os.open
    monkeypatch.setattr(os, "open", no_writing)
    with pytest.raises(SearchStateError, match=f"{tmp_path}/p cannot be written .Read-only file"):
        posterior(2).save(tmp_path / "p")
    assert held(tmp_path / "p") == 1


@pytest.mark.parametrize("call", ["fsync", "replace", "fchmod"])
def test_a_full_disk_leaves_the_old_file(call, tmp_path, monkeypatch):
    posterior(1).save(tmp_path / "p")

    def full(*args):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(container.os, call, full)
    with pytest.raises(SearchStateError, match=r"p cannot be written \(No space left on device\)"):
        posterior(2).save(tmp_path / "p")
    assert held(tmp_path / "p") == 1
    assert [p.name for p in tmp_path.iterdir()] == ["p"]


def test_a_limit_on_the_size_of_files_leaves_the_old_file(tmp_path):
    posterior(1).save(tmp_path / "p")
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    ignored = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (5_000, limits[1]))
    try:
        with pytest.raises(SearchStateError, match="p cannot be written"):
            posterior(random.Random(0).randbytes(100_000)).save(tmp_path / "p")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, ignored)
    assert held(tmp_path / "p") == 1
    assert [p.name for p in tmp_path.iterdir()] == ["p"]


def forked(work) -> int:
    """Runs `work` in a child; returns its process id."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # of forks beside threads
        child = os.fork()
    if child == 0:
        try:
            work()
        finally:
            os._exit(0)
    return child


@pytest.mark.parametrize("call", ["open", "fsync", "replace", "close"])
@pytest.mark.parametrize("after", [False, True])
def test_a_kill_at_any_call_leaves_a_whole_file(call, after, tmp_path):
    path = tmp_path / "p"
    posterior(1).save(path)

    def work():
        real = getattr(os, call)

        def killed(*args, **kwargs):
            found = real(*args, **kwargs) if after else None
            os.kill(os.getpid(), signal.SIGKILL)
            return found

        setattr(os, call, killed)
        posterior(2).save(path)

    _, status = os.waitpid(forked(work), 0)
    assert os.WTERMSIG(status) == signal.SIGKILL
    assert held(path) == (2 if call == "close" or (call == "replace" and after) else 1)


def test_twenty_kills_in_the_middle_leave_whole_files(tmp_path):
    path, rng = tmp_path / "p", random.Random(0)
    contents = [[n] * 40_000 for n in range(3)]
    posterior(contents[0]).save(path)

    def work():
        while True:
            for content in contents:
                posterior(content).save(path)

    for _ in range(20):
        child = forked(work)
        time.sleep(rng.uniform(0.01, 0.1))
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        assert held(path) in contents


def test_paths_may_be_strings_and_names_as_long_as_they_can_be(tmp_path):
    path = tmp_path / ("n" * 255)
    assert there_and_back(3, str(path)) == 3
