"""The bfloat16 recipe: which operations of a network run in bfloat16, whatever the network.

Convolutions, linear layers over more than one vector a sample, products of matrices and attention read
bfloat16 and give float32. What lies between them (norms, activations, residual sums) stays float32, and so
do layers with fewer than 9 channels on a side, which are the first and the last and cost little, and
linear layers over one vector a sample, which are the time embedding.
"""

from __future__ import annotations

from contextlib import nullcontext
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


class HeavyInBf16(TorchFunctionMode):
    """Runs heavy layers on bfloat16 operands and returns float32, as this module's docstring says."""

    def __torch_function__(self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        """Run one function of torch."""
        kwargs = kwargs or {}
        if not _heavy(func, args, kwargs):
            return func(*args, **kwargs)
        out = func(*map(_low, args), **{k: _low(v) for k, v in kwargs.items()})
        return out.float() if out.dtype == torch.bfloat16 else out


class Traced(nn.Module):
    """A network as it is traced: with heavy layers in bfloat16, or as it is."""

    def __init__(self, net: nn.Module, kind: str) -> None:
        super().__init__()
        self.net, self.kind = net, kind

    def forward(self, u: Tensor, c_noise: Tensor, cond: Condition = None) -> Tensor:
        """Evaluate."""
        with HeavyInBf16() if self.kind == "bf16" else nullcontext():
            return self.net(u, c_noise, cond)


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


def _heavy(func: Any, args: tuple, kwargs: dict) -> bool:
    if func in _PRODUCTS:
        return all(a.dim() > 2 for a in args[:2] if isinstance(a, Tensor))
    if func not in _LAYERS:
        return False
    x, weight = (args[k] if len(args) > k else kwargs[name] for k, name in enumerate(("input", "weight")))
    return min(weight.shape[:2]) > 8 and x.dim() > 2


def _low(value: Any) -> Any:
    return value.bfloat16() if isinstance(value, Tensor) and value.dtype == torch.float32 else value
