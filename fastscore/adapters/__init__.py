"""Other people's networks, pipelines and posteriors on this engine, and this engine in their programs.

Names load on first use; a library that an adapter reads is imported when the adapter is called.
"""

from __future__ import annotations

from importlib import import_module
from typing import Any

_HOME: dict[str, str] = {
    "wrapped": "wrap",
    "denoisers": "from_denoiser from_velocity",
    "edm": "from_edm",
    "edm_pickle": "read_edm_pickle",
    "score_sde": "from_score_sde read_score_sde_checkpoint",
    "diffusers": "from_diffusers",
    "physicsnemo": "from_physicsnemo",
    "sbi": "from_sbi",
}
_MODULE = {name: module for module, names in _HOME.items() for name in names.split()}

__all__ = sorted(_MODULE)  # pyright: ignore[reportUnsupportedDunderAll]


def __getattr__(name: str) -> Any:
    if name not in _MODULE:
        raise AttributeError(f"module 'fastscore.adapters' has no attribute {name!r}; it has {', '.join(__all__)}")
    return getattr(import_module(f"fastscore.adapters.{_MODULE[name]}"), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *_MODULE])
