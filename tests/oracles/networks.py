"""Networks that tests of several rooms sample."""

from __future__ import annotations

from typing import Any

import torch

from fastscore.model.score import ScoreModel
from fastscore.process.continuous import EDM
from fastscore.process.parametrization import Parametrization


def elementwise(x: torch.Tensor, t: torch.Tensor, cond: torch.Tensor | None = None) -> torch.Tensor:
    """A network that treats every element alone, so that bits cannot depend on the batch or the lane."""
    column = (-1, *[1] * (x.ndim - 1))
    shift = 0.0 if cond is None else cond.to(x.dtype).reshape(len(cond), -1)[:, :1].reshape(column)
    return x / (1.0 + x * x) + 0.01 * t.to(x.dtype).reshape(column) + 0.1 * shift


def elementwise_model(shape: tuple[int, ...], **kw: Any) -> ScoreModel:
    """The elementwise network as a model in EDM's parametrization."""
    return ScoreModel(elementwise, shape, EDM(), Parametrization("edm", "log_sigma/4"), **kw)
