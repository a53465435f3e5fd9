"""What a run has beside its samples: an image file each, and one picture of many."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fastscore.files import atomic, sync_all
from fastscore.output.commit import Stage
from fastscore.output.images import THREADS, contact_sheet, density_sheet, save_png, small_pngs, write_png
from fastscore.output.record import FILES, PNG, Written, image_name
from fastscore.output.store.formats import Shard
from fastscore.output.store.gather import whole_shard
from fastscore.output.store.job import Job
from fastscore.output.store.place import Place
from fastscore.output.store.work import present

SHEET = "grid.png"


def put_sheet(stage: Stage, picture: NDArray[np.uint8] | None) -> None:
    """Write grid.png, if there is a picture and it is grey or RGB."""
    if picture is not None and picture.shape[2] in (1, 3):
        write_png(stage.new / SHEET, picture)


def beside(new: Path, png: bool, subdirs: bool) -> Callable[[Shard], None]:
    """Return what writes into a folder the images of a shard, before the shard itself is there."""

    def write(shard: Shard) -> None:
        if not png:
            return
        paths = [new / image_name(k, subdirs) for k in shard.arrays["ids"].tolist()]
        for folder in {path.parent for path in paths}:
            folder.mkdir(parents=True, exist_ok=True)

        def write_some(some: slice) -> None:
            images = shard.arrays["samples"][some]
            small = small_pngs(images)
            for k, path in enumerate(paths[some]):
                with atomic(path, durable=False) as file:
                    save_png(file, images[k]) if small is None else file.write(small[k])

        with ThreadPoolExecutor(THREADS, "fastscore-images") as pool:
            list(pool.map(write_some, (slice(k, None, THREADS) for k in range(THREADS))))
        sync_all(paths)

    return write


def catch_up(
    new: Path, planned: Written, traced: bool, job: Job, place: Place, images: Callable[[Shard], None]
) -> None:
    """Make what lies beside the shards that are there that of this call: an earlier one may have asked for other files.

    Args:
        new: the folder of the files.
        planned: what this call writes.
        traced: whether it writes a trajectory.
        images: writes those of a shard.
    """
    if not traced:
        (new / FILES[1]).unlink(missing_ok=True)
    for path in (new / PNG).rglob("*.png"):
        if not planned.image(path.relative_to(new).as_posix()):
            path.unlink()
    for number in sorted(present(place, job.manifest)) if len(planned.first) else ():
        ids = job.asked.ids[slice(*job.manifest.span(number))]
        if not all((new / image_name(int(k), planned.subdirs)).exists() for k in ids):
            images(whole_shard(job, place, number))


def contact_or_density(samples: NDArray[Any]) -> NDArray[np.uint8] | None:
    """Return grid.png of samples: of images a contact sheet, of points their density, of latents none."""
    if samples.ndim == 4 and samples.dtype != np.uint8:
        return None
    return contact_sheet(samples[:100]) if samples.ndim == 4 else density_sheet(samples.reshape(-1, samples.shape[-1]))


def check_png(shape: tuple[int, ...], kind: type[np.generic], png: bool, subdirs: bool) -> None:
    """Raise ValueError for PNG files of samples that are no pictures, or for subfolders of none."""
    if subdirs and not png:
        raise ValueError("subdirs sorts the files of png; add png, or leave subdirs out")
    if png and kind is not np.uint8:
        raise ValueError(f"samples of shape {shape} are not images; leave png out")
    if png and shape[2] not in (1, 3):
        raise ValueError(f"a PNG needs 1 or 3 channels; this model has {shape[2]}; leave png out")
