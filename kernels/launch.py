"""What every launcher shares: argument checks, the shape of a tile, the launch itself."""

import contextlib

import torch
import triton
from torch import Tensor

TILE = 1024  # elements of a program: 8 for each thread of 4 warps
FLOATS = (torch.float32, torch.bfloat16, torch.float16)


def require(
    op: str, device: torch.device, **expected: tuple[Tensor | None, tuple[int, ...], tuple[torch.dtype, ...]]
) -> None:
    """Check tensors given as name=(tensor, shape, dtypes); None passes.

    Raises:
        ValueError: a tensor has another shape, dtype or device, or is not contiguous.
    """
    for name, (tensor, shape, dtypes) in expected.items():
        if tensor is None:
            continue
        if tuple(tensor.shape) != shape or tensor.dtype not in dtypes or tensor.device != device:
            wanted = " or ".join(str(dtype).removeprefix("torch.") for dtype in dtypes)
            raise ValueError(
                f"{op}: {name} is {str(tensor.dtype).removeprefix('torch.')} {list(tensor.shape)} on {tensor.device}; "
                f"expected {wanted} {list(shape)} on {device}"
            )
        if not tensor.is_contiguous():
            raise ValueError(f"{op}: {name} has strides {tensor.stride()}; expected contiguous, call .contiguous()")


def require_rows(op: str, device: torch.device, n: int, table: Tensor, idx: Tensor, width: int) -> None:
    """Check a table of rows and the row numbers of n samples, which may be one broadcast number."""
    require(op, device, table=(table, (len(table), width), (torch.float32,)))
    if idx.shape != (n,) or idx.dtype not in (torch.int32, torch.int64) or idx.device != device:
        raise ValueError(
            f"{op}: idx is {idx.dtype} {list(idx.shape)} on {idx.device}; expected int32 or int64 [{n}] on {device}"
        )


def vector(d: int) -> int:
    """Return the largest power of two up to 16 that divides d: elements a vector access may span."""
    return min(d & -d, 16)


def block(d: int) -> int:
    """Return how many elements of a sample a tile spans: a power of two from 4 to TILE.

    The longest one that pads a sample by at most a sixteenth; a long block reads its coefficients
    once for many elements, and blocks below 32 elements would share cache lines.
    """
    size = min(max(4, triton.next_power_of_2(d)), TILE)
    while size > 32 and (-d % size) * 16 > d:
        size //= 2
    return size


def launch(
    kernel: triton.JITFunction, grid: tuple[int, ...], x: Tensor, *args: object, num_warps: int = 4, **meta: object
) -> None:
    """Launch on the device and stream of x, with every multiply and add rounded on its own.

    Raises:
        ValueError: x is not on a GPU and Triton does not interpret.
    """
    if 0 in grid:
        return
    with torch.cuda.device(x.device) if x.is_cuda else contextlib.nullcontext():
        kernel[grid](*args, num_warps=num_warps, enable_fp_fusion=False, **meta)
