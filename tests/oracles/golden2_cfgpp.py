"""Recorded runs of ComfyUI's samplers with CFG++, and of its "alternative" Euler, which is plain guidance."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from golden import Case

from fastscore.guidance.mixture import Guidance
from fastscore.model.analytic import GaussianMixture, score_model
from fastscore.process.continuous import EDM, Flow
from fastscore.process.grid import Times
from fastscore.sampler import Sampler
from fastscore.solvers import DDIM, AncestralSplit, CFGPlusPlus, CFGPlusPlusVariant, Euler, GradientEstimation, InSigma

ALWAYS = (
    "comfy/cfgpp_ud10_ab", "comfy/cfgpp_ud10_ab_flow", "comfy/dpmpp_2m_cfg_pp", "comfy/dpmpp_2s_ancestral_cfg_pp",
    "comfy/euler_ancestral_cfg_pp", "comfy/euler_cfg_pp_flow", "comfy/gradient_estimation_cfg_pp",
    "comfy/res_multistep_ancestral_cfg_pp", "comfy/res_multistep_cfg_pp", "guidance/euler_pp_alternative",
)  # fmt: skip


def solver_of(fn: str, given: dict[str, Any], flow: bool) -> Any:
    """Return the solver of a sampler's name and settings; all but three know no alpha."""
    eta = given.get("eta", 1.0)
    exact = {
        "euler_cfg_pp": lambda: CFGPlusPlus(DDIM()),
        "euler_ancestral_cfg_pp": lambda: CFGPlusPlus(AncestralSplit(DDIM(), eta)),
        "cfgpp_ud10_ab": lambda: CFGPlusPlusVariant("ud10-ab"),
    }
    in_sigma = {
        "dpmpp_2m_cfg_pp": lambda: CFGPlusPlusVariant("2m"),
        "dpmpp_2s_ancestral_cfg_pp": lambda: CFGPlusPlusVariant("2s", eta),
        "res_multistep_cfg_pp": lambda: CFGPlusPlusVariant("res"),
        "res_multistep_ancestral_cfg_pp": lambda: CFGPlusPlusVariant("res", eta),
        "gradient_estimation_cfg_pp": lambda: CFGPlusPlus(GradientEstimation(given.get("ge_gamma", 2.0))),
    }
    return exact[fn]() if fn in exact else InSigma(in_sigma[fn]())


def run(name: str, s: dict[str, Any], arrays: dict[str, np.ndarray]) -> tuple[torch.Tensor, torch.Tensor, Case]:
    """Return (ours, recorded, case)."""
    fn, w, sigmas, flow = (
        s.get("fn", s.get("cls", "")).removeprefix("sample_"),
        s["cfg"],
        s["sigmas"],
        s.get("flow", False),
    )
    guidance = {"weight": 2.0 * w} if fn == "euler_pp" else {"weight": w, "rule": "cfg++"}
    solver = Euler() if fn == "euler_pp" else solver_of(fn, s["settings"], flow)
    draws = [0] if fn in ("res_multistep_cfg_pp", "euler_pp") else list(range(1 + len(s.get("noise_calls", ()))))
    schedule = Flow() if flow else EDM(0.5 * min(v for v in sigmas if v), sigmas[0])
    case = Case(schedule, solver, Times(tuple(sigmas)), draws, 1e-9)

    def target(part: str) -> Any:
        return score_model(
            GaussianMixture(*(torch.from_numpy(arrays[f"{part}__{k}"]).double() for k in ("w", "mu", "s")))
        )

    key = name.replace("/", "__")
    x, noise = (torch.from_numpy(arrays[f"{key}__{k}"]).double() for k in ("x", "noise"))
    sampler = Sampler(
        target("target"), schedule=schedule, solver=solver, grid=case.grid, batch=len(x), dtype=torch.float64,
        guidance=Guidance(model=target("uncond"), **guidance),
    )  # fmt: skip
    noise = noise[draws]
    noise[0] *= sigmas[0] / schedule.prior_std
    return sampler.run(range(len(x)), noise=noise), x, case
