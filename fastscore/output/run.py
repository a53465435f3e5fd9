"""A run of samples on disk: what ``fastscore sample`` does, as a function.

A folder holds one run. An earlier one is replaced only if that was asked for, only by a complete one, and never mixed
with it.
"""

from __future__ import annotations

import json
import math
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fastscore import __version__
from fastscore.files import write_text
from fastscore.ops.noise import VERSION, NoiseKey
from fastscore.output.commit import Stage, begin, refuse_early
from fastscore.output.images import contact_sheet, density_sheet, npz_bytes, png_bytes, write_npz, write_png
from fastscore.output.record import FILES, PNG, RECORD, Written
from fastscore.output.writer import Writer

SAMPLES, SHEET = "samples.npz", "grid.png"
SPARE = 1 << 20  # bytes for what is small: run.json, the picture of points


class Shaped(Protocol):
    """A model, or whatever has samples of a shape."""

    @property
    def shape(self) -> tuple[int, ...]: ...


class Quantizer(Protocol):
    """Operations that turn samples [n, C, H, W] in -1 .. 1 into bytes [n, H, W, C]."""

    @property
    def quantize(self) -> Callable[..., Tensor]: ...


class RequestLike(Protocol):
    """The samples that are asked for: a Request."""

    @property
    def key(self) -> NoiseKey: ...
    @property
    def cond(self) -> Tensor | None: ...


class Source(Protocol):
    """A source of samples that can say how it draws them: a Sampler, or whatever streams as one does.

    Attributes:
        model: what is drawn.
        prepared: the model as it runs; read before the clock starts, since it may compile.
        ops: its ``quantize`` makes bytes of images.
    """

    @property
    def model(self) -> Shaped: ...
    @property
    def prepared(self) -> object: ...
    @property
    def ops(self) -> Quantizer: ...
    def stream(self, request: Any, /, *, progress: bool) -> Iterator[tuple[Tensor, Tensor]]: ...
    def record(self) -> dict[str, Any]: ...


def draw(
    sampler: Source,
    request: RequestLike,
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
    started: float | None = None,
    progress: bool = False,
) -> dict[str, Any]:
    """Draw the samples of a request and write them to a folder; return what run.json holds.

        draw(sampler, sampler.request(range(64), seed=0, labels="random"), "out")

    The folder receives, once all is done:

        samples.npz  samples: uint8 [n, H, W, C] of models with images, else float32 [n, *shape]; ids: int64 [n];
                     the extra arrays; labels: int64 [n] of a class-conditional model, the number of classes standing
                     for none; cond: [n, *cond_shape] of a model that takes tensors; seeds: uint64 [n] if not all equal
        grid.png     a contact sheet of the first 100 images, or the density of points in their first two coordinates
        run.json     settings, command, all of ``sampler.record()``, timings in seconds, versions, threads
        png/         with ``png``: an image a sample, named by its id

    Samples go to disk as they come, so that memory does not grow with their number. The disk that all of it needs is
    taken before the network runs. The folder is replaced when everything is there, in one step, and what it holds
    beside an earlier run stays; see output/README.md.

    Args:
        sampler: a Sampler.
        request: what ``sampler.request`` returned.
        folder: made if it is not there.
        png: also write each image as a file; images of 1 or 3 channels.
        subdirs: with ``png``: one folder for each 1000 ids.
        overwrite: replace the run that the folder holds.
        sheet: makes grid.png, uint8 [H, W, C], of the array of samples.
        extra_arrays: more arrays for samples.npz, by name.
        further: writes more files of the run into the folder that it is given, once all is drawn: the trajectory of a
            ``Traced`` sampler.
        further_bytes: the most that those take on disk.
        settings: what was asked for, as plain values; seed and num are added if they are not there.
        command: the command line, if there was one.
        started: time.perf_counter() when the work began; ``setup_s`` counts from there, or from now if left out.
        progress: show a progress bar.

    Raises:
        ValueError: the folder holds a run, or files that are not its run's, or another process writes there; or PNG
            files of what is no image.
        OSError: the folder cannot be written, or the disk has no room: the message says how much is needed. If that
            happens in spite of the room taken, everything sampled is kept, and the message says where.
        NonFiniteError: a sample became NaN or Inf. Whatever is raised, an earlier run stays as it is.
    """
    started = time.perf_counter() if started is None else started
    shape = sampler.model.shape
    image = len(shape) == 3
    _check_png(shape, png, subdirs)
    ids = request.key.ids.cpu().numpy()
    planned = Written.of(FILES, ids if png else ids[:0], subdirs)
    refuse_early(folder, overwrite, planned)
    _ = sampler.prepared
    arrays = {"ids": ids, **(extra_arrays or {}), **_conditions(request)}
    entry, kind = ((*shape[1:], shape[0]), np.uint8) if image else (shape, np.float32)
    with begin(folder, overwrite=overwrite, planned=planned) as stage:
        count = len(ids) * math.prod(entry) * kind().itemsize
        file = npz_bytes(count, *(np.asarray(v).nbytes for v in arrays.values()))
        pictures = len(ids) * png_bytes(*entry) if png else 0
        sheets = png_bytes(12 * max(64, entry[0]), 12 * max(64, entry[1]), entry[2]) if image else 0
        stage.reserve(
            samples=count, samples_as_a_file=file, images=pictures, trajectory=further_bytes, rest=sheets + SPARE
        )
        stage.spend(count)
        begun, first = time.perf_counter(), None

        def record(seconds: float) -> dict[str, Any]:
            return {
                **({} if command is None else {"command": command}),
                "settings": {"seed": _seed(request), "num": len(ids), **(settings or {})},
                **sampler.record(),
                "timings": {
                    "setup_s": round(begun - started, 3),
                    "first_batch_s": round(first, 3) if first else None,
                    "sampling_s": round(seconds, 3),
                    "samples_per_s": round(len(ids) / seconds, 3) if len(ids) else None,
                },
            }

        quantize, held = sampler.ops.quantize if image else None, stage.work / "samples.npy"
        with Writer(stage.new, ids, entry, kind, quantize, png, subdirs, array=held, spend=stage.spend) as writer:
            for part, x in sampler.stream(request, progress=progress):
                first = first or time.perf_counter() - begun
                writer.put(part, x)
            stage.keep(lambda place: rescued(place, arrays, record(time.perf_counter() - begun)))
            writer.finish()
            seconds = time.perf_counter() - begun
            picture = (sheet or contact_or_density)(writer.samples) if len(ids) else None
            stage.spend(file + further_bytes)
            if further is not None:
                further(stage.new)
            return finish(stage, {"samples": writer.samples, **arrays}, picture, record(seconds), planned)


def finish(
    stage: Stage,
    arrays: Mapping[str, Any],
    picture: NDArray[np.uint8] | None,
    run: Mapping[str, Any],
    planned: Written,
) -> dict[str, Any]:
    """Write what a run made, put it in place, and return what run.json holds."""
    write_npz(stage.new / SAMPLES, **arrays)
    if picture is not None and picture.shape[2] in (1, 3):
        write_png(stage.new / SHEET, picture)
    files = [name for name in FILES if name == RECORD or (stage.new / name).exists()]
    wrote = replace(planned, files=tuple(files)).entry()
    run = {**run, "versions": versions(), "threads": torch.get_num_threads(), "wrote": wrote}
    write_text(stage.new / RECORD, json.dumps(run, indent=1) + "\n")
    stage.commit()
    return run


def rescued(place: Path, arrays: Mapping[str, Any], run: Mapping[str, Any]) -> str:
    """Write what belongs to samples that could not be put in place beside them, if there is room; say what is where."""
    kept = [str(place / "samples.npy")] if (place / "samples.npy").exists() else []
    try:
        write_npz(place / "others.npz", **arrays)
        write_text(place / RECORD, json.dumps(run, indent=1) + "\n")
        kept.append(str(place / "others.npz"))
    except OSError:
        pass
    return f"{' and '.join(kept) or 'nowhere: there is no room'}; np.load reads it, and the order is that of the ids"


def refuse_earlier_run(folder: Path | str, overwrite: bool = False) -> None:
    """Raise ValueError if the folder holds a run and it is not to be replaced, or what no run replaces."""
    refuse_early(folder, overwrite, Written(FILES))


def files(folder: Path) -> list[str]:
    """Return which files of a run a folder holds, and ``png``."""
    return [name for name in (*FILES, PNG) if (folder / name).exists()]


def versions() -> dict[str, str]:
    """Return the versions of what samples are computed with."""
    return {
        "fastscore": __version__,
        "noise": f"v{VERSION}",
        "torch": torch.__version__,
        "numpy": np.__version__,
        "python": sys.version.split()[0],
    }


def _check_png(shape: tuple[int, ...], png: bool, subdirs: bool) -> None:
    """Raise ValueError for PNG files of samples that are no pictures, or for subfolders of none."""
    if subdirs and not png:
        raise ValueError("subdirs sorts the files of png; add png, or leave subdirs out")
    if png and len(shape) != 3:
        raise ValueError(f"samples of shape {shape} are not images; leave png out")
    if png and shape[0] not in (1, 3):
        raise ValueError(f"a PNG needs 1 or 3 channels; this model has {shape[0]}; leave png out")


def _conditions(request: RequestLike) -> dict[str, NDArray[Any]]:
    """Return what each sample was told, and its seed where they differ."""
    arrays, cond, seed = {}, request.cond, request.key.seed
    if cond is not None:
        cond = cond.float() if cond.dtype == torch.bfloat16 else cond  # which NumPy does not know
        arrays["labels" if cond.ndim == 1 else "cond"] = cond.cpu().numpy()
    if len(seed) > 1:
        arrays["seeds"] = seed.cpu().numpy().view(np.uint64)
    return arrays


def _seed(request: RequestLike) -> int | str:
    """Return the seed of all samples as it was given."""
    seed = request.key.seed
    return int(seed) & 0xFFFFFFFFFFFFFFFF if len(seed) == 1 else "one a sample"


def contact_or_density(samples: NDArray[Any]) -> NDArray[np.uint8]:
    """Return grid.png of samples: of images a contact sheet, of points their density."""
    return contact_sheet(samples[:100]) if samples.ndim == 4 else density_sheet(samples.reshape(-1, samples.shape[-1]))
