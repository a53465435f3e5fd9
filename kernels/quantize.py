"""Float images to bytes, NCHW -> NHWC, in one pass."""

import torch
import triton
import triton.language as tl
from torch import Tensor

from .checks import require
from .launch import TILE, launch, vector

OFFSET = {"nearest": 128.0, "floor": 127.5}


@triton.jit
def _or(a, b):
    return a | b


# Grid: (images, pixels of an image / 4 / QUADS).
# Bytes per element: 4 read, 1 written.
# Deterministic: every byte is one expression of one float.
# Aliasing: none.
@triton.jit(do_not_specialize=["units"])
def _quantize_kernel(
    out_ptr,
    x_ptr,
    units,
    OFFSET: tl.constexpr,
    CHANNELS: tl.constexpr,
    PACKED: tl.constexpr,
    VECTOR: tl.constexpr,
    QUADS: tl.constexpr,
):
    pixels = units * VECTOR
    image = tl.program_id(0).to(tl.int64) * pixels * CHANNELS
    quad = tl.program_id(1) * QUADS + tl.arange(0, QUADS)
    corner = tl.arange(0, 4)[None, :]
    pixel = quad[:, None] * 4 + corner
    planes = ()
    for c in tl.static_range(CHANNELS):
        x = tl.load(x_ptr + (image + (c * pixels + pixel)), mask=pixel < pixels)
        y = x * 127.5 + OFFSET
        y = tl.minimum(tl.where(y > 0.0, y, 0.0), 255.0).to(tl.int32)  # NaN is not above 0
        if not PACKED:
            tl.store(out_ptr + (image + (pixel * CHANNELS + c)), y.to(tl.uint8), mask=pixel < pixels)
        planes = planes + (y,)
    if PACKED:  # four pixels of C channels are C whole words
        for k in tl.static_range(CHANNELS):
            word = tl.full([QUADS, 4], 0, tl.int32)
            for c in tl.static_range(CHANNELS):
                byte = corner * CHANNELS + (c - 4 * k)  # where pixel and channel fall in word k
                word |= tl.where((byte >= 0) & (byte < 4), planes[c] << (byte * 8 & 31), 0)
            out = out_ptr.to(tl.pointer_type(tl.int32)) + (image // 4 + (quad * CHANNELS + k))
            tl.store(out, tl.reduce(word, 1, _or), mask=quad * 4 < pixels)


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
    unit = vector(h * w)
    quads = TILE // 4
    launch(
        _quantize_kernel, (n, triton.cdiv(h * w, 4 * quads)), x, out, x, h * w // unit,
        OFFSET=OFFSET[rounding], CHANNELS=c, PACKED=unit >= 4, VECTOR=unit, QUADS=quads,
    )  # fmt: skip
    return out
