"""A run that several commands draw, on one machine or many: each a part, or all of them the same one."""

from __future__ import annotations

import os
from collections.abc import Callable

from fastscore.files import here
from fastscore.output.store.job import Job
from fastscore.output.store.lease import Leases
from fastscore.output.store.place import Place
from fastscore.output.store.work import Beat, Stopped, Tally, present, work

Crew = Callable[[Job, Place, Beat], Tally]


def share(
    job: Job,
    place: Place,
    part: tuple[int, int] = (0, 1),
    total: Callable[[int, int, int, int], object] = lambda *counts: None,
    beat: Beat = lambda samples, shards: None,
    crew: Crew | None = None,
) -> tuple[Tally, int]:
    """Draw what is missing of a part of a run; return what was done, and how many shards of the part are there.

    Args:
        job: with the manifest that lies at the place, see resume.joined.
        part: (i, N): the i-th of N stretches of shards.
        total: told the samples of the part, how many of them are there, and the same of its shards.
        beat: as for ``work``.
        crew: draws in place of this process.

    Raises:
        Stopped: Ctrl-C, or what raises KeyboardInterrupt; the shards that are complete stay.
        NonFiniteError, SelfCheckError, OSError: as for ``work``.
    """
    manifest, mine = job.manifest, job.manifest.part(*part)

    def found() -> set[int]:
        return present(place, manifest, mine) & set(mine)

    place.tidy()
    sizes = {number: last - first for number in mine for first, last in [manifest.span(number)]}
    there = found()
    total(sum(sizes.values()), sum(sizes[number] for number in there), len(sizes), len(there))
    leases = Leases(place, f"{here()}:{os.getpid()}")
    try:
        tally = work(job, place, part=part, leases=leases, beat=beat) if crew is None else crew(job, place, beat)
    except KeyboardInterrupt as error:
        leases.release_all()
        word = getattr(error, "word", "interrupted")
        raise Stopped(
            f"{word}: {len(found())} of {len(mine)} shards are in {place.url}; the same command goes on from there"
        ) from error
    there = found()
    leases.clear(there)
    return tally, len(there)
