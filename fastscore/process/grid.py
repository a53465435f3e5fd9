"""Time grids: the knots between which a solver steps, noisiest first.

A grid of N steps has N + 1 knots. With ``clean=True`` the last one is the schedule's clean end
(sigma = 0), and the spacing rule places the other N between start and end.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import TypeVar

import numpy as np

from fastscore.process.names import SPACINGS
from fastscore.process.schedule import Array, Schedule, lam, t_of_lam


@dataclass(frozen=True)
class Grid:
    """A spacing rule with its number of steps.

    Attributes:
        spacing: one of SPACINGS; the functions below describe them.
        steps: N >= 1.
        start, end: first and last time of the rule; the schedule's T and t_end if left out.
        clean: whether the last step goes to sigma = 0.
        rho: exponent of "karras".

    Raises:
        ValueError: fewer than one step, an unknown rule, or start and end out of order.
    """

    spacing: str
    steps: int
    start: float | None = None
    end: float | None = None
    clean: bool = False
    rho: float = 7.0

    def __post_init__(self) -> None:
        if self.spacing not in SPACINGS:
            raise ValueError(f"grid spacing = {self.spacing!r} must be one of {', '.join(SPACINGS)}")
        if not 1 <= self.steps < 1 << 20:
            raise ValueError(f"steps = {self.steps} must lie in 1 .. {(1 << 20) - 1}")
        if not 0.0 < self.rho < math.inf:
            raise ValueError(f"rho = {self.rho} must be positive")

    def __call__(self, schedule: Schedule) -> Array:
        """Return the knots on ``schedule``, float64 [steps + 1], decreasing."""
        start = schedule.T if self.start is None else self.start
        end = schedule.t_end if self.end is None else self.end
        if not schedule.t_clean <= end <= start <= schedule.T or (end == start and self.steps + (not self.clean) > 1):
            raise ValueError(
                f"grid from t = {start} to {end} must decrease inside "
                f"{type(schedule).__name__}'s times {schedule.T} .. {schedule.t_clean}"
            )
        if self.spacing in ("leading", "trailing", "linspace"):
            knots = self._indices(schedule)
        else:
            n = self.steps if self.clean else self.steps + 1
            knots = self._spaced(schedule, start, end, n)
            knots[0], knots[-1] = start, end if n > 1 else start
        if self.clean:
            knots = np.append(knots, schedule.t_clean)
        if np.any(np.diff(knots) >= 0.0):
            raise ValueError(
                f"{self.spacing} grid of {self.steps} steps repeats a time; use fewer steps or another spacing"
            )
        return knots

    def _spaced(self, schedule: Schedule, start: float, end: float, n: int) -> Array:
        if self.spacing == "uniform":
            return np.linspace(start, end, n)
        if self.spacing == "quadratic":
            origin = schedule.t_clean if math.isfinite(schedule.t_clean) else 0.0
            return origin + np.linspace(math.sqrt(start - origin), math.sqrt(end - origin), n) ** 2
        ends = lam(schedule, np.array([start, end]))
        if not np.all(np.isfinite(ends)):
            raise ValueError(
                f"{self.spacing} grid: lam is infinite at t = {start if not np.isfinite(ends[0]) else end}; "
                "move start (or end) off the end of the schedule"
            )
        if self.spacing == "logsnr":
            values = np.linspace(ends[0], ends[1], n)
        else:
            high, low = np.exp(-ends / self.rho)
            values = -self.rho * np.log(np.linspace(high, low, n))
        return t_of_lam(schedule, np.clip(values, *ends))

    def _indices(self, schedule: Schedule) -> Array:
        n = int(schedule.T) + 1
        if schedule.t_clean != -1.0:
            raise ValueError(f"{self.spacing} grids index a discrete table; {type(schedule).__name__} is continuous")
        if not self.clean or self.start is not None or self.end is not None:
            raise ValueError(
                f"a {self.spacing} grid covers a whole table down to sigma = 0: no start, end or clean=False"
            )
        if self.steps > n:
            raise ValueError(f"steps = {self.steps} must lie in 1 .. {n}, the length of the table")
        if self.spacing == "leading":
            return (np.arange(self.steps)[::-1] * (n // self.steps)).astype(np.float64)
        if self.spacing == "trailing":
            return (np.round(np.arange(self.steps, 0, -1) * (n / self.steps)) - 1.0).astype(np.float64)
        return np.round(np.linspace(n - 1.0, 0.0, self.steps)).astype(np.float64)


@dataclass(frozen=True)
class Times:
    """Explicit knots, decreasing; the last may be the schedule's clean end."""

    t: tuple[float, ...]

    def __call__(self, schedule: Schedule) -> Array:
        """Return the knots, checked against the schedule."""
        knots = np.asarray(self.t, np.float64)
        if knots.ndim != 1 or len(knots) < 2 or np.any(np.isnan(knots)) or not np.all(np.diff(knots) < 0.0):
            raise ValueError("times must be at least two decreasing numbers")
        if knots[0] > schedule.T or knots[-1] < schedule.t_clean:
            raise ValueError(
                f"times {knots[0]:.6g} .. {knots[-1]:.6g} leave {type(schedule).__name__}'s "
                f"range {schedule.T:.6g} .. {schedule.t_clean:.6g}"
            )
        return knots


@dataclass(frozen=True)
class Span:
    """From where to where an adaptive solver integrates; it chooses the times in between.

    Attributes:
        start, end: the schedule's T and t_end if left out.
        clean: whether the estimate of x0 at the end is returned, or the state.
    """

    start: float | None = None
    end: float | None = None
    clean: bool = True

    def __call__(self, schedule: Schedule) -> Array:
        """Return start and end on ``schedule``.

        Raises:
            ValueError: they are out of order or outside the schedule, or lam is infinite at the end.
        """
        return Grid("uniform", 1, self.start, self.end)(schedule)


def uniform(steps: int, *, start: float | None = None, end: float | None = None, clean: bool = False) -> Grid:
    """Space knots evenly in t, as Song et al. 2021 do."""
    return Grid("uniform", steps, start, end, clean)


def quadratic(steps: int, *, start: float | None = None, end: float | None = None, clean: bool = False) -> Grid:
    """Space knots evenly in sqrt(t). Source: Song et al. 2020 (DDIM), Lu et al. 2022."""
    return Grid("quadratic", steps, start, end, clean)


def logsnr(steps: int, *, start: float | None = None, end: float | None = None, clean: bool = True) -> Grid:
    """Space knots evenly in lam = ln(alpha/sigma). Source: Lu et al. 2022."""
    return Grid("logsnr", steps, start, end, clean)


def karras(
    steps: int, *, start: float | None = None, end: float | None = None, clean: bool = True, rho: float = 7.0
) -> Grid:
    """Space knots evenly in (sigma/alpha)^(1/rho). Source: Karras et al. 2022, eq. 5."""
    return Grid("karras", steps, start, end, clean, rho)


def indices(steps: int, spacing: str = "trailing") -> Grid:
    """Choose indices of a discrete table, then the data.

    leading: 0, k, 2k, .. (DDIM's own code); trailing: counted back from N - 1 (Lin et al. 2024,
    starts at pure noise); linspace: rounded linspace from N - 1 to 0.
    """
    return Grid(spacing, steps, clean=True)


AnyGrid = TypeVar("AnyGrid", bound=Grid | Times | Span)


def default_grid(schedule: Schedule, steps: int = 20) -> Grid:
    """Return a grid to sigma = 0 that suits a deterministic solver: karras, or uniform from pure noise."""
    return karras(steps) if math.isfinite(float(lam(schedule, schedule.T))) else uniform(steps, clean=True)


def within(grid: AnyGrid, schedule: Schedule, model: Schedule) -> AnyGrid:
    """Return the grid, begun where the noise of ``model`` ends if that is later; a given start stays."""
    if model == schedule or isinstance(grid, Times) or grid.start is not None:
        return grid
    if isinstance(grid, Grid) and grid.spacing in ("leading", "trailing", "linspace"):
        return grid
    bottom = float(lam(model, model.T))
    if float(lam(schedule, schedule.T)) >= bottom:
        return grid
    return replace(grid, start=float(t_of_lam(schedule, bottom)[0]))


def edm_levels(steps: int, sigma_min: float = 0.002, sigma_max: float = 80.0, rho: float = 7.0) -> Times:
    """Return EDM's noise levels as times of the EDM schedule. Source: Karras et al. 2022, eq. 5."""
    from fastscore.process.continuous import EDM

    return Times(tuple(karras(steps, rho=rho)(EDM(sigma_min, sigma_max))))
