"""Float images to bytes, [N, C, H, W] to [N, H, W, C], against the same in PyTorch.

Claim: one pass, 5 bytes an element. The reference is the PyTorch code itself, so on it the ratio is 1.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor

from bench.common import Case, Check, Setting, op_case

SHAPES = ((64, 1, 28, 28), (64, 3, 32, 32), (64, 3, 256, 256))


def cases(setting: Setting) -> Iterator[Case]:
    """Yield one case a shape."""
    for shape in SHAPES[: 1 if setting.quick else None]:
        yield case(setting, shape)


def case(setting: Setting, shape: tuple[int, ...]) -> Case:
    """Return the case of one batch of images."""
    size = int(np.prod(shape))
    x = torch.linspace(-1.2, 1.2, size, device=setting.device).reshape(shape)

    def check() -> list[Check]:
        # float32 arithmetic in NumPy: the rule is exact, so the bytes are
        y = np.float32(127.5) * x.cpu().numpy() + np.float32(128.0)
        expected = np.clip(np.floor(y), 0, 255).astype(np.uint8).transpose(0, 2, 3, 1)
        differing = (setting.ops.quantize(x).cpu().numpy() != expected).sum()
        return [Check("bytes that differ from NumPy's", float(differing), 0.0)]

    name = "x".join(str(k) for k in shape)
    return op_case(setting, "quantize", name, lambda: setting.ops.quantize(x), to_bytes, (x,), check, size, 5)


def to_bytes(x: Tensor) -> Tensor:
    """Return bytes, as EDM's code writes it."""
    return (x * 127.5 + 128).clip(0, 255).to(torch.uint8).permute(0, 2, 3, 1).contiguous()
