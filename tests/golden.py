"""Recorded runs of established samplers, with the fastscore settings that reproduce each."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
import torch

from fastscore.analytic import GaussianMixture, score_model
from fastscore.grid import Grid, Times, edm, uniform
from fastscore.sampler import Sampler
from fastscore.schedule import EDM, VE, VP, Pair, Schedule, SubVP, t_of_lam
from fastscore.solvers import (
    DDIM,
    Ancestral,
    AnnealedLangevin,
    DPMpp2M,
    Euler,
    Heun,
    Langevin,
    ScoreSDE,
)
from fastscore.tables import ddpm

FOLDER = Path(os.environ.get("FASTSCORE_GOLDEN", Path(__file__).parents[2] / "shared" / "golden"))
COPY = Path(__file__).parent / "data"  # the few cases that must always run


@dataclass(frozen=True)
class Case:
    """How to reproduce one recorded run: settings, and which recorded draws the plan uses."""

    schedule: Schedule
    solver: object
    grid: Grid | Times
    draws: list[int]
    tolerance: float
    clip: float | None = None
    prior: float = 1.0  # the code's prior standard deviation over ours


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
    case = build(settings[name], arrays)
    key = name.replace("/", "__")
    x, noise = (torch.from_numpy(arrays[f"{key}__{k}"]).double() for k in ("x", "noise"))
    sampler = Sampler(
        score_model(target()),
        schedule=case.schedule,
        solver=case.solver,
        grid=case.grid,
        batch=len(x),
        clip=case.clip,
        dtype=torch.float64,
    )
    noise = noise[case.draws]
    noise[0] *= case.prior
    return sampler.run(range(len(x)), noise=noise), x, case


def build(s: dict, arrays: dict) -> Case | None:
    """Return the case of a recorded run's settings, or None if no solver here covers it."""
    kind = s["kind"]
    if kind == "pc":
        return _score_sde(s)
    if kind == "k_diffusion":
        return _k_diffusion(s)
    if kind == "edm":
        return _edm(s)
    if kind == "diffusers":
        return _diffusers(s)
    return None


def _score_sde(s: dict) -> Case:
    schedule = {"vp": VP(), "subvp": SubVP(), "ve": VE()}[s["sde"]]
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


def _k_diffusion(s: dict) -> Case | None:
    solver = {
        "sample_euler": Euler(),
        "sample_heun": Heun(),
        "sample_euler_ancestral": DDIM(eta=1.0),
        "sample_dpmpp_2m": DPMpp2M(),
    }.get(s["fn"])
    if solver is None or s.get("s_churn"):
        return None
    n = s["n"]
    draws = list(range(n)) if isinstance(solver, DDIM) else [0]
    schedule = EDM(s["sigma_min"], s["sigma_max"])
    return Case(schedule, solver, edm(n, s["sigma_min"], s["sigma_max"], s["rho"]), draws, 1e-9)


def _edm(s: dict) -> Case | None:
    n = s["num_steps"]
    if s["fn"] == "edm_sampler":
        return Case(EDM(), Heun(), edm(n), [0], 1e-9)
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


def _diffusers(s: dict) -> Case | None:
    table = ddpm("linear", s["num_train_timesteps"], s["beta_start"], s["beta_end"])
    times = Times((*s["timesteps"], -1.0)) if all(np.diff(s["timesteps"]) < 0) else None
    if s.get("use_lu_lambdas"):  # between the indices; its list of timesteps is rounded
        times = Times((*t_of_lam(table, -np.log(s["sigmas"][:-1])), -1.0))
    n = s["steps"]
    clip = 1.0 if s.get("clip_sample") else None
    if s["cls"] == "DDPMScheduler":
        # Their last step draws noise unless it starts at index 0.
        variance, denoise = s["variance_type"].removeprefix("fixed_"), s["timesteps"][-1] == 0
        return Case(table, Ancestral(variance, denoise), times, list(range(n + (not denoise))), 1e-5, clip)
    if s["cls"] == "DDIMScheduler":
        eta = s["call"].get("eta", 0.0)
        return Case(table, DDIM(eta, keep_eps=clip is not None), times, list(range(n)) if eta else [0], 1e-5, clip)
    if (
        s["cls"] == "DPMSolverMultistepScheduler"
        and s["algorithm_type"] == "dpmsolver++"
        and s.get("solver_type") != "heun"
    ):
        solver = {1: DDIM(), 2: DPMpp2M()}.get(s["solver_order"])
        return None if solver is None else Case(table, solver, times, [0], 1e-5)
    if s["cls"] in ("EulerDiscreteScheduler", "HeunDiscreteScheduler", "EulerAncestralDiscreteScheduler"):
        sigmas = tuple(dict.fromkeys(s["sigmas"]))
        solver = {"EulerD": Euler(), "HeunDi": Heun(), "EulerA": DDIM(eta=1.0)}[s["cls"][:6]]
        draws = list(range(n)) if isinstance(solver, DDIM) else [0]
        return Case(EDM(sigmas[-2], sigmas[0]), solver, Times(sigmas), draws, 1e-5)
    return None
