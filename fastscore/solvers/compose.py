"""Composition of solvers: noise around any one-step solver, correctors after any, two solvers in one plan."""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace
from itertools import pairwise

import numpy as np

from fastscore.plan.rows import Row, Solver
from fastscore.process.schedule import Array, Schedule, t_of_lam, transition
from fastscore.solvers.correctors import Corrector
from fastscore.solvers.ode import Heun
from fastscore.solvers.sde import DDPM, denoise


@dataclass(frozen=True)
class PredictorCorrector:
    """Predictor to the next time, then corrector at that time.

    Args:
        predictor: any solver; None keeps x as it is (annealed Langevin dynamics, NCSN), and then
            the corrector also runs at the first time.
        corrector: any corrector. It is skipped at sigma = 0, where there is no score.

    Source: Song et al. 2021, algorithm 1.
    """

    predictor: Solver | None
    corrector: Corrector

    def steps(self, schedule: Schedule, t: Array) -> list[list[Row]]:
        last = len(t) - 2
        cleaner = [*t[1:], schedule.t_clean]
        if self.predictor is not None:
            groups = [list(group) for group in self.predictor.steps(schedule, t)]
        else:
            groups = [[] for _ in range(last + 1)]
            groups[0] += self.corrector.rows(schedule, t[0], cleaner[0])
        for k, group in enumerate(groups):
            if t[k + 1] != schedule.t_clean:
                group += self.corrector.rows(schedule, t[k + 1], cleaner[k + 1])
            elif self.predictor is None:
                group.append(denoise(t[k], t[k + 1]))
        return groups


@dataclass(frozen=True)
class Churn:
    r"""EDM's churn: noise added before each step of a deterministic one-step solver.

        rho^ = rho (1 + gamma),   gamma = min(churn / N, sqrt(2) - 1) if low <= rho <= high, else 0,
        x / alpha <- x / alpha + noise sqrt(rho^^2 - rho^2) z,   rho = sigma / alpha

    and the solver steps from rho^. At gamma = 0 nothing is drawn. rho^ does not exceed the schedule's rho(T).

    Args:
        solver: Euler, Heun, RK2, DPMSolver, ..; it is called one interval at a time.
        churn, low, high, noise: S_churn, S_min, S_max and S_noise.

    Source: Karras et al. 2022, algorithm 2.
    """

    solver: Solver = field(default_factory=Heun)
    churn: float = 40.0
    low: float = 0.05
    high: float = 50.0
    noise: float = 1.003

    def __post_init__(self) -> None:
        if not (0.0 <= self.churn < math.inf and 0.0 < self.noise < math.inf):
            raise ValueError(f"Churn: churn = {self.churn} must be at least 0, noise = {self.noise} positive")

    def steps(self, schedule: Schedule, t: Array) -> list[list[Row]]:
        rho, top = ratio(schedule, t[:-1]), float(ratio(schedule, schedule.T))
        gamma = min(self.churn / (len(t) - 1), math.sqrt(2.0) - 1.0)
        churned = (rho >= self.low) & (rho <= self.high) & (rho < top)
        raised = np.where(churned, np.minimum(rho * (1.0 + gamma), top), rho)
        start = np.array(t[:-1])
        start[raised > rho] = t_of_lam(schedule, -np.log(raised[raised > rho]))
        groups = []
        for k, (t_hat, s) in enumerate(zip(start, t[1:], strict=True)):
            rows = self.solver.steps(schedule, np.array([t_hat, s]))[0]
            if raised[k] > rho[k]:
                rows = [renoise(schedule, t[k], t_hat, self.noise), *rows]
            groups.append(rows)
        return groups


@dataclass(frozen=True)
class ScaledNoise:
    """Any solver with its noise scaled: c becomes s_noise c in every row but the prior's.

    Where a network removes too little noise, a factor slightly above 1 makes up for it.

    Source: Karras et al. 2022, section 4 (S_noise); k-diffusion has it in every sampler that draws noise.
    """

    solver: Solver
    s_noise: float = 1.003

    def __post_init__(self) -> None:
        if not 0.0 <= self.s_noise < math.inf:
            raise ValueError(f"ScaledNoise: s_noise = {self.s_noise} must be at least 0")

    def steps(self, schedule: Schedule, t: Array) -> list[list[Row]]:
        groups = self.solver.steps(schedule, t)
        return [[replace(row, c=self.s_noise * row.c) for row in group] for group in groups]


@dataclass(frozen=True)
class AncestralSplit:
    r"""A deterministic one-step solver to less noise than wanted, then the difference as fresh noise.

        up = min(1, eta sqrt(1 - rho_s^2/rho_t^2)) rho_s,   down = sqrt(rho_s^2 - up^2),   rho = sigma / alpha

    Around Euler on EDM this is Euler ancestral, around DPMSolver(2) DPM2 ancestral, around DPMSolver(2, "x0")
    DPM++ 2S ancestral. Source: k-diffusion's get_ancestral_step.
    """

    solver: Solver
    eta: float = 1.0
    order = 1

    def __post_init__(self) -> None:
        if not 0.0 <= self.eta < math.inf:
            raise ValueError(f"AncestralSplit: eta = {self.eta} must be at least 0")

    def steps(self, schedule: Schedule, t: Array) -> list[list[Row]]:
        rho = ratio(schedule, t)
        share = 1.0 - self.eta**2 + (self.eta * rho[1:] / rho[:-1]) ** 2  # (down / rho_s)^2, without cancellation
        down = np.sqrt(np.maximum(share, 0.0)) * rho[1:]
        up = np.sqrt(1.0 - np.maximum(share, 0.0)) * rho[1:]
        stop = np.array(t[1:])
        split = (up > 0.0) & (down > 0.0)
        stop[split] = t_of_lam(schedule, -np.log(down[split])) if np.any(split) else stop[split]
        stop[down == 0.0] = schedule.t_clean
        groups = []
        for k, (start, s) in enumerate(pairwise(t)):
            rows = list(self.solver.steps(schedule, np.array([start, stop[k]]))[0])
            if up[k] > 0.0:
                last, scale = rows[-1], float(schedule.alpha(s) / schedule.alpha(stop[k]))
                if last.c != 0.0:
                    raise ValueError("AncestralSplit needs a deterministic solver")
                w = tuple(scale * v for v in last.w)
                c = float(schedule.alpha(s) * up[k])
                rows[-1] = replace(last, s=float(s), a=scale * last.a, b=scale * last.b, c=c, w=w)
            groups.append(rows)
        return groups


@dataclass(frozen=True)
class Hybrid:
    """``sde`` for the intervals that start at t > t_switch, ``ode`` for the others; any two solvers."""

    sde: Solver
    ode: Solver
    t_switch: float

    def steps(self, schedule: Schedule, t: Array) -> list[list[Row]]:
        k = int(np.sum(t[:-1] > self.t_switch))
        return [*_between(self.sde, schedule, t[: k + 1]), *_between(self.ode, schedule, t[k:])]


@dataclass(frozen=True)
class Interval:
    """A restart: noise is added from rho = ``low`` to ``high``, then ``steps`` lead back; ``times`` times."""

    low: float
    high: float
    steps: int = 3
    times: int = 1

    def __post_init__(self) -> None:
        if not (0.0 < self.low < self.high < math.inf and self.steps > 0 and self.times > 0):
            raise ValueError(f"{self}: low < high must be positive, steps and times at least 1")


@dataclass(frozen=True)
class Restart:
    r"""Restart: at some noise levels, go back up by fresh noise and solve the ODE down again.

        x / alpha <- x / alpha + noise sqrt(rho_high^2 - rho_low^2) z,   rho = sigma / alpha

    The way back has Karras levels (exponent 7). ``low`` is moved to the grid's nearest level below its first one.

    Args:
        intervals: restarts, any number; two at one level happen in the order given.
        solver: of the ODE; a multistep solver starts anew after each restart.
        noise: S_noise.

    Source: Xu et al. 2023, algorithm 1 and its published code (whose n levels are n - 1 steps).
    """

    intervals: tuple[Interval, ...]
    solver: Solver = field(default_factory=Heun)
    noise: float = 1.0

    def steps(self, schedule: Schedule, t: Array) -> list[list[Row]]:
        rho = ratio(schedule, t)
        inner = np.flatnonzero((rho > 0.0) & (np.arange(len(t)) > 0))
        if not len(inner):
            return self.solver.steps(schedule, t)
        at = [int(inner[np.argmin(np.abs(rho[inner] - interval.low))]) for interval in self.intervals]
        groups = []
        for a, b in pairwise([0, *sorted({*at, len(t) - 1})]):
            groups += self.solver.steps(schedule, t[a : b + 1])
            for k, interval in zip(at, self.intervals, strict=True):
                if k == b:
                    groups[-1] = [*groups[-1], *self._restart(schedule, t[k], float(rho[k]), interval)]
        return groups

    def _restart(self, schedule: Schedule, low: np.float64, rho: float, interval: Interval) -> list[Row]:
        if interval.high <= rho:
            raise ValueError(f"{interval} lies below rho = {rho:.6g}, the grid's level nearest to its low end")
        levels = np.linspace(interval.high ** (1 / 7), rho ** (1 / 7), interval.steps + 1)[:-1] ** 7
        knots = np.append(t_of_lam(schedule, -np.log(levels)), low)
        back = [row for group in self.solver.steps(schedule, knots) for row in group]
        return [renoise(schedule, low, knots[0], self.noise), *back] * interval.times


@dataclass(frozen=True)
class RePaint:
    r"""RePaint's resampling: every ``jump`` steps back up by as many, and down again, ``times`` times in all.

        x_up = r x_t + sqrt(v) z,   the exact forward transition over ``jump`` intervals of the grid

    With known data (Known) each round harmonises the rest with it; without, it is Restart on every level. The
    jumps end at the last time before sigma = 0 and at every ``jump``-th knot above it.

    Args:
        solver: one that draws noise, as DDPM; a multistep solver starts anew after each jump.
        jump, times: j and r of the paper.

    Source: Lugmayr et al. 2022, algorithm 1 and appendix B; their jumps go step by step, which is the same law.
    """

    solver: Solver = field(default_factory=DDPM)
    jump: int = 10
    times: int = 10

    def __post_init__(self) -> None:
        if self.jump < 1 or self.times < 1:
            raise ValueError(f"RePaint: jump = {self.jump} and times = {self.times} must be at least 1")

    def steps(self, schedule: Schedule, t: Array) -> list[list[Row]]:
        last = len(t) - 2 if t[-1] == schedule.t_clean else len(t) - 1
        stops = [k for k in range(last, self.jump - 1, -self.jump)][::-1]
        groups = []
        for a, b in pairwise(sorted({0, *stops, len(t) - 1})):
            groups += _between(self.solver, schedule, t[a : b + 1])
            if b in stops:
                top = b - self.jump
                r, v = transition(schedule, t[b], t[top])
                up = Row(float(t[b]), float(t[top]), float(r), 0.0, float(np.sqrt(v)), evaluate=False)
                back = [row for group in self.solver.steps(schedule, t[top : b + 1]) for row in group]
                groups[-1] = [*groups[-1], *[up, *back] * (self.times - 1)]
        return groups


def ratio(schedule: Schedule, t: float | Array) -> Array:
    """Return rho = sigma / alpha."""
    return schedule.sigma(t) / schedule.alpha(t)


def renoise(schedule: Schedule, t: float, up: float, noise: float) -> Row:
    """Return the row that adds noise from t to the noisier time ``up``, without an evaluation."""
    a, alpha = float(schedule.alpha(up) / schedule.alpha(t)), float(schedule.alpha(up))
    low, high = float(ratio(schedule, t)), float(ratio(schedule, up))
    c = noise * alpha * math.sqrt((high - low) * (high + low))
    return Row(float(t), float(up), a, 0.0, c, evaluate=False)


def _between(solver: Solver, schedule: Schedule, t: Array) -> list[list[Row]]:
    return solver.steps(schedule, t) if len(t) > 1 else []
