"""The units of data: x = shift + scale y, from what a network is trained on to what people gave."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

V = TypeVar("V", bound=Any)

LOW, HIGH = 0.25, 4.0  # standard deviations of columns that a network takes as they are
EPS = 2.0**-24  # rounding of float32, in which samples are


@dataclass(frozen=True)
class Affine:
    """x = shift + scale y along the last axis, of NumPy arrays and tensors of any number of axes.

    Attributes:
        shift, scale: one number a column (of points) or channel (of sequences); scale is positive.

    Raises:
        ValueError: lengths that differ, or numbers that are not finite or not positive.
    """

    shift: tuple[float, ...]
    scale: tuple[float, ...]

    def __post_init__(self) -> None:
        for name in ("shift", "scale"):
            object.__setattr__(self, name, tuple(map(float, getattr(self, name))))
        if len(self.shift) != len(self.scale) or not self.shift:
            raise ValueError(f"transform: {len(self.shift)} shifts and {len(self.scale)} scales; one of each a column")
        if not all(map(math.isfinite, self.shift)) or not all(0.0 < s < math.inf for s in self.scale):
            raise ValueError("transform: every shift must be finite, every scale finite and positive")

    def __call__(self, y: V) -> V:
        """Return x = shift + scale y, computed in float64, in the type of y."""
        return _map(y, lambda v, shift, scale: shift + scale * v, self)

    def inverse(self, x: V) -> V:
        """Return y = (x - shift) / scale, computed in float64, in the type of x; float32 of integers."""
        return _map(x, lambda v, shift, scale: (v - shift) / scale, self)

    def shift_like(self, x: V) -> V:
        """Return the shift as a tensor of the type of x."""
        return x.new_tensor(self.shift)

    def log_determinant(self, shape: tuple[int, ...]) -> float:
        """Return ln |dx/dy| of a sample of this shape: ln p(x) = ln p(y) - ln |dx/dy|."""
        return math.prod(shape[:-1]) * math.fsum(map(math.log, self.scale))


def standardising(x: NDArray[Any], always: bool = False) -> Affine | None:
    """Return the transform that gives every column or channel of x [N, .., D] mean 0 and standard deviation 1.

    None for data of unit scale, which a network is given as they are, as in the tutorials: columns of a standard
    deviation of 0.25 .. 4 around a mean at most twice that from 0; constant columns among them up to 8 stay as well.
    Where others need it, a constant column c has the scale 2^-24 |c|, the rounding of float32: its samples are c again.

    Args:
        always: transform data of unit scale too.

    Raises:
        ValueError: a column whose spread float32 cannot tell from its mean, or that overflows.
    """
    v = x.reshape(-1, x.shape[-1]).astype(np.float64)
    with np.errstate(over="ignore", invalid="ignore"):
        mean, std = v.mean(0), v.std(0)
    if not (np.isfinite(mean).all() and np.isfinite(std).all()) or std.max() > 1e37:
        raise ValueError("a column is too large for float32; divide it by a constant first")
    constant = v.max(0) == v.min(0)
    mean[constant], std[constant] = v[0][constant], 0.0
    lost = ~constant & (std < 1000.0 * EPS * np.abs(mean))
    if lost.any():
        k = int(np.flatnonzero(lost)[0])
        raise ValueError(
            f"column {k} has mean {mean[k]:.9g} and standard deviation {std[k]:.3g}, which float32 cannot tell apart: "
            "subtract a constant from it first"
        )
    size = np.where(constant, HIGH, std)
    if not always and (std[~constant] >= LOW).all() and (std <= HIGH).all() and (np.abs(mean) <= 2.0 * size).all():
        return None
    scale = np.where(constant, EPS * np.where(mean == 0.0, 1.0, np.abs(mean)), std)
    return Affine(tuple(mean.tolist()), tuple(np.maximum(scale, 1e-37).tolist()))


def _map(v: Any, change: Any, affine: Affine) -> Any:
    if v.shape[-1:] != (len(affine.shift),):
        raise ValueError(f"transform: {len(affine.shift)} columns, and values of shape {tuple(v.shape)}")
    if isinstance(v, np.ndarray):
        kind = v.dtype if v.dtype.kind == "f" else np.float32
        return change(v.astype(np.float64), np.asarray(affine.shift), np.asarray(affine.scale)).astype(kind)
    import torch

    shift, scale = (torch.tensor(k, dtype=torch.float64, device=v.device) for k in (affine.shift, affine.scale))
    return change(v.to(torch.float64), shift, scale).to(v.dtype if v.is_floating_point() else torch.float32)
