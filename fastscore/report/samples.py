"""Samples and their way from noise as pictures and charts: images as sheets, points as clouds."""

from __future__ import annotations

import io
import math
from collections.abc import Callable, Sequence
from itertools import combinations
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fastscore.output.images import contact_sheet, save_png
from fastscore.process.schedule import Schedule
from fastscore.report.chart import number
from fastscore.report.page import Chart, Frames, Part, Picture

IMAGES, POINTS = 64, 2000  # that are shown
FRAMES = 61  # of a slider
SIDE, WIDEST = 280, 700  # pixels of a cloud, and of a sheet of small images


def sample_parts(samples: NDArray[Any], what: str) -> list[Part]:
    """Return pictures of samples: a sheet of uint8 images [n, H, W, C], else charts of points [n, ..].

    Of points in one dimension a density, in two a scatter, in more the pairs of the first three coordinates.

    Args:
        what: whose they are, for the texts.
    """
    if not len(samples):
        return []
    if samples.dtype == np.uint8 and samples.ndim == 4:
        shown = samples[:IMAGES]
        text = f"Line by line, in the order of their ids: {_first(len(shown), len(samples))} of {what}."
        side = math.ceil(math.sqrt(len(shown))) * max(shown.shape[1:3])
        return [Picture(_png(contact_sheet(_grey_or_rgb(shown), scale=max(1, min(4, WIDEST // side)))), text)]
    points = samples.reshape(len(samples), -1)[:POINTS].astype(np.float64)
    some = _first(len(points), len(samples))
    if points.shape[1] == 1:
        seen = points[np.isfinite(points)]
        count, edges = np.histogram(seen, bins=min(80, 10 + len(seen) // 20), density=len(seen) > 0)
        density = {"density": ((edges[1:] + edges[:-1]) / 2.0, count)}
        return [Chart(density, "x", "density", text=f"Histogram of {some} of {what}.")]
    pairs = list(combinations(range(min(3, points.shape[1])), 2))
    more = "" if points.shape[1] < 4 else f" There are {points.shape[1]} coordinates; the first three are shown."
    return [
        Chart(
            {"samples": (points[:, i], points[:, j])},
            f"x{i}",
            f"x{j}",
            text=f"Coordinates {i} and {j} of {some} of {what}.{more}",
            dots=["samples"],
            square=True,
        )
        for i, j in pairs
    ]


def way_parts(
    times: NDArray[Any], states: NDArray[Any], x0: NDArray[Any] | None, schedule: Schedule | None
) -> list[Part]:
    """Return the slider through a trajectory, and how much each step changed.

    States are shown divided by sqrt(alpha^2 + sigma^2), which is about the size that they have: 1 in a variance
    preserving schedule, up to sigma where alpha = 1.

    Args:
        times: [K + 1], or of an adaptive solver [K + 1, n]; states: [K + 1, n, *shape], NaN where times are.
        x0: estimates [K, n, *shape], NaN where there is none; or None.
        schedule: of the run, for the noise levels; None if nobody knows it.
    """
    if not states.shape[1] or len(states) < 2:
        return []
    steps = len(states) - 1
    chosen = np.unique(np.linspace(0, steps, min(FRAMES, steps + 1)).round().astype(int)).tolist()
    images = states.ndim == 5
    n = min(states.shape[1], max(1, min(9, (192 // max(states.shape[3:])) ** 2)) if images else POINTS)
    level = np.asarray(times if times.ndim == 1 else times[:, :n], np.float64)
    scale, sigma = _levels(schedule, level)

    def state(k: int) -> NDArray[Any]:
        """Return x after k steps, or of a sample of its own steps its last one, in units of its size."""
        if level.ndim == 1:
            return np.asarray(states[k, :n], np.float64) / scale[k]
        at = np.minimum(k, np.isfinite(level).sum(0) - 1), np.arange(n)
        return np.asarray(states[at], np.float64) / scale[at].reshape(n, *[1] * (states.ndim - 2))

    draw = _sheet if images else _cloud_of(np.concatenate([state(0), state(steps)]))
    frames, labels = list[bytes](), list[str]()
    for k in chosen:
        panels = [draw(state(k))]
        if x0 is not None:
            panels.append(draw(np.asarray(states[-1, :n] if k == steps else x0[k, :n])))
        frames.append(_png(_beside(panels)))
        labels.append(_label(k, steps, level, sigma))
    left = f"the states x_t of {_first(n, states.shape[1])}" + (
        "" if schedule is None else ", over sqrt(alpha² + sigma²)"
    )
    text = (
        f"Left: {left}; right: the estimate of x_0 at that time." if x0 is not None else f"{left[0].upper()}{left[1:]}."
    )
    if level.ndim == 2:
        text += " Each sample has its own steps; one that has ended stays."
    if len(chosen) <= steps:
        text += f" {len(chosen)} of {steps + 1} states are shown."
    return [Frames(frames, labels, f"The way from noise to samples. {text}"), _changes(states, x0, n)]


def step_chart(times: NDArray[Any], most: int = 8) -> Chart:
    """Return the times that the first samples of an adaptive solver stepped to, of times [K + 1, n]."""
    number = np.arange(len(times))
    shown = {f"sample {k}": (number, np.asarray(times[:, k], np.float64)) for k in range(min(most, times.shape[1]))}
    taken = np.isfinite(times).sum(0) - 1
    text = (
        f"Times that the first {len(shown)} samples stepped to: each has its own steps, {taken.min()} to {taken.max()} "
        f"of them, {np.median(taken):.0f} in the median of {times.shape[1]:,}."
    )
    return Chart(shown, "accepted step", "t", text=text)


def _changes(states: NDArray[Any], x0: NDArray[Any] | None, n: int) -> Chart:
    """Return the chart of the root mean square change of a step, a step at a time: memory stays flat."""
    n = max(1, min(n, 64, (1 << 20) // max(1, math.prod(states.shape[2:]))))
    series = {"x": np.array([_rms(states[k + 1, :n], states[k, :n]) for k in range(len(states) - 1)])}
    if x0 is not None and len(x0) > 1:
        series["estimate of x_0"] = np.array(
            [_rms(x0[k, :n], x0[k - 1, :n]) if k else math.nan for k in range(len(x0))]
        )
    number = np.arange(1, len(states))
    text = f"How much each step changed: root mean square over {_first(n, states.shape[1])} and their elements."
    positive = [y[np.isfinite(y) & (y > 0.0)] for y in series.values()]
    wide = all(len(y) for y in positive) and max(float(y.max() / y.min()) for y in positive) > 30.0
    return Chart({k: (number, y) for k, y in series.items()}, "step", "rms change", log_y=wide, text=text)


def _rms(a: NDArray[Any], b: NDArray[Any]) -> float:
    change = np.asarray(a, np.float64) - b
    known = np.isfinite(change)
    return float(np.sqrt(np.square(change[known]).mean())) if known.any() else math.nan


def _levels(schedule: Schedule | None, times: NDArray[np.float64]) -> tuple[NDArray[Any], NDArray[Any] | None]:
    """Return sqrt(alpha^2 + sigma^2) and sigma at times; 1 and None if nobody knows the schedule."""
    if schedule is None:
        return np.ones_like(times), None
    known = np.where(np.isfinite(times), times, schedule.T)
    with np.errstate(all="ignore"):
        alpha, sigma = (np.broadcast_to(part(known), times.shape) for part in (schedule.alpha, schedule.sigma))
        return np.maximum(np.nan_to_num(np.hypot(alpha, sigma), nan=1.0), 1e-12), np.where(
            times == known, sigma, math.nan
        )


def _label(k: int, steps: int, times: NDArray[np.float64], sigma: NDArray[Any] | None) -> str:
    if times.ndim == 1:
        known = {"t": times[k], "sigma": math.nan if sigma is None else sigma[k]}
        told = [f"{name} = {number(float(v))}" for name, v in known.items() if np.isfinite(v)]
        return f"{f'After step {k} of {steps}' if k else 'Start'}: {', '.join(told)}"
    now = times[k][np.isfinite(times[k])]
    if not len(now):
        return f"After {k} of at most {steps} steps of each sample: all have ended"
    low, high = number(float(now.min())), number(float(now.max()))
    return f"After {k} of at most {steps} steps of each sample: t = {low} .. {high}"


def _first(shown: int, there: int) -> str:
    if shown < there:
        return f"the first {f'{shown:,} ' if shown > 1 else ''}of {there:,} samples"
    return f"the {there:,} samples" if there > 1 else "the one sample"


def _png(image: NDArray[np.uint8]) -> bytes:
    save_png(file := io.BytesIO(), image)
    return file.getvalue()


def _grey_or_rgb(images: NDArray[np.uint8]) -> NDArray[np.uint8]:
    return images if images.shape[-1] in (1, 3) else images[..., :1]


def _sheet(x: NDArray[Any]) -> NDArray[np.uint8]:
    """Return images [n, C, H, W] in -1 .. 1 on a sheet of up to 3 x 3; what is not finite is grey."""
    small = np.clip(127.5 * (np.nan_to_num(x.astype(np.float64), nan=0.0) + 1.0), 0.0, 255.0).round().astype(np.uint8)
    return contact_sheet(_grey_or_rgb(small.transpose(0, 2, 3, 1)), scale=max(1, 90 // max(small.shape[2:])))


def _cloud_of(ends: NDArray[Any]) -> Callable[[NDArray[Any]], NDArray[np.uint8]]:
    """Return what draws points [n, ..] as a picture, to the scale of those at both ends of the way."""
    seen = np.abs(ends.reshape(len(ends), -1)[:, :2])
    seen = seen[np.isfinite(seen)]
    reach = 1.15 * float(np.quantile(seen, 0.99)) if len(seen) else 1.0
    return lambda x: _cloud(x.reshape(len(x), -1)[:, :2], reach or 1.0)


def _cloud(points: NDArray[Any], reach: float) -> NDArray[np.uint8]:
    """Draw points within -reach .. reach, uint8 [SIDE, SIDE, 1]; of one coordinate, one line below the other."""
    x = points[:, 0]
    y = points[:, 1] if points.shape[1] > 1 else reach * (1.0 - 2.0 * (np.arange(len(x)) + 0.5) / len(x))
    seen = np.isfinite(x) & np.isfinite(y) & (np.abs(x) < reach) & (np.abs(y) < reach)
    column = ((x[seen] / reach + 1.0) * 0.5 * SIDE).astype(int)
    row = ((1.0 - y[seen] / reach) * 0.5 * SIDE).astype(int)
    ink = np.zeros((SIDE + 1, SIDE + 1))
    for down, right in ((0, 0), (0, 1), (1, 0), (1, 1)):
        np.add.at(ink, (np.minimum(row + down, SIDE), np.minimum(column + right, SIDE)), 1.0)
    grey = 255.0 * np.exp(-ink[:SIDE, :SIDE] * (0.9 if len(points) < 500 else 0.45))
    grey[[0, -1]], grey[:, [0, -1]] = np.minimum(grey[[0, -1]], 190.0), np.minimum(grey[:, [0, -1]], 190.0)
    return grey.astype(np.uint8)[:, :, None]


def _beside(panels: Sequence[NDArray[np.uint8]]) -> NDArray[np.uint8]:
    gap = np.full((panels[0].shape[0], 10, panels[0].shape[2]), 255, np.uint8)
    parts = [part for panel in panels for part in (gap, panel)][1:]
    return np.concatenate(parts, axis=1)
