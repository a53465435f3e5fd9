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

import torch
from torch import Tensor

from fastscore.engine.loop import Loop
from fastscore.engine.selfcheck import trusted
from fastscore.errors import NonFiniteError
from fastscore.model.score import ScoreModel
from fastscore.ops.noise import NoiseKey
from fastscore.plan.passes import validate
from fastscore.plan.rows import Plan, Row
from fastscore.process.continuous import EDM
from fastscore.solvers import AnnealedLangevin

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
    batch: int = 1024,
    device: torch.device | str = "cpu",
    dtype: torch.dtype = torch.float32,
    backend: str = "auto",
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
        batch: chains that run together. Both functions always see that many (the tail is padded).
        device, dtype, backend: as for Sampler.

    Raises:
        ValueError: an argument outside its range.
        NonFiniteError: a chain left the numbers, or MALA started where p is zero.
    """
    for name, value, good in (
        ("step", step, 0.0 < step < math.inf),
        ("spread", spread, 0.0 <= spread < math.inf),
        ("steps", steps, 1 <= steps < 1 << 24),
        ("batch", batch, batch >= 1),
        ("method", method, method in METHODS),
    ):
        if not good:
            raise ValueError(
                f"mcmc: {name} = {value!r}; step must be positive, spread at least 0, steps and batch at least 1, "
                f"steps below {1 << 24}, method {' or '.join(METHODS)}"
            )
    device = torch.device(device)
    key = NoiseKey.of(seed, ids, device)
    n = len(key.ids)
    if start.ndim < 2 or len(start) not in (1, n):
        raise ValueError(f"mcmc: start {tuple(start.shape)} must be [1, *shape] or [{n}, *shape], one state an id")
    start = start.to(device, dtype).expand(n, *start.shape[1:])
    ops = trusted(backend, device, dtype)
    if log_density is None and (score is None or method == "mala"):
        raise ValueError("mcmc: MALA, or ULA without a score, needs log_density; a score alone takes method='ula'")
    if score is None:
        assert log_density is not None
        score = _gradient(log_density)
    model = ScoreModel(lambda x, *_: score(x), tuple(start.shape[1:]), EDM())
    loop = Loop(_plan(step, steps, spread), model, min(batch, max(n, 1)), device, dtype, ops)
    x, acceptance = torch.empty_like(start, memory_format=torch.contiguous_format), start.new_empty(n)
    for first in range(0, n, loop.batch):
        part = slice(first, min(first + loop.batch, n))
        loop.load(key.seed, key.ids[part], None)
        count = part.stop - part.start
        energy = log_density if method == "mala" else None
        ends, taken = _chain(loop, energy, start[part].flatten(1), step)
        bad = ~(torch.isfinite(ends) & torch.isfinite(taken)[:, None]).all(1)[:count]
        if bool(bad.any()):
            raise NonFiniteError(
                f"mcmc: {int(bad.sum())} of {count} chains are NaN or Inf, or started where the density is zero, first "
                f"id {int(key.ids[part][bad][0])}; use a smaller step than {step:g}, or another start"
            )
        x[part], acceptance[part] = ends[:count].view(count, *model.shape), taken[:count]
    return Chains(x, acceptance)


def _plan(step: float, steps: int, spread: float) -> Plan:
    """Return the rows of a chain: the spread of its start, then proposals made of a score that is handed in."""
    first = Row(1.0, 1.0, a=1.0, b=0.0, c=spread, evaluate=False, p=0.0, q=0.0, draw=0)
    proposal = replace(AnnealedLangevin().row(1.0, step), evaluate=False, p=0.0, q=1.0)
    return validate(Plan(EDM(), (first, *(replace(proposal, draw=1 + k) for k in range(steps)))))


@torch.no_grad()
def _chain(
    loop: Loop, log_density: Callable[[Tensor], Tensor] | None, start: Tensor, step: float
) -> tuple[Tensor, Tensor]:
    """Run the loaded micro-batch; return the last states [batch, D] and the share of proposals taken [batch].

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
    loop.x[: len(start)].copy_(start)
    loop.x[len(start) :].copy_(start[-1:].expand(loop.batch - len(start), -1))
    loop.advance(loop.kinds[0], (None, None))
    x = loop.x.clone()
    s, p = score(x), level(x)
    taken = torch.zeros(loop.batch, dtype=torch.float64, device=x.device)
    for k, kind in enumerate(loop.kinds[1:], 1):
        loop.advance(kind, (s, None))  # loop.x is the proposal
        s_y = score(loop.x)
        p_y = level(loop.x)
        if p is None or p_y is None:
            s, taken = s_y, taken + 1.0
            continue
        ratio = p_y - p - distance(loop.x, x, s_y) + distance(x, loop.x, s)
        u = loop.key.uniform(ACCEPT_DRAW + k, 1)[:, 0].to(torch.float64)
        accept = u.log() <= ratio  # no for NaN
        loop.x.copy_(torch.where(accept[:, None], loop.x, x))
        x, s = loop.x.clone(), torch.where(accept[:, None], s_y, s)
        p, taken = torch.where(accept, p_y, p), taken + accept
    if p is not None:
        taken = taken + 0.0 * p  # NaN where the density never was positive
    return loop.x.clone(), taken.to(x.dtype) / (len(loop.kinds) - 1)


def _gradient(log_density: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
    def score(x: Tensor) -> Tensor:
        with torch.enable_grad():
            y = x.detach().requires_grad_(True)
            return torch.autograd.grad(log_density(y).sum(), y)[0]

    return score
