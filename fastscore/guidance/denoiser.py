r"""The denoiser of a row as guides call it, and what a guide is.

A guide changes the estimate E[x_0 | x_t] of every evaluation. The plan is folded for a model that predicts x0,
so that what a guide returns is the row's network output: any solver on any schedule takes it, unchanged. Guides are
Python that may differentiate: they run in the plain loop, which no CUDA graph captures.
"""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor

from fastscore.guidance.mixture import Guidance, fold
from fastscore.model.score import ScoreModel
from fastscore.plan.rows import Plan

_COLUMNS = ("p", "q", "q2", "c_in", "c_noise", "c_in2", "c_noise2")


class Guide(Protocol):
    """Changes the estimate of x_0 at one noise level; see fastscore.guides."""

    def __call__(self, denoise: Denoiser, x: Tensor, alpha: Tensor, sigma: Tensor, y: Tensor | None) -> Tensor:
        """Return D', [N, *shape] like x.

        Args:
            denoise: x -> E[x_0 | x_t = x], any guidance included; differentiable in x.
            x: state x_t = alpha x_0 + sigma z of the plan's schedule, [N, *shape].
            alpha, sigma: of each sample, [N, 1, ..].
            y: what the run gave each sample for the guide, [N, ..], or None. Samples must not see each other.
        """
        ...


class Denoiser:
    r"""E[x_0 | x_t] at the time of a row: D = p x + q F(c_in x) + q2 F2(c_in2 x).

    Args:
        plan: the loop's, with m = x0 in every row.
        model, guidance: the networks.
        u: the loop's input buffer, whose dtype and device the networks read.
        dtype: of the state.
    """

    def __init__(self, plan: Plan, model: ScoreModel, guidance: Guidance | None, u: Tensor, dtype: torch.dtype) -> None:
        self.model, self.guidance, self.dtype = model, guidance, u.dtype
        self.plan = fold(plan, model, guidance)
        t = [row.t for row in plan.rows]
        alone = fold(plan, model).rows
        columns = [[getattr(row, name) for row in self.plan.rows] for name in _COLUMNS]
        columns += [[row.p for row in alone], [row.q for row in alone]]
        columns += [plan.schedule.alpha(t).tolist(), plan.schedule.sigma(t).tolist()]
        self.table = torch.tensor(columns, dtype=dtype, device=u.device)
        self.cond = self.cond2 = None

    def at(self, row: Tensor, guided: bool, cond: Tensor | None, cond2: Tensor | None) -> Denoiser:
        """Move to a row, whose number lies on the device; ``guided`` if it has a second output."""
        self.row, self.guided, self.cond, self.cond2 = self.table.index_select(1, row), guided, cond, cond2
        return self

    def scales(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return alpha and sigma of each sample, [N, 1, ..]."""
        alpha, sigma = self.row[-2:].reshape(2, 1).expand(2, len(x)).reshape(2, len(x), *[1] * (x.ndim - 1))
        return alpha, sigma

    def __call__(self, x: Tensor) -> Tensor:
        return self.both(x)[0]

    def both(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return the guided estimate and the first network's own, of the same evaluations."""
        p, q, q2, c_in, c_noise, c_in2, c_noise2, p1, q1 = self.row[:-2]
        F = output(self.model, (c_in * x).to(self.dtype), c_noise, self.cond).view_as(x).to(x.dtype)
        if x.requires_grad and not F.requires_grad:
            raise ValueError(
                "this guide differentiates the network, whose output has no gradient; use network='own' and no no_grad"
            )
        own = p1 * x + q1 * F
        if not self.guided or self.guidance is None:
            return own, own
        second = self.guidance.model or self.model
        F2 = output(second, (c_in2 * x).to(self.dtype), c_noise2, self.cond2).view_as(x).to(x.dtype)
        return p * x + q * F + q2 * F2, own


def output(model: ScoreModel, u: Tensor, label: Tensor, cond: Tensor | None) -> Tensor:
    """Return what a network makes of its input, [N, D], in memory that is not the input's.

    Args:
        u: c_in x, [N, *shape] in the network's dtype; label: c_noise, [1].

    Raises:
        ValueError: an output of another shape.
    """
    F = model.net(u, label.expand(len(u)), cond)
    if F.shape != u.shape:
        raise ValueError(f"the network returned {tuple(F.shape)} for an input of {tuple(u.shape)}")
    # The row is about to overwrite u, which a network that works in place hands back.
    reused = F.untyped_storage()._cdata == u.untyped_storage()._cdata
    return (F.clone() if reused else F).reshape(len(u), -1)
