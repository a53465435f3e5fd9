"""diffusers itself, imported where something needs it."""

from __future__ import annotations

from importlib import import_module
from typing import Any


def library(module: str = "diffusers") -> Any:
    """Return a module of diffusers.

    Raises:
        ImportError: it is not installed; its name is "diffusers".
    """
    try:
        return import_module(module)
    except ModuleNotFoundError as error:
        if (error.name or "").split(".")[0] != "diffusers":
            raise
        raise ImportError(
            "fastscore.adapters.diffusers needs diffusers: pip install diffusers", name="diffusers"
        ) from None
