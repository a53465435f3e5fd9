"""What draws rollouts, and what replays them: the loop as a policy, and its means with gradients."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fastscore.engine.batches import Batches
from fastscore.engine.bind import bind, by_rule
from fastscore.engine.kind import Kind, labels_of
from fastscore.engine.loop import Loop, Outputs, recorded
from fastscore.engine.request import Request, micro_batches
from fastscore.engine.rollout import Rollout, Transition, log_density, reads_before, transitions
from fastscore.engine.turn import Turn
from fastscore.guidance.mixture import BoundPlan
from fastscore.guidance.told import Conditions
from fastscore.kernels import abi
from fastscore.model.score import ScoreModel, evaluate
from fastscore.network.surroundings import undisturbed
from fastscore.ops.update import update_ref
from fastscore.output.progress import Told, followed, within
from fastscore.plan.rows import lower
from fastscore.process.grid import Grid, Times
from fastscore.solvers.window import Window


def plan_of(sampler: Any, window: Any, model: ScoreModel) -> tuple[BoundPlan, tuple[Transition, ...]]:
    """Return the rows of a sampler with this window, bound to a model, and the transitions among them.

    Raises:
        ValueError: settings that have no density that can be replayed.
    """
    solver, execution = sampler.solver, sampler.execution
    for lacks, why in (
        (
            sampler.plan is None,
            f"{type(solver).__name__} chooses its steps by what it draws; take a solver with a grid",
        ),
        (sampler.parallel is not None, "sweeps over many steps have no order; leave parallel out"),
        (sampler.guide is not None, "a guide's estimate passes no gradient to the network; leave guide out"),
        (model.projection is not None, "densities on a subspace are not computed; take a model without a projection"),
        (execution.ahead_of_time, f"network = {execution.network!r} has no gradient; use network='own'"),
    ):
        if lacks:
            raise ValueError(f"rollout: {why}")
    grid: Grid | Times = sampler.grid
    solver = solver if window is None else Window(solver, window)
    bound = bind(model, sampler.schedule, solver, grid, sampler.start, sampler.settings["clip"], sampler.guidance).bound
    with np.errstate(divide="ignore", invalid="ignore"):  # as where the plan was made
        groups = by_rule(solver, sampler.guidance).steps(sampler.schedule, grid(sampler.schedule))
    found = transitions(bound.plan, [len(group) for group in groups])
    if any(k.opens and -1 in reads_before(bound.plan.rows[k.start : k.row + 1]) for k in found):
        raise ValueError("rollout: a step uses an output of the step before it, which is no part of the rollout")
    return bound, found


class Actor(Batches):
    """Runs micro-batches of a plan and keeps their transitions. A noisy row is its mean, then the noise: the same bits.

    Args:
        sampler: a Sampler.
        window: of stochastic steps, or None.

    Raises:
        ValueError: see ``plan_of``.
    """

    def __init__(self, sampler: Any, window: Any) -> None:
        bound, self.transitions = plan_of(sampler, window, sampler.model)
        execution, self.window, rows = sampler.execution, window, [k.row for k in self.transitions]
        self.replay = Replay(sampler, bound, self.transitions, sampler.prepared, sampler.second_prepared)
        with undisturbed(execution.dtype, execution.place):
            first, second = sampler.prepared, sampler.second_prepared
            serial = replace(execution, guided="serial")  # as replays are, which differentiate
            loop = Loop(bound, first, serial, sampler.ops, sampler.net_dtype, second)
            self.numbers = torch.arange(len(rows), device=execution.place)
            self.c, self.c_in = (loop.table[rows, column].unsqueeze(1) for column in (abi.C, abi.C_IN))
            self.table = torch.zeros_like(loop.table[rows])  # rows that leave z alone
            self.table[:, abi.C], self.table[:, abi.PUSH], self.table[:, abi.DRAW] = (
                1.0,
                -1.0,
                loop.table[rows, abi.DRAW],
            )
            self.z, self.no_history = torch.zeros_like(loop.x), loop.hist[:0]
        super().__init__(loop, "off")
        self.starts = {k.start: k.place for k in self.transitions if k.opens}
        self.acts = {row: number for number, row in enumerate(rows)}
        self.kinds = [replace(kind, noisy=kind.noisy and row not in self.acts) for row, kind in enumerate(loop.kinds)]
        opening = [k for k in self.transitions if k.opens]
        ends = [*(k.start for k in opening[1:]), rows[-1] + 1]
        # History that a run of steps reads and has not filled itself, by the row that it starts with.
        self.reads = {
            k.start: sorted(reads_before(bound.plan.rows[k.start : end])) for k, end in zip(opening, ends, strict=True)
        }

    def roll(self, request: Request, reduction: str, form: str, progress: Told) -> Rollout:
        """Return the rollout of a request."""
        loop, n, count = self.loop, len(request), len(self.transitions)
        x, shape = loop.x, loop.model.shape
        with undisturbed(x.dtype, x.device):
            places = self.transitions[-1].place + 2
            path, means, samples = (x.new_empty(k, n, *shape) for k in (places, count, 1))
            history = tuple({slot: x.new_empty(n, x.shape[1]) for slot in slots} for slots in self.reads.values())
            squares = torch.empty(count, n, dtype=torch.float64, device=x.device)
        kept = Rollout(
            samples[0], path, means, squares, self.transitions, replace(request, init=None, noise=None), history,
            reduction, form, self.window, loop.plan.hash,
        )  # fmt: skip
        with followed(progress, n) as reach:

            def compute(at: slice, part: Request) -> Tensor:
                return self._act(part, kept, at, within(reach, at.start, part.valid))

            for at, x in micro_batches(request, loop.batch, self.turn, compute, self._report):
                kept.x[at] = x
        with undisturbed():
            log_probs = log_density(squares, kept.stds[:, None], math.prod(shape), form, reduction)
            samples = kept.x if loop.model.transform is None else loop.model.transform(kept.x)
        return replace(kept, x=samples, log_probs=log_probs)

    def _act(self, part: Request, kept: Rollout, at: slice, told: Callable[[float], None] | None) -> Tensor:
        """Run a micro-batch, and keep its states, means and |z|^2 at their places."""
        loop, n, noise = self.loop, part.valid, recorded(part)
        loop.load(part)
        loop.reset()
        state, outputs, runs = loop.x[:n].view(n, *loop.model.shape), (None, None), iter(kept.history)
        for row, kind in enumerate(self.kinds):
            if row in self.starts:
                kept.path[self.starts[row], at] = state
                for slot, values in next(runs).items():
                    values[at] = loop.hist[slot, :n]
            outputs: Outputs = loop.advance(kind, outputs, noise)
            k = self.acts.get(row)
            if k is not None:
                kept.means[k, at] = state
                if noise is None:
                    idx = self.numbers[k].expand(loop.batch)
                    loop.ops.update(self.z, None, self.no_history, self.table, idx, loop.key)
                else:
                    self.z.copy_(noise.normal(self.table[k, abi.DRAW], loop.x.shape[1], loop.x.dtype))
                loop.x += self.c[k] * self.z  # a product and a sum, as in a row
                loop.u.copy_(self.c_in[k] * loop.x)
                kept.path[self.transitions[k].place + 1, at] = state
                kept.log_probs[k, at] = self.z[:n].square().sum(1, dtype=torch.float64)
            if told is not None:
                told((row + 1) / len(self.kinds))
        return loop.result()


class Replay:
    """The means of transitions as functions of the networks: the rows of the reference, on tensors of their own.

    Args:
        sampler: a Sampler.
        bound, course: its plan, bound to the first network, and the transitions.
        first, second: the networks as they run.
    """

    def __init__(
        self, sampler: Any, bound: BoundPlan, course: tuple[Transition, ...], first: ScoreModel, second: ScoreModel
    ) -> None:
        self.bound, self.course, self.first, self.second = bound, course, first, second
        self.execution, self.net_dtype = sampler.execution, sampler.net_dtype
        rows, dtype, place = bound.plan.rows, self.execution.dtype, self.execution.place
        with undisturbed(dtype, place):
            self.table = torch.tensor(lower(bound.plan), dtype=dtype, device=place)
            self.scales = torch.tensor([[r.c_in for r in rows], [r.c_in2 for r in rows]], dtype=dtype, device=place)
            self.labels = labels_of(bound.plan, first, second, self.table)
            self.numbers = torch.arange(len(rows), device=place)
        self.kinds = [Kind.of(row) for row in rows]
        self.turn = Turn(*first.networks, *second.networks, execution=self.execution, gradients=True)
        segments = [rows[k.start : k.row + 1] for k in course]
        self.reads = [reads_before(segment) for segment in segments]
        self.fills = [{row.push for row in rows} | {-1 for row in rows if row.evaluate} for rows in segments]

    @classmethod
    def of(cls, sampler: Any, window: Any, model: ScoreModel) -> Replay:
        """Return the replay by another network in the place of the sampler's first one."""
        bound, course = plan_of(sampler, window, model)
        first = sampler._prepare(model)
        return cls(
            sampler, bound, course, first, sampler.second_prepared if sampler.second is not sampler.model else first
        )

    def means(self, rollout: Rollout, numbers: Sequence[int], batch: int | None = None) -> Tensor:
        """Return the means of some transitions, [len(numbers), n, *shape].

        Raises:
            ValueError: a rollout of another plan, dtype or device.
        """
        like, n, own = self.table, len(rollout.ids), self.execution.batch
        lines = min(batch or own, max(own, n))
        if rollout.plan != self.bound.plan.hash:
            raise ValueError(
                "replay: the rollout is of another plan; its solver, grid, schedule and guidance, and what the network "
                "predicts, must be those of this sampler"
            )
        if (rollout.path.dtype, rollout.path.device) != (like.dtype, like.device):
            raise ValueError(
                f"replay: the rollout is {rollout.path.dtype} on {rollout.path.device}, and this sampler computes in "
                f"{like.dtype} on {like.device}"
            )
        with self.turn:
            found = [self._means(rollout, numbers, start, lines) for start in range(0, n, lines)]
            means = torch.cat(found, 1) if found else rollout.means[list(numbers)]
        return means.view(len(numbers), n, *self.first.shape)

    def _means(self, rollout: Rollout, numbers: Sequence[int], start: int, batch: int) -> Tensor:
        """Return the means of a micro-batch, [len(numbers), lines, D]."""
        part = rollout.request.part(slice(start, start + batch)).padded(batch)
        lines = torch.arange(start, start + batch, device=self.table.device).clamp(max=len(rollout.ids) - 1)
        conditions = Conditions(self.first, self.bound.guidance, batch)
        conditions.load(part.told)
        hist, outputs = self.table.new_zeros(0, 0, 0), (None, None)
        means: list[Tensor] = []
        for k in self._needed(numbers):
            transition = self.course[k]
            x = rollout.path[transition.place].index_select(0, lines).flatten(1)
            if transition.opens or not self.reads[k]:
                hist, outputs = x.new_zeros(self.bound.plan.slots, *x.shape), (None, None)
            if transition.opens:
                for slot, values in rollout.history[transition.place - k].items():
                    hist[slot] = values.index_select(0, lines)
            for row in range(transition.start, transition.row + 1):
                kind = self.kinds[row]
                outputs: Outputs = self._evaluate(row, x, conditions) if kind.evaluate else outputs
                F, F2 = outputs if kind.network else (None, None)
                idx = self.numbers[row].expand(batch)
                update_ref(x, F, hist, self.table, idx, None, F2=F2 if kind.second else None)
            if k in numbers:
                means.append(x[: part.valid])
        return torch.stack(means)

    def _evaluate(self, row: int, x: Tensor, conditions: Conditions) -> Outputs:
        """Return the networks' outputs at a row, as the loop does, from inputs that nothing overwrites."""
        kind = self.kinds[row]

        def output(model: ScoreModel, k: int, cond: Any) -> Tensor:
            u = (self.scales[k, row] * x).to(self.net_dtype).view(-1, *model.shape)
            return evaluate(model, u, self.labels[k][row : row + 1], cond)

        if kind.alone:
            return output(self.second, 1, conditions.second), None
        F = output(self.first, 0, conditions.of(kind.terms))
        return F, output(self.second, 1, conditions.second) if kind.mixed else None

    def _needed(self, numbers: Sequence[int]) -> list[int]:
        """Return the transitions to compute: those asked for, and earlier ones that fill what they read."""
        needed: set[int] = set()
        for k in numbers:
            first, reads = k, self.reads[k]
            while reads and not self.course[first].opens:
                first -= 1
                reads = (reads - self.fills[first]) | self.reads[first]
            needed |= set(range(first, k + 1))
        return sorted(needed)
