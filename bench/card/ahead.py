"""Compilations, beside the phases that are not timed: how long they take, and what P5 then finds compiled."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch

from bench.card import nets
from bench.card.card import Card, Facts
from bench.card.isolated import each
from bench.clocks import HostClock, tf32


def build(card: Card, name: str, batch: int, way: nets.Way) -> Facts:
    """Compile one way and evaluate it once."""
    with torch.no_grad(), tf32(way.use_tf32):
        inputs = nets.three(nets.Trial(of := nets.model(card, name), of.net, batch, card.device).example)
        call = way.call(card, of, batch)
        return {"compile_s": HostClock()(lambda: (call(*inputs), card.wait()), 1)}


def run(card: Card) -> None:
    """Compile what P5 will ask for, in its order."""
    items: dict[str, Callable[[], Facts]] = {
        f"{name} {batch} {title}": partial(build, card, name, batch, way)
        for name, batch in nets.sizes(card)
        for title, way in nets.WAYS.items()
        if way.inductor or (way.network and not card.dry)
    }
    each(card, __name__, items, at_once=card.pick(5, 1), limit=card.pick(150.0, 30.0), size=card.pick(1, 9))
