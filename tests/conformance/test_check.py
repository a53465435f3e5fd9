"""What strangers' samplers may look like, and what a report says."""

from __future__ import annotations

import json
import math
from itertools import pairwise

import numpy as np
import pytest
import torch

import fastscore as fs
from fastscore.conformance import check
from fastscore.conformance import problem as problems
from fastscore.conformance.problem import Network, Setting
from fastscore.conformance.trials import own_randomness


class Cosine:
    """A schedule of a stranger: no T, no t_clean, no derivatives."""

    def alpha(self, t):
        return np.cos(0.5 * np.pi * t)

    def sigma(self, t):
        return np.sin(0.5 * np.pi * t)


def ddim_in_numpy(net, n, seed, steps):
    x = np.random.default_rng(seed).standard_normal((n, *net.shape))
    for t, s in pairwise(np.linspace(1.0, 0.0, steps + 1)):
        a, b, c, d = Cosine().alpha(t), Cosine().sigma(t), Cosine().alpha(s), Cosine().sigma(s)
        x0 = net(x, np.float32(t))
        assert isinstance(x0, np.ndarray)
        x = c * x0 + d * (x - a * x0) / b
    return x


def test_numpy_and_a_schedule_of_two_functions():
    report = check(ddim_in_numpy, Cosine(), prediction="x0", steps=8, exact_on_point=True, shape=(3,))
    assert report.ok, report
    assert report.facts["order"] == pytest.approx(1.0, abs=0.15)
    assert str(report).startswith("Nothing is off in ")
    assert json.loads(report.json())["ok"] is True


@pytest.mark.parametrize(
    ("fn", "says"),
    [
        (lambda net, n, seed, steps: [1.0], "returned a list"),
        (lambda net, n, seed, steps: torch.zeros(n, 1), "of shape"),
        (lambda net, n, seed, steps: torch.zeros(n, *net.shape, dtype=torch.int64), "int64"),
        (lambda net, n, seed, steps: torch.zeros(n, *net.shape), "never called"),
        (lambda net, n, seed, steps: torch.full((n, *net.shape), math.nan), "not finite"),
        (lambda net, n, seed, steps: net(torch.zeros(n, 5), 1.0), "the network takes floats"),
        (lambda net, n, seed, steps: net(torch.zeros(n, *net.shape), [1.0, 2.0]), "one label or one a sample"),
        (lambda net, n, seed, steps: net.times(steps), "no grid was declared"),
    ],
)
def test_what_breaks_the_contract_is_named(fn, says):
    report = check(fn, fs.VP())
    assert report.failures[0].check == "contract" and says in report.failures[0].text
    found = json.loads(report.json())["failures"][0]
    assert found["low"] is None and found["value"] is None  # JSON has no infinities


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"prediction": "epsilon"}, "eps, x0, v, score, flow"),
        ({"label": "time"}, "log_sigma/4"),
        ({"steps": 4}, "at least 8"),
        ({"scale": 0.0}, "positive"),
        ({"shape": ()}, "positive sizes"),
        ({"order": "two"}, "number"),
    ],
)
def test_bad_options_are_refused(options, says):
    with pytest.raises(ValueError, match=says):
        check(lambda net, n, seed, steps: None, fs.VP(), **options)
    with pytest.raises(ValueError, match=r"alpha\(t\) and sigma\(t\)"):
        check(lambda net, n, seed, steps: None, object())


@pytest.mark.parametrize("label", ["t", "t/T", "999t", "sigma", "log_sigma/4", "tanh", lambda t: 5.0 - t])
@pytest.mark.parametrize("schedule", [fs.VP(), fs.VE(), fs.discrete_vp()], ids=lambda s: type(s).__name__)
def test_a_label_leads_back_to_its_time(schedule, label):
    setting = Setting.of(schedule, "eps", label, None)
    for share in (0.1, 0.5, 1.0):
        t = share * schedule.T
        assert setting.time_of(float(setting.label_of(t))) == pytest.approx(t, rel=1e-9)


@pytest.mark.parametrize("problem", ["gaussian", "mixture"])
def test_the_network_is_the_gradient_of_the_noised_density(problem):
    """Eps against a finite difference of ln p, and the other predictions against eps."""
    vp, t = fs.VP(), 0.3
    target = getattr(problems, problem)((4,), 0.7)
    a, s = float(vp.alpha(t)), float(vp.sigma(t))
    x = torch.linspace(-2.0, 2.0, 12, dtype=torch.float64).reshape(3, 4)

    def log_p(y):
        std = ((a * target.stds[:, None]) ** 2 + s**2).sqrt()
        parts = torch.distributions.Normal(a * target.means[:, None], std).log_prob(y)
        return torch.logsumexp(target.weights.log()[:, None, None] + parts, 0)

    score = (log_p(x + 1e-5) - log_p(x - 1e-5)) / 2e-5

    def net(kind):
        return Network(target, Setting.of(vp, kind, "t", None))(x, t)

    torch.testing.assert_close(net("score"), score, rtol=1e-7, atol=1e-7)
    torch.testing.assert_close(net("eps"), -s * score, rtol=1e-7, atol=1e-7)
    x0 = (x + s**2 * score) / a
    torch.testing.assert_close(net("x0"), x0, rtol=1e-6, atol=1e-7)
    torch.testing.assert_close(net("v"), a * net("eps") - s * x0, rtol=1e-6, atol=1e-7)
    flow = float(vp.dalpha(t)) * x0 + float(vp.dsigma(t)) * net("eps")
    torch.testing.assert_close(net("flow"), flow, rtol=1e-6, atol=1e-7)


def test_the_callers_randomness_is_restored():
    torch.manual_seed(3)
    before = torch.get_rng_state()
    with own_randomness(0) as untouched:
        assert untouched()
        torch.rand(1)
        assert not untouched()
    assert torch.equal(torch.get_rng_state(), before)


def test_what_is_only_impolite_is_a_note():
    def impolite(net, n, seed, steps):
        torch.manual_seed(seed)
        x = torch.normal(0.0, 80.0, (n, *net.shape), dtype=torch.float64)
        for k, (t, s) in enumerate(pairwise(fs.karras(steps, end=0.02)(fs.EDM()).tolist())):
            x = x + (s - t) * net(x.float() if k == 0 else x, t).double()
        return x

    report = check(impolite, fs.EDM(), steps=8)
    assert report.ok, report
    assert any("float32 and float64" in note for note in report.notes)
    assert any("global random state" in note for note in report.notes)
    assert "Note: " in str(report)
