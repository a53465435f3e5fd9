"""Draws inside a prior's support, from one posterior or many: what sbi's ``sample`` and ``sample_batched`` do."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from fastscore.adapters.sbi.model import estimator_of, from_sbi, observations
from fastscore.errors import typed
from fastscore.sampler import Sampler

SCARCE = 1000  # draws for each one inside the support, after which there is said to be none
SHIFT = 32  # of the number of an observation above that of a draw, in an id


@typed
def sample(
    posterior: Any,
    shape: Sequence[int],
    x: Tensor | None = None,
    *,
    iid: str | None = None,
    iid_params: Mapping[str, Any] | None = None,
    solver: Any = None,
    steps: int | None = None,
    seed: int = 0,
    batch: int = 2000,
    reject_outside_prior: bool = True,
    **settings: Any,
) -> Tensor:
    """Draw from a posterior of sbi inside its prior's support: ``posterior.sample`` and ``sample_batched``.

    Draw j of observation b has the id 2^32 b + j; those outside the support are left out, so that n samples are the
    first n of more.

    Args:
        shape: of the samples, (10_000,), say.
        x: one observation [*x_shape], the posterior's default one if left out; or [B, *x_shape]: with ``iid`` of the
            same parameters, without of B posteriors.
        iid, iid_params: as for ``from_sbi``.
        solver, steps: of the Sampler; SA-Solver in 25 steps if left out, with ``iid`` Euler-Maruyama in 100, since
            composed scores are regularised, not smooth, and higher orders may diverge. Both draw noise on the way: what
            sbi's base misses of this posterior at T is forgotten, and an ODE would carry it to the end.
        settings: of the Sampler: ``grid`` in place of steps, ``network``, ..
        batch: micro-batch.
        reject_outside_prior: keep only draws inside the support.

    Returns: [*shape, *theta_shape]; of B posteriors [*shape, B, *theta_shape].

    Raises:
        ValueError: fewer than one draw in 1000 is inside; whatever ``from_sbi`` and Sampler refuse.
    """
    estimator = estimator_of(posterior)
    if x is None:
        x = posterior.default_x
        if x is None:
            raise ValueError("x is missing: give an observation, or posterior.set_default_x(x)")
    observed = observations(estimator, x)
    several = x.ndim > len(estimator.condition_shape) and iid is None
    model = from_sbi(posterior) if several else from_sbi(posterior, observed, iid=iid, iid_params=iid_params)
    if steps is None and settings.get("grid") is None:
        steps = 25 if iid is None else 100
    sampler = Sampler(model, solver=solver or ("sa" if iid is None else "em"), steps=steps, batch=batch, **settings)
    n, many = math.prod(shape), len(observed) if several else 1
    kept: list[list[Tensor]] = [[] for _ in range(many)]
    drawn, found = [0] * many, [0] * many
    while min(found) < n:
        rate = max(sum(found), 1) / max(sum(drawn), 1)
        if sum(drawn) >= SCARCE * max(sum(found), 10):
            raise ValueError(
                f"{sum(found)} of {sum(drawn):,} draws lie inside the prior's support: this network's posterior does "
                "not; look at draws with reject_outside_prior=False"
            )
        room = max(batch, 4 * n)
        more = [min(math.ceil(1.05 * (n - k) / rate), room) if drawn[b] else n - k for b, k in enumerate(found)]
        ids = torch.cat([torch.arange(drawn[b], drawn[b] + k) + (b << SHIFT) for b, k in enumerate(more)])
        whose = torch.repeat_interleave(torch.arange(many), torch.tensor(more)).to(observed.device)
        theta = sampler.run(ids, seed=seed, **({"cond": observed[whose]} if several else {}))
        inside = supported(posterior.prior, theta) if reject_outside_prior else torch.ones_like(whose, dtype=torch.bool)
        for b in range(many):
            good = theta[(whose == b) & inside]
            kept[b].append(good)
            drawn[b], found[b] = drawn[b] + more[b], found[b] + len(good)
    columns = [torch.cat(parts)[:n] for parts in kept]
    event = model.shape
    return (torch.stack(columns, 1).reshape(*shape, many, *event)) if several else columns[0].reshape(*shape, *event)


def supported(prior: Any, theta: Tensor) -> Tensor:
    """Return which parameters, [n], the prior allows: by its support, or where it has none by its log-density."""
    try:
        support = getattr(prior, "support", None)
        inside = None if support is None else support.check(theta)
    except NotImplementedError:  # what torch's distributions and constraints say that do not know theirs
        inside = None
    inside = torch.isfinite(prior.log_prob(theta)) if inside is None else inside
    return inside.flatten(1).all(1) if inside.ndim > 1 else inside
