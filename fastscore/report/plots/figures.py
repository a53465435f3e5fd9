"""What every picture has in common: its style, whatever the user's matplotlibrc says, and how it becomes a file."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import wraps
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, TypeVar

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Made = TypeVar("Made", bound=Callable[..., Any])
# Okabe and Ito's colours, which readers of any colour vision tell apart; its yellow is too light for lines on white.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
LINES = ("-", "--", ":", "-.")
MARKERS = ("o", "s", "^", "D", "v", "P", "X")
SUFFIXES = (".png", ".svg", ".pdf")
DPI = 100
HUGE = 1e150  # beyond which axes have no arithmetic
# Dates and versions of programs are no part of a picture: the same input gives the same bytes.
_NO_METADATA: dict[str, dict[str, Any]] = {
    ".png": {"Software": None},
    ".svg": {"Date": None, "Creator": None},
    ".pdf": {"CreationDate": None, "Creator": None, "Producer": None},
}
_STYLE = {
    "font.size": 9.0, "axes.titlesize": 9.0, "axes.labelsize": 9.0, "legend.fontsize": 8.0, "figure.titlesize": 10.0,
    "xtick.labelsize": 8.0, "ytick.labelsize": 8.0, "axes.spines.top": False, "axes.spines.right": False,
    "axes.grid": True, "grid.alpha": 0.3, "grid.linewidth": 0.6, "lines.linewidth": 1.5, "legend.frameon": False,
    "axes.axisbelow": True, "svg.hashsalt": "fastscore", "image.cmap": "viridis",
    "image.interpolation": "nearest", "savefig.dpi": DPI, "figure.dpi": DPI,
}  # fmt: skip


@contextmanager
def style() -> Iterator[None]:
    """Draw as all pictures here are drawn."""
    import matplotlib.style

    # Numbers at the ends of float64, which samples that diverged are, overflow in the arithmetic of axes.
    with matplotlib.style.context(["default", _STYLE]), warnings.catch_warnings(), np.errstate(all="ignore"):
        warnings.filterwarnings("ignore", "Glyph .* missing")  # of a title, as of a file named in Chinese: a box stands
        yield


def styled(function: Made) -> Made:
    """Make a function draw in this style."""

    @wraps(function)
    def call(*args: Any, **kwargs: Any) -> Any:
        with style():
            return function(*args, **kwargs)

    return call  # pyright: ignore[reportReturnType]


def new_figure(width: float, height: float, rows: int = 1, columns: int = 1) -> tuple[Figure, NDArray[Any]]:
    """Return a figure of so many inches and its axes [rows, columns]; no window, and nothing of pyplot's is touched."""
    from matplotlib.figure import Figure
    from matplotlib.layout_engine import ConstrainedLayoutEngine

    figure = Figure(figsize=(width, height), layout=ConstrainedLayoutEngine(w_pad=0.06, h_pad=0.06))
    return figure, figure.subplots(rows, columns, squeeze=False)


def save(figure: Figure, file: BinaryIO, suffix: str) -> None:
    """Write a figure to an open file, as what one of SUFFIXES says."""
    with style():
        figure.savefig(file, format=suffix[1:], metadata=_NO_METADATA[suffix])


def pixels(figure: Figure) -> NDArray[np.uint8]:
    """Return a figure as an image, uint8 [H, W, 3]."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    with style():
        canvas = FigureCanvasAgg(figure)
        canvas.draw()
        return np.asarray(canvas.buffer_rgba())[..., :3].copy()


def suffix_of(path: Path) -> str:
    """Return the suffix that says what to write.

    Raises:
        ValueError: another one than SUFFIXES.
    """
    suffix = path.suffix.lower()
    if suffix not in SUFFIXES:
        raise ValueError(f"{path.name}: a picture ends in {', '.join(SUFFIXES[:-1])} or {SUFFIXES[-1]}")
    return suffix


def hide(axes: NDArray[Any]) -> None:
    """Take away axes that have nothing to show."""
    for empty in axes.flat:
        empty.axis("off")


def bare(axes: Axes) -> None:
    """Take ticks, grid and frame from axes that show an image."""
    axes.set_xticks([])
    axes.set_yticks([])
    axes.grid(False)
    for spine in axes.spines.values():
        spine.set_visible(False)


def plain(text: str) -> str:
    """Return a text whose dollar signs, of a file's name say, begin no formula."""
    return text.replace("$", r"\$")


def number(value: float) -> str:
    """Return a number in few characters: 0.25, 1, 80, 1e-05."""
    return f"{value:.3g}" if math.isfinite(value) else {math.inf: "∞", -math.inf: "-∞"}.get(value, "NaN")


def spread_over(count: int, wanted: int) -> list[int]:
    """Return up to ``wanted`` numbers of 0 .. count - 1, evenly apart, with both ends."""
    return sorted(set(np.linspace(0, count - 1, min(count, wanted)).round().astype(int).tolist()))


def finite(points: NDArray[Any]) -> NDArray[Any]:
    """Return the rows [n, D] that are finite numbers."""
    return points[np.isfinite(points).all(axis=1)]


def reach(points: NDArray[Any], share: float = 0.999) -> tuple[NDArray[Any], float]:
    """Return centre [2] and half width of a square around ``share`` of the points [n, 2], with a margin."""
    if not len(points):
        return np.zeros(2), 1.0
    low, high = np.quantile(np.clip(points, -HUGE, HUGE), [(1 - share) / 2, (1 + share) / 2], axis=0)
    centre = (low + high) / 2
    return centre, max(0.54 * float((high - low).max()), 1e-6 * float(np.abs(centre).max())) or 1.0


def histogram(axis: Axes, values: NDArray[Any], bins: int, colour: str, across: bool = False) -> None:
    """Draw the density of those values [n] that are finite numbers."""
    values = values[np.isfinite(values)]
    if len(values):
        centre, half = reach(np.stack([values, values], 1), 1.0)
        way = "horizontal" if across else "vertical"
        span = (centre[0] - half, centre[0] + half)
        axis.hist(np.clip(values, *span), bins, range=span, density=True, color=colour, orientation=way)


def as_plane(points: NDArray[Any]) -> NDArray[np.float64]:
    """Return the first two coordinates [n, 2] of points [n, D] and point sets [n, L, C]; of one coordinate, and 0.

    A sequence of numbers, C = 1, is a point of L coordinates.
    """
    points = points[..., 0] if points.ndim == 3 and points.shape[-1] == 1 else points
    flat = np.asarray(points, np.float64).reshape(-1, points.shape[-1])
    return flat[:, :2] if flat.shape[1] > 1 else np.concatenate([flat, np.zeros_like(flat)], 1)


def as_image(image: NDArray[Any]) -> NDArray[np.float64]:
    """Return a picture in 0 .. 1, [H, W] or [H, W, 3], of channels first [C, H, W]: black at -1, white at 1.

    What is beyond is shown in a range of its own, symmetric about grey, so that noise of any size has its shape; where
    there are neither 1 nor 3 channels, the first one or three stand for all; what is no number is black.
    """
    x = np.asarray(image, np.float64)
    x = x[:3] if len(x) >= 3 else x[:1]
    known = np.abs(x[np.isfinite(x)])
    scale = max(1.0, float(np.quantile(known, 0.98))) if known.size else 1.0
    x = np.where(np.isfinite(x), np.clip(x / scale, -1.0, 1.0), -1.0) / 2.0 + 0.5
    return x[0] if len(x) == 1 else x.transpose(1, 2, 0)


def show(axes: Axes, picture: NDArray[Any]) -> None:
    """Show a picture in 0 .. 1, grey or in colours."""
    axes.imshow(picture, cmap="gray", vmin=0.0, vmax=1.0)
    bare(axes)
