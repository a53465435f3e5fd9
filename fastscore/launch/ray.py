"""A run drawn by actors of Ray: numbers of shards go out, numbers and hashes come back, and Ray keeps nothing.

An actor that dies is started again by Ray, with its shard. One that hangs, or waits for a machine that never comes, is
not waited for: near the end its shard goes to another one too, and the place keeps the first of two.
"""

from __future__ import annotations

import logging
import math
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cached_property
from importlib import import_module
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from fastscore.output.store.job import Job
    from fastscore.output.store.place import Place

    Opened = Callable[[str], tuple[Job, Place]]

LOOK = 1.0  # seconds between two looks at who is late
LATE = 4.0  # times the longest shard so far, from which on a shard is drawn by another actor too


class Drawn(NamedTuple):
    """A shard that an actor drew: its number, the sha256 of its tensors, and the seconds it took."""

    number: int
    sha256: str
    seconds: float


class Worker:
    """An actor: it opens the run, which loads the model, once.

    Args:
        opened: run -> (job, place); pickled, so a function of a module that all machines have.
        run: folder or URL of the run.
    """

    def __init__(self, opened: Opened, run: str) -> None:
        self.opened, self.run = opened, run

    @cached_property
    def _run(self) -> tuple[Job, Place]:
        return self.opened(self.run)

    def open(self) -> None:
        """Open the run: not when the actor is made, since errors of that come without their type."""
        _ = self._run

    def draw(self, number: int) -> Drawn:
        """Draw a shard and give it to the place; raises as ``work`` does."""
        from fastscore.output.store.work import keep

        (job, place), begun = self._run, time.perf_counter()
        shard = job.draw(number, lambda count: None)
        keep(place, job.manifest, shard)
        return Drawn(number, shard.sha256, time.perf_counter() - begun)


def draw(
    run: str,
    opened: Opened,
    workers: int,
    *,
    address: str = "auto",
    gpus: float | None = None,
    cpus: float = 1.0,
    patience: float = 60.0,
    total: Callable[[int, int], object] = lambda shards, found: None,
    told: Callable[[Drawn], None] = lambda drawn: None,
) -> None:
    """Draw the shards that a run lacks.

    Args:
        run: folder or URL with a manifest, that every machine of the cluster can write.
        opened: run -> (job, place), see Worker.
        workers: actors, at least 1; no more are made than shards are missing.
        address: of a cluster; "auto" the one that runs here, "local" a new one of this machine alone.
        gpus, cpus: of an actor; None: a GPU if the cluster has any.
        patience: seconds after which a shard may be late.
        total: told the shards of the run, and how many of them are there.
        told: called with each shard that is drawn.

    Raises:
        ImportError: Ray is not installed.
        ValueError: there is no manifest, or no cluster.
        Stopped: interrupted, or no actor is left; what is there stays, and the same call goes on.
        NonFiniteError, SelfCheckError, OSError: what an actor raised.
    """
    from fastscore.output.store.manifest import Manifest
    from fastscore.output.store.place import place_of
    from fastscore.output.store.work import Stopped, present

    if workers < 1:
        raise ValueError(f"workers = {workers} must be at least 1")
    place = place_of(run)
    manifest = Manifest.read(place)
    if manifest is None:
        raise ValueError(f"{place.url} holds no manifest.json; `fastscore sample ... --manifest-only` writes one")
    there = present(place, manifest)
    missing = [number for number in range(manifest.count) if number not in there]
    total(manifest.count, len(there))
    if not missing:
        return
    try:
        with _cluster(address, min(workers, len(missing)), cpus) as ray:
            if gpus is None:
                gpus = 1.0 if ray.cluster_resources().get("GPU") else 0.0
            options = {"num_gpus": gpus, "num_cpus": cpus, "max_restarts": -1, "max_task_retries": -1}
            made = ray.remote(**options)(Worker)
            actors = [made.remote(opened, place.url) for _ in range(min(workers, len(missing)))]
            try:
                _hand_out(ray, actors, missing, patience, told)
            finally:
                for actor in actors:
                    ray.kill(actor)
    except KeyboardInterrupt as error:
        kept, word = len(present(place, manifest)), getattr(error, "word", str(error) or "interrupted")
        raise Stopped(
            f"{word}: {kept} of {manifest.count} shards are in {place.url}; the same command goes on from there"
        ) from error


def _hand_out(ray: Any, actors: list[Any], missing: list[int], patience: float, told: Callable[[Drawn], None]) -> None:
    """Give each idle actor a shard until all are drawn.

    Raises:
        KeyboardInterrupt: no actor is left.
    """
    left, undone, longest = missing[::-1], set(missing), 0.0
    given: dict[int, float] = {}  # shards that actors are at, and when one of them got it
    idle: list[Any] = []
    out: dict[Any, tuple[Any, int | None]] = {actor.open.remote(): (actor, None) for actor in actors}
    while undone:
        for ref in ray.wait(list(out), timeout=LOOK)[0]:
            actor, number = out.pop(ref)
            try:
                drawn = ray.get(ref)
            except ray.exceptions.RayTaskError as error:
                raise (error.cause or error) from None
            except ray.exceptions.RayActorError:  # for good; what it was at goes to another
                left += [number] if number in undone else []
                if not out and not idle:
                    raise KeyboardInterrupt("the cluster has lost every worker") from None
                continue
            idle.append(actor)
            if number in undone:
                undone.remove(number)
                given.pop(number, None)
                longest = max(longest, drawn.seconds)
                told(drawn)
        now = time.monotonic()
        late = [number for number, at in given.items() if now - at > max(patience, LATE * longest)]
        while idle and (left or late):
            actor, number = idle.pop(), left.pop() if left else late.pop()
            given[number] = now
            out[actor.draw.remote(number)] = actor, number


@contextmanager
def _cluster(address: str, workers: int, cpus: float) -> Iterator[Any]:
    """Join a cluster, or start one, and leave it; one that this process has joined already stays joined."""
    try:
        ray: Any = import_module("ray")
    except ImportError as error:
        raise ImportError("drawing on a Ray cluster needs Ray", name="ray") from error
    if ray.is_initialized():
        yield ray
        return
    local = {"num_cpus": math.ceil(workers * cpus), "include_dashboard": False} if address == "local" else {}
    main = threading.current_thread() is threading.main_thread()
    heard = signal.getsignal(signal.SIGTERM)
    try:
        ray.init(address=address, log_to_driver=False, logging_level=logging.ERROR, **local)
    except ConnectionError as error:
        raise ValueError(
            f"address = {address!r}: there is no Ray cluster ({str(error).splitlines()[0]}); start one with "
            '`ray start --head`, or take "local"'
        ) from error
    finally:
        if main:
            signal.signal(signal.SIGTERM, heard)  # which Ray takes, to exit with code 15
    try:
        yield ray
    finally:
        ray.shutdown()
