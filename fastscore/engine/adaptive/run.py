"""Runs of an adaptive solver: what engine/batches.py is for plans, with lanes in place of micro-batches."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from fastscore.engine.adaptive.brownian import Path
from fastscore.engine.adaptive.control import StepRule
from fastscore.engine.adaptive.cost import Cost
from fastscore.engine.adaptive.field import ScoreField, circle, prior_draw
from fastscore.engine.adaptive.lanes import Lanes, padded_lanes
from fastscore.engine.adaptive.levels import NoiseLevels, angle
from fastscore.engine.base import base_at, columns
from fastscore.engine.batches import Callback
from fastscore.engine.request import Request
from fastscore.engine.turn import Turn
from fastscore.execution import Execution
from fastscore.guidance.denoiser import Guide
from fastscore.guidance.mixture import Guidance
from fastscore.model.score import ScoreModel
from fastscore.ops.backend import Ops
from fastscore.ops.noise import NoiseKey
from fastscore.output.progress import Told
from fastscore.process.grid import Span
from fastscore.process.schedule import Schedule, lam
from fastscore.solvers.adaptive import Adaptive, GottaGoFast
from fastscore.solvers.adaptive_steps import method_of


class AdaptiveBatches:
    """Draws samples with an adaptive solver.

    Args:
        model: as it runs; ``second`` that of a mixture, the same one if left out.
        schedule: the tolerances and the undenoised state are meant on it.
        solver: see solvers/adaptive.py.
        span: times of ``schedule``, and what is returned at the end.
        execution: its device, batch (lanes) and state dtype.
        ops: the backend that makes normals.
        net_dtype: of the networks' inputs.
        guidance, guide: as for a Loop.
        start: as for make_plan: "prior", "data" or "state".
    """

    def __init__(
        self,
        model: ScoreModel,
        schedule: Schedule,
        solver: Adaptive,
        span: Span,
        execution: Execution,
        ops: Ops,
        net_dtype: torch.dtype,
        second: ScoreModel | None = None,
        guidance: Guidance | None = None,
        guide: Guide | None = None,
        start: str = "prior",
    ) -> None:
        device, dtype, lanes, second = execution.place, execution.dtype, execution.batch, second or model
        first, last = span(schedule).tolist()
        self.model, self.solver, self.start, self.noisy = model, solver, start, isinstance(solver, GottaGoFast)
        self.method = method_of(solver, device)
        levels = NoiseLevels(
            model, schedule, self.method.quantity, first, last, device, guidance, guided=guide is not None
        )
        self.ends = [max(float(lam(schedule, t)), solver.earliest) for t in (first, last)]
        clock = [angle(v) for v in self.ends] if solver.clock == "angle" else self.ends
        self.key = NoiseKey(*(torch.zeros(lanes, dtype=torch.int64, device=device) for _ in range(2)))
        path = None
        if self.noisy:
            path = Path(self.key, clock[1] - clock[0], math.prod(model.shape), padded_lanes(lanes), dtype, ops)
        self.field = ScoreField(model, second, levels, self.method.quantity, guide, lanes, dtype, net_dtype)
        self.lanes = Lanes(
            self.field,
            self.method,
            levels,
            StepRule.of(solver),
            *clock,
            lanes=lanes,
            settle=span.clean,
            key=self.key,
            dtype=dtype,
            path=path,
            ops=ops,
            graph=execution.graph if guide is None else "off",  # a guide is Python that may look at values
            networks=(*model.networks, *second.networks),
        )
        self.alpha, self.sigma = float(schedule.alpha(first)), float(schedule.sigma(first))
        top = float(torch.hypot(*(torch.as_tensor(v(schedule.T)) for v in (schedule.alpha, schedule.sigma))))
        self.alpha_end = 1.0 if span.clean else float(schedule.alpha(last))
        self.std, law = schedule.prior_std / top, base_at(model, schedule, first)
        self.base = None if law is None else columns(law, model.shape, self.lanes.buffer)
        self.output = _output(self.method.quantity, angle(self.ends[1]), span.clean, schedule, last)
        self.turn = Turn(*model.networks, *second.networks, guide, execution=execution)

    @property
    def mode(self) -> str:
        """The mode of a run: "off", or "step" where a tick was captured; "auto" before it was tried."""
        return self.lanes.ticking.mode

    @property
    def cost(self) -> Cost:
        """The cost of the last run."""
        return self.lanes.cost

    def warm_up(self, request: Request) -> dict[str, float | str]:
        """Compile now; return what it took, in seconds."""
        with self.turn:
            self.field.begin(request.padded(self.field.lanes))
            everyone = torch.arange(self.field.lanes, device=request.ids.device)
            self.field.load(everyone, everyone)
            start = time.perf_counter()
            y = self.lanes.buffer[0]
            self.field(y, self.method.lam(self.lanes.tau)).sum().item()  # waits for the device
            first = time.perf_counter() - start
            self.lanes.ready()
        return {"first_s": first, "capture_s": self.lanes.ticking.capture_s, "graph": self.mode}

    def stream(
        self, request: Request, callback: Callback | None = None, progress: Told = False
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield (positions in the request, samples) as they arrive, about as many at a time as there are lanes.

        Args:
            progress: show a progress bar; or what is called with how many samples are done, parts of one included.

        Raises:
            ValueError: a callback; or recorded noise or known data for a stochastic solver.
            RuntimeError: this is in the middle of a run already.
            NonFiniteError: a sample became NaN or Inf.
            StepSizeError: the tolerance cannot be reached.
        """
        if callback is not None:
            raise ValueError("callback: an adaptive solver has no rows; leave it out, or use a solver with a grid")
        if request.noise is not None and self.noisy:
            raise ValueError("noise: an adaptive SDE solver draws as many normals as it needs; leave recorded ones out")
        if request.known is not None and self.noisy:
            raise ValueError(
                f"known: {type(self.solver).__name__} integrates the SDE, whose noise known data would need along the "
                "way; use an adaptive solver of the ODE (Dopri5, DPMAdaptive), or a solver with a grid"
            )
        self.turn.look(request.among)
        yield from self.turn.steps(self._arrivals(request, progress))

    def _arrivals(self, request: Request, progress: Told) -> Iterator[tuple[Tensor, Tensor]]:
        self.field.begin(request)
        for at, y, k in self.lanes.run(len(request), self.begin, request.key, progress):
            state, change = self.output
            x = state * y + change * k if change else state * y
            yield at, self.field.settled(x, at, self.alpha_end).view(-1, *self.model.shape)

    @torch.no_grad()
    def estimates(self, at: Tensor) -> Tensor:
        """Return the estimates of x_0 in some lanes, [n, *shape], by the evaluations that began their steps."""
        y, k = self.lanes.buffer[:2, at]
        cos, sin = (v[:, None].to(y.dtype) for v in circle(self.method.lam(self.lanes.tau)[at]))
        state, change = _estimate(self.method.quantity, cos, sin)
        return (state * y + change * k).view(-1, *self.model.shape)

    def begin(self, first: int, last: int) -> Tensor:
        """Return the states that samples first .. last - 1 start from, on the unit circle."""
        request, d, dtype = self.field.request, self.field.parts[0], self.lanes.buffer.dtype
        assert request is not None
        at = slice(first, last)
        if self.start == "prior" and self.base is not None:
            mean, std = self.base
            y = (mean + std * prior_draw(request, at, d, dtype)) / math.hypot(self.alpha, self.sigma)
        elif self.start == "prior":
            y = prior_draw(request, at, d, dtype) * self.std
        else:
            assert request.init is not None
            y = request.init[at].to(dtype)
            if self.start == "data":
                y = self.alpha * y + self.sigma * prior_draw(request, at, d, dtype)
            y = y / math.hypot(self.alpha, self.sigma)
        lam_first = torch.full((last - first,), self.ends[0], dtype=torch.float64, device=y.device)
        return self.field.on_path(y, lam_first, torch.arange(first, last, device=y.device))


def _output(quantity: str, phi: float, clean: bool, schedule: Schedule, end: float) -> tuple[float, float]:
    """Return the weights of y and its last evaluation k that make the sample; without the estimate it is the state."""
    if not clean:
        return math.hypot(float(schedule.alpha(end)), float(schedule.sigma(end))), 0.0
    return _estimate(quantity, math.cos(phi), math.sin(phi))


def _estimate(quantity: str, cos: Any, sin: Any) -> tuple[Any, Any]:
    """Return the weights of y and its evaluation k that make the estimate of x_0.

    On the unit circle D = cos phi y - sin phi v = (y - sin phi eps) / cos phi, and sin phi eps =
    (sin^2 phi y - drift) / 2.
    """
    if quantity == "v":
        return cos, -sin
    return (1.0 / cos, -sin / cos) if quantity == "eps" else ((1.0 - 0.5 * sin * sin) / cos, 0.5 / cos)
