"""What the study of work and precision compares: solvers by name, grids, budgets and tolerances."""

from __future__ import annotations

from collections.abc import Callable

import fastscore as fs
from fastscore import solvers as s
from fastscore.solvers.adaptive import Adaptive

BUDGETS = (5, 10, 20, 50, 200, 1000)

# By the names of `fastscore sample --solver`, where it has one.
FAMILIES: dict[str, dict[str, fs.Solver]] = {
    "ODE, one step": {
        "euler": s.Euler(),
        "ddim": s.DDIM(),
        "heun": s.Heun(),
        "midpoint": s.RK2(),
        "rk4": s.RK4(),
        "implicit-midpoint": s.ImplicitMidpoint(),
        "dpm-2": s.DPMSolver(2),
        "dpm-3": s.DPMSolver(3),
        "dpmpp-2s": s.DPMSolver(2, "x0"),
        "dpmpp-3s": s.DPMSolver(3, "x0"),
        "dpm-fast": s.DPMFast(),
        "res-2s": s.SEEDS(2, 0.0, form="phi_2"),
        "exp-heun-2-x0": s.SEEDS(2, 0.0, r=1.0, form="phi_2"),
    },
    "ODE, several steps": {
        "dpm-2m": s.DPMMultistep(2, "eps", "paper"),
        "dpm-3m": s.DPMMultistep(3, "eps"),
        "dpmpp-2m": s.DPMpp2M(),
        "dpmpp-3m": s.DPMMultistep(3),
        "unipc": s.UniPC(),
        "unipc, p = 3": s.UniPC(3),
        "deis": s.DEIS(),
        "deis-tab": s.DEIS(basis="tab"),
        "lms": s.LMS(),
        "pndm": s.PNDM(),
        "plms": s.PNDM(prk=False),
        "ipndm": s.IPNDM(),
        "heunpp2": s.HeunPP(),
        "gradient-estimation": s.GradientEstimation(),
        "er-sde, ode": s.ERSDE(3, "ode"),
    },
    "SDE": {
        "em": s.EulerMaruyama(),
        "ancestral": s.Ancestral(),
        "reverse-diffusion": s.ReverseDiffusion(),
        "heun-sde": s.StochasticHeun(),
        "reverse-diffusion, ald": s.PredictorCorrector(s.ReverseDiffusion(), s.AnnealedLangevin()),
        "edm-churn": s.Churn(),
        "dpm-2-ancestral": s.AncestralSplit(s.DPMSolver(2)),
        "dpmpp-2s-ancestral": s.AncestralSplit(s.DPMSolver(2, "x0")),
        "dpmpp-sde": s.DPMSolver(2, "x0", 1.0),
        "dpmpp-2m-sde": s.DPMMultistep(2, "x0", "paper", 1.0),
        "dpmpp-2m-sde-heun": s.DPMMultistep(2, "x0", "exact", 1.0),
        "dpmpp-3m-sde": s.DPMMultistep(3, "x0", "exact", 1.0),
        "sa": s.SASolver(),
        "er-sde": s.ERSDE(),
        "seeds-2": s.SEEDS(2),
        "seeds-3": s.SEEDS(3),
    },
}
SOLVERS = {name: solver for family in FAMILIES.values() for name, solver in family.items()}
ADAPTIVE: dict[str, Callable[[float], Adaptive]] = {
    "dopri5": lambda rtol: s.Dopri5(rtol, rtol),
    "bs32": lambda rtol: s.BogackiShampine(rtol, rtol),
    "dpm12": lambda rtol: s.DPMAdaptive(2, rtol, rtol),
    "dpm23": lambda rtol: s.DPMAdaptive(3, rtol, rtol),
    "ggf": lambda rtol: s.GottaGoFast(rtol, rtol),
}
TOLERANCES = (1e-1, 3e-2, 1e-2, 1e-3, 1e-4)
# Of so many steps; None is the default grid of the solver.
GRIDS: dict[str, tuple[fs.Schedule, Callable[[int], fs.Grid] | None]] = {
    "default": (fs.EDM(), None),
    "karras levels": (fs.EDM(), fs.karras),
    "even VP times": (fs.VP(), lambda steps: fs.uniform(steps, clean=True)),
}
# One evaluation a step, so that K steps are K evaluations, and the best of each family on mixtures.
IMAGES = (
    "dpmpp-2m", "dpmpp-3m", "unipc", "deis", "gradient-estimation", "ddim", "er-sde", "dpmpp-2m-sde", "dpmpp-3m-sde",
    "sa", "ancestral",
)  # fmt: skip
IMAGE_SEED = 1  # with which the study of few evaluations has measured them all

# Long runs cost hours on a CPU; the recommendation for a budget that has none is that of the budget before it.
TIE = 0.05
FINALISTS = {50: ("dpmpp-2m", "er-sde")}
