"""The bfloat16 recipe: which operations of a network run in bfloat16, whatever the network.

Convolutions, linear layers over more than one vector a sample, products of matrices and attention read
bfloat16. On a CPU they give float32, and what lies between them (norms, activations, residual sums) stays float32.
On CUDA, where memory is what these wait for, they give bfloat16, which then is the dtype of residual sums too, if the
score allows it; statistics of norms are taken in float32. Layers with fewer than 9 channels on a side, which are the
first and the last and cost little, and linear layers over one vector a sample, which are the time embedding, compute
in float32 everywhere.
"""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from fastscore.model.condition_shapes import Condition

_LAYERS = {
    torch.conv1d, torch.conv2d, torch.conv3d, F.linear,
    torch.conv_transpose1d, torch.conv_transpose2d, torch.conv_transpose3d,
}  # fmt: skip
_PRODUCTS = {torch.matmul, torch.bmm, Tensor.matmul, Tensor.bmm, Tensor.__matmul__, F.scaled_dot_product_attention}
_NORMS = {
    F.group_norm, F.layer_norm, F.batch_norm, F.instance_norm, F.rms_norm,
    torch.group_norm, torch.layer_norm, torch.batch_norm, torch.instance_norm, torch.rms_norm,
}  # fmt: skip


@dataclass(frozen=True)
class Recipe:
    """How a network computes that was compiled.

    Attributes:
        kind: "fp32"; "tf32", float32 whose products are rounded to 10 bits on the way in; or "bf16".
        residual: what heavy layers give in bf16, and so the dtype of sums and skips.
        channels_last: whether images lie with their channels last, as tensor cores read them.
    """

    kind: str
    residual: torch.dtype = torch.float32
    channels_last: bool = False

    @property
    def tf32(self) -> bool:
        """Whether float32 is multiplied in TF32; the layers that bf16 leaves in float32 are not."""
        return self.kind == "tf32"


# By device and kind, the fastest first; the first whose score is near enough is taken.
RECIPES: dict[str, dict[str, tuple[Recipe, ...]]] = {
    "cpu": {kind: (Recipe(kind),) for kind in ("fp32", "bf16")},
    "cuda": {
        "fp32": (Recipe("fp32", channels_last=True),),
        "tf32": (Recipe("tf32", channels_last=True),),
        "bf16": (Recipe("bf16", torch.bfloat16, True), Recipe("bf16", torch.float32, True)),
    },
}


class HeavyInBf16(TorchFunctionMode):
    """Runs heavy layers on bfloat16 operands, as this module's docstring says; ``residual`` is what they give."""

    def __init__(self, residual: torch.dtype = torch.float32) -> None:
        super().__init__()
        self.residual = residual

    def __torch_function__(self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        """Run one function of torch."""
        kwargs = kwargs or {}
        if _heavy(func, args, kwargs):
            out = func(*map(_low, args), **{k: _low(v) for k, v in kwargs.items()})
            return out.to(self.residual) if out.dtype == torch.bfloat16 else out
        if self.residual == torch.float32 or not (func in _LAYERS or func in _NORMS):
            return func(*args, **kwargs)
        out = func(*map(_high, args), **{k: _high(v) for k, v in kwargs.items()})
        return out.to(self.residual) if func in _NORMS or _stem(func, args, kwargs) else out


class Traced(nn.Module):
    """A network as it is traced: float32 in and out, by a recipe in between."""

    def __init__(self, net: nn.Module, recipe: Recipe) -> None:
        super().__init__()
        self.net, self.recipe = net, recipe

    def forward(self, u: Tensor, c_noise: Tensor, cond: Condition = None) -> Tensor:
        """Evaluate."""
        if self.recipe.channels_last and u.dim() in _LAST:
            u = u.contiguous(memory_format=_LAST[u.dim()])
        with HeavyInBf16(self.recipe.residual) if self.recipe.kind == "bf16" else nullcontext():
            out = self.net(u, c_noise, cond)
        return out if self.recipe.residual == torch.float32 else out.to(u.dtype)


_LAST = {4: torch.channels_last, 5: torch.channels_last_3d}


def stored(weight: Tensor, recipe: Recipe) -> Tensor:
    """Return a copy of a weight, in the memory format that layers of the recipe read."""
    last = recipe.channels_last and weight.dim() in _LAST
    return weight.detach().clone(memory_format=_LAST[weight.dim()] if last else torch.contiguous_format)


def native_bf16() -> bool:
    """Return whether this CPU multiplies bfloat16 itself (AVX-512 BF16, AMX or Arm's BF16)."""
    cpu = torch.cpu
    x86 = (getattr(cpu, name, lambda: False)() for name in ("_is_avx512_bf16_supported", "_is_amx_tile_supported"))
    if any(x86):
        return True
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return False
    features = {word for line in lines if line.startswith(("flags", "Features")) for word in line.split()}
    return bool(features & {"avx512_bf16", "amx_bf16", "bf16"})


def _operands(args: tuple, kwargs: dict) -> tuple[Tensor, Tensor]:
    """Return input and weight of a layer."""
    x, weight = (args[k] if len(args) > k else kwargs[name] for k, name in enumerate(("input", "weight")))
    return x, weight


def _heavy(func: Any, args: tuple, kwargs: dict) -> bool:
    if func in _PRODUCTS:
        return all(a.dim() > 2 for a in args[:2] if isinstance(a, Tensor))
    if func not in _LAYERS:
        return False
    x, weight = _operands(args, kwargs)
    return min(weight.shape[:2]) > 8 and x.dim() > 2


def _stem(func: Any, args: tuple, kwargs: dict) -> bool:
    """Return whether a light layer begins the residual sums: few channels in, many out, over more than one vector."""
    x, weight = _operands(args, kwargs)
    out = weight.shape[1 if "transpose" in func.__name__ else 0]  # transposed weights have their inputs first
    return x.dim() > 2 and out > 8


def _low(value: Any) -> Any:
    return value.bfloat16() if isinstance(value, Tensor) and value.dtype == torch.float32 else value


def _high(value: Any) -> Any:
    return value.float() if isinstance(value, Tensor) and value.dtype == torch.bfloat16 else value
