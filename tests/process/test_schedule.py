from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch

from fastscore.process import continuous as sde_classes
from fastscore.process import schedule as sde
from fastscore.process.beta import CosineBeta, ExponentialBeta, FunctionBeta, LinearBeta
from fastscore.process.config import schedule_from_dict, schedule_to_dict
from fastscore.process.continuous import EDM, VE, VP, Flow, Pair, SubVP, Trig, TutorialVE
from fastscore.process.discrete import DiscreteVE, DiscreteVP, discrete_vp, smld
from fastscore.process.schedule import Schedule, f, g2, lam, t_of_lam, transition

CONTINUOUS = {
    "vp": VP(),
    "vp-cosine": VP(CosineBeta()),
    "vp-exponential": VP(ExponentialBeta()),
    "vp-function": VP(FunctionBeta(lambda t: 0.1 + 19.9 * t)),
    "subvp": SubVP(),
    "ve": VE(),
    "tutorial": TutorialVE(),
    "edm": EDM(),
    "flow": Flow(),
    "trig": Trig(),
    "pair": Pair(lambda t: np.cos(t), lambda t: np.sin(t), T=1.5),
}
ALL = {
    **CONTINUOUS,
    "ddpm": discrete_vp(),
    "ddpm-cosine": discrete_vp("cosine"),
    "scaled": discrete_vp("scaled-linear"),
    "smld": smld(50),
}


def inner(schedule: Schedule, n: int = 41) -> np.ndarray:
    return np.linspace(schedule.t_end, schedule.T, n + 2)[1:-1]


@pytest.mark.parametrize("name", ALL)
def test_lam_decreases_and_inverts(name):
    schedule = ALL[name]
    t = inner(schedule)
    value = lam(schedule, t)
    assert np.all(np.diff(value) < 0)
    np.testing.assert_allclose(t_of_lam(schedule, value), t, rtol=1e-9, atol=1e-12)


def test_a_schedule_that_may_change_is_inverted_anew():
    class Mine:
        t_end, t_clean, T, prior_std, scale = 1e-3, 0.0, 1.0, 1.0, 1.0

        def alpha(self, t):
            return np.ones_like(np.asarray(t, np.float64))

        def sigma(self, t):
            return self.scale * np.asarray(t, np.float64)

    mine = Mine()
    first = t_of_lam(mine, 1.0)
    mine.scale = 2.0
    np.testing.assert_allclose(t_of_lam(mine, 1.0), first / 2.0, rtol=1e-12)


def test_what_is_remembered_is_nobodys_to_write_to():
    first = t_of_lam(VP(), [1.0, 2.0])
    kept = first.copy()
    first[:] = 0.0
    np.testing.assert_array_equal(t_of_lam(VP(), [1.0, 2.0]), kept)


@pytest.mark.parametrize("name", ALL)
def test_clean_end_is_the_data(name):
    schedule = ALL[name]
    assert schedule.alpha(schedule.t_clean) == pytest.approx(1.0, abs=1e-15)
    assert schedule.sigma(schedule.t_clean) == 0.0


@pytest.mark.parametrize("name", CONTINUOUS)
def test_derivatives_match_the_functions(name):
    schedule = CONTINUOUS[name]
    t = inner(schedule)
    h = 1e-5 * t
    for value, slope in ((schedule.alpha, schedule.dalpha), (schedule.sigma, schedule.dsigma)):
        numeric = (value(t + h) - value(t - h)) / (2 * h)
        np.testing.assert_allclose(slope(t), numeric, rtol=2e-6, atol=1e-8)


def test_drift_and_diffusion_are_the_papers():
    t = np.linspace(0.01, 1.0, 25)
    beta = 0.1 + 19.9 * t
    integral = 0.1 * t + 19.9 * t**2 / 2
    for schedule in (VP(), SubVP()):
        np.testing.assert_allclose(f(schedule, t), -beta / 2, rtol=1e-12)
        np.testing.assert_allclose(schedule.alpha(t), np.exp(-integral / 2), rtol=1e-14)
    np.testing.assert_allclose(g2(VP(), t), beta, rtol=1e-10)
    np.testing.assert_allclose(g2(SubVP(), t), beta * (1 - np.exp(-2 * integral)), rtol=1e-10)
    np.testing.assert_allclose(SubVP().sigma(t), 1 - np.exp(-integral), rtol=1e-13)
    g = VE().sigma(t) * math.sqrt(2 * math.log(50 / 0.01))
    np.testing.assert_allclose(g2(VE(), t), g**2, rtol=1e-12)
    np.testing.assert_allclose(g2(TutorialVE(), t), 25.0 ** (2 * t), rtol=1e-12)
    np.testing.assert_allclose(TutorialVE().prior_std, math.sqrt((25.0**2 - 1) / (2 * math.log(25))), rtol=1e-14)
    cosine = np.cos(np.pi / 2 * (t + 0.008) / 1.008) / np.cos(np.pi / 2 * 0.008 / 1.008)
    np.testing.assert_allclose(VP(CosineBeta()).alpha(t[:-1]), cosine[:-1], rtol=1e-12)


def test_noising_schedules_increase():
    t = np.linspace(0.01, 0.99, 50)
    for beta in (LinearBeta(), ExponentialBeta(), CosineBeta()):
        assert np.all(np.diff(beta(t)) > 0)


@pytest.mark.parametrize("name", ALL)
def test_transition_composes(name):
    schedule = ALL[name]
    t = inner(schedule, 9)
    r, v = transition(schedule, t[:-1], t[1:])
    np.testing.assert_allclose(r * schedule.alpha(t[:-1]), schedule.alpha(t[1:]), rtol=1e-12)
    np.testing.assert_allclose(r**2 * schedule.sigma(t[:-1]) ** 2 + v, schedule.sigma(t[1:]) ** 2, rtol=1e-12)


def test_discrete_forward_steps_are_the_papers():
    table = discrete_vp()
    i = np.arange(999)
    r, v = transition(table, i, i + 1)
    beta = np.linspace(1e-4, 0.02, 1000)[1:]
    np.testing.assert_allclose(r, np.sqrt(1 - beta), rtol=1e-12)
    np.testing.assert_allclose(v, beta, rtol=1e-9)
    np.testing.assert_allclose(transition(table, -1.0, 0.0), (math.sqrt(1 - 1e-4), 1e-4), rtol=1e-9)
    levels = smld(10)
    r, v = transition(levels, np.arange(9), np.arange(1, 10))
    sigma = np.geomspace(0.01, 1.0, 10)
    np.testing.assert_allclose(r, 1.0)
    np.testing.assert_allclose(v, np.diff(sigma**2), rtol=1e-12)


def test_a_ddpm_table_is_vp_at_n_times_beta():
    i = np.arange(0, 1000, 37)
    # ln alpha is a sum here and an integral there; they differ by the second-order terms of both.
    beta = np.linspace(1e-4, 0.02, 1000)
    bound = np.cumsum(beta**2 + np.gradient(beta))[i]
    gap = np.abs(np.log(discrete_vp().alpha(i)) - np.log(VP().alpha((i + 1) / 1000)))
    assert np.all(gap < bound)
    assert gap.max() > 0.1 * bound.max()


@pytest.mark.parametrize("name", ["vp", "subvp", "ve", "ddpm"])
def test_diffuse_samples_the_marginal(name):
    schedule = ALL[name]
    rng = np.random.default_rng(0)
    x0, z = rng.standard_normal((2, 5, 3, 4))
    t = inner(schedule, 5)
    x = sde.diffuse(schedule, x0, t, z)
    for k in range(5):
        np.testing.assert_allclose(x[k], schedule.alpha(t[k]) * x0[k] + schedule.sigma(t[k]) * z[k], rtol=1e-12)
    tensor = sde.diffuse(schedule, torch.from_numpy(x0), t, torch.from_numpy(z))
    np.testing.assert_allclose(tensor.numpy(), x, rtol=1e-14)


@pytest.mark.parametrize("name", [n for n in ALL if n not in ("vp-function", "pair")])
def test_json_round_trip(name):
    assert schedule_from_dict(schedule_to_dict(ALL[name])) == ALL[name]


def test_functions_cannot_be_saved():
    with pytest.raises(ValueError, match="Pair holds Python functions"):
        schedule_to_dict(CONTINUOUS["pair"])


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: VE(0.0, 50.0), "sigma_min = 0.0"),
        (lambda: EDM(2.0, 1.0), "sigma_max = 1.0"),
        (lambda: LinearBeta(1.0, float("nan")), "beta_max = nan"),
        (lambda: TutorialVE(1.0), "base = 1.0"),
        (lambda: DiscreteVP(()), r"betas = \(\) must be a list of numbers"),
        (lambda: DiscreteVP((1.0, 0.1)), "betas must be"),
        (lambda: DiscreteVP((0.1, 1.1)), "betas must be"),
        (lambda: discrete_vp(n=1, zero_snr=True), "at least 2 with zero_snr"),
        (lambda: DiscreteVE((1.0, 0.5)), "increasing"),
        (lambda: discrete_vp("sigmoid"), "kind = 'sigmoid'"),
        (lambda: discrete_vp(n=0), "n = 0"),
        (lambda: smld(0), "n = 0"),
        (lambda: t_of_lam(VP(), -9.0), "noisier than VP gets"),
        (lambda: t_of_lam(VP(), float("nan")), "noisier"),
        (lambda: schedule_from_dict({"name": "VPP"}), "schedule name = 'VPP'"),
        (lambda: schedule_from_dict({"name": "VE", "sigma": 1}), "schedule VE"),
    ],
)
def test_bad_arguments_are_named(make, message):
    with pytest.raises(ValueError, match=message):
        make()


@pytest.mark.parametrize("kind", [sde_classes.VP, sde_classes.SubVP])
def test_the_time_of_the_prior_can_be_chosen(kind):
    assert kind().T == 1.0
    assert kind(CosineBeta()).T == 0.9946
    longer = kind(T=1.5)
    assert longer.T == 1.5
    assert float(longer.alpha(1.5)) == pytest.approx(math.exp(-0.5 * (0.1 * 1.5 + 9.95 * 1.5**2)), rel=1e-12)
    assert replace(longer, t_end=0.01).T == 1.5
    for wrong in (0.0, -1.0, math.inf):
        with pytest.raises(ValueError, match=f"T = {wrong} must be above t_end"):
            kind(T=wrong)
    with pytest.raises(ValueError, match="below 1, where a cosine rate diverges"):
        kind(CosineBeta(), T=1.0)


def test_saved_schedules_keep_it():
    assert schedule_from_dict(schedule_to_dict(sde_classes.VP(T=0.9))) == sde_classes.VP(T=0.9)
    old = {"name": "VP", "beta": {"name": "LinearBeta", "beta_min": 0.1, "beta_max": 20.0}, "t_end": 1e-3}
    assert schedule_from_dict(old) == sde_classes.VP()
