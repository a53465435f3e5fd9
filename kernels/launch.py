"""Helpers that the Triton launchers share: the shape of a tile, the launch itself."""

import contextlib

import torch
import triton
from torch import Tensor

TILE = 1024  # elements of a program: 8 for each thread of 4 warps


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
