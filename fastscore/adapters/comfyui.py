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

from fastscore.adapters.comfyui_guided import watched
from fastscore.adapters.k_diffusion import sample
from fastscore.guidance.mixture import RULES
from fastscore.plan.cfgpp import guides_itself
from fastscore.process.continuous import Flow
from fastscore.process.discrete import DiscreteVE
from fastscore.process.grid import Grid
from fastscore.process.names import NAMED
from fastscore.process.schedule import Array
from fastscore.solvers.names import ADAPTIVE, DEFAULT, SOLVERS, named

NAMES = [name for name in SOLVERS if name not in (*ADAPTIVE, "none", "score-sde")]
SPACINGS = ["karras", "arctan", "logsnr", *NAMED]
OWN = -1.0  # of a slider: leave the option to the solver


class FastscoreSampler:
    """A SAMPLER: a solver of fastscore, for SamplerCustom and SamplerCustomAdvanced.

    The noise of image i is a function of the seed and of i, whatever the batch; its start is another node's. An option
    that a solver does not have is refused. By CFG++ each step is unguided and ends with what the guider changes, at
    weights (cfg) below 1, say 0.6; solvers with cfg in their names have it built in.
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
            },
            "optional": {"rule": (list(RULES), {"default": RULES[0]})},
        }

    def get_sampler(self, solver: str, eta: float, s_noise: float, rule: str = RULES[0]) -> tuple[Any]:
        options: dict[str, Any] = {name: value for name, value in (("eta", eta), ("s_noise", s_noise)) if value != OWN}
        ksampler = import_module("comfy.samplers").KSAMPLER
        return (ksampler(partial(sample_comfy, solver=solver, rule=rule, **options)),)


class FastscoreSigmas:
    """SIGMAS: noise levels of a model on a grid of fastscore's, see fastscore/process/README.md, ending in 0.

    "karras", "arctan" and "logsnr" space sigma / alpha between the model's ends, the first and the last of which a flow
    model, whose noise begins at sigma = 1, does not have. The others are those of the codes that they are named after,
    on the model's own table. With ``denoise`` below 1 they are the last ``steps`` of a longer list.
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
    rule: str = RULES[0],
    **options: Any,
) -> Tensor:
    """Sample as ComfyUI's KSAMPLER calls it; masks, previews and guidance are ``model``'s and the callback's.

    By "cfg++" the unguided estimate is asked for, too. The state is x_0 + sigma z, of flow models (CONST)
    (1 - sigma) x_0 + sigma z. The seed is ``extra_args["seed"]``.
    """
    if len(sigmas) < 2:
        return x
    flow = is_flow(model.inner_model.inner_model.model_sampling)
    seed, unguided = int((extra_args or {}).get("seed") or 0), None
    if rule == "cfg++" or guides_itself(named(options.get("solver", DEFAULT))):
        model, unguided, extra_args = watched(model, extra_args or {})
    return sample(model, x, sigmas, extra_args, callback, disable, seed=seed, flow=flow, unguided=unguided, **options)


def is_flow(model_sampling: Any) -> bool:
    """Return whether the state of a model is (1 - sigma) x_0 + sigma z."""
    return isinstance(model_sampling, import_module("comfy.model_sampling").CONST)


def noise_levels(model_sampling: Any, spacing: str, steps: int) -> Array:
    """Return the noise levels of ``steps`` steps, the last of them 0.

    Raises:
        ValueError: a grid that the model's noise does not have, or a flow whose table is not that of one shift.
    """
    table = np.asarray(model_sampling.sigmas.detach().cpu(), np.float64)
    schedule = _flow(table) if is_flow(model_sampling) else DiscreteVE(tuple(table))
    return schedule.sigma(Grid(spacing, steps, clean=True)(schedule))


def _flow(table: Array) -> Flow:
    """Return the flow with these sigma at the times 1/N, 2/N .. 1."""
    n = len(table)
    t = np.arange(1, n + 1) / n
    shift = np.median(table[:-1] * (1.0 - t[:-1]) / (t[:-1] * (1.0 - table[:-1]))) if n > 1 else 1.0
    flow = Flow(t_end=1.0 / n, shift=float(shift))
    if not np.allclose(flow.sigma(t), table, rtol=1e-4, atol=1e-6):
        raise ValueError(f"the model's {n} noise levels of a flow are not those of even times after one shift")
    return flow
