"""Recorded runs of ER-SDE, SEEDS, RES, gradient estimation, Heun++2, DEIS in time and iPNDM-v, and their settings."""

from __future__ import annotations

import math

import numpy as np
import torch
from golden import Case, rerun

from fastscore.model.analytic import GaussianMixture
from fastscore.process.continuous import EDM, Flow, Pair
from fastscore.process.grid import Times
from fastscore.solvers import DEIS, ERSDE, LMS, SEEDS, DPMMultistep, GradientEstimation, HeunPP, ScaledNoise

ALWAYS = (
    "comfy/deis_4", "comfy/er_sde", "comfy/er_sde_flow", "comfy/exp_heun_2_x0_sde_flow",
    "comfy/gradient_estimation_g15", "comfy/heunpp2", "comfy/ipndm_v", "comfy/res_multistep_ancestral",
    "comfy/seeds_2_eta05_r04", "comfy/seeds_3_flow", "er_sde_repo/ve_3_sde_5", "er_sde_repo/vp_3_sde",
    "res4lyf/res_2s_c1.0",
)  # fmt: skip


def run(name: str, s: dict, arrays: dict) -> tuple[torch.Tensor, torch.Tensor, Case]:
    """Return (ours, recorded, case)."""
    target = GaussianMixture(*(torch.from_numpy(arrays[f"target__{k}"]).double() for k in ("w", "mu", "s")))
    case = {"comfy": _comfy, "er_sde_repo": _er_sde_repo, "res4lyf": _res4lyf}[s["kind"]](s)
    return rerun(name, case, target, arrays)


def _comfy(s: dict) -> Case:
    given, fn, sigmas = s["settings"], s["fn"].removeprefix("sample_"), list(s["sigmas"])
    std, eta = sigmas[0], math.sqrt(given.get("eta", 1.0))
    if s["flow"] and fn.startswith(("er_sde", "seeds")):
        sigmas[0] = 0.9999  # the code moves the label, and x stays
    draws = list(range(1 + len(s["noise_calls"])))
    if fn.startswith("seeds"):
        r = given.get("r", 0.5) if fn == "seeds_2" else (given.get("r_1", 1 / 3), given.get("r_2", 2 / 3))
        solver = SEEDS(2 if fn == "seeds_2" else 3, eta, r, given.get("solver_type", "phi_1"))
        draws = draws if eta else [0]
        if r == 1.0 and eta:  # each step's second draw is multiplied by 0
            draws = [0, *draws[1::2]]
        if given.get("s_noise", 1.0) != 1.0:
            solver = ScaledNoise(solver, given["s_noise"])
    elif fn == "er_sde":
        solver = ERSDE(given.get("max_stage", 3), form="taylor", points=200)
    else:
        solver = {
            "deis": lambda: DEIS(given.get("max_order", 3), "tab", points=10000),
            "gradient_estimation": lambda: GradientEstimation(given.get("ge_gamma", 2.0)),
            "heunpp2": HeunPP,
            "ipndm_v": lambda: LMS(given.get("max_order", 4), form="ipndm-v"),
            "res_multistep_ancestral": lambda: DPMMultistep(2, "x0", "exact", given.get("eta", 1.0), noise="split"),
        }[fn]()
        draws = draws if fn.endswith("ancestral") else [0]
    schedule = Flow() if s["flow"] else EDM(0.5 * min(v for v in sigmas if v), sigmas[0])
    return _case(schedule, solver, sigmas, draws, std)


def _er_sde_repo(s: dict) -> Case:
    solver = ERSDE(s["order"], s["noise_scale"], form="taylor", points=s["quadrature_points"], floor=1e-6)
    if s["sde_type"] == "ve":
        sigmas = s["sigmas"]
        return _case(EDM(0.5 * sigmas[-2], sigmas[0]), solver, sigmas, list(range(s["steps"])), sigmas[0])
    rho = [sigma / alpha for alpha, sigma in s["alpha_sigma"]]
    vp = Pair(lambda t: 1.0 / np.sqrt(1.0 + t**2), lambda t: t / np.sqrt(1.0 + t**2), T=rho[0])
    return _case(vp, solver, rho, list(range(s["steps"] + 1)), 1.0)


def _res4lyf(s: dict) -> Case:
    sigmas = s["sigmas"]
    solver = SEEDS(2, 0.0, s["settings"]["c2"], "phi_2")
    return _case(EDM(0.5 * sigmas[-2], sigmas[0]), solver, sigmas, [0], sigmas[0])


def _case(schedule: EDM | Flow | Pair, solver: object, times: list[float], draws: list[int], std: float) -> Case:
    """Make a case whose x_T has a standard deviation, in place of the schedule's own at the first time."""
    first, top = (math.hypot(schedule.alpha(t), schedule.sigma(t)) for t in (times[0], schedule.T))
    prior = std / (schedule.prior_std * first / top)
    return Case(schedule, solver, Times(tuple(times)), draws, 1e-9, prior=float(prior))
