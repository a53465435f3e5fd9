from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy import integrate, stats

from fastscore.model import analytic
from fastscore.model.analytic import Empirical, GaussianMixture


def at(alpha: float, sigma: float, n: int) -> torch.Tensor:
    return torch.full((n,), math.atan2(sigma, alpha), dtype=torch.float64)


def test_gaussian_denoiser_is_the_conditional_mean():
    target = analytic.gaussian(0.7, 0.4, (3,))
    t = at(0.8, 0.6, 5)
    x = torch.linspace(-2, 2, 15, dtype=torch.float64).reshape(5, 3)
    expected = 0.7 + 0.8 * 0.16 / (0.64 * 0.16 + 0.36) * (x - 0.8 * 0.7)
    assert torch.allclose(target(x, t), expected, rtol=1e-13)


def test_mixture_denoiser_against_quadrature():
    w, mu, s = (torch.tensor(v, dtype=torch.float64) for v in ([0.3, 0.7], [[-1.0], [0.8]], [0.3, 0.5]))
    target = GaussianMixture(w, mu, s)
    alpha, sigma = math.cos(0.9), math.sin(0.9)

    def prior(y):
        return sum(float(w[k]) * stats.norm.pdf(y, float(mu[k, 0]), float(s[k])) for k in range(2))

    for x in (-1.5, -0.2, 0.4, 2.0):

        def joint(y, x=x):
            return prior(y) * stats.norm.pdf(x, alpha * y, sigma)

        mean = integrate.quad(lambda y, j=joint: y * j(y), -6, 6)[0] / integrate.quad(joint, -6, 6)[0]
        ours = target(torch.tensor([[x]], dtype=torch.float64), torch.tensor([0.9], dtype=torch.float64))
        assert ours.item() == pytest.approx(mean, rel=1e-7)


@pytest.mark.parametrize("chunk", [1, 7, 1000])
def test_empirical_denoiser_is_the_softmax_over_points(chunk):
    rng = np.random.default_rng(0)
    points = rng.standard_normal((50, 2, 3))
    x = rng.standard_normal((4, 2, 3))
    t = torch.tensor([0.05, 0.4, 1.0, 1.5], dtype=torch.float64)
    ours = Empirical(torch.from_numpy(points), chunk)(torch.from_numpy(x), t).numpy()
    for k in range(4):
        alpha, sigma = math.cos(float(t[k])), math.sin(float(t[k]))
        log = -((x[k] - alpha * points) ** 2).sum((1, 2)) / (2 * sigma**2)
        weight = np.exp(log - log.max())
        np.testing.assert_allclose(ours[k], np.tensordot(weight / weight.sum(), points, 1), rtol=1e-9, atol=1e-12)


def test_both_ends_of_the_noise():
    points = torch.tensor([[0.0, 1.0], [2.0, 0.0]], dtype=torch.float64)
    target = Empirical(points)
    x = torch.tensor([[0.1, 0.9]], dtype=torch.float64)
    assert torch.allclose(target(x, at(1.0, 1e-6, 1)), points[:1])
    assert torch.allclose(target(x, at(0.0, 1.0, 1)), points.mean(0, keepdim=True))
    mixture = analytic.mixture()
    assert mixture(x, at(0.0, 1.0, 1)).abs().max() < 1e-12


def test_mixture_samples_follow_its_weights():
    target = GaussianMixture(
        torch.tensor([0.2, 0.8], dtype=torch.float64), torch.tensor([[-5.0], [5.0]]), torch.tensor([1.0, 0.5])
    )
    u = (torch.arange(10_000) + 0.5) / 10_000
    x = target.sample(torch.zeros(10_000, 1), u)
    assert (x < 0).sum() == 2000


@pytest.mark.parametrize("name", analytic.NAMES)
def test_every_name_gives_a_model(name):
    model = analytic.by_name(name)
    x = torch.linspace(-2.0, 2.0, 8).reshape(4, 2)
    assert model.net(x, torch.full((4,), 0.5), None).isfinite().all()


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: analytic.by_name("spiral"), r"'spiral' \(nearest: .*spirals.*\) must be one of"),
        (lambda: GaussianMixture(torch.ones(2), torch.zeros(2, 1), torch.ones(2)), "sum to 1"),
        (lambda: GaussianMixture(torch.ones(1), torch.zeros(1, 1), torch.zeros(1)), "stds must be positive"),
        (lambda: GaussianMixture(torch.ones(1), torch.zeros(2, 1), torch.ones(2)), "must agree"),
    ],
)
def test_bad_targets_are_named(make, message):
    with pytest.raises(ValueError, match=message):
        make()
