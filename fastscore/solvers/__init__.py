"""Solvers: pure functions from a schedule and knots to plan rows."""

from fastscore.solvers.adaptive import BogackiShampine, Dopri5, DPMAdaptive, GottaGoFast
from fastscore.solvers.compose import AncestralSplit, Churn, Hybrid, Interval, PredictorCorrector, RePaint, Restart
from fastscore.solvers.correctors import AnnealedLangevin, Langevin
from fastscore.solvers.dpm import DPMSolver
from fastscore.solvers.multistep import DEIS, LMS, DPMMultistep, DPMpp2M
from fastscore.solvers.ode import RK2, RK4, Euler, Heun, ImplicitMidpoint
from fastscore.solvers.pndm import IPNDM, PNDM
from fastscore.solvers.score_sde import ScoreSDE
from fastscore.solvers.sde import DDIM, DDPM, Ancestral, EulerMaruyama, ReverseDiffusion, StochasticHeun
from fastscore.solvers.unipc import SASolver, UniPC

__all__ = [
    "DDIM",
    "DDPM",
    "DEIS",
    "IPNDM",
    "LMS",
    "PNDM",
    "RK2",
    "RK4",
    "Ancestral",
    "AncestralSplit",
    "AnnealedLangevin",
    "BogackiShampine",
    "Churn",
    "DPMAdaptive",
    "DPMMultistep",
    "DPMSolver",
    "DPMpp2M",
    "Dopri5",
    "Euler",
    "EulerMaruyama",
    "GottaGoFast",
    "Heun",
    "Hybrid",
    "ImplicitMidpoint",
    "Interval",
    "Langevin",
    "PredictorCorrector",
    "RePaint",
    "Restart",
    "ReverseDiffusion",
    "SASolver",
    "ScoreSDE",
    "StochasticHeun",
    "UniPC",
]
