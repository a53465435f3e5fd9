"""Guides against closed forms on Gaussian data, where the posterior of everything is known."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch

from fastscore.guidance.guides import (
    DPS,
    CFGRescale,
    Chain,
    ClassifierGuidance,
    DynamicThreshold,
    EnergyGuidance,
    PiGDM,
)
from fastscore.guidance.measurements import Blur, Downsample, Linear, Masked, Matrix
from fastscore.guidance.mixture import Guidance
from fastscore.model import analytic
from fastscore.model.conditions import Known
from fastscore.model.score import ScoreModel
from fastscore.ops.noise import NoiseKey
from fastscore.process.continuous import EDM, VE, VP, SubVP, Trig
from fastscore.process.grid import karras, logsnr
from fastscore.process.parametrization import Parametrization
from fastscore.sampler import Sampler
from fastscore.solvers import Ancestral, DPMpp2M, EulerMaruyama, Heun, UniPC

MEAN, STD = 0.3, 0.7
PRIOR = analytic.gaussian(MEAN, STD, (4,))
A = torch.tensor([[1.0, 0.5, 0.0, -0.3], [0.0, 1.0, 0.8, 0.2], [0.4, 0.0, -1.0, 1.0]], dtype=torch.float64)
NOISE = 0.3


def posterior(y, alpha, sigma, x):
    """E[x_0 | x_t = x, y] of the linear-Gaussian problem, from the joint normal equations."""
    precision = torch.eye(4, dtype=torch.float64) * (1.0 / STD**2 + alpha**2 / sigma**2) + A.T @ A / NOISE**2
    return torch.linalg.solve(precision, (MEAN / STD**2 + alpha / sigma**2 * x + y @ A / NOISE**2).T).T


def guided(guide, schedule=None, solver=None, n=5, **kw):
    model = analytic.score_model(PRIOR)
    settings = {"solver": solver or DPMpp2M(), "grid": logsnr(6), "batch": 4, "dtype": torch.float64} | kw
    return Sampler(model, schedule=schedule or VP(), guide=guide, **settings)


def measured(n=5):
    return NoiseKey.of(1, range(n)).normal(0, 3, torch.float64)


@pytest.mark.thirds
@pytest.mark.parametrize("schedule", [VP(), SubVP(), VE(), EDM()], ids=lambda s: type(s).__name__)
@pytest.mark.parametrize("solver", [DPMpp2M(), Heun(), Ancestral(), UniPC()], ids=lambda s: type(s).__name__)
def test_pigdm_is_the_exact_posterior_estimate(solver, schedule):
    y, steps = measured(), []
    guided(PiGDM(Matrix(A), NOISE, STD), schedule, solver).run(range(4), y=y[:4], callback=steps.append)
    seen = 0
    for before, step in pairwise(steps):
        if step.x0 is not None:
            alpha, sigma = float(schedule.alpha(step.t)), float(schedule.sigma(step.t))
            wanted = posterior(y[:4], alpha, sigma, before.x)
            assert torch.allclose(step.x0, wanted, rtol=1e-9, atol=1e-9 * (1.0 + sigma / alpha))
            seen += 1
    assert seen >= 6


def test_gradient_guides_agree_where_they_are_the_same():
    """With one measurement per coordinate and a flat r^2, DPS, energy and classifier guidance are one formula."""
    y = measured(4)

    def energy(D, y):
        return (y - D @ A.T).square().sum(1) / (2 * NOISE**2)

    def log_prob(x, alpha, sigma, y):  # the same likelihood, written in x by hand
        D = MEAN + alpha * STD**2 / (alpha**2 * STD**2 + sigma**2) * (x - alpha * MEAN)
        return -energy(D, y)

    runs = [
        guided(guide).run(range(4), y=y)
        for guide in (DPS(Matrix(A), NOISE), EnergyGuidance(energy), ClassifierGuidance(log_prob))
    ]
    assert torch.allclose(runs[1], runs[0], rtol=1e-8, atol=1e-8)
    assert torch.allclose(runs[2], runs[0], rtol=1e-8, atol=1e-8)
    half = guided(DPS(Matrix(A), NOISE * 2**0.5)).run(range(4), y=y)
    assert torch.allclose(guided(DPS(Matrix(A), NOISE, scale=0.5)).run(range(4), y=y), half, rtol=1e-9)
    assert not torch.allclose(runs[0], half, atol=1e-3)


def test_dps_with_the_published_step():
    """D' = D + 2 zeta v A^T r / |r|, with v the posterior variance of x_0 given x_t, (sigma^2 / alpha) dD/dx."""
    y, steps, zeta, schedule = measured(4), [], 0.7, VP()
    guided(DPS(Matrix(A), scale=zeta)).run(range(4), y=y, callback=steps.append)
    for before, step in pairwise(steps):
        alpha, sigma = float(schedule.alpha(step.t)), float(schedule.sigma(step.t))
        v = STD**2 * sigma**2 / (alpha**2 * STD**2 + sigma**2)
        D = MEAN + alpha * v / sigma**2 * (before.x - alpha * MEAN)
        r = y - D @ A.T
        assert torch.allclose(step.x0, D + 2 * zeta * v * (r @ A) / r.norm(dim=1, keepdim=True), rtol=1e-9, atol=1e-9)
    assert len(steps) > 6


def test_a_classifier_makes_the_classes_gaussian():
    """p(x) = mixture, log p(y | x_t) exact: the guided estimate is the component's own, Bayes' rule."""
    means, stds, w = torch.tensor([[-1.0, 0.2], [0.8, 0.0]]).double(), torch.tensor([0.5, 0.5]).double(), [0.3, 0.7]
    mixture = analytic.GaussianMixture(torch.tensor(w, dtype=torch.float64), means, stds)

    def log_prob(x, alpha, sigma, y):
        variance = alpha**2 * 0.25 + sigma**2  # the same for both
        log = torch.log(torch.tensor(w, dtype=x.dtype)) - (x[:, None] - alpha[:, None] * means).square().sum(2) / (
            2 * variance
        )
        return torch.log_softmax(log, 1).gather(1, y[:, None])[:, 0]

    kw = {"schedule": VP(), "grid": logsnr(8), "dtype": torch.float64, "batch": 4}
    labels = torch.tensor([0, 1, 1, 0])
    x = Sampler(analytic.score_model(mixture), guide=ClassifierGuidance(log_prob), **kw).run(range(4), y=labels)
    for k in (0, 1):
        one = analytic.GaussianMixture(torch.ones(1, dtype=torch.float64), means[k : k + 1], stds[k : k + 1])
        alone = Sampler(analytic.score_model(one), **kw).run(range(4))
        assert torch.allclose(x[labels == k], alone[labels == k], rtol=1e-8, atol=1e-8)


def test_an_identity_guide_changes_nothing():
    """Whatever the network predicts: the estimate goes through another fold, and comes back."""
    for prediction in ("x0", "eps", "v"):

        def net(x, t, cond, prediction=prediction):
            alpha, sigma = (f(t.to(x))[:, None] for f in (torch.cos, torch.sin))
            D = PRIOR(x, t)
            return {"x0": D, "eps": (x - alpha * D) / sigma, "v": (alpha * x - D) / sigma}[prediction]

        model = ScoreModel(net, (4,), Trig(), Parametrization(prediction, "t"))
        for solver in (Heun(), UniPC(), EulerMaruyama()):
            kw = {"schedule": VP(), "solver": solver, "grid": karras(6), "dtype": torch.float64, "batch": 3}
            a = Sampler(model, guide=lambda denoise, x, alpha, sigma, y: denoise(x), **kw).run(range(3))
            assert torch.allclose(a, Sampler(model, **kw).run(range(3)), rtol=1e-9, atol=1e-9), (prediction, solver)


def fixed(D, own=None):
    """A denoiser that returns what it is given."""

    class Fixed:
        def __call__(self, x):
            return D

        def both(self, x):
            return D, own

    return Fixed()


def test_thresholds_and_rescale():
    D = torch.tensor([[0.1, -0.5, 4.0, -2.0], [0.1, 0.2, -0.3, 0.4]])
    x = torch.zeros_like(D)
    assert torch.allclose(DynamicThreshold(0.75)(fixed(D), x, x, x, None)[0], torch.tensor([0.05, -0.25, 1.0, -1.0]))
    assert torch.equal(DynamicThreshold(0.75)(fixed(D), x, x, x, None)[1], D[1])  # within the bound: untouched
    assert DynamicThreshold(1.0, 2.0)(fixed(D), x, x, x, None)[0].tolist() == pytest.approx([0.05, -0.25, 2.0, -1.0])
    own = D / torch.tensor([[4.0], [1.0]])
    assert torch.allclose(CFGRescale(1.0)(fixed(D, own), x, x, x, None), own, rtol=1e-6)
    assert torch.allclose(CFGRescale(0.5)(fixed(D, own), x, x, x, None), 0.5 * (own + D), rtol=1e-6)
    both = Chain((CFGRescale(1.0), DynamicThreshold(0.75)))(fixed(D, own), x, x, x, None)
    assert torch.allclose(both, DynamicThreshold(0.75)(fixed(own), x, x, x, None))


def test_guidance_and_guides_together():
    """Rescale sees both estimates of guided rows; a chain hands them on; samples see no company."""

    def net(x, t, cond):
        return torch.where(cond[:, None] == 1, 2.0, 0.5) * PRIOR(x, t).to(x)

    model = ScoreModel(net, (4,), Trig(), Parametrization("x0", "t"), classes=1, null=1)

    def run(guide, ids=range(7), weight=3.0, batch=4):
        guidance = Guidance(weight, (0.1, 10.0))
        sampler = Sampler(model, schedule=VP(), grid=logsnr(8), guide=guide, guidance=guidance, batch=batch)
        return sampler.run(ids, labels=0)

    plain = run(None)
    assert torch.allclose(run(CFGRescale(0.0)), plain, atol=1e-5)
    assert not torch.allclose(run(CFGRescale(1.0)), plain, atol=1e-2)
    assert torch.allclose(run(CFGRescale(1.0), weight=1.0), run(None, weight=1.0), atol=1e-5)
    chain = Chain((CFGRescale(0.7), DynamicThreshold(0.9, 0.5)))
    x = run(chain)
    assert x.abs().max() <= 0.5
    assert torch.equal(run(chain, [5, 1]), x[[5, 1]])
    assert torch.equal(run(chain, batch=7), x)


def test_the_denoiser_tells_the_conditional_estimate_from_the_guided():
    def net(x, t, cond):
        return torch.where(cond[:, None] == 1, 2.0, 0.5) * PRIOR(x, t).to(x)

    model, seen = ScoreModel(net, (4,), Trig(), Parametrization("x0", "t"), classes=1, null=1), []

    def guide(denoise, x, alpha, sigma, y):
        D, own = denoise.both(x)
        seen.append((D, own, 0.5 * PRIOR(x, torch.atan2(sigma, alpha).flatten())))
        return D

    kw = {"schedule": Trig(), "grid": logsnr(5, start=1.5), "dtype": torch.float64, "batch": 2}
    Sampler(model, guide=guide, guidance=Guidance(3.0), **kw).run(range(2), labels=0)
    for D, own, half in seen:
        assert torch.allclose(own, half, rtol=1e-9, atol=1e-12)
        assert torch.allclose(D, 3.0 * half - 2.0 * (4.0 * half), rtol=1e-9, atol=1e-12)
    assert len(seen) == 5


def test_a_network_without_gradient_is_named():
    frozen = ScoreModel(torch.no_grad()(PRIOR), (4,), Trig(), Parametrization("v", "t"))  # v: D = alpha x - sigma F
    with pytest.raises(ValueError, match="has no gradient"):
        Sampler(frozen, schedule=VP(), grid=logsnr(3), guide=DPS(Matrix(A), NOISE)).run([0], y=torch.zeros(1, 3))


def test_a_posterior_sample_sees_no_company():
    y = measured(7)
    kw = {"dtype": torch.float32, "solver": Ancestral()}
    x = guided(PiGDM(Matrix(A), NOISE, STD), **kw).run(range(7), y=y)
    assert torch.equal(guided(PiGDM(Matrix(A), NOISE, STD), **kw).run([6, 2], y=y[[6, 2]]), x[[6, 2]])


IMAGE = (2, 6, 8)
OPERATORS = {
    "matrix": Matrix(NoiseKey.of(0, range(5)).normal(0, 96, torch.float64)),
    "masked": Masked(torch.arange(48).reshape(6, 8) % 3 == 0),
    "downsample": Downsample(2),
    "blur": Blur(torch.tensor([[0.1, 0.2, 0.0], [0.3, 0.4, 0.05]])),
}
OPERATORS["linear"] = Linear(OPERATORS["blur"].__call__, OPERATORS["blur"].adjoint, 60)


@pytest.mark.parametrize("name", OPERATORS)
def test_operators(name):
    """The adjoint is one, and solve inverts r2 A A^T + s2 I, each sample with its own r2."""
    A = OPERATORS[name]
    x = NoiseKey.of(1, range(3)).normal(0, 96, torch.float64).reshape(3, *IMAGE)
    y = A(NoiseKey.of(2, range(3)).normal(0, 96, torch.float64).reshape(3, *IMAGE))
    inner = [(A(x) * y).flatten(1).sum(1), (x.flatten(1) * A.adjoint(y).flatten(1)).sum(1)]
    assert torch.allclose(*inner, rtol=1e-12, atol=1e-12)
    r2 = torch.tensor([0.5, 1.0, 3.0], dtype=torch.float64).reshape(3, 1, 1, 1)
    w = A.solve(y, r2, 0.3)
    back = (A.adjoint(w).reshape(3, *IMAGE) * r2, 0.3 * w)
    assert torch.allclose(A(back[0]) + back[1], y, rtol=1e-8, atol=1e-8)
    assert torch.allclose(A.solve(y[1:2], r2[1:2], 0.3), w[1:2], rtol=1e-12)


def test_blur_is_a_convolution():
    kernel, x = torch.tensor([[1.0, 2.0, 0.0]]), torch.arange(6.0).reshape(1, 1, 1, 6)
    assert Blur(kernel)(x).flatten().round().tolist() == [1 * x[0, 0, 0, (k + 1) % 6] + 2 * k for k in range(6)]


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: guided(DPS(Matrix(A), NOISE)).run([0]), "needs the measurements"),
        (lambda: guided(DPS(Matrix(A), NOISE)).run([0], y=torch.zeros(1, 4)), "the operator makes"),
        (lambda: guided(DPS(Matrix(A), NOISE)).run([0, 1], y=torch.zeros(1, 3)), "must be the 2 ids"),
        (lambda: guided(PiGDM(Matrix(A), -1.0)), "noise = -1"),
        (lambda: DPS(Matrix(A), 0.0), "noise = 0"),
        (lambda: DynamicThreshold(1.5), "share = 1.5"),
        (lambda: CFGRescale(-0.1), "phi = -0.1"),
        (lambda: Matrix(A[0]), "expected"),
        (lambda: guided(DPS(Matrix(A), NOISE), graph="loop"), "may differentiate|needs a CUDA"),
        (lambda: guided(lambda d, x, a, s, y: x[:, :2]).run([0]), "the guide returned"),
        (lambda: guided(EnergyGuidance(lambda D, y: D.sum())).run([0]), "expected one a sample"),
        (
            lambda: guided(Chain((DPS(Matrix(A), NOISE), DPS(Matrix(A), NOISE)))).run([0], y=torch.zeros(1, 3)),
            "put it first",
        ),
        (lambda: Downsample(4)(torch.zeros(1, 1, 6, 8)), "does not divide"),
        (lambda: Blur(torch.ones(9, 9))(torch.zeros(1, 1, 6, 8)), "does not fit"),
    ],
)
def test_bad_calls_are_named(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_a_guide_and_known_data_together():
    y = torch.tensor([0.9, -0.4, 0.0, 0.0], dtype=torch.float64)
    mask = torch.tensor([True, True, False, False])
    x = guided(PiGDM(Masked(mask), 0.0, STD)).run(range(3), y=y.expand(3, 4), known=Known(y, mask))
    assert torch.equal(x[:, :2], y[:2].expand(3, 2))
