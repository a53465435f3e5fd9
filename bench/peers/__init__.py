"""Other samplers, run as their documentation runs them, on the same network and from the same noise.

Each module adapts one library: ``entries(steps)`` returns what it has, one Entry a solver. A library is
imported only by its own adapter, and only when it is asked for.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from importlib.metadata import version

from torch import Tensor

from fastscore.plan.rows import Solver
from fastscore.process.grid import Grid, Times
from fastscore.process.schedule import Schedule

SIGMA_MIN, SIGMA_MAX, SNR = 0.01, 50.0, 0.16

# model(x, sigma, alpha) with x = alpha x0 + sigma z, [N, *shape]; sigma and alpha one number or [N]
Model = Callable[..., Tensor]
Draw = Callable[[Tensor], Tensor]  # normals like a tensor

# Adapter, distribution, and the modules that it imports.
LIBRARIES = {
    "diffusers": ("diffusers", ("diffusers",)),
    "k_diffusion": ("k-diffusion", ("k_diffusion", "torchsde", "torchdiffeq", "torchvision", "scipy")),
    "azula": ("azula", ("azula", "einops")),
    "torchsde": ("torchsde", ("torchsde",)),
    "torchdiffeq": ("torchdiffeq", ("torchdiffeq",)),
    "score_sde": ("", ()),
}


@dataclass(frozen=True)
class Entry:
    """One solver of a library, and fastscore's settings that compute the same.

    Attributes:
        library: distribution it comes from, with its version.
        name: of the solver, there.
        schedule, solver, grid: fastscore's.
        predicts: what the library's model returns: "x0", "eps" or "score".
        run: the library's sampling loop, from a model and unit normals [N, *shape] to samples. With a
            Draw, its noise is taken from there, in the order of fastscore's draws.
        tolerance: on the difference, of the largest |x|; both round in float32.
    """

    library: str
    name: str
    schedule: Schedule
    solver: Solver
    grid: Grid | Times
    predicts: str
    run: Callable[[Model, Tensor, Draw | None], Tensor]
    tolerance: float = 1e-4


def load_entries(adapter: str, steps: int) -> list[Entry] | str:
    """Return the entries of an adapter, or why there are none."""
    modules = LIBRARIES[adapter][1]
    missing = [name for name in modules if importlib.util.find_spec(name) is None]
    if missing:
        alone = " && pip install --no-deps k-diffusion" if "k_diffusion" in missing else ""
        return f"{', '.join(missing)} not installed: pip install 'fastscore[peers]'{alone}"
    try:
        return import_module(f"bench.peers.{adapter}").entries(steps)
    except Exception as error:  # such as a torchvision of another torch, whose import fails in a way of its own
        text = " ".join(str(error).split())[:200]
        return f"{', '.join(modules)} installed, but cannot be used here ({type(error).__name__}: {text})"


def versioned(distribution: str) -> str:
    """Return a distribution's name and version."""
    return f"{distribution} {version(distribution)}"
