"""Nodes for ComfyUI: a SAMPLER that runs this engine's loop, and SIGMAS on its grids.

One file in ``custom_nodes``, say ``fastscore_nodes.py``, installs them:

    from fastscore.adapters.comfyui import NODE_CLASS_MAPPINGS, NODE_DISPLAY_NAME_MAPPINGS
"""

# ComfyUI's names: methods and class attributes of a node are called and spelt as it looks for them.

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from importlib import import_module
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fastscore.adapters.k_diffusion import sample
from fastscore.process.continuous import EDM, Flow
from fastscore.process.grid import Grid
from fastscore.process.schedule import Array
from fastscore.solvers.names import ADAPTIVE, DEFAULT, SOLVERS

NAMES = [name for name in SOLVERS if name not in (*ADAPTIVE, "none", "score-sde")]
SPACINGS = ["karras", "arctan", "logsnr", "even"]
OWN = -1.0  # of a slider: leave the option to the solver


class FastscoreSampler:
    """A SAMPLER: a solver of fastscore, for SamplerCustom and SamplerCustomAdvanced.

    The noise of image i is a function of the seed and of i, whatever the batch; its start is another node's. An option
    that a solver does not have is refused.
    """

    CATEGORY = "sampling/custom_sampling/samplers"
    RETURN_TYPES = ("SAMPLER",)
    FUNCTION = "get_sampler"

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        slider = {"default": OWN, "min": OWN, "max": 10.0, "step": 0.01, "round": False}
        return {
            "required": {
                "solver": (NAMES, {"default": DEFAULT}),
                "eta": ("FLOAT", slider | {"tooltip": "-1: the solver's own"}),
                "s_noise": ("FLOAT", slider | {"tooltip": "-1: the solver's own"}),
            }
        }

    def get_sampler(self, solver: str, eta: float, s_noise: float) -> tuple[Any]:
        options = {name: value for name, value in (("eta", eta), ("s_noise", s_noise)) if value != OWN}
        ksampler = import_module("comfy.samplers").KSAMPLER
        return (ksampler(partial(sample_comfy, solver=solver, **options)),)


class FastscoreSigmas:
    """SIGMAS: noise levels of a model on one of fastscore's spacings, ending in 0.

    "karras", "arctan" and "logsnr" space sigma / alpha between the model's ends; "even" takes even steps through the
    model's own table, in which a flow model has its shift. A flow model, whose noise begins at sigma = 1, has "arctan"
    and "even" only. With ``denoise`` below 1 they are the last ``steps`` of a longer list.
    """

    CATEGORY = "sampling/custom_sampling/schedulers"
    RETURN_TYPES = ("SIGMAS",)
    FUNCTION = "get_sigmas"

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        return {
            "required": {
                "model": ("MODEL",),
                "spacing": (SPACINGS, {"default": "karras"}),
                "steps": ("INT", {"default": 20, "min": 1, "max": 10000}),
                "denoise": ("FLOAT", {"default": 1.0, "min": 0.0, "max": 1.0, "step": 0.01}),
            }
        }

    def get_sigmas(self, model: Any, spacing: str, steps: int, denoise: float) -> tuple[Tensor]:
        if denoise <= 0.0:
            return (torch.zeros(0),)
        levels = noise_levels(model.get_model_object("model_sampling"), spacing, int(steps / denoise))
        return (torch.tensor(levels[-(steps + 1) :], dtype=torch.float32),)


NODE_CLASS_MAPPINGS: dict[str, type] = {"FastscoreSampler": FastscoreSampler, "FastscoreSigmas": FastscoreSigmas}
NODE_DISPLAY_NAME_MAPPINGS = {"FastscoreSampler": "Sampler (fastscore)", "FastscoreSigmas": "Sigmas (fastscore)"}


def sample_comfy(
    model: Any,
    x: Tensor,
    sigmas: Tensor,
    extra_args: Mapping[str, Any] | None = None,
    callback: Callable[[dict[str, Any]], None] | None = None,
    disable: bool | None = None,
    **options: Any,
) -> Tensor:
    """Sample as ComfyUI's KSAMPLER calls it; masks, previews and guidance are ``model``'s and the callback's.

    The state is x_0 + sigma z, of flow models (CONST) (1 - sigma) x_0 + sigma z. The seed is ``extra_args["seed"]``.
    """
    if len(sigmas) < 2:
        return x
    flow = is_flow(model.inner_model.inner_model.model_sampling)
    seed = int((extra_args or {}).get("seed") or 0)
    return sample(model, x, sigmas, extra_args, callback, disable, seed=seed, flow=flow, **options)


def is_flow(model_sampling: Any) -> bool:
    """Return whether the state of a model is (1 - sigma) x_0 + sigma z."""
    return isinstance(model_sampling, import_module("comfy.model_sampling").CONST)


def noise_levels(model_sampling: Any, spacing: str, steps: int) -> Array:
    """Return the noise levels of ``steps`` steps, the last of them 0."""
    table = np.asarray(model_sampling.sigmas.detach().cpu(), np.float64)
    if spacing == "even":
        index = len(table) - 1 - np.arange(steps) * (len(table) / steps)
        return np.append(np.interp(index, np.arange(len(table)), table), 0.0)
    low, high = float(model_sampling.sigma_min), float(model_sampling.sigma_max)
    schedule = Flow() if is_flow(model_sampling) else EDM(low, high)
    return Grid(spacing, steps, start=high, end=low, clean=True)(schedule)
