"""The job of a run again, from nothing but its place: the command line in its manifest, up to where it would draw."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from fastscore.cli.runs import JOB

if TYPE_CHECKING:
    from fastscore.output.store.job import Job
    from fastscore.output.store.manifest import Manifest
    from fastscore.output.store.place import Place


def opened(run: str) -> tuple[Job, Place]:
    """Return the job of a run that `fastscore sample` began, for this machine, and its place; draw nothing.

    Args:
        run: folder or URL with a manifest.

    Raises:
        ValueError: there is no manifest, or one of a run from Python, or of one that this machine would draw with other
            settings or numerics.
        ImportError, OSError: as for the command.
    """
    from fastscore.output.store.manifest import Manifest
    from fastscore.output.store.place import place_of

    place = place_of(run)
    manifest = Manifest.read(place)
    if manifest is None:
        raise ValueError(f"{place.url} holds no manifest.json; `fastscore sample ... --manifest-only` writes one")
    return job_again(manifest, run), place


def job_again(manifest: Manifest, run: str | Path) -> Job:
    """Return the job of a manifest, which lies at ``run``; errors as for ``opened``."""
    from fastscore.output.store.resume import AnotherRunError

    job = asked_again(manifest, run).ready()
    mine = replace(job.manifest, shard=manifest.shard, gathered=manifest.gathered)
    if differences := mine.differences(manifest):
        raise AnotherRunError(
            f"{run} would be drawn here with other settings ({'; '.join(differences[:4])}); go to the machine and the "
            "versions that drew it"
        )
    return replace(job, manifest=manifest)


def asked_again(manifest: Manifest, run: str | Path) -> Job:
    """Return what the command of a manifest asks for here, whose network is not prepared; ValueError if it has none."""
    from fastscore.cli import group

    words = manifest.argv
    command = group.commands.get(words[0]) if words else None
    if words is None or command is None or not any(p.name == "manifest_only" for p in command.params):
        raise ValueError(f"{run}: its manifest names no command that draws it, as `fastscore sample` leaves one")
    made: list[Job] = []
    with command.make_context(words[0], [*words[1:], "--out", os.fspath(run)]) as context:
        context.meta[JOB] = made.append
        command.invoke(context)
    return made[0]
