r"""Langevin sampling of a fixed density, with or without Metropolis' correction.

    y = x + h s(x) + sqrt(2 h) z,   s = grad ln p

ULA takes every proposal y and so draws from a density that is off by O(h). MALA takes it with probability

    min(1, p(y) q(x | y) / (p(x) q(y | x))),   q(y | x) = N(x + h s(x), 2 h I)

and draws from p at any h. Source: Roberts & Tweedie 1996. Annealed Langevin, which follows a sequence of
noise levels, is a plan like any other: see ``presets``.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from fastscore.engine.loop import Loop
from fastscore.engine.request import Request, bad_samples, micro_batches
from fastscore.engine.selfcheck import trusted
from fastscore.engine.turn import Turn
from fastscore.errors import NonFiniteError
from fastscore.execution import Execution, ExecutionFields
from fastscore.guidance.mixture import BoundPlan
from fastscore.model.score import ScoreModel
from fastscore.ops.noise import NoiseKey
from fastscore.plan.rows import Plan, Row
from fastscore.process.continuous import EDM
from fastscore.process.parametrization import Parametrization
from fastscore.solvers import AnnealedLangevin
from fastscore.surroundings import undisturbed

if TYPE_CHECKING:
    from typing_extensions import Unpack

METHODS = ("ula", "mala")
ACCEPT_DRAW = 1 << 31  # plus the number of the step: the uniform that accepts; draws of plans stay below 2^24


@dataclass(frozen=True)
class Chains:
    """The ends of independent chains.

    Attributes:
        x: last states, [n, *shape].
        acceptance: share of each chain's proposals that was taken, [n]; 1 for ULA.
    """

    x: Tensor
    acceptance: Tensor


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
    execution: Execution | None = None,
    **fields: Unpack[ExecutionFields],
) -> Chains:
    """Run one chain for each id; a chain is a pure function of (density, start, step, steps, method, seed, id).

    Draw 0 spreads the start, draw k is the z of step k = 1, 2, ..; the uniform that accepts step k is
    element 0 of draw 2^31 + k.

    Args:
        log_density: ln p up to a constant, [N, *shape] -> [N]. ULA with a score, as of a network, needs none: None.
        start: first states, [n, *shape], or [1, *shape] for all chains.
        step: h > 0.
        steps: of each chain, at least 1.
        score: grad ln p, [N, *shape] -> like it; differentiates ``log_density`` if left out.
        spread: adds spread z to the start, at least 0.
        method: "mala" or "ula".
        execution, fields: as for Sampler; batch, 1024 if left out, is how many chains run together. Both functions
            always see that many (the tail is padded).

    Raises:
        ValueError: an argument outside its range.
        NonFiniteError: a chain left the numbers, or MALA started where p is zero.
    """
    for name, value, valid in (
        ("step", step, 0.0 < step < math.inf),
        ("spread", spread, 0.0 <= spread < math.inf),
        ("steps", steps, 1 <= steps < 1 << 24),
        ("method", method, method in METHODS),
    ):
        if not valid:
            raise ValueError(
                f"mcmc: {name} = {value!r}; step must be positive, spread at least 0, steps at least 1 and "
                f"below {1 << 24}, method {' or '.join(METHODS)}"
            )
    execution = Execution.of(execution or Execution(batch=1024), **fields).on(log_density, score)
    key = NoiseKey.of(seed, ids, execution.place)
    n = len(key.ids)
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
        acceptance = x.new_empty(n)

    def compute(at: slice, part: Request) -> Tensor:
        assert part.init is not None
        loop.load(part)
        return torch.cat(_chain(loop, log_density if method == "mala" else None, part.init, step), 1)

    def not_finite(at: slice, part: Request, ends: Tensor) -> None:
        raise NonFiniteError(
            f"mcmc: {bad_samples(ends, part.ids)}, or started where the density is zero; use a smaller step than "
            f"{step:g}, or another start"
        )

    turn, request = Turn(log_density, score, execution=execution), Request(key, init=start.flatten(1))
    for at, ends in micro_batches(request, execution.batch, turn, compute, not_finite):
        x[at], acceptance[at] = ends[:, :-1].view(-1, *model.shape), ends[:, -1]
    return Chains(x, acceptance)


def _plan(step: float, steps: int, spread: float) -> Plan:
    """Return the rows of a chain: the spread of its start, then proposals made of a score that is handed in."""
    first = Row(1.0, 1.0, a=1.0, b=0.0, c=spread, evaluate=False, draw=0)
    proposal = replace(AnnealedLangevin().row(1.0, step), evaluate=False)
    return Plan(EDM(), (first, *(replace(proposal, draw=1 + k) for k in range(steps))))


def _chain(
    loop: Loop, log_density: Callable[[Tensor], Tensor] | None, start: Tensor, step: float
) -> tuple[Tensor, Tensor]:
    """Run the loaded micro-batch; return the last states [batch, D] and the share of proposals taken [batch, 1].

    Without ``log_density`` every proposal is taken.
    """
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
    for k, kind in enumerate(loop.kinds[1:], 1):
        loop.advance(kind, (s, None))  # loop.x is the proposal
        s_y = score(loop.x)
        p_y = level(loop.x)
        if p is None or p_y is None:
            s, acceptances = s_y, acceptances + 1.0
            continue
        ratio = p_y - p - distance(loop.x, x, s_y) + distance(x, loop.x, s)
        u = loop.key.uniform(ACCEPT_DRAW + k, 1)[:, 0].to(torch.float64)
        accept = u.log() <= ratio  # no for NaN
        loop.x.copy_(torch.where(accept[:, None], loop.x, x))
        x, s = loop.x.clone(), torch.where(accept[:, None], s_y, s)
        p, acceptances = torch.where(accept, p_y, p), acceptances + accept
    if p is not None:
        acceptances = acceptances + 0.0 * p  # NaN where the density never was positive
    return loop.x.clone(), (acceptances.to(x.dtype) / (len(loop.kinds) - 1))[:, None]


def _gradient(log_density: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
    def score(x: Tensor) -> Tensor:
        with torch.enable_grad():
            y = x.detach().requires_grad_(True)
            return torch.autograd.grad(log_density(y).sum(), y)[0]

    return score
