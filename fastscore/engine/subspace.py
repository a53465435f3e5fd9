"""Models whose data lie in a subspace (model/projection.py): their rows, and the check of what is asked of them."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from fastscore.engine.request import Request
from fastscore.guidance.mixture import BoundPlan
from fastscore.kernels import abi
from fastscore.model.condition_shapes import Condition
from fastscore.model.projection import Projected, dimensions, onto
from fastscore.model.score import ScoreModel
from fastscore.ops.noise import Noise
from fastscore.ops.norms import langevin_ref
from fastscore.plan.rows import lower_known
from fastscore.process.schedule import Array, Schedule

OFF = 1e-4  # of a sample's largest number: what rounding, or alpha for 1, may leave of what lies off the subspace
LOOKED_AT = 8  # samples whose projection is tried on random vectors


class Told(Protocol):
    """What the samples of a micro-batch or of lanes are told; ``first`` is their own condition."""

    @property
    def first(self) -> Condition: ...


def places(bound: BoundPlan) -> tuple[Array, Array]:
    """Return, of the rows of a plan, alpha where the next one reads the state, and the data in both outputs."""
    return lower_known(bound.plan)[:, abi.A], np.array(bound.data_weights)


class Subspace:
    """Where the states and outputs of each row of a plan lie, for the samples of a micro-batch.

    A row is fused and knows no subspace; what it made is projected after it. With x and every output on the subspace
    all that a row makes of them is there too, to rounding, but for its noise and a clipped estimate. Conditions are
    the samples' own: a null condition tells the network something else, and changes no sample's subspace.

    Args:
        model: that has the projection.
        conditions: of the samples: their own are ``first``.
        alpha: at which the row after each row reads the state, [rows].
        weights: how much of the data the outputs of each row hold, [2, rows].
        dimensions: of each sample's subspace, [batch] like x; None where no row asks for them.
    """

    def __init__(
        self, model: Projected, conditions: Told, alpha: Tensor, weights: Tensor, dimensions: Tensor | None = None
    ) -> None:
        self.model, self.conditions = model, conditions
        self.alpha, self.weights, self.dimensions = alpha, weights, dimensions

    @classmethod
    def of(cls, bound: BoundPlan, conditions: Told, x: Tensor) -> Subspace:
        """Return that of a plan, for states like x, [batch, D]."""
        norms = {row.langevin.norm for row in bound.plan.rows if row.langevin is not None}
        dimensions = x.new_zeros(len(x)) if norms & {"expected", "tutorial"} else None
        alpha, weights = (x.new_tensor(v) for v in places(bound))
        return cls(bound.model, conditions, alpha, weights, dimensions)

    def load(self) -> None:
        """Take notice of new conditions."""
        if self.dimensions is not None:
            n, device = len(self.dimensions), self.dimensions.device
            self.dimensions.copy_(dimensions(self.model, self.conditions.first, n, device))

    def state(self, x: Tensor, rows: Tensor) -> Tensor:
        """Return what ``rows``, [1] or [batch], left, on the subspace, [batch, D]."""
        return onto(self.model, x, self.conditions.first, self.alpha.index_select(0, rows))

    def estimate(self, x0: Tensor) -> Tensor:
        """Return an estimate of clean data on the subspace, [batch, D]."""
        return onto(self.model, x0, self.conditions.first)

    def outputs(self, F: Tensor, F2: Tensor | None, rows: Tensor) -> tuple[Tensor, Tensor | None]:
        """Return the outputs that ``rows`` read on the subspace of what they predict, [batch, D], in the state's dtype.

        Whatever a network says of what is not there, NaN of an empty attention too, ends here.
        """
        (w, w2), cond, dtype = self.weights.index_select(1, rows), self.conditions.first, self.alpha.dtype
        F = onto(self.model, F.to(dtype), cond, w)
        return F, None if F2 is None else onto(self.model, F2.to(dtype), cond, w2)

    def langevin(
        self, x: Tensor, F: Any, table: Tensor, idx: Tensor, noise: Noise, scratch: Tensor, *args: Any, **second: Any
    ) -> None:
        """Do what ``langevin_ref`` does with the norms of the subspace: of P z and the projected score, d for D."""
        on, d = _ProjectedNoise(noise, self.model, self.conditions.first), self.dimensions
        langevin_ref(x, F, table, idx, on, scratch, *args, **second, dimensions=d)
        scratch.nan_to_num_(0.0, math.inf, -math.inf)  # 0 / 0 of a sample that has no dimension


@dataclass(frozen=True)
class _ProjectedNoise:
    """Noise of the subspace, P z."""

    noise: Noise
    model: Projected
    cond: Any

    def normal(self, draw: Tensor, d: int, dtype: torch.dtype) -> Tensor:
        return onto(self.model, self.noise.normal(draw, d, dtype), self.cond, 0.0)


def check_subspace(model: ScoreModel, request: Request, schedule: Schedule, start: float | None = None) -> None:
    """Check that a model's projection is one, and that what samples start from and what is known lie in its subspace.

    Args:
        start: time of ``schedule`` at which ``init`` is the state; None if it is clean data.

    Raises:
        ValueError: it is no orthogonal projection, sees other samples or does not fit the conditions; ``init`` lies off
            the subspace; or known data do, or the projection would move them for the sake of the rest.
    """
    if model.projection is None or not len(request):
        return
    few = request.part(slice(0, LOOKED_AT))
    _check_projection(model, few)
    if request.init is not None:
        check_inside(model, "init", request.init, request, 1.0 if start is None else float(schedule.alpha(start)))
    if request.known is not None and request.mask is not None:
        _check_known(model, request, request.known, request.mask)


def check_inside(model: ScoreModel, name: str, x: Tensor, request: Request, alpha: float) -> None:
    """Raise ValueError for samples [n, D] off the subspace."""
    if model.projection is None or not len(x):
        return
    x = x if x.is_floating_point() else x.float()
    off = (onto(model, x, request.cond, alpha) - x).abs()
    size = x.abs().amax(1).clamp_min(1.0)
    bad = off.amax(1) > max(OFF, 16.0 * torch.finfo(x.dtype).eps) * size
    if not bool(bad.any()):
        return
    worst = int(off.amax(1).argmax())
    element = tuple(int(k) for k in torch.unravel_index(off[worst].argmax(), model.shape))
    given = "cond" if alpha == 1.0 else f"cond, {alpha:.6g}"
    raise ValueError(
        f"{name} lies off the subspace of {type(model.projection).__name__} for {int(bad.sum())} of {len(x)} samples, "
        f"by {float(off[worst].max()):.3g} at most: that of id {int(request.ids[worst])} at {element}. "
        f"Give {name} = projection.apply({name}, {given})"
    )


def _check_projection(model: ScoreModel, few: Request) -> None:
    d, cond = math.prod(model.shape), few.cond
    z, w = (few.key.normal(k, d, torch.float64) for k in range(2))
    first, other = onto(model, z, cond, 0.0), onto(model, w, cond, 0.0)
    tolerance = OFF * math.sqrt(d)  # a matrix of one's own may be float32
    alone = onto(model, z[:1], few.part(slice(0, 1)).cond, 0.0)
    if not float((alone - first[:1]).abs().max()) < tolerance:
        raise ValueError(f"projection: {model.projection} sees other samples; each must be projected alone")
    twice = float((onto(model, first, cond, 0.0) - first).abs().max())
    skew = float(((first * w).sum(1) - (z * other).sum(1)).abs().max())
    if not max(twice, skew) < tolerance:
        raise ValueError(
            f"projection: {model.projection} is no orthogonal projection: P P z differs from P z by {twice:.3g}, and "
            f"P z . w from z . P w by {skew:.3g}; of an Intersection the parts must commute"
        )


def _check_known(model: ScoreModel, request: Request, known: Tensor, mask: Tensor) -> None:
    name, z = type(model.projection).__name__, request.key.normal(0, known.shape[1])
    # P commutes with the mask where it makes nothing unknown of the known, and nothing known of the unknown.
    spilled = onto(model, torch.where(mask, z, 0.0), request.cond, 0.0).masked_fill(mask, 0.0)
    if float(spilled.abs().max()) > OFF:
        raise ValueError(
            f"known: {name} moves known data for the sake of the unknown, so that they would not stay; give as known "
            "all that it binds together or nothing, or steer by a guide: fastscore.DPS, fastscore.PiGDM"
        )
    off = torch.where(mask, onto(model, known, request.cond) - known, 0.0).abs()
    if bool((off.amax(1) > OFF * known.abs().amax(1).clamp_min(1.0)).any()):
        raise ValueError(
            f"known lies off the subspace of {name} by {float(off.max()):.3g} at most; give what "
            "projection.apply(y, cond) makes of the whole sample"
        )
