"""Rules that space noise levels by the index of a table, and what a rule is; named_grids.py puts it on a schedule.

A rule gets how many levels it is to give, without the 0 that follows them, and the most and the least noise there is.
What these are, and what it returns, its ``counts`` says:

    time    times, from the first to that of the data
    index   indices of a table of noise levels, from the last, of the most noise, to 0
    level   noise as the codes count it: sigma / alpha, but of a rectified flow its sigma
    ratio   sigma / alpha, and flow: a rectified flow's sigma; lists of their own, whatever noise there is
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass, fields
from typing import ClassVar

import numpy as np

from fastscore.errors import short, typed
from fastscore.process.quantiles import falling_quantiles
from fastscore.process.schedule import Array, table


@dataclass(frozen=True)
class Rule(ABC):
    """A rule for n levels, the noisiest first; its parameters are positive.

    Attributes:
        counts: "time", "index", "level", "ratio" or "flow", see above.
        clean: whether the published list goes on to sigma = 0.
    """

    counts: ClassVar[str]
    clean: ClassVar[bool] = True

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            if isinstance(value, int | float) and not isinstance(value, bool) and not 0 < value < math.inf:
                raise ValueError(f"{type(self).__name__}: {field.name} = {value} must be positive")
            if isinstance(value, tuple):
                listed = table(f"{type(self).__name__}: {field.name}", value)
                if not (len(listed) and 0.0 <= listed[-1] and np.all(np.diff(listed) < 0.0) and listed[0] < math.inf):
                    raise ValueError(f"{type(self).__name__}: {field.name} = {short(value)} must fall, and be positive")

    @abstractmethod
    def __call__(self, n: int, high: float, low: float) -> Array:
        """Return about n falling numbers; a rule may have fewer or more of them, as its code has."""


@dataclass(frozen=True)
class Simple(Rule):
    """Index N - 1 - floor(i N / n) for i from 0 to n - 1."""

    counts = "index"

    def __call__(self, n: int, high: float, low: float) -> Array:
        return high - np.floor(np.arange(n) * ((high + 1.0) / n))


@dataclass(frozen=True)
class Even(Rule):
    """Even steps in time from the start to the data: on a flow its sigma before the shift, on a table not rounded."""

    counts = "time"

    def __call__(self, n: int, high: float, low: float) -> Array:
        return high + (low - high) * np.arange(n) / n


@dataclass(frozen=True)
@typed
class EvenIndices(Rule):
    """Even indices from the last to the first, which is left out if ``open_end``.

    ComfyUI and A1111 take the labels of both ends for times. On a flow with shift k the label of the least noise is
    its sigma, so the list stops at about k times that noise, as that of diffusers' flow matching does when it gets a
    number of steps only. A grid with an ``end`` of its own ends there; "even" has the shift once.

    Args:
        rounded: to whole indices. linear: levels between two indices are linear in sigma / alpha, not in its logarithm.
    """

    open_end: bool = False
    rounded: bool = False
    linear: bool = False
    counts = "index"

    def __call__(self, n: int, high: float, low: float) -> Array:
        index = np.linspace(high, low, n + self.open_end)[:n]
        return np.round(index) if self.rounded else index


@dataclass(frozen=True)
class DDIMUniform(Rule):
    """Indices 1, 1 + k, 1 + 2k .. with k = N // n, of which there may be more than n."""

    counts = "index"

    def __call__(self, n: int, high: float, low: float) -> Array:
        return np.arange(1.0, high + 1.0, max((int(high) + 1) // n, 1))[::-1]


@dataclass(frozen=True)
@typed
class Leading(Rule):
    """Indices k, 2k .. nk with k = N // (n + 1), moved by ``offset``: diffusers' multistep schedulers."""

    offset: float = 0.0
    counts = "index"

    def __post_init__(self) -> None:
        if not 0.0 <= self.offset < math.inf:
            raise ValueError(f"Leading: offset = {self.offset} must be at least 0")

    def __call__(self, n: int, high: float, low: float) -> Array:
        return np.arange(n, 0.0, -1.0) * ((int(high) + 1) // (n + 1)) + self.offset


@dataclass(frozen=True)
@typed
class Distilled(Rule):
    """n of the ``original`` indices kN/original - 1 that consistency models are distilled on, evenly rounded down."""

    original: int = 50
    counts = "index"

    def __call__(self, n: int, high: float, low: float) -> Array:
        if n > self.original:
            raise ValueError(f"steps = {n} must be at most {self.original}, the times of the distillation")
        learnt = np.arange(self.original, 0.0, -1.0) * ((int(high) + 1) // self.original) - 1.0
        return learnt[np.floor(np.linspace(0.0, self.original, n, endpoint=False)).astype(int)]


@dataclass(frozen=True)
@typed
class BetaIndices(Rule):
    """Quantiles 1 - i/n of the distribution Beta(a, b), as rounded parts of the table; repeats are left out."""

    a: float = 0.6
    b: float = 0.6
    counts = "index"

    def __call__(self, n: int, high: float, low: float) -> Array:
        part = falling_quantiles(n, self.a, self.b, to_zero=False)
        return np.unique(np.floor(part * high + 0.5))[::-1]  # SciPy has the median a rounding above one half


@dataclass(frozen=True)
class TheseIndices(Rule):
    """A list of indices of a table of 1000."""

    indices: tuple[int, ...]
    counts = "index"

    def __call__(self, n: int, high: float, low: float) -> Array:
        if high != 999.0:
            raise ValueError(f"the times are those of a table of 1000 noise levels; this one has {high + 1:g}")
        return all_of(self.indices, n)


def all_of(values: tuple[float, ...], n: int) -> Array:
    """Return a list that has no other length."""
    if n != len(values):
        raise ValueError(f"the list has {len(values)} levels before its end and no rule for {n}")
    return np.array(values, np.float64)
