"""Solvers: pure functions from a schedule and knots to plan rows.

Their classes load on first use, so that the names of solvers/names.py cost no NumPy.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from fastscore.solvers.adaptive import BogackiShampine, Dopri5, DPMAdaptive, GottaGoFast
    from fastscore.solvers.alphafold import AlphaFold3
    from fastscore.solvers.cfgpp import CFGPlusPlus, CFGPlusPlusVariant
    from fastscore.solvers.compose import (
        AncestralSplit,
        Churn,
        Hybrid,
        PredictorCorrector,
        ScaledNoise,
    )
    from fastscore.solvers.correctors import AnnealedLangevin, Langevin
    from fastscore.solvers.dpm import DPMFast, DPMSolver
    from fastscore.solvers.er_sde import ERSDE
    from fastscore.solvers.flow_sde import CPS, DanceSDE, FlowSDE
    from fastscore.solvers.in_sigma import InSigma
    from fastscore.solvers.multistep import DEIS, LMS, DPMMultistep, DPMpp2M
    from fastscore.solvers.ode import RK2, RK4, Euler, Heun, ImplicitMidpoint
    from fastscore.solvers.pndm import IPNDM, PNDM, GradientEstimation, HeunPP
    from fastscore.solvers.renoise import Renoise
    from fastscore.solvers.restart import Interval, RePaint, Restart
    from fastscore.solvers.score_sde import ScoreSDE
    from fastscore.solvers.sde import DDIM, DDPM, Ancestral, EulerMaruyama, Milstein, ReverseDiffusion, StochasticHeun
    from fastscore.solvers.seeds import SEEDS
    from fastscore.solvers.unipc import SASolver, UniPC
    from fastscore.solvers.window import Window

_HOME = {
    "adaptive": "BogackiShampine DPMAdaptive Dopri5 GottaGoFast",
    "alphafold": "AlphaFold3",
    "cfgpp": "CFGPlusPlus CFGPlusPlusVariant",
    "compose": "AncestralSplit Churn Hybrid PredictorCorrector ScaledNoise",
    "correctors": "AnnealedLangevin Langevin",
    "dpm": "DPMFast DPMSolver",
    "er_sde": "ERSDE",
    "flow_sde": "CPS DanceSDE FlowSDE",
    "in_sigma": "InSigma",
    "multistep": "DEIS DPMMultistep DPMpp2M LMS",
    "ode": "Euler Heun ImplicitMidpoint RK2 RK4",
    "pndm": "GradientEstimation HeunPP IPNDM PNDM",
    "renoise": "Renoise",
    "restart": "Interval RePaint Restart",
    "score_sde": "ScoreSDE",
    "sde": "Ancestral DDIM DDPM EulerMaruyama Milstein ReverseDiffusion StochasticHeun",
    "seeds": "SEEDS",
    "unipc": "SASolver UniPC",
    "window": "Window",
}
_MODULE = {name: module for module, names in _HOME.items() for name in names.split()}

__all__ = sorted(_MODULE)  # pyright: ignore[reportUnsupportedDunderAll]


def __getattr__(name: str) -> Any:
    if name not in _MODULE:
        raise AttributeError(f"module 'fastscore.solvers' has no attribute {name!r}")
    return getattr(import_module(f"fastscore.solvers.{_MODULE[name]}"), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *_MODULE])
