"""A run of samples on disk: what ``fastscore sample`` does, as a function.

A folder holds one run. It is drawn in shards, so that a process that ends loses one of them at most and the same call
goes on; an earlier run is replaced only if that was asked for, only by a complete one, and never mixed with it.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from fastscore import __version__
from fastscore.files import write_text
from fastscore.ops.noise import VERSION
from fastscore.output.commit import Stage, begin, refuse_early, settle
from fastscore.output.load import load
from fastscore.output.log import Journal, Log, Logged, Logger
from fastscore.output.metrics import Metrics
from fastscore.output.pictures import beside, catch_up, check_png, contact_or_density, put_sheet
from fastscore.output.places import checked
from fastscore.output.progress import Progress, together
from fastscore.output.record import FILES, MANIFEST, PNG, RECORD, SHARDS, Written
from fastscore.output.room import room
from fastscore.output.store.folder import Folder
from fastscore.output.store.formats import Shard
from fastscore.output.store.gather import SAMPLES, gather, recorded
from fastscore.output.store.job import Asked, Job, RequestLike, Source, job_of, written
from fastscore.output.store.place import Place
from fastscore.output.store.resume import continued, found, refuse_another, refuse_differences
from fastscore.output.store.share import Crew
from fastscore.output.store.work import Stopped, Tally, present, work


def draw(
    sampler: Source,
    request: RequestLike | Asked,
    folder: Path | str,
    *,
    png: bool = False,
    subdirs: bool = False,
    overwrite: bool = False,
    sheet: Callable[[NDArray[Any]], NDArray[np.uint8]] | None = None,
    extra_arrays: Mapping[str, Any] | None = None,
    further: Callable[[Path], None] | None = None,
    further_bytes: int = 0,
    settings: Mapping[str, Any] | None = None,
    command: str | None = None,
    argv: Sequence[str] | None = None,
    started: float | None = None,
    progress: bool = False,
    metrics: Path | None = None,
    log: Logger | Log | None = None,
    shard: int | None = None,
    format: str = "npz",
    gathered: bool | None = None,
    mixed: bool = False,
    crew: Crew | None = None,
) -> dict[str, Any]:
    """Draw the samples of a request and write them to a folder; return what run.json holds.

        draw(sampler, sampler.request(range(64), seed=0, labels="random"), "out")

    The folder receives, once all is done:

        samples.npz  samples: uint8 [n, H, W, C] of models with images, else float32 [n, *shape]; ids: int64 [n];
                     the extra arrays; labels: int64 [n] of a class-conditional model, the number of classes standing
                     for none; cond: [n, *cond_shape] of a model that takes a tensor, and cond.<name> of one that
                     takes several by name; seeds: uint64 [n] if not all equal
        grid.png     a contact sheet of the first 100 images, or the density of points in their first two coordinates
        run.json     settings, command, all of ``sampler.record()``, timings in seconds, versions, threads, manifest
        png/         with ``png``: an image a sample, named by its id

    and of more than 1 GiB, or in another format, manifest.json and shards/ in place of the first two.

    Until then it is drawn shard by shard in ``.run`` in that folder. If that ends early, whatever ends it, the same
    call draws what is missing; the record of a complete run is returned, with
    ``already_complete``. The disk that all of it needs is taken before the
    network runs. The folder is replaced when everything is there, in one step, and what it holds beside an earlier run
    stays; see output/README.md.

    Args:
        sampler: a Sampler.
        request: what ``sampler.request`` returned; or Asked, of so many samples that no line for each should be held.
        folder: made if it is not there.
        png: also write each image as a file; images of 1 or 3 channels.
        subdirs: with ``png``: one folder for each 1000 ids.
        overwrite: start over, and replace the run that the folder holds once this one is complete. An unfinished run
            of the same settings is still gone on with: its bytes are the same.
        sheet: makes grid.png, uint8 [H, W, C], of the array of samples.
        extra_arrays: more arrays for samples.npz, by name.
        further: writes more files of the run into the folder that it is given, once all is drawn: the trajectory of a
            ``Traced`` sampler, which is drawn in one shard.
        further_bytes: the most that those take on disk.
        settings: what was asked for, as plain values; seed and num are added if they are not there.
        command: the command line, if there was one; argv: its words, without where to, which draw the run again.
        started: time.perf_counter() when the work began; ``setup_s`` counts from there, or from now if left out.
        progress: tell on stderr how far it is.
        metrics: a text file of that for Prometheus, see output/metrics.py.
        log: what has log(dict, step=), or a Log; told the same and, of a Sampler drawn in this process, more.
        shard: samples of one shard, at least 1; left out: some seconds of work. Samples do not depend on it.
        format: of a shard: npz, adm-npz (``arr_0``, ``arr_1``), npy, tar (WebDataset) or parquet.
        gathered: whether npz shards become one samples.npz; left out: up to 1 GiB.
        mixed: go on with a run that another kind of machine, or other versions, began; its bytes may differ.
        crew: draws the shards in place of this process: (job, place, beat), see store/work.py.

    Raises:
        ValueError: the folder holds another run, complete or not, or files that are not its run's; the message names
            what differs. Another process writes there. PNG files of what is no image.
        OSError: the folder cannot be written, or the disk has no room: the message says how much is needed.
        NonFiniteError: a sample became NaN or Inf.
        Stopped: Ctrl-C, or what raises KeyboardInterrupt. Whatever is raised, an earlier run stays as it is, and so do
            the shards that are complete, for the next call.
    """
    started, busy = time.perf_counter() if started is None else started, load()
    journal = None if log is None else Journal(Log.of(log), part=True)
    sampler = Logged.of(sampler, journal)
    check_png(*written(sampler.model), png, subdirs)
    job, sized = _job(sampler, request, further is not None, shard, format, gathered, argv), shard is not None
    job.asked.check_once(png, further is not None)
    png_ids = np.asarray(job.asked.ids if png else [], np.int64)
    names = FILES if job.manifest.gathered else (RECORD, MANIFEST)
    planned = replace(Written.of(names, png_ids, subdirs), shards=not job.manifest.gathered)
    wanted = [name for name, asked in ((PNG, png), (FILES[1], further is not None)) if asked]
    if (done := _finished(folder, job, overwrite, wanted, sized, mixed)) is not None:
        return done
    refuse_early(folder, overwrite, planned)
    sized = sized or further is not None  # a trajectory is drawn in one shard
    refuse_another(job, checked(folder), overwrite, sized, mixed=True)
    with begin(folder, overwrite=overwrite, planned=planned, lasting=True) as stage:
        place = Folder(stage.work if job.manifest.gathered else stage.new)
        taken = room(job, found(job, stage.folder, sized), extra_arrays or {}, png, further_bytes)
        stage.reserve(**taken)
        job = continued(job.ready(), stage, place, overwrite, sized, mixed)
        if further is not None and not (stage.new / FILES[1]).exists():  # drawn by a call that asked for none
            stage.clear()
            job.manifest.write(place)
        begun = time.perf_counter()
        with _kept(job, place, stage):
            images = beside(stage.new, png, subdirs)
            catch_up(stage.new, planned, further is not None, job, place, images)
            if crew is not None:
                stage.spend(taken["shards"])  # other processes write them
            watch = together(None if metrics is None else Metrics(metrics, os.path.abspath(stage.folder)), journal)
            tally = _work(job, place, crew or _alone(images, further, stage), Progress(progress, watch=watch))
            seconds = time.perf_counter() - begun
            stage.spend(1 << 62)
            run = {
                **({} if command is None else {"command": command}),
                "settings": {"seed": job.asked.seed, "num": len(job.asked), **(settings or {})},
                **sampler.record(),
                "timings": {
                    "setup_s": round(begun - started, 3),
                    "first_batch_s": round(tally.first, 3) if tally.first else None,
                    "sampling_s": round(seconds, 3),
                    "samples_per_s": round(tally.samples / seconds, 3) if tally.samples else None,
                    **({"shards_found": tally.found} if tally.found else {}),
                },
                "load": busy,
                "manifest": job.manifest.to_dict(),
            }
            if job.manifest.gathered:
                samples, run["shards"] = gather(job, place, stage.new / SAMPLES, extra_arrays or {})
                if len(job.asked):
                    put_sheet(stage, (sheet or contact_or_density)(samples))
            return finish(stage, run, planned)


def finish(stage: Stage, run: Mapping[str, Any], planned: Written) -> dict[str, Any]:
    """Write the record of what a run made, put all of it in place, and return what run.json holds."""
    files = [name for name in (*FILES, MANIFEST) if name == RECORD or (stage.new / name).exists()]
    wrote = replace(planned, files=tuple(files)).entry()
    run = {**run, "versions": versions(), "threads": torch.get_num_threads(), "wrote": wrote}
    write_text(stage.new / RECORD, json.dumps(run, indent=1) + "\n")
    stage.commit()
    return run


@contextmanager
def _kept(job: Job, place: Place, stage: Stage) -> Iterator[None]:
    """Keep the shards of a run that ends early, if there are any, and say so."""
    stage.lasting = True  # whatever interrupts what follows, a second Ctrl-C too
    try:
        yield
    except BaseException as error:
        if not stage.work.exists():  # after the commit
            raise
        there = len(present(place, job.manifest))
        stage.lasting = there > 0
        kept = f"{there} of {job.manifest.count} shards are kept in {stage.folder}, and the same command goes on there"
        if isinstance(error, KeyboardInterrupt):
            word = getattr(error, "word", "interrupted")
            raise Stopped(f"{word}: {kept if there else 'no shard was complete yet'}") from error
        if there and isinstance(error, OSError | ArithmeticError):
            raised = type(error)(f"{error}; {kept}")
            if isinstance(error, OSError) and isinstance(raised, OSError):
                raised.errno = error.errno
            raise raised from error
        raise


def _job(
    sampler: Source,
    request: RequestLike | Asked,
    whole: bool,
    shard: int | None,
    format: str,
    gathered: bool | None,
    argv: Sequence[str] | None,
) -> Job:
    """Return the job of a run; that of a trajectory is one shard, since it is one file."""
    if whole:
        shard, gathered = max(1, len(request)), True
    return job_of(sampler, request, shard=shard, format=format, gathered=gathered, argv=argv)


def _finished(folder: Path | str, job: Job, overwrite: bool, wanted: list[str], sized: bool, mixed: bool) -> Any:
    """Return the record of the same run, complete, if a folder holds that; raise ValueError if it holds another."""
    out = checked(folder)
    if not out.is_dir():
        return None
    settle(out)
    found = recorded(out)
    if overwrite or found is None:
        return None
    manifest, run = found
    refuse_differences(job, manifest, out, sized, mixed=True)
    refuse_differences(job.ready(), manifest, out, sized, mixed)
    wrote = run.get("wrote") or {}
    lacking = [name for name in wanted if name not in (*wrote.get("files", ()), *wrote)]
    if lacking:
        raise ValueError(
            f"{out} already holds this run, without {' and '.join(lacking)}; choose another folder, or overwrite"
        )
    return {**run, "already_complete": True}


def _work(job: Job, place: Place, crew: Crew, progress: Progress) -> Tally:
    """Draw the shards that are missing, and tell how many of all samples are there."""
    there = [last - first for first, last in map(job.manifest.span, present(place, job.manifest))]
    with progress.begin(len(job.asked), sum(there), job.manifest.count, len(there)):
        return crew(job, place, progress.advance)


def _alone(images: Callable[[Shard], None], further: Callable[[Path], None] | None, stage: Stage) -> Crew:
    """Return what draws in this process."""

    def keep(shard: Shard) -> None:
        stage.spend(sum(x.nbytes for x in shard.arrays.values()) + (1 << 13))
        if further is not None:
            further(stage.new)
        images(shard)

    return lambda job, place, beat: work(job, place, beat=beat, kept=keep)


def versions() -> dict[str, str]:
    """Return the versions of what samples are computed with."""
    return {
        "fastscore": __version__,
        "noise": f"v{VERSION}",
        "torch": torch.__version__,
        "numpy": np.__version__,
        "python": sys.version.split()[0],
    }


def refuse_earlier_run(folder: Path | str, overwrite: bool = False) -> None:
    """Raise ValueError if the folder holds a run and it is not to be replaced, or what no run replaces."""
    refuse_early(folder, overwrite, Written(FILES))


def files(folder: Path) -> list[str]:
    """Return which files of a run a folder holds, and ``png``."""
    return [name for name in (*FILES, MANIFEST, SHARDS, PNG) if (folder / name).exists()]
