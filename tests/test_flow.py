"""Likelihoods against closed forms, probes against exact divergences, encoding against decoding."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from networks import elementwise, elementwise_model

from fastscore.flow import ProbabilityFlow, dequantize
from fastscore.model import analytic
from fastscore.model.score import ScoreModel
from fastscore.ops.noise import NoiseKey
from fastscore.process.continuous import EDM, VE, VP, Flow, SubVP
from fastscore.process.grid import Span, karras, uniform
from fastscore.process.parametrization import Parametrization
from fastscore.sampler import Sampler
from fastscore.solvers import RK2, RK4, BogackiShampine, Dopri5, DPMpp2M, Euler, Heun
from fastscore.solvers.likelihood_grids import likelihood_end

SCHEDULES = [VP(), SubVP(), VE(), EDM(), Flow()]
D = 12


def normals(n: int, d: int, draw: int = 900) -> torch.Tensor:
    return NoiseKey.of(3, range(n)).normal(draw, d, torch.float64)


def log_normal(x: torch.Tensor, mean: float, std: float) -> torch.Tensor:
    d = x.shape[1]
    return -0.5 * ((x - mean) / std).square().sum(1) - d * (0.5 * math.log(2.0 * math.pi) + math.log(std))


def flow(model: ScoreModel, **kw) -> ProbabilityFlow:
    return ProbabilityFlow(model, **{"dtype": torch.float64, "batch": 32, **kw})


@pytest.mark.thirds
@pytest.mark.parametrize(
    ("schedule", "probe"),
    [
        pytest.param(s, probe, id=f"{type(s).__name__}-{probe}", marks=() if (k + m) % 2 else pytest.mark.slow)
        for k, s in enumerate(SCHEDULES)
        for m, probe in enumerate(("rademacher", "exact"))
    ],
)
def test_gaussians_have_their_closed_form(schedule, probe):
    x = 0.4 * normals(20, D)
    found = flow(analytic.score_model(analytic.gaussian(0.0, 0.4, (D,))), schedule=schedule).log_likelihood(
        x, probe=probe
    )
    # Of the data itself; a schedule bounded below leaves its last noise in.
    end = likelihood_end(schedule)
    noise = float(schedule.sigma(end) / schedule.alpha(end))
    closed = log_normal(x, 0.0, math.hypot(0.4, noise))
    assert float((found.nats - closed).abs().max()) / D < 1e-4
    assert noise < 0.011


@pytest.mark.slow
@pytest.mark.parametrize(
    ("schedule", "solver"), [(VP(), None), (SubVP(), RK4()), (VE(), None)], ids=["VP-dopri5", "SubVP-rk4", "VE-dopri5"]
)
def test_the_prior_is_the_schedules_own(schedule, solver):
    """Data with a mean, which the prior lacks: the density that the ODE carries there is Gaussian all the same."""
    mean, std = 0.5, 0.4
    x = mean + std * normals(10, D)
    grid = None if solver is None else karras(60, clean=False)
    f = flow(analytic.score_model(analytic.gaussian(mean, std, (D,))), schedule=schedule, solver=solver, grid=grid)
    found = f.log_likelihood(x)
    t = f.grid(schedule)
    (m, s), (m_T, s_T) = (
        (mean * float(schedule.alpha(v)), math.hypot(std * float(schedule.alpha(v)), float(schedule.sigma(v))))
        for v in (t[-1], t[0])
    )
    latent = m_T + s_T / s * (x - m)
    closed = log_normal(latent, 0.0, schedule.prior_std) + D * math.log(s_T / s)
    assert float((found.nats - closed).abs().max()) / D < (2e-6 if solver is None else 2e-5)
    assert float((found.latent - latent).abs().max()) < 1e-4 * schedule.prior_std


def mixture(d: int) -> ScoreModel:
    means = 0.6 * normals(3, d, 40)
    w, s = torch.tensor([0.5, 0.3, 0.2]), torch.tensor([0.25, 0.4, 0.3])
    return analytic.score_model(analytic.GaussianMixture(w.double(), means, s.double()))


@pytest.mark.slow
@pytest.mark.parametrize("probe", ["rademacher", "gaussian"])
def test_probes_are_right_within_their_standard_error_for_99_percent_of_200_seeds(probe):
    m = mixture(12)
    x = m.net.sample(normals(1, 12), torch.tensor([0.4]))
    f = flow(m, schedule=VP(), solver=BogackiShampine(1e-4, 1e-4), batch=200)
    exact = f.log_likelihood(x, probe="exact")
    assert float(exact.stderr) == 0.0
    many = f.log_likelihood(x.expand(200, -1), probe=probe, probes=32)  # fewer are skewed: squares of normals
    error = many.nats - exact.nats
    assert float((error.abs() <= 4.0 * many.stderr).double().mean()) >= 0.99
    # and errors are as large as they are said to be
    assert 0.7 < float(error.std() / many.stderr.square().mean().sqrt()) < 1.4


def test_mixtures_have_their_closed_form():
    m = mixture(6)
    target = m.net
    x = target.sample(normals(30, 6), NoiseKey.of(1, range(30)).uniform(901, 1)[:, 0].double())
    found = flow(m, schedule=SubVP()).log_likelihood(x, probe="exact")
    logs = [
        w.log() + log_normal(x - mu, 0.0, float(s))
        for w, mu, s in zip(target.weights, target.means, target.stds, strict=True)
    ]
    error = found.nats - torch.logsumexp(torch.stack(logs), 0)
    # The prior leaves out alpha_T = 0.0066 times the data, which a latent of a few standard deviations feels.
    assert float(error.abs().max()) / 6 < 0.0066 * 1.0 * 3.0
    assert float(error.mean().abs()) / 6 < 2e-3


def test_a_sample_does_not_depend_on_its_company():
    m = elementwise_model((5,))
    x = normals(5, 5).float()

    def run(batch, at=slice(None)):
        f = ProbabilityFlow(m, batch=batch, solver=BogackiShampine(0.01, 0.01))
        ids = list(range(5))[at] if isinstance(at, slice) else at
        return f.log_likelihood(x[at], probe="gaussian", probes=2, ids=ids)

    whole = run(64)
    for batch in (1, 3):
        assert torch.equal(run(batch).nats, whole.nats)
        assert torch.equal(run(batch).latent, whole.latent)
    assert torch.equal(run(3, [4, 2]).nats, whole.nats[[4, 2]])


def test_one_forward_pass_serves_value_and_divergence():
    calls, backward = [], []

    class Net(torch.nn.Module):
        def forward(self, u, t, cond):
            calls.append(u.requires_grad)
            out = elementwise(u, t, cond)
            out.register_hook(lambda g: backward.append(1))
            return out

    m = ScoreModel(Net(), (20,), EDM(), Parametrization("edm", "log_sigma/4"))
    found = ProbabilityFlow(m, batch=4, solver=BogackiShampine()).log_likelihood(normals(4, 20).float())
    assert calls == [True] * found.cost.ticks
    assert len(backward) == found.cost.ticks


@pytest.mark.slow
@pytest.mark.parametrize("solver", [Dopri5(1e-8, 1e-8), RK4()], ids=["dopri5", "rk4"])
def test_decoding_undoes_encoding(solver):
    m = mixture(6)
    x = m.net.sample(normals(20, 6), torch.linspace(0.01, 0.99, 20))
    grid = None if solver != RK4() else karras(100, clean=False)
    f = flow(m, schedule=VE(), solver=solver, grid=grid)
    z = f.encode(x)
    assert 30.0 < float(z.std()) < 70.0  # sigma_max = 50
    assert float((f.decode(z) - x).abs().max()) < 1e-5
    if grid is None:  # a sampler's own way down
        drawn = Sampler(m, schedule=VE(), solver=solver, grid=Span(clean=False), dtype=torch.float64, batch=20)
        noise = (z / 50.0)[None]
        assert float((drawn.run(range(20), noise=noise) - x).abs().max()) < 1e-5


@pytest.mark.thirds
@pytest.mark.parametrize(("solver", "order"), [(Euler(), 1), (Heun(), 2), (RK2(2 / 3), 2), (RK4(), 4)], ids=str)
def test_fixed_grids_have_their_order(solver, order):
    mean, start, end = 0.3, math.hypot(0.6, 2.0), math.hypot(0.6, 0.2)
    m = analytic.score_model(analytic.gaussian(mean, 0.6, (2,)))
    x = mean + 0.6 * normals(5, 2)
    latent = mean + start / end * (x - mean)
    # The prior of a span that starts below T has the same length per unit of data and noise.
    nats = log_normal(latent, 0.0, 80.0 * math.hypot(1.0, 2.0) / math.hypot(1.0, 80.0)) + 2 * math.log(start / end)

    def errors(n):
        found = flow(m, schedule=EDM(), solver=solver, grid=uniform(n, start=2.0, end=0.2), batch=5).log_likelihood(x)
        return torch.stack([(found.nats - nats).abs().max(), (found.latent - latent).abs().max()])

    assert torch.log2(errors(24) / errors(48)).tolist() == pytest.approx([order, order], abs=0.25)


# --- bits and levels ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("edge", "step"), [(-1.0, 2 / 256), (0.0, 1 / 256), (-1.0 - 0.5 / 127.5, 1 / 127.5), (0.0, 1.0)]
)
def test_uniform_bytes_have_8_bits_in_any_scaling(edge, step):
    from fastscore.engine.adaptive.cost import Cost
    from fastscore.flow import LogLikelihood

    none = torch.zeros(1, dtype=torch.int64)
    uniform_density = torch.full((1,), -5 * math.log(256 * step), dtype=torch.float64)
    result = LogLikelihood(uniform_density, none.double(), torch.zeros(1, 5), Cost(none, none, none, 0, 1))
    assert float(result.bits_per_dim(step)) == pytest.approx(8.0, abs=1e-12)
    levels = torch.arange(256, dtype=torch.uint8).repeat(40, 1)
    x = dequantize(levels, NoiseKey.of(5, range(40)), step, edge)
    inside = (x.double() - edge) / step - levels
    assert float(inside.min()) > -1e-4 and float(inside.max()) < 1.0 + 1e-4
    assert float(inside.mean()) == pytest.approx(0.5, abs=4.0 / math.sqrt(12 * inside.numel()))
    assert torch.equal(dequantize(levels[7:8], NoiseKey.of(5, [7]), step, edge), x[7:8])
    assert not torch.equal(dequantize(levels[7:8], NoiseKey.of(6, [7]), step, edge), x[7:8])


MODEL = elementwise_model((5,))
X = torch.zeros(2, 5)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: ProbabilityFlow(MODEL, solver=DPMpp2M()), "must be Dopri5"),
        (lambda: ProbabilityFlow(MODEL, solver=RK4(), grid=Span()), "RK4 needs a Grid or Times"),
        (lambda: ProbabilityFlow(MODEL, grid=karras(5)), "Dopri5 needs a Span"),
        (lambda: ProbabilityFlow(MODEL, solver=RK4(), grid=karras(5)), "ends at sigma > 0"),
        (lambda: ProbabilityFlow(MODEL, batch=0), "batch = 0"),
        (lambda: ProbabilityFlow(MODEL).log_likelihood(X[:, :4]), r"\(2, 4\) must be a floating-point tensor"),
        (lambda: ProbabilityFlow(MODEL).log_likelihood(X.long()), "floating-point tensor"),
        (lambda: ProbabilityFlow(MODEL).log_likelihood(X / 0.0), "NaN or Inf"),
        (lambda: ProbabilityFlow(MODEL).log_likelihood(X, ids=[1]), "1 ids for 2 samples"),
        (lambda: ProbabilityFlow(MODEL).log_likelihood(X, probe="sign"), "probe = 'sign'"),
        (lambda: ProbabilityFlow(MODEL).log_likelihood(X, probes=2), "be 1 where the divergence is exact"),
        (lambda: ProbabilityFlow(MODEL).log_likelihood(X, labels=1), "unconditional"),
        (lambda: dequantize(X, NoiseKey.of(0, [0, 1]), 1.0, 0.0), "integers"),
        (lambda: flow(replace(MODEL, net=lambda u, t, c: u.detach())).log_likelihood(X), "be differentiated"),
    ],
)
def test_bad_calls_are_named(call, message):
    with pytest.raises(ValueError, match=message):
        call()
