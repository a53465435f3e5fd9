"""What the pictures' commands share: where to write, and how runs and data are read."""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from fastscore.cli.types import Out, shorten

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from numpy.typing import NDArray

LARGEST = 1 << 26  # bytes of a JSON file that is read


def picture_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Add the options that say which file to write."""
    for decorate in (
        click.option("--overwrite", is_flag=True, help="Replace the file if it is there."),
        click.option("--out", type=Out(), required=True, help="File to write: .png, .svg or .pdf."),
    ):
        command = decorate(command)
    return command


def need_matplotlib() -> None:
    """Raise ImportError, with what to install, where matplotlib is not."""
    if importlib.util.find_spec("matplotlib") is None:
        raise ImportError("pictures need matplotlib", name="'fastscore[plots]'")


def put(out: Path, overwrite: bool, make: Callable[[], Figure]) -> None:
    """Make a figure and write it to a file, which is checked before any work; say where it is."""
    from fastscore.output.commit import new_file
    from fastscore.report.plots.figures import save, suffix_of

    suffix = suffix_of(out)
    need_matplotlib()
    with new_file(out, overwrite) as write:
        figure = make()
        write(lambda file: save(figure, file, suffix))
    click.echo(str(out))


def read_json(path: Path, what: str) -> dict[str, Any]:
    """Return the object that a JSON file holds.

    Raises:
        ValueError: there is none, in words of ``what`` makes it.
    """
    from fastscore.data.limits import regular_file

    if not path.exists():
        raise ValueError(f"{path.parent} holds no {path.name}; {what}")
    if regular_file(path).stat().st_size > LARGEST:
        raise ValueError(f"{path} has more than {LARGEST:,} bytes, which no {path.name} has; {what}")
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError):
        raise ValueError(f"{path} is not JSON; {what}") from None
    if not isinstance(found, dict):
        raise ValueError(f"{path} holds no object of names; {what}")
    return found


def described(run: Path) -> str:
    """Return solver and evaluations of a run in words, by its run.json; its name where there is none."""
    try:
        record = read_json(run / "run.json", "")
    except ValueError:
        return run.name or str(run)
    settings = record.get("settings")
    settings = settings if isinstance(settings, dict) else {}
    solver = settings.get("solver") or settings.get("method") or str(record.get("solver", "")).split("(")[0]
    words = [shorten(solver, 30)] if solver else [run.name]
    adaptive = record.get("adaptive")
    nfe = record.get("nfe") or (adaptive.get("nfe_mean") if isinstance(adaptive, dict) else None)
    if isinstance(nfe, int | float):
        words.append(f"{nfe} evaluations" if "nfe" in record else f"{nfe:.3g} evaluations (mean)")
    return ", ".join(words)


def samples_of(run: Path, limit: int) -> NDArray[Any]:
    """Return the first samples of a run in a folder, in shards or one file: see ``as_drawn``."""
    import numpy as np

    from fastscore.output.store.runs import shards_of

    if (run / "samples.npz").is_file():
        return examples(str(run / "samples.npz"), limit)
    if not run.is_dir():
        raise ValueError(f"{run} is no folder of a run; a set of data is what --data takes")
    parts, count = [], 0
    for shard in shards_of(run)[1]:
        parts.append(shard.arrays["samples"][: limit - count])
        count += len(parts[-1])
        if count >= limit:
            break
    if not count:
        raise ValueError(f"{run} holds no samples")
    x = np.concatenate(parts)
    return x.transpose(0, 3, 1, 2) / 127.5 - 1.0 if x.dtype == np.uint8 else x


def examples(source: str, limit: int, seed: int = 0) -> NDArray[Any]:
    """Return up to ``limit`` examples of a data set by name or path, or of analytic:NAME.

    Returns: floats, as samples are: points [n, D], sequences [n, L, C], images [n, C, H, W] in -1 .. 1.
    """
    import numpy as np

    from fastscore.data.load import load

    if source.startswith("analytic:"):
        from fastscore.model.analytic import GaussianMixture, target_by_name
        from fastscore.ops.noise import NoiseKey

        target = target_by_name(source.removeprefix("analytic:"))
        if not isinstance(target, GaussianMixture):
            return target.points[:limit].numpy()
        key = NoiseKey.of(seed, range(limit))
        shape = tuple(target.means.shape[1:])
        z = key.normal(0, int(np.prod(shape))).reshape(limit, *shape)
        return target.sample(z, key.uniform(1, 1)[:, 0]).numpy()
    data = load(source, toy_size=limit)
    return data.network_range(np.arange(min(limit, len(data.x))))
