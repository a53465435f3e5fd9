"""Pictures of samples on their way from noise to data, and of Langevin chains."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from fastscore.report.plots.figures import (
    COLOURS,
    as_image,
    as_plane,
    bare,
    finite,
    histogram,
    new_figure,
    number,
    plain,
    reach,
    show,
    spread_over,
    styled,
)
from fastscore.report.plots.points import panels, scatter

if TYPE_CHECKING:
    from matplotlib.figure import Figure

LINES_SHOWN = 100
PANELS = 10


def held(states: NDArray[Any]) -> NDArray[Any]:
    """Return states [S, n, ..] with the last one of a sample that took fewer steps in place of the NaN after it."""
    flat = states.reshape(*states.shape[:2], -1)
    empty = np.isnan(flat).all(axis=2)
    rows = np.where(empty, 0, np.arange(len(states))[:, None])
    at = np.maximum.accumulate(rows, axis=0)
    return states[at, np.arange(states.shape[1])]


def labels_of(times: NDArray[Any]) -> list[str]:
    """Return the words over each state: its time, or the range of times of samples that have their own."""
    if times.ndim == 1:
        return [f"t = {number(t)}" for t in times]
    words = []
    for row in times:
        known = row[np.isfinite(row)]
        low, high = (number(known.min()), number(known.max())) if known.size else ("-∞", "-∞")
        words.append(f"t = {low}" if low == high else f"t in {low} .. {high}")
    return words


@styled
def image_strip(
    states: NDArray[Any], x0: NDArray[Any] | None, names: Sequence[str], title: str = "", samples: int = 2
) -> Figure:
    """Draw images on their way: for each sample a row of x_t, and one of the estimate of x_0 where there is one.

    Args:
        states: [S, n, C, H, W], of a sample that ended early NaN. x0: [S or fewer, n, C, H, W], of the first of them.
        names: over each column.
        samples: how many of the n are shown.
    """
    states = held(states)
    samples, each = min(samples, states.shape[1]), 1 if x0 is None else 2
    figure, axes = new_figure(1.15 * len(states) + 0.6, 1.15 * samples * each + 0.6, samples * each, len(states))
    for row, line in enumerate(axes):
        sample, estimate = divmod(row, each)
        for k, axis in enumerate(line):
            source = x0 if estimate else states
            assert source is not None
            if k < len(source) and not np.isnan(source[k, sample]).all():
                show(axis, as_image(source[k, sample]))
            else:
                bare(axis)
        line[0].set_ylabel("estimate of x_0" if estimate else "x_t")
    for axis, name in zip(axes[0], names, strict=True):
        axis.set_title(name, fontsize=8.0)
    figure.suptitle(plain(title))
    return figure


@styled
def point_panels(states: NDArray[Any], names: Sequence[str], title: str = "") -> Figure:
    """Draw the sampling process of points [S, n, D] or [S, n, L, C] as panels, 2 x 5 of ten states."""
    return panels(dict(enumerate(held(states))), names, title, COLOURS[0])


@styled
def paths_over_time(states: NDArray[Any], times: NDArray[Any], title: str = "") -> Figure:
    """Draw the paths of samples: of one coordinate over t, with where they end at the right; of more, in the plane.

    Args:
        states: [S, n, D]. times: [S], or [S, n] where each sample has its own, NaN after its last.
    """
    n, D = states.shape[1], states.shape[-1]
    shown = min(n, LINES_SHOWN)
    if D > 1:
        plane = states.reshape(len(states), n, -1)[..., :2]
        figure, axes = new_figure(6.0, 5.6)
        axis = axes[0, 0]
        for k in range(shown):
            axis.plot(*plane[:, k].T, color="0.6", lw=0.6, alpha=0.8)
        ends = held(plane)
        axis.scatter(*ends[0, :shown].T, s=14, color=COLOURS[1], label=f"first state, {labels_of(times)[0]}", zorder=3)
        axis.scatter(*ends[-1, :shown].T, s=14, color=COLOURS[0], label="last state", zorder=4)
        axis.set(xlabel="x_0", ylabel="x_1", aspect="equal", title=plain(title))
        figure.legend(loc="outside lower center", ncols=2)
        return figure
    figure, axes = new_figure(8.0, 4.0, 1, 2)
    left, right = axes[0]
    left.get_gridspec().set_width_ratios([4, 1])
    for k in range(shown):
        t = times if times.ndim == 1 else times[:, k]
        left.plot(t, states[:, k, 0], color=COLOURS[k % 6], lw=0.8, alpha=0.6)
    left.invert_xaxis()
    left.set(xlabel="t, noise on the left", ylabel="x_t", title=plain(title))
    histogram(right, held(states)[-1, :, 0], min(40, 4 + 2 * math.isqrt(n)), COLOURS[0], across=True)
    right.set(title=f"last states of {n}", xlabel="density")
    right.sharey(left)
    return figure


@styled
def chains(
    states: NDArray[Any], acceptance: NDArray[Any] | None, first: int, thin: int, title: str = "", shown: int = 4
) -> Figure:
    """Draw Langevin chains: in the plane over the density of all kept states, and coordinate by coordinate over steps.

    Args:
        states: kept states [n, K, *shape], of points or images.
        acceptance: share of the proposals that each chain took [n], or None.
        first, thin: steps before the first kept state, and from one to the next.
    """
    n, kept = states.shape[:2]
    if states.ndim == 5:
        chosen = spread_over(kept, 8)
        steps = [f"step {first + thin * k}" for k in chosen]
        return image_strip(states[:, chosen].swapaxes(0, 1), None, steps, title, shown)
    shown = min(n, shown)
    coordinates = states.reshape(n, kept, -1)
    D = coordinates.shape[-1]
    figure, axes = new_figure(9.5, 4.2, 1, 2)
    left, right = axes[0]
    if D > 1:
        everything = finite(as_plane(states.reshape(n * kept, *states.shape[2:])))
        centre, half = reach(everything)
        scatter(left, everything[:: max(1, len(everything) // 4000)], "0.6")
        for k in range(shown):
            left.plot(*coordinates[k, :, :2].T, color=COLOURS[k], lw=0.8)
        left.set(xlim=(centre[0] - half, centre[0] + half), ylim=(centre[1] - half, centre[1] + half))
        left.set(xlabel="x_0", ylabel="x_1", aspect="equal", title=f"{n} chains in grey, {shown} of them as paths")
    else:
        histogram(left, coordinates.reshape(-1), 60, COLOURS[0])
        left.set(xlabel="x", ylabel="density", title=f"all kept states of {n} chains")
    steps = first + thin * np.arange(kept)
    for k in range(shown):
        taken = "" if acceptance is None or math.isnan(acceptance[k]) else f", {acceptance[k]:.0%} taken"
        right.plot(steps, coordinates[k, :, 0], color=COLOURS[k], lw=0.8, label=f"chain {k}{taken}")
    right.set(xlabel="step", ylabel="x_0", title="first coordinate")
    figure.legend(loc="outside lower center", ncols=shown)
    figure.suptitle(plain(title))
    return figure
