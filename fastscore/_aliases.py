"""Old module paths and names, which keep working for one version with a DeprecationWarning that names the new ones."""

from __future__ import annotations

import sys
import warnings
from collections.abc import Sequence
from importlib import import_module
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType

MODULES = {  # old: new, the first of which holds what nobody asked for by name
    "analytic": ("model.analytic",),
    "backend": ("ops.backend",),
    "basis": ("model.coordinates",),
    "beta": ("process.beta", "process.schedule"),
    "conditions": ("model.conditions",),
    "grid": ("process.grid",),
    "guides": ("guidance.guides",),
    "likelihood": ("flow",),
    "losses": ("training.losses",),
    "matrix": ("model.coordinates",),
    "mcmc": ("chains",),
    "metrics": ("report.metrics",),
    "nets": ("model.nets",),
    "noise": ("ops.noise",),
    "operators": ("guidance.measurements",),
    "parametrization": ("process.parametrization",),
    "presets": ("solvers.presets",),
    "schedule": ("process.schedule", "process.continuous"),
    "sinks": ("output.writer", "output.images"),
    "tables": ("process.discrete",),
}
NAMES = {  # old: module, new name
    "ddpm": ("process.discrete", "discrete_vp"),
    "edm": ("process.grid", "edm_levels"),
    "probe_batch": ("network.timing", "choose_batch"),
}


class _Old(MetaPathFinder, Loader):
    """Finds ``fastscore.<old>``: a module that gives what the new ones have."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        package, _, name = fullname.partition(".")
        return ModuleSpec(fullname, self) if package == "fastscore" and name in MODULES else None

    def exec_module(self, module: ModuleType) -> None:
        new = [f"fastscore.{name}" for name in MODULES[module.__name__.partition(".")[2]]]
        warnings.warn(f"{module.__name__} is now {' and '.join(new)}", DeprecationWarning, stacklevel=2)
        for name in reversed(new):
            vars(module).update({k: v for k, v in vars(import_module(name)).items() if not k.startswith("__")})
        vars(module).update({old: vars(module)[now] for old, (_, now) in NAMES.items() if now in vars(module)})


def renamed(name: str) -> object:
    """Return what ``fastscore.<name>`` was; raise AttributeError if there never was such a thing."""
    if name in MODULES:
        return import_module(f"fastscore.{name}")
    if name not in NAMES:
        raise AttributeError(f"module 'fastscore' has no attribute {name!r}")
    module, new = NAMES[name]
    warnings.warn(f"fastscore.{name} is now fastscore.{new}", DeprecationWarning, stacklevel=3)
    return getattr(import_module(f"fastscore.{module}"), new)


sys.meta_path.append(_Old())
