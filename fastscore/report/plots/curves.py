"""Pictures of what was measured: the loss of training, error against work, quality against its floor."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from fastscore.files import atomic
from fastscore.report.plots.figures import (
    COLOURS,
    LINES,
    MARKERS,
    new_figure,
    number,
    plain,
    save,
    styled,
)

if TYPE_CHECKING:
    from matplotlib.figure import Figure

PER_COLUMN = 16  # entries of a legend


def plot_loss(csv: Path, picture: Path) -> None:
    """Draw loss.csv of a training as a PNG; see ``loss_curve``."""
    images, loss = read_loss(csv)
    with atomic(picture) as file:
        save(loss_curve(images, loss), file, ".png")


def read_loss(csv: Path) -> tuple[NDArray[Any], NDArray[Any]]:
    """Return images seen and loss from a loss.csv.

    Raises:
        ValueError: no such file, or one without a row of these columns.
    """
    import warnings

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # NumPy's of an empty file
            curve = np.genfromtxt(csv, delimiter=",", names=True, ndmin=1, encoding="utf-8")
    except (OSError, ValueError) as error:
        raise ValueError(f"{csv} is no loss.csv of a training: {' '.join(str(error).split())[:100]}") from None
    if not {"images", "loss"} <= set(curve.dtype.names or ()) or not len(curve):
        raise ValueError(f"{csv} is no loss.csv of a training: it must have rows of images,loss")
    return curve["images"], curve["loss"]


@styled
def loss_curve(images: NDArray[Any], loss: NDArray[Any], title: str = "") -> Figure:
    """Draw the loss of training over the images seen.

    The axis is logarithmic; linear around 0 if there are losses of either sign, as implicit and sliced score matching
    have: their minimum is -E|s|^2, negative.
    """
    figure, axes = new_figure(6.4, 3.6)
    axis, known = axes[0, 0], loss[np.isfinite(loss)]
    axis.plot(images, loss, lw=1, color=COLOURS[0], marker="o" if len(known) < 3 else None, ms=4)
    if np.all(known > 0.0):
        axis.set_yscale("log")
    else:
        axis.set_yscale("symlog", linthresh=float(np.median(np.abs(known))) or 1.0)
    axis.set(xlabel="training images", ylabel="loss (mean of 50 steps)", title=plain(title))
    axis.grid(True, which="both", alpha=0.3)
    return figure


@styled
def work_precision(
    studies: Mapping[str, Mapping[str, Sequence[tuple[float, float]]]], ylabel: str = "error", title: str = ""
) -> Figure:
    """Draw error against network evaluations, one panel a study, one line a solver, both axes logarithmic.

    Args:
        studies: by title, by solver: pairs (evaluations, error), positive.

    Raises:
        ValueError: nothing to draw.
    """
    if not any(studies.values()):
        raise ValueError("work_precision: no record has evaluations and an error above 0")
    names = list(dict.fromkeys(name for lines in studies.values() for name in lines))
    columns = -(-len(names) // PER_COLUMN)
    figure, axes = new_figure(5.0 * len(studies) + 1.7 * columns, 4.6, 1, len(studies))
    for axis, (study, lines) in zip(axes[0], studies.items(), strict=True):
        for name, pairs in lines.items():
            k = names.index(name)
            look = {"color": COLOURS[k % len(COLOURS)], "ls": LINES[k // len(COLOURS) % len(LINES)]}
            points = np.array(sorted(pairs))
            axis.plot(
                *points.T, marker=MARKERS[k // len(COLOURS) % len(MARKERS)], ms=4, lw=1.2, label=plain(name), **look
            )
        axis.set(xscale="log", yscale="log", xlabel="network evaluations a sample", ylabel=ylabel, title=plain(study))
        ticks = sorted({round(nfe) for pairs in lines.values() for nfe, _ in pairs})
        if 1 < len(ticks) <= 12:
            axis.set_xticks(ticks, [str(tick) for tick in ticks])
            axis.minorticks_off()
    handles = {h.get_label(): h for axis in axes[0] for h in axis.get_lines()}
    figure.legend(handles=[handles[plain(name)] for name in names], loc="outside right center", ncols=columns)
    figure.suptitle(plain(title))
    return figure


@styled
def quality(figures: Mapping[str, Mapping[str, float]], title: str = "") -> Figure:
    """Draw figures of quality over their floors, as bars; 1 is as good as data against data.

    Args:
        figures: by name: ``value``, its ``floor``, what data have against data, and ``stderr``, if known. Where there
            is no floor above 0, or a ratio that no axis holds, the name has no bar, only its value at the right.

    Raises:
        ValueError: none.
    """
    if not figures:
        raise ValueError("quality: there is no figure to draw")
    figure, axes = new_figure(7.5, 0.34 * len(figures) + 1.2)
    axis = axes[0, 0]
    entries = [{k: float(entry.get(k) or 0.0) for k in ("value", "floor", "stderr")} for entry in figures.values()]
    ratios = [e["value"] / e["floor"] if e["floor"] > 0.0 else math.nan for e in entries]
    ratios = [ratio if 1e-9 < ratio < 1e9 else math.nan for ratio in ratios]
    known = [ratio for ratio in ratios if math.isfinite(ratio)]
    low, high = min([0.5, *(0.7 * v for v in known)]), max([2.5, *(1.6 * v for v in known)])
    for k, (entry, ratio) in enumerate(zip(entries, ratios, strict=True)):
        bars, text = entry["stderr"] > 0.0, number(entry["value"])
        text += f" ± {number(entry['stderr'])}" if bars else ""
        if math.isfinite(ratio):
            text += f", floor {number(entry['floor'])}"
            spread = entry["stderr"] / entry["floor"] if bars else 0.0
            above = ratio - 2.0 * spread > 1.0
            axis.barh(
                k, ratio - low, 0.6, low, xerr=[[min(spread, ratio - low)], [spread]] if bars else None, capsize=2,
                color=COLOURS[1] if above else COLOURS[0], hatch="//" if above else None, edgecolor="white",
            )  # fmt: skip
        axis.text(1.02, k, text, transform=axis.get_yaxis_transform(), va="center", fontsize=8.0)
    axis.axvline(1.0, color="0.2", lw=1.0)
    axis.set_yticks(range(len(figures)), [plain(name) for name in figures])
    axis.set(ylim=(len(figures) - 0.4, -0.6), xscale="log", xlim=(low, high), title=plain(title))
    axis.set(xlabel="value / floor, 1 is data against data (hatched: two standard errors above)")
    ticks = [m * 10.0**e for e in range(-12, 13) for m in (1, 2, 5) if low <= m * 10.0**e <= high]
    ticks = ticks if len(ticks) <= 12 else ticks[::3]
    axis.set_xticks(ticks, [number(tick) for tick in ticks])
    axis.minorticks_off()
    axis.grid(False, axis="y")
    return figure
