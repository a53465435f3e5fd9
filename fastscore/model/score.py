"""A score model: a network, what it predicts, and the schedule it was trained on; and the one call of a network."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Protocol

from torch import Tensor

from fastscore.process.parametrization import Parametrization
from fastscore.process.schedule import Schedule


class Conditioned(Protocol):
    """The part of a model that says which labels or conditions a run may give it; ScoreModel and JointModel have it."""

    @property
    def classes(self) -> int: ...
    @property
    def cond_shape(self) -> tuple[int, ...] | None: ...
    @property
    def shape(self) -> Any: ...


@dataclass(frozen=True)
class ScoreModel:
    """Any score network, with what a sampler must know of it.

    The call convention is ``net(u, c_noise, cond) -> F`` with u = c_in x [N, *shape] in the network's
    dtype, c_noise [N] float32 (float64 in float64 runs), cond int64 labels [N], a tensor
    [N, *cond_shape] like c_noise, or None. Any ``nn.Module`` or plain function will do.

    Attributes:
        net: the network.
        shape: of one sample, without the batch axis.
        schedule: the forward SDE it was trained on; a sampler may use another one.
        parametrization: what F means and which label c_noise is.
        classes: number of class labels; 0 for an unconditional model.
        class_names: one a class, or empty.
        info: how it was made (training command, seed, ...), kept in its config.
        cond_shape: of the condition of one sample, if the network takes a tensor and not a class; else None.
        scales: smallest and largest standard deviation of the data along any direction, where they are known: default
            grids then resolve the one and take the other for the extent of the noise.
    """

    net: Callable[[Tensor, Tensor, Tensor | None], Tensor]
    shape: tuple[int, ...]
    schedule: Schedule
    parametrization: Parametrization = field(default_factory=Parametrization)
    classes: int = 0
    class_names: tuple[str, ...] = ()
    info: dict[str, Any] = field(default_factory=dict)
    cond_shape: tuple[int, ...] | None = None
    scales: tuple[float, float] | None = None

    def __post_init__(self) -> None:
        if self.classes and self.cond_shape is not None:
            raise ValueError("a model takes classes or a conditioning tensor, not both: put the class into the tensor")
        if not self.shape or not all(isinstance(k, int) and k > 0 for k in self.shape):
            raise ValueError(f"shape = {self.shape} must be positive integers, without the batch axis")
        if self.scales is not None and not 0.0 < self.scales[0] <= self.scales[1] < math.inf:
            raise ValueError(f"scales = {self.scales} must be two standard deviations, positive and rising")


def evaluate(model: ScoreModel, u: Tensor, c_noise: Tensor, cond: Tensor | None) -> Tensor:
    """Call the network of a model: the one place where that happens; return F, [N, D], in memory that is not u's.

    Args:
        u: c_in x, [N, *shape] in the network's dtype.
        c_noise: labels, [N] or [1] for all.

    Raises:
        ValueError: an output of another shape.
    """
    F = model.net(u, c_noise.expand(len(u)), cond)
    if F.shape != u.shape:
        raise ValueError(f"the network returned {tuple(F.shape)} for an input of {tuple(u.shape)}")
    return apart(F, u).reshape(len(u), -1)


def apart(F: Tensor, *inputs: Tensor) -> Tensor:
    """Return F, copied if a network that works in place handed back the memory of an input: rows overwrite that."""
    memory = F.untyped_storage()._cdata
    return F.clone() if any(memory == u.untyped_storage()._cdata for u in inputs) else F
