r"""Rollouts: a run as a sequence of Gaussian actions, which is what reinforcement learning of a sampler is about.

Given all that came before it, what a row with noise makes of the state is a draw of a Gaussian policy,

    x' = mean + c z,   log p(x') = -|x' - mean|^2 / (2 c^2) - D ln(c sqrt(2 pi)),

where mean = a x + b m + sum_k w_k h_k holds the network. A rollout keeps the states that such rows start from, what
they made of them and the log-densities, exact ones, of z itself; engine/replay.py computes the same densities again,
with gradients to a network. Rows without noise are part of the next mean, in a step of their own part of the world.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from operator import index
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fastscore.engine.request import Request
from fastscore.errors import short
from fastscore.model.condition_shapes import Condition
from fastscore.ops.norms import ordered_sum
from fastscore.plan.rows import Plan, Row

REDUCTIONS = ("sum", "mean")
FORMS = ("gaussian", "exponent", "square")
LEAST = 1e-30  # of a standard deviation: less is no number of float32 that could be divided by


@dataclass(frozen=True)
class Transition:
    """A row that adds noise, and the rows since the last one, through which its mean depends on the network.

    Attributes:
        row, step: numbers of the row, and of the step of the grid that it belongs to.
        start: the first of the rows that lead from the state before it to its mean.
        opens: whether that state is the start of a step after one without noise, or of the first.
        place: of that state in ``Rollout.path``; what the row makes of it is at the next place.
        t, s: times of the row.
        std: c, the standard deviation of the noise.
        draw: number of the noise draw.
    """

    row: int
    step: int
    start: int
    opens: bool
    place: int
    t: float
    s: float
    std: float
    draw: int


def transitions(plan: Plan, lengths: Sequence[int]) -> tuple[Transition, ...]:
    """Return the transitions of a plan, whose steps have so many rows each.

    Raises:
        ValueError: it has none; or a row that is no Gaussian step, or as good as none.
    """
    step_of = np.repeat(np.arange(len(lengths)), lengths).tolist()
    found: list[Transition] = []
    runs = 0
    for k, row in enumerate(plan.rows[1:], 1):
        if row.langevin is not None:
            raise ValueError(
                "rollout: Langevin's step depends on the norms of its score and noise, so that what it makes of a "
                "state has no Gaussian density; take AnnealedLangevin, or no corrector"
            )
        if not row.noisy:
            continue
        if not abs(row.c) > LEAST:
            raise ValueError(f"rollout: noise of c = {row.c:.3g} in row {k} is lost in the state it is added to")
        step = step_of[k - 1]
        opens = not found or found[-1].step < step - 1
        runs += opens
        start = 1 + step_of.index(step) if opens else found[-1].row + 1
        place = len(found) + runs - 1
        found.append(Transition(k, step, start, opens, place, row.t, row.s, abs(row.c), row.draw))
    if not found:
        raise ValueError(
            "rollout: no step of this plan adds noise, so that no action has a density; take a solver or a window with "
            "noise, as FlowSDE(0.7)"
        )
    return tuple(found)


def reads_before(rows: Iterable[Row]) -> set[int]:
    """Return the history slots that rows read before they fill them; -1 for the output of an earlier evaluation."""
    filled: set[int] = set()
    read: set[int] = set()
    for row in rows:
        if row.evaluate:
            filled.add(-1)
        elif row.b != 0.0 or row.push is not None:
            read |= {-1} - filled
        read |= {slot for slot, w in enumerate(row.w) if w != 0.0} - filled
        if row.push is not None:
            filled.add(row.push)
    return read


@dataclass(frozen=True, eq=False)
class Rollout:
    r"""K transitions of n samples, and the samples.

    States are those of the loop, in its dtype and in the units of the network. Noise is not kept: ``noise`` draws it
    again. Log-probabilities are float64; in terms of q = |x' - mean|^2 over D dimensions,

        form        reduction "sum"                        the same in others' code
        gaussian    -q / (2 c^2) - D ln(c sqrt(2 pi))      the density; flow_grpo, DanceGRPO, DDPO, sglang
        exponent    -q / (2 c^2)                           verl-omni without log-prob normalizer
        square      -q                                     CPS in FlowCPS and flow_grpo; sglang's no_const

    and "mean", which all of them have, divides by D.

    Attributes:
        x: the samples, [n, *shape], those of ``Sampler.run`` to the bit.
        path: states that transitions start from or lead to, each once, [K + runs, n, *shape].
        means: [K, n, *shape].
        log_probs: [K, n], exact: of z, and not of the difference x' - mean.
        transitions: what is what; a row without noise, as the last step of most solvers, is none.
        request: ids, seeds and conditions of the samples.
        history: what earlier steps had left in the history slots that a run of steps reads, [n, D] by slot.
        reduction, form: of the log-probabilities, those of replays too.
        window: of stochastic steps, None for what the solver itself has.
        plan: hash of the plan, which a replay must have.
    """

    x: Tensor
    path: Tensor
    means: Tensor
    log_probs: Tensor
    transitions: tuple[Transition, ...]
    request: Request
    history: tuple[Mapping[int, Tensor], ...]
    reduction: str
    form: str
    window: Any
    plan: str

    def __len__(self) -> int:
        """Return K."""
        return len(self.transitions)

    @property
    def ids(self) -> Tensor:
        """Sample ids, int64 [n]."""
        return self.request.ids

    @property
    def seeds(self) -> Tensor:
        """Seeds, int64 [n] with the bits of the unsigned ones."""
        return self.request.key.seed.expand(len(self.ids))

    @property
    def cond(self) -> Condition:
        """What each sample was told: labels, a tensor, or a dict of such."""
        return self.request.cond

    @property
    def states(self) -> Tensor:
        """The states that transitions start from, [K, n, *shape]."""
        return self._places(0)

    @property
    def actions(self) -> Tensor:
        """What transitions made of them, x', [K, n, *shape]."""
        return self._places(1)

    @property
    def stds(self) -> Tensor:
        """c of each transition, float64 [K]."""
        return self._column("std")

    @property
    def diffusion(self) -> Tensor:
        """c / sqrt(t - s), float64 [K]: what flow_grpo reports as the standard deviation."""
        return self.stds / (self._column("t") - self._column("s")).sqrt()

    @property
    def rows(self) -> Tensor:
        """The row of each transition, int64 [K]."""
        return self._column("row", torch.int64)

    @property
    def steps(self) -> Tensor:
        """The step of each transition, int64 [K]."""
        return self._column("step", torch.int64)

    @property
    def times(self) -> Tensor:
        """t and s of each transition, float64 [K, 2]."""
        return torch.stack([self._column("t"), self._column("s")], 1)

    @property
    def replayed(self) -> Tensor:
        """What a replay by the same network returns, to the bit, [K, n]: the log-probabilities of ``means``."""
        return self.log_probs_of(self.means)

    def log_probs_of(self, means: Tensor, steps: Sequence[int] | None = None) -> Tensor:
        """Return the log-probabilities of the actions under other means, differentiable in them: [K, n], float64.

        Args:
            means: [K, n, *shape].
            steps: numbers of the transitions that they belong to, 0 .. K - 1; all of them if left out.
        """
        numbers = numbers_of(self, steps)
        std = self.stds[numbers].to(means.dtype).view(-1, *[1] * (means.ndim - 1))
        r = (self.actions[numbers] - means) / std
        squares = squared_norm(r.reshape(-1, math.prod(r.shape[2:]))).view(r.shape[:2])
        return log_density(squares, self.stds[numbers, None], math.prod(r.shape[2:]), self.form, self.reduction)

    def noise(self, k: int) -> Tensor:
        """Return z of a transition, drawn again from seeds and ids, [n, *shape]; recorded noise is not kept."""
        z = self.request.key.normal(self.transitions[k].draw, self.path[0, 0].numel(), self.path.dtype)
        return z.view(self.path.shape[1:])

    def at(self, positions: Sequence[int]) -> Rollout:
        """Return the rollout of the samples at some positions, in their order: a trainer's micro-batch."""
        chosen = _positions("positions", positions, len(self.ids))
        at = torch.tensor(chosen, dtype=torch.int64, device=self.path.device)
        path, means, log_probs = (v.index_select(1, at) for v in (self.path, self.means, self.log_probs))
        history = tuple({slot: v[at] for slot, v in kept.items()} for kept in self.history)
        request, x = self.request.at(chosen), self.x[at]
        return replace(self, x=x, path=path, means=means, log_probs=log_probs, request=request, history=history)

    def _places(self, next_one: int) -> Tensor:
        places = [k.place + next_one for k in self.transitions]
        first, last = places[0], places[-1]
        whole = last - first + 1 == len(places)  # one run of steps: a view
        return self.path[first : last + 1] if whole else self.path[places]

    def _column(self, name: str, dtype: torch.dtype = torch.float64) -> Tensor:
        return torch.tensor([getattr(k, name) for k in self.transitions], dtype=dtype, device=self.path.device)


def numbers_of(rollout: Rollout, steps: Sequence[int] | None) -> list[int]:
    """Return numbers of transitions, all of them for None. ValueError unless they rise within 0 .. K - 1."""
    numbers = list(range(len(rollout))) if steps is None else _positions("steps", steps, len(rollout))
    if not numbers or sorted(set(numbers)) != numbers:
        raise ValueError(f"steps = {short(steps)} must be numbers of transitions, each once and rising")
    return numbers


def _positions(name: str, values: Any, count: int) -> list[int]:
    """Return whole numbers in 0 .. count - 1 as a list; ValueError for anything else."""
    try:
        found = [index(k) for k in (values.tolist() if isinstance(values, Tensor) else values)]
    except (TypeError, RuntimeError):
        found = [-1]
    if any(not 0 <= k < count for k in found):
        raise ValueError(f"{name} = {short(values)} must be whole numbers in 0 .. {count - 1}")
    return found


def log_density(squares: Tensor, std: Tensor, d: int, form: str, reduction: str) -> Tensor:
    """Return log-probabilities, given |x' - mean|^2 / c^2 and c in float64; see Rollout."""
    if form == "square":
        total = -squares * std.square()
    else:
        total = -0.5 * squares
        if form == "gaussian":
            total = total - d * (std.log() + 0.5 * math.log(2.0 * math.pi))
    return total / d if reduction == "mean" else total


class _SquaredNorm(torch.autograd.Function):
    """|r|^2 of each line in float64, in an order that no number of lines changes; and its gradient, 2 r."""

    @staticmethod
    def forward(ctx: Any, r: Tensor) -> Tensor:
        ctx.save_for_backward(r)
        return ordered_sum(r.to(torch.float64).square())

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> Tensor:
        (r,) = ctx.saved_tensors
        return (2.0 * grads[0][:, None] * r).to(r.dtype)


def squared_norm(r: Tensor) -> Tensor:
    """Return |r|^2 of each line, float64 [N]."""
    return _SquaredNorm.apply(r)  # pyright: ignore[reportReturnType]
