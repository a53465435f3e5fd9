"""The row counter: moved on by the device, with what the networks are told in the next row."""

import torch
import triton
import triton.language as tl
from torch import Tensor

from .checks import require
from .launch import launch


# Grid: (1,).
# Bytes: a row of ``told`` read and written, and the counter.
# Deterministic: one program.
# Aliasing: row, told and now may not alias.
@triton.jit
def _step_kernel(row_ptr, told_ptr, now_ptr, WIDTH: tl.constexpr, BLOCK: tl.constexpr):
    row = tl.load(row_ptr) + 1
    k = tl.arange(0, BLOCK)
    value = tl.load(told_ptr + row * WIDTH + k, mask=k < WIDTH)
    tl.store(now_ptr + k, value, mask=k < WIDTH)
    tl.store(row_ptr, row)


def step_triton(row: Tensor, told: Tensor, now: Tensor) -> None:
    """Move the counter on and copy that row of ``told``, as step_ref does.

    Args:
        row: [1] int64; below len(told) - 1.
        told: [rows + 1, W] float32, at least one column. now: [1, W] float32.

    Raises:
        ValueError: a shape, dtype, device or stride that the kernel does not support.
    """
    width, state = told.shape[1], (torch.float32,)
    require(
        "step", row.device, row=(row, (1,), (torch.int64,)), told=(told, (len(told), width), state),
        now=(now, (1, width), state),
    )  # fmt: skip
    launch(_step_kernel, (1,), row, row, told, now, WIDTH=width, BLOCK=triton.next_power_of_2(width), num_warps=1)
