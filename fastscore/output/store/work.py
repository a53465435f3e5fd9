"""The loop of one worker: the shards that are missing, one after the other, whatever other workers do.

Nobody hands out work. A worker draws the next shard that is not there and that no other is at, and gives it to the
place, which keeps the first of two. What a worker holds when it dies is one shard.
"""

from __future__ import annotations

import gc
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING

from fastscore.errors import Coded, SelfCheckError, out_of_memory
from fastscore.output.record import SHARDS
from fastscore.output.store.formats import Shard, encode
from fastscore.output.store.gather import read_shard
from fastscore.output.store.lease import Leases
from fastscore.output.store.manifest import Manifest
from fastscore.output.store.place import Place

if TYPE_CHECKING:
    from fastscore.output.store.job import Job

CONFLICTS = "conflicts"  # folder of shards that others had drawn with other bytes
LOOK, LONGEST = 0.5, 8.0  # seconds between two looks at what others are at: at first, and after many in vain
Beat = Callable[[float, int], None]  # called with the samples, whole or not, and the shards done since the last time


class Stopped(KeyboardInterrupt):
    """A run was ended from outside; what is there stays, and the same call goes on. The message says so.

    Attributes:
        code: exit code of a command.
    """

    code = 75

    def __init__(self, word: str) -> None:
        super().__init__(word)
        self.word = word


class OutOfMemory(Coded, MemoryError):
    """Memory ran out in the middle of a run that had gone on before; nothing was made smaller."""

    code = 75


@dataclass
class Tally:
    """What a worker did.

    Attributes:
        drawn, found: shards that it drew, and that were there.
        samples: drawn by it.
        first: seconds until its first micro-batch was done, or None.
    """

    drawn: int = 0
    found: int = 0
    samples: int = 0
    first: float | None = None


def present(place: Place, manifest: Manifest, near: Iterable[int] | None = None) -> set[int]:
    """Return the numbers of the shards that are there.

    Args:
        near: look only into the folders of these, which of a large run are few.
    """
    thousands = sorted({number // 1000 for number in near or ()})
    folders = [SHARDS] if near is None else [f"{SHARDS}/{thousand:04d}" for thousand in thousands]
    numbers = (manifest.number(entry.name) for folder in folders for entry in place.entries(f"{folder}/"))
    return {number for number in numbers if number is not None}


def work(
    job: Job,
    place: Place,
    *,
    part: tuple[int, int] = (0, 1),
    leases: Leases | None = None,
    start: int = 0,
    beat: Beat = lambda samples, shards: None,
    kept: Callable[[Shard], None] = lambda shard: None,
) -> Tally:
    """Draw the shards of a run that are missing.

    Args:
        place: where they are.
        part: (i, N): only those of the i-th of N stretches.
        leases: so that workers on one part seldom draw the same; without them this one is alone, or does not care.
        start: the position in the part at which it begins; those before come last.
        beat: told of samples after each row or micro-batch, and of shards when they are there; may raise to stop.
        kept: called with each shard before it is there, in another thread: what belongs to it.

    Raises:
        NonFiniteError: a sample became NaN or Inf; its shard is not there, those before it are.
        SelfCheckError: a shard is there already, with other bytes; both are kept.
        OutOfMemory: memory ran out, twice, for a shard as large as others before it.
        OSError: the place cannot be written.
    """
    manifest, tally, begun = job.manifest, Tally(), time.perf_counter()
    numbers = list(manifest.part(*part))
    there = present(place, manifest, None if part[1] == 1 else numbers)
    numbers = numbers[start:] + numbers[:start]
    tally.found = sum(number in there for number in numbers)

    batch = min(manifest.numerics.get("batch", 1), manifest.shard)

    def sign(number: int) -> Callable[[float], None]:
        told = 0.0

        def of_life(done: float) -> None:
            nonlocal told
            if tally.first is None and done >= batch:
                tally.first = time.perf_counter() - begun
            if leases is not None:
                leases.renew(number)
            more, told = max(0.0, done - told), max(told, done)  # memory ran out, and the shard is drawn again
            beat(more, 0)

        return of_life

    def kept_now(waiting: Future[None]) -> None:
        waiting.result()
        beat(0.0, 1)

    with ThreadPoolExecutor(1, "fastscore-shards") as pool:
        waiting: Future[None] | None = None
        for number in _free(numbers, there, place, manifest, leases):
            shard = _drawn(job, number, sign(number), tally)
            if waiting is not None:
                kept_now(waiting)
            waiting = pool.submit(_keep, place, manifest, shard, kept, leases)
            tally.drawn, tally.samples = tally.drawn + 1, tally.samples + len(shard)
        if waiting is not None:
            kept_now(waiting)
    return tally


def keep(place: Place, manifest: Manifest, shard: Shard) -> None:
    """Give a shard to a place; one that is there already must be the same.

    Raises:
        SelfCheckError: it is not; this one is put beside it, under CONFLICTS.
        DamagedError: it is damaged, or of another run; the message names it and the remedy.
    """
    name = manifest.name(shard.number)
    if place.create(name, encode(shard, manifest.format)):
        return
    there = read_shard(place, manifest, shard.number)
    if there.sha256 != shard.sha256:
        other = f"{CONFLICTS}/{shard.number:07d}-{shard.sha256[:12]}{name[name.rindex('.') :]}"
        place.create(other, encode(shard, manifest.format))
        raise SelfCheckError(
            f"shard {shard.number} is there with other bytes ({there.sha256[:12]}, here {shard.sha256[:12]}): what "
            f"computed one of them is not deterministic, or not as the manifest says; both are kept, {name} and {other}"
        )


def _keep(place: Place, manifest: Manifest, shard: Shard, kept: Callable[[Shard], None], leases: Leases | None) -> None:
    kept(shard)
    keep(place, manifest, shard)
    if leases is not None:
        leases.release(shard.number)


def _free(
    numbers: Iterable[int], there: set[int], place: Place, manifest: Manifest, leases: Leases | None
) -> Iterator[int]:
    """Yield the shards to draw: those that are not there and that nobody else is at, until all are there."""
    missing, pause = [number for number in numbers if number not in there], LOOK
    while missing:
        left = []
        for number in missing:
            if number in there:
                continue
            if leases is not None and not leases.take(number):
                left.append(number)
            elif leases is not None and _exists(place, manifest.name(number)):  # since this worker looked
                leases.release(number)
                there |= present(place, manifest, [number])  # and others beside it: asked for at once, not each
            else:
                yield number
        if not left:
            return
        if len(left) < len(missing):
            pause = LOOK
        else:
            time.sleep(pause)
            pause = min(2 * pause, LONGEST)
        there = present(place, manifest, left)
        missing = [number for number in left if number not in there]


def _exists(place: Place, name: str) -> bool:
    return any(entry.name == name for entry in place.entries(name))


def _drawn(job: Job, number: int, sign: Callable[[float], None], tally: Tally) -> Shard:
    """Draw a shard; where memory runs out, once more with all freed that a sampler can free."""
    try:
        return job.draw(number, sign)
    except (MemoryError, RuntimeError) as error:
        if not out_of_memory(error):
            raise
    getattr(job.source, "release", lambda: None)()
    gc.collect()
    try:
        return job.draw(number, sign)
    except (MemoryError, RuntimeError) as error:
        if not out_of_memory(error) or not tally.drawn:
            raise
        raise OutOfMemory(
            f"out of memory at shard {number} ({error}), after {tally.drawn} that went well; those are kept and the "
            "same call goes on, when there is more; a smaller --batch is another run"
        ) from error
