"""The libraries behind the adapters for scientists, with what their import or their noise needs."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module
from types import ModuleType
from typing import Any
from unittest.mock import patch

import others
import torch
from science import ESTIMATORS, MEAN_0, STD_0, Wave
from torch import Tensor


@contextmanager
def recorded_normals(z: Tensor) -> Iterator[None]:
    """Have torch's normals be z[0], z[1], .., which samplers without an argument for noise need."""
    left = iter(z)
    with patch.multiple(torch, randn=lambda *a, **k: next(left), randn_like=lambda *a, **k: next(left)):
        yield


def sbi_posterior(kind: str, prior: Any = None, **settings: Any) -> Any:
    """Return a posterior of sbi around ``Wave``."""
    file = "flowmatching_estimator" if kind == "flow" else "score_estimator"
    made = getattr(import_module(f"sbi.neural_nets.estimators.{file}"), ESTIMATORS[kind].__name__)
    shape = torch.Size([2])
    estimator = made(Wave(), input_shape=shape, condition_shape=shape, mean_0=MEAN_0, std_0=STD_0)
    posteriors = import_module("sbi.inference.posteriors.vector_field_posterior")
    wide = torch.distributions.Independent(torch.distributions.Normal(torch.zeros(2), torch.full((2,), 50.0)), 1)
    return posteriors.VectorFieldPosterior(estimator, wide if prior is None else prior, **settings)


def physicsnemo(part: str) -> ModuleType:
    """Return physicsnemo.diffusion.<part>."""
    return others.library(f"physicsnemo.diffusion.{part}")
