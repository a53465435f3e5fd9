"""Song's predictor-corrector sampler on VE, in the manner of score_sde: a loop of eager PyTorch.

Written by us from the paper (Song et al. 2021, algorithms 2 and 4), in the habits of the published code:
a table looked up at every step, times and step sizes as vectors, norms averaged over the batch.
It stands for that code, which is no package; it is not that code.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

import fastscore as fs
from bench.peers import SIGMA_MAX, SIGMA_MIN, SNR, Draw, Entry, Model
from bench.peers.inject import normals


def entries(steps: int) -> list[Entry]:
    """Return reverse diffusion after one Langevin step, at ``steps`` / 2 times."""
    n = max(2, steps // 2)

    def run(model: Model, z: Tensor, draw: Draw | None) -> Tensor:
        with torch.no_grad(), normals(draw):
            return predictor_corrector(model, z * SIGMA_MAX, n)

    solver, schedule = fs.ScoreSDE(corrector=fs.Langevin(SNR, norm="batch")), fs.VE(SIGMA_MIN, SIGMA_MAX)
    return [Entry("score_sde (ours)", "PC, Langevin", schedule, solver, fs.uniform(n), "score", run)]


def predictor_corrector(score: Model, x: Tensor, n: int) -> Tensor:
    """Run n times of corrector and predictor; return the last mean."""
    levels = torch.exp(torch.linspace(math.log(SIGMA_MIN), math.log(SIGMA_MAX), n))
    times = torch.linspace(1.0, 1e-5, n, device=x.device)
    mean = x
    for k in range(n):
        t = torch.ones(len(x), device=x.device) * times[k]
        sigma = SIGMA_MIN * (SIGMA_MAX / SIGMA_MIN) ** t
        x = langevin(score, x, sigma)
        x, mean = reverse_diffusion(score, x, t, sigma, levels)
    return mean


def langevin(score: Model, x: Tensor, sigma: Tensor) -> Tensor:
    """Take one Langevin step whose length gives the signal-to-noise ratio SNR. Source: algorithm 4."""
    gradient, noise = score(x, sigma), torch.randn_like(x)
    gradient_norm = torch.norm(gradient.reshape(len(x), -1), dim=-1).mean()
    noise_norm = torch.norm(noise.reshape(len(x), -1), dim=-1).mean()
    step = (SNR * noise_norm / gradient_norm) ** 2 * 2 * torch.ones_like(sigma)
    column = (-1, *[1] * (x.ndim - 1))
    return x + step.reshape(column) * gradient + torch.sqrt(step * 2).reshape(column) * noise


def reverse_diffusion(score: Model, x: Tensor, t: Tensor, sigma: Tensor, levels: Tensor) -> tuple[Tensor, Tensor]:
    """Take one step of reverse diffusion; return the state and its mean. Source: algorithm 2."""
    column = (-1, *[1] * (x.ndim - 1))
    levels = levels.to(t.device)
    index = (t * (len(levels) - 1)).long()
    level = levels[index]
    below = torch.where(index == 0, torch.zeros_like(t), levels[index - 1])
    drift, diffusion = torch.zeros_like(x), torch.sqrt(level**2 - below**2).reshape(column)
    noise = torch.randn_like(x)
    mean = x - (drift - diffusion**2 * score(x, sigma))
    return mean + diffusion * noise, mean
