"""P8: joules a sample, watts, clocks and why they fell, of seconds of steady sampling each."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch

from bench import telemetry
from bench.card import nets
from bench.card.card import Card, Facts
from bench.card.whole import Bench
from bench.engine import baselines


def ours(card: Card, name: str, batch: int) -> Facts:
    """Return the cost of fastscore's samples, rows replayed."""
    bench = Bench(card, name, batch)
    sampler: Any = bench.sampler("step")
    return cost(card, bench, lambda: sampler.run(range(batch), **bench.labels))


def by_hand(card: Card, name: str, batch: int) -> Facts:
    """Return the cost of the loop by hand in eager PyTorch."""
    bench = Bench(card, name, batch)
    label = None if not bench.labels else torch.ones(batch, dtype=torch.int64, device=card.device)
    denoise = baselines.edm_denoiser(bench.model.net, bench.model.parametrization.sigma_data, label)
    knots, x = [float(s) for s in bench.grid(bench.model.schedule)], bench.prior()
    return cost(card, bench, torch.no_grad()(lambda: baselines.ddim(denoise, x, knots)))


def cost(card: Card, bench: Bench, work: Any) -> Facts:
    """Return the figures of some seconds of it, with the reason where there is none."""
    work()
    found = telemetry.cost(work, bench.batch, card.device, min(card.pick(4.0, 0.0), max(0.5, card.left() / 2)))
    return {name: figure["value"] if figure["value"] is not None else figure["reason"]
            for name, figure in found.items()}  # fmt: skip


def run(card: Card) -> None:
    """Measure both on both networks."""
    for name, batch in reversed(list(nets.sizes(card))):
        card.do(f"{name} {batch} fastscore", partial(ours, card, name, batch))
        card.do(f"{name} {batch} by hand, eager", partial(by_hand, card, name, batch))
