"""A small image classifier whose penultimate features stand in for Inception's in a FID."""

from __future__ import annotations

from itertools import pairwise

import torch.nn.functional as F
from torch import Tensor, nn


class Classifier(nn.Module):
    """Four convolutions, global average pooling, one linear layer.

    Args:
        channels: of the image.
        classes: number of labels.
        width: channels of the first layer; the features have 4 times as many.
    """

    def __init__(self, channels: int, classes: int, width: int = 32) -> None:
        super().__init__()
        sizes = (channels, width, 2 * width, 4 * width, 4 * width)
        self.convs = nn.ModuleList(nn.Conv2d(a, b, 3, padding=1, bias=False) for a, b in pairwise(sizes))
        self.norms = nn.ModuleList(nn.GroupNorm(8, c) for c in sizes[1:])
        self.head = nn.Linear(sizes[-1], classes)

    def features(self, x: Tensor) -> Tensor:
        """Return the pooled features [N, 4 width] of images [N, C, H, W] in [-1, 1]."""
        for k, (conv, norm) in enumerate(zip(self.convs, self.norms, strict=True)):
            x = F.silu(norm(conv(x)))
            x = F.max_pool2d(x, 2) if k < 2 else x
        return x.mean(dim=(2, 3))

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.features(x))
