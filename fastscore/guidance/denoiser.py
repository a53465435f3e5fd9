r"""The denoiser at a noise level as guides call it, and what a guide is.

A guide changes the estimate E[x_0 | x_t] of every evaluation. A row then reads that estimate in place of the network's
output, so any solver on any schedule takes any guide. Guides are Python that may differentiate: they run in the plain
loop, which no CUDA graph captures.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, fields, replace
from typing import Protocol

import torch
from torch import Tensor

from fastscore.data.affine import Affine
from fastscore.guidance.mixture import BoundPlan
from fastscore.guidance.together import Together
from fastscore.model.condition_shapes import Condition, Told, own
from fastscore.model.projection import onto
from fastscore.model.score import ScoreModel, evaluate


class Guide(Protocol):
    """Changes the estimate of x_0 at one noise level; see guidance/guides.py."""

    def __call__(self, denoise: Denoiser, x: Tensor, alpha: Tensor, sigma: Tensor, y: Tensor | None) -> Tensor:
        """Return D', [N, *shape] like x.

        Args:
            denoise: x -> E[x_0 | x_t = x], any mixture included; differentiable in x. ``denoise.pair(x)`` gives what
                is mixed, and ``denoise.memory`` keeps tensors from one evaluation of a run to the next.
            x: state x_t = alpha x_0 + sigma z of the sampler's schedule, [N, *shape].
            alpha, sigma: of each sample, [N, 1, ..]; sigma of each column, [N, .., D], where the model has a transform.
            y: what the run gave each sample for the guide, [N, ..], or None. Samples must not see each other.
        """
        ...


@dataclass(frozen=True)
class Pair:
    """The two estimates of x_0 that a mixture is of, D = second + weight (first - second).

    Attributes:
        first: under the samples' own condition, [N, *shape]; of several the mean by their weights.
        second: under the null or negative condition, or of the second network; None where no sample has a second one.
        weight: of each sample, [N, 1, ..]; 1 where its estimate is the first.
        step: number of the step of the grid, [N, 1, ..]; infinite of an adaptive solver.
    """

    first: Tensor
    second: Tensor | None
    weight: Tensor
    step: Tensor


@dataclass(frozen=True)
class Level:
    """A noise level, as a plan or a schedule and its networks have it; each [N], or [1] for all samples.

    Attributes:
        p, q, q2: D = p x + q F + q2 F2.
        p1, q1: the estimate of the first network alone, p1 x + q1 F; p2, r2: of the second, p2 x + r2 F2.
        c_in, c_noise, c_in2, c_noise2: factor on x and label of each network.
        alpha, sigma: of the schedule.
        weight, step: see Pair.
    """

    p: Tensor
    q: Tensor
    q2: Tensor
    p1: Tensor
    q1: Tensor
    p2: Tensor
    r2: Tensor
    c_in: Tensor
    c_noise: Tensor
    c_in2: Tensor
    c_noise2: Tensor
    alpha: Tensor
    sigma: Tensor
    weight: Tensor
    step: Tensor

    @classmethod
    def table(cls, bound: BoundPlan, dtype: torch.dtype, device: torch.device) -> Tensor:
        """Return the levels of all rows, [fields, rows]."""
        t, schedule, seconds = [row.t for row in bound.x0], bound.unfolded.schedule, bound.x0_of_second
        w = bound.weights
        # Of several conditions F is the sum of w_i F_i, and the first estimate the mean.
        share = [1.0 / w if row.terms and w else 1.0 for row, w in zip(bound.x0, w, strict=True)]
        special = {
            "p1": [row.p for row in bound.x0_of_first],
            "q1": [row.q * part for row, part in zip(bound.x0_of_first, share, strict=True)],
            "p2": [0.0 if row is None else row.p for row in seconds],
            "r2": [0.0 if row is None else row.q for row in seconds],
            "alpha": schedule.alpha(t).tolist(),
            "sigma": schedule.sigma(t).tolist(),
            "weight": w,
            "step": bound.steps or [math.inf] * len(w),
        }
        columns = [special.get(f.name) or [getattr(row, f.name) for row in bound.x0] for f in fields(cls)]
        return torch.tensor(columns, dtype=dtype, device=device)


class Denoiser:
    r"""E[x_0 | x_t] at a level: D = p x + q F(c_in x) + q2 F2(c_in2 x).

    Args:
        model, second: of F and F2.
        dtype: that their networks read.

    Attributes:
        memory: what guides keep from one evaluation to the next, by names of their own, a line a sample. Whoever runs
            the rows empties it where a run begins; an adaptive solver and Picard's sweeps refuse guides that need it.
    """

    def __init__(self, model: ScoreModel, second: ScoreModel, dtype: torch.dtype) -> None:
        self.model, self.second, self.dtype = model, second, dtype
        self.memory: dict[str, Tensor] = {}

    def at(self, level: Level, mixed: bool, cond: Told, cond2: Condition, together: Together | None = None) -> Denoiser:
        """Move to a level; ``mixed`` if there is a second output, of ``cond2``; ``together`` makes one call of all."""
        self.level, self.mixed, self.cond, self.cond2, self.together = level, mixed, cond, cond2, together
        return self

    def guided(self, guide: Guide, x: Tensor, y: Tensor | None) -> tuple[Tensor, Tensor]:
        """Return what a guide makes of the estimate at x [N, *shape]: [N, D]; and the same before its last bound.

        Raises:
            ValueError: the guide returned another shape.
        """
        alpha, sigma = (v.expand(len(x)).reshape(-1, *[1] * (x.ndim - 1)) for v in (self.level.alpha, self.level.sigma))
        transform, denoise, at = self.model.transform, self, x
        if transform is not None:
            units = InUnits(self, alpha * transform.shift_like(x), x.new_tensor(transform.scale), transform)
            denoise, at, sigma = units, units.outside(x), sigma * units.scale
        before, bound = getattr(guide, "bounding", (guide, None))
        D = denoise(at) if before is None else before(denoise, at, alpha, sigma, y)  # pyright: ignore[reportArgumentType]
        if D.shape != x.shape:
            raise ValueError(f"the guide returned {tuple(D.shape)} for a state of {tuple(x.shape)}")

        def flat(v: Tensor) -> Tensor:
            estimate = (v if transform is None else transform.inverse(v)).detach().reshape(len(x), -1)
            return onto(self.model, estimate, own(self.cond))

        free = flat(D)
        return (free if bound is None else flat(bound(D))), free

    def __call__(self, x: Tensor) -> Tensor:
        return self.both(x)[0]

    def both(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return the estimate with its mixture and the first network's own, of the same evaluations."""
        c, F, F2 = self._outputs(x)
        first = self._onto(c["p1"] * x + c["q1"] * F)
        if F2 is None:
            return first, first
        return self._onto(c["p"] * x + c["q"] * F + c["q2"] * F2), first

    def pair(self, x: Tensor) -> Pair:
        """Return both estimates that the mixture is of, neither as a difference; of the same evaluations."""
        c, F, F2 = self._outputs(x)
        first = self._onto(c["p1"] * x + c["q1"] * F)
        second = None if F2 is None else self._onto(c["p2"] * x + c["r2"] * F2)
        return Pair(first, second, c["weight"], c["step"])

    def _outputs(self, x: Tensor) -> tuple[dict[str, Tensor], Tensor, Tensor | None]:
        """Return the level with the axes of x, and F and F2 like x."""
        v = {f.name: getattr(self.level, f.name) for f in fields(Level)}
        c = {name: value.reshape(-1, *[1] * (x.ndim - 1)) for name, value in v.items()}
        u = (c["c_in"] * x).to(self.dtype)
        outputs = None if self.together is None else self.together.at(u, v["c_noise"])
        F = (outputs[0] if outputs else evaluate(self.model, u, v["c_noise"], self.cond)).view_as(x).to(x.dtype)
        if x.requires_grad and not F.requires_grad:
            raise ValueError(
                "this guide differentiates the network, whose output has no gradient; use network='own' and no no_grad"
            )
        F2 = outputs[1] if outputs else self._of_second(x, c["c_in2"]) if self.mixed else None
        return c, F, None if F2 is None else F2.view_as(x).to(x.dtype)

    def _of_second(self, x: Tensor, c_in2: Tensor) -> Tensor:
        return evaluate(self.second, (c_in2 * x).to(self.dtype), self.level.c_noise2, self.cond2)

    def of_second(self, x: Tensor) -> Tensor:
        """Return the second network's own estimate at x [N, *shape], which no guide changes: [N, D]."""
        c = {name: getattr(self.level, name).reshape(-1, *[1] * (x.ndim - 1)) for name in ("p2", "r2", "c_in2")}
        F2 = self._of_second(x, c["c_in2"]).view_as(x).to(x.dtype)
        return self._onto(c["p2"] * x + c["r2"] * F2).flatten(1)

    def _onto(self, D: Tensor) -> Tensor:
        """Return an estimate on the subspace of the data, by the sample's own condition and never the null one."""
        return onto(self.model, D.flatten(1), own(self.cond)).view_as(D)


@dataclass(frozen=True)
class InUnits:
    """A denoiser in the units of the data, as guides see it: x_t = alpha x_0 + sigma scale z, with x_0 in its units.

    The noise has a standard deviation a column, so ``sigma`` is [N, .., D] there.
    """

    denoise: Denoiser
    shift: Tensor
    scale: Tensor
    transform: Affine

    def outside(self, y: Tensor) -> Tensor:
        """Return the state in the units of the data, of one in the network's."""
        return self.shift + self.scale * y

    def __call__(self, x: Tensor) -> Tensor:
        return self.both(x)[0]

    def both(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return both estimates, as ``Denoiser.both`` does."""
        D, first = self.denoise.both((x - self.shift) / self.scale)
        return self.transform(D), self.transform(first)

    def pair(self, x: Tensor) -> Pair:
        """Return what is mixed, as ``Denoiser.pair`` does."""
        pair = self.denoise.pair((x - self.shift) / self.scale)
        second = None if pair.second is None else self.transform(pair.second)
        return replace(pair, first=self.transform(pair.first), second=second)

    @property
    def memory(self) -> dict[str, Tensor]:
        """What guides keep, as ``Denoiser.memory``."""
        return self.denoise.memory
