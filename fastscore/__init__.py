"""fastscore: a fast, exact and reproducible sampler engine for score-based generative models.

Public names load on first use, so that importing the package costs nothing.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from fastscore.analytic import Empirical, GaussianMixture, score_model
    from fastscore.beta import CosineBeta, ExponentialBeta, FunctionBeta, LinearBeta
    from fastscore.conditions import Known
    from fastscore.engine.batches import NonFiniteError
    from fastscore.engine.parallel import Picard
    from fastscore.files import bundled
    from fastscore.grid import Grid, Span, Times, edm, indices, karras, logsnr, quadratic, uniform
    from fastscore.guidance import Guidance
    from fastscore.guides import DPS, CFGRescale, Chain, ClassifierGuidance, DynamicThreshold, EnergyGuidance, PiGDM
    from fastscore.joint import JointModel, JointSampler, Part
    from fastscore.likelihood import ProbabilityFlow, dequantize
    from fastscore.matrix import whitened
    from fastscore.model import ScoreModel, load_model
    from fastscore.network import Numerics, prepare
    from fastscore.parametrization import Parametrization
    from fastscore.presets import ncsn, ncsnv2
    from fastscore.probe import probe_batch
    from fastscore.sampler import Sampler
    from fastscore.schedule import EDM, VE, VP, Flow, Pair, SubVP, TutorialVE
    from fastscore.solvers import (
        DDIM,
        DDPM,
        DEIS,
        IPNDM,
        LMS,
        PNDM,
        RK2,
        RK4,
        Ancestral,
        AncestralSplit,
        AnnealedLangevin,
        BogackiShampine,
        Churn,
        Dopri5,
        DPMAdaptive,
        DPMMultistep,
        DPMpp2M,
        DPMSolver,
        Euler,
        EulerMaruyama,
        GottaGoFast,
        Heun,
        Hybrid,
        ImplicitMidpoint,
        Interval,
        Langevin,
        PredictorCorrector,
        RePaint,
        Restart,
        ReverseDiffusion,
        SASolver,
        ScoreSDE,
        StochasticHeun,
        UniPC,
    )
    from fastscore.tables import DiscreteVE, DiscreteVP, ddpm, smld

__version__ = "0.1.0"

_HOME = {
    "analytic": "Empirical GaussianMixture score_model",
    "beta": "CosineBeta ExponentialBeta FunctionBeta LinearBeta",
    "conditions": "Known",
    "engine.batches": "NonFiniteError",
    "engine.parallel": "Picard",
    "files": "bundled",
    "grid": "Grid Span Times edm indices karras logsnr quadratic uniform",
    "joint": "JointModel JointSampler Part",
    "likelihood": "ProbabilityFlow dequantize",
    "matrix": "whitened",
    "guidance": "Guidance",
    "guides": "CFGRescale Chain ClassifierGuidance DPS DynamicThreshold EnergyGuidance PiGDM",
    "model": "ScoreModel load_model",
    "network": "Numerics prepare",
    "parametrization": "Parametrization",
    "presets": "ncsn ncsnv2",
    "probe": "probe_batch",
    "sampler": "Sampler",
    "schedule": "EDM VE VP Flow Pair SubVP TutorialVE",
    "solvers": "DDIM DDPM DEIS IPNDM LMS PNDM RK2 RK4 Ancestral AncestralSplit AnnealedLangevin BogackiShampine Churn "
    "DPMAdaptive DPMMultistep DPMpp2M DPMSolver Dopri5 Euler EulerMaruyama GottaGoFast Heun Hybrid ImplicitMidpoint "
    "Interval Langevin PredictorCorrector RePaint Restart ReverseDiffusion SASolver ScoreSDE StochasticHeun UniPC",
    "tables": "DiscreteVE DiscreteVP ddpm smld",
}
_MODULE = {name: module for module, names in _HOME.items() for name in names.split()}

__all__ = sorted(_MODULE)  # pyright: ignore[reportUnsupportedDunderAll]


def __getattr__(name: str) -> Any:
    if name not in _MODULE:
        raise AttributeError(f"module 'fastscore' has no attribute {name!r}")
    return getattr(import_module(f"fastscore.{_MODULE[name]}"), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *_MODULE])
