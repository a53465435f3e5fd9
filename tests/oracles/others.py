"""Libraries of others; a test that needs one that is not installed says which, and skips."""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module
from typing import Any
from unittest.mock import patch

import pytest
import torch

from bench.peers.k_diffusion import sampling

OURS = ("fastscore", "bench", "tests")


def library(name: str, load: Callable[[], Any] | None = None) -> Any:
    """Return a module of another project; skip where it or what it imports is not installed, and for nothing else."""
    try:
        _torchvision()
        return import_module(name) if load is None else load()
    except ModuleNotFoundError as error:
        if str(error.name).split(".")[0] in OURS:
            raise
        pytest.skip(
            f"{name} needs {error.name}, which is not installed; .ci/nightly installs it", allow_module_level=True
        )


def k_diffusion() -> Any:
    """Return k_diffusion.sampling, without the training code of its package."""
    return library("k_diffusion", sampling)


def _torchvision() -> None:
    """Import torchvision, also a wheel for another torch: its operators are missing then, and are not described."""
    register: Any = torch.library.register_fake

    def known(op: Any, function: Any = None, /, **more: Any) -> Any:
        if isinstance(op, str) and op.startswith("torchvision::"):
            return function or (lambda f: f)
        return register(op, function, **more)

    with patch.object(torch.library, "register_fake", known):
        try:
            import_module("torchvision")
        except ModuleNotFoundError:
            return  # many do without
