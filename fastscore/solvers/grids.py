"""The grid that suits a solver, a schedule and the data; what another loses is in ``doubts``."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any, TypeVar

import numpy as np

from fastscore import solvers as s
from fastscore.plan.gaussian import gaussian_moments
from fastscore.plan.passes import make_plan
from fastscore.plan.rows import Plan, Solver
from fastscore.process.continuous import EDM
from fastscore.process.discrete import DiscreteVE, DiscreteVP
from fastscore.process.grid import Grid, Span, Times
from fastscore.process.names import INDICES, NAMED, SPACINGS, grid_name
from fastscore.process.parametrization import Parametrization
from fastscore.process.schedule import Schedule, lam, remembered, t_of_lam
from fastscore.solvers.adaptive import Adaptive
from fastscore.solvers.names import STEPS

Scales = tuple[float, float]
PUBLISHED = 1000  # steps of score_sde, whose betas are divided by them: 20 are too few on VP
NOISIEST = -5.0  # lam at which a network starts that is singular at pure noise; that of VP at T
COARSE, FINE = 10.0, 300.0  # finest standard deviation over the last noise: a last step to D loses 1 / 2 COARSE^2 of it


def default_grid(
    solver: Solver | Adaptive,
    schedule: Schedule,
    trained: Schedule,
    steps: int | None = None,
    *,
    spacing: str | None = None,
    start: float | None = None,
    end: float | None = None,
    clean: bool | None = None,
    rho: float | None = None,
    scales: Scales | None = None,
    reads: Parametrization | None = None,
) -> Grid | Span:
    """Return the grid that suits a solver, a schedule and the data, or the span of an adaptive solver.

    Exponential integrators, and whatever else steps in lam, get the arctan spacing: with Karras' rho = 7 and a scale of
    8 data, and rho = 6 in at most five steps with a history of x0; more of the steps where the data form (rho = 5,
    scale 2) with noise in each or of first order; more at high noise (rho = 4, and 3 in at most five steps) with a
    history of eps, which changes little at low noise; both of ER-SDE and, in few steps, of gradient estimation (rho =
    3, scale 4). bench/results has the figures, of Gaussian data in default_grids.md and of images in
    few_evaluations.md.

    Schemes that discretise time itself get the spacing of ``spacing_in_time``; a corrector that of its predictor. On
    the table of its own network a grid keeps to whole indices.

    Args:
        trained: the schedule of the network.
        steps: 20 if left out, 1000 of ScoreSDE, or as many as a shorter table has.
        spacing: one of process.names.GRIDS; "default" counts as left out.
        start, end: first and last time of the spacing; the schedule's T, and its t_end or earlier (see ``scales``), if
            left out.
        clean: whether the last step goes to sigma = 0; yes if left out, but for score_sde's own grids.
        rho: exponent of the spacings karras and arctan, positive.
        scales: smallest and largest standard deviation of the data, as far as they are known: the grid ends where the
            noise is a tenth of the smallest (a 300th for Dopri5 and Bogacki-Shampine, whose tolerances see the
            difference), and an extent above 1 widens the arctan spacing.
        reads: of the network, which does not know less noise than it was trained on unless it is exact.

    Raises:
        ValueError: steps, spacing or rho where they would be ignored, or a value out of range.
    """
    spacing = None if spacing is None or grid_name(spacing) == "default" else grid_name(spacing)
    to_tolerance = isinstance(solver, s.Dopri5 | s.BogackiShampine)
    said = end, clean
    if end is None and (scales is not None or to_tolerance):
        std = (0.3 if scales is None else scales[0]) / (FINE if to_tolerance else COARSE)
        end = _ending(std, schedule, math.inf if reads is None or reads.exact else float(lam(trained, trained.t_end)))
    if isinstance(solver, Adaptive):
        for option, value in (("steps", steps), ("grid spacing", spacing), ("rho", rho)):
            if value is not None:
                raise ValueError(
                    f"{option} = {value} belongs to solvers with a grid; {type(solver).__name__} chooses its steps by "
                    "rtol and atol"
                )
        return Span(start, end, clean is not False)
    clean = not isinstance(solver, s.ScoreSDE) if clean is None else clean
    whole = isinstance(schedule, DiscreteVP | DiscreteVE) and schedule == trained
    if steps is None:
        first = schedule.T if start is None else start
        steps = PUBLISHED if isinstance(solver, s.ScoreSDE) else STEPS
        steps = min(steps, int(first - (end or 0.0)) + bool(clean)) if whole else steps
    if spacing in NAMED:  # which end where they end, whatever the data
        return _with_rho(Grid(spacing, steps, start, said[0], said[1] if clean else False), rho)
    scheme = _scheme(solver)
    shape = (7.0, 8.0) if scheme is not None else _shape(solver, steps)
    grid = Grid("arctan", steps, start, end, clean, *shape, whole=whole and spacing is None)
    spacing = spacing or ("arctan" if scheme is None else _published(scheme, schedule))
    if scheme is not None and not spacing:
        grid = spacing_in_time(scheme, schedule, grid)
    elif spacing != "arctan":
        grid = Grid(spacing, steps, start, end, clean, whole=grid.whole and spacing not in INDICES)
    grid = _with_rho(grid, rho)
    return grid if scales is None else replace(grid, scale=grid.scale * max(1.0, scales[1]))


def _with_rho(grid: Grid, rho: float | None) -> Grid:
    if rho is None:
        return grid
    if grid.rule is not None and hasattr(grid.rule, "rho"):
        return replace(grid, spacing=replace(grid.rule, **{"rho": rho}))
    if grid.spacing not in ("karras", "arctan"):
        raise ValueError(f"rho = {rho:g} belongs to the spacings karras and arctan; leave it out with {grid.spacing}")
    return replace(grid, rho=rho)


def _ending(noise: float, schedule: Schedule, cleanest: float) -> float | None:
    """Return the time of this sigma / alpha, or with ``cleanest`` lam; None if t_end is cleaner still."""
    top = min(-math.log(noise), cleanest)
    return float(t_of_lam(schedule, top)[0]) if float(lam(schedule, schedule.t_end)) < top else None


def _shape(solver: Any, steps: int) -> tuple[float, float]:
    """Return rho and scale of the arctan spacing of so many steps that suits a solver in lam."""
    if isinstance(solver, s.CFGPlusPlus | s.InSigma | s.RePaint | s.ScaledNoise | s.Window):
        return _shape(solver.solver, steps)
    if isinstance(solver, s.DPMMultistep) and solver.eta and (solver.order, solver.form) == (2, "exact"):
        return 7.0, 1.0  # an exact slope of two evaluations goes too far in a step much longer than the one before
    if (isinstance(solver, s.ERSDE) and solver.order > 1) or (isinstance(solver, s.GradientEstimation) and steps < 15):
        return 3.0, 4.0
    noise = [getattr(solver, name, 0.0) for name in ("eta", "tau")]  # numbers, or functions of a step's times
    if getattr(solver, "order", 2) == 1 or any(callable(v) or v > 0.0 for v in noise):
        return (2.0, 1.0) if isinstance(solver, s.ERSDE | s.GradientEstimation | s.HeunPP) else (5.0, 2.0)
    in_eps = isinstance(solver, s.DPMMultistep | s.UniPC) and solver.prediction == "eps"
    if in_eps or isinstance(solver, s.DEIS | s.LMS | s.IPNDM):
        return (3.0 if steps <= 5 else 4.0), 8.0
    few = steps <= 5 and isinstance(solver, s.DPMpp2M | s.DPMMultistep | s.UniPC | s.SASolver)
    return (6.0 if few else 7.0), 8.0


def _scheme(solver: Any) -> Any:
    """Return the part of a solver that discretises time itself, or None if there is none."""
    if isinstance(solver, s.CFGPlusPlus | s.InSigma | s.RePaint | s.ScaledNoise | s.Window):
        return _scheme(solver.solver)
    if isinstance(solver, s.PredictorCorrector):
        return solver if solver.predictor is None else _scheme(solver.predictor)
    if isinstance(solver, s.Hybrid):
        return _scheme(solver.sde) or _scheme(solver.ode)
    if isinstance(solver, s.AncestralSplit) and getattr(solver.solver, "prediction", "") == "eps":
        return solver  # its noise meets e^h of eps, which a long step near pure noise makes too much of
    explicit = (
        s.Euler, s.Heun, s.RK2, s.RK4, s.ImplicitMidpoint, s.EulerMaruyama, s.ReverseDiffusion, s.StochasticHeun,
        s.PNDM, s.ScoreSDE, s.FlowSDE, s.DanceSDE,
    )  # fmt: skip
    if isinstance(solver, s.ImplicitMidpoint) and solver.exponential:
        return None
    return solver if isinstance(solver, explicit) else None


def in_time(solver: Solver) -> bool:
    """Return whether a solver discretises time itself: on another schedule the same levels are another scheme."""
    return _scheme(solver) is not None


def _published(scheme: Solver, schedule: Schedule) -> str:
    """Return the spacing that comes with a scheme, or "" if it has none: even times, and geometric levels of NCSN."""
    if isinstance(scheme, s.ScoreSDE):
        return "uniform"
    if isinstance(scheme, s.PredictorCorrector):
        return "logsnr" if isinstance(schedule, EDM) else "uniform"
    return ""


@remembered
def spacing_in_time(solver: Solver, schedule: Schedule, grid: Grid) -> Grid:
    """Return the grid with the spacing that suits a scheme in t, which no one spacing does on every schedule.

    A scheme in t is only as good as its steps are short against what f and g do in them, which is up to the schedule:
    EDM's time is sigma itself, VE's is its logarithm. So the spacings are tried, in the order that papers prefer, on
    Gaussian data with standard deviations 0.3 and 1 (plan/gaussian.py: exact, no network). The first with an error
    below 1 / steps, or within 1.2 times the best, is taken.
    """
    smooth = isinstance(solver, s.Heun | s.RK2 | s.RK4 | s.ImplicitMidpoint)
    preferred = ("karras", "arctan", "uniform") if smooth else ("uniform", "quadratic", "karras")
    full = grid.whole and grid.start is None and grid.end is None
    grids: dict[str, Grid] = {}
    errors: dict[str, float] = {}
    for spacing in dict.fromkeys((*preferred, *SPACINGS)):
        if spacing not in INDICES or full:
            grids[spacing] = replace(grid, spacing=spacing, whole=grid.whole and spacing not in INDICES)
    steps = min(grid.steps, 100)  # more change the errors, but not which one is least
    for spacing, candidate in grids.items():
        try:
            trial = replace(candidate, steps=steps, clean=True)
            errors[spacing] = max(spread_errors(make_plan(solver, schedule, trial(schedule)), (0.3, 1.0)))
        except ValueError:  # singular there
            continue
        if len(errors) == 1 and errors[spacing] <= 1.0 / steps:  # whatever the best is
            return candidate
    bound = max(1.0 / steps, 1.2 * min(errors.values(), default=0.0))
    return grids[next((k for k, error in errors.items() if error <= bound), preferred[0])]


def spread_errors(plan: Plan, stds: Scales) -> list[float]:
    """Return the relative errors of the standard deviation that a plan makes of data N(0, std^2), exactly."""
    end = max(plan.rows[-1].s, plan.schedule.t_clean)  # score_sde's last step of 1/N may go beyond
    right = np.hypot(float(plan.schedule.alpha(end)) * np.array(stds), float(plan.schedule.sigma(end)))
    return np.abs(gaussian_moments(plan, 0.0, stds)[1] / right - 1.0).tolist()


AnyGrid = TypeVar("AnyGrid", bound=Grid | Times | Span)


def within(grid: AnyGrid, schedule: Schedule, model: Schedule, reads: Parametrization) -> AnyGrid:
    """Return the grid between the noise levels that a network knows; a given start or end stays.

    Args:
        schedule: that the grid is of.
        model, reads: the schedule that the network was trained on, from T to t_end, and what it predicts.
    """
    if isinstance(grid, Times) or (isinstance(grid, Grid) and grid.spacing in INDICES):
        return grid
    bottom, top = (float(lam(model, t)) for t in (model.T, model.t_end))
    if bottom == -math.inf and not reads.at_pure_noise:
        bottom = NOISIEST
    if grid.start is None and float(lam(schedule, schedule.T)) < bottom:
        grid = replace(grid, start=float(t_of_lam(schedule, bottom)[0]))
    if grid.end is None and not reads.exact and float(lam(schedule, schedule.t_end)) > top:
        grid = replace(grid, end=float(t_of_lam(schedule, top)[0]))
    return grid
