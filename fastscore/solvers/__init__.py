"""Solvers: pure functions from a schedule and knots to plan rows."""

from fastscore.solvers.compose import PredictorCorrector
from fastscore.solvers.correctors import AnnealedLangevin, Langevin
from fastscore.solvers.multistep import DPMpp2M
from fastscore.solvers.ode import Euler, Heun
from fastscore.solvers.score_sde import ScoreSDE
from fastscore.solvers.sde import DDIM, DDPM, Ancestral, EulerMaruyama, ReverseDiffusion

__all__ = [
    "DDIM",
    "DDPM",
    "Ancestral",
    "AnnealedLangevin",
    "DPMpp2M",
    "Euler",
    "EulerMaruyama",
    "Heun",
    "Langevin",
    "PredictorCorrector",
    "ReverseDiffusion",
    "ScoreSDE",
]
