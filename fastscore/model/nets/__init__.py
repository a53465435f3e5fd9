"""Score networks that ship with fastscore, built from a plain description."""

from __future__ import annotations

from typing import Any

from torch import nn

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


def build(spec: dict[str, Any]) -> nn.Module:
    """Build a network from {"name": ..., **arguments}.

    Raises:
        ValueError: an unknown name or argument.
    """
    arguments = {k: tuple(v) if isinstance(v, list) else v for k, v in spec.items()}
    name = arguments.pop("name", None)
    if name not in NETS:
        raise ValueError(f"net name = {name!r} must be one of {', '.join(NETS)}")
    try:
        return NETS[name](**arguments)
    except (TypeError, ValueError, ArithmeticError, RuntimeError) as error:
        raise ValueError(f"net {name}: {error}") from None
