"""Composition of solvers: noise around any one-step solver, correctors after any, two solvers in one plan."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from itertools import pairwise

import numpy as np

from fastscore.errors import short, typed
from fastscore.plan.rows import Row, Solver
from fastscore.process.schedule import Array, Schedule, Started, t_of_lam
from fastscore.solvers.correctors import Corrector
from fastscore.solvers.eta import checked_eta, etas_of
from fastscore.solvers.exponential import ancestral_split, flow_split
from fastscore.solvers.ode import Heun
from fastscore.solvers.sde import denoise
from fastscore.solvers.variants import published, published_repr


@dataclass(frozen=True)
@typed
class PredictorCorrector:
    """Predictor to the next time, then corrector at that time; or the other way round.

    Args:
        predictor: any solver with a grid; None keeps x as it is (annealed Langevin dynamics, NCSN), and then
            the corrector also runs at the first time.
        corrector: any corrector. It is skipped at sigma = 0, where there is no score.
        corrector_first: at each time the corrector, then the predictor, as Song et al.'s code and tutorial do:
            no correction follows the last step. With EulerMaruyama(final="mean"), Langevin(norm="tutorial") and
            uniform(n, clean=True) it is the tutorial's sampler, on any schedule; ScoreSDE is their code's.

    Raises:
        ValueError: a predictor without a grid, such as an adaptive solver.

    Source: Song et al. 2021, algorithm 1; corrector_first: their score-SDE tutorial.
    """

    predictor: Solver | None
    corrector: Corrector
    corrector_first: bool = published(False)
    __repr__ = published_repr

    def __post_init__(self) -> None:
        if self.predictor is not None:
            planned("PredictorCorrector", self.predictor)

    def steps(self, schedule: Schedule, t: Array) -> list[list[Row]]:
        last = len(t) - 2
        cleaner = [*t[1:], schedule.t_clean]
        groups = [[] for _ in range(last + 1)]
        if self.predictor is not None:
            groups = [list(group) for group in self.predictor.steps(schedule, t)]
        if self.corrector_first:
            if self.predictor is None and t[-1] == schedule.t_clean:
                groups[-1] = [denoise(t[-2], t[-1])]
            return [[*self.corrector.rows(schedule, t[k], t[k + 1]), *group] for k, group in enumerate(groups)]
        if self.predictor is None:
            groups[0] += self.corrector.rows(schedule, t[0], cleaner[0])
        for k, group in enumerate(groups):
            if t[k + 1] != schedule.t_clean:
                group += self.corrector.rows(schedule, t[k + 1], cleaner[k + 1])
            elif self.predictor is None:
                group.append(denoise(t[k], t[k + 1]))
        return groups


@dataclass(frozen=True)
@typed
class Churn:
    r"""EDM's churn: noise added before each step of a deterministic one-step solver.

        rho^ = rho (1 + gamma),   gamma = min(churn / N, sqrt(2) - 1) if low <= rho <= high, else 0,
        x / alpha <- x / alpha + noise sqrt(rho^^2 - rho^2) z,   rho = sigma / alpha

    and the solver steps from rho^. At gamma = 0 nothing is drawn. rho^ does not exceed the schedule's rho(T).

    Args:
        solver: Euler, Heun, RK2, DPMSolver, ..; it is called one interval at a time.
        churn, low, high, noise: S_churn, S_min, S_max and S_noise.
        beyond: rho^ may exceed rho(T), as in Karras et al.'s code with S_max above sigma_max: the network is then
            asked at more noise than it was trained on, and refuses where its own schedule ends (see network_time).

    Raises:
        ValueError: a value out of range; a solver without a grid; ``beyond`` on a schedule that has no more noise.

    Source: Karras et al. 2022, algorithm 2.
    """

    solver: Solver = field(default_factory=Heun)
    churn: float = 40.0
    low: float = 0.05
    high: float = 50.0
    noise: float = 1.003
    beyond: bool = published(False)
    __repr__ = published_repr

    def __post_init__(self) -> None:
        planned("Churn", self.solver)
        if not (0.0 <= self.churn < math.inf and 0.0 < self.noise < math.inf):
            raise ValueError(f"Churn: churn = {self.churn} must be at least 0, noise = {self.noise} positive")

    def steps(self, schedule: Schedule, t: Array) -> list[list[Row]]:
        rho, top = ratio(schedule, t[:-1]), math.inf if self.beyond else float(ratio(schedule, schedule.T))
        gamma = min(self.churn / (len(t) - 1), math.sqrt(2.0) - 1.0)
        churned = (rho >= self.low) & (rho <= self.high) & (rho < top)
        raised = np.where(churned, np.minimum(rho * (1.0 + gamma), top), rho)
        start = np.array(t[:-1])
        if np.any(raised > rho):
            start[raised > rho] = time_at(schedule, raised[raised > rho])
        groups = []
        for k, (t_hat, s) in enumerate(zip(start, t[1:], strict=True)):
            rows = self.solver.steps(schedule, np.array([t_hat, s]))[0]
            if raised[k] > rho[k]:
                rows = [renoise(schedule, t[k], t_hat, self.noise), *rows]
            groups.append(rows)
        return groups


@dataclass(frozen=True)
@typed
class ScaledNoise:
    """Any solver with its noise scaled: c becomes s_noise c in every row but the prior's.

    Where a network removes too little noise, a factor slightly above 1 makes up for it. The noise of a norm-dependent
    Langevin step belongs to its step size and stays: put ScaledNoise around the predictor, not around
    PredictorCorrector. By name it is ``named("em", s_noise=1.003)``.

    Source: Karras et al. 2022, section 4 (S_noise); k-diffusion has it in every sampler that draws noise.
    """

    solver: Solver
    s_noise: float = 1.003

    def __post_init__(self) -> None:
        planned("ScaledNoise", self.solver)
        if not 0.0 <= self.s_noise < math.inf:
            raise ValueError(f"ScaledNoise: s_noise = {self.s_noise} must be at least 0")

    def steps(self, schedule: Schedule, t: Array) -> list[list[Row]]:
        groups = self.solver.steps(schedule, t)
        return [[replace(row, c=self.s_noise * row.c) for row in group] for group in groups]


@dataclass(frozen=True)
@typed
class AncestralSplit:
    r"""A deterministic one-step solver to less noise than wanted, then the difference as fresh noise.

        up = min(1, eta sqrt(1 - rho_s^2/rho_t^2)) rho_s,   down = sqrt(rho_s^2 - up^2),   rho = sigma / alpha

    Around Euler on EDM this is Euler ancestral, around DPMSolver(2) DPM2 ancestral, around DPMSolver(2, "x0")
    DPM++ 2S ancestral; with DDIM and eta = 1 it is DDPM's posterior, on every schedule.

    Args:
        solver: deterministic, one step at a time: DDIM, DPMSolver, RK2, ..
        eta: one number, or one a step (see eta.py).
        rule: how much noise an eta is. "ratio" is as above. "flow" is what codes of rectified flow have, there and here
            with alpha restored, q = sigma / (alpha + sigma) being their sigma and rho = q / (1 - q):

                q_down = q_s - min(1, eta (1 - q_s/q_t)) q_s,   up = sqrt(rho_s^2 - down^2)

            In short steps that is "ratio" at sqrt(eta), and both are Anderson's SDE at 1; long ones have less noise.

    Raises:
        ValueError: a value out of range, a solver without a grid, or one that draws noise.

    Source: k-diffusion's get_ancestral_step; "flow": ComfyUI's samplers of that kind (``_RF``).
    """

    solver: Solver
    eta: float | Callable[[float, float], float] = 1.0
    rule: str = published("ratio")
    order = 1
    __repr__ = published_repr

    def __post_init__(self) -> None:
        planned("AncestralSplit", self.solver)
        checked_eta("AncestralSplit", self.eta)
        if self.rule not in ("ratio", "flow"):
            raise ValueError(f"AncestralSplit: rule = {self.rule!r} must be ratio or flow")

    def steps(self, schedule: Schedule, t: Array) -> list[list[Row]]:
        rho, eta = ratio(schedule, t), etas_of("AncestralSplit", self.eta, schedule, t)
        flow = self.rule == "flow"
        down, up = flow_split(schedule, t, eta) if flow else ancestral_split(rho[:-1], rho[1:], eta)
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
@typed
class Hybrid:
    """``sde`` for the intervals that start at t > t_switch, ``ode`` for the others; any two solvers with a grid.

    An adaptive solver has no intervals. To end with one, draw to t_switch and go on with a second sampler: its grid
    is Span(start=t_switch), its start "state", and the first one's samples are its ``init``.

    Raises:
        ValueError: a solver without a grid.
    """

    sde: Solver
    ode: Solver
    t_switch: float

    def __post_init__(self) -> None:
        planned("Hybrid", self.sde)
        planned("Hybrid", self.ode)

    def steps(self, schedule: Schedule, t: Array) -> list[list[Row]]:
        k = int(np.sum(t[:-1] > self.t_switch))
        return [*between(self.sde, schedule, t[: k + 1]), *between(self.ode, schedule, t[k:])]


def planned(name: str, solver: object) -> None:
    """Raise ValueError unless a solver has steps on a grid, which is what composition is about."""
    if isinstance(solver, type):
        raise ValueError(f"{name} takes solvers; {solver.__name__} is a class of them: make one, {solver.__name__}()")
    if not callable(getattr(solver, "steps", None)):
        raise ValueError(
            f"{name} takes solvers with a grid, and {short(solver)} has none; use one with steps (Heun(), RK4(), "
            "DPMpp2M(), ..), or a second sampler with start='state' and grid=Span(start=..) for an adaptive solver"
        )


def time_at(schedule: Schedule, rho: Array) -> Array:
    """Return the times with these ratios sigma / alpha, behind T too, where the schedule's functions go on.

    Raises:
        ValueError: rho stops rising behind T.
    """
    top, span = schedule.T, schedule.T - schedule.t_end
    while not ratio(schedule, top) >= np.max(rho):
        top, before = top + span, top
        if not ratio(schedule, top) > ratio(schedule, before):
            raise ValueError(
                f"rho = {np.max(rho):.6g} is more noise than {type(schedule).__name__} has at T = {schedule.T:.6g}, "
                "and behind T it has no more; leave beyond=True out, or lower churn or high"
            )
    return t_of_lam(Started(schedule, top, schedule.prior_std), -np.log(rho))


def ratio(schedule: Schedule, t: float | Array) -> Array:
    """Return rho = sigma / alpha."""
    return schedule.sigma(t) / schedule.alpha(t)


def renoise(schedule: Schedule, t: float, up: float, noise: float) -> Row:
    """Return the row that adds noise from t to the noisier time ``up``, without an evaluation."""
    a, alpha = float(schedule.alpha(up) / schedule.alpha(t)), float(schedule.alpha(up))
    low, high = float(ratio(schedule, t)), float(ratio(schedule, up))
    c = noise * alpha * math.sqrt((high - low) * (high + low))
    return Row(float(t), float(up), a, 0.0, c, evaluate=False)


def between(solver: Solver, schedule: Schedule, t: Array) -> list[list[Row]]:
    """Return the groups of a solver, none where there is no interval."""
    return solver.steps(schedule, t) if len(t) > 1 else []
