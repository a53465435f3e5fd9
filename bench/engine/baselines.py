"""Samplers as published code writes them: a Python loop over tensors, in eager PyTorch.

Written for this comparison from the papers, in the habits of the public implementations: coefficients
computed on the device at every step, noise from the global generator, a branch on the last sigma.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

Denoiser = Callable[[Tensor, Tensor], Tensor]
Draw = Callable[[Tensor], Tensor]  # torch.randn_like, or recorded normals


def edm_denoiser(net: Callable[..., Tensor], sigma_data: float, cond: Tensor | None) -> Denoiser:
    """Wrap a network into D(x; sigma). Source: Karras et al. 2022, eq. 7 and table 1."""

    def denoise(x: Tensor, sigma: Tensor) -> Tensor:
        s = sigma.reshape(-1, *[1] * (x.ndim - 1))
        total = s**2 + sigma_data**2
        c_skip, c_out, c_in = sigma_data**2 / total, s * sigma_data / total.sqrt(), 1 / total.sqrt()
        return c_skip * x + c_out * net(c_in * x, sigma.log() / 4, cond)

    return denoise


def dpmpp_2m(denoise: Denoiser, x: Tensor, sigmas: Tensor) -> Tensor:
    """DPM-Solver++(2M) on sigmas that end in 0. Source: Lu et al. 2022b, algorithm 2, with alpha = 1."""
    ones, old, h_last = x.new_ones(len(x)), None, None
    for k in range(len(sigmas) - 1):
        denoised = denoise(x, sigmas[k] * ones)
        h = sigmas[k].log() - sigmas[k + 1].log()
        if old is None or h_last is None or sigmas[k + 1] == 0:
            d = denoised
        else:
            r = h_last / h
            d = (1 + 1 / (2 * r)) * denoised - 1 / (2 * r) * old
        x = sigmas[k + 1] / sigmas[k] * x - torch.expm1(-h) * d
        old, h_last = denoised, h
    return x


def ddim(denoise: Denoiser, x: Tensor, sigmas: Sequence[float]) -> Tensor:
    """DDIM on sigmas that end in 0, written to be compiled and captured: coefficients are numbers of the host.

    Source: Song et al. 2020, eq. 12 with eta = 0; Karras et al. 2022, algorithm 1 without its correction.
    """
    for k in range(len(sigmas) - 1):
        ratio = sigmas[k + 1] / sigmas[k]
        x = ratio * x + (1.0 - ratio) * denoise(x, torch.full((len(x),), sigmas[k], device=x.device))
    return x


def predictor_corrector(
    denoise: Denoiser, x: Tensor, steps: int, sigma_min: float, sigma_max: float, snr: float, draw: Draw
) -> Tensor:
    """Song's PC sampler on VE: Langevin with norms averaged over the batch, then reverse diffusion.

    Source: Song et al. 2021, algorithms 2 and 4; the result is the last mean, as in their code.
    """
    times = torch.linspace(1.0, 1e-5, steps, device=x.device)
    levels = torch.linspace(torch.tensor(sigma_min).log(), torch.tensor(sigma_max).log(), steps, device=x.device).exp()
    mean = x

    def score(x: Tensor, t: Tensor) -> Tensor:
        sigma = sigma_min * (sigma_max / sigma_min) ** t
        return (denoise(x, sigma) - x) / (sigma**2)[:, None, None, None]

    for k in range(steps):
        t = torch.ones(len(x), device=x.device) * times[k]
        gradient, noise = score(x, t), draw(x)
        gradient_norm = gradient.reshape(len(x), -1).norm(dim=-1).mean()
        noise_norm = noise.reshape(len(x), -1).norm(dim=-1).mean()
        step = (torch.ones_like(t) * 2 * (snr * noise_norm / gradient_norm) ** 2)[:, None, None, None]
        x = x + step * gradient + (step * 2).sqrt() * noise

        high = levels[steps - 1 - k]
        low = levels[steps - 2 - k] if k < steps - 1 else torch.zeros_like(high)
        G = (high**2 - low**2).sqrt()
        mean = x + G**2 * score(x, t)
        x = mean + G * draw(x)
    return mean
