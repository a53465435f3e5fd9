"""ScoreNet, the small U-Net of the score-SDE tutorial."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fastscore.model.nets.embedding import time_features


class ScoreNet(nn.Module):
    """Four strided convolutions down, four transposed ones up with concatenated skips.

    Its output is divided by sigma(t) = sqrt((s^{2t} - 1) / (2 ln s)), so that it predicts the score
    of the tutorial's SDE dx = s^t dw from the time t itself. Source: Song's score-SDE tutorial.

    Args:
        channels: of the image; height and width must be 28, which the strides are made for.
        base: s; None divides by nothing, for other SDEs and predictions.
        widths: channels of the four levels.
        embed: size of the time embedding.
        scale, embedding: as for UNet.
    """

    def __init__(
        self,
        channels: int = 1,
        base: float | None = 25.0,
        widths: tuple[int, int, int, int] = (32, 64, 128, 256),
        embed: int = 256,
        scale: float = 30.0,
        embedding: str = "fourier",
    ) -> None:
        super().__init__()
        a, b, c, d = widths
        self.rate = None if base is None else 2.0 * math.log(base)
        self.features, self.embed = time_features(embedding, embed, scale), nn.Linear(embed, embed)
        self.down = nn.ModuleList(
            [
                nn.Conv2d(channels, a, 3, bias=False),
                nn.Conv2d(a, b, 3, stride=2, bias=False),
                nn.Conv2d(b, c, 3, stride=2, bias=False),
                nn.Conv2d(c, d, 3, stride=2, bias=False),
            ]
        )
        self.up = nn.ModuleList(
            [
                nn.ConvTranspose2d(d, c, 3, stride=2, bias=False),
                nn.ConvTranspose2d(c + c, b, 3, stride=2, bias=False, output_padding=1),
                nn.ConvTranspose2d(b + b, a, 3, stride=2, bias=False, output_padding=1),
            ]
        )
        self.head = nn.ConvTranspose2d(a + a, channels, 3)
        levels = (a, b, c, d, c, b, a)
        self.dense = nn.ModuleList(nn.Linear(embed, w) for w in levels)
        self.norms = nn.ModuleList(nn.GroupNorm(4 if k == 0 else 32, w) for k, w in enumerate(levels))

    def forward(self, u: Tensor, c_noise: Tensor, cond: Tensor | None = None) -> Tensor:
        emb = F.silu(self.embed(self.features(c_noise).to(u.dtype)))

        def level(k: int, h: Tensor) -> Tensor:
            return F.silu(self.norms[k](h + self.dense[k](emb)[:, :, None, None]))

        skips, h = [], u
        for k, conv in enumerate(self.down):
            h = level(k, conv(h))
            skips.append(h)
        skips.pop()
        for k, conv in enumerate(self.up):
            h = level(4 + k, conv(h))
            h = torch.cat([h, skips.pop()], dim=1)
        h = self.head(h)
        if self.rate is None:
            return h.to(u.dtype)
        sigma = torch.sqrt(torch.expm1(self.rate * c_noise.float()) / self.rate)
        return (h.float() / sigma[:, None, None, None]).to(u.dtype)
