"""P5: each way to run each network, one evaluation in a graph of ours: its time, its error, its compilation."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch

from bench.card import nets
from bench.card.card import Card, Facts
from bench.clocks import HostClock, tf32
from fastscore.network.prepare import numerics


def run(card: Card) -> None:
    """Measure the matrix, smallest first."""
    for name, batch in nets.sizes(card):
        made: list[nets.Problem] = []
        card.do(f"{name} {batch} float32 over the schedule", partial(build, card, name, batch, made))
        for problem in made:
            card.do_all({f"{name} {batch} {title}": partial(measure, card, problem, way)
                         for title, way in nets.WAYS.items()})  # fmt: skip


def build(card: Card, name: str, batch: int, made: list[nets.Problem]) -> Facts:
    """Make the network and what it should give."""
    made.append(nets.Problem(card, name, batch))
    net: Any = made[0].model.net
    return {"parameters": sum(p.numel() for p in net.parameters())}


@torch.no_grad()
def measure(card: Card, problem: nets.Problem, way: nets.Way) -> Facts:
    """Return the device time of an evaluation, which is one graph, and the error of the score."""
    call = way.call(card, problem.model, problem.batch)
    with tf32(getattr(call, "tf32", way.use_tf32)):  # a prepared network may say how it multiplies in a run
        first = HostClock()(lambda: (call(*problem.inputs), card.wait()), 1)
        error = float(problem.trial.errors(call)[1].max())
        eager = card.wall(lambda: call(*problem.inputs), card.pick(3, 1))
        replay = card.graph(lambda: call(*problem.inputs))
        seconds = card.timed(replay, 10)
        del replay
    ran = {"ran": vars(numerics(call, way.network))} if way.network else {}
    return {"ms": 1e3 * seconds, "evaluations_per_s": problem.batch / seconds, "ms_by_the_host": 1e3 * eager,
            "error": error, "compile_s": first, **ran}  # fmt: skip
