"""fastscore verify: is a run what it was."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from fastscore.cli.types import Count

if TYPE_CHECKING:
    from fastscore.output.store.manifest import Manifest
    from fastscore.output.store.verify import Verdict


@click.command()
@click.argument("run")
@click.option("--samples", type=Count(0, 1 << 20), default=4, show_default=True, help="Random samples to draw again.")
@click.option("--repair", "mend", is_flag=True, help="Draw again what is missing or damaged: the same bytes.")
@click.option("--quiet", is_flag=True, help="Nothing but the exit code.")
def verify(run: str, samples: int, mend: bool, quiet: bool) -> None:
    """Check RUN, a folder or bucket of `fastscore sample`: all shards there and whole, random samples drawn again.

    \b
        fastscore verify out --repair

    Ends with 0 if all is well, 4 if samples drawn again differ, 5 if a shard is damaged, 75 if some are missing.
    """
    from fastscore.output.commit import settle
    from fastscore.output.store.folder import Folder
    from fastscore.output.store.gather import recorded
    from fastscore.output.store.manifest import Manifest
    from fastscore.output.store.place import place_of

    place = place_of(run)
    if isinstance(place, Folder):
        settle(place.path)
        if (found := recorded(place.path)) is not None and found[0].gathered:
            return _end(_gathered(place.path, *found, samples, mend, quiet), found[0], quiet)
        if found is None and (place.path / ".run").is_dir():
            raise ValueError(f"{run} holds an unfinished run; the command that began it goes on with it")
    manifest = Manifest.read(place)
    if manifest is None:
        raise ValueError(f"{run} holds no run that fastscore sample drew in shards: no manifest.json, and no run.json")
    return _end(_sharded(place, manifest, samples, mend, quiet), manifest, quiet)


def _sharded(place: Any, manifest: Manifest, samples: int, mend: bool, quiet: bool) -> Verdict:
    """Return what is found of a run in shards, after it was repaired if that is asked for."""
    from fastscore.cli.again import job_again
    from fastscore.output.progress import Progress
    from fastscore.output.store.gather import read_shard
    from fastscore.output.store.verify import inspect, recompute, repair

    with Progress(not quiet, "shards").begin(manifest.count) as progress:
        verdict = inspect(place, manifest, progress.advance)
    job = job_again(manifest, place.url) if samples or (mend and verdict.lost) else None
    if mend and verdict.lost:
        assert job is not None
        _say(verdict, manifest, quiet)
        with Progress(not quiet, "shards").begin(len(verdict.lost)) as progress:
            repair(job, place, verdict.lost, progress.advance)
        verdict = inspect(place, manifest)
    if job is not None and samples:
        again = recompute(job, verdict.good, lambda number: read_shard(place, manifest, number), samples)
        verdict.again, verdict.different = again
    return verdict


def _gathered(folder: Path, manifest: Manifest, run: dict[str, Any], samples: int, mend: bool, quiet: bool) -> Verdict:
    """Return what is found of a run in one file."""
    from fastscore.cli.again import job_again
    from fastscore.output.store.gather import scatter
    from fastscore.output.store.verify import Verdict, check_span, recompute

    def look() -> tuple[Verdict, list[Any]]:
        verdict, shards = Verdict(), []
        try:
            shards = scatter(folder, manifest)
            for shard, sha256 in zip(shards, run["shards"], strict=True):
                check_span(shard, manifest)
                if shard.sha256 == sha256:
                    verdict.good.append(shard.number)
                else:
                    verdict.damaged[shard.number] = "its samples have another sha256 than run.json says"
        except (OSError, ValueError, KeyError, TypeError) as error:
            verdict = Verdict(damaged={number: str(error) for number in range(manifest.count)})
        return verdict, shards

    verdict, shards = look()
    job = job_again(manifest, folder) if samples or (mend and verdict.lost) else None  # or this machine draws others
    if mend and verdict.lost:
        _say(verdict, manifest, quiet)
        _again(folder, manifest)
        verdict, shards = look()
    if job is not None and verdict.good:
        again = recompute(job, verdict.good, lambda number: shards[number], samples)
        verdict.again, verdict.different = again
    return verdict


def _again(folder: Path, manifest: Manifest) -> None:
    """Draw a gathered run again, all of it: it is small, and its one file is replaced when the new one is complete."""
    from fastscore.cli import group

    if manifest.argv is None:
        raise ValueError(f"{folder} was drawn from Python; draw it again with overwrite=True")
    words = [*manifest.argv, "--out", str(folder), "--fresh", "--quiet"]
    group.main(words, prog_name="fastscore", standalone_mode=False, obj=words)


def _say(verdict: Verdict, manifest: Manifest, quiet: bool) -> None:
    lines = [f"shard {number}: {text}" for number, text in list(verdict.damaged.items())[:5]]
    lines += [f"{len(verdict.damaged) - 5} more are damaged"] if len(verdict.damaged) > 5 else []
    lines += [f"{len(verdict.missing)} of {manifest.count} shards are missing"] if verdict.missing else []
    for line in [] if quiet else lines:
        click.echo(f"fastscore: {line}", err=True)


def _end(verdict: Verdict, manifest: Manifest, quiet: bool) -> None:
    """Say what was found, and end with its code."""
    _say(verdict, manifest, quiet)
    if verdict.different:
        ids = ", ".join(map(str, verdict.different[:10]))
        click.echo(f"fastscore: error: drawn again, {len(verdict.different)} samples differ: ids {ids}", err=True)
    if not quiet:
        again = f"; {len(verdict.again)} samples drawn again, {len(verdict.different)} differ" if verdict.again else ""
        click.echo(f"{len(verdict.good)} of {manifest.count} shards are whole{again}")
    if verdict.code:
        click.get_current_context().exit(verdict.code)
