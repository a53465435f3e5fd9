"""Recorded rules of guidance: diffusers' guiders and ComfyUI's nodes in an Euler loop, on two mixtures."""

from __future__ import annotations

from typing import Any

import torch
from golden import Case

from fastscore.guidance.chain import Chain
from fastscore.guidance.mixture import Guidance
from fastscore.guidance.rules import APG, MAMBOG, TCFG, CFGNorm, CFGRescale, CFGZeroStar
from fastscore.guidance.thresholds import Quantile
from fastscore.model.analytic import GaussianMixture
from fastscore.model.score import ScoreModel
from fastscore.process.continuous import EDM, Trig
from fastscore.process.discrete import discrete_vp
from fastscore.process.grid import Times
from fastscore.process.parametrization import Parametrization
from fastscore.sampler import Sampler
from fastscore.solvers import DDIM, Euler

ALWAYS = (
    "guidance/apg", "guidance/apg_comfy", "guidance/apg_eps", "guidance/cfg_interval", "guidance/cfg_norm_comfy",
    "guidance/cfg_rescale", "guidance/cfg_zero_star_comfy", "guidance/cfg_zero_star_init2",
    "guidance/dynamic_thresholding_ddim", "guidance/mambo", "guidance/rescale_cfg_comfy", "guidance/tcfg",
)  # fmt: skip


def two(arrays: dict[str, Any]) -> ScoreModel:
    """Return the mixtures of the recording as the two classes of one model, the second of them the null class."""
    targets = [
        GaussianMixture(*(torch.from_numpy(arrays[f"{name}__{k}"]).double() for k in ("w", "mu", "s")))
        for name in ("target", "uncond")
    ]

    def net(u: torch.Tensor, t: torch.Tensor, cond: torch.Tensor) -> torch.Tensor:
        assert bool((cond == cond[0]).all())
        return targets[int(cond[0])](u, t)

    shape = tuple(targets[0].means.shape[1:])
    return ScoreModel(net, shape, Trig(), Parametrization("x0", "t"), classes=1, null=1)


def guided(s: dict[str, Any]) -> tuple[Guidance, Any]:
    """Return the guidance and the guide of a recorded rule."""
    given, cls, space = s["settings"], s["cls"], s["space"]
    weight = s["cfg"] + given.get("use_original_formulation", False)
    guidance = Guidance(weight, steps=(given.get("start", 0.0), given.get("stop", 1.0)))
    rescale = given.get("guidance_rescale", 0.0)
    guide = {
        "AdaptiveProjectedGuidance": lambda: APG(
            given.get("eta", 1.0),
            given.get("adaptive_projected_guidance_rescale", 15.0) or None,
            given.get("adaptive_projected_guidance_momentum") or 0.0,
            space,
            "paper" if given.get("use_original_formulation") else "diffusers",
        ),
        "APG": lambda: APG(
            given.get("eta", 1.0),
            given.get("norm_threshold", 5.0) or None,
            given.get("momentum", 0.0),
            space,
            "comfyui",
        ),
        "ClassifierFreeGuidance": lambda: None,
        "ClassifierFreeZeroStarGuidance": lambda: CFGZeroStar(given.get("zero_init_steps", 1), space),
        "CFGZeroStar": lambda: CFGZeroStar(0, "eps", "comfyui"),
        "TangentialClassifierFreeGuidance": lambda: TCFG(space),
        "TCFG": lambda: TCFG("eps"),
        "CFGNorm": lambda: CFGNorm(given.get("strength", 1.0)),
        "MagnitudeAwareGuidance": lambda: MAMBOG(given.get("alpha", 8.0), space),
        "RescaleCFG": lambda: CFGRescale(given.get("multiplier", 0.7), "v"),
        "DDIMScheduler": lambda: Quantile(
            given.get("dynamic_thresholding_ratio", 0.995), given.get("sample_max_value", 1.0)
        ),
    }[cls]()
    if rescale:
        guide = CFGRescale(rescale, space) if guide is None else Chain((guide, CFGRescale(rescale, space)))
    return guidance, guide


def run(name: str, s: dict[str, Any], arrays: dict[str, Any]) -> tuple[torch.Tensor, torch.Tensor, Case]:
    """Return (ours, recorded, case)."""
    key = name.replace("/", "__")
    x, noise = (torch.from_numpy(arrays[f"{key}__{k}"]).double() for k in ("x", "noise"))
    if s["loop"] == "ddim":
        given, n = s["settings"], s["steps"]
        schedule = discrete_vp("scaled-linear", 1000, given["beta_start"], given["beta_end"])
        to_one = given.get("set_alpha_to_one", True)
        solver, times = DDIM(keep_eps=True, fixed_stride=True, set_alpha_to_one=to_one), [*s["timesteps"], -1.0]
        init = noise[0]
        assert len(s["timesteps"]) == n
    else:
        sigmas = s["sigmas"]
        schedule, solver, times = EDM(0.5 * min(v for v in sigmas if v), sigmas[0]), Euler(), sigmas
        init = sigmas[0] * noise[0]
    guidance, guide = guided(s)
    case = Case(schedule, solver, Times(tuple(times)), [0], 1e-9)
    sampler = Sampler(
        two(arrays), schedule=schedule, solver=solver, grid=case.grid, batch=len(x), dtype=torch.float64,
        guidance=guidance, guide=guide, start="state",
    )  # fmt: skip
    return sampler.run(range(len(x)), labels=0, init=init), x, case
