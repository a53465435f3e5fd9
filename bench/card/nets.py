"""The two networks of the run, with random weights, and the ways to evaluate one."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from copy import deepcopy
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

import fastscore as fs
from bench.card.card import Card
from bench.clocks import tf32
from bench.engine.sampler import SPEC, random_model
from fastscore.execution import NETWORKS
from fastscore.network.trial import Trial, three

# Of the size of DDPM++ (Song et al. 2021, appendix H) for images of 32 x 32 pixels.
DDPMPP = {"name": "UNet", "channels": 3, "size": 32, "width": 128, "mult": [2, 2, 2], "blocks": [4, 4, 4],
          "attention": [1]}  # fmt: skip
TINY = {"channels": 1, "size": 8, "width": 8, "patch": 1, "mult": [1, 1], "blocks": [1, 1]}
SIZES = (("fashion", 64), ("DDPM++", 64), ("fashion", 512), ("DDPM++", 512))
Call = Callable[[Tensor, Tensor, "Tensor | None"], Tensor]


def model(card: Card, name: str) -> fs.ScoreModel:
    """Return a model on the card; in a dry run a tiny one."""
    return random_model({**{"fashion": SPEC, "DDPM++": DDPMPP}[name], **card.pick({}, TINY)}, card.device)


def sizes(card: Card) -> Iterator[tuple[str, int]]:
    """Yield (network, batch) in the order of what they tell."""
    yield from SIZES if not card.dry else [("fashion", 2)]


@dataclass(frozen=True)
class Way:
    """How a network is evaluated.

    Attributes:
        use_tf32: whether float32 products run in TF32; None is as the user has it.
        dtype: of weights and inputs.
        channels_last: the layout of weights and inputs.
        inductor: through torch.compile in its default mode, which has no graphs of its own.
        network: a path of fastscore's in place of all that.
    """

    use_tf32: bool | None = None
    dtype: torch.dtype = torch.float32
    channels_last: bool = False
    inductor: bool = False
    network: str = ""

    def call(self, card: Card, of: fs.ScoreModel, batch: int) -> Call:
        """Return the network this way: float32 in and out, in the layout that the engine has."""
        if self.network:  # a dry run has no minutes to compile
            return of.net if card.dry else fs.prepare(of, batch, card.device, network=self.network).net
        layout = torch.channels_last if self.channels_last else torch.contiguous_format
        module: Any = deepcopy(of.net)
        net: Call = module.to(self.dtype, memory_format=layout)
        net = card.compile(net) if self.inductor else net

        def call(u: Tensor, t: Tensor, cond: Tensor | None = None) -> Tensor:
            return net(u.to(self.dtype, memory_format=layout), t, cond).float()

        return call


PATHS = ("bf16", "auto", "tf32", "fp32")  # of fastscore's own, those that this version has
WAYS = {
    "eager TF32": Way(True),
    "eager fp32": Way(False),
    "channels_last TF32": Way(True, channels_last=True),
    "bf16": Way(dtype=torch.bfloat16),
    "bf16, channels_last": Way(dtype=torch.bfloat16, channels_last=True),
    "bf16, channels_last, inductor": Way(dtype=torch.bfloat16, channels_last=True, inductor=True),
    **{f'network="{name}"': Way(network=name) for name in PATHS if name in NETWORKS},
    "inductor TF32": Way(True, inductor=True),
    "inductor fp32": Way(False, inductor=True),
}


class Problem:
    """A network at a batch, its inputs over the whole schedule, and what it makes of them in float32 without TF32."""

    def __init__(self, card: Card, name: str, batch: int) -> None:
        self.card, self.batch, self.model = card, batch, model(card, name)
        self.trial = Trial(self.model, self.model.net, batch, card.device)
        with tf32(False):
            self.expected = self.trial.expected  # kept: the truth of every error
        self.inputs = three(self.trial.example)
