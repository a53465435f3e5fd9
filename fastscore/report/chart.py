"""Charts as geometry: where the lines, ticks and marks of a chart lie, for a page to draw as SVG.

Nothing here draws; the numbers are in units of a view box of WIDTH by HEIGHT, y downwards.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from fastscore.errors import typed

WIDTH, HEIGHT = 420, 270
LEFT, RIGHT, TOP, BOTTOM = 58, 412, 10, 226
LARGEST = 1e300  # a span of two such numbers is still finite
_SUPERSCRIPT = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")


@dataclass(frozen=True)
@typed
class Chart:
    """Lines or dots over two axes.

    Attributes:
        series: for each name (x, y), two sequences of equal length. Where a value is not finite, or not positive on a
            logarithmic axis, the line has a gap.
        x_label, y_label: of the axes, with their unit.
        log_x, log_y: whether an axis is logarithmic.
        text: what the chart shows, for everyone, and for those who do not see it.
        dots: names of the series drawn as dots; the others are lines.
        marks: x values marked on the axis, such as the knots of a time grid.
        square: whether both axes have one scale, as a map of points needs.

    Raises:
        ValueError: no text, or x and y of a series that are no sequences of numbers of equal length.
    """

    series: Mapping[str, tuple[ArrayLike, ArrayLike]]
    x_label: str
    y_label: str
    log_x: bool = False
    log_y: bool = False
    text: str = ""
    dots: Collection[str] = ()
    marks: Sequence[float] | NDArray[Any] = ()
    square: bool = False

    def __post_init__(self) -> None:
        if not self.text.strip():
            raise ValueError("Chart: text is empty; say what the chart shows, for those who do not see it")
        if self.square and (self.log_x or self.log_y):
            raise ValueError("Chart: square = True needs two linear axes; leave log_x and log_y out")
        for name, (x, y) in self.series.items():
            if np.ndim(x) != 1 or np.shape(x) != np.shape(y):
                raise ValueError(
                    f"Chart: series {name!r} has x of shape {np.shape(x)} and y of {np.shape(y)}; "
                    "give two sequences of equal length"
                )


@dataclass(frozen=True)
class Line:
    """A series as an SVG path, and how it is drawn: "line", "dots", or "fine dots" where there are many."""

    name: str
    path: str
    kind: str


@dataclass(frozen=True)
class Drawing:
    """A chart laid out: lines, ticks as (position, label), the path of the marks; ``empty`` if nothing is finite."""

    lines: list[Line]
    x_ticks: list[tuple[float, str]]
    y_ticks: list[tuple[float, str]]
    marks: str
    empty: bool


def lay_out(chart: Chart) -> Drawing:
    """Return where everything of a chart lies."""
    known = {name: (_axis(x, chart.log_x), _axis(y, chart.log_y)) for name, (x, y) in chart.series.items()}
    seen = {name: np.isfinite(x) & np.isfinite(y) for name, (x, y) in known.items()}
    xs = np.concatenate([x[seen[name]] for name, (x, _) in known.items()] or [np.empty(0)])
    ys = np.concatenate([y[seen[name]] for name, (_, y) in known.items()] or [np.empty(0)])
    if not len(xs):
        return Drawing([Line(name, "", "line") for name in known], [], [], "", True)
    marks = _axis(chart.marks, chart.log_x)
    x_span, y_span = _span(xs), _span(ys)
    if chart.square:
        x_span, y_span = _squared(x_span, y_span)
    lines = []
    for name, (x, y) in known.items():
        u, v = _place(x, x_span, LEFT, RIGHT), _place(y, y_span, BOTTOM, TOP)
        if name in chart.dots:
            lines.append(Line(name, _dots(u, v, seen[name]), "dots" if seen[name].sum() < 300 else "fine dots"))
        else:
            lines.append(Line(name, _path(u, v, seen[name]), "line"))
    at = _place(marks, x_span, LEFT, RIGHT)
    inside = sorted({f"{u:.1f}" for u in at[np.isfinite(at)] if LEFT - 0.5 <= u <= RIGHT + 0.5}, key=float)
    x_ticks = [(float(_place(v, x_span, LEFT, RIGHT)), name) for v, name in _ticks(x_span, chart.log_x)]
    y_ticks = [(float(_place(v, y_span, BOTTOM, TOP)), name) for v, name in _ticks(y_span, chart.log_y)]
    return Drawing(lines, x_ticks, y_ticks, "".join(f"M{u} {BOTTOM}v-7" for u in inside), False)


def _axis(values: Any, log: bool) -> NDArray[np.float64]:
    """Return values as they lie along an axis: their log10 on a logarithmic one, NaN where they have no place."""
    v = np.asarray(values, np.float64)
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.where(v > 0.0, np.log10(v), math.nan) if log else np.where(np.abs(v) < LARGEST, v, math.nan)


def _span(values: NDArray[np.float64]) -> tuple[float, float]:
    """Return the ends of an axis for finite values, a little apart even where all are equal."""
    low, high = float(values.min()), float(values.max())
    size = max(abs(low), abs(high))
    if high - low <= 1e-6 * size or high == low:
        reach = 0.1 * size or 1.0
        return low - reach, high + reach
    return low - 0.03 * (high - low), high + 0.03 * (high - low)


def _squared(x: tuple[float, float], y: tuple[float, float]) -> tuple[tuple[float, float], tuple[float, float]]:
    """Return two spans, the shorter one widened to the same units a length as the other."""
    unit = max((x[1] - x[0]) / (RIGHT - LEFT), (y[1] - y[0]) / (BOTTOM - TOP)) / 2.0
    middle_x, middle_y = (x[0] + x[1]) / 2.0, (y[0] + y[1]) / 2.0
    reach_x, reach_y = unit * (RIGHT - LEFT), unit * (BOTTOM - TOP)
    return (middle_x - reach_x, middle_x + reach_x), (middle_y - reach_y, middle_y + reach_y)


def _place(values: Any, span: tuple[float, float], start: float, end: float) -> Any:
    return start + (values - span[0]) / (span[1] - span[0]) * (end - start)


def _dots(u: NDArray[np.float64], v: NDArray[np.float64], seen: NDArray[np.bool_]) -> str:
    return "".join(f"M{a:.1f} {b:.1f}h0" for a, b in zip(u[seen].tolist(), v[seen].tolist(), strict=True))


def _path(u: NDArray[np.float64], v: NDArray[np.float64], seen: NDArray[np.bool_]) -> str:
    """Return the path through the points that are seen, broken where one is not; a lone point is a dot."""
    at = np.flatnonzero(seen)
    runs = np.split(at, np.flatnonzero(np.diff(at) > 1) + 1) if len(at) else []
    text = ""
    for run in runs:
        run = _thinned(run, v)
        points = [f"{a:.1f} {b:.1f}" for a, b in zip(u[run].tolist(), v[run].tolist(), strict=True)]
        text += "M" + "L".join(points) + ("h0" if len(points) == 1 else "")
    return text


def _thinned(run: NDArray[np.int64], v: NDArray[np.float64], buckets: int = 400) -> NDArray[np.int64]:
    """Return the ends of a long run, and the lowest and highest point of each of its parts: it looks the same."""
    if len(run) <= 2 * buckets:
        return run
    kept = {int(run[0]), int(run[-1])}
    for part in np.array_split(run, buckets):
        kept |= {int(part[v[part].argmin()]), int(part[v[part].argmax()])}
    return np.array(sorted(kept))


def _ticks(span: tuple[float, float], log: bool) -> list[tuple[float, str]]:
    """Return the values of an axis that have a label, as they lie along it, and the labels."""
    low, high = span
    if log and high - low > 1.2:
        step = max(1, math.ceil((high - low) / 6.0))
        return [(float(k), _power(k)) for k in range(math.ceil(low), math.floor(high) + 1) if k % step == 0]
    if log and high - low > 0.3 and -300 < low and high < 300:
        values = [m * 10.0**k for k in range(math.floor(low), math.ceil(high) + 1) for m in (1, 2, 5)]
        return [(math.log10(v), number(v)) for v in values if low <= math.log10(v) <= high]
    rough = (high - low) / 6.0
    size = 10.0 ** math.floor(math.log10(rough))
    step = next((m * size for m in (1.0, 2.0, 5.0) if rough <= m * size), 10.0 * size)
    values = [k * step for k in range(math.ceil(low / step), math.floor(high / step) + 1)]
    return [(v, number(10.0**v if log else v, 7)) for v in values]


def _power(k: int) -> str:
    return f"{10.0**k:g}" if -3 <= k <= 3 else f"10{k}".replace(str(k), "", 1) + str(k).translate(_SUPERSCRIPT)


def number(value: float, digits: int = 4) -> str:
    """Return a number as people write it: 0.04, 1234, 1.2e6; never 1.2e+06 or -0."""
    text = f"{value + 0.0:.{digits}g}"
    if "e" not in text:
        return text
    if 1e3 <= abs(value) < 1e6:
        return f"{value:.0f}"
    mantissa, exponent = text.split("e")
    return f"{mantissa}e{int(exponent)}"
