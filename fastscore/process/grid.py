"""Time grids: the knots between which a solver steps, noisiest first.

A grid of N steps has N + 1 knots. With ``clean=True`` the last one is the schedule's clean end
(sigma = 0), and the spacing rule places the other N between start and end. Rules of other codes
stand in named_grids.py.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import numpy as np

from fastscore.errors import typed
from fastscore.process.named_grids import NAMED_GRIDS, place
from fastscore.process.names import INDICES, NAMED, SPACINGS, grid_name
from fastscore.process.rules import Rule
from fastscore.process.schedule import Array, Schedule, at_ends, lam, t_of_lam, table


@dataclass(frozen=True)
@typed
class Grid:
    """A spacing rule with its number of steps.

    Attributes:
        spacing: one of SPACINGS, which the functions below describe, one of NAMED, whose rules named_grids.py has, or
            such a rule with parameters of its own; underscores and any case will do.
        steps: N >= 1. The rules of "ddim-uniform" and "beta" may have more or fewer, as their codes have.
        start, end: first and last time of the rule; the schedule's T and t_end if left out.
        clean: whether the last step goes to sigma = 0; if left out, as the code of a named rule has it, of others no.
        rho: exponent of "karras" and "arctan".
        scale: of "arctan", in sigma / alpha.
        shift: factor on sigma / alpha of all knots but one at pure noise or sigma = 0, see ``shifted``.
        offset: added to the indices of "leading".
        whole: round the times of a table to whole indices, which its network was trained on.

    Raises:
        ValueError: fewer than one step, an unknown rule, a value out of range, or start and end out of order.
    """

    spacing: str | Rule
    steps: int
    start: float | None = None
    end: float | None = None
    clean: bool | None = None
    rho: float = 7.0
    scale: float = 8.0
    shift: float = 1.0
    offset: int = 0
    whole: bool = False

    def __post_init__(self) -> None:
        if isinstance(self.spacing, str):
            object.__setattr__(self, "spacing", grid_name(self.spacing, "grid spacing", (*SPACINGS, *NAMED)))
        if self.clean is None:
            object.__setattr__(self, "clean", self.rule is not None and self.rule.clean)
        if not 1 <= self.steps < 1 << 20:
            raise ValueError(f"steps = {self.steps} must lie in 1 .. {(1 << 20) - 1}")
        for name in ("rho", "scale", "shift"):
            if not 0.0 < getattr(self, name) < math.inf:
                raise ValueError(f"{name} = {getattr(self, name)} must be positive")
        if self.offset < 0 or (self.offset and self.spacing != "leading"):
            raise ValueError(f"offset = {self.offset} must be at least 0, and belongs to the spacing leading")
        if self.shift != 1.0 and self.spacing in INDICES:
            raise ValueError(f"shift = {self.shift} moves times; the spacing {self.spacing} has whole indices")

    @property
    def rule(self) -> Rule | None:
        """The rule of a name, or the grid's own; None if the spacing is one of SPACINGS."""
        if not isinstance(self.spacing, str):
            return self.spacing
        return None if self.spacing in SPACINGS else NAMED_GRIDS[self.spacing].rule

    def __call__(self, schedule: Schedule) -> Array:
        """Return the knots on ``schedule``, float64 [steps + 1], decreasing."""
        start = schedule.T if self.start is None else self.start
        end = schedule.t_end if self.end is None else self.end
        start, end = at_ends(schedule, np.array([start, end])).tolist()
        if not schedule.t_clean <= end <= start <= schedule.T or (end == start and self.steps + (not self.clean) > 1):
            raise ValueError(
                f"grid from t = {start} to {end} must decrease inside "
                f"{type(schedule).__name__}'s times {schedule.T} .. {schedule.t_clean}"
            )
        n = self.steps if self.clean else self.steps + 1
        if self.spacing in INDICES:
            knots = self._indices(schedule, start, end, n)
        else:
            if self.rule is not None:
                name = self.spacing if isinstance(self.spacing, str) else type(self.spacing).__name__
                knots = place(self.rule, name, schedule, start, end, n, self.end is None)
            else:
                knots = self._spaced(schedule, start, end, n)
                knots[0], knots[-1] = start, end if n > 1 else start
            knots = _whole(knots) if self.whole else _shift(schedule, knots, self.shift)
        if self.clean:
            knots = np.append(knots, schedule.t_clean)
        if not np.all(np.diff(knots) < 0.0):
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
        bounded = np.isfinite(ends) | (np.array([True, False]) if self.spacing == "arctan" else False)
        if not np.all(bounded):
            raise ValueError(
                f"{self.spacing} grid: lam is infinite at t = {end if bounded[0] else start}; "
                "move start (or end) off the end of the schedule, or take arctan or kl-optimal"
            )
        if self.spacing == "logsnr":
            values = np.linspace(ends[0], ends[1], n)
        elif self.spacing == "karras":
            high, low = np.exp(-ends / self.rho)
            values = -self.rho * np.log(np.linspace(high, low, n))
        else:
            high, low = np.arctan2(1.0, self.scale * np.exp(ends)) ** (1.0 / self.rho)
            angles = np.minimum(np.linspace(high, low, n) ** self.rho, 0.5 * math.pi)  # of which tan is finite
            values = -np.log(self.scale * np.tan(angles))
        return t_of_lam(schedule, np.clip(values, *ends))

    def _indices(self, schedule: Schedule, start: float, end: float, n: int) -> Array:
        if schedule.t_clean != -1.0:
            raise ValueError(f"{self.spacing} grids index a discrete table; {type(schedule).__name__} is continuous")
        first, last = int(start), int(end)
        if (first, last) != (start, end):
            raise ValueError(f"{self.spacing} grid from {start} to {end}: start and end must be indices of the table")
        span = first - last + 1
        if n > span:
            raise ValueError(f"steps = {self.steps} must lie in 1 .. {span - (not self.clean)}, the indices there are")
        if self.spacing == "leading":
            knots = last + np.arange(n)[::-1] * (span // n) + self.offset
            if knots[0] > first:
                raise ValueError(f"offset = {self.offset} leads to index {knots[0]}, beyond the first, {first}")
        elif self.spacing == "trailing":
            knots = last + np.round(np.arange(n, 0, -1) * (span / n)) - 1.0
        else:
            knots = np.round(np.linspace(first, last, n))
        return knots.astype(np.float64)


def _whole(knots: Array) -> Array:
    """Return the nearest distinct indices, no knot moved further than those below it make necessary."""
    behind, nearest = np.arange(len(knots))[::-1], np.round(knots)
    rising = np.maximum.accumulate((nearest - behind)[::-1])[::-1]  # so that each index is above the next one
    distinct = np.minimum(rising + behind, nearest[0] - behind[::-1])
    if distinct[-1] < nearest[-1]:
        raise ValueError(f"{len(knots)} times for the fewer indices from {nearest[0]:g} to {nearest[-1]:g}; take fewer")
    return distinct


def _shift(schedule: Schedule, knots: Array, shift: float) -> Array:
    """Return the times at which sigma / alpha is ``shift`` times as large."""
    if shift == 1.0:
        return knots
    values = lam(schedule, knots)
    inner = np.isfinite(values)
    moved = np.clip(values[inner] - math.log(shift), lam(schedule, schedule.T), None)
    knots[inner] = t_of_lam(schedule, moved)
    return knots


@dataclass(frozen=True)
@typed
class Times:
    """Explicit knots, decreasing; the last may be the schedule's clean end."""

    t: tuple[float, ...]

    def __call__(self, schedule: Schedule) -> Array:
        """Return the knots, checked against the schedule."""
        knots = table("times", self.t)
        if len(knots) < 2 or np.any(np.isnan(knots)) or not np.all(np.diff(knots) < 0.0):
            raise ValueError("times must be at least two decreasing numbers")
        knots = at_ends(schedule, knots)
        if knots[0] > schedule.T or knots[-1] < schedule.t_clean:
            raise ValueError(
                f"times {float(knots[0])!r} .. {float(knots[-1])!r} leave {type(schedule).__name__}'s "
                f"range {schedule.T!r} .. {schedule.t_clean!r}"
            )
        return knots


@dataclass(frozen=True)
@typed
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


def arctan(
    steps: int,
    *,
    start: float | None = None,
    end: float | None = None,
    clean: bool = True,
    rho: float = 7.0,
    scale: float = 8.0,
) -> Grid:
    r"""Space knots evenly in arctan(sigma / (scale alpha))^(1/rho).

    Karras' levels where sigma / alpha is well below ``scale``, and an end where there is no signal: pure noise, at
    which theirs and those in log-SNR begin nowhere, is the angle pi / 2. No step in lam is long but the one that
    leaves pure noise, where the estimate of x_0 depends on nothing. ``scale`` stands for the largest extent of the
    data; rho = 1, scale = 1 is the grid of Sabour et al. 2024 for one Gaussian, scale = inf is Karras'.
    """
    return Grid("arctan", steps, start, end, clean, rho, scale)


def indices(
    steps: int,
    spacing: str = "trailing",
    *,
    offset: int = 0,
    start: float | None = None,
    end: float | None = None,
    clean: bool = True,
) -> Grid:
    """Choose indices of a discrete table, then the data.

    leading: 0, k, 2k, .. (DDIM's own code), all moved by ``offset`` (diffusers' steps_offset); trailing: counted back
    from N - 1 (Lin et al. 2024, starts at pure noise); linspace: rounded linspace from N - 1 to 0. With ``start`` or
    ``end`` the rule is that of the part of the table between them, both included.
    """
    return Grid(spacing, steps, start, end, clean, offset=offset)


@typed
def shifted(grid: Grid, shift: float) -> Grid:
    r"""Return a grid with sigma / alpha of every knot ``shift`` times as large.

    On Flow that is t' = shift t / (1 + (shift - 1) t), which large images need. Knots beyond the schedule's noise stay
    at its T; pure noise and sigma = 0 do not move.

    Source: Esser et al. 2024 (Stable Diffusion 3), eq. 23; Hoogeboom et al. 2023, section 3.1.
    """
    return replace(grid, shift=grid.shift * shift)


@typed
def dynamic_shift(tokens: int, base: tuple[int, float] = (256, 0.5), top: tuple[int, float] = (4096, 1.15)) -> float:
    """Return the shift e^mu of an image of so many tokens, at least 1; mu is linear between two (tokens, mu)."""
    if not 1 <= tokens <= 1 << 40:
        raise ValueError(f"tokens = {tokens} must be at least 1 and at most {1 << 40}")
    mu = base[1] + (top[1] - base[1]) * (tokens - base[0]) / (top[0] - base[0]) if top[0] != base[0] else math.inf
    if not abs(mu) <= 700.0:
        raise ValueError(f"tokens = {tokens}, base = {base}, top = {top} make mu = {mu:.3g}, outside -700 .. 700")
    return math.exp(mu)


def edm_levels(steps: int, sigma_min: float = 0.002, sigma_max: float = 80.0, rho: float = 7.0) -> Times:
    """Return EDM's noise levels as times of the EDM schedule. Source: Karras et al. 2022, eq. 5."""
    from fastscore.process.continuous import EDM

    return Times(tuple(karras(steps, rho=rho)(EDM(sigma_min, sigma_max))))
