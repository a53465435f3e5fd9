"""Runs of ComfyUI, diffusers and others that were recorded in float64, with the settings that reproduce each.

Every case of the recording is built here or stands in LATER with the reason why nothing here computes it.
"""

from __future__ import annotations

import json
import math
import os
from functools import cache
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import torch
from golden import Case, rerun

from fastscore.model.analytic import GaussianMixture
from fastscore.process.continuous import EDM, Flow, Pair, Trig
from fastscore.process.discrete import discrete_vp
from fastscore.process.grid import Times
from fastscore.process.schedule import Schedule
from fastscore.solvers import (
    DDIM,
    DEIS,
    IPNDM,
    AncestralSplit,
    Churn,
    DPMMultistep,
    DPMSolver,
    Euler,
    Heun,
    SASolver,
    UniPC,
)
from fastscore.solvers.unipc import TauWindow

FOLDER = Path(os.environ.get("FASTSCORE_GOLDEN2", Path(__file__).resolve().parents[3] / "shared" / "golden2"))
COPY = Path(__file__).resolve().parents[1] / "data"  # the few cases that must always run
# Kinds of runs that belong to samplers or guidance rules of their own, by the first letters of their names.
LATER = {}


@cache
def recorded() -> tuple[dict, dict]:
    """Return the settings and the arrays of every run that has some."""
    folder, stem = (FOLDER, "golden") if (FOLDER / "golden.json").exists() else (COPY, "golden2")
    with np.load(folder / f"{stem}.npz") as arrays:
        settings = json.loads((folder / f"{stem}.json").read_text())
        return {k: v for k, v in settings.items() if not k.startswith("grid/")}, dict(arrays)


# Kinds with a file of their own in this folder, by the first letters of their names: its run(name, settings, arrays)
# returns (ours, recorded, case), and its ALWAYS names the runs that are copied.
KINDS: dict[str, str] = {
    "boltz/": "golden2_few",
    "comfy/cfgpp": "golden2_cfgpp",
    "comfy/deis": "golden2_rows",
    "comfy/dpm_2_ancestral_flow": "golden2_few",
    "comfy/dpmpp_2m_cfg_pp": "golden2_cfgpp",
    "comfy/dpmpp_2s_ancestral_cfg_pp": "golden2_cfgpp",
    "comfy/dpmpp_2s_ancestral_flow": "golden2_few",
    "comfy/er_sde": "golden2_rows",
    "comfy/euler_ancestral_cfg_pp": "golden2_cfgpp",
    "comfy/euler_ancestral_flow": "golden2_few",
    "comfy/euler_cfg_pp": "golden2_cfgpp",
    "comfy/exp_heun": "golden2_rows",
    "comfy/gradient_estimation": "golden2_rows",
    "comfy/gradient_estimation_cfg_pp": "golden2_cfgpp",
    "comfy/heunpp2": "golden2_rows",
    "comfy/ipndm_v": "golden2_rows",
    "comfy/lcm": "golden2_few",
    "comfy/res_multistep_ancestral": "golden2_rows",
    "comfy/res_multistep_ancestral_cfg_pp": "golden2_cfgpp",
    "comfy/res_multistep_cfg_pp": "golden2_cfgpp",
    "comfy/seeds": "golden2_rows",
    "diffusers/consistency": "golden2_few",
    "diffusers/flow_euler_stochastic": "golden2_few",
    "diffusers/flow_map_euler": "golden2_few",
    "diffusers/lcm": "golden2_few",
    "diffusers/ltx": "golden2_few",
    "diffusers/tcd": "golden2_few",
    "er_sde_repo/": "golden2_rows",
    "guidance/": "golden2_guidance",
    "guidance/euler_pp_alternative": "golden2_cfgpp",
    "res4lyf/": "golden2_rows",
}


def reason(name: str) -> str | None:
    """Return why a run is not reproduced, None if it is."""
    here = any(name.startswith(start) for start in KINDS)
    found = [LATER[start] for start in LATER if name.startswith(start) and not here]
    return found[0] if found else None


def run(name: str) -> tuple[torch.Tensor, torch.Tensor, Case]:
    """Return (ours, recorded, case)."""
    settings, arrays = recorded()
    starts = [start for start in KINDS if name.startswith(start)]
    if starts:
        return import_module(KINDS[max(starts, key=len)]).run(name, settings[name], arrays)
    target = GaussianMixture(*(torch.from_numpy(arrays[f"target__{k}"]).double() for k in ("w", "mu", "s")))
    return rerun(name, build(settings[name]), target, arrays)


def build(s: dict) -> Case:
    """Return the case of a recorded run's settings."""
    return {"comfy": _comfy, "diffusers": _diffusers}[s["kind"]](s)


def _case(schedule: Schedule, solver: object, times: list[float], draws: list[int], std: float, **more: Any) -> Case:
    """Make a case whose x_T has a standard deviation, in place of the schedule's own at the first time."""
    knots = tuple(dict.fromkeys(times))  # a level that is repeated moves nothing
    first, top = (math.hypot(schedule.alpha(t), schedule.sigma(t)) for t in (knots[0], schedule.T))
    ours = schedule.prior_std * first / top
    return Case(schedule, solver, Times(knots), draws, 1e-9, prior=float(std / ours), **more)


def _vp(sigma: float) -> Pair:
    """alpha^2 + sigma^2 = 1 with the ratio of both as time."""
    return Pair(lambda t: 1.0 / np.sqrt(1.0 + t**2), lambda t: t / np.sqrt(1.0 + t**2), T=sigma)


def _comfy(s: dict) -> Case:
    sigmas, n, given, fn = list(s["sigmas"]), s["steps"], s["settings"], s["fn"].removeprefix("sample_")
    draws = list(range(1 + len(s["noise_calls"])))
    schedule = Flow() if s["flow"] else EDM(0.5 * min(v for v in sigmas if v), sigmas[0])
    std = sigmas[0]
    if fn.startswith("unipc"):
        end = sigmas[-1] or 0.001
        solver = UniPC(min(3, n - 1), "bh2" if fn.endswith("bh2") else "bh1", lower_order_final=True)
        vp = _vp(sigmas[0])
        std *= float(vp.alpha(sigmas[0]))
        return _case(vp, solver, [*sigmas[:-1], end], [0], std, scale=float(1.0 / vp.alpha(end)))
    if s["flow"] and ("sde" in fn or fn.startswith("sa_")):
        sigmas[0] = 0.9999  # the code moves the label, and x stays
    if "s_churn" in given:
        inner = {"euler": Euler(), "heun": Heun(), "dpm_2": DPMSolver(2)}[fn]
        churn = Churn(inner, given["s_churn"], given["s_tmin"], given["s_tmax"], given["s_noise"])
        return _case(schedule, churn, sigmas, draws, std)
    if fn.startswith("sa_solver"):
        high, low = s["tau_sigmas"]
        solver = SASolver(
            given.get("predictor_order", 3), given.get("corrector_order", 4), TauWindow(low, high, at="end"),
            given.get("simple_order_2", False), fn.endswith("pece"), "comfyui",
        )  # fmt: skip
        return _case(schedule, solver, sigmas, draws, std)
    eta = given.get("eta", 1.0)
    solver = {
        "ddpm": DDIM(1.0),
        "dpmpp_2m_sde": DPMMultistep(2, "x0", "paper", math.sqrt(eta)),
        "dpmpp_2m_sde_heun": DPMMultistep(2, "x0", "exact", math.sqrt(eta)),
        "dpmpp_3m_sde": DPMMultistep(3, "x0", "k-diffusion", math.sqrt(eta)),
        "dpmpp_2s_ancestral": AncestralSplit(DPMSolver(2, "x0"), eta),
        "dpmpp_sde": DPMSolver(2, "x0", eta, r=given.get("r"), noise="split"),
        "ipndm": IPNDM(4),
        "res_multistep": DPMMultistep(2, "x0", "exact"),
    }[fn]
    return _case(schedule, solver, sigmas, [0] if fn in ("ipndm", "res_multistep") else draws, std)


def _diffusers(s: dict) -> Case:
    config, n, std, cls = s["config"], s["steps"], s["init_noise_sigma"], s["cls"]
    if cls == "DDIMScheduler":
        return _ddim(s)
    if cls == "DDIMInverseScheduler":
        table = discrete_vp("scaled-linear", 1000, config["beta_start"], config["beta_end"])
        solver = DDIM(fixed_stride=True, inverse=True, set_alpha_to_one=config.get("set_alpha_to_one", True))
        return _case(table, solver, [*s["timesteps"][::-1], -1.0], [0], 1.0, data=True)
    sigmas = list(s["sigmas"])
    schedule = {"vp": _vp, "edm": lambda v: EDM(0.5 * s["sigmas"][-2], v), "sigma_v": lambda v: EDM(0.01, v)}.get(
        s["model"], lambda _: Flow()
    )(sigmas[0])
    if s["model"] == "flowsig" or s["model"].startswith("flow"):
        std = 1.0
    noisy = list(range(n + (sigmas[-1] > 0.0)))
    order = config.get("solver_order", 2)
    if cls in ("EulerDiscreteScheduler", "EDMEulerScheduler") or cls.startswith("FlowM"):
        solver = Heun() if "Heun" in cls else Euler()
        return _case(schedule, solver, sigmas, [0], std)
    if cls == "DPMSolverSinglestepScheduler":
        midpoint, lower = order == 3 and config.get("solver_type") != "heun", config.get("lower_order_final", False)
        solver = DPMSolver(order, "x0", on_grid=True, form="midpoint" if midpoint else "exact", lower_order_final=lower)
        return _case(schedule, solver, sigmas, [0], std)
    if cls == "DEISMultistepScheduler":
        # Their wasted step, from a level to itself, is the one whose order is lowered.
        return _case(schedule, DEIS(order, lower_order_final=sigmas[-1] < sigmas[-2]), sigmas, [0], std)
    if cls == "UniPCMultistepScheduler":
        lower, off = config.get("lower_order_final", True), tuple(config.get("disable_corrector", ()))
        solver = UniPC(order, config.get("solver_type", "bh2"), "x0", lower, off, math.inf)
        return _case(schedule, solver, sigmas, [0], std)
    if cls == "SASolverScheduler":
        noisy = [k for k, label in enumerate(s["timesteps"]) if 200 <= label <= 800]
        window = TauWindow(sigmas[noisy[-1]], sigmas[noisy[0]])
        sigmas[-1] *= 1.0 - 1e-12  # where the last level is repeated, its step is nothing but the last correction
        solver = SASolver(
            config.get("predictor_order", 2), config.get("corrector_order", 2), window, True, False, "diffusers"
        )
        return _case(schedule, solver, sigmas, [0, *(1 + k for k in noisy)], std)
    kind = "sde-dpmsolver++" if cls.startswith("Cosine") else config.get("algorithm_type", "dpmsolver++")
    heun, eta = config.get("solver_type") == "heun", float(kind.startswith("sde"))
    form = ("diffusers-heun" if order == 3 else "exact") if heun else "diffusers"
    lower, euler = config.get("lower_order_final", True), config.get("euler_at_final", False)
    solver = DPMMultistep(order, "x0" if kind.endswith("++") else "eps", form, eta, lower, euler)
    return _case(schedule, solver, sigmas, noisy if eta else [0], std)


def _ddim(s: dict) -> Case:
    config, n, eta = s["config"], s["steps"], s["step"].get("eta", 0.0)
    if config.get("rescale_betas_zero_snr"):  # no table has alpha = 0; n divides N, so all levels are recorded
        levels = [math.atan2(sigma, alpha) for alpha, sigma in s["alpha_sigma"]]
        return _case(Trig(), DDIM(eta), [*levels, 0.0], [0], 1.0)
    table = discrete_vp("scaled-linear", 1000, config["beta_start"], config["beta_end"])
    solver = DDIM(eta, fixed_stride=True, set_alpha_to_one=config.get("set_alpha_to_one", True))
    return _case(table, solver, [*s["timesteps"], -1.0], list(range(n)) if eta else [0], 1.0)


ALWAYS = (  # one of each option; python tests/oracles/golden2.py copies them
    "comfy/dpmpp_3m_sde", "comfy/dpmpp_sde_r03", "comfy/sa_solver", "comfy/sa_solver_pece", "comfy/sa_solver_simple",
    "comfy/uni_pc", "diffusers/ddim_inverse", "diffusers/ddim_leading_offset1", "diffusers/ddim_linspace_eta1",
    "diffusers/deis_3_short",
    "diffusers/dpmpp_2m_euler_at_final", "diffusers/dpmpp_3m_short", "diffusers/dpmpp_3m_short_nolower",
    "diffusers/dpmpp_3s_short", "diffusers/sa_solver_34", "diffusers/sa_solver_karras", "diffusers/sde_dpmpp_3m",
    "diffusers/unipc_2_nocorr", "diffusers/unipc_3_short",
)  # fmt: skip

if __name__ == "__main__":
    settings, arrays = recorded()
    kept = {f"{target}__{k}": arrays[f"{target}__{k}"] for target in ("target", "uncond") for k in ("w", "mu", "s")}
    always = (*ALWAYS, *(name for module in dict.fromkeys(KINDS.values()) for name in import_module(module).ALWAYS))
    for name in always:
        for k in ("x", "noise"):
            key = f"{name.replace('/', '__')}__{k}"
            kept[key] = arrays[key]
    np.savez_compressed(COPY / "golden2.npz", **kept)
    (COPY / "golden2.json").write_text(json.dumps({name: settings[name] for name in always}, indent=0) + "\n")
    paths = [case for case in json.loads((FOLDER / "gits.json").read_text()) if len(case["cost"]) < 40]
    (COPY / "gits.json").write_text(json.dumps(paths) + "\n")
