"""The unguided estimate behind a model of ComfyUI, which answers with the guided one: what CFG++ reads beside it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from importlib import import_module
from typing import Any

import torch
from torch import Tensor


def watched(model: Any, extra_args: Mapping[str, Any]) -> tuple[Guided, Callable[..., Tensor], dict[str, Any]]:
    """Return a model, its unguided estimate, and arguments with which it tells that, at a weight of 1 too."""
    guided, tell = Guided(model), import_module("comfy.model_patcher").set_model_options_post_cfg_function
    options = tell(dict(extra_args.get("model_options") or {}), guided.keep, disable_cfg1_optimization=True)
    return guided, guided.unguided, {**extra_args, "model_options": options}


class Guided:
    """A model of ComfyUI, and the unguided estimate of its last call, which it hands to a function after guidance."""

    def __init__(self, model: Any) -> None:
        self.model, self.at, self.estimate = model, torch.zeros(0), torch.zeros(0)

    def keep(self, args: Mapping[str, Any]) -> Tensor:
        """Take notice of what was mixed, and leave it as it is."""
        self.estimate = args["uncond_denoised"]
        return args["denoised"]

    def __call__(self, x: Tensor, sigma: Tensor, **extra_args: Any) -> Tensor:
        self.at = x.clone()
        return self.model(x, sigma, **extra_args)

    def unguided(self, x: Tensor, sigma: Tensor, **extra_args: Any) -> Tensor:
        """Return the unguided estimate at x, of the last call if that was there."""
        if not self.at.equal(x):
            self(x, sigma, **extra_args)
        return self.estimate
