"""A Transformer for sequences (audio frames, tokens of any kind) and point sets."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fastscore.model.nets.embedding import time_features, zero_


class Transformer(nn.Module):
    """Score network on [N, L, C]: pre-norm blocks whose norms are shifted and scaled by the time embedding.

    Args:
        tokens: L.
        dim: C, numbers a token.
        width: of a token inside; a multiple of ``heads``.
        depth: blocks of attention and multilayer perceptron.
        heads: of the attention.
        ordered: whether tokens have places, which are learned; without them the network commutes with
            permutations of the tokens, as a point set wants, and runs at any L.
        classes: as for UNet.
        scale, embedding: as for UNet.

    Source: Peebles & Xie 2023 (DiT), whose blocks start as the identity as these do.
    """

    def __init__(
        self,
        tokens: int,
        dim: int,
        width: int = 128,
        depth: int = 4,
        heads: int = 4,
        ordered: bool = True,
        classes: int = 0,
        scale: float = 1.0,
        embedding: str = "fourier",
    ) -> None:
        super().__init__()
        if min(tokens, dim, width, depth, heads) < 1 or width % heads:
            raise ValueError(f"width = {width} must be a multiple of heads = {heads}, and every number at least 1")
        self.classes = classes
        self.features = time_features(embedding, 64, scale)
        self.embed = nn.Sequential(nn.Linear(64, width), nn.SiLU(), nn.Linear(width, width))
        self.label = nn.Embedding(classes + 1, width) if classes else None
        self.stem = nn.Linear(dim, width)
        self.places = nn.Parameter(torch.empty(tokens, width).normal_(std=0.02)) if ordered else None
        self.blocks = nn.ModuleList(_Block(width, heads) for _ in range(depth))
        self.norm, self.head = nn.LayerNorm(width), zero_(nn.Linear(width, dim))

    def forward(self, u: Tensor, c_noise: Tensor, cond: Tensor | None = None) -> Tensor:
        emb = self.embed(self.features(c_noise).to(u.dtype))
        if self.label is not None:
            label = torch.full_like(c_noise, self.classes, dtype=torch.int64) if cond is None else cond
            emb = emb + self.label(label)
        emb, x = F.silu(emb)[:, None, :], self.stem(u)
        if self.places is not None:
            x = x + self.places
        for block in self.blocks:
            x = block(x, emb)
        return self.head(self.norm(x)).to(u.dtype)


class _Block(nn.Module):
    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norms = nn.ModuleList(nn.LayerNorm(width, elementwise_affine=False) for _ in range(2))
        self.modulation = zero_(nn.Linear(width, 6 * width))
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.mlp = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width))

    def forward(self, x: Tensor, emb: Tensor) -> Tensor:
        shift, scale, gate, shift2, scale2, gate2 = self.modulation(emb).chunk(6, dim=-1)
        x = x + gate * self._attend(self.norms[0](x) * (1.0 + scale) + shift)
        return x + gate2 * self.mlp(self.norms[1](x) * (1.0 + scale2) + shift2)

    def _attend(self, x: Tensor) -> Tensor:
        q, k, v = (part.unflatten(2, (self.heads, -1)).transpose(1, 2) for part in self.qkv(x).chunk(3, dim=-1))
        return self.out(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))
