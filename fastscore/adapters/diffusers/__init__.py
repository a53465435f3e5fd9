"""diffusers: its folders and pipelines as models here, its pipelines on solvers of this engine."""

from __future__ import annotations

from importlib import import_module
from typing import Any

_HOME = {"block": "whole_loop", "load": "from_diffusers", "scheduler": "Scheduler"}
_MODULE = {name: module for module, names in _HOME.items() for name in names.split()}

__all__ = sorted(_MODULE)  # pyright: ignore[reportUnsupportedDunderAll]


def __getattr__(name: str) -> Any:
    if name not in _MODULE:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}; it has {', '.join(__all__)}")
    return getattr(import_module(f"{__name__}.{_MODULE[name]}"), name)
