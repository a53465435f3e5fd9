"""Is a run what it was: every shard there and whole, and random samples the same when they are drawn again."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np

from fastscore.output.store.formats import Shard, encode
from fastscore.output.store.gather import read_shard
from fastscore.output.store.job import Job
from fastscore.output.store.manifest import Manifest
from fastscore.output.store.place import Place
from fastscore.output.store.seal import DamagedError
from fastscore.output.store.work import present


@dataclass
class Verdict:
    """What was found of a run.

    Attributes:
        good: numbers of the shards that are whole.
        missing: of those that are not there.
        damaged: of those that do not hold what was written to them, with what is wrong.
        again: ids that were drawn again; different: those of them that are not what is there.
    """

    good: list[int] = field(default_factory=list)
    missing: list[int] = field(default_factory=list)
    damaged: dict[int, str] = field(default_factory=dict)
    again: list[int] = field(default_factory=list)
    different: list[int] = field(default_factory=list)

    @property
    def lost(self) -> list[int]:
        """Shards to draw again."""
        return sorted([*self.missing, *self.damaged])

    @property
    def code(self) -> int:
        """Exit code: 4 for samples that differ, 5 for damage, 75 for a run that is not complete, 0 for a good one."""
        return 4 if self.different else 5 if self.damaged else 75 if self.missing else 0


def inspect(place: Place, manifest: Manifest, beat: Callable[[int], object] = lambda count: None) -> Verdict:
    """Read every shard of a run and compare it with its seal, its note and the manifest.

    Args:
        beat: called with 1 for each.
    """
    verdict, there = Verdict(), present(place, manifest)
    for number in range(manifest.count):
        beat(1)
        if number not in there:
            verdict.missing.append(number)
            continue
        try:
            check_span(read_shard(place, manifest, number), manifest)
            verdict.good.append(number)
        except FileNotFoundError:
            verdict.missing.append(number)
        except DamagedError as error:
            verdict.damaged[number] = str(error)
    return verdict


def check_span(shard: Shard, manifest: Manifest) -> None:
    """Raise DamagedError for a shard of another length than the manifest gives it."""
    first, last = manifest.span(shard.number)
    if len(shard) != last - first:
        raise DamagedError(f"shard {shard.number} holds {len(shard)} samples, not {last - first}")


def recompute(
    job: Job, shards: Sequence[int], read: Callable[[int], Shard], count: int, seed: int | None = None
) -> tuple[list[int], list[int]]:
    """Draw random samples again and compare them with what is there; return their ids, and those that differ in a bit.

    Args:
        shards: to choose from.
        read: returns a shard.
        count: of samples; at most as many as there are.
        seed: of the choice; one that nobody knows if left out.
    """
    if not shards or not count:
        return [], []
    random, manifest = np.random.default_rng(seed), job.manifest
    among = sorted(random.choice(shards, min(count, len(shards)), False).tolist())
    spans = {number: manifest.span(number) for number in among}
    each = [count // len(spans) + (k < count % len(spans)) for k in range(len(spans))]
    chosen = {
        number: sorted(random.choice(last - first, min(most, last - first), False).tolist())
        for (number, (first, last)), most in zip(spans.items(), each, strict=True)
    }
    positions = [spans[number][0] + k for number, places in chosen.items() for k in places]
    new = job.arrays(positions)
    ids, different, at = new["ids"].tolist(), list[int](), 0
    for number, places in chosen.items():
        kept = read(number).arrays
        for k in places:
            same = all(new[name][at].tobytes() == kept[name][k].tobytes() for name in new if name in kept)
            different += [] if same else [ids[at]]
            at += 1
    return ids, different


def repair(job: Job, place: Place, numbers: Sequence[int], beat: Callable[[int], object] = lambda count: None) -> None:
    """Draw shards again, which gives the same bytes, and put them in place of what is there.

    Raises:
        NonFiniteError, OSError: as for drawing them.
    """
    for number in numbers:
        shard = job.draw(number, lambda count: None)
        place.replace(job.manifest.name(number), encode(shard, job.manifest.format))
        beat(1)
