r"""Guides that differentiate: they change the estimate E[x_0 | x_t] of a run, whatever solver, schedule and network.

    D' = D + (sigma^2 / alpha) grad_x log p(y | x_t)

is Tweedie's estimate under the score of p(x_t | y); the gradient is scaled by what the score of a row is scaled by.
A guide treats every sample alone, so that it sees no batch.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from fastscore.errors import typed
from fastscore.guidance.chain import Chain
from fastscore.guidance.denoiser import Denoiser
from fastscore.guidance.measurements import Operator
from fastscore.guidance.per_sample import each_alone
from fastscore.guidance.rules import CFGRescale
from fastscore.guidance.thresholds import DynamicThreshold, StaticThreshold

__all__ = [
    "DPS",
    "CFGRescale",
    "Chain",
    "ClassifierGuidance",
    "DynamicThreshold",
    "EnergyGuidance",
    "PiGDM",
    "StaticThreshold",
]


@dataclass(frozen=True)
@typed
class ClassifierGuidance:
    """Follow a classifier of noisy states: D' = D + scale (sigma^2 / alpha) grad_x log p(y | x_t).

    Args:
        log_prob: (x, alpha, sigma, y) -> log p(y | x_t = x), [N]; any function, a classifier's chosen log-softmax.
        scale: of the gradient; 1 is Bayes' rule.

    Source: Song et al. 2021, section 5 and appendix I; Dhariwal & Nichol 2021, algorithm 1 (scale).
    """

    log_prob: Callable[[Tensor, Tensor, Tensor, Tensor | None], Tensor]
    scale: float = 1.0

    def __post_init__(self) -> None:
        _finite("ClassifierGuidance", self.scale)

    def __call__(self, denoise: Denoiser, x: Tensor, alpha: Tensor, sigma: Tensor, y: Tensor | None) -> Tensor:
        with torch.enable_grad():
            at = x.detach().requires_grad_()
            log_prob = each_alone(
                self.log_prob(at, alpha, sigma, y),
                lambda: self.log_prob(at[:1], alpha[:1], sigma[:1], None if y is None else y[:1]),
                "the classifier",
            )
            gradient = _gradient(log_prob, at)
        return denoise(x) + self.scale * _tweedie(alpha, sigma) * gradient


@dataclass(frozen=True)
@typed
class EnergyGuidance:
    """Go down an energy of the clean estimate: D' = D - scale (sigma^2 / alpha) grad_x E(D(x), y).

    Args:
        energy: (D, y) -> E, [N]; exp(-E) is what each estimate is weighted by.
        scale: of the gradient.

    Source: Song et al. 2023 (loss-guided diffusion) with one point; Bansal et al. 2023, forward guidance.
    """

    energy: Callable[[Tensor, Tensor | None], Tensor]
    scale: float = 1.0

    def __post_init__(self) -> None:
        _finite("EnergyGuidance", self.scale)

    def __call__(self, denoise: Denoiser, x: Tensor, alpha: Tensor, sigma: Tensor, y: Tensor | None) -> Tensor:
        def log_prob(D: Tensor) -> Tensor:
            first = None if y is None else y[:1]
            return -self.scale * each_alone(self.energy(D, y), lambda: self.energy(D[:1], first), "the energy")

        return _through(denoise, x, alpha, sigma, log_prob)


@dataclass(frozen=True)
@typed
class DPS:
    r"""Diffusion posterior sampling of y = A(x_0) + noise: log p(y | x_t) ~ -|y - A(D)|^2 / (2 noise^2).

    The step along the gradient is noise^2 times stiffer than the run's own: where ``noise`` is small against the
    spread of the data, the grid must be fine or ``scale`` small. PiGDM needs neither, for linear A.

    Args:
        operator: A, differentiable; it need not be linear. What differs from sample to sample belongs into an
            operator of guidance/measurements.py, or into y.
        noise: standard deviation of the measurement, or None for the step of the published code,
            (scale / |y - A(D)|) grad |y - A(D)|^2, which acts on D here and not on the state after a step.
        scale: of the gradient.

    Source: Chung et al. 2023, eq. 16 and algorithm 1. Measurements are the ``y`` of a run.
    """

    operator: Callable[[Tensor], Tensor]
    noise: float | None = None
    scale: float = 1.0

    def __post_init__(self) -> None:
        _finite("DPS", self.scale)
        if self.noise is not None and not 0.0 < self.noise < math.inf:
            raise ValueError(f"DPS: noise = {self.noise} must be positive, or None")

    def __call__(self, denoise: Denoiser, x: Tensor, alpha: Tensor, sigma: Tensor, y: Tensor | None) -> Tensor:
        def log_prob(D: Tensor) -> Tensor:
            square = _residual(self.operator, D, y).flatten(1).square().sum(1)
            if self.noise is None:
                return -self.scale * square / square.detach().sqrt().clamp_min(torch.finfo(square.dtype).tiny)
            return -self.scale * square / (2.0 * self.noise * self.noise)

        return _through(denoise, x, alpha, sigma, log_prob)


@dataclass(frozen=True)
@typed
class PiGDM:
    r"""Pseudoinverse guidance of y = A x_0 + noise, with p(x_0 | x_t) taken as N(D, r^2 I).

        grad_x log p(y | x_t) ~ (dD/dx)^T A^T (r^2 A A^T + noise^2 I)^-1 (y - A D),
        r^2 = data_std^2 sigma^2 / (alpha^2 data_std^2 + sigma^2)

    It is exact, and so is the posterior, where the data are N(mu, data_std^2 I).

    Args:
        operator: A, see guidance/measurements.py.
        noise: standard deviation of the measurement, 0 for none.
        data_std: of the data along their widest direction: of images several times a pixel's, which overshoots.
        scale: of the gradient; 1 is Bayes' rule.

    Source: Song et al. 2023, eq. 7, for any (alpha, sigma); r^2 with the variance of the data in place of their 1.
    Measurements are the ``y`` of a run.
    """

    operator: Operator
    noise: float = 0.0
    data_std: float = 1.0
    scale: float = 1.0

    def __post_init__(self) -> None:
        _finite("PiGDM", self.scale)
        if not (0.0 <= self.noise < math.inf and 0.0 < self.data_std < math.inf):
            raise ValueError(f"PiGDM: noise = {self.noise} must be at least 0, data_std = {self.data_std} positive")

    def __call__(self, denoise: Denoiser, x: Tensor, alpha: Tensor, sigma: Tensor, y: Tensor | None) -> Tensor:
        if sigma.numel() > len(sigma):
            raise ValueError(
                "PiGDM takes one noise level for all columns, and this model's have units of their own: use DPS, or "
                "train on data of unit scale"
            )
        variance = self.data_std * self.data_std
        r2 = variance * sigma**2 / (alpha**2 * variance + sigma**2)

        def log_prob(D: Tensor) -> Tensor:
            residual = _residual(self.operator, D, y)
            # Its gradient is that of (y - A D) at a constant weight, which is the formula above.
            weighted = self.operator.solve(residual.detach(), r2, self.noise * self.noise)
            return -self.scale * (residual * weighted).flatten(1).sum(1)

        return _through(denoise, x, alpha, sigma, log_prob)


def _through(
    denoise: Denoiser, x: Tensor, alpha: Tensor, sigma: Tensor, log_prob: Callable[[Tensor], Tensor]
) -> Tensor:
    """Return D + (sigma^2 / alpha) grad_x log_prob(D(x)); one forward and one backward pass of the network."""
    with torch.enable_grad():
        at = x.detach().requires_grad_()
        D = denoise(at)
        if not D.requires_grad:
            raise ValueError(
                "this guide differentiates the estimate, and a guide before it made that constant: put it first"
            )
        gradient = _gradient(log_prob(D), at)
    return D.detach() + _tweedie(alpha, sigma) * gradient


def _finite(name: str, scale: float) -> None:
    if not -math.inf < scale < math.inf:
        raise ValueError(f"{name}: scale = {scale} must be finite")


def _gradient(values: Tensor, at: Tensor) -> Tensor:
    if values.shape != at.shape[:1]:
        raise ValueError(f"a guide's log-probability or energy has shape {tuple(values.shape)}; expected one a sample")
    return torch.autograd.grad(values.sum(), at)[0]


def _tweedie(alpha: Tensor, sigma: Tensor) -> Tensor:
    """Return sigma^2 / alpha; 0 at pure noise, where x says nothing of the data and the gradient is 0."""
    return torch.where(alpha > 0.0, sigma**2 / alpha, 0.0)


def _residual(operator: Callable[[Tensor], Tensor], D: Tensor, y: Tensor | None) -> Tensor:
    if y is None:
        raise ValueError("this guide needs the measurements: Sampler.run(.., y=..)")
    measured = operator(D)
    if not hasattr(operator, "per_sample"):
        each_alone(measured, lambda: operator(D[:1]), "the operator")
    if y.shape != measured.shape:
        raise ValueError(f"y has shape {tuple(y.shape)}; the operator makes {tuple(measured.shape)}")
    return y.to(measured) - measured
