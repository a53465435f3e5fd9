"""Integrations of given states from one clock to another, differentiable in the states."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from fastscore.engine.adaptive.adjoint import Trail, pull_back, transported
from fastscore.engine.adaptive.control import StepRule
from fastscore.engine.adaptive.cost import Cost
from fastscore.engine.adaptive.field import Field
from fastscore.engine.adaptive.lanes import Lanes
from fastscore.engine.adaptive.levels import NoiseLevels
from fastscore.engine.turn import Turn
from fastscore.execution import Execution
from fastscore.ops.noise import NoiseKey
from fastscore.output.progress import Told
from fastscore.solvers.adaptive_steps import Method


def transport(
    y: Tensor,
    forward: Field,
    backward: Callable[[], Field],
    method: Method,
    levels: NoiseLevels,
    rule: StepRule,
    ends: tuple[float, float],
    key: NoiseKey,
    execution: Execution,
    turn: Turn,
    progress: Told,
) -> tuple[Tensor, Cost]:
    """Return the states [n, width] at the second of the ``ends``, with a gradient in y if y asks for one; and the cost.

    Args:
        y: states at the first of the ends of the clock.
        forward: the field, begun with a request; ``backward`` makes it again, of a network that can be differentiated.
        key: of the samples.
        turn: taken now; and again for backward.
    """
    batch, place = execution.batch, execution.place
    trail = Trail() if torch.is_grad_enabled() and y.requires_grad and len(y) else None
    start, out = y.detach(), torch.empty_like(y, requires_grad=False)
    with torch.no_grad():
        lanes = Lanes(
            forward,
            method,
            levels,
            rule,
            *ends,
            lanes=batch,
            settle=False,
            key=NoiseKey(*(torch.zeros(batch, dtype=torch.int64, device=place) for _ in range(2))),
            dtype=execution.dtype,
            trail=trail,
        )
        for at, arrived, _ in lanes.run(len(y), lambda first, last: start[first:last], key, progress):
            out[at.to(out.device)] = arrived
    if trail is None:
        return out, lanes.cost

    def back(gradient: Tensor) -> Tensor:
        with turn, torch.no_grad():
            return pull_back(backward(), method, start, trail.knots(*ends), gradient, batch)

    return transported(y, out, back), lanes.cost
