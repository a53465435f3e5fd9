from __future__ import annotations

import math
from itertools import product

import numpy as np
import pytest
from cells import in_each

from fastscore.process.continuous import EDM, VE, VP, Flow, SubVP
from fastscore.process.discrete import discrete_vp, smld
from fastscore.process.grid import Grid, Times, default_grid, edm_levels, indices, karras, logsnr, quadratic, uniform
from fastscore.process.schedule import lam


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


@pytest.mark.parametrize("spacing", ["uniform", "quadratic", "logsnr", "karras"])
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
    assert default_grid(VP()).spacing == "karras"
    assert default_grid(Flow()).spacing == "uniform"


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
        (lambda: Grid("leading", 5)(discrete_vp()), "down to sigma = 0"),
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
