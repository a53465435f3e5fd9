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
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from fastscore.engine.batches import Callback
from fastscore.engine.loop import Loop
from fastscore.engine.picard_scales import scales
from fastscore.engine.recorded import Repeated
from fastscore.engine.request import Request, bad_samples, micro_batches
from fastscore.engine.turn import Turn
from fastscore.errors import NonFiniteError, typed
from fastscore.guidance.per_sample import with_lines
from fastscore.kernels import abi
from fastscore.model.condition_shapes import Several, each
from fastscore.model.projection import dimensions
from fastscore.model.score import evaluate
from fastscore.network.surroundings import undisturbed
from fastscore.ops.norms import sum_of_squares
from fastscore.ops.update import KnownRow
from fastscore.output.progress import Told, followed, within


@dataclass(frozen=True)
@typed
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

    The host looks once a sweep: how far each sample is.

    Args:
        loop: the plan bound to a network, and the home of its tables and inputs.
        picard: window and tolerance.

    Attributes:
        sweeps: of each sample of the last stream, [n]: how many network batches it had to wait for.
        evaluations: of each sample of the last stream, [n]; a sequential run has as many as there are evaluating rows.

    Raises:
        ValueError: a row of the plan sets its step from norms.
    """

    def __init__(self, loop: Loop, picard: Picard) -> None:
        if any(row.langevin is not None for row in loop.plan.rows):
            raise ValueError(
                "parallel: Langevin's step depends on the norm of the score, which a window does not have yet; use "
                "AnnealedLangevin, or leave parallel out"
            )
        self.loop, self.tolerant = loop, picard.tolerance > 0.0
        starts = [k for k, row in enumerate(loop.plan.rows) if row.evaluate]
        self.first, self.stages = starts[0] if starts else len(loop.plan.rows), len(starts)
        self.window = min(picard.window, max(self.stages, 1))
        self.sweeps = self.evaluations = torch.zeros(0, dtype=torch.int64)
        self.turn, self.guided = Turn(*loop.networks, execution=loop.execution), loop.guide
        dtype, device = loop.x.dtype, loop.x.device
        self.sweeping = Repeated(loop.execution.graph if loop.guide is None else "off", device, loop.networks)
        # After the plan's rows come as many that keep x: one for each, with the known data that it left.
        count, known = len(loop.plan.rows), loop.known_table
        idle = torch.zeros_like(loop.table)
        idle[:, abi.A], idle[:, abi.PUSH] = 1.0, -1.0
        self.table = torch.cat([loop.table, idle])
        self.table[:, abi.DRAW].clamp_(min=0.0)
        self.known_table = None if known is None else torch.cat([known, known])
        self.last, self.noisy = count - 1, any(row.noisy for row in loop.plan.rows[self.first :])
        kinds, self.mixed = loop.kinds, any(kind.mixed for kind in loop.kinds)
        # Of rows that evaluate: whether they, or those that use their outputs again, read F2.
        reads = {a: any(kind.second for kind in kinds[a:b]) for a, b in pairwise([*starts, len(kinds)])}
        second, alone = [reads.get(k, False) for k in range(len(kinds))], [kind.alone for kind in kinds]
        self.second, self.second_rows = any(second), torch.tensor(second, device=device)
        self.alone, self.alone_rows = any(alone), torch.tensor(alone, device=device)
        self.terms = next((kind.terms for kind in kinds if kind.terms), ())
        self.summed_rows = torch.tensor([bool(kind.terms) for kind in kinds], device=device)

        def stagewise(values: list[Any], end: Any) -> Tensor:
            return torch.tensor([*values, end], dtype=dtype, device=device)

        # The row that evaluates each stage; the end stands for itself with the last one, whose outputs are not used.
        self.row_of = torch.tensor([*starts, starts[-1] if starts else 0], device=device)
        self.c_in = stagewise([loop.plan.rows[k].c_in for k in starts], 0.0)
        self.limit = stagewise([(w := picard.tolerance * v) * w for v in scales(loop.plan, starts)], 0.0)
        # Rows of each stage: the one that evaluates and those up to the next, then idle ones.
        ends = [*starts[1:], len(loop.plan.rows)]
        longest = max((end - start for start, end in zip(starts, ends, strict=bool(starts))), default=0)
        rows = torch.full((longest, self.stages + 1), 2 * count - 1)
        for k, (start, end) in enumerate(zip(starts, ends, strict=bool(starts))):
            rows[:, k] = count + end - 1
            rows[: end - start, k] = torch.arange(start, end)
        self.rows = rows.to(device)
        places = self.window + 1
        self.place = torch.arange(places, device=device)[:, None]
        self.x, self.hist = (v.new_zeros(places, *v.shape) for v in (loop.x, loop.hist))
        self.places = list(zip(self.x.unbind(0), self.hist.unbind(0), strict=True))
        # Of each sample: its first stage in the window, sweeps and evaluations so far, and its dimensions.
        *_, self.size = course = torch.zeros(4, loop.batch, dtype=torch.int64, device=device)
        self.at, self.swept, self.evaluated = self.course = course[:3]

    @property
    def mode(self) -> str:
        """The mode of a run: "picard", or "step" or "auto" as the mode of what repeats a sweep."""
        return "picard" if self.sweeping.mode == "off" else self.sweeping.mode

    def warm_up(self, request: Request) -> dict[str, float | str]:
        """Compile now; return what the first micro-batch took, in seconds."""
        with self.turn:
            self.loop.load(request.padded(self.loop.batch))
            start = time.perf_counter()
            self._run()
            first, capture_s = time.perf_counter() - start, self.sweeping.capture_s
        return {"first_s": first - capture_s, "capture_s": capture_s, "graph": self.mode}

    def stream(
        self, request: Request, callback: Callback | None = None, progress: Told = False
    ) -> Iterator[tuple[slice, Tensor]]:
        """Yield (positions in the request, samples) a micro-batch at a time.

        Raises:
            ValueError: recorded noise or a callback, which need rows in order.
            RuntimeError: this is in the middle of a micro-batch already.
            NonFiniteError: a sample became NaN or Inf.
        """
        if request.noise is not None or callback is not None:
            raise ValueError("parallel: recorded noise and callbacks follow the rows in order; leave parallel out")
        n, batch = len(request), self.loop.batch
        with undisturbed():
            self.sweeps, self.evaluations = (torch.zeros(n, dtype=torch.int64) for _ in range(2))
        with followed(progress, n) as reach:

            def compute(at: slice, part: Request) -> Tensor:
                self.loop.load(part)
                told = within(reach, at.start, part.valid)
                x, sweeps, evaluations = self._run(told)
                self.sweeps[at], self.evaluations[at] = sweeps[: part.valid], evaluations[: part.valid]
                return x

            yield from micro_batches(request, batch, self.turn, compute, self._report)

    def _report(self, at: slice, part: Request, x: Tensor) -> None:
        raise NonFiniteError(f"{bad_samples(x, part.ids)}; a run without parallel names the row")

    def _run(self, told: Callable[[float], None] | None = None) -> tuple[Tensor, Tensor, Tensor]:
        """Run the loaded micro-batch; return samples, and on the host sweeps and evaluations of each."""
        loop = self.loop
        self.guided = with_lines(loop.guide, len(loop.model.shape), tuple(map(self._windowed, loop.lines)))
        sweep = self.sweeping.now(self._sweep, self._finish, lambda: loop.conditions.made)
        loop.reset()
        for kind in loop.kinds[: self.first]:
            loop.advance(kind, (None, None))
        self.x.copy_(loop.x)  # every state of the window starts as its first one
        self.size.copy_(dimensions(loop.model, loop.conditions.first, loop.batch, self.x.device).clamp_min(1))
        for buffer in (self.hist, self.course):
            buffer.zero_()
        course = torch.zeros(self.course.shape, dtype=torch.int64)
        while bool((course[0] < self.stages).any()):
            sweep()
            course = self.course.cpu()  # all that the host waits for
            if told is not None:
                told(int(course[0].sum()) / (self.stages * loop.batch))
        return self.x[0].clone().view(loop.batch, *loop.model.shape), course[1], course[2]

    def _finish(self) -> None:
        """Put every sample at its end, where a sweep changes nothing that matters."""
        self.at.fill_(self.stages)

    def _sweep(self) -> None:
        """Renew all states of the window, and move each sample on: the same calls whatever is found."""
        stage = (self.at + self.place).clamp(max=self.stages)
        live = stage < self.stages
        self.swept.add_(live[0])
        self.evaluated.add_(live[:-1].sum(0))
        moved = self._renew(stage, live)
        self.at.add_(moved).clamp_(max=self.stages)
        source = (self.place + moved).clamp(max=self.window)
        self.x.copy_(self.x.gather(0, source[:, :, None].expand_as(self.x)))
        self.hist.copy_(self.hist.gather(0, source[:, None, :, None].expand_as(self.hist)))

    def _renew(self, stage: Tensor, live: Tensor) -> Tensor:
        """Renew all states of the window; return how many stages each sample moves, [batch].

        Args:
            stage: of each place and sample, [window + 1, batch]; live: whether it lies before the end.
        """
        loop = self.loop
        F, F2 = self._evaluate(stage[:-1], live[:-1])
        before, noise = self.x.clone(), loop.key if self.noisy else None
        firsts, seconds = F.unbind(0), [None] * len(F) if F2 is None else F2.unbind(0)
        for k, rows in enumerate(self.rows[:, stage[:-1]].unbind(1)):
            (last_x, last_hist), (x, hist) = self.places[k : k + 2]
            x.copy_(last_x)
            hist.copy_(last_hist)
            for idx in rows.unbind(0):
                known = None
                if self.known_table is not None and loop.known is not None and loop.mask is not None:
                    known = KnownRow(loop.known, loop.mask, self.known_table, idx, loop.key)
                loop.ops.update(x, firsts[k], hist, self.table, idx, noise, F2=seconds[k], known=known)
                if loop.subspace is not None:
                    projected = loop.subspace.state(x, idx.clamp(max=self.last))
                    # Not where an idle row keeps what was projected already: the last bit would change.
                    x.copy_(torch.where((idx <= self.last)[:, None], projected, x))
        change = self.x[1:-1] - before[1:-1]
        # Squares of tiny changes underflow to 0, so that no change is asked for by itself.
        settled = (change == 0.0).all(2) | ~live[1:-1]
        if self.tolerant:
            square = sum_of_squares(change.flatten(0, 1)).view_as(settled) / self.size
            limit = self.limit[stage[1:-1]]
            settled |= (limit > 0.0) & (square <= limit)
        return 1 + settled.to(torch.int64).cumprod(0).sum(0)

    def _evaluate(self, stage: Tensor, live: Tensor) -> tuple[Tensor, Tensor | None]:
        """Return the outputs at all states of the window, [window, batch, D]: of a guide, or F and F2.

        A window mixes rows with and without a second output; those without have a weight of 0 for it.
        """
        loop, shape, n = self.loop, self.loop.model.shape, self.window * self.loop.batch
        rows = self.row_of[stage].flatten()
        told, cond2 = loop.conditions.of(self.terms), each(self._windowed, loop.conditions.second)
        cond = each(self._windowed, told)
        if isinstance(cond, Several):
            cond = replace(cond, at=self.summed_rows[rows])

        def settled(F: Tensor) -> Tensor:
            # What the network says past the end is not used, and need not be finite.
            return F.reshape(*stage.shape, -1).masked_fill(~live[:, :, None], 0.0)

        if self.guided is not None and loop.denoiser is not None:
            denoise = loop.denoiser.at(loop.level(rows), self.mixed, cond, cond2)
            y = None if loop.y is None else self._windowed(loop.y)
            x = self.x[:-1].reshape(n, *shape)
            D, free = denoise.guided(self.guided, x, y)
            if loop.bound.plusplus and (self.mixed or self.alone):
                free = denoise.of_second(x)
            return self._placed(settled(D), None if free is None else settled(free), rows)
        u = (self.c_in[stage][:, :, None] * self.x[:-1]).to(loop.u.dtype).view(n, *shape)
        F = settled(evaluate(loop.model, u, loop.labels.tables[0][rows], cond))
        if not (self.second or self.alone):
            return self._projected(F, None, rows)
        u2 = (loop.labels.tables[2][rows].view(*stage.shape, 1) * self.x[:-1]).to(loop.u.dtype).view(n, *shape)
        F2 = settled(evaluate(loop.second, u2, loop.labels.tables[1][rows], cond2))
        return self._projected(*self._placed(F, F2, rows), rows)

    def _placed(self, F: Tensor, F2: Tensor | None, rows: Tensor) -> tuple[Tensor, Tensor | None]:
        """Return F and F2 as each row reads them: F2 of the second network alone is its F, and of the first alone 0."""
        if F2 is None:
            return F, None
        alone, second = (at[rows].view(*F.shape[:2], 1) for at in (self.alone_rows, self.second_rows))
        return torch.where(alone, F2, F), F2.masked_fill(~second, 0.0) if self.second else None

    def _projected(self, F: Tensor, F2: Tensor | None, rows: Tensor) -> tuple[Tensor, Tensor | None]:
        """Return the outputs of a window, [window, batch, D], on the subspace of what they predict."""
        subspace = self.loop.subspace
        if subspace is None:
            return F, F2
        places = zip(F, [None] * len(F) if F2 is None else F2, rows.view(F.shape[:2]), strict=True)
        first, second = zip(*(subspace.outputs(*place) for place in places), strict=True)
        return torch.stack(first), None if F2 is None else torch.stack(second)

    def _windowed(self, values: Tensor) -> Tensor:
        """Return what each sample has, once for every place of the window."""
        return values.repeat(self.window, *[1] * (values.ndim - 1))
