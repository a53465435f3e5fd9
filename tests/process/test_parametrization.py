from __future__ import annotations

from itertools import product

import numpy as np
import pytest
from cells import in_each

from fastscore.process.continuous import EDM, VE, VP, Flow, SubVP, Trig
from fastscore.process.discrete import discrete_vp
from fastscore.process.parametrization import (
    LABELS,
    PREDICTIONS,
    SCALINGS,
    Parametrization,
    components,
    convert,
    network_time,
)
from fastscore.process.schedule import lam

SCHEDULES = [VP(), SubVP(), VE(), EDM(), Flow(), discrete_vp()]
T = {type(s).__name__: np.linspace(s.t_end, s.T, 9)[1:-1] for s in SCHEDULES}


@pytest.mark.parametrize("schedule", SCHEDULES, ids=lambda s: type(s).__name__)
def test_every_prediction_gives_every_other(schedule):
    in_each(product([schedule], PREDICTIONS, [p for p in PREDICTIONS if p != "edm"]), check_prediction)


def check_prediction(schedule, source, target):
    """x, D and eps at random; F from one definition, the target from another."""
    t = T[type(schedule).__name__]
    rng = np.random.default_rng(1)
    x0, eps = rng.standard_normal((2, len(t)))
    alpha, sigma = schedule.alpha(t), schedule.sigma(t)
    x = alpha * x0 + sigma * eps
    for scaling in SCALINGS:
        check_conversion(schedule, t, x, x0, eps, Parametrization(source, sigma_data=0.7, scaling=scaling), target)


def check_conversion(schedule, t, x, x0, eps, p, target):
    alpha, sigma = schedule.alpha(t), schedule.sigma(t)
    a, b = p.components(schedule, t)
    out = a * x0 + b * eps
    wanted_a, wanted_b = components(target, schedule, t)
    wanted = wanted_a * x0 + wanted_b * eps
    gain, weight = convert((wanted_a, wanted_b), (a, b), alpha, sigma)
    scale = np.abs(gain * x) + np.abs(weight * out) + 1.0
    assert np.all(np.abs(gain * x + weight * out - wanted) < 1e-12 * scale)
    if p.prediction == target and not p.unit:
        np.testing.assert_array_equal(gain, 0.0)
        np.testing.assert_array_equal(weight, 1.0)


def test_the_named_formulas():
    t = np.array([0.3])
    alpha, sigma = VP().alpha(t), VP().sigma(t)
    x0, eps = 0.7, -1.3
    x = alpha * x0 + sigma * eps
    value = {k: components(k, VP(), t)[0] * x0 + components(k, VP(), t)[1] * eps for k in ("score", "v", "flow")}
    np.testing.assert_allclose(value["score"], -(x - alpha * x0) / sigma**2)
    np.testing.assert_allclose(value["v"], alpha * eps - sigma * x0)
    beta = 0.1 + 19.9 * t
    np.testing.assert_allclose(value["flow"], -0.5 * beta * x - 0.5 * beta * value["score"])  # PF-ODE, eq. 13


def test_edm_is_karras_table_1():
    sigma, data = np.array([0.01, 1.0, 40.0]), 0.5
    p = Parametrization("edm", "log_sigma/4", data)
    np.testing.assert_allclose(p.c_in(EDM(), sigma), 1 / np.sqrt(sigma**2 + data**2))
    np.testing.assert_allclose(p.c_noise(EDM(), sigma), np.log(sigma) / 4)
    skip, out = convert(components("x0", EDM(), sigma), p.components(EDM(), sigma), np.ones(3), sigma)
    np.testing.assert_allclose(skip, data**2 / (sigma**2 + data**2), rtol=1e-12)
    np.testing.assert_allclose(out, sigma * data / np.sqrt(sigma**2 + data**2), rtol=1e-12)


def test_labels():
    t = np.array([0.25])
    value = {k: Parametrization("eps", k).c_noise(VP(), t) for k in LABELS}
    assert value["t"] == 0.25
    assert value["999t"] == 249.75
    np.testing.assert_allclose(value["sigma"], VP().sigma(t) / VP().alpha(t))
    np.testing.assert_allclose(value["log_sigma/4"], -lam(VP(), t) / 4)
    np.testing.assert_allclose(value["tanh"], np.tanh((np.log(2.0) - lam(VP(), t)) / 4), rtol=1e-13)  # sigma_data 0.5
    assert value["t/T"] == 0.25
    assert Parametrization("eps", "t/T").c_noise(discrete_vp(n=101), [0.0, 25.0, 100.0]).tolist() == [0.0, 0.25, 1.0]
    assert Parametrization("eps", "t/T").c_noise(discrete_vp(n=1), [0.0]) == 0.0


@pytest.mark.parametrize("schedule", [*SCHEDULES, Trig()], ids=lambda s: type(s).__name__)
@pytest.mark.parametrize("prediction", PREDICTIONS)
def test_a_network_of_unit_scaling_sees_and_makes_unit_variance(schedule, prediction):
    """For data of variance sigma_data^2, at every time, the clean end and pure noise included; the label is bounded."""
    ends = [schedule.t_clean, schedule.T] if np.isfinite(schedule.t_clean) else [schedule.T]
    t = np.array([*ends, *T.get(type(schedule).__name__, [0.7])])
    p = Parametrization(prediction, "tanh", 0.7, "unit")
    alpha, sigma = schedule.alpha(t), schedule.sigma(t)
    np.testing.assert_allclose(p.c_in(schedule, t) * np.hypot(0.7 * alpha, sigma), 1.0, rtol=1e-13)
    a, b = p.components(schedule, t)
    np.testing.assert_allclose(np.hypot(0.7 * a, b), 1.0, rtol=1e-13)
    np.testing.assert_allclose(0.49 * alpha * a + sigma * b, 0.0, atol=1e-13 * schedule.prior_std)  # F and x apart
    label = p.c_noise(schedule, t)
    assert np.all(np.abs(label) <= 1.0)
    if schedule.t_clean != -1.0:  # a table's labels end at its first level
        np.testing.assert_array_equal(label[sigma == 0.0], -1.0)
    np.testing.assert_array_equal(label[alpha == 0.0], 1.0)
    for target in ("x0", "v"):
        gain, weight = convert(components(target, schedule, t), (a, b), alpha, sigma)
        assert np.all(np.isfinite(gain)) and np.all(np.isfinite(weight))


@pytest.mark.parametrize("model", [VP(), EDM(1e-4, 200.0), Trig()], ids=lambda s: type(s).__name__)
@pytest.mark.parametrize("schedule", SCHEDULES, ids=lambda s: type(s).__name__)
def test_a_network_sees_the_same_state_on_any_schedule(model, schedule):
    t = np.array([v for v in T[type(schedule).__name__] if lam(schedule, v) > lam(model, model.T)])
    there, scale = network_time(model, schedule, t)
    np.testing.assert_allclose(scale * schedule.alpha(t), model.alpha(there), rtol=1e-10)
    np.testing.assert_allclose(scale * schedule.sigma(t), model.sigma(there), rtol=1e-10)


def test_pure_noise_is_the_same_everywhere():
    there, scale = network_time(Trig(), Flow(), np.array([1.0]))
    assert (there[0], scale[0]) == (Trig().T, 1.0)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("epsilon",), "prediction = 'epsilon'"),
        (("eps", "time"), "label = 'time'"),
        (("edm", "t", 0.0), "sigma_data"),
        (("edm", "t", 0.5, "full"), "scaling = 'full'"),
    ],
)
def test_bad_parametrizations_are_named(arguments, message):
    with pytest.raises(ValueError, match=message):
        Parametrization(*arguments)
