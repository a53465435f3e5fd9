"""A residual multilayer perceptron for points of low dimension."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fastscore.model.nets.embedding import time_features, zero_


class MLP(nn.Module):
    """Score network on points [N, D]: residual layers, each shifted by the time embedding.

    Args:
        dim: D.
        width: hidden units.
        depth: residual layers.
        classes: as for UNet.
        scale, embedding: as for UNet.
    """

    def __init__(
        self,
        dim: int,
        width: int = 128,
        depth: int = 3,
        classes: int = 0,
        scale: float = 1.0,
        embedding: str = "fourier",
    ) -> None:
        super().__init__()
        self.classes = classes
        self.features, self.embed = time_features(embedding, 64, scale), nn.Linear(64, width)
        self.label = nn.Embedding(classes + 1, width) if classes else None
        self.stem, self.head = nn.Linear(dim, width), zero_(nn.Linear(width, dim))
        self.layers = nn.ModuleList(nn.Linear(width, width) for _ in range(depth))
        self.shifts = nn.ModuleList(nn.Linear(width, width) for _ in range(depth))

    def forward(self, u: Tensor, c_noise: Tensor, cond: Tensor | None = None) -> Tensor:
        emb = self.embed(self.features(c_noise).to(u.dtype))
        if self.label is not None:
            label = torch.full_like(c_noise, self.classes, dtype=torch.int64) if cond is None else cond
            emb = emb + self.label(label)
        emb, x = F.silu(emb), self.stem(u)
        for layer, shift in zip(self.layers, self.shifts, strict=True):
            x = x + layer(F.silu(x + shift(emb)))
        return self.head(F.silu(x)).to(u.dtype)
