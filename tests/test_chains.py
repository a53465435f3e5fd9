"""Langevin sampling: MALA draws from the density, ULA from one that is known to be off."""

from __future__ import annotations

import math

import numpy as np
import pytest
import textbook
import torch
from scipy import stats

from fastscore import chains as langevin
from fastscore.errors import NonFiniteError
from fastscore.model import analytic
from fastscore.model.analytic import GaussianMixture
from fastscore.model.score import ScoreModel
from fastscore.ops.noise import NoiseKey
from fastscore.process.continuous import EDM, VE, VP
from fastscore.process.discrete import discrete_vp
from fastscore.process.parametrization import Parametrization
from fastscore.sampler import Sampler
from fastscore.solvers.presets import ncsn, ncsnv2

TWO = GaussianMixture(*(torch.tensor(v, dtype=torch.float64) for v in ([0.4, 0.6], [[-0.8], [0.8]], [0.6, 0.5])))


def elementwise(x):
    """ln p and score of a density whose every element is alone, so that bits cannot depend on the batch."""
    return -(0.5 * x * x + 0.02 * x**4)[:, 0, 0], -(x + 0.08 * x**3)


def chains(ids, method="mala", batch=64, seed=3, **kw):
    start = kw.pop("start", torch.zeros(1, 1, 1))
    return langevin.run(
        lambda x: elementwise(x)[0],
        start,
        0.2,
        9,
        ids,
        seed,
        score=lambda x: elementwise(x)[1],
        spread=1.0,
        method=method,
        batch=batch,
        **kw,
    )


@pytest.mark.slow
def test_mala_passes_kolmogorov_smirnov_where_ula_fails():
    def cdf(x):
        return 0.4 * stats.norm.cdf(x, -0.8, 0.6) + 0.6 * stats.norm.cdf(x, 0.8, 0.5)

    p = {}
    for method in langevin.METHODS:
        ends = langevin.run(
            TWO.log_density,
            torch.zeros(1, 1),
            0.3,
            40,
            range(100_000),
            score=TWO.score,
            spread=1.0,
            method=method,
            batch=20_000,
        )
        p[method] = stats.kstest(ends.x[:, 0].double().numpy(), cdf).pvalue
        assert (ends.acceptance.mean() < 0.9) == (method == "mala")
    assert p["mala"] > 0.01
    assert p["ula"] < 1e-100


def test_ula_on_a_gaussian_has_its_own_variance():
    """x' = (1 - h/s^2) x + sqrt(2 h) z is stationary at s^2 / (1 - h / (2 s^2)), not at s^2."""
    target, h, n = analytic.gaussian(0.0, 0.5, (1,)), 0.1, 40_000
    ends = langevin.run(
        target.log_density, torch.zeros(1, 1), h, 40, range(n), score=target.score, method="ula", batch=8192
    )
    biased = 0.25 / (1.0 - h / 0.5)
    deviation = 5.0 * biased * math.sqrt(2.0 / n)
    assert abs(float(ends.x.var()) - biased) < deviation < abs(biased - 0.25)


def test_mala_against_its_definition():
    """A loop in NumPy over the same normals and uniforms: proposals, ratios and choices."""
    n, h, steps = 50, 0.35, 12
    ends = langevin.run(TWO.log_density, torch.zeros(1, 1), h, steps, range(n), 7, spread=1.5, dtype=torch.float64)
    key = NoiseKey.of(7, range(n))
    weights, means, stds = np.array([0.4, 0.6]), np.array([-0.8, 0.8]), np.array([0.6, 0.5])

    def density(x):
        return (weights * stats.norm.pdf(x[:, None], means, stds)).sum(1)

    def score(x):
        each = weights * stats.norm.pdf(x[:, None], means, stds)
        return (each * (means - x[:, None]) / stds**2).sum(1) / each.sum(1)

    def q(y, x):
        return stats.norm.pdf(y, x + h * score(x), math.sqrt(2.0 * h))

    x, taken = 1.5 * key.normal(0, 1, torch.float64).numpy()[:, 0], np.zeros(n)
    for k in range(1, steps + 1):
        y = x + h * score(x) + math.sqrt(2.0 * h) * key.normal(k, 1, torch.float64).numpy()[:, 0]
        u = key.uniform((1 << 31) + k, 1).numpy()[:, 0]
        accept = u <= density(y) * q(x, y) / (density(x) * q(y, x))
        x, taken = np.where(accept, y, x), taken + accept
    np.testing.assert_allclose(ends.x[:, 0].numpy(), x, rtol=1e-9, atol=1e-12)
    np.testing.assert_allclose(ends.acceptance.numpy(), taken / steps)
    assert 0.3 < ends.acceptance.mean() < 0.95


@pytest.mark.parametrize("method", langevin.METHODS)
def test_a_chain_does_not_depend_on_its_company(method):
    whole = chains(range(40), method)
    for batch in (1, 7, 64):
        again = chains(range(40), method, batch)
        assert torch.equal(again.x, whole.x)
        assert torch.equal(again.acceptance, whole.acceptance)
    assert torch.equal(chains([31, 2], method).x, whole.x[[31, 2]])
    start = torch.linspace(-1, 1, 40).reshape(40, 1, 1)
    apart = chains(range(40), method, 7, start=start).x
    assert torch.equal(chains([31, 2], method, start=start[[31, 2]]).x, apart[[31, 2]])
    assert not torch.equal(chains(range(40), method, seed=4).x, whole.x)


def test_autograd_stands_in_for_a_score():
    given = langevin.run(TWO.log_density, torch.zeros(1, 1), 0.2, 5, range(20), score=TWO.score, dtype=torch.float64)
    derived = langevin.run(TWO.log_density, torch.zeros(1, 1), 0.2, 5, range(20), dtype=torch.float64)
    assert torch.allclose(derived.x, given.x, rtol=1e-9)
    alone = langevin.run(None, torch.zeros(1, 1), 0.2, 5, range(9), score=TWO.score, method="ula")
    assert torch.equal(
        langevin.run(TWO.log_density, torch.zeros(1, 1), 0.2, 5, range(9), score=TWO.score, method="ula").x, alone.x
    )
    for kw in ({"score": TWO.score}, {"method": "ula"}):
        with pytest.raises(ValueError, match="needs log_density"):
            langevin.run(None, torch.zeros(1, 1), 0.2, 5, range(9), **kw)


def test_log_density_and_score_of_a_mixture():
    x = torch.linspace(-2, 2, 9, dtype=torch.float64)[:, None].requires_grad_(True)
    exact = np.log(0.4 * stats.norm.pdf(x[:, 0].detach(), -0.8, 0.6) + 0.6 * stats.norm.pdf(x[:, 0].detach(), 0.8, 0.5))
    assert np.allclose(TWO.log_density(x).detach(), exact, rtol=1e-12)
    t = torch.full((9,), 0.7, dtype=torch.float64)
    noised = GaussianMixture(
        TWO.weights, math.cos(0.7) * TWO.means, ((math.cos(0.7) * TWO.stds) ** 2 + math.sin(0.7) ** 2).sqrt()
    )
    assert torch.allclose(TWO.log_density(x, t), noised.log_density(x), rtol=1e-12)
    gradient = torch.autograd.grad(TWO.log_density(x, t).sum(), x)[0]
    assert torch.allclose(TWO.score(x, t), gradient, rtol=1e-10)
    tweedie = (math.cos(0.7) * TWO(x, t) - x) / math.sin(0.7) ** 2
    assert torch.allclose(TWO.score(x, t), tweedie, rtol=1e-10)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"step": 0.0}, "step = 0.0"),
        ({"step": math.inf}, "step = inf"),
        ({"steps": 0}, "steps = 0"),
        ({"spread": -1.0}, "spread = -1.0"),
        ({"method": "hmc"}, "'hmc'"),
        ({"batch": 0}, "batch = 0"),
        ({"start": torch.zeros(3, 1)}, "one state an id"),
        ({"start": torch.zeros(2)}, "one state an id"),
        ({"start": torch.zeros(1, 1, requires_grad=True)}, r"start requires a gradient.*start.detach\(\)"),
    ],
)
def test_bad_chains_are_named(change, message):
    arguments = {"start": torch.zeros(1, 1), "step": 0.1, "steps": 2, **change}
    with pytest.raises(ValueError, match=message):
        langevin.run(TWO.log_density, ids=range(2), **arguments)


def test_chains_that_leave_the_numbers_are_named():
    with pytest.raises(NonFiniteError, match="first id 5"):
        langevin.run(lambda x: -(x**4).sum(1), torch.ones(1, 1) * 30, 1.0, 20, [5, 6], method="ula")
    with pytest.raises(NonFiniteError, match="density is zero"):
        langevin.run(lambda x: x[:, 0] * 0.0 - math.inf, torch.ones(1, 1), 0.1, 3, [0])
    assert len(langevin.run(TWO.log_density, torch.zeros(1, 1), 0.1, 3, []).x) == 0


@pytest.mark.parametrize("method", langevin.METHODS)
def test_kept_states_are_where_shorter_chains_end(method):
    def run(steps, **kept):
        start = torch.zeros(1, 1)
        return langevin.run(
            TWO.log_density, start, 0.3, steps, range(30), 4, score=TWO.score, spread=1.0, method=method, **kept
        )  # fmt: skip

    whole = run(10, burn_in=3, thin=2)
    assert whole.states.shape == (30, 3, 1)
    for k, steps in enumerate((5, 7, 9)):
        assert torch.equal(whole.states[:, k], run(steps).x)
    assert torch.equal(whole.x, run(10).x)
    assert torch.equal(whole.acceptance, run(10).acceptance)
    assert torch.equal(run(10, thin=1).states[:, -1], whole.x)
    assert run(10).states.shape == (30, 0, 1)
    for bad in ({"thin": 0}, {"thin": 11}, {"burn_in": -1}, {"burn_in": 10}, {"burn_in": 5, "thin": 6}):
        name = "burn_in" if bad.get("burn_in") in (-1, 10) else "thin"
        with pytest.raises(ValueError, match=f"mcmc: {name} = "):
            run(10, **bad)


NETWORKS = {  # of data N(0.5, 0.25 I), exactly: D = m + gain (x - alpha m), gain = alpha s^2 / variance
    "x0": lambda x, alpha, sigma, D: D,
    "eps": lambda x, alpha, sigma, D: (x - alpha * D) / sigma,
    "v": lambda x, alpha, sigma, D: (alpha * x - D) / sigma,
    "score": lambda x, alpha, sigma, D: (alpha * D - x) / sigma**2,
}


LEVELS = [(VP(), None), (VP(), 0.3), (VE(), 0.4), (discrete_vp(), None), (EDM(), 1.0)]


@pytest.mark.parametrize(
    ("schedule", "t", "prediction"),
    [(*level, name) for level in LEVELS for name in NETWORKS if name != "v" or not isinstance(level[0], VE | EDM)],
)
def test_the_score_of_a_network_at_a_level(schedule, t, prediction):
    at = schedule.t_end if t is None else t
    alpha, sigma = float(schedule.alpha(at)), float(schedule.sigma(at))
    variance = 0.25 * alpha**2 + sigma**2
    labels = []

    def net(x, label, cond):
        labels.append(float(label[0]))
        D = 0.5 + alpha * 0.25 / variance * (x - alpha * 0.5)
        return NETWORKS[prediction](x, alpha, sigma, D)

    model = ScoreModel(net, (2,), schedule, Parametrization(prediction, "t"))
    x = torch.linspace(-1, 1, 10, dtype=torch.float64).reshape(5, 2)
    score = langevin.level_score(model, t)(x)
    assert torch.allclose(score, -(x - alpha * 0.5) / variance, rtol=1e-7)
    assert labels == pytest.approx([at])


def test_a_level_score_takes_a_class_and_refuses():
    seen = []

    def net(x, label, cond):
        seen.append(cond.tolist())
        return x

    model = ScoreModel(net, (2,), VP(), classes=3, null=3)
    with pytest.raises(ValueError, match="label is missing: this model has 3 classes and no null class"):
        langevin.level_score(ScoreModel(net, (2,), VP(), classes=3))
    langevin.level_score(model)(torch.zeros(2, 2))
    langevin.level_score(model, 0.5, 1)(torch.zeros(2, 2))
    assert seen == [[3, 3], [1, 1]]
    for t, label, message in (
        (0.0, None, "t = 0.0 must lie above"),
        (2.0, None, "t = 2.0"),
        (0.5, 3, "label = 3 must"),
    ):
        with pytest.raises(ValueError, match=message):
            langevin.level_score(model, t, label)


def squares(x):
    return -0.5 * x.square().sum(1)


@pytest.mark.parametrize("n", [1, 2, 3])
@pytest.mark.parametrize("method", langevin.METHODS)
@pytest.mark.parametrize(
    ("log_density", "score"),
    [
        (lambda x: squares(x).sum(), None),
        (lambda x: squares(x)[:, None], None),
        (lambda x: squares(x).mean().expand(len(x)), None),
        (lambda x: torch.log_softmax(squares(x), 0), None),
        (lambda x: 0.0, lambda x: -x),
        (squares, lambda x: -x.T),  # square where there are as many chains as dimensions
        (squares, lambda x: -x[0]),
        (squares, lambda x: -(x - x.mean(0))),
        (squares, lambda x: -x.flatten()),
    ],
)
def test_functions_that_do_not_treat_chains_alone_are_refused(log_density, score, method, n):
    if n == 1 and log_density(torch.ones(1, 2)) is not None and score is None:
        values = log_density(torch.ones(1, 2))
        if values.shape == (1,):
            return  # of one chain nobody can tell
    if n == 1 and score is not None and log_density is squares and score(torch.ones(1, 2)).shape == (1, 2):
        return
    with pytest.raises(ValueError, match=r"mcmc: (log_density|score) (returned|of the first chain changed)"):
        langevin.run(log_density, torch.zeros(1, 2), 0.1, 3, range(n), score=score, method=method)


def test_a_score_that_is_nan_is_named():
    for score in (lambda x: x * math.nan, lambda x: torch.where(x > 0.5, math.nan, -x)):
        for method in langevin.METHODS:
            with pytest.raises(NonFiniteError, match="a score that is NaN"):
                langevin.run(squares, torch.zeros(1, 2), 0.5, 40, range(8), score=score, method=method)

    def log_density(x):  # zero outside the unit box, where its score may be anything
        return torch.where((x.abs() < 1.0).all(1), squares(x), -math.inf)

    def bounded(x):
        return torch.where((x.abs() < 1.0).all(1, keepdim=True), -x, math.nan)

    ends = langevin.run(log_density, torch.zeros(1, 2), 0.2, 40, range(50), score=bounded)
    assert ends.x.abs().max() < 1.0
    assert 0.1 < ends.acceptance.mean() < 0.9
    with pytest.raises(ValueError, match="give its gradient as score="):
        langevin.run(lambda x: squares(x.detach()), torch.zeros(1, 2), 0.2, 2, range(5))


@pytest.mark.slow
@pytest.mark.parametrize("preset", [ncsn, ncsnv2])
def test_presets_are_the_papers_loops(preset):
    """Song & Ermon's algorithm over the same normals; its text has alpha_i / 2, their code alpha_i."""
    levels, sigma_max, sigma_min, epsilon, published, denoise = {
        ncsn: (10, 1.0, 0.01, 2e-5, 100, False),
        ncsnv2: (232, 50.0, 0.01, 6.2e-6, 5, True),
    }[preset]
    model, steps = analytic.score_model(TWO), published // 5
    assert Sampler(model, **preset()).plan.nfe == levels * published + denoise
    sampler = Sampler(model, **preset(steps=steps), batch=4, dtype=torch.float64)
    sigmas = sigma_max * (sigma_min / sigma_max) ** (np.arange(levels) / (levels - 1))
    key = NoiseKey.of(2, range(4))
    z = (key.normal(k, 1, torch.float64).numpy() for k in range(sampler.plan.draws))

    def denoiser(x, alpha, sigma):
        t = math.atan2(sigma, alpha)
        return TWO(torch.from_numpy(x * math.cos(t)), torch.full((4,), t, dtype=torch.float64)).numpy()

    x = textbook.ncsn(None, denoiser, sigmas, sigma_max * next(z), z, 2.0 * epsilon, steps)
    x = denoiser(x, 1.0, sigmas[-1]) if denoise else x
    np.testing.assert_allclose(sampler.run(range(4), 2).numpy(), x, rtol=1e-8)


def test_a_preset_can_be_changed_and_refuses():
    assert Sampler(analytic.by_name("mixture"), **ncsn(4, 2.0, 0.1, steps=3)).plan.nfe == 12
    with pytest.raises(ValueError, match="levels = 1"):
        ncsn(1)
    with pytest.raises(ValueError, match="epsilon = 0"):
        ncsn(epsilon=0)
    with pytest.raises(ValueError, match="corrections = 0"):
        ncsnv2(steps=0)
