"""What an earlier process left of a run: gone on with if it is the same run, and refused or cleared if not."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from fastscore.output.commit import LASTING, Stage
from fastscore.output.store.folder import Folder
from fastscore.output.store.gather import recorded
from fastscore.output.store.job import Job
from fastscore.output.store.manifest import Manifest
from fastscore.output.store.place import Place, place_of
from fastscore.output.store.work import present


class AnotherRunError(ValueError):
    """A place holds a run of other settings; the message names what differs."""


def continued(job: Job, stage: Stage, place: Place, fresh: bool, sized: bool, mixed: bool) -> Job:
    """Return the job as the run in a stage has begun it, or begin that.

    Args:
        fresh: an unfinished run of other settings may be dropped.
        sized: the size of shards was asked for, not chosen.
        mixed: other numerics are no difference.

    Raises:
        AnotherRunError: the stage holds shards of another run.
    """
    refuse_another(job, stage.folder, fresh, sized, mixed)
    there = _unfinished(stage.folder, fresh)
    if there is None or _same(job, there, sized).differences(there, mixed):
        stage.clear()
        job.manifest.write(place)
        return job
    place.tidy()
    return replace(job, manifest=there)


def found(job: Job, folder: Path, sized: bool) -> int:
    """Return how many samples of a job are there, as far as that can be known before its network is prepared.

    Of a run that was not refused, so that one that cannot be read is one to be dropped.
    """
    there = _unfinished(folder, fresh=True)
    if there is None or _same(job, there, sized).differences(there, mixed=True):
        return 0
    return sum(last - first for first, last in map(there.span, present(Folder(_where(folder, there)), there)))


def joined(job: Job, place: Place, sized: bool, mixed: bool) -> Job:
    """Return the job as the run at a place has begun it, or begin that: for many processes, without a lock.

    Raises:
        AnotherRunError: the place holds another run.
    """
    if Manifest.read(place) is None:
        job.manifest.write(place)
    there = Manifest.read(place)
    assert there is not None
    if differences := _same(job, there, sized).differences(there, mixed):
        raise AnotherRunError(f"{place.url} holds a run of other settings ({_told(differences)}); choose another place")
    return replace(job, manifest=there)


def refuse_another(job: Job, folder: Path, fresh: bool, sized: bool, mixed: bool) -> None:
    """Raise AnotherRunError if a folder holds shards of an unfinished run that is not this one."""
    there = None if fresh else _unfinished(folder)
    if there is None:
        return
    differences = _same(job, there, sized).differences(there, mixed)
    kept = len(present(Folder(_where(folder, there)), there)) if differences else 0
    if kept:
        raise AnotherRunError(
            f"{folder} holds {kept} of {there.count} shards of an unfinished run with other "
            f"settings ({_told(differences)}); call that again to finish it, choose another folder, or start over "
            "(--fresh, overwrite)"
        )


def refuse_differences(job: Job, there: Manifest, folder: Path, sized: bool, mixed: bool) -> None:
    """Raise AnotherRunError for a complete run that is not this one."""
    if differences := _same(job, there, sized).differences(there, mixed):
        raise AnotherRunError(
            f"{folder} already holds a run with other settings ({_told(differences)}); choose another folder, or "
            "overwrite to replace it"
        )


def begun(where: Path | str) -> Manifest | None:
    """Return the manifest of the run that a place holds, complete or not; None if there is none that can be read."""
    if isinstance(where, Path):
        if not where.is_dir() or where.is_symlink():
            return None
        if (there := _unfinished(where, fresh=True)) is not None:
            return there
        if (found := recorded(where)) is not None:
            return found[0]
    try:
        return Manifest.read(place_of(where))
    except ValueError:
        return None


def _unfinished(folder: Path, fresh: bool = False) -> Manifest | None:
    """Return the manifest of the unfinished run in a folder; of one to be dropped, None if it cannot be read."""
    for where in (folder / LASTING, folder / LASTING / "new"):
        try:
            if where.is_dir() and not where.is_symlink() and (there := Manifest.read(Folder(where))) is not None:
                return there
        except ValueError as error:
            if not fresh:
                raise AnotherRunError(f"{error}; or start over, --fresh") from None
    return None


def _where(folder: Path, found: Manifest) -> Path:
    return folder / LASTING if found.gathered else folder / LASTING / "new"


def _same(job: Job, found: Manifest, sized: bool) -> Manifest:
    """Return a job's manifest with shards of the size that is there, unless another was asked for."""
    return job.manifest if sized else replace(job.manifest, shard=found.shard)


def _told(differences: list[str]) -> str:
    more = f"; {len(differences) - 4} more" if len(differences) > 4 else ""
    return "; ".join(differences[:4]) + more
