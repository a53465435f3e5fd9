"""A model with a base: samples start from its Gaussian, in every engine, on every grid, and likelihoods know of it."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from fastscore import EDM, VE, VP, Guidance, Parametrization, Picard, ProbabilityFlow, Sampler, ScoreModel, uniform
from fastscore.data.affine import Affine
from fastscore.model.coordinates import Diagonal, whitened
from fastscore.process.beta import LinearBeta
from fastscore.process.schedule import Schedule

MEAN, STD = torch.tensor([30.0, -4.0], dtype=torch.float64), torch.tensor([8.0, 0.5], dtype=torch.float64)
WEAK = VP(LinearBeta(0.01, 6.0))  # a fifth of the data is left at T


def exact(schedule: Schedule, **fields: object) -> ScoreModel:
    """The score of N(MEAN, STD^2), with the base that it has at T."""

    def moments(t: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        alpha, sigma = (torch.as_tensor(f(t.double().numpy()))[:, None] for f in (schedule.alpha, schedule.sigma))
        return alpha, alpha * MEAN, (alpha * STD).square() + sigma.square()

    def score(u: Tensor, t: Tensor, cond: object = None) -> Tensor:
        _, mean, variance = moments(t)
        return ((mean - u) / variance).to(u)

    _, mean, variance = moments(torch.tensor([schedule.T], dtype=torch.float64))
    base = Affine(tuple(mean[0].tolist()), tuple(variance[0].sqrt().tolist()))
    model = ScoreModel(score, (2,), schedule, Parametrization("score", "t", exact=True), base=base)
    return replace(model, **fields)  # pyright: ignore[reportArgumentType]


def close(x: Tensor) -> None:
    n = len(x)
    assert ((x.mean(0) - MEAN).abs() < 4.0 * STD / n**0.5).all(), x.mean(0)
    assert ((x.std(0) / STD - 1.0).abs() < 4.0 / (2.0 * n) ** 0.5 + 2e-3).all(), x.std(0)


@pytest.mark.thirds
@pytest.mark.parametrize("schedule", [WEAK, VE(1e-3, 10.0), EDM(0.002, 10.0)])
def test_wide_shifted_data_come_out(schedule: Schedule) -> None:
    model, settings = exact(schedule), {"batch": 4096, "dtype": torch.float64}
    for solver in ("dpmpp-2m", "dopri5"):
        close(Sampler(model, solver=solver, **settings).run(range(4096)))
    with pytest.warns(UserWarning, match="is not noise alone") if schedule is WEAK else _nothing():
        wrong = Sampler(replace(model, base=None), steps=20, **settings).run(range(4096))
    assert abs(float(wrong.mean(0)[0]) - 30.0) > 1.0


def test_starts_elsewhere_have_what_the_data_have_there() -> None:
    model = exact(WEAK)
    close(Sampler(model, schedule=VE(1e-3, 4.0), steps=20, batch=4096, dtype=torch.float64).run(range(4096)))
    close(Sampler(model, grid=uniform(60, start=0.6, clean=True), batch=4096, dtype=torch.float64).run(range(4096)))
    narrow = replace(model, base=Affine((0.0, 0.0), (0.1, 0.1)))
    Sampler(narrow, steps=3)
    with pytest.raises(ValueError, match=r"where samples start at T = 1 .* t = 0\.3"):
        Sampler(narrow, grid=uniform(3, start=0.3, clean=True)).run(range(2))


def test_start_is_draw_0_and_no_sample_depends_on_another() -> None:
    model = exact(WEAK)
    sampler = Sampler(model, solver="ddim", steps=4, batch=3)
    x = sampler.run(range(5), seed=2)
    assert sampler.run([4, 1], seed=2).equal(x[[4, 1]])
    plain = Sampler(model, solver="ddim", steps=4, batch=3, start="state")
    z = Sampler(replace(model, base=Affine((0.0, 0.0), (1.0, 1.0))), grid=uniform(1, end=0.5), batch=3)
    seen: list[Tensor] = []
    z.run(range(5), seed=2, callback=lambda step: seen.append(step.x) if step.row == 0 else None)
    assert model.base is not None
    assert torch.allclose(plain.run(range(5), init=model.base(torch.cat(seen))), x, rtol=1e-6)
    assert sampler.plan is not None and sampler.plan.draws == 1
    recorded = torch.cat(seen)[None]
    assert torch.allclose(sampler.run(range(5), noise=recorded), x, rtol=1e-6)
    parallel = Sampler(model, solver="ddim", steps=4, batch=3, parallel=Picard(4, 0.0))
    assert torch.allclose(parallel.run(range(5), seed=2), x, rtol=1e-5)
    Sampler(model, steps=4, guidance=Guidance(1.5, model=model)).run(range(2))
    assert sampler.record()["base"] == {"shift": model.base.shift, "scale": model.base.scale}


def test_likelihood_is_of_the_base() -> None:
    model, x = exact(WEAK), MEAN + STD * torch.tensor([[0.0, 0.0], [1.0, -1.0]], dtype=torch.float64)
    nats = ProbabilityFlow(model, batch=2, dtype=torch.float64).log_likelihood(x).nats
    law = torch.distributions.Normal(MEAN, STD)
    assert torch.allclose(nats, law.log_prob(x).sum(1), atol=2e-4)


def test_what_is_refused() -> None:
    model = exact(WEAK)
    with pytest.raises(ValueError, match="base: 1 columns for samples of shape"):
        replace(model, base=Affine((0.0,), (1.0,)))
    with pytest.raises(ValueError, match="has a base already"):
        whitened(model, Diagonal(torch.ones(2)))
    with pytest.raises(ValueError, match="start = 'base' must be one of prior, data, state"):
        Sampler(model, start="base")


class _nothing:
    def __enter__(self) -> None: ...
    def __exit__(self, *error: object) -> None: ...
