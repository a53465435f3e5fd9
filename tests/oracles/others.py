"""Libraries of others, imported where their own imports fail for reasons that no test here is about."""

from __future__ import annotations

import re
import sys
from importlib import import_module
from typing import Any

import pytest
import torch

from bench.peers.k_diffusion import sampling


def k_diffusion() -> Any:
    """Return k_diffusion.sampling; skip where it is not installed."""
    return _with_torchvision("k_diffusion", sampling)


def deepinv() -> Any:
    """Return deepinv; skip where it is not installed."""
    return _with_torchvision("deepinv", lambda: import_module("deepinv"))


def _with_torchvision(name: str, load: Any) -> Any:
    """Import a library that needs torchvision, whose meta kernels fail where its wheel was built for another torch.

    They register implementations of operators that its C++ part would have defined; so these are defined, empty.
    """
    while True:
        try:
            import_module("torchvision")
            return load()
        except ModuleNotFoundError as error:
            pytest.skip(f"{name} needs {error.name}, which is not installed; .ci/nightly installs it")
        except RuntimeError as error:
            lacking = re.search(r"operator (torchvision::\w+) does not exist", str(error))
            if lacking is None:
                raise
            torch.library.define(lacking[1], "(Tensor x) -> Tensor")
            for module in [m for m in sys.modules if m.split(".")[0] == "torchvision"]:
                del sys.modules[module]
