"""Samples that satisfy linear equations, as a projection."""

# pyright: reportUnnecessaryIsInstance=false
# What users pass is checked whatever its annotation says.

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from fastscore.model.condition_shapes import plain
from fastscore.model.projection import Projection
from fastscore.ops.norms import dot, ordered_sum

RANK = 1e-10  # of an equation's length: what the others leave of one that says nothing new


@dataclass(frozen=True, eq=False, repr=False)
class Constrained(Projection):
    r"""Samples that satisfy linear equations, A x_0 = b:  P = 1 - A^+ A,  o = A^+ b;  so A x_t = alpha b on the way.

    It costs one dot product and one sum a sample for each independent row of A.

    Args:
        matrix: A, [k, *shape] or [k, D].
        values: b, [k]; 0 if left out.

    Raises:
        ValueError: entries that are not finite, shapes that disagree, or equations that contradict each other.
    """

    matrix: Tensor
    values: Tensor | None = None

    def __post_init__(self) -> None:
        for name, v, axes in (("matrix", self.matrix, 2), ("values", self.values, 1)):
            if v is None and name == "values":
                continue
            fits = (
                isinstance(v, Tensor)
                and plain(f"Constrained: {name}", v).numel()
                and (v.ndim == axes or v.ndim > axes == 2)
            )
            if v is None or not (fits and len(v) == len(self.matrix) and bool(v.isfinite().all())):
                what = tuple(v.shape) if isinstance(v, Tensor) else type(v).__name__
                raise ValueError(f"Constrained: {name} is {what}; A [k, *shape] and b [k] must be finite tensors")
        object.__setattr__(self, "_placed", {})
        _ = self.solved

    @cached_property
    def solved(self) -> tuple[Tensor, Tensor]:
        """Orthonormal directions that A fixes, float64 [r, D], and o, [D]: the same bits on every machine."""
        A = self.matrix.detach().to("cpu", torch.float64).flatten(1)
        b = A.new_zeros(len(A)) if self.values is None else self.values.detach().to("cpu", torch.float64)
        Q, c = A[:0], b[:0]  # directions, and what x has along them
        for row, value in zip(A, b, strict=True):
            rest, size = row, dot(row[None], row).sqrt()
            for _ in range(2):  # Gram and Schmidt; once more for what rounding leaves
                along = dot(Q, rest)
                rest, value = rest - ordered_sum((along[:, None] * Q).T), value - ordered_sum((along * c)[None])
            length = dot(rest[None], rest).sqrt()
            if bool(length > RANK * size):
                Q, c = torch.cat([Q, rest[None] / length]), torch.cat([c, value / length])
            elif bool(value.abs() > 1e-8 * (b.abs().max() + 1.0)):
                raise ValueError("Constrained: no x has A x = b, its equations contradict each other")
        return Q, ordered_sum((c[:, None] * Q).T)

    def __repr__(self) -> str:
        directions, point = self.solved
        return f"Constrained(<{len(directions)} equations for {len(point)} numbers>)"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Constrained) and all(map(torch.equal, self.solved, other.solved))

    def __hash__(self) -> int:
        return hash(self.solved[0].shape)

    def __reduce__(self) -> tuple[Any, ...]:
        return Constrained, (self.matrix, self.values)

    def apply(self, x: Tensor, cond: Any = None, alpha: float | Tensor = 1.0) -> Tensor:
        """Return x without what it has along the rows of A, and alpha o."""
        directions, point = self._at(x)
        y = x.flatten(1)
        for direction in directions:
            y = y - dot(y, direction)[:, None] * direction
        if self.values is not None and (isinstance(alpha, Tensor) or alpha != 0.0):
            y = y + (alpha.reshape(-1, 1).to(y.dtype) if isinstance(alpha, Tensor) else alpha) * point
        return y.view(x.shape)

    def dimensions(self, x: Tensor, cond: Any = None) -> Tensor:
        """Return D less the rank of A."""
        directions, point = self.solved
        return torch.full((len(x),), len(point) - len(directions), dtype=torch.int64, device=x.device)

    def check(self, shape: tuple[int, ...], cond_shape: Any) -> None:
        """Raise ValueError unless A has a column for each number of a sample."""
        columns = len(self.solved[1])
        if torch.Size(shape).numel() != columns:
            raise ValueError(f"Constrained: A has {columns} columns, and a sample {shape} another number of elements")

    def _at(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return directions and point where x is and as it is: copied there once, before any graph is captured."""
        placed: dict[Any, tuple[Tensor, Tensor]] = vars(self)["_placed"]
        if (x.device, x.dtype) not in placed:
            with torch.inference_mode(False):
                directions, point = self.solved
                placed[x.device, x.dtype] = directions.to(x), point.to(x)
        return placed[x.device, x.dtype]
