"""diffusers: schedulers, stepped by the loop of its documentation."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import diffusers
import numpy as np
import torch
from torch import Tensor

import fastscore as fs
from bench.peers import SIGMA_MAX, SIGMA_MIN, SNR, Draw, Entry, Model, versioned
from bench.peers.inject import normals
from fastscore.plan.rows import Solver

# A linear table whose last sigma / alpha, 56, the bundled network knows; that of 0.02 is 157.
TABLE = {"num_train_timesteps": 1000, "beta_start": 1e-4, "beta_end": 0.016, "beta_schedule": "linear"}


def entries(steps: int) -> list[Entry]:
    """Return DDPM, DDIM, DPM++ 2M and Heun on a DDPM table, and PC on VE."""
    return [_ddim(steps), _ddpm(steps), _dpm(steps), _heun(max(2, steps // 2)), _pc(max(2, steps // 2))]


def _loop(scheduler: Any, steps: int, levels: Sequence[tuple[Tensor, Tensor]], scale: float = 1.0) -> Any:
    """Return the documented loop; ``levels`` are (sigma, alpha) of each timestep, for the model."""

    def run(model: Model, z: Tensor, draw: Draw | None) -> Tensor:
        with normals(draw):
            scheduler.set_timesteps(steps, device=z.device)
            x = z * scale
            for t, level in zip(scheduler.timesteps, levels, strict=True):
                output = model(scheduler.scale_model_input(x, t), *level)
                x = scheduler.step(output, t, x).prev_sample
            return x

    return run


def _table(scheduler: Any, steps: int) -> tuple[fs.Times, list[tuple[Tensor, Tensor]]]:
    """Return the scheduler's times as fastscore's knots, and (sigma, alpha) at each."""
    scheduler.set_timesteps(steps)
    squares = scheduler.alphas_cumprod[scheduler.timesteps]
    levels = list(zip((1.0 - squares).sqrt(), squares.sqrt(), strict=True))
    return fs.Times((*map(float, scheduler.timesteps), -1.0)), levels


def _on_table(name: str, scheduler: Any, solver: Solver, steps: int) -> Entry:
    """Return a scheduler on TABLE that predicts x0, beside a solver of fastscore on the same table and times."""
    times, levels = _table(scheduler, steps)
    run = _loop(scheduler, steps, levels)
    return Entry(versioned("diffusers"), name, fs.discrete_vp(beta_max=TABLE["beta_end"]), solver, times, "x0", run)


def _ddim(steps: int) -> Entry:
    scheduler = diffusers.DDIMScheduler(**TABLE, clip_sample=False, prediction_type="sample")
    return _on_table("DDIM", scheduler, fs.DDIM(), steps)


def _ddpm(steps: int) -> Entry:
    scheduler = diffusers.DDPMScheduler(**TABLE, clip_sample=False, prediction_type="sample")
    return _on_table("DDPM", scheduler, fs.Ancestral(), steps)


def _dpm(steps: int) -> Entry:
    scheduler = diffusers.DPMSolverMultistepScheduler(**TABLE, prediction_type="sample")
    return _on_table("DPM++ 2M", scheduler, fs.DPMpp2M(), steps)


def _heun(steps: int) -> Entry:
    scheduler = diffusers.HeunDiscreteScheduler(**TABLE, use_karras_sigmas=True)  # predicts eps only
    scheduler.set_timesteps(steps)
    sigmas = scheduler.sigmas[:-1].double()
    length = (sigmas**2 + 1.0).sqrt()  # scale_model_input divides by it
    levels = list(zip((sigmas / length).float(), (1.0 / length).float(), strict=True))
    knots = tuple(np.unique(scheduler.sigmas.double().numpy())[::-1].tolist())
    run = _loop(scheduler, steps, levels, scale=knots[0])
    return Entry(versioned("diffusers"), "Heun", fs.EDM(knots[-2], knots[0]), fs.Heun(), fs.Times(knots), "eps", run)


def _pc(steps: int) -> Entry:
    scheduler = diffusers.ScoreSdeVeScheduler(steps, SNR, SIGMA_MIN, SIGMA_MAX)

    def run(model: Model, z: Tensor, draw: Draw | None) -> Tensor:
        with normals(draw):
            scheduler.set_timesteps(steps, device=z.device)
            scheduler.set_sigmas(steps)
            x = mean = z * scheduler.init_noise_sigma
            for i, t in enumerate(scheduler.timesteps):
                sigma = scheduler.sigmas[i] * torch.ones(len(x), device=x.device)
                for _ in range(scheduler.config.correct_steps):
                    x = scheduler.step_correct(model(x, sigma), x).prev_sample
                output = scheduler.step_pred(model(x, sigma), t, x)
                x, mean = output.prev_sample, output.prev_sample_mean
            return mean

    solver = fs.ScoreSDE(corrector=fs.Langevin(SNR, norm="batch"))
    schedule = fs.VE(SIGMA_MIN, SIGMA_MAX)
    return Entry(versioned("diffusers"), "ScoreSdeVe PC", schedule, solver, fs.uniform(steps), "score", run)
