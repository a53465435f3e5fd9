"""Guides that bound the estimate of x_0: what came before stays known, for solvers that keep its eps."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from fastscore.errors import short, typed
from fastscore.guidance.denoiser import Denoiser

Bounding = tuple[None, Callable[[Tensor], Tensor]]


@dataclass(frozen=True)
@typed
class StaticThreshold:
    """Clip D to [-bound, bound], as Sampler's ``clip`` does in the rows of a plan. Source: Saharia et al. 2022, 2.3."""

    bound: float = 1.0

    def __post_init__(self) -> None:
        if not 0.0 < self.bound < math.inf:
            raise ValueError(f"clip = {self.bound} must be a positive number")

    def __call__(self, denoise: Denoiser, x: Tensor, alpha: Tensor, sigma: Tensor, y: Tensor | None) -> Tensor:
        return self.bounded(denoise(x))

    def bounded(self, D: Tensor) -> Tensor:
        """Return an estimate, bounded."""
        return D.clamp(-self.bound, self.bound)

    @property
    def bounding(self) -> Bounding:
        """It bounds what the network makes."""
        return None, self.bounded


@dataclass(frozen=True)
@typed
class DynamicThreshold:
    """Clip D to [-s, s] and scale that to [-bound, bound]; s is the ``share`` quantile of a sample's |D|, or bound.

    Strong guidance pushes values out of the data's range; a fixed clip (Sampler's ``clip``) saturates them, this one
    brings the whole sample back. The quantile is the nearest rank from above.

    Source: Saharia et al. 2022 (Imagen), section 2.3.
    """

    share: float = 0.995
    bound: float = 1.0

    def __post_init__(self) -> None:
        if not (0.0 < self.share <= 1.0 and 0.0 < self.bound < math.inf):
            raise ValueError(f"DynamicThreshold: share = {self.share} must lie in 0 .. 1, bound = {self.bound} above 0")

    def __call__(self, denoise: Denoiser, x: Tensor, alpha: Tensor, sigma: Tensor, y: Tensor | None) -> Tensor:
        return self.bounded(denoise(x))

    def bounded(self, D: Tensor) -> Tensor:
        """Return an estimate, bounded."""
        size = D.detach().abs().flatten(1)
        s = size.kthvalue(max(1, math.ceil(self.share * size.shape[1])), dim=1).values
        s = s.clamp_min(self.bound).reshape(-1, *[1] * (D.ndim - 1))
        return torch.maximum(torch.minimum(D, s), -s) * (self.bound / s)

    @property
    def bounding(self) -> Bounding:
        """It bounds what the network makes."""
        return None, self.bounded


@dataclass(frozen=True)
@typed
class Quantile:
    """Clip D to [-s, s] and divide by s, the ``share`` quantile of a sample's |D| in 1 .. top; diffusers' thresholding.

    The quantile is interpolated between ranks, and s is bounded above; fastscore.DynamicThreshold is Imagen's own.

    Source: Saharia et al. 2022 (Imagen), section 2.3.
    """

    share: float = 0.995
    top: float = 1.0

    def __post_init__(self) -> None:
        if not (0.0 < self.share <= 1.0 and self.top >= 1.0):
            raise ValueError(f"Quantile: share = {short(self.share)} must lie in 0 .. 1, top = {self.top} from 1 on")

    def __call__(self, denoise: Denoiser, x: Tensor, alpha: Tensor, sigma: Tensor, y: Tensor | None) -> Tensor:
        return self.bounded(denoise(x))

    def bounded(self, D: Tensor) -> Tensor:
        """Return an estimate, bounded."""
        s = torch.quantile(D.detach().abs().flatten(1), self.share, dim=1).clamp(1.0, self.top)
        s = s.reshape(-1, *[1] * (D.ndim - 1))
        return torch.maximum(torch.minimum(D, s), -s) / s

    @property
    def bounding(self) -> Bounding:
        """It bounds what the network makes."""
        return None, self.bounded
