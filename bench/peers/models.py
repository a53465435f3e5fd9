"""What both sides of a comparison share: the model, as each library calls it, and fastscore's normals."""

from __future__ import annotations

import itertools
from collections.abc import Callable

import torch
from torch import Tensor

from bench.peers import Model
from fastscore.model.analytic import mixture
from fastscore.ops.noise import NoiseKey

SEED = 0


def edm_model(net: Callable[..., Tensor], cond: Tensor | None, sigma_data: float, predicts: str) -> Model:
    """Wrap a network into what a peer calls. Source: Karras et al. 2022, eq. 7 and table 1."""

    def denoise(x: Tensor, sigma: Tensor, alpha: Tensor | float) -> Tensor:
        ratio = sigma / alpha
        total = ratio**2 + sigma_data**2
        c_skip, c_out, c_in = sigma_data**2 / total / alpha, ratio * sigma_data * total.rsqrt(), total.rsqrt() / alpha
        c_noise = (ratio.log() / 4).expand(len(x))
        return _column(c_skip, x) * x + _column(c_out, x) * net(_column(c_in, x) * x, c_noise, cond)

    return predicting(denoise, predicts)


def mixture_model(predicts: str) -> Model:
    """Wrap the exact denoiser of the mixture."""
    target = mixture()

    def denoise(x: Tensor, sigma: Tensor, alpha: Tensor | float) -> Tensor:
        alpha = torch.as_tensor(alpha, dtype=x.dtype)
        length = torch.hypot(sigma, alpha.expand_as(sigma))
        return target(x / _column(length, x), torch.atan2(sigma, alpha).expand(len(x)))

    return predicting(denoise, predicts)


def predicting(denoise: Callable[..., Tensor], predicts: str) -> Model:
    """Turn a denoiser into the model that a library calls, which returns x0, eps or the score."""

    def model(x: Tensor, sigma: Tensor, alpha: Tensor | float = 1.0) -> Tensor:
        sigma = torch.as_tensor(sigma, dtype=x.dtype, device=x.device)
        d = denoise(x, sigma, alpha)
        if predicts == "x0":
            return d
        s = _column(sigma, x)
        eps = (x - alpha * d) / s
        return eps if predicts == "eps" else -eps / s

    return model


def _column(v: Tensor, x: Tensor) -> Tensor:
    return v.reshape(-1, *[1] * (x.ndim - 1)) if v.ndim else v


class Draws:
    """fastscore's normals, one draw after another."""

    def __init__(self, n: int, device: torch.device) -> None:
        self.key, self.count = NoiseKey.of(SEED, range(n), device), itertools.count()

    def __call__(self, like: Tensor) -> Tensor:
        return self.key.normal(next(self.count), like[0].numel()).reshape(like.shape)
