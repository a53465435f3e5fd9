r"""Langevin sampling of a fixed density, with or without Metropolis' correction.

    y = x + h s(x) + sqrt(2 h) z,   s = grad ln p

ULA takes every proposal y and so draws from a density that is off by O(h). MALA takes it with probability

    min(1, p(y) q(x | y) / (p(x) q(y | x))),   q(y | x) = N(x + h s(x), 2 h I)

and draws from p at any h. Source: Roberts & Tweedie 1996. Annealed Langevin dynamics is a plan: see ``presets``.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from fastscore.engine.loop import Loop
from fastscore.engine.request import Request, bad_samples, micro_batches
from fastscore.engine.selfcheck import trusted
from fastscore.engine.turn import Turn
from fastscore.errors import NonFiniteError, typed
from fastscore.execution import Execution, ExecutionFields
from fastscore.guidance.mixture import BoundPlan
from fastscore.model.condition_shapes import each, null_label
from fastscore.model.conditions import Given, condition_of, constant
from fastscore.model.score import ScoreModel, evaluate, one_step_only
from fastscore.network.surroundings import undisturbed
from fastscore.ops.noise import NoiseKey
from fastscore.output.log import Journal
from fastscore.output.progress import Progress
from fastscore.plan.passes import fold, validate
from fastscore.plan.rows import Plan, Row
from fastscore.process.continuous import EDM
from fastscore.process.parametrization import Parametrization
from fastscore.solvers import AnnealedLangevin

if TYPE_CHECKING:
    from typing_extensions import Unpack

Function = Callable[[Tensor], Tensor]
Tick = Callable[[int, Tensor], object]
METHODS = ("ula", "mala")
ACCEPT_DRAW = 1 << 31  # plus the number of the step: the uniform that accepts; draws of plans stay below 2^24


@dataclass(frozen=True)
class Chains:
    """Independent chains: their ends, and the states on the way that were to be kept.

    Attributes:
        x: last states, [n, *shape].
        acceptance: share of each chain's proposals that was taken, [n]; 1 for ULA.
        states: the kept states of each chain in order, [n, K, *shape]; K = 0 without ``thin``.
    """

    x: Tensor
    acceptance: Tensor
    states: Tensor


@typed
def run(
    log_density: Callable[[Tensor], Tensor] | None,
    start: Tensor,
    step: float,
    steps: int,
    ids: Sequence[int],
    seed: int = 0,
    *,
    score: Callable[[Tensor], Tensor] | None = None,
    spread: float = 0.0,
    method: str = "mala",
    burn_in: int = 0,
    thin: int | None = None,
    progress: bool = False,
    log: Any = None,
    execution: Execution | None = None,
    **fields: Unpack[ExecutionFields],
) -> Chains:
    """Run one chain for each id; a chain is a pure function of (density, start, step, steps, method, seed, id).

    Draw 0 spreads the start, draw k is the z of step k = 1, 2, ..; the uniform that accepts step k is
    element 0 of draw 2^31 + k.

    Args:
        log_density: ln p up to a constant, [N, *shape] -> [N], each chain's of its own state; None of ULA with a score.
        start: first states, [n, *shape], or [1, *shape] for all chains.
        step: h > 0.
        steps: of each chain, at least 1.
        score: grad ln p, [N, *shape] -> like it; differentiates ``log_density`` if left out.
        spread: adds spread z to the start, at least 0.
        method: "mala" or "ula".
        burn_in, thin: keep, in memory, the states after steps burn_in + thin, burn_in + 2 thin, ..; none without thin.
        progress: show a progress bar. log: has log(dict, step=), or is a Log; see output/README.md.
        execution, fields: as for Sampler; batch, 1024 if left out, is how many chains run together. Both functions
            always see that many (the tail is padded).

    Raises:
        ValueError: an argument outside its range; a log-density or score of another shape, or one whose value for a
            chain changes with the states of the others.
        NonFiniteError: a chain left the numbers, MALA started where p is zero, or the score is NaN where p is not.
    """
    for name, value, valid, range_ in (
        ("step", step, 0.0 < step < math.inf, "positive"),
        ("spread", spread, 0.0 <= spread < math.inf, "at least 0"),
        ("steps", steps, 1 <= steps < 1 << 24, f"at least 1 and below {1 << 24}"),
        ("method", method, method in METHODS, " or ".join(METHODS)),
        ("burn_in", burn_in, 0 <= burn_in < steps, f"at least 0 and below steps = {steps}"),
        ("thin", thin, thin is None or 1 <= thin <= steps - burn_in, "from 1 to steps - burn_in, or None"),
    ):
        if not valid:
            raise ValueError(f"mcmc: {name} = {value!r} must be {range_}")
    journal = Journal.of(log)
    kept = range(burn_in + thin, steps + 1, thin) if thin else range(0)
    execution = Execution.of(execution or Execution(batch=1024), **fields).on(log_density, score)
    key = NoiseKey.of(seed, ids, execution.place)
    n = len(key.ids)
    constant(start=start)
    if start.ndim < 2 or len(start) not in (1, n):
        raise ValueError(f"mcmc: start {tuple(start.shape)} must be [1, *shape] or [{n}, *shape], one state an id")
    start = start.to(execution.place, execution.dtype).expand(n, *start.shape[1:])
    if log_density is None and (score is None or method == "mala"):
        raise ValueError("mcmc: MALA, or ULA without a score, needs log_density; a score alone takes method='ula'")
    if score is None:
        assert log_density is not None
        score = _gradient(log_density)

    def net(x: Tensor, c_noise: Tensor, cond: Tensor | None) -> Tensor:
        return score(x)

    model = ScoreModel(net, tuple(start.shape[1:]), EDM(), Parametrization("score"))
    execution = replace(execution, batch=min(execution.batch, max(n, 1)))
    with undisturbed(execution.dtype, execution.place):
        loop = Loop(BoundPlan(_plan(step, steps, spread), model), model, execution, trusted(execution))
        x = torch.empty(start.shape, dtype=start.dtype, device=start.device)
        acceptance, states = x.new_empty(n), x.new_empty(n, len(kept), *model.shape)
    bar = Progress(progress, "steps", watch=journal).begin(steps * -(-n // execution.batch))

    def compute(at: slice, part: Request) -> Tensor:
        assert part.init is not None
        loop.load(part)
        if at.start == 0:
            _check(log_density, score, part.init.to(start.dtype).view(-1, *model.shape))

        def tick(k: int, taken: Tensor) -> None:
            if journal is not None:
                journal.details = lambda: {"sample/acceptance": float(taken[: part.valid].mean()) / k}
            bar.advance(1)

        return _chain(loop, log_density if method == "mala" else None, part.init, step, kept, tick)

    def not_finite(at: slice, part: Request, ends: Tensor) -> None:
        raise NonFiniteError(
            f"mcmc: {bad_samples(ends, part.ids)}, or started where the density is zero, or met a score that is NaN; "
            f"use a smaller step than {step:g}, or another start, and try the score by itself"
        )

    turn, request = Turn(log_density, score, execution=execution), Request(key, init=start.flatten(1))
    with bar:
        for at, ends in micro_batches(request, execution.batch, turn, compute, not_finite):
            acceptance[at], path = ends[:, -1], ends[:, :-1].view(-1, len(kept) + 1, *model.shape)
            states[at], x[at] = path[:, :-1], path[:, -1]
    return Chains(x, acceptance, states)


@typed
def level_score(model: ScoreModel, t: float | None = None, label: int | None = None, cond: Given = None) -> Function:
    """Return grad ln p_t of a network at one noise level: a score for ``run``, which then needs method="ula".

    Args:
        model: the score model.
        t: time of the model's schedule, above the data's; t_end, the smallest noise, if left out.
        label, cond: of every chain, [*cond_shape]; the model's null condition if left out.

    Raises:
        ValueError: a singular time, a label or condition that the model does not take, or a projection.
    """
    if model.two_times:
        raise ValueError(one_step_only("a chain wants the score at one"))
    if model.projection is not None:
        raise ValueError("projection: the noise of a chain leaves the subspace; use a Sampler with Langevin correctors")
    t = model.schedule.t_end if t is None else t
    if not model.schedule.t_clean < t <= model.schedule.T:
        raise ValueError(f"t = {t} must lie above {model.schedule.t_clean} (the data) and up to {model.schedule.T}")
    if label is not None and not 0 <= label < model.classes:
        raise ValueError(f"label = {label} must be one of the model's {model.classes} classes")
    constant(cond=cond)
    if model.classes and label is None and null_label(model) is None:
        raise ValueError(f"label is missing: this model has {model.classes} classes and no null class")
    told = condition_of(model, NoiseKey.of(0, [0], torch.device("cpu")), label, cond)
    plan = Plan(model.schedule, (Row(t, t, 1.0, 1.0, m="score"),))
    row = validate(fold(plan, model.schedule, model.parametrization)).rows[0]

    def score(x: Tensor) -> Tensor:
        lines = each(lambda v: v.to(x.device).expand(len(x), *v.shape[1:]), told)
        y = x if model.transform is None else model.transform.inverse(x)
        F = evaluate(model, row.c_in * y, x.new_full((1,), row.c_noise), lines)
        s = row.p * y + row.q * F.view_as(y)
        return s if model.transform is None else s / x.new_tensor(model.transform.scale)

    return score


def _plan(step: float, steps: int, spread: float) -> Plan:
    """Return the rows of a chain: the spread of its start, then proposals made of a score that is handed in."""
    first = Row(1.0, 1.0, a=1.0, b=0.0, c=spread, evaluate=False, draw=0)
    proposal = replace(AnnealedLangevin().row(1.0, step), evaluate=False)
    return Plan(EDM(), (first, *(replace(proposal, draw=1 + k) for k in range(steps))))


def _chain(loop: Loop, log_density: Function | None, start: Tensor, step: float, kept: range, tick: Tick) -> Tensor:
    """Run the loaded micro-batch; return kept states, last states and share of proposals taken, [batch, (K + 1) D + 1].

    Without ``log_density`` every proposal is taken. ``tick`` is told each step's number, and proposals taken by then.
    """
    path: list[Tensor] = []
    shape = (loop.batch, *loop.model.shape)

    def score(x: Tensor) -> Tensor:
        return loop.model.net(x.view(shape), x, None).reshape(loop.x.shape)

    def level(x: Tensor) -> Tensor | None:
        return None if log_density is None else log_density(x.view(shape)).to(torch.float64)

    def distance(x: Tensor, y: Tensor, s: Tensor) -> Tensor:
        """-ln q(y | x) up to a constant."""
        return (y.double() - x.double() - step * s.double()).square().sum(1) / (4.0 * step)

    loop.reset()
    loop.x.copy_(start)
    loop.advance(loop.kinds[0], (None, None))
    x = loop.x.clone()
    s, p = score(x), level(x)
    acceptances = torch.zeros(loop.batch, dtype=torch.float64, device=x.device)
    lost = torch.zeros_like(acceptances)  # NaN once the score is, where the density is not zero

    def lose(s: Tensor, p: Tensor) -> Tensor:
        return lost.masked_fill(p.isfinite() & ~s.isfinite().all(1), math.nan)

    lost = lost if p is None else lose(s, p)
    for k, kind in enumerate(loop.kinds[1:], 1):
        loop.advance(kind, (s, None))  # loop.x is the proposal
        s_y = score(loop.x)
        p_y = level(loop.x)
        if p is None or p_y is None:
            s, acceptances = s_y, acceptances + 1.0
        else:
            lost = lose(s_y, p_y)
            ratio = p_y - p - distance(loop.x, x, s_y) + distance(x, loop.x, s)
            u = loop.key.uniform(ACCEPT_DRAW + k, 1)[:, 0].to(torch.float64)
            accept = u.log() <= ratio  # no for NaN
            loop.x.copy_(torch.where(accept[:, None], loop.x, x))
            x, s = loop.x.clone(), torch.where(accept[:, None], s_y, s)
            p, acceptances = torch.where(accept, p_y, p), acceptances + accept
        if k in kept:
            path.append(loop.x.clone())
        tick(k, acceptances)
    if p is not None:
        acceptances = acceptances + lost + 0.0 * p  # NaN where the density never was positive
    return torch.cat([*path, loop.x, (acceptances.to(x.dtype) / (len(loop.kinds) - 1))[:, None]], 1)


def _check(log_density: Function | None, score: Function, x: Tensor) -> None:
    """Raise ValueError unless both functions give each of the states [N, *shape] a value of its own."""
    n = len(x)
    number = torch.arange(n * x[0].numel(), dtype=x.dtype, device=x.device).view_as(x)
    elsewhere = x + 0.1 * torch.sin(number + 1.0) * (1.0 + x.abs())
    elsewhere[0] = x[0]  # the others move, the first stays
    tolerance = torch.finfo(x.dtype).eps ** 0.5
    for name, function, shape in (("log_density", log_density, (n,)), ("score", score, tuple(x.shape))):
        if function is None:
            continue
        values, others = function(x.clone()), function(elsewhere.clone())
        got = tuple(values.shape) if isinstance(values, Tensor) else type(values).__name__  # pyright: ignore
        if got != shape:
            raise ValueError(f"mcmc: {name} returned {got} for {n} chains; it must be {shape}, one a chain and no sum")
        if not torch.allclose(values[0], others[0], rtol=tolerance, atol=tolerance, equal_nan=True):
            change = float((values[0] - others[0]).abs().max())
            raise ValueError(
                f"mcmc: {name} of the first chain changed by {change:.3g} when only the others had moved; it must look "
                "at each state alone, and not be random (a sum or a mean over chains, a transposed result, batch "
                "statistics)"
            )


def _gradient(log_density: Function) -> Function:
    def score(x: Tensor) -> Tensor:
        with torch.enable_grad():
            y = x.detach().requires_grad_(True)
            p = log_density(y)
            if not p.requires_grad:
                raise ValueError("mcmc: log_density cannot be differentiated; give its gradient as score=")
            return torch.autograd.grad(p.sum(), y)[0]

    return score
