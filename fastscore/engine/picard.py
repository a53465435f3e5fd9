r"""Parallel in time: Picard sweeps over a window of a plan's evaluations, all of them one network batch.

    F_i = net(x_i) for every i of the window at once, then x_{i+1} = row_i(x_i, F_i) one after the other

The rows are the plan's own and cost little; the evaluations, which cost, no longer wait for each other. A sweep
makes the first state of the window exact in any case. The window then moves past every state that changed by
no more than the tolerance, separately for each sample, so that a sample does not depend on its company.

Source: Shih et al. 2023 (ParaDiGMS), algorithm 1. Theirs freezes the whole increment of a row during a sweep; ours
freezes only F, so that what is linear in x is exact at once.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from fastscore.engine.loop import Loop
from fastscore.errors import NonFiniteError
from fastscore.kernels import abi
from fastscore.model.conditions import Inputs
from fastscore.ops.noise import NoiseKey
from fastscore.ops.norms import sum_of_squares
from fastscore.plan.rows import Plan, Row
from fastscore.process.schedule import transition


@dataclass(frozen=True)
class Picard:
    """Settings of a run that is parallel in time.

    Args:
        window: evaluations of each sample that are done at once; the network's batch is this times the
            sampler's.
        tolerance: the window moves past a state once a sweep changed it by no more than tolerance x
            std, root mean square over its elements, where std is that of the DDPM posterior of the step that
            leads there (or of the noise that the step adds, if that is more). 0 waits until no bit changes: the
            result is then the sequential one. Shih et al. use 0.1. Networks whose rounding depends on a
            sample's place in the batch, as convolutions on a CPU, settle only at a tolerance above 0.
    """

    window: int = 16
    tolerance: float = 0.0

    def __post_init__(self) -> None:
        if self.window < 1:
            raise ValueError(f"Picard: window = {self.window} must be at least 1")
        if not 0.0 <= self.tolerance < math.inf:
            raise ValueError(f"Picard: tolerance = {self.tolerance} must be at least 0 (Shih et al. use 0.1)")


class Parallel:
    """Runs micro-batches of a loop's plan by Picard sweeps; stands where Batches does.

    The host reads one flag a sweep: whether any sample is left.

    Args:
        loop: the plan bound to a network, and the home of its tables and inputs.
        picard: window and tolerance.

    Attributes:
        sweeps: of each sample of the last stream, [n]: how many network batches it had to wait for.
        evaluations: of each sample of the last stream, [n]; a sequential run has plan.nfe.

    Raises:
        ValueError: a row of the plan sets its step from norms.
    """

    way = "picard"

    def __init__(self, loop: Loop, picard: Picard) -> None:
        if any(row.langevin is not None for row in loop.plan.rows):
            raise ValueError(
                "parallel: Langevin's step depends on the norm of the score, which a window does not have yet; use "
                "AnnealedLangevin, or leave parallel out"
            )
        self.loop = loop
        starts = [k for k, row in enumerate(loop.plan.rows) if row.evaluate]
        self.first, self.stages = starts[0] if starts else len(loop.plan.rows), len(starts)
        self.window = min(picard.window, max(self.stages, 1))
        self.sweeps = self.evaluations = torch.zeros(0, dtype=torch.int64)
        self._busy = False

        dtype, device = loop.x.dtype, loop.x.device
        idle = torch.zeros_like(loop.table[:1])
        idle[0, abi.A], idle[0, abi.PUSH] = 1.0, -1.0
        self.table = torch.cat([loop.table, idle])  # the last row keeps x: for samples at their end
        self.table[:, abi.DRAW].clamp_(min=0.0)
        self.noisy = any(row.noisy for row in loop.plan.rows[self.first :])

        def stagewise(values: list[Any], end: Any) -> Tensor:
            return torch.tensor([*values, end], dtype=dtype, device=device)

        evaluating = [loop.plan.rows[k] for k in starts]
        self.c_in = stagewise([row.c_in for row in evaluating], 0.0)
        self.labels = stagewise([row.c_noise for row in evaluating], evaluating[-1].c_noise if starts else 0.0)
        self.limit = stagewise([(picard.tolerance * v) ** 2 for v in _scales(loop.plan, starts)], 0.0)
        # Rows of each stage: the one that evaluates and those up to the next, then idle ones.
        ends = [*starts[1:], len(loop.plan.rows)]
        longest = max((end - start for start, end in zip(starts, ends, strict=bool(starts))), default=0)
        rows = torch.full((longest, self.stages + 1), len(loop.plan.rows))
        for k, (start, end) in enumerate(zip(starts, ends, strict=bool(starts))):
            rows[: end - start, k] = torch.arange(start, end)
        self.rows = rows.to(device)

        places, d = self.window + 1, loop.x.shape[1]
        self.place = torch.arange(places, device=device)[:, None]
        self.x = torch.zeros(places, loop.batch, d, dtype=dtype, device=device)
        self.hist = torch.zeros(places, *loop.hist.shape, dtype=dtype, device=device)

    def prepare(self, key: NoiseKey, cond: Tensor | None) -> dict[str, float | str]:
        """Compile now; return what the first micro-batch took, in seconds."""
        self.loop.load(key.seed, key.ids, cond)
        start = time.perf_counter()
        self._run()
        return {"first_s": time.perf_counter() - start, "capture_s": 0.0, "graph": self.way}

    def stream(
        self,
        key: NoiseKey,
        cond: Tensor | None,
        noise: Tensor | None = None,
        callback: Callable[..., None] | None = None,
        progress: bool = False,
        inputs: Inputs | None = None,
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield (positions in ``key``, samples) a micro-batch at a time; arguments as for Batches.

        Raises:
            ValueError: recorded noise or a callback, which need rows in order.
            RuntimeError: this is in the middle of a micro-batch already.
            NonFiniteError: a sample became NaN or Inf.
        """
        if noise is not None or callback is not None:
            raise ValueError("parallel: recorded noise and callbacks follow the rows in order; leave parallel out")
        if self.loop.known is not None:
            raise ValueError("parallel: known data follow the rows in order; leave parallel out")
        n, batch = len(key.ids), self.loop.batch
        self.sweeps, self.evaluations = (torch.zeros(n, dtype=torch.int64) for _ in range(2))
        for start in tqdm(range(0, n, batch), unit="batch", disable=not progress):
            part = slice(start, min(start + batch, n))
            count = part.stop - part.start
            if self._busy:
                raise RuntimeError("this Sampler is in the middle of a run; use another one inside a thread")
            self._busy = True
            try:
                given = None if inputs is None else inputs.part(part)
                self.loop.load(key.seed, key.ids[part], None if cond is None else cond[part], given)
                x, sweeps, evaluations = self._run()
            finally:
                self._busy = False
            x, ids = x[:count], key.ids[part]
            self.sweeps[part], self.evaluations[part] = sweeps[:count].cpu(), evaluations[:count].cpu()
            bad = ~torch.isfinite(x.flatten(1)).all(1)
            if bool(bad.any()):
                raise NonFiniteError(
                    f"{int(bad.sum())} of {count} samples are NaN or Inf, first id {int(ids[bad][0])}; a run without "
                    "parallel names the row"
                )
            yield torch.arange(part.start, part.stop), x

    @torch.no_grad()
    def _run(self) -> tuple[Tensor, Tensor, Tensor]:
        """Run the loaded micro-batch; return samples, sweeps and evaluations of each."""
        loop = self.loop
        loop.reset()
        for kind in loop.kinds[: self.first]:
            loop.advance(kind, (None, None))
        self.x.copy_(loop.x)  # every state of the window starts as its first one
        self.hist.zero_()
        at = torch.zeros(loop.batch, dtype=torch.int64, device=self.x.device)  # each sample's first stage
        sweeps, evaluations = torch.zeros_like(at), torch.zeros_like(at)
        while bool((at < self.stages).any()):
            stage = (at + self.place).clamp(max=self.stages)
            live = stage < self.stages
            sweeps, evaluations = sweeps + live[0], evaluations + live[:-1].sum(0)
            moved = self._sweep(stage, live)
            at = (at + moved).clamp(max=self.stages)
            source = (self.place + moved).clamp(max=self.window)
            self.x.copy_(self.x.gather(0, source[:, :, None].expand_as(self.x)))
            self.hist.copy_(self.hist.gather(0, source[:, None, :, None].expand_as(self.hist)))
        return self.x[0].clone().view(loop.batch, *loop.model.shape), sweeps, evaluations

    def _sweep(self, stage: Tensor, live: Tensor) -> Tensor:
        """Renew all states of the window; return how many stages each sample moves, [batch].

        Args:
            stage: of each place and sample, [window + 1, batch]; live: whether it lies before the end.
        """
        loop, window, batch = self.loop, self.window, self.loop.batch
        here = stage[:-1]
        u = (self.c_in[here][:, :, None] * self.x[:-1]).to(loop.u.dtype).view(window * batch, *loop.model.shape)
        cond = None if loop.cond is None else loop.cond.repeat(window, *[1] * (loop.cond.ndim - 1))
        F = loop.model.net(u, self.labels[here].flatten(), cond)
        if F.shape != u.shape:
            raise ValueError(f"the network returned {tuple(F.shape)} for an input of {tuple(u.shape)}")
        # What the network says past the end is not used, and need not be finite.
        F = F.reshape(window, batch, -1).masked_fill(~live[:-1, :, None], 0.0)
        before, rows, noise = self.x.clone(), self.rows[:, here], loop.key if self.noisy else None
        for k in range(window):
            self.x[k + 1].copy_(self.x[k])
            self.hist[k + 1].copy_(self.hist[k])
            for idx in rows[:, k]:
                loop.ops.update(self.x[k + 1], F[k], self.hist[k + 1], self.table, idx, noise)
        change = self.x[1:-1] - before[1:-1]
        square = sum_of_squares(change.flatten(0, 1)).view(window - 1, batch) / self.x.shape[2]
        limit = self.limit[stage[1:-1]]
        # Squares of tiny changes underflow to 0, so that no change is asked for by itself.
        settled = (change == 0.0).all(2) | ((limit > 0.0) & (square <= limit)) | ~live[1:-1]
        return 1 + settled.to(torch.int64).cumprod(0).sum(0)


def _scales(plan: Plan, starts: list[int]) -> list[float]:
    """Return the standard deviation that the tolerance of the state entering each stage refers to."""
    scales = [0.0]  # the first state of all is exact
    for before, after in pairwise(starts):
        rows = plan.rows[before:after]
        noise = max(abs(row.c) for row in rows)
        scale = max(noise, _posterior_std(plan, rows[0], plan.rows[after]))
        scales.append(scale or scales[-1])  # a second stage at the same time: as the first
    return scales[: len(starts)]


def _posterior_std(plan: Plan, before: Row, after: Row) -> float:
    """Standard deviation of x_s given x_t and x_0 where the time falls from t to s; 0 where it does not."""
    if after.t >= before.t:
        return 0.0
    _, added = transition(plan.schedule, after.t, before.t)
    return float((added**0.5) * plan.schedule.sigma(after.t) / plan.schedule.sigma(before.t))
