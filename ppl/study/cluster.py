"""A study on a Ray cluster: models are actors that stay warm, and one process writes.

An actor that dies is replaced, and what it was at is run again. The extra is `ray`.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from ppl.errors import PPLError, StudyError
from ppl.study.jobs import Job, Pieces, portable
from ppl.study.plan import Plan
from ppl.study.work import Bench, Row
from ppl.study.workers import given_up


class Bencher:
    """What an actor is: a study with its models."""

    def __init__(self, study: Plan, batch: int, trees: bool) -> None:
        self.bench = Bench(study, batch=batch, trees=trees)

    def work(self, piece: Job) -> list[Row] | str:
        """The rows of a piece; why there are none, if what its group needs is not there."""
        try:
            self.bench.alone(piece.group)
            return list(self.bench.run(piece.group, piece.problems))
        except PPLError as error:
            return f"{piece.group}: {type(error).__name__}: {error}"


def rows(
    study: Plan, todo: Sequence[Job], *, batch: int, actors: int, address: str, trees: bool
) -> Iterator[tuple[Job, Row]]:
    """All jobs, by `actors` actors of a cluster.

    Args:
        study: whose models and verifiers are named.
        todo: the jobs.
        batch: most questions that an actor searches at once.
        actors: how many; GPUs of the cluster are shared out among them.
        address: of the cluster; "auto" for the one that runs here, "local" to start one. A cluster
            that this process is connected to already is used as it is.
        trees: keep posteriors.

    Raises:
        StudyError: Ray is not installed, there is no cluster, or an actor cannot do its work.
    """
    portable(study, "Ray's actors")
    ray = _connected(address)
    most = max(len(job.problems) for job in todo)
    pieces = Pieces(todo, min(batch, -(-most // actors)))
    gpus = ray.cluster_resources().get("GPU", 0.0)
    bench = ray.remote(Bencher).options(num_cpus=1, num_gpus=min(1.0, gpus / actors))
    kept = ray.put(study)
    idle = [bench.remote(kept, batch, trees) for _ in range(actors)]
    flying: dict[Any, tuple[Any, Job]] = {}
    try:
        while True:
            while idle and (piece := pieces.take()) is not None:
                actor = idle.pop()
                flying[actor.work.remote(piece)] = actor, piece
            if not flying:
                return
            over, _ = ray.wait(list(flying))
            for reference in over:
                actor, piece = flying.pop(reference)
                try:
                    found = ray.get(reference)
                except ray.exceptions.RayActorError:
                    idle.append(bench.remote(kept, batch, trees))
                    yield from given_up(study, pieces, piece, "actor")
                    continue
                except ray.exceptions.RayError as error:
                    raise StudyError(f"ray: {piece.group}: {error}") from error
                if isinstance(found, str):
                    raise StudyError(found)
                idle.append(actor)
                for row in found:
                    yield piece, row
    finally:
        for actor in [*idle, *(actor for actor, _ in flying.values())]:
            ray.kill(actor)


def _connected(address: str) -> Any:
    try:
        import ray
    except ImportError as error:
        raise StudyError("ray: Ray is not installed: pip install 'ppl-search[ray]'") from error
    if not ray.is_initialized():
        try:
            ray.init(
                address=None if address == "local" else address,
                include_dashboard=False if address == "local" else None,
                log_to_driver=False,
                configure_logging=False,
            )
        except (ConnectionError, ValueError, RuntimeError) as error:
            raise StudyError(f"ray={address!r}: there is no cluster: {error}") from error
    return ray
