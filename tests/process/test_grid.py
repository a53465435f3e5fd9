from __future__ import annotations

import math
from itertools import product

import numpy as np
import pytest
from cells import in_each

from fastscore.process.continuous import EDM, VE, VP, Flow, SubVP, Trig
from fastscore.process.discrete import discrete_vp, smld
from fastscore.process.grid import (
    Grid,
    Times,
    arctan,
    dynamic_shift,
    edm_levels,
    indices,
    karras,
    logsnr,
    quadratic,
    shifted,
    uniform,
)
from fastscore.process.parametrization import Parametrization
from fastscore.process.schedule import lam
from fastscore.solvers.grids import NOISIEST, within


def test_uniform_is_songs():
    np.testing.assert_allclose(uniform(10)(VP()), np.linspace(1.0, 1e-3, 11))
    np.testing.assert_allclose(uniform(10)(VE()), np.linspace(1.0, 1e-5, 11))
    assert VP().t_end == SubVP().t_end == 1e-3
    assert VE().t_end == 1e-5


def test_karras_is_edms():
    i = np.arange(18)
    sigma = (80 ** (1 / 7) + i / 17 * (0.002 ** (1 / 7) - 80 ** (1 / 7))) ** 7
    np.testing.assert_allclose(edm_levels(18)(EDM()), [*sigma, 0.0], rtol=1e-12)
    vp = karras(18)(VP())  # the same rule in the noise-to-signal ratio
    ratio = np.exp(-lam(VP(), vp[:-1]) / 7)
    np.testing.assert_allclose(np.diff(ratio, 2), 0.0, atol=1e-12)


def test_logsnr_and_quadratic():
    t = logsnr(12)(VP())
    np.testing.assert_allclose(np.diff(lam(VP(), t[:-1]), 2), 0.0, atol=1e-10)
    t = quadratic(12)(VP())
    np.testing.assert_allclose(np.diff(np.sqrt(t), 2), 0.0, atol=1e-12)


def test_index_grids_are_diffusers():
    np.testing.assert_array_equal(indices(4, "leading")(discrete_vp()), [750, 500, 250, 0, -1])
    np.testing.assert_array_equal(indices(4, "trailing")(discrete_vp()), [999, 749, 499, 249, -1])
    np.testing.assert_array_equal(indices(4, "linspace")(discrete_vp()), [999, 666, 333, 0, -1])
    np.testing.assert_array_equal(indices(1000)(discrete_vp()), np.arange(999, -2, -1))
    assert len(set(indices(7, "trailing")(discrete_vp()))) == 8  # 1000 is no multiple of 7


def test_index_grids_start_and_end_where_they_are_told():
    table = discrete_vp()
    np.testing.assert_array_equal(indices(4, "leading", offset=1)(table), [751, 501, 251, 1, -1])  # diffusers' offset
    np.testing.assert_array_equal(indices(5, start=499)(table), [499, 399, 299, 199, 99, -1])  # half of a table
    np.testing.assert_array_equal(indices(2, "linspace", start=500, end=100, clean=False)(table), [500, 300, 100])
    np.testing.assert_array_equal(indices(3, "leading", start=599, end=300)(table), [500, 400, 300, -1])


def test_arctan_is_karras_below_its_scale_and_leaves_pure_noise():
    ratio = np.exp(-lam(Trig(), arctan(9, rho=3.0, scale=2.0)(Trig())[1:-1]))
    angle = np.append(0.5 * math.pi, np.arctan(ratio / 2.0)) ** (1.0 / 3.0)
    np.testing.assert_allclose(np.diff(angle, 2), 0.0, atol=1e-12)
    np.testing.assert_allclose(arctan(9, scale=1e9)(EDM()), karras(9)(EDM()), rtol=1e-6)
    # Sabour et al. 2024: one Gaussian's best levels are even in arctan sigma.
    low, high = math.atan(0.002), math.atan(80.0)
    np.testing.assert_allclose(arctan(5, rho=1.0, scale=1.0)(EDM())[:-1], np.tan(np.linspace(high, low, 5)), rtol=1e-10)


def test_no_step_but_the_first_is_long_in_lam():
    for schedule in (Flow(), Trig(), Flow(shift=3.0), discrete_vp(zero_snr=True), VP(), VE(), EDM()):
        values = lam(schedule, arctan(20)(schedule)[1:-1])
        assert np.diff(values).max() < 1.0, schedule
    assert np.diff(lam(Flow(), uniform(20, clean=True)(Flow())[1:-1])).max() > 4.0  # what it replaces


def test_shift_is_that_of_flow():
    """t' = k t / (1 + (k - 1) t) of Esser et al. 2024, by a schedule or by a grid."""
    t = uniform(6)(Flow())
    expected = 3.0 * t / (1.0 + 2.0 * t)
    np.testing.assert_allclose(shifted(uniform(6), 3.0)(Flow()), expected, rtol=1e-12)
    np.testing.assert_allclose(Flow(shift=3.0).sigma(t), expected, rtol=1e-15)
    np.testing.assert_allclose(shifted(shifted(uniform(6), 6.0), 0.5)(Flow()), expected, rtol=1e-12)
    np.testing.assert_allclose(
        np.diff(lam(VP(), shifted(karras(8, start=0.5), 2.0)(VP())[:-1])),
        np.diff(lam(VP(), karras(8, start=0.5)(VP())[:-1])),
        rtol=1e-9,
    )  # any schedule: lam moves by ln 2
    assert math.isclose(dynamic_shift(256), math.exp(0.5)) and math.isclose(dynamic_shift(4096), math.exp(1.15))


def test_whole_indices_are_the_nearest_distinct_ones():
    for table, steps in ((discrete_vp(), 12), (discrete_vp(), 400), (discrete_vp(zero_snr=True), 200), (smld(10), 10)):
        fractional, t = (Grid("arctan", steps, clean=True, whole=whole)(table)[:-1] for whole in (False, True))
        assert np.all(t == np.round(t)) and np.all(np.diff(t) < 0) and (t[0], t[-1]) == (table.T, 0.0)
        if steps == 12:  # no two crowd onto one index
            np.testing.assert_array_equal(t, np.round(fractional))
    np.testing.assert_array_equal(Grid("karras", 10, clean=True, whole=True)(smld(10)), np.arange(9, -2, -1))
    with pytest.raises(ValueError, match="11 times for the fewer indices from 9 to 0"):
        Grid("karras", 11, clean=True, whole=True)(smld(10))


def test_a_grid_stays_within_what_a_network_knows():
    eps, x0 = Parametrization("eps"), Parametrization("x0")
    grid = within(karras(10), EDM(), VE(), eps)  # both ends: EDM has more noise, and less
    np.testing.assert_allclose(grid(EDM())[[0, -2]], VE().sigma([1.0, VE().t_end]), rtol=1e-9)
    table = discrete_vp()
    assert math.isclose(within(karras(10), EDM(), table, eps).end, float(np.exp(-lam(table, 0.0))))
    assert within(karras(10, end=0.002), EDM(), table, eps).end == 0.002  # what is said stays
    assert within(karras(10), EDM(), table, Parametrization("x0", exact=True)).end is None
    flow = within(arctan(10), Flow(), Flow(), eps)  # eps says nothing of the data at pure noise
    assert math.isclose(float(lam(Flow(), flow(Flow())[0])), NOISIEST)
    assert within(arctan(10), Flow(), Flow(), x0).start is None


def test_a_rounding_beyond_an_end_is_the_end():
    """sigma_max of a float32 table lies one rounding above that of the float64 one (ComfyUI#6474)."""
    schedule = EDM(0.0291671582, 14.6146412293)
    sigma = float(np.float32(14.6146412293))
    above = float(np.nextafter(np.float32(sigma), np.float32(20.0)))
    for first in (sigma, above):
        assert Times((first, 1.0, 0.0))(schedule)[0] in (schedule.T, first)
        assert karras(5, start=first)(schedule)[0] <= schedule.T
    with pytest.raises(ValueError, match=r"14.6147 .. 0.0 leave EDM's range 14.6146412293 .. 0.0"):
        Times((14.6147, 1.0, 0.0))(schedule)


@pytest.mark.parametrize("spacing", ["uniform", "quadratic", "logsnr", "karras", "arctan"])
def test_every_grid_has_its_ends(spacing):
    def check(schedule, steps, clean):
        t = Grid(spacing, steps, clean=clean)(schedule)
        assert len(t) == steps + 1
        assert t[0] == schedule.T
        assert t[-1] == (schedule.t_clean if clean else schedule.t_end)
        assert np.all(np.diff(t) < 0)

    in_each(product([VP(), SubVP(), VE(), EDM()], [1, 2, 3, 50], [False, True]), check)


def test_clean_end_of_ve_is_at_minus_infinity():
    assert uniform(3, clean=True)(VE())[-1] == -math.inf
    assert VE().sigma(-math.inf) == 0.0


def test_start_and_end():
    t = uniform(4, start=0.8, end=0.2)(VP())
    assert (t[0], t[-1]) == (0.8, 0.2)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: uniform(0), "steps = 0"),
        (lambda: uniform(1 << 20), "steps = 1048576"),
        (lambda: Grid("cubic", 5), "spacing = 'cubic'"),
        (lambda: karras(5, rho=0.0), "rho = 0"),
        (lambda: uniform(5, start=2.0)(VP()), "from t = 2.0"),
        (lambda: uniform(5, start=0.1, end=0.2)(VP()), "must decrease"),
        (lambda: uniform(5, end=-1.0)(VP()), "to -1.0"),
        (lambda: uniform(5, end=float("nan"))(VP()), "nan"),
        (lambda: karras(5)(Flow()), "infinite at t = 1.0"),
        (lambda: karras(5, end=0.0)(VP()), "infinite at t = 0.0"),
        (lambda: indices(5)(VP()), "continuous"),
        (lambda: indices(1001)(discrete_vp()), "1 .. 1000"),
        (lambda: indices(5, start=99.5)(discrete_vp()), "must be indices"),
        (lambda: indices(4, start=2)(discrete_vp()), "1 .. 3"),
        (lambda: indices(5, offset=1), "belongs to the spacing leading"),
        (lambda: indices(4, "leading", offset=250)(discrete_vp()), "beyond the first, 999"),
        (lambda: shifted(indices(5), 2.0), "whole indices"),
        (lambda: shifted(uniform(5), 0.0), "shift = 0"),
        (lambda: arctan(5, scale=0.0), "scale = 0"),
        (lambda: dynamic_shift(0), "tokens = 0"),
        (lambda: Flow(shift=-1.0), "shift = -1"),
        (lambda: uniform(10, end=999.0)(discrete_vp()), "must decrease"),
        (lambda: Times((1.0,))(VP()), "at least two"),
        (lambda: Times((0.5, 0.7))(VP()), "decreasing"),
        (lambda: Times((2.0, 0.5))(VP()), "leave VP's"),
    ],
)
def test_bad_grids_are_named(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_a_table_of_one_level():
    np.testing.assert_array_equal(indices(1)(smld(1)), [0.0, -1.0])
