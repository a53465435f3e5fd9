"""Recorded runs of few-step samplers, AlphaFold 3's step, flow maps and the ancestral rule of rectified flow."""

from __future__ import annotations

import math
from itertools import pairwise

import numpy as np
import torch
from golden import Case, rerun
from golden2 import _case as case_of

from fastscore.model.analytic import GaussianMixture
from fastscore.model.score import ScoreModel
from fastscore.process.continuous import EDM, Flow
from fastscore.process.discrete import discrete_vp
from fastscore.process.parametrization import Parametrization
from fastscore.sampler import Sampler
from fastscore.solvers import DDIM, AlphaFold3, AncestralSplit, DPMSolver, Renoise, ScaledNoise

ALWAYS = (
    "boltz/af3", "comfy/dpm_2_ancestral_flow", "comfy/dpmpp_2s_ancestral_flow", "comfy/lcm_flow",
    "diffusers/consistency_multistep", "diffusers/flow_map_euler", "diffusers/lcm", "diffusers/ltx_euler_ancestral_rf",
    "diffusers/tcd",
)  # fmt: skip


def run(name: str, settings: dict, arrays: dict) -> tuple[torch.Tensor, torch.Tensor, Case]:
    """Return (ours, recorded, case)."""
    target = GaussianMixture(*(torch.from_numpy(arrays[f"target__{k}"]).double() for k in ("w", "mu", "s")))
    if settings.get("cls") == "FlowMapEulerDiscreteScheduler":
        return _flow_map(name, settings, target, arrays)
    build = {"boltz": _boltz, "comfy": _comfy, "diffusers": _diffusers}[settings["kind"]]
    return rerun(name, build(settings), target, arrays)


def _boltz(s: dict) -> Case:
    levels, given = s["sigmas"], s["settings"]
    noisy = [0, *(1 + k for k, after in enumerate(levels[1:]) if after > given["gamma_min"] and given["gamma_0"] > 0.0)]
    schedule = EDM(0.5 * min(v for v in levels if v), levels[0])
    return case_of(schedule, AlphaFold3(**given, beyond=True), levels, noisy, levels[0])


def _comfy(s: dict) -> Case:
    sigmas, given, kind = s["sigmas"], s["settings"], s["fn"].removeprefix("sample_")
    schedule = Flow() if s["flow"] else EDM(0.5 * min(v for v in sigmas if v), sigmas[0])
    eta = given.get("eta", 1.0)
    solver = {
        "lcm": Renoise(),
        "euler_ancestral": AncestralSplit(DDIM(), eta, "flow"),
        "dpm_2_ancestral": AncestralSplit(DPMSolver(2, "flow"), eta, "flow"),
        # The label of pure noise moves, and with it the middle of the step from there.
        "dpmpp_2s_ancestral": AncestralSplit(DPMSolver(2, "x0", middle=math.log((1 - 0.9999) / 0.9999)), eta, "flow"),
    }[kind]
    draws = list(range(1 + len(s["noise_calls"]))) if eta > 0.0 or kind == "lcm" else [0]
    if given.get("s_noise", 1.0) != 1.0:
        solver = ScaledNoise(solver, given["s_noise"])
    return case_of(schedule, solver, sigmas, draws, sigmas[0])


def _diffusers(s: dict) -> Case:
    config, cls, given = s["config"], s["cls"], s["step"]
    if cls in ("LCMScheduler", "TCDScheduler"):
        kind = config.get("beta_schedule", "scaled_linear").replace("_", "-")
        table = discrete_vp(kind, 1000, config["beta_start"], config["beta_end"])
        clip = config.get("clip_sample_range", 1.0) if config.get("clip_sample") else None
        lcm = cls == "LCMScheduler"
        eta = given.get("eta", 0.3)
        solver = Renoise(boundary=config.get("timestep_scaling", 10.0)) if lcm else Renoise(eta, "time")
        end = -1.0 if lcm else 0.0  # LCM returns D whatever set_alpha_to_one says
        draws = list(range(s["steps"])) if lcm or eta > 0.0 else [0]
        return case_of(table, solver, [*s["timesteps"], end], draws, 1.0, clip=clip)
    sigmas = s["sigmas"]
    if cls == "CMStochasticIterativeScheduler":
        least = config.get("sigma_min", 0.002)
        noisy = [0, *(1 + k for k, after in enumerate(sigmas[1:]) if after > least)]
        clip = 1.0 if config.get("clip_denoised", True) else None
        return case_of(EDM(0.5 * least, sigmas[0]), Renoise(sigma_min=least), sigmas, noisy, sigmas[0], clip=clip)
    if cls == "LTXEulerAncestralRFScheduler":
        eta, sigmas = config.get("eta", 1.0), list(dict.fromkeys(sigmas))
        draws = list(range(len(sigmas) - (sigmas[-1] == 0.0))) if eta > 0.0 else [0]
        solver = AncestralSplit(DDIM(), eta, "flow")
        if config.get("s_noise", 1.0) != 1.0:
            solver = ScaledNoise(solver, config["s_noise"])
        return case_of(Flow(), solver, sigmas, draws, 1.0)
    draws = list(range(len(sigmas) - (sigmas[-1] == 0.0)))
    return case_of(Flow(), Renoise(), sigmas, draws, 1.0)


def _flow_map(name: str, s: dict, target: GaussianMixture, arrays: dict) -> tuple[torch.Tensor, torch.Tensor, Case]:
    """A network of two times, as the scheduler has it; what was recorded fed it the velocity at t, whatever r."""
    case, key = case_of(Flow(), DDIM(), s["sigmas"], [0], 1.0), name.replace("/", "__")
    x, noise = (torch.from_numpy(arrays[f"{key}__{k}"]).double() for k in ("x", "noise"))
    asked = []

    def net(u: torch.Tensor, c: torch.Tensor, cond: None) -> torch.Tensor:
        asked.append(c[0].tolist())
        t = c[:, :1].reshape(-1, *[1] * (u.ndim - 1))
        D = target(u / torch.hypot(t, 1.0 - t), torch.atan2(t, 1.0 - t).flatten(), None)
        return (u - D) / t

    model = ScoreModel(net, tuple(x.shape[1:]), Flow(), Parametrization("flow"), two_times=True)
    sampler = Sampler(model, solver=case.solver, grid=case.grid, batch=len(x), dtype=torch.float64)
    ours = sampler.run(range(len(x)), noise=case.prior * noise[:1])
    np.testing.assert_allclose(asked, [*pairwise(s["sigmas"])], rtol=0, atol=1e-14)
    return ours, x, case
