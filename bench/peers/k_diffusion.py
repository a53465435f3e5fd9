"""k-diffusion: functions of a denoiser D(x; sigma) and noise levels."""

from __future__ import annotations

import importlib.util
import sys
from importlib import import_module
from types import ModuleType
from typing import Any

from torch import Tensor

import fastscore as fs
from bench.peers import SIGMA_MAX, SIGMA_MIN, Draw, Entry, Model, versioned
from bench.peers.inject import normals


def sampling() -> ModuleType:
    """Return k_diffusion.sampling without the package's __init__, which imports its training code (wandb, clip)."""
    if "k_diffusion" not in sys.modules:
        spec = importlib.util.find_spec("k_diffusion")
        assert spec is not None
        sys.modules["k_diffusion"] = importlib.util.module_from_spec(spec)
    return import_module("k_diffusion.sampling")


def entries(steps: int) -> list[Entry]:
    """Return Heun, DPM++ 2M, Euler ancestral and DPM++ 2M SDE on Karras' levels."""
    k, schedule = sampling(), fs.EDM(SIGMA_MIN, SIGMA_MAX)

    def entry(name: str, call: Any, solver: Any, tree: bool = False) -> Entry:
        def run(model: Model, z: Tensor, draw: Draw | None) -> Tensor:
            levels = k.get_sigmas_karras(steps, SIGMA_MIN, SIGMA_MAX, device=z.device)
            # A Brownian tree takes no normals from outside; it is what noise_sampler replaces.
            options = {"noise_sampler": lambda *levels: draw(z)} if tree and draw else {}
            with normals(draw):
                return call(model, z * levels[0], levels, disable=True, **options)

        return Entry(versioned("k-diffusion"), name, schedule, solver, fs.karras(steps), "x0", run)

    return [
        entry("DPM++ 2M", k.sample_dpmpp_2m, fs.DPMpp2M()),
        entry("Heun", k.sample_heun, fs.Heun()),
        entry("Euler ancestral", k.sample_euler_ancestral, fs.DDIM(eta=1.0)),
        entry("DPM++ 2M SDE", k.sample_dpmpp_2m_sde, fs.DPMMultistep(2, "x0", "paper", 1.0), tree=True),
    ]
