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
from fastscore.engine.request import Request
from fastscore.engine.turn import Turn
from fastscore.execution import Execution
from fastscore.ops.noise import NoiseKey
from fastscore.output.progress import Told
from fastscore.solvers.adaptive_steps import Method


class Transport:
    """The integration from the first of the ``ends`` of the clock to the second; its lanes serve call after call.

    Args:
        forward: the field; ``backward`` makes it again, of a network that can be differentiated.
        method, levels, rule: as for Lanes.
        networks: what the field evaluates.
        turn: taken again for backward.
    """

    def __init__(
        self,
        forward: Field,
        backward: Callable[[], Field],
        method: Method,
        levels: NoiseLevels,
        rule: StepRule,
        ends: tuple[float, float],
        execution: Execution,
        networks: tuple[object, ...],
        turn: Turn,
    ) -> None:
        batch, place = execution.batch, execution.place
        self.forward, self.backward, self.method, self.ends, self.turn = forward, backward, method, ends, turn
        self.lanes = Lanes(
            forward,
            method,
            levels,
            rule,
            *ends,
            lanes=batch,
            settle=False,
            key=NoiseKey(*(torch.zeros(batch, dtype=torch.int64, device=place) for _ in range(2))),
            dtype=execution.dtype,
            graph=execution.graph,
            networks=networks,
        )

    def __call__(self, y: Tensor, request: Request, progress: Told) -> tuple[Tensor, Cost]:
        """Return the states [n, width] at the end, with a gradient in y if y asks for one; and the cost.

        Args:
            y: states at the start, whose lines are the request's.
        """
        lanes, trail = self.lanes, Trail() if torch.is_grad_enabled() and y.requires_grad and len(y) else None
        start, out = y.detach(), torch.empty_like(y, requires_grad=False)
        with torch.no_grad():
            self.forward.begin(request)
            lanes.trail = trail
            for at, arrived, _ in lanes.run(len(y), lambda first, last: start[first:last], request.key, progress):
                out[at.to(out.device)] = arrived
        if trail is None:
            return out, lanes.cost

        def back(gradient: Tensor) -> Tensor:
            with self.turn, torch.no_grad():
                field = self.backward()
                field.begin(request)
                return pull_back(field, self.method, start, trail.knots(*self.ends), gradient, lanes.lanes)

        return transported(y, out, back), lanes.cost
