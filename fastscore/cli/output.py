"""What a run of samples leaves in its folder: samples.npz, grid.png, run.json and PNG files."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from fastscore.cli.types import shorten

if TYPE_CHECKING:
    from fastscore.sampler import Sampler

OUTPUTS = ("samples.npz", "grid.png", "run.json", "png")


def draw(
    sampler: Sampler,
    out: Path,
    wanted: Sequence[int],
    seed: int,
    o: dict[str, Any],
    start: float,
    settings: dict[str, Any],
    more: dict[str, Any],
    sheet: Callable[[Any], Any] | None = None,
    **inputs: Any,
) -> None:
    """Draw samples and write samples.npz with ``more`` arrays, grid.png, run.json and the PNG files.

    Args:
        start: when the command began, by time.perf_counter.
        settings: what the run was asked for beside the options ``o``.
        sheet: makes grid.png of the samples; a contact sheet or a density if left out.
        inputs: arguments of Sampler.stream.
    """
    import numpy as np
    import torch

    from fastscore.output.writer import Writer

    score_model, schedule, image = sampler.model, sampler.schedule, len(sampler.model.shape) == 3
    numerics = asdict(sampler.numerics)
    out.mkdir(parents=True, exist_ok=True)
    _clear(out)
    ready = time.perf_counter()
    first = None
    shape = (*score_model.shape[1:], score_model.shape[0]) if image else score_model.shape
    convert, kind = (sampler.ops.quantize, np.uint8) if image else (None, np.float32)
    with Writer(out, wanted, shape, kind, convert, o["png"], o["subdirs"]) as writer:
        for part, x in sampler.stream(wanted, seed, **inputs, progress=not o["quiet"]):
            first = first or time.perf_counter() - ready
            writer.put(part, x)
        writer.finish()
        seconds = time.perf_counter() - ready
        settings = {k: v for k, v in o.items() if k not in ("overwrite", "quiet") and v is not None} | settings
        rate = len(wanted) / seconds
        written = _write(out, writer.samples, np.asarray(wanted, np.int64), more, sheet, {
            "command": shorten(" ".join(["fastscore", *sys.argv[1:]]), 2000),
            "settings": settings,
            "schedule": repr(schedule) if len(repr(schedule)) < 500 else type(schedule).__name__,
            "solver": repr(sampler.solver),
            "grid": repr(sampler.grid),
            **_cost(sampler),
            "batch": sampler.batch,
            "backend": sampler.ops.name,
            "graph": sampler.way,
            "network": numerics,
            "timings": {
                "setup_s": round(ready - start, 3),
                "first_batch_s": round(first, 3) if first else None,
                "sampling_s": round(seconds, 3),
                "samples_per_s": round(rate, 3) if rate else None,
            },
            "versions": _versions(),
            "threads": torch.get_num_threads(),
        })  # fmt: skip
    if not o["quiet"]:
        nfe = f"{sampler.plan.nfe} evaluations each" if sampler.plan else f"{sampler.effort}"
        done = f"{len(wanted)} samples, {nfe}"
        click.echo(f"{done}{f', {rate:.1f} samples/s on {sampler.device}' if rate else ''}: {out}/{', '.join(written)}")


def _cost(sampler: Sampler) -> dict[str, Any]:
    """Return what a sample costs: of a plan, or as measured in the run of an adaptive solver."""
    if sampler.plan is None:
        return {"adaptive": sampler.effort.summary()}
    return {"nfe": sampler.plan.nfe, "plan_sha256": sampler.plan.hash}


def check_out(out: Path, overwrite: bool) -> None:
    """Raise ValueError if the folder holds an earlier run that is not to be replaced."""
    taken = [name for name in OUTPUTS if (out / name).exists()]
    if taken and not overwrite:
        raise ValueError(f"{out} already holds {taken[0]}; choose another --out, or pass --overwrite to replace it")


def _clear(out: Path) -> None:
    """Remove what an earlier run left, so that a folder never mixes two."""
    for name in OUTPUTS[:-1]:
        (out / name).unlink(missing_ok=True)
    for image in (out / OUTPUTS[-1]).rglob("*.png"):
        image.unlink()


def _write(out: Path, samples: Any, ids: Any, more: dict[str, Any], sheet: Any, run: dict[str, Any]) -> list[str]:
    from fastscore.files import write_text
    from fastscore.output.images import write_npz, write_png

    write_npz(out / "samples.npz", samples=samples, ids=ids, **more)
    if len(samples):
        drawn = (sheet or _contact_or_density)(samples)
        if drawn.shape[2] in (1, 3):
            write_png(out / "grid.png", drawn)
    write_text(out / "run.json", json.dumps(run, indent=1) + "\n")
    return [name for name in OUTPUTS if (out / name).exists()]


def _contact_or_density(samples: Any) -> Any:
    from fastscore.output.images import contact_sheet, density_sheet

    return contact_sheet(samples[:100]) if samples.ndim == 4 else density_sheet(samples.reshape(-1, samples.shape[-1]))


def _versions() -> dict[str, str]:
    import numpy as np
    import torch

    from fastscore._version import __version__
    from fastscore.ops.noise import VERSION

    return {
        "fastscore": __version__,
        "noise": f"v{VERSION}",
        "torch": torch.__version__,
        "numpy": np.__version__,
        "python": sys.version.split()[0],
    }
