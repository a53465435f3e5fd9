r"""The probability-flow ODE as a normalizing flow: encode, decode, and the log-likelihood of data.

From the data's end to the prior's the ODE dx/dphi = v on the unit circle (see solvers/adaptive.py) carries a density
along: with x = L x^ for a schedule of length L = hypot(alpha, sigma) in D dimensions,

    ln p(x) = ln N(x^_T; m, s^2) + int div v dphi - D ln L_0,     m = 0, s = prior_std / L_T or by the model's base.

p is the model's density of x at the end of the span, t_end, whose noise is part of it. Of a model with a projection it
is the density on the subspace (model/projection.py), whose dimensions D, of each sample its own, then stand above.

All three are differentiable in x (log-likelihood and latent) or z (decode), once: see engine/adaptive/adjoint.py.
"""

# pyright: reportUnnecessaryIsInstance=false, reportUnnecessaryComparison=false
# What users pass is checked whatever its annotation says.

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from fastscore.engine.adaptive.control import StepRule
from fastscore.engine.adaptive.cost import Cost
from fastscore.engine.adaptive.divergence import PROBES, field_of
from fastscore.engine.adaptive.levels import NoiseLevels, angle
from fastscore.engine.adaptive.transport import Transport
from fastscore.engine.base import columns, prior_at
from fastscore.engine.request import Request
from fastscore.engine.subspace import check_inside, check_subspace
from fastscore.engine.turn import Turn, in_turn, made
from fastscore.engine.units import inside, log_determinant, samples_of
from fastscore.errors import short, typed
from fastscore.execution import Execution, ExecutionFields
from fastscore.model.conditions import Given, Labels, finite
from fastscore.model.projection import dimensions, onto
from fastscore.model.score import ScoreModel, one_step_only
from fastscore.network.prepare import prepare
from fastscore.network.surroundings import undisturbed
from fastscore.ops.noise import LEVEL_DRAW, NoiseKey
from fastscore.output.progress import Told
from fastscore.process.grid import Grid, Span, Times
from fastscore.process.schedule import Schedule, lam
from fastscore.solvers import RK2, RK4, BogackiShampine, Dopri5, Euler, Heun
from fastscore.solvers.adaptive_steps import RungeKutta
from fastscore.solvers.grids import within
from fastscore.solvers.likelihood_grids import likelihood_grid
from fastscore.solvers.names import named

if TYPE_CHECKING:
    from typing_extensions import Unpack

FlowSolver = Dopri5 | BogackiShampine | Euler | Heun | RK2 | RK4
EXACT_DIMENSIONS = 16  # up to which "auto" takes the exact divergence


@dataclass(frozen=True)
class LogLikelihood:
    """The log-likelihood of n samples of D dimensions.

    Attributes:
        nats: ln p, float64 [n]; the mean over the probes.
        stderr: standard error of ``nats`` over the probes, float64 [n]; 0 if exact, NaN for a single probe.
        latent: x_T, [n, *shape]; of a model with a transform in the units of the data, as every state is.
        cost: what it cost.
        dimensions: D of each sample, int64 [n]; None for all the numbers of a sample.
    """

    nats: Tensor
    stderr: Tensor
    latent: Tensor
    cost: Cost
    dimensions: Tensor | None = None

    @typed
    def bits_per_dim(self, step: float = 1.0) -> Tensor:
        """Return -log2 of the probability of a cell ``step`` wide, per dimension, float64 [n].

        ``step`` is the distance of two levels of the data, in units of x: 2/256 where 256 levels fill -1 .. 1, which
        is the offset of 7 bits, 1/256 (8 bits) where they fill 0 .. 1, 1/127.5 of our own images, 1 of a density.
        """
        if not 0.0 < step < math.inf:
            raise ValueError(f"step = {step} must be positive")
        d = math.prod(self.latent.shape[1:]) if self.dimensions is None else self.dimensions.double()
        return -self.nats / (d * math.log(2.0)) - math.log2(step)


class ProbabilityFlow:
    """A score model as a normalizing flow. A pure function of (settings, seed, id), like a Sampler.

        flow = ProbabilityFlow(model)
        result = flow.log_likelihood(x)
        x_again = flow.decode(flow.encode(x))
        score = torch.autograd.grad(flow.log_likelihood(x.requires_grad_()).nats.sum(), x)[0]

    Where x or z requires a gradient, the result has that of the map as it was computed, its accepted steps held fixed;
    parameters, labels and conditions get none. Backward takes each micro-batch once more through the network as it is,
    compiled or not, and keeps a state of it for every evaluation of its accepted steps (6 a step of Dopri5) and the
    graph of one: of a likelihood with the divergence, whose gradient needs the network's second derivatives.

    Args:
        model: the score model.
        schedule: whose prior and state are meant; the model's own if left out.
        solver: Dopri5 or BogackiShampine, adaptive; or Euler, Heun, RK2 or RK4, which step in the angle phi.
        grid, steps: a Span for an adaptive solver; knots to sigma > 0 for the others, or as for Sampler, in 100 steps.
            Left out: from T to t = 1e-5, or to t_end where noise levels are discrete or bounded below.
        execution, fields: as for Sampler; the network is differentiated, so it runs as it is or through torch.compile.

    Raises:
        ValueError: settings that do not fit each other.
    """

    @typed
    def __init__(
        self,
        model: ScoreModel,
        *,
        schedule: Schedule | None = None,
        solver: FlowSolver | str | None = None,
        grid: Grid | Times | Span | str | None = None,
        steps: int | None = None,
        execution: Execution | None = None,
        **fields: Unpack[ExecutionFields],
    ) -> None:
        asked = Execution.of(execution, **fields)
        self.settings = dict(schedule=schedule, solver=solver, grid=grid, steps=steps, execution=asked)
        if model.two_times:
            raise ValueError(one_step_only("a likelihood or an encoding integrates the flow at each single time"))
        self.model, (self.execution, self.net_dtype) = model, asked.around(*model.networks)
        if self.execution.ahead_of_time or self.execution.graph == "loop":
            raise ValueError(
                f"network = {self.execution.network!r}, graph = {self.execution.graph!r}: a likelihood differentiates "
                "the network, in steps of its own; use network='own' or 'compile', and graph='auto' or 'step'"
            )
        self.schedule = schedule if schedule is not None else model.schedule
        chosen = named(solver) if isinstance(solver, str) else solver if solver is not None else Dopri5()
        if not isinstance(chosen, FlowSolver):
            raise ValueError(f"solver = {short(chosen)} must be Dopri5, BogackiShampine, Euler, Heun, RK2 or RK4")
        self.solver, adaptive = chosen, isinstance(chosen, Dopri5 | BogackiShampine)
        if isinstance(grid, str | None):
            grid, steps = likelihood_grid(chosen, self.schedule, steps, grid), None
        if isinstance(grid, Span) != adaptive or steps is not None:
            needs = f"{type(chosen).__name__} needs {'a Span' if adaptive else 'a Grid or Times'} for a grid"
            raise ValueError(f"{needs}, and no steps, not {grid}")
        self.grid = within(grid, self.schedule, model.schedule, model.parametrization)
        knots = self.grid(self.schedule)
        values = lam(self.schedule, knots).tolist()
        if not math.isfinite(values[-1]):
            raise ValueError("a likelihood ends at sigma > 0: give the grid clean=False, or an end")
        self.angles = [angle(v) for v in values]
        (first, last), place = knots[[0, -1]].tolist(), self.execution.place
        with undisturbed(self.execution.dtype, place):
            self.levels = NoiseLevels(model, self.schedule, "v", first, last, place)
        self.alphas = [float(self.schedule.alpha(t)) for t in knots]
        self.lengths = np.hypot(self.alphas, self.schedule.sigma(knots)).tolist()
        self.prior = prior_at(model, self.schedule, first)
        self.turn = Turn(*model.networks, execution=self.execution, gradients=True)
        self.transports: dict[tuple[bool, str | None, int], Transport] = {}

    @cached_property
    def prepared(self) -> ScoreModel:
        """The model as it runs."""
        return prepare(self.model, self.execution.batch, self.execution.device, self.execution.network)

    def release(self) -> None:
        """Free what was made on first use; the next call makes it again."""
        vars(self).pop("prepared", None)
        self.transports.clear()

    def __reduce__(self) -> tuple[Any, ...]:
        return made, (type(self), self.model, self.settings)

    @in_turn
    @typed
    def log_likelihood(
        self,
        x: Tensor,
        *,
        probes: int = 1,
        probe: str = "auto",
        ids: Sequence[int] | None = None,
        seed: int = 0,
        labels: Labels = None,
        cond: Given = None,
        progress: Told = False,
    ) -> LogLikelihood:
        """Return the log-likelihood of data.

        Args:
            x: [n, *shape], in the units that the model was trained on; dequantised if it is discrete.
            probes: estimates of the divergence a sample, each with a probe of its own that stays the same along
                the path; their spread gives the standard error.
            probe: "rademacher", "gaussian", "exact" (D backward passes an evaluation), or "auto": exact up to 16
                dimensions, then rademacher.
            ids: of the samples, 0 .. n-1 if left out; with the seed, 0 .. 2^64-1, they choose the probes.
            labels, cond, progress: as for Sampler.run; its NonFiniteError and StepSizeError, too.

        Raises:
            ValueError: bad shapes, ids, probes or conditions, a network without derivatives, or an x off the subspace.
        """
        width = math.prod(self.model.shape)
        kind = ("exact" if width <= EXACT_DIMENSIONS else "rademacher") if probe == "auto" else probe
        if kind not in PROBES:
            raise ValueError(f"probe = {probe!r} must be auto, {', '.join(PROBES)}")
        if not 1 <= probes <= 1 << 16 or (kind == "exact" and probes != 1):
            raise ValueError(f"probes = {probes} must lie in 1 .. 65536, and be 1 where the divergence is exact")
        x, request = self._request(x, ids, seed, labels, cond, -1)
        zeros = torch.zeros(len(x), probes, dtype=x.dtype, device=x.device)
        y, cost = self._solve(torch.cat([x / self.lengths[-1], zeros], 1), request, progress, True, kind, probes)
        latent = onto(self.model, y[:, :width], request.cond, self.alphas[0] / self.lengths[0])
        count, change = dimensions(self.model, request.cond, len(x), x.device), y[:, width:].double()
        d, (mean, std) = count.double(), columns(self.prior, self.model.shape, change)
        free = onto(self.model, latent.double(), request.cond, 0.0) * self.lengths[0]
        prior = -0.5 * ((free - mean) / std).square().sum(1) - d * std.log().mean()
        prior -= d * math.log(math.sqrt(2.0 * math.pi) * self.lengths[-1] / self.lengths[0])
        spread = d * change.std(1) / math.sqrt(probes) if probes > 1 else torch.full_like(prior, math.nan)
        return LogLikelihood(
            prior + d * change.mean(1) - log_determinant(self.model),
            torch.zeros_like(prior) if kind == "exact" else spread,
            samples_of(latent * self.lengths[0], self.model),
            cost,
            count,
        )

    def encode(self, x: Tensor, *, labels: Labels = None, cond: Given = None, progress: Told = False) -> Tensor:
        """Return the latent x_T of data x, both [n, *shape]."""
        return self._transport(x, labels, cond, progress, up=True)

    def decode(self, z: Tensor, *, labels: Labels = None, cond: Given = None, progress: Told = False) -> Tensor:
        """Return the data x of latents x_T, both [n, *shape]: what ``encode`` undoes."""
        return self._transport(z, labels, cond, progress, up=False)

    @in_turn
    def _transport(self, x: Tensor, labels: Labels, cond: Given, progress: Told, up: bool) -> Tensor:
        before, after = (-1, 0) if up else (0, -1)
        x, request = self._request(x, None, 0, labels, cond, before)
        y, _ = self._solve(x / self.lengths[before], request, progress, up)
        return samples_of(onto(self.model, y * self.lengths[after], request.cond, self.alphas[after]), self.model)

    def _solve(
        self, y: Tensor, request: Request, progress: Told, up: bool, kind: str | None = None, probes: int = 0
    ) -> tuple[Tensor, Cost]:
        """Integrate the states [n, width] from one end to the other."""
        self.turn.look(len(y))
        if (key := (up, kind, probes)) not in self.transports:
            kept = {k: v for k, v in self.transports.items() if k[1] is None}  # one of a divergence at a time
            self.transports = kept | {key: self._transport_of(*key)}
        return self.transports[key](y, request, progress)

    def _transport_of(self, up: bool, kind: str | None, probes: int) -> Transport:
        angles, place = self.angles[::-1] if up else self.angles, self.execution.place
        knots = torch.tensor(angles, dtype=torch.float64, device=place)
        rule = StepRule.of(s) if isinstance(s := self.solver, Dopri5 | BogackiShampine) else StepRule(knots=knots)
        forward, backward = (  # neither holds this flow, which holds them
            partial(field_of, model, self.levels, self.execution, self.net_dtype, kind, probes)
            for model in (self.prepared, self.model)
        )
        return Transport(
            forward(), backward, RungeKutta(self.solver.tableau, place), self.levels, rule, (angles[0], angles[-1]),
            self.execution, self.prepared.networks, self.turn,
        )  # fmt: skip

    def _request(
        self, x: Tensor, ids: Sequence[int] | None, seed: int, labels: Labels, cond: Given, end: int
    ) -> tuple[Tensor, Request]:
        """Return states [n, D] at one end of the span, and the request that they are the lines of."""
        if not isinstance(x, Tensor) or x.shape[1:] != self.model.shape or not x.is_floating_point():
            shape = tuple(x.shape) if isinstance(x, Tensor) else type(x).__name__
            raise ValueError(f"x: {shape} must be a floating-point tensor [n, {', '.join(map(str, self.model.shape))}]")
        place, x = self.execution.place, finite("x", x)
        request = Request.of(self.model, place, range(len(x)) if ids is None else ids, seed, labels=labels, cond=cond)
        if len(request) != len(x):
            raise ValueError(f"ids: {len(request)} ids for {len(x)} samples")
        x = inside(x, self.model.transform).to(place, self.execution.dtype).flatten(1)
        check_subspace(self.model, request, self.schedule)
        check_inside(self.model, "x", x, request, self.alphas[end])
        return onto(self.model, x, request.cond, self.alphas[end]), request


def dequantize(levels: Tensor, key: NoiseKey, step: float, edge: float) -> Tensor:
    """Return edge + step (u + r) with r uniform in (0, 1], a function of seed and id; float32, like ``levels``.

    Args:
        levels: u, integers from 0, [n, ...].
        step: distance of two levels in x.
        edge: lower edge of level 0 in x.

    -1 and 2/256 are score_sde's; fastscore's own images, u / 127.5 - 1, lie in the middle of their cells: 1/127.5 and
    -1 - 0.5/127.5. Source: Theis et al. 2016, section 3.1.
    """
    if levels.is_floating_point():
        raise ValueError(f"dequantize: levels are integers, not {levels.dtype}")
    r = key.uniform(LEVEL_DRAW, levels[0].numel() if len(levels) else 0).reshape(levels.shape)
    return edge + step * (levels.to(torch.float32) + r)
