"""A schedule from functions of others, who write time either way round and end where they like."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike
from torch import Tensor

from fastscore.errors import short, typed
from fastscore.process.schedule import Array

BEYOND = 1e-3  # time from where they end to the clean end, if they end with noise left
ZERO = 1e-12  # cos(pi / 2) and its like are none other
DIGITS = 12  # that tell schedules apart


@dataclass(frozen=True, eq=False, repr=False)
@typed
class Curves:
    """A schedule (alpha, sigma) from a function of torch tensors on times 0 .. 1, evaluated in float64.

    Derivatives are autograd's. A pair that ends with noise left, at sigma(0) > 0, goes on in straight lines to alpha =
    1 and sigma = 0 at t = -BEYOND, so that a last step to the estimate of x0 exists; no network is evaluated there.
    Two of them are equal if their values are, whatever functions they come from.

    Args:
        pair: of their time [..]: a tuple (alpha, sigma), or an object with ``alpha_t`` and ``sigma_t``.
        noise_at: where their time has the noise, 1 or 0. Time here is always 1 at the noise.

    Raises:
        ValueError: functions that cannot be evaluated, or whose sigma / alpha does not grow towards the noise.
    """

    pair: Callable[[Tensor], Any]
    noise_at: int = 1
    T = 1.0

    def __post_init__(self) -> None:
        if self.noise_at not in (0, 1):
            raise ValueError(f"noise_at = {self.noise_at} must be 1 or 0, the time at which the state is noise")
        try:
            alpha, sigma = self._pair(np.linspace(0.0, 1.0, 101))
        except Exception as error:  # a function of others fails in every way there is
            raise ValueError(f"the schedule cannot be evaluated on a tensor of times: {short(error, 200)}") from error
        if alpha.shape != (101,) or not np.isfinite(np.append(alpha, sigma)).all():
            raise ValueError("the schedule must give finite alpha and sigma for a tensor of times in 0 .. 1")
        angle = np.arctan2(sigma, alpha)
        if not np.all(np.diff(angle) > 0.0):
            other = ", as it does from 1 to 0: noise_at is the other one" if np.all(np.diff(angle) < 0.0) else ""
            raise ValueError(f"sigma / alpha must grow from the data to the noise at t = {self.noise_at}{other}")

    @cached_property
    def digest(self) -> str:
        """What tells schedules apart: their values, but for rounding."""
        values = np.round(self._pair(np.linspace(0.0, 1.0, 101)), DIGITS) + 0.0  # which has no -0
        return hashlib.sha256(values.tobytes()).hexdigest()[:16]

    def __repr__(self) -> str:
        return f"Curves({self.digest})"  # names of functions and their addresses say less, and change

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Curves) and self.digest == other.digest

    def __hash__(self) -> int:
        return hash(self.digest)

    @property
    def t_clean(self) -> float:
        alpha, sigma = self._pair(np.zeros(1))
        return 0.0 if sigma[0] == 0.0 and abs(alpha[0] - 1.0) < ZERO else -BEYOND

    @property
    def t_end(self) -> float:
        return 0.0 if self.t_clean < 0.0 else 1e-3

    @property
    def prior_std(self) -> float:
        """Of x_T, for data of unit variance, as azula's ``Sampler.init`` has it."""
        return float(np.hypot(self.alpha(1.0), self.sigma(1.0)))

    def alpha(self, t: ArrayLike) -> Array:
        return self._beyond(t, 0, 1.0)

    def sigma(self, t: ArrayLike) -> Array:
        return self._beyond(t, 1, 0.0)

    def dalpha(self, t: ArrayLike) -> Array:
        return self._slope(t, 0, 1.0)

    def dsigma(self, t: ArrayLike) -> Array:
        return self._slope(t, 1, 0.0)

    def _beyond(self, t: ArrayLike, which: int, clean: float) -> Array:
        t = np.asarray(t, np.float64)
        inside = self._pair(np.maximum(t, 0.0))[which]
        return np.where(t < 0.0, inside + (clean - inside) * np.minimum(-t / BEYOND, 1.0), inside)

    def _slope(self, t: ArrayLike, which: int, clean: float) -> Array:
        t = np.asarray(t, np.float64)
        outside = (self._pair(np.zeros(1))[which][0] - clean) / BEYOND
        with torch.inference_mode(False), torch.enable_grad():
            at = torch.tensor(np.maximum(t, 0.0), dtype=torch.float64, device="cpu", requires_grad=True)
            value = self._torch(at)[which]
            slope = torch.autograd.grad(value.sum(), at)[0] if value.requires_grad else torch.zeros_like(at)
        return np.where(t < 0.0, outside, slope.detach().numpy())

    def _pair(self, t: Array) -> tuple[Array, Array]:
        with torch.inference_mode(False), torch.no_grad():
            alpha, sigma = (v.numpy() for v in self._torch(torch.tensor(t, dtype=torch.float64, device="cpu")))
        return np.where(np.abs(alpha) < ZERO, 0.0, alpha), np.where(np.abs(sigma) < ZERO, 0.0, sigma)

    def _torch(self, t: Tensor) -> tuple[Tensor, Tensor]:
        values = self.pair(t if self.noise_at else 1.0 - t)
        alpha, sigma = values if isinstance(values, tuple) else (values.alpha_t, values.sigma_t)
        return torch.as_tensor(alpha).to(t).expand_as(t), torch.as_tensor(sigma).to(t).expand_as(t)
