"""Score models: a network, what it predicts, and the schedule it was trained on.

A model directory holds ``config.json`` (a plain description) and ``model.safetensors``. Nothing in it
is executed, and no pickle is ever read.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from fastscore.process.parametrization import Parametrization
from fastscore.process.schedule import Schedule


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
    """

    net: Callable[[Tensor, Tensor, Tensor | None], Tensor]
    shape: tuple[int, ...]
    schedule: Schedule
    parametrization: Parametrization = field(default_factory=Parametrization)
    classes: int = 0
    class_names: tuple[str, ...] = ()
    info: dict[str, Any] = field(default_factory=dict)
    cond_shape: tuple[int, ...] | None = None

    def __post_init__(self) -> None:
        if self.classes and self.cond_shape is not None:
            raise ValueError("a model takes classes or a conditioning tensor, not both: put the class into the tensor")
        if not self.shape or not all(isinstance(k, int) and k > 0 for k in self.shape):
            raise ValueError(f"shape = {self.shape} must be positive integers, without the batch axis")
