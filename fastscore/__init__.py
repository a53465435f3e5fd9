"""fastscore: a fast, exact and reproducible sampler engine for score-based generative models.

Public names load on first use, so that importing the package costs nothing.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from fastscore.adapters.diffusers.scheduler import Scheduler
    from fastscore.chains import Chains
    from fastscore.engine.fit import fit_grid
    from fastscore.engine.fitted import FittedGrid
    from fastscore.engine.picard import Picard
    from fastscore.engine.policy import random_window
    from fastscore.engine.request import Request
    from fastscore.engine.rollout import Rollout, Transition
    from fastscore.engine.serve import Engine, Handle
    from fastscore.engine.trajectory import Traced, Trajectory, trajectory
    from fastscore.errors import NonFiniteError, SelfCheckError, StepSizeError
    from fastscore.execution import Execution
    from fastscore.flow import ProbabilityFlow, dequantize
    from fastscore.guidance.chain import Chain
    from fastscore.guidance.guides import DPS, ClassifierGuidance, EnergyGuidance, PiGDM
    from fastscore.guidance.mixture import Guidance
    from fastscore.guidance.rules import APG, MAMBOG, TCFG, CFGNorm, CFGRescale, CFGZeroStar
    from fastscore.guidance.thresholds import DynamicThreshold, Quantile, StaticThreshold
    from fastscore.joint import JointSampler
    from fastscore.model.analytic import Empirical, GaussianMixture, score_model
    from fastscore.model.conditions import Known
    from fastscore.model.constrained import Constrained
    from fastscore.model.coordinates import whitened
    from fastscore.model.decoder import Decoder
    from fastscore.model.folder import bundled, load_model
    from fastscore.model.joint import JointModel, Part
    from fastscore.model.projection import Centred, Intersection, Padded, Projection
    from fastscore.model.score import ScoreModel
    from fastscore.network.prepare import Numerics, prepare
    from fastscore.network.timing import choose_batch
    from fastscore.output.log import Log
    from fastscore.output.run import draw
    from fastscore.plan.rows import LangevinStep, Plan, Row
    from fastscore.process.beta import CosineBeta, ExponentialBeta, FunctionBeta, LinearBeta
    from fastscore.process.continuous import EDM, VE, VP, Flow, Pair, SubVP, TutorialVE
    from fastscore.process.discrete import DiscreteVE, DiscreteVP, discrete_vp, smld
    from fastscore.process.grid import (
        Grid,
        Span,
        Times,
        arctan,
        dynamic_shift,
        edm_levels,
        indices,
        karras,
        logsnr,
        quadratic,
        shifted,
        uniform,
    )
    from fastscore.process.parametrization import Parametrization
    from fastscore.sampler import Sampler
    from fastscore.solvers import (
        CPS,
        DDIM,
        DDPM,
        DEIS,
        ERSDE,
        IPNDM,
        LMS,
        PNDM,
        RK2,
        RK4,
        SEEDS,
        AlphaFold3,
        Ancestral,
        AncestralSplit,
        AnnealedLangevin,
        BogackiShampine,
        CFGPlusPlus,
        CFGPlusPlusVariant,
        Churn,
        DanceSDE,
        Dopri5,
        DPMAdaptive,
        DPMFast,
        DPMMultistep,
        DPMpp2M,
        DPMSolver,
        Euler,
        EulerMaruyama,
        FlowSDE,
        GottaGoFast,
        GradientEstimation,
        Heun,
        HeunPP,
        Hybrid,
        ImplicitMidpoint,
        InSigma,
        Interval,
        Langevin,
        Milstein,
        PredictorCorrector,
        Renoise,
        RePaint,
        Restart,
        ReverseDiffusion,
        SASolver,
        ScaledNoise,
        ScoreSDE,
        StochasticHeun,
        UniPC,
        Window,
    )
    from fastscore.solvers.eta import EtaWindow
    from fastscore.solvers.names import solver
    from fastscore.solvers.presets import ncsn, ncsnv2, preset
    from fastscore.solvers.unipc import TauWindow
    from fastscore.training.settings import TrainConfig
    from fastscore.training.train import train

from fastscore import _aliases

__version__ = "0.1.0"

_HOME = {
    "adapters.diffusers.scheduler": "Scheduler SchedulerMixin",
    "chains": "Chains",
    "engine.fit": "fit_grid",
    "engine.fitted": "FittedGrid",
    "engine.picard": "Picard",
    "engine.policy": "random_window",
    "engine.request": "Request",
    "engine.rollout": "Rollout Transition",
    "engine.serve": "Engine Handle",
    "engine.trajectory": "Traced Trajectory trajectory",
    "errors": "NonFiniteError SelfCheckError StepSizeError",
    "flow": "ProbabilityFlow dequantize",
    "guidance.chain": "Chain",
    "guidance.guides": "ClassifierGuidance DPS EnergyGuidance PiGDM",
    "guidance.mixture": "Guidance",
    "guidance.rules": "APG CFGNorm CFGRescale CFGZeroStar MAMBOG TCFG",
    "guidance.thresholds": "DynamicThreshold Quantile StaticThreshold",
    "execution": "Execution",
    "joint": "JointSampler",
    "model.analytic": "Empirical GaussianMixture score_model",
    "model.conditions": "Known",
    "model.decoder": "Decoder",
    "model.constrained": "Constrained",
    "model.coordinates": "whitened",
    "model.folder": "bundled load_model",
    "model.joint": "JointModel Part",
    "model.projection": "Centred Intersection Padded Projection",
    "model.score": "ScoreModel",
    "network.prepare": "Numerics prepare",
    "network.timing": "choose_batch",
    "output.log": "Log",
    "output.run": "draw",
    "plan.rows": "LangevinStep Plan Row",
    "process.beta": "CosineBeta ExponentialBeta FunctionBeta LinearBeta",
    "process.continuous": "EDM VE VP Flow Pair SubVP TutorialVE",
    "process.discrete": "DiscreteVE DiscreteVP discrete_vp smld",
    "process.grid": "Grid Span Times arctan dynamic_shift edm_levels indices karras logsnr quadratic shifted uniform",
    "process.parametrization": "Parametrization",
    "sampler": "Sampler",
    "solvers": "CPS DDIM DDPM DEIS ERSDE IPNDM LMS PNDM RK2 RK4 SEEDS AlphaFold3 Ancestral AncestralSplit "
    "AnnealedLangevin BogackiShampine CFGPlusPlus CFGPlusPlusVariant Churn DPMAdaptive DPMFast DPMMultistep "
    "DPMSolver DPMpp2M DanceSDE Dopri5 Euler EulerMaruyama FlowSDE GottaGoFast GradientEstimation Heun HeunPP "
    "Hybrid ImplicitMidpoint InSigma Interval Langevin Milstein PredictorCorrector RePaint Renoise Restart "
    "ReverseDiffusion SASolver ScaledNoise ScoreSDE StochasticHeun UniPC Window",
    "solvers.eta": "EtaWindow",
    "solvers.names": "solver",
    "solvers.presets": "ncsn ncsnv2 preset",
    "training.settings": "TrainConfig",
    "training.train": "train",
    "solvers.unipc": "TauWindow",
}
_MODULE = {name: module for module, names in _HOME.items() for name in names.split()}
# Those that need diffusers: attributes, but no part of ``import *``. A saved pipeline names its scheduler by the
# package, where diffusers looks for the base class, too, to know how it is loaded.
_OPTIONAL = ("Scheduler", "SchedulerMixin")

__all__ = sorted(_MODULE.keys() - _OPTIONAL)  # pyright: ignore[reportUnsupportedDunderAll]


def __getattr__(name: str) -> Any:
    if name not in _MODULE:
        return _aliases.renamed(name)
    return getattr(import_module(f"fastscore.{_MODULE[name]}"), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
