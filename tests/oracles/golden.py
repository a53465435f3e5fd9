"""Recorded runs of established samplers, with the fastscore settings that reproduce each."""

from __future__ import annotations

import json
import math
import os
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
import torch

from fastscore.model.analytic import GaussianMixture, score_model
from fastscore.process.continuous import EDM, VE, VP, Pair, SubVP
from fastscore.process.discrete import discrete_vp
from fastscore.process.grid import Grid, Span, Times, edm_levels, uniform
from fastscore.process.schedule import Schedule, t_of_lam
from fastscore.sampler import Sampler
from fastscore.solvers import (
    DDIM,
    DEIS,
    LMS,
    PNDM,
    Ancestral,
    AncestralSplit,
    AnnealedLangevin,
    Churn,
    Dopri5,
    DPMAdaptive,
    DPMMultistep,
    DPMpp2M,
    DPMSolver,
    Euler,
    Heun,
    Langevin,
    ScoreSDE,
)
from fastscore.solvers.adaptive import K_DIFFUSION

FOLDER = Path(os.environ.get("FASTSCORE_GOLDEN", Path(__file__).parents[3] / "shared" / "golden"))
COPY = Path(__file__).parents[1] / "data"  # the few cases that must always run


@dataclass(frozen=True)
class Case:
    """How to reproduce one recorded run: settings, and which recorded draws the plan uses."""

    schedule: Schedule
    solver: object
    grid: Grid | Times | Span
    draws: list[int]
    tolerance: float
    clip: float | None = None
    prior: float = 1.0  # the code's prior standard deviation over ours
    scale: float = 1.0  # what the code multiplies the end by
    data: bool = False  # from data, the target's means and a tenth of the first draw, to noise


@cache
def recorded() -> tuple[dict, dict]:
    folder = FOLDER if (FOLDER / "golden.json").exists() else COPY
    with np.load(folder / "golden.npz") as arrays:
        return json.loads((folder / "golden.json").read_text()), dict(arrays)


def target() -> GaussianMixture:
    arrays = recorded()[1]
    return GaussianMixture(*(torch.from_numpy(arrays[f"target__{k}"]).double() for k in ("w", "mu", "s")))


def run(name: str) -> tuple[torch.Tensor, torch.Tensor, Case]:
    """Return (ours, recorded, case)."""
    settings, arrays = recorded()
    return rerun(name, build(settings[name]), target(), arrays)


def rerun(name: str, case: Case, target: GaussianMixture, arrays: dict) -> tuple[torch.Tensor, torch.Tensor, Case]:
    """Return (ours, recorded, case) of a case of any recording."""
    key = name.replace("/", "__")
    x, noise = (torch.from_numpy(arrays[f"{key}__{k}"]).double() for k in ("x", "noise"))
    sampler = Sampler(
        score_model(target),
        schedule=case.schedule,
        solver=case.solver,
        grid=case.grid,
        batch=len(x),
        clip=case.clip,
        dtype=torch.float64,
        start="state" if case.data else "prior",
    )
    noise = noise[case.draws]
    if case.data:
        means = target.means.reshape(-1, *x.shape[1:])
        init = means[torch.arange(len(x)) % len(means)] + 0.1 * noise[0]
        return sampler.run(range(len(x)), init=init), x, case
    noise[0] *= case.prior
    return case.scale * sampler.run(range(len(x)), noise=noise), x, case


def build(s: dict) -> Case:
    """Return the case of a recorded run's settings."""
    kinds = {"pc": _score_sde, "ode": _ode, "k_diffusion": _k_diffusion, "edm": _edm, "diffusers": _diffusers}
    return kinds[s["kind"]](s)


SONG = {"vp": VP(), "subvp": SubVP(), "ve": VE()}


def _ode(s: dict) -> Case:
    # scipy's RK45 is the same pair of formulas, stepping in t, one step for the batch, in float32.
    return Case(SONG[s["sde"]], Dopri5(s["rtol"], s["atol"]), Span(end=s["eps"], clean=False), [0], 1e-4)


def _score_sde(s: dict) -> Case:
    schedule = SONG[s["sde"]]
    n, corrections = s["N"], s["n_corr"]
    corrector = {
        "none": None,
        "langevin": Langevin(s["snr"], corrections, norm="batch"),
        "ald": AnnealedLangevin(s["snr"], corrections),
    }[s["corrector"]]
    # Draws of each time: the corrector's, then the predictor's, which is drawn even where unused.
    draws, at = [0], 1
    for _ in range(n):
        if corrector is not None:
            draws += range(at, at + corrections)
            at += corrections
        if s["predictor"] != "none":
            if not s["pf"]:
                draws.append(at)
            at += 1
    solver = ScoreSDE(s["predictor"], corrector, probability_flow=s["pf"], denoise=s["denoise"])
    return Case(schedule, solver, uniform(n, end=s["eps"]), draws, 1e-9)


def _k_diffusion(s: dict) -> Case:
    schedule = EDM(s["sigma_min"], s["sigma_max"])
    if s["fn"] == "sample_dpm_adaptive":
        solver = DPMAdaptive(s["order"], s["rtol"], s["atol"], norm="batch", control=K_DIFFUSION)
        return Case(schedule, solver, Span(clean=False), [0], 1e-9)
    solver = {
        "sample_euler": Euler(),
        "sample_heun": Heun(),
        "sample_euler_ancestral": DDIM(eta=1.0),
        "sample_dpm_2": DPMSolver(2),
        "sample_dpm_2_ancestral": AncestralSplit(DPMSolver(2)),
        "sample_lms": LMS(s.get("order", 4), denoise=False),
        "sample_dpmpp_2s_ancestral": AncestralSplit(DPMSolver(2, "x0")),
        "sample_dpmpp_sde": DPMSolver(2, "x0", eta=1.0),
        "sample_dpmpp_2m": DPMpp2M(),
        "sample_dpmpp_2m_sde": DPMMultistep(2, "x0", {"midpoint": "paper"}.get(s.get("solver_type"), "exact"), 1.0),
    }[s["fn"]]
    grid = edm_levels(s["n"], s["sigma_min"], s["sigma_max"], s["rho"])
    if s.get("s_churn"):  # a draw a step, used or not
        low, high = s["s_tmin"], s["s_tmax"]
        draws = [0, *(1 + k for k, sigma in enumerate(grid.t) if low <= sigma <= high)]
        return Case(schedule, Churn(solver, s["s_churn"], low, high, s["s_noise"]), grid, draws, 1e-9)
    steps = s["n"] - 1
    each = 2 if s["fn"] == "sample_dpmpp_sde" else int("ancestral" in s["fn"] or "sde" in s["fn"])
    return Case(schedule, solver, grid, list(range(1 + each * steps)), 1e-9)


def _edm(s: dict) -> Case:
    n = s["num_steps"]
    if s["fn"] == "edm_sampler":
        return Case(EDM(), Heun(), edm_levels(n), [0], 1e-9)
    i = np.arange(n)
    if s["discretization"] == "vp":
        return Case(
            VP(),
            Euler(denoise=False),
            Times((*np.linspace(1.0, 1e-3, n), 0.0)),
            [0],
            1e-9,
            prior=float(VP().sigma(1.0)),
        )
    if s["discretization"] == "ve":
        schedule = Pair(np.ones_like, np.sqrt, T=1e4)
        levels = 1e4 * (0.02**2 / 1e4) ** (i / (n - 1))
        return Case(schedule, Heun(denoise=False), Times((1e4, *levels[1:], 0.0)), [0], 1e-9)
    # iDDPM's levels, Karras et al. 2022, table 1: 1000 of them, of which n are kept.
    u, bar = np.zeros(1001), np.sin(0.5 * np.pi * np.arange(1001) / 1000 / 1.008) ** 2
    for j in range(1000, 0, -1):
        u[j - 1] = np.sqrt((u[j] ** 2 + 1.0) / max(bar[j - 1] / bar[j], 1e-3) - 1.0)
    kept = u[(u >= 0.002) & (u <= 81.0)]
    levels = kept[np.round((len(kept) - 1) / (n - 1) * i).astype(int)]
    return Case(EDM(levels[-1], levels[0]), Heun(), Times((*levels, 0.0)), [0], 1e-9)


def _diffusers(s: dict) -> Case:
    table = discrete_vp("linear", s["num_train_timesteps"], s["beta_start"], s["beta_end"])
    indices = tuple(dict.fromkeys(s["timesteps"]))  # of repeated stages, the time of their step
    times = Times((*indices, -1.0)) if all(np.diff(indices) < 0) else None
    levels = s.get("sigmas", (0.0,))
    if s.get("use_lu_lambdas"):  # between the indices; its list of timesteps is rounded
        times = Times((*t_of_lam(table, -np.log(levels[:-1])), -1.0))
    elif levels[-1]:  # ends at index 0, whose sigma its float32 table has wrong by 1e-4
        times = Times(tuple(np.minimum(t_of_lam(table, -np.log(levels)), indices[0])))
    n = s["steps"]
    clip = 1.0 if s.get("clip_sample") else None
    if s["cls"] == "DDPMScheduler":
        # Their last step draws noise unless it starts at index 0.
        variance, denoise = s["variance_type"].removeprefix("fixed_"), s["timesteps"][-1] == 0
        return Case(table, Ancestral(variance, denoise), times, list(range(n + (not denoise))), 1e-5, clip)
    if s["cls"] == "DDIMScheduler":
        eta = s["call"].get("eta", 0.0)
        return Case(table, DDIM(eta, keep_eps=clip is not None), times, list(range(n)) if eta else [0], 1e-5, clip)
    if s["cls"] == "PNDMScheduler" and s["skip_prk_steps"]:
        return Case(table, PNDM(prk=False), Times(indices), [0], 1e-5)  # its last step, from index 0, goes nowhere
    if s["cls"] == "DEISMultistepScheduler":
        return Case(table, DEIS(s["solver_order"]), times, [0], 1e-5)
    if s["cls"] == "DPMSolverMultistepScheduler":
        order, kind = s["solver_order"], s["algorithm_type"]
        form = "exact" if s.get("solver_type") == "heun" else "paper"
        eta = float(kind.startswith("sde"))
        solver = DPMMultistep(order, "x0" if kind.endswith("++") else "eps", form, eta, reach=math.inf)
        draws = list(range(n + bool(levels[-1]))) if eta else [0]
        return Case(table, solver, times, draws, 1e-5)
    if s["cls"] == "DPMSolverSinglestepScheduler":
        return Case(table, DPMSolver(s["solver_order"], "x0", on_grid=True), times, [0], 1e-5)
    solver = {
        "EulerDiscreteScheduler": Euler(),
        "HeunDiscreteScheduler": Heun(),
        "EulerAncestralDiscreteScheduler": DDIM(eta=1.0),
        "LMSDiscreteScheduler": LMS(denoise=False),
        "KDPM2DiscreteScheduler": DPMSolver(2),
        "KDPM2AncestralDiscreteScheduler": AncestralSplit(DPMSolver(2)),
    }[s["cls"]]
    sigmas = tuple(dict.fromkeys(s["sigmas"]))
    draws = list(range(n)) if "Ancestral" in s["cls"] else [0]
    return Case(EDM(sigmas[-2], sigmas[0]), solver, Times(sigmas), draws, 1e-5)
