"""Processes of this machine that search, each with the models; one that dies is replaced."""

from __future__ import annotations

import contextlib
import os
import sys
import threading
from collections.abc import Iterator, Sequence
from multiprocessing import connection, get_context, parent_process
from multiprocessing.reduction import ForkingPickler
from typing import Any

import torch

from ppl.errors import PPLError, StudyError, WorkerError
from ppl.language.cost import Cost
from ppl.runtime.source import written
from ppl.study.jobs import Job, Pieces, portable
from ppl.study.plan import Plan
from ppl.study.work import Bench, Row, row


class _Helper:
    """A process, and the piece that it is at."""

    def __init__(self, study: Plan, batch: int, trees: bool, threads: int) -> None:
        # A fresh interpreter: a forked one would hold the folder's lock, and threads of torch.
        context = get_context("spawn")
        self.pipe, end = context.Pipe()
        self.process = context.Process(
            target=_serve, args=(end, study, batch, trees, threads), daemon=True
        )
        self.process.start()
        end.close()
        self.ready = False
        self.piece: Job | None = None

    def stop(self) -> None:
        self.pipe.close()
        self.process.kill()
        self.process.join()


def rows(
    study: Plan, todo: Sequence[Job], *, batch: int, workers: int, trees: bool
) -> Iterator[tuple[Job, Row]]:
    """All jobs, in `workers` processes.

    Raises:
        StudyError: the study cannot go to other processes, or they do not start.
        PPLError: what a group needs is not there.
    """
    portable(study, "workers")
    _importable(study)
    number = min(workers, sum(len(job.problems) for job in todo))
    most = max(len(job.problems) for job in todo)
    pieces = Pieces(todo, min(batch, -(-most // number)))
    threads = max(1, (os.cpu_count() or 1) // number)
    helpers: list[_Helper] = []
    try:
        helpers += [_Helper(study, batch, trees, threads) for _ in range(number)]
        while True:
            for helper in helpers:
                if helper.ready and helper.piece is None:
                    helper.piece = pieces.take()
                    if helper.piece is not None:
                        _send(helper.pipe, helper.piece)
            if all(helper.ready and helper.piece is None for helper in helpers):
                return
            for pipe in connection.wait([helper.pipe for helper in helpers]):
                helper = next(h for h in helpers if h.pipe is pipe)
                try:
                    said = helper.pipe.recv()
                except (EOFError, OSError):
                    if not helper.ready:
                        raise StudyError(
                            "workers: a process does not start. A script that runs a study with "
                            "workers does so under if __name__ == '__main__':"
                        ) from None
                    helpers.remove(helper)
                    helper.stop()
                    helpers.append(_Helper(study, batch, trees, threads))
                    if helper.piece is not None:
                        yield from given_up(study, pieces, helper.piece, "worker")
                    continue
                if isinstance(said, Row):
                    assert helper.piece is not None
                    job, helper.piece = helper.piece, helper.piece.without([said.result["cell"]])
                    yield job, said
                elif isinstance(said, PPLError):
                    raise said
                else:
                    helper.ready, helper.piece = True, None
    finally:
        for helper in helpers:
            helper.stop()


def _importable(study: Plan) -> None:
    """Raises StudyError for a program that a new process, which imports it by name, cannot have."""
    main = sys.modules["__main__"]
    typed = getattr(main, "__file__", None) is None and getattr(main, "__spec__", None) is None
    for name, use in study.named("programs").items():
        at = getattr(written(use.program), "__module__", None)
        if callable(use.program) and at == "__main__" and typed:
            why = "defined in a notebook or shell, which a new process does not run"
        else:
            try:
                ForkingPickler.dumps(use.program)
                continue
            except Exception as error:  # whatever its parts raise
                why = f"no function that another process can import ({error})"
        raise StudyError(
            f"programs.{name} is {why}, so that workers cannot have it: put it into a module (in a "
            "notebook, %%writefile my_programs.py writes a cell to one), and import it from there; "
            "or search in this process, workers=1"
        )


def given_up(study: Plan, pieces: Pieces, piece: Job, whose: str) -> Iterator[tuple[Job, Row]]:
    """Hands back what a process that has died was at; rows for what is given up."""
    task = study.task(piece.group.task)
    for problem in pieces.lost(piece):
        error = WorkerError(
            f"the {whose} died {Pieces.PATIENCE} times at this question: killed, out of memory, or "
            "crashed in a library"
        )
        yield piece, row(piece.group, task, problem, None, error, Cost())


def _send(pipe: Any, piece: Job) -> None:
    with contextlib.suppress(OSError):  # it has died; its pipe says so when it is read
        pipe.send(piece)


def _serve(pipe: Any, study: Plan, batch: int, trees: bool, threads: int) -> None:
    """What a process does: pieces come, rows go."""
    threading.Thread(target=_end_with_parent, daemon=True).start()
    torch.set_num_threads(threads)
    bench = Bench(study, batch=batch, trees=trees)
    pipe.send("ready")
    while True:
        try:
            piece = pipe.recv()
        except EOFError:
            return
        try:
            bench.alone(piece.group)
            for found in bench.run(piece.group, piece.problems):
                pipe.send(found)
            pipe.send("done")
        except PPLError as error:
            pipe.send(StudyError(f"{piece.group}: {type(error).__name__}: {error}"))


def _end_with_parent() -> None:
    """Nobody wants the results of a process whose parent was killed."""
    parent = parent_process()
    if parent is not None:
        connection.wait([parent.sentinel])
        os._exit(1)
