"""Solvers by name, and the grid that suits a solver: what the command line and ``Sampler(solver="heun")`` share."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

from fastscore.plan.rows import Solver
from fastscore.process.continuous import EDM
from fastscore.process.discrete import DiscreteVE, DiscreteVP
from fastscore.process.grid import Grid, Span
from fastscore.process.schedule import Schedule, lam
from fastscore.solvers.adaptive import Adaptive, BogackiShampine, Dopri5, DPMAdaptive, GottaGoFast
from fastscore.solvers.compose import AncestralSplit, Churn, PredictorCorrector, RePaint
from fastscore.solvers.correctors import AnnealedLangevin, Corrector, Langevin
from fastscore.solvers.dpm import DPMSolver
from fastscore.solvers.multistep import DEIS, LMS, DPMMultistep, DPMpp2M
from fastscore.solvers.ode import RK2, RK4, Euler, Heun, ImplicitMidpoint
from fastscore.solvers.pndm import IPNDM, PNDM
from fastscore.solvers.score_sde import ScoreSDE
from fastscore.solvers.sde import DDIM, Ancestral, EulerMaruyama, ReverseDiffusion, StochasticHeun
from fastscore.solvers.unipc import SASolver, UniPC

# Recommended for 5 to 1000 steps by bench/studies/work_precision.py.
DEFAULT = "dpmpp-2m"
STEPS = 20

Maker = Callable[..., Any]
_PLANNED: dict[str, Maker] = {
    "dpmpp-2m": DPMpp2M,
    "ddim": lambda eta=0.0: DDIM(eta),
    "euler": Euler,
    "heun": Heun,
    "midpoint": RK2,
    "rk4": RK4,
    "implicit-midpoint": ImplicitMidpoint,
    "edm-churn": Churn,
    "dpm-1": partial(DPMSolver, 1),
    "dpm-2": partial(DPMSolver, 2),
    "dpm-3": partial(DPMSolver, 3),
    "dpm-2m": partial(DPMMultistep, 2, "eps", "paper"),
    "dpm-3m": partial(DPMMultistep, 3, "eps"),
    "dpmpp-2s": partial(DPMSolver, 2, "x0"),
    "dpmpp-3s": partial(DPMSolver, 3, "x0"),
    "dpmpp-3m": partial(DPMMultistep, 3),
    "deis": DEIS,
    "lms": LMS,
    "unipc": UniPC,
    "sa": SASolver,
    "dpm-2-ancestral": lambda: AncestralSplit(DPMSolver(2)),
    "dpmpp-2s-ancestral": lambda: AncestralSplit(DPMSolver(2, "x0")),
    "dpmpp-sde": partial(DPMSolver, 2, "x0", 1.0),
    "dpmpp-2m-sde": partial(DPMMultistep, 2, "x0", "paper", 1.0),
    "dpmpp-3m-sde": partial(DPMMultistep, 3, "x0", "exact", 1.0),
    "ddpm": lambda variance="small": Ancestral(variance),
    "ancestral": lambda variance="small": Ancestral(variance),
    "em": lambda eta=1.0: EulerMaruyama(eta),
    "reverse-diffusion": ReverseDiffusion,
    "heun-sde": StochasticHeun,
    "pndm": PNDM,
    "plms": partial(PNDM, prk=False),
    "ipndm": IPNDM,
    "none": lambda: None,
}
_ADAPTIVE: dict[str, Maker] = {
    "dopri5": Dopri5,
    "bs32": BogackiShampine,
    "dpm12": partial(DPMAdaptive, 2),
    "dpm23": partial(DPMAdaptive, 3),
    "ggf": GottaGoFast,
}
ADAPTIVE = tuple(_ADAPTIVE)
SOLVERS = (*_PLANNED, "score-sde", *ADAPTIVE)
CORRECTORS = ("none", "langevin", "ald")
PREDICTORS = ("euler-maruyama", "reverse-diffusion", "ancestral-sampling", "none")
_ON_EVEN_TIMES = (
    Ancestral, EulerMaruyama, ReverseDiffusion, StochasticHeun, PNDM, IPNDM, ScoreSDE, PredictorCorrector,
)  # fmt: skip


def named(name: str, **options: Any) -> Solver | Adaptive:
    """Return a solver by its name.

    Args:
        name: one of SOLVERS; underscores and any case will do.
        options: those that belong to the solver: ``eta`` (ddim, em), ``variance`` (ddpm, ancestral), ``rtol`` and
            ``atol`` (the adaptive ones), ``predictor`` (score-sde); and ``corrector`` with ``snr``, ``corrections`` and
            ``norm``, after any solver with a grid. One that is None counts as left out.

    Raises:
        ValueError: an unknown name, an option that belongs to other solvers, or a value out of range.
    """
    name = name.replace("_", "-").lower()
    if name not in SOLVERS:
        raise ValueError(f"solver = {name!r} must be one of {', '.join(SOLVERS)}")
    given = {k: v for k, v in options.items() if v is not None}
    refuse_unused(name, given)
    if name in _ADAPTIVE:
        return _ADAPTIVE[name](**given)
    corrector = _corrector(name, given)
    if name == "score-sde":
        return ScoreSDE(str(given.get("predictor", "reverse-diffusion")).replace("-", "_"), corrector)  # type: ignore
    if name == "none" and corrector is None:
        raise ValueError("solver none needs a corrector: langevin or ald")
    solver = _PLANNED[name](**{k: given[k] for k in ("eta", "variance") if k in given})
    return solver if corrector is None else PredictorCorrector(solver, corrector)


def _corrector(name: str, given: Mapping[str, Any]) -> Corrector | None:
    kind, snr, corrections = given.get("corrector", "none"), given.get("snr", 0.16), given.get("corrections", 1)
    if kind not in CORRECTORS:
        raise ValueError(f"corrector = {kind!r} must be one of {', '.join(CORRECTORS)}")
    if kind == "none":
        return None
    if kind == "ald":
        return AnnealedLangevin(snr, corrections)
    return Langevin(snr, corrections, "batch" if name == "score-sde" else given.get("norm", "sample"))


def refuse_unused(name: str, given: Mapping[str, Any]) -> None:
    """Raise ValueError for an option, of a solver or of its grid, that was given and that the solver would ignore."""
    corrects, planned = given.get("corrector", "none"), name not in _ADAPTIVE
    uses = {
        **{k: (planned, "solvers with a grid") for k in ("steps", "grid", "corrector")},
        **{k: (not planned, f"the solvers {', '.join(ADAPTIVE)}") for k in ("rtol", "atol")},
        "eta": (name in ("ddim", "em"), "the solvers ddim and em"),
        "variance": (name in ("ddpm", "ancestral"), "the solvers ddpm and ancestral"),
        "predictor": (name == "score-sde", "the solver score-sde"),
        **{k: (corrects != "none", "the correctors langevin and ald") for k in ("snr", "corrections")},
        "rho": (planned and given.get("grid") in (None, "karras"), "the grid karras"),
        "norm": (corrects == "langevin" and name != "score-sde", "the corrector langevin"),
    }
    for option in given:
        used, owner = uses.get(option, (False, "no solver"))
        if not used:
            raise ValueError(f"{option} belongs to {owner}; leave it out with solver {name}")


def default_grid(
    solver: Solver | Adaptive,
    schedule: Schedule,
    own: Schedule,
    steps: int | None = None,
    *,
    spacing: str | None = None,
    start: float | None = None,
    end: float | None = None,
    clean: bool | None = None,
    rho: float = 7.0,
) -> Grid | Span:
    """Return the grid that suits a solver and a schedule, or the span of an adaptive solver.

    Ancestral and Euler-Maruyama steps, PNDM and whatever has a corrector get even times, as in their papers; the others
    get Karras levels, or even times where the first one is pure noise. EDM's time is sigma itself, which even steps do
    not suit. Tables get trailing indices, unless the network's ``own`` schedule has less noise than the last of them.

    Args:
        steps: 20 if left out. spacing, start, end, rho: of the Grid.
        clean: whether the last step goes to sigma = 0; yes if left out, but for score_sde's own grids.

    Raises:
        ValueError: steps for an adaptive solver, or out of range.
    """
    if isinstance(solver, Adaptive):
        if steps is not None:
            raise ValueError(f"steps = {steps}: {type(solver).__name__} chooses its own; give rtol and atol instead")
        return Span(start, end, clean is not False)
    if spacing is None:
        even = _on_even_times(solver)
        first = schedule.T if start is None else start
        table = isinstance(schedule, DiscreteVP | DiscreteVE)
        whole = start is None and end is None and clean is not False
        if table and whole and lam(schedule, schedule.T) >= lam(own, own.T):
            spacing = "trailing"
        elif table or isinstance(schedule, EDM) or (not even and math.isfinite(float(lam(schedule, first)))):
            spacing = "karras"
        else:
            spacing = "uniform"
    if clean is None:
        clean = not isinstance(solver, ScoreSDE)
    if steps is None:
        steps = min(STEPS, int(schedule.T) + 1) if spacing == "trailing" else STEPS
    return Grid(spacing, steps, start, end, clean, rho)


def _on_even_times(solver: Solver) -> bool:
    if isinstance(solver, RePaint):
        return _on_even_times(solver.solver)
    return isinstance(solver, _ON_EVEN_TIMES) or (isinstance(solver, DDIM) and solver.eta > 0.0)
