"""Float images to bytes, NCHW -> NHWC, in one pass."""

import torch
import triton
import triton.language as tl
from torch import Tensor

from .launch import TILE, launch, require

OFFSET = {"nearest": 128.0, "floor": 127.5}


# Grid: (images, output bytes of an image / BLOCK).
# Bytes per element: 4 read, 1 written.
# Deterministic: every byte is one expression of one float.
# Aliasing: none.
@triton.jit(do_not_specialize=["pixels"])
def _quantize_kernel(
    out_ptr, x_ptr, pixels, CHANNELS: tl.constexpr, VECTOR: tl.constexpr, OFFSET: tl.constexpr, BLOCK: tl.constexpr
):
    size = pixels * VECTOR * CHANNELS
    at = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    image = tl.program_id(0).to(tl.int64) * size
    pixel = at // CHANNELS
    channel = at - pixel * CHANNELS
    x = tl.load(x_ptr + image + (channel * (pixels * VECTOR) + pixel), mask=at < size, other=0.0)
    y = x * 127.5 + OFFSET
    y = tl.minimum(tl.maximum(y, 0.0), 255.0)
    tl.store(out_ptr + image + at, y.to(tl.uint8), mask=at < size)


def quantize_triton(x: Tensor, rounding: str = "nearest") -> Tensor:
    """Return uint8 [N, H, W, C] of float32 images [N, C, H, W] in [-1, 1], as quantize_ref does.

    Raises:
        ValueError: an unknown rounding rule; a shape, dtype or stride that the kernel does not support.
    """
    if rounding not in OFFSET:
        raise ValueError(f"rounding = {rounding!r} must be nearest or floor")
    if x.ndim != 4:
        raise ValueError(f"quantize: x has shape {list(x.shape)}; expected [N, C, H, W]")
    n, c, h, w = x.shape
    require("quantize", x.device, x=(x, (n, c, h, w), (torch.float32,)))
    out = torch.empty((n, h, w, c), dtype=torch.uint8, device=x.device)
    raise NotImplementedError
