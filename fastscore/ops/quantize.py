"""Images in [-1, 1] to bytes, in PyTorch."""

from __future__ import annotations

import torch
from torch import Tensor

from fastscore.errors import unknown

ROUNDINGS = ("nearest", "floor")


def quantize_ref(x: Tensor, rounding: str = "nearest") -> Tensor:
    """Return uint8 [N, H, W, C] of float images [N, C, H, W] in [-1, 1]; values outside are clipped, NaN is 0.

    "nearest" is EDM's clip(floor(127.5 x + 128)); "floor" is score_sde's floor(255 (x + 1) / 2),
    half a grey level darker.

    Raises:
        ValueError: an unknown rounding rule.
    """
    if rounding not in ROUNDINGS:
        raise unknown("rounding", rounding, ROUNDINGS)
    y = x * 127.5 + (128.0 if rounding == "nearest" else 127.5)
    return y.clamp(0.0, 255.0).nan_to_num(0.0).to(torch.uint8).permute(0, 2, 3, 1).contiguous()
