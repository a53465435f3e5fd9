"""The solver here of each scheduler class of diffusers; what is not repeated exactly is refused by name."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from fastscore.guidance.thresholds import Quantile, StaticThreshold
from fastscore.plan.rows import Solver
from fastscore.solvers.compose import AncestralSplit
from fastscore.solvers.dpm import DPMSolver
from fastscore.solvers.multistep import DEIS, LMS, DPMMultistep
from fastscore.solvers.ode import Euler, Heun
from fastscore.solvers.pndm import PNDM
from fastscore.solvers.sde import DDIM, DDPM
from fastscore.solvers.unipc import UniPC

Config = Mapping[str, Any]
ANY = "any solver samples the network alike: solver='dpmpp-2m', steps=20"


def refusal(kind: str, what: str, instead: str) -> ValueError:
    """Return the error that a scheduler, or a setting of it, is not repeated here."""
    return ValueError(f"{kind}: {what} is not repeated here; {instead}")


@dataclass(frozen=True)
class Run:
    """As much of a run as decides its solver.

    Attributes:
        steps: how many.
        repeats_end: whether the last one goes from a level to itself; ``clean``, whether to sigma = 0.
        strides: the distances between labels.
        eta: of DDIM.
    """

    steps: int
    repeats_end: bool = False
    clean: bool = True
    strides: frozenset[float] = frozenset()
    eta: float = 0.0

    def lowers(self, kind: str, config: Config) -> bool:
        """Return ``lower_order_final`` of the steps that move, the last of which may not be the scheduler's last."""
        lower = bool(config.get("lower_order_final", True))
        if lower and self.repeats_end and self.steps < 15 and config.get("solver_order", 2) > 2:
            what = "order 3 in fewer than 15 steps with a last step from a level to itself"
            raise refusal(kind, what, "nearest is solver_order=2, or final_sigmas_type='zero'")
        return lower and not self.repeats_end


@dataclass(frozen=True)
class Rule:
    """How a scheduler class is repeated.

    Attributes:
        family: "index", a table's indices; "sigma", a state x_0 + sigma z; "lam", a state of variance one.
        solver: from kind, config and run.
        without: entries of a config that must be false.
    """

    family: str
    solver: Callable[[str, Config, Run], Solver]
    without: tuple[str, ...] = ()


def _ddpm(kind: str, config: Config, run: Run) -> Solver:
    variance = config.get("variance_type", "fixed_small")
    if variance not in ("fixed_small", "fixed_large"):
        what = f"variance_type = {variance!r}"
        raise refusal(kind, what, f"nearest are fixed_small and fixed_large, solver=DDPM('small'); {ANY}")
    return DDPM(variance.removeprefix("fixed_"))


def _ddim(kind: str, config: Config, run: Run) -> Solver:
    clips = bool(config.get("clip_sample", True) or config.get("thresholding"))
    to_one = config.get("set_alpha_to_one", True)
    return DDIM(run.eta, keep_eps=clips, fixed_stride=True, set_alpha_to_one=to_one)


def _pndm(kind: str, config: Config, run: Run) -> Solver:
    if not config.get("skip_prk_steps"):
        raise refusal(kind, "its Runge-Kutta start", "nearest are skip_prk_steps=True, and solver=PNDM()")
    if config.get("set_alpha_to_one"):
        raise refusal(kind, "set_alpha_to_one=True", "nearest is set_alpha_to_one=False")
    if len(run.strides) > 1:
        what = f"timestep_spacing = {config.get('timestep_spacing')!r} at {run.steps} steps, whose steps overlap,"
        raise refusal(kind, what, "nearest is timestep_spacing='leading'")
    return PNDM(prk=False)


def _dpm(kind: str, config: Config, run: Run) -> Solver:
    algorithm, order = config.get("algorithm_type", "dpmsolver++"), config.get("solver_order", 2)
    heun, eta = config.get("solver_type") == "heun", float(algorithm.startswith("sde"))
    if run.repeats_end and order == 3:
        raise refusal(kind, "order 3 with a last step from a level to itself, NaN there,", "nearest is solver_order=2")
    form = ("diffusers-heun" if order == 3 else "exact") if heun else "diffusers"
    lower, euler = run.lowers(kind, config), config.get("euler_at_final", False) and not run.repeats_end
    return DPMMultistep(order, "x0" if algorithm.endswith("++") else "eps", form, eta, lower, euler)


def _singlestep(kind: str, config: Config, run: Run) -> Solver:
    algorithm, order = config.get("algorithm_type", "dpmsolver++"), config.get("solver_order", 2)
    if algorithm.startswith("sde"):
        raise refusal(kind, f"algorithm_type = {algorithm!r}", "nearest is that of DPMSolverMultistepScheduler")
    if order > 1 and config.get("solver_type") == "heun":
        raise refusal(kind, "solver_type = 'heun'", "nearest is 'midpoint'")
    # What its set_timesteps turns on, whatever the config says.
    lower = config.get("lower_order_final", False) or run.steps % order != 0
    form = "midpoint" if order == 3 else "exact"
    prediction = "x0" if algorithm.endswith("++") else "eps"
    return DPMSolver(order, prediction, on_grid=True, form=form, lower_order_final=lower)


def _unipc(kind: str, config: Config, run: Run) -> Solver:
    if config.get("solver_p") is not None:
        raise refusal(kind, "solver_p", "leave it out")
    if run.repeats_end:
        raise refusal(kind, "a last step from a level to itself (final_sigmas_type)", "nearest is 'zero'")
    prediction = "x0" if config.get("predict_x0", True) else "eps"
    first_order = config.get("lower_order_final", True) or config.get("solver_order", 2) == 1
    if run.clean and not (prediction == "x0" and first_order and config.get("solver_type", "bh2") == "bh2"):
        raise refusal(kind, "a last step to sigma = 0 that is NaN there", "nearest is final_sigmas_type='sigma_min'")
    lower, off = config.get("lower_order_final", True), tuple(config.get("disable_corrector", ()))
    order, variant = config.get("solver_order", 2), config.get("solver_type", "bh2")
    return UniPC(order, variant, prediction, lower, off, math.inf)


def _deis(kind: str, config: Config, run: Run) -> Solver:
    return DEIS(config.get("solver_order", 2), lower_order_final=run.lowers(kind, config))


def _always(solver: Solver) -> Callable[[str, Config, Run], Solver]:
    return lambda kind, config, run: solver


RULES = {
    "DDPMScheduler": Rule("index", _ddpm),
    "DDIMScheduler": Rule("index", _ddim),
    "PNDMScheduler": Rule("index", _pndm),
    "EulerDiscreteScheduler": Rule("sigma", _always(Euler())),
    "EulerAncestralDiscreteScheduler": Rule("sigma", _always(AncestralSplit(Euler()))),
    "HeunDiscreteScheduler": Rule("sigma", _always(Heun())),
    "LMSDiscreteScheduler": Rule("sigma", _always(LMS(4, denoise=False))),
    "KDPM2DiscreteScheduler": Rule("sigma", _always(DPMSolver(2))),
    "KDPM2AncestralDiscreteScheduler": Rule("sigma", _always(AncestralSplit(DPMSolver(2)))),
    "DPMSolverMultistepScheduler": Rule("lam", _dpm),
    "DPMSolverSinglestepScheduler": Rule("lam", _singlestep),
    "UniPCMultistepScheduler": Rule("lam", _unipc),
    "DEISMultistepScheduler": Rule("lam", _deis),
    "EDMEulerScheduler": Rule("sigma", _always(Euler())),
    "EDMDPMSolverMultistepScheduler": Rule("sigma", _dpm),
    "FlowMatchEulerDiscreteScheduler": Rule("lam", _always(Euler()), ("invert_sigmas", "stochastic_sampling")),
    "FlowMatchHeunDiscreteScheduler": Rule("lam", _always(Heun())),
}
NEAREST = {
    "DPMSolverSDEScheduler": "its noise is a Brownian tree's; nearest is solver=DPMSolver(2, 'x0', 1.0)",
    "SASolverScheduler": "nearest is solver=SASolver(2, 2, EtaWindow(200, 800), True, False, 'diffusers')",
    "DDIMInverseScheduler": "nearest is solver=DDIM(fixed_stride=True, inverse=True), or ProbabilityFlow.encode",
    "LCMScheduler": "nearest is solver=Renoise(boundary=10.0)",
    "FlowMatchLCMScheduler": "nearest is solver=Renoise()",
    "TCDScheduler": "nearest is solver=Renoise(0.3, 'time') on a grid that ends at index 0",
    "CMStochasticIterativeScheduler": "nearest is solver=Renoise(sigma_min=0.002) with clip=1",
    "LTXEulerAncestralRFScheduler": "nearest is solver=AncestralSplit(DDIM(), 1.0, 'flow')",
    "FlowMapEulerDiscreteScheduler": "nearest is solver=DDIM() with a ScoreModel of two_times=True",
    "IPNDMScheduler": "nearest is solver=IPNDM(4)",
    "ScoreSdeVeScheduler": "nearest is from_score_sde, with solver=ScoreSDE(), which is the authors' own code",
    "CosineDPMSolverMultistepScheduler": "nearest is solver=DPMMultistep(2, 'x0', 'paper', 1.0)",
    "DDIMParallelScheduler": "nearest is DDIMScheduler, with Sampler(parallel=Picard())",
    "DDPMParallelScheduler": "nearest is DDPMScheduler, with Sampler(parallel=Picard())",
}


def rule_of(kind: str, config: Config) -> Rule:
    """Return how a scheduler class is repeated; ValueError with the nearest that is, where it is not."""
    if kind not in RULES:
        raise refusal(kind, "its loop", NEAREST.get(kind, ANY))
    for name in RULES[kind].without:
        if config.get(name):
            raise refusal(kind, f"{name} = True", f"nearest is {name}=False")
    return RULES[kind]


def bounds(kind: str, config: Config) -> dict[str, Any]:
    """Return the settings that bound the estimate of x0 as a scheduler does: ``clip``, ``guide`` or none.

    Raises:
        ValueError: a bound after which DDIM keeps the network's eps, and which is not the same for all samples.
    """
    clips, top = bool(config.get("clip_sample")), float(config.get("sample_max_value", 1.0))
    if kind not in ("DDPMScheduler", "DDIMScheduler", "HeunDiscreteScheduler"):
        clips = False  # DPM-Solver and others have the entry from elsewhere, and ignore it
    thresholds = bool(config.get("thresholding")) and config.get("predict_x0", True) and "Discrete" not in kind
    if thresholds and top > 1.0:
        if kind == "DDIMScheduler":
            raise refusal(kind, f"thresholding with sample_max_value = {top}", "nearest is DDPMScheduler's; " + ANY)
        return {"guide": Quantile(float(config.get("dynamic_thresholding_ratio", 0.995)), top)}
    if not (thresholds or clips):
        return {}
    bound = 1.0 if thresholds else float(config.get("clip_sample_range", 1.0))
    return {"clip": bound} if kind in ("DDPMScheduler", "DDIMScheduler") else {"guide": StaticThreshold(bound)}
