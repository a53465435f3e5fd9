"""Inputs of the operations: shapes, states, rows, and the samples that the gate compares in float64."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from bench.common import Setting
from fastscore.kernels import abi
from fastscore.ops.noise import NoiseKey

SEED, DRAW = 7, 3
SIZES = {
    "64x1x28x28": (64, 784),
    "64x3x32x32": (64, 3072),
    "1024x3x64x64": (1024, 12288),
    "1e6 points in 2-D": (1_000_000, 2),
}


@dataclass(frozen=True)
class Inputs:
    """A state with what a row reads, filled from counters, on one device."""

    x: Tensor
    F: Tensor
    hist: Tensor
    idx: Tensor
    key: NoiseKey

    @classmethod
    def of(cls, setting: Setting, n: int, d: int, dtype: torch.dtype, slots: int) -> Inputs:
        """Make [n, d] inputs; the network's output is of ``dtype``."""
        key = NoiseKey.of(SEED, torch.arange(n), setting.device)
        values = torch.linspace(-3.0, 3.0, n * d, device=setting.device).reshape(n, d)  # any finite values will do
        hist = torch.stack([values.flip(k) for k in range(slots)]) if slots else values.new_zeros(0, n, d)
        return cls(
            values.sin(), values.cos().to(dtype), hist, torch.zeros(1, dtype=torch.int64).to(key.ids).expand(n), key
        )

    @property
    def checked(self) -> Tensor:
        """Numbers of the samples that the gate looks at: the first and the last ones."""
        n = len(self.x)
        return torch.cat([torch.arange(min(n, 16)), torch.arange(max(n - 16, 0), n)]).unique()

    def normal(self, draw: int = DRAW) -> np.ndarray:
        """Return the normals of those samples by the reference on the CPU, float64."""
        return NoiseKey.of(SEED, self.checked).normal(draw, self.x.shape[1]).double().numpy()

    def numpy(self, values: Tensor) -> np.ndarray:
        """Return the values of those samples in float64."""
        return values.cpu()[self.checked].double().numpy()


def sizes(setting: Setting) -> Iterator[tuple[str, int, int]]:
    """Yield (name, samples, dimensions)."""
    for name, (n, d) in list(SIZES.items())[: 1 if setting.quick else None]:
        yield name, n, d


def dtypes(setting: Setting) -> tuple[torch.dtype, ...]:
    """Return the network's dtypes that are worth a figure on the device."""
    return (torch.float32, torch.bfloat16) if setting.device.type == "cuda" and not setting.quick else (torch.float32,)


def short(dtype: torch.dtype) -> str:
    """Return float32 for torch.float32."""
    return str(dtype).removeprefix("torch.")


def row(setting: Setting, **columns: float) -> Tensor:
    """Return a table of one row, its columns named as in fastscore.kernels.abi."""
    table = torch.zeros(1, abi.WIDTH)
    table[0, abi.PUSH], table[0, abi.DRAW] = -1, DRAW
    for name, value in columns.items():
        table[0, getattr(abi, name)] = value
    return table.to(setting.device)
