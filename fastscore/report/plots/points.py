"""Pictures of distributions: the forward process, densities on both ways, samples side by side."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from fastscore.report.plots.figures import (
    COLOURS,
    as_image,
    as_plane,
    finite,
    hide,
    histogram,
    new_figure,
    number,
    plain,
    reach,
    show,
    styled,
)

if TYPE_CHECKING:
    from matplotlib.figure import Figure

SHOWN = 4000  # points of a scatter plot
BINS = 64


@styled
def forward(states: Sequence[NDArray[Any]], times: Sequence[float], alpha: Any, sigma: Any, title: str = "") -> Figure:
    """Draw the forward process x_t = alpha x_0 + sigma z, a panel for each time.

    Args:
        states: x_t at each time: points [n, D] or sets of them [n, L, C], or images [n, C, H, W], of which 4 are shown.
        times, alpha, sigma: one number each for every panel.
        title: of the figure.
    """
    names = [
        f"{'data' if s == 0.0 else f't = {number(t)}'}\nalpha {number(a)}, sigma {number(s)}"
        for t, a, s in zip(times, alpha, sigma, strict=True)
    ]
    return panels(dict(enumerate(states)), names, title, COLOURS[0])


@styled
def compare(sets: Mapping[str, NDArray[Any]], title: str = "") -> Figure:
    """Draw sets of samples side by side, as many of each: data against the samples of an SDE against those of an ODE.

    Args:
        sets: by title: points [n, D] or [n, L, C], whose first two coordinates are shown, or images [n, C, H, W].
        title: of the figure.

    Raises:
        ValueError: none, or sets of different kinds.
    """
    kinds = {(x.ndim, x.shape[1:] if x.ndim == 4 else x.shape[-1]) for x in sets.values()}
    if len(kinds) != 1:
        shapes = ", ".join(f"{name} {x.shape[1:]}" for name, x in sets.items())
        raise ValueError(f"compare: samples must be of one kind and size: {shapes or 'none are given'}")
    few = min(len(x) for x in sets.values())
    return panels({k: x[:few] for k, x in enumerate(sets.values())}, list(sets), title or f"{few:,} of each", None)


@styled
def panels(sets: Mapping[int, NDArray[Any]], names: Sequence[str], title: str, colour: str | None) -> Figure:
    """Draw each set in a panel of its own, five in a row; points on axes of their own only where widths differ much."""
    columns = min(5, len(sets))
    rows = -(-len(sets) // columns)
    first = sets[0]
    lines = 1 + max(name.count("\n") for name in names)
    side = 2.1 * mosaic(first).shape[0] / mosaic(first).shape[1] if first.ndim == 4 else 2.25
    height = (min(side, 6.0) + 0.18 * lines + 0.1) * rows + (0.35 if title else 0.1)
    figure, axes = new_figure(max(2.15 * columns + 0.3, 2.9), height, rows, columns)
    line = first.ndim == 2 and first.shape[1] == 1
    planes = [] if first.ndim == 4 else [finite(as_plane(x)) for x in sets.values()]
    squares = shared([reach(x) for x in planes])
    for k, (axis, name) in enumerate(zip(axes.flat, names, strict=False)):
        x = sets[k]
        lost = int((~np.isfinite(x.reshape(len(x), -1)).all(axis=1)).sum())
        axis.set_title(plain(f"{name}\n{lost} of {len(x)} not finite" if lost else name))
        if first.ndim == 4:
            show(axis, mosaic(x))
            continue
        centre, half = squares[k]
        axis.set(xlim=(centre[0] - half, centre[0] + half))
        if line:
            histogram(axis, planes[k][:, 0], BINS, colour or COLOURS[0])
            axis.set(xlabel="x", ylabel="density" if k % columns == 0 else None)
            continue
        tint = colour or (COLOURS[0] if k == 0 else COLOURS[1])
        scatter(axis, planes[k], tint)
        axis.set(ylim=(centre[1] - half, centre[1] + half), aspect="equal", xlabel="x_0")
        axis.set(ylabel="x_1" if k % columns == 0 else None)
    hide(axes.reshape(-1)[len(sets) :])
    figure.suptitle(plain(title))
    return figure


def scatter(axis: Any, points: NDArray[Any], colour: str) -> Any:
    """Draw the first points, the more of them the fainter."""
    points = points[:SHOWN]
    alpha = float(np.clip(40.0 / math.sqrt(len(points) + 1), 0.15, 0.9))
    size = float(np.clip(60.0 / math.sqrt(len(points) + 1), 1.5, 14.0))
    return axis.scatter(points[:, 0], points[:, 1], s=size, alpha=alpha, color=colour, linewidths=0, rasterized=True)


def shared(squares: list[tuple[NDArray[Any], float]]) -> list[tuple[NDArray[Any], float]]:
    """Return one square for all panels where that leaves no set a dot, or each its own."""
    halves = [half for _, half in squares]
    if not halves or max(halves) > 4.0 * min(halves):
        return squares
    return [around(squares)] * len(squares)


def around(squares: list[tuple[NDArray[Any], float]]) -> tuple[NDArray[Any], float]:
    """Return the least square around some."""
    low = np.min([centre - half for centre, half in squares], axis=0)
    high = np.max([centre + half for centre, half in squares], axis=0)
    return (low + high) / 2, float((high - low).max()) / 2


def mosaic(images: NDArray[Any], most: int = 25) -> NDArray[np.float64]:
    """Return the first images [n, C, H, W] as one picture, about square, with white between."""
    shown = [as_image(x) for x in images[:most]]
    columns = math.ceil(math.sqrt(len(shown)))
    height, width = shown[0].shape[:2]
    rows = -(-len(shown) // columns)
    sheet = np.ones((rows * (height + 1) - 1, columns * (width + 1) - 1, *shown[0].shape[2:]))
    for k, image in enumerate(shown):
        top, left = (k // columns) * (height + 1), (k % columns) * (width + 1)
        sheet[top : top + height, left : left + width] = image
    return sheet


@styled
def density(
    exact: Sequence[NDArray[Any]],
    counted: Sequence[NDArray[Any]],
    squares: Sequence[tuple[NDArray[Any], float]],
    times: Sequence[float],
    title: str = "",
) -> Figure:
    """Draw the marginals of the forward process above, and the samples of the reverse process at the same times below.

    Both rows are densities in the same cells, in one colour scale: a share of the column's highest exact density.

    Args:
        exact, counted: densities in cells [G, G], first axis x_0, one of each for every time, data first.
        squares: centre [2] and half width of the region, one for every time.
        times: in the schedule's unit.
        title: of the figure.
    """
    figure, axes = new_figure(2.1 * len(times) + 1.2, 5.0, 2, len(times))
    image = None
    for k, t in enumerate(times):
        centre, half = squares[k]
        extent = (centre[0] - half, centre[0] + half, centre[1] - half, centre[1] + half)
        top = float(exact[k].max()) or 1.0
        for axis, values in zip(axes[:, k], (exact[k], counted[k]), strict=True):
            image = axis.imshow(values.T / top, origin="lower", extent=extent, vmin=0.0, vmax=1.0)
            axis.grid(False)
        axes[0, k].set_title(f"t = {number(t)}")
        axes[1, k].set(xlabel="x_0")
    axes[0, 0].set_ylabel("forward, exact →\nx_1")
    axes[1, 0].set_ylabel("← reverse, samples\nx_1")
    if image is not None:
        figure.colorbar(image, ax=axes, shrink=0.7, label="density / highest exact one at this t", extend="max")
    figure.suptitle(plain(title))
    return figure


def cells(square: tuple[NDArray[Any], float], bins: int = BINS) -> tuple[NDArray[Any], NDArray[Any]]:
    """Return the edges [bins + 1] of the cells of a square, by axis."""
    centre, half = square
    return tuple(np.linspace(c - half, c + half, bins + 1) for c in centre)  # pyright: ignore[reportReturnType]


def counted_density(points: NDArray[Any], square: tuple[NDArray[Any], float]) -> NDArray[np.float64]:
    """Return the density of points [n, 2] in the cells of a square: shares of all of them, over the cells' area."""
    points = finite(points)
    counts, x, y = np.histogram2d(points[:, 0], points[:, 1], bins=cells(square))
    return counts / (max(1, len(points)) * (x[1] - x[0]) * (y[1] - y[0]))


def exact_density(
    weights: NDArray[Any],
    means: NDArray[Any],
    stds: NDArray[Any],
    alpha: float,
    sigma: float,
    square: tuple[NDArray[Any], float],
) -> NDArray[np.float64]:
    r"""Return the mean density of x_t = alpha x_0 + sigma z in the cells of a square, in closed form.

        sum_k w_k prod_i [Phi((hi_i - alpha mu_ki) / s_k) - Phi((lo_i - alpha mu_ki) / s_k)] / area,
        s_k^2 = alpha^2 std_k^2 + sigma^2

    The integral over a cell, and not the value at its centre: components narrower than a cell, or points (std 0 at
    sigma 0), are as a histogram has them.

    Args:
        weights [K], means [K, 2], stds [K]: of the Gaussians of x_0.
    """
    import torch

    s = np.sqrt(alpha**2 * stds**2 + sigma**2).clip(1e-12)
    parts = []
    for axis, edges in enumerate(cells(square)):
        z = (edges[:, None] - alpha * means[:, axis]) / s
        mass = np.diff(torch.special.ndtr(torch.from_numpy(z)).numpy(), axis=0)
        parts.append(mass / np.diff(edges)[:, None])
    return (parts[0] * weights) @ parts[1].T
