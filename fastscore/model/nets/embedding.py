"""Features of the time label, in float32 whatever the dtype of the network."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fastscore.errors import unknown


class FourierFeatures(nn.Module):
    """[sin 2 pi W c, cos 2 pi W c] with W ~ N(0, scale^2), drawn once and saved with the weights.

    Source: Tancik et al. 2020; Song et al. 2021, appendix C.
    """

    freqs: Tensor

    def __init__(self, features: int, scale: float) -> None:
        super().__init__()
        self.register_buffer("freqs", torch.empty(features // 2).normal_(std=scale))

    def _apply(self, fn: Any, recurse: bool = True) -> FourierFeatures:
        return _keep_float32(self, lambda: super(FourierFeatures, self)._apply(fn, recurse))

    def forward(self, c_noise: Tensor) -> Tensor:
        with torch.autocast(c_noise.device.type, enabled=False):
            angle = 2.0 * math.pi * c_noise.float()[:, None] * self.freqs[None, :]
            return torch.cat([angle.sin(), angle.cos()], dim=1)


class SinusoidalFeatures(nn.Module):
    """Positional features with frequencies scale .. 1e-4 scale per unit of c_noise. Source: Ho et al. 2020."""

    freqs: Tensor

    def __init__(self, features: int, scale: float = 1.0) -> None:
        super().__init__()
        half = features // 2
        freqs = scale * torch.exp(-math.log(1e4) * torch.arange(half, device="cpu") / max(half - 1, 1))
        self.register_buffer("freqs", freqs, persistent=False)

    def _apply(self, fn: Any, recurse: bool = True) -> SinusoidalFeatures:
        return _keep_float32(self, lambda: super(SinusoidalFeatures, self)._apply(fn, recurse))

    def forward(self, c_noise: Tensor) -> Tensor:
        with torch.autocast(c_noise.device.type, enabled=False):
            angle = c_noise.float()[:, None] * self.freqs[None, :]
            return torch.cat([angle.sin(), angle.cos()], dim=1)


class LearnedFeatures(nn.Module):
    """SiLU(W c + b), a layer that is trained, on c = scale c_noise; it rounds labels to the dtype of the network."""

    def __init__(self, features: int, scale: float = 1.0) -> None:
        super().__init__()
        self.scale, self.layer = scale, nn.Linear(1, features)

    def forward(self, c_noise: Tensor) -> Tensor:
        return F.silu(self.layer((self.scale * c_noise[:, None]).to(self.layer.weight.dtype)))


EMBEDDINGS = ("fourier", "sinusoidal", "learned")


def time_features(embedding: str, features: int, scale: float) -> nn.Module:
    """Return the features of the label: one of EMBEDDINGS; ``scale`` is that of its frequencies.

    Raises:
        ValueError: another name.
    """
    match embedding:
        case "fourier":
            return FourierFeatures(features, scale)
        case "sinusoidal":
            return SinusoidalFeatures(features, scale)
        case "learned":
            return LearnedFeatures(features, scale)
        case _:
            raise unknown("embedding", embedding, EMBEDDINGS)


def _keep_float32(features: Any, apply: Callable[[], Any]) -> Any:
    """Let ``net.to(bfloat16)`` move the frequencies but not round them: they multiply large labels."""
    exact = features.freqs
    apply()
    features.freqs = exact.to(features.freqs.device)
    return features


def zero_(layer: nn.Module) -> nn.Module:
    """Zero a layer's parameters, so that its residual branch starts as the identity."""
    for p in layer.parameters():
        nn.init.zeros_(p)
    return layer
