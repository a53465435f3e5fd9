"""Score networks that ship with fastscore, built from a plain description."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from fastscore.data.limits import fits_memory
from fastscore.errors import unknown
from fastscore.model.nets.classifier import Classifier
from fastscore.model.nets.mlp import MLP
from fastscore.model.nets.scorenet import ScoreNet
from fastscore.model.nets.transformer import Transformer
from fastscore.model.nets.unet import UNet

NETS: dict[str, type[nn.Module]] = {
    "UNet": UNet,
    "ScoreNet": ScoreNet,
    "MLP": MLP,
    "Transformer": Transformer,
    "Classifier": Classifier,
}


LARGEST = 65_536  # of any size in a description
COUNTS = {"mult": 64, "blocks": 64, "depth": 256, "heads": 1024}  # what is made one by one, or multiplies a size
LEVELS = 16


def build(spec: dict[str, Any], copies: int = 1, outlined: nn.Module | None = None) -> nn.Module:
    """Build a network from {"name": ..., **arguments}.

    Args:
        copies: of its parameters that will be in memory at once; training holds five.
        outlined: its outline, if there is one already.

    Raises:
        ValueError: an unknown name or argument, a size out of bounds, or more parameters than fit in memory.
    """
    count = sum(v.numel() for v in (outlined or outline(spec)).state_dict().values())
    what = f"net {spec['name']} has {count:,} parameters, and"
    fits_memory(4 * count * copies, f"{what} {copies} copies" if copies > 1 else what, "make it smaller")
    return _made(spec)


def outline(spec: dict[str, Any]) -> nn.Module:
    """Build a network on the device "meta": names and shapes of its parameters, and no memory.

    Raises:
        ValueError: as for ``build``, but for the memory.
    """
    if not isinstance(spec, dict):  # pyright: ignore[reportUnnecessaryIsInstance]
        raise ValueError(f"net = {spec!r} must describe a network, by its name and sizes")
    for key, value in spec.items():
        bound = COUNTS.get(key, LARGEST)
        values = value if isinstance(value, list | tuple) else (value,)
        if len(values) > LEVELS:
            raise ValueError(f"net: {key} has {len(values)} entries; at most {LEVELS} are taken")
        for v in values:
            if isinstance(v, int | float) and not -LARGEST <= v <= bound:
                raise ValueError(f"net: {key} = {v} is out of bounds; at most {bound} is taken")
    with torch.device("meta"), _Undrawn():
        return _made(spec)


class _Undrawn(TorchFunctionMode):
    """Initialise nothing: for normals on the device "meta" torch would load its compiler, two seconds of imports."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func is Tensor.normal_ or getattr(func, "__module__", "") == "torch.nn.init":
            return (*args, *kwargs.values())[0]
        return func(*args, **kwargs)


def _made(spec: dict[str, Any]) -> nn.Module:
    arguments = {k: tuple(v) if isinstance(v, list) else v for k, v in spec.items()}
    name = arguments.pop("name", None)
    if name not in NETS:
        raise unknown("net name", name, NETS)
    try:
        return NETS[name](**arguments)
    except (TypeError, ValueError, ArithmeticError, RuntimeError) as error:
        raise ValueError(f"net {name}: {error}") from None
