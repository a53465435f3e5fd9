r"""Subspaces that the samples of a model lie in: sets of several sizes, zero centres of mass, linear constraints.

    x_0 = P x_0 + o,    x_t = alpha x_0 + sigma P z = P x_t + alpha o

P is an orthogonal projection, P P = P = P^T, which may depend on a sample's condition, and o, with P o = 0, is the
point of the data's subspace that is nearest to 0. P z of white z is white in the d = tr P dimensions of the subspace.
P commutes with whatever a row weighs its terms by; a run that projects the state after each row and every output of
the network is therefore the run in d coordinates of the subspace, exactly.

Source: Köhler et al. 2020 and Hoogeboom et al. 2022, section 3.1, for zero centres of mass.
"""

# pyright: reportUnnecessaryIsInstance=false
# What users pass is checked whatever its annotation says.

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from fastscore.errors import short, typed
from fastscore.ops.norms import ordered_sum


class Projection(ABC):
    """An orthogonal projection of every sample onto the subspace of its data; subclass it for one of your own.

    ``apply`` is all that it must have. It treats each sample alone and is differentiable in x; on a GPU it is captured
    in graphs, so it copies nothing from the host and has no shapes that depend on values.
    """

    @abstractmethod
    def apply(self, x: Tensor, cond: Any = None, alpha: float | Tensor = 1.0) -> Tensor:
        """Return P x + alpha o, [N, *shape]: of all that noised data can be at this alpha, the nearest to x.

        Args:
            x: [N, *shape], of any floating-point dtype, which is the result's.
            cond: conditions of these samples, as the network gets them.
            alpha: a number, or [N], or [1] for all samples; 1 for clean data, 0.0 for P x alone.
        """

    def dimensions(self, x: Tensor, cond: Any = None) -> Tensor:
        """Return d = tr P of each sample, int64 [N], from D applications to unit vectors; of x only the shape counts.

        Raises:
            ValueError: a trace that is no integer; P is no projection, or its parts do not commute.
        """
        trace = torch.zeros(len(x), dtype=torch.float64, device=x.device)
        for j in range(x[:1].numel()):
            e = torch.zeros_like(x, dtype=torch.float64).flatten(1)
            e[:, j] = 1.0
            trace += self.apply(e.view(x.shape), cond, 0.0).flatten(1)[:, j]
        if bool(((trace - trace.round()).abs() > 1e-6 * (1.0 + trace.abs())).any()):
            raise ValueError(f"projection: {self} has a trace of {float(trace[0]):.6g}; a projection's is an integer")
        return trace.round().to(torch.int64)

    def check(self, shape: tuple[int, ...], cond_shape: Any) -> None:
        """Raise ValueError unless it goes with samples and conditions of these shapes; called where a model is made."""
        return


@dataclass(frozen=True)
@typed
class Padded(Projection):
    """Sets of several sizes, padded to one: elements that a mask says are not there stay exactly 0.

    Edges [n, n, ..] of a graph take two of them: Intersection((Padded("mask"), Padded("mask", axis=1))).

    Args:
        mask: name of the condition that is the mask, bool, True where an element is there; "" if it is the condition.
        axis: the mask's first axis in a sample's shape.
    """

    mask: str = ""
    axis: int = 0

    def apply(self, x: Tensor, cond: Any = None, alpha: float | Tensor = 1.0) -> Tensor:
        """Return x with 0 where the mask is False, whatever x is there; NaN too."""
        return x.masked_fill(~_mask(self, x, cond), 0.0)

    def dimensions(self, x: Tensor, cond: Any = None) -> Tensor:
        """Return how many numbers are there."""
        return _mask(self, x, cond).expand_as(x).flatten(1).sum(1)

    def check(self, shape: tuple[int, ...], cond_shape: Any) -> None:
        """Raise ValueError unless there is such a condition, of the shape of these axes."""
        _check_mask(self, shape, cond_shape)


@dataclass(frozen=True)
@typed
class Centred(Projection):
    r"""Sets whose centre of mass is 0, x_i <- x_i - (1/n) sum_j x_j: what is invariant to translations has no other.

    The sum runs over the n elements that are there, in an order that does not depend on the padding.

    Args:
        mask: as for Padded, whose zeros are part of the subspace then; None where every element is there.
        axis: of the elements, in a sample's shape.
        columns: how many of the last axis are coordinates, the first ones; None for all. Others keep what they are.
    """

    mask: str | None = None
    axis: int = 0
    columns: int | None = None

    def apply(self, x: Tensor, cond: Any = None, alpha: float | Tensor = 1.0) -> Tensor:
        """Return x with the centre of mass moved to 0, and 0 where the mask is False."""
        dim, mask = 1 + self.axis, None if self.mask is None else _mask(self, x, cond)
        there = x if mask is None else x.masked_fill(~mask, 0.0)
        moving = there.movedim(dim, -1)
        total = ordered_sum(moving.reshape(-1, moving.shape[-1])).view(moving.shape[:-1]).unsqueeze(dim)
        count = x.shape[dim] if mask is None else mask.sum(dim, keepdim=True).clamp_min(1).to(x.dtype)
        centre = total / count
        if self.columns is not None:
            extra = x.shape[-1] - self.columns
            centre = torch.nn.functional.pad(centre[..., : self.columns], (0, extra))
        centred = there - centre
        return centred if mask is None else centred.masked_fill(~mask, 0.0)

    def dimensions(self, x: Tensor, cond: Any = None) -> Tensor:
        """Return (n - 1) coordinates for n elements, and n of the other columns; 0 of an empty set."""
        dim, size = 1 + self.axis, x[:1].numel()
        per_element = size // x.shape[dim]
        fixed = per_element if self.columns is None else per_element // x.shape[-1] * self.columns
        if self.mask is None:
            return torch.full((len(x),), size - fixed, dtype=torch.int64, device=x.device)
        n = _mask(self, x, cond).flatten(1).sum(1)
        return n * per_element - n.clamp_max(1) * fixed

    def check(self, shape: tuple[int, ...], cond_shape: Any) -> None:
        """Raise ValueError unless there are such an axis, such columns and such a mask along the axis alone."""
        if not 0 <= self.axis < len(shape):
            raise ValueError(f"Centred: axis = {self.axis} must be one of a sample's {len(shape)}, {shape}")
        if self.columns is not None and not (0 < self.columns <= shape[-1] and self.axis < len(shape) - 1):
            raise ValueError(f"Centred: columns = {self.columns} must be of the last axis of {shape}, not the set's")
        if self.mask is not None and len(_check_mask(self, shape, cond_shape)) != 1:
            raise ValueError(f"Centred: mask {self.mask!r} must have one axis, that of the elements")


@dataclass(frozen=True)
@typed
class Intersection(Projection):
    """What lies in every one of some subspaces whose projections commute: they are applied one after the other.

    A centre of mass and a mask do not, so that Centred has a mask of its own.

    Args:
        parts: the projections.
    """

    parts: tuple[Projection, ...]

    def __post_init__(self) -> None:
        if not isinstance(self.parts, tuple) or not all(isinstance(part, Projection) for part in self.parts):
            raise ValueError(f"Intersection: parts = {short(self.parts)} must be a tuple of projections")

    def apply(self, x: Tensor, cond: Any = None, alpha: float | Tensor = 1.0) -> Tensor:
        """Return x after all of them."""
        for part in self.parts:
            x = part.apply(x, cond, alpha)
        return x

    def check(self, shape: tuple[int, ...], cond_shape: Any) -> None:
        """Raise ValueError unless each goes with these shapes."""
        for part in self.parts:
            part.check(shape, cond_shape)


class Projected(Protocol):
    """A model, as far as a projection needs to know it."""

    @property
    def shape(self) -> Any: ...
    @property
    def projection(self) -> Projection | None: ...


def onto(model: Projected, x: Tensor, cond: Any, alpha: float | Tensor = 1.0) -> Tensor:
    """Return P x + alpha o of states or outputs, [N, D]; x itself of a model without a projection."""
    if model.projection is None:
        return x
    return model.projection.apply(x.view(len(x), *model.shape), cond, alpha).reshape(x.shape)


def dimensions(model: Projected, cond: Any, n: int, device: torch.device) -> Tensor:
    """Return the dimensions of n samples, int64 [n]: those of the subspace, if there is one."""
    if model.projection is None:
        return torch.full((n,), math.prod(model.shape), dtype=torch.int64, device=device)
    return model.projection.dimensions(torch.zeros(n, *model.shape, device=device), cond)


def _mask(projection: Any, x: Tensor, cond: Any) -> Tensor:
    """Return the mask of a projection, bool, with the axes of x."""
    name, axis = projection.mask, projection.axis
    mask = cond.get(name) if isinstance(cond, Mapping) else cond if not name else None
    if not isinstance(mask, Tensor) or mask.dtype != torch.bool:
        kind = mask.dtype if isinstance(mask, Tensor) else type(mask).__name__
        raise ValueError(f"{_of(projection)} is {kind}; it must be a bool tensor, True where an element is there")
    fits = (len(x), *x.shape[1 + axis : axis + mask.ndim])
    if tuple(mask.shape) != fits:
        raise ValueError(f"{_of(projection)} is {tuple(mask.shape)}; for samples {tuple(x.shape)} it must be {fits}")
    return mask.view(len(x), *[1] * axis, *mask.shape[1:], *[1] * (x.ndim - axis - mask.ndim))


def _check_mask(projection: Any, shape: tuple[int, ...], cond_shape: Any) -> tuple[int, ...]:
    """Return the shape of a projection's mask; ValueError if the model has no such condition."""
    name, axis = projection.mask, projection.axis
    mask = cond_shape.get(name) if isinstance(cond_shape, Mapping) else cond_shape if not name else None
    if mask is None:
        has = f"conditions of shape {cond_shape}" if cond_shape is not None else "no conditioning tensor"
        raise ValueError(f"{_of(projection)} is missing: this model has {has}")
    mask = tuple(mask)
    fits = shape[axis : axis + len(mask)]
    if axis < 0 or not mask or tuple(fits) != mask:
        raise ValueError(f"{_of(projection)} has shape {mask}; from axis {axis} on samples {shape} have {tuple(fits)}")
    return mask


def _of(projection: Any) -> str:
    kind = type(projection).__name__
    return f"{kind}: the condition {projection.mask!r}" if projection.mask else f"{kind}: the condition, a mask,"
