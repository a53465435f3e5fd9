"""The units of points: exact to the digit, both ways, for arrays and tensors."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from fastscore.data import load as data
from fastscore.data.affine import Affine, standardising
from fastscore.data.load import Dataset

RNG = np.random.default_rng(0)


def test_columns_get_mean_0_and_standard_deviation_1():
    x = RNG.normal([5000.0, 0.2], [1000.0, 1e-3], (4000, 2))
    affine = standardising(x)
    np.testing.assert_allclose(affine.shift, x.mean(0), rtol=1e-12)
    np.testing.assert_allclose(affine.scale, x.std(0), rtol=1e-12)
    y = affine.inverse(x)
    assert np.abs(y.mean(0)).max() < 1e-10 and np.abs(y.std(0) - 1).max() < 1e-10
    np.testing.assert_allclose(affine(y), x, rtol=1e-14)
    seen = Dataset(x).standardised().network_range(np.arange(10))
    assert seen.dtype == np.float32 and np.array_equal(seen, y[:10].astype(np.float32))
    assert affine.log_determinant((2,)) == pytest.approx(math.log(x.std(0).prod()))
    t = torch.from_numpy(y).float()
    assert affine(t).dtype == torch.float32
    assert np.abs(affine(t).numpy() - x).max() <= 2.0**-24 * 1.01 * np.abs(x).max() + 1000 * 2.0**-24 * np.abs(y).max()


def test_channels_of_sequences_share_their_scale():
    x = RNG.normal([3e4, -2.0], [500.0, 90.0], (200, 7, 2))
    affine = standardising(x)
    np.testing.assert_allclose(affine.scale, x.std((0, 1)), rtol=1e-12)
    assert affine.log_determinant((7, 2)) == pytest.approx(7 * math.log(x.std((0, 1)).prod()))
    assert affine.inverse(torch.from_numpy(x)).std((0, 1)).numpy() == pytest.approx([1.0, 1.0], rel=1e-3)


@pytest.mark.parametrize("name", [*data.TOYS, "circles"])
def test_toy_sets_are_of_unit_scale_and_stay_as_they_are(name):
    whole = data.load(name, toy_size=2000)
    assert whole.standardised() is not None and whole.standardised().transform is None
    assert whole.standardised(always=True).transform is not None
    assert np.array_equal(whole.standardised().network_range(np.arange(5)), whole.x[:5])


@pytest.mark.parametrize(
    ("mean", "std", "changed"),
    [
        (0.0, 1.0, False), (0.0, 0.26, False), (0.0, 3.9, False), (1.9, 1.0, False),
        (0.0, 0.24, True), (0.0, 4.1, True), (2.1, 1.0, True), (5000.0, 1000.0, True), (0.0, 1e-3, True),
    ],
)  # fmt: skip
def test_what_counts_as_unit_scale(mean, std, changed):
    z = np.array([-1.0, 1.0] * 50)[:, None]
    x = np.concatenate([z, mean + std * z], 1)
    assert (standardising(x) is not None) == changed
    assert Dataset(x).standardised(always=False).transform is None
    assert Dataset(x).standardised(sigma_data=1.5 * float(x.std())).transform is None  # somebody knows it
    assert (Dataset(x).standardised(sigma_data=3.0 * float(x.std())).transform is not None) == changed


def test_constant_columns_come_back_as_they_were():
    x = np.stack([RNG.normal(0, 300, 100), np.full(100, -123.456), np.zeros(100), np.full(100, 1e-6)], 1)
    affine = standardising(x)
    y = affine.inverse(x)
    assert (y[:, 1:] == 0).all()
    wrong = torch.from_numpy(y).float() + 0.3  # what a network that is not exact makes of them
    back = affine(wrong).numpy()
    assert (back[:, 1] == np.float32(-123.456)).all() and np.abs(back[:, 3] / 1e-6 - 1).max() < 1e-6
    assert np.abs(back[:, 2]).max() < 1e-7
    assert standardising(np.stack([x[:, 0] / 300, np.full(100, 7.0)], 1)) is None
    assert standardising(np.stack([x[:, 0] / 300, np.full(100, 9.0)], 1)) is not None
    assert standardising(np.full((1, 3), 5e9)).shift == (5e9,) * 3


def test_what_float32_cannot_hold_is_refused_by_column():
    stamps = 1.7e9 + RNG.normal(0, 100, (50, 2)) * [0, 1] + [0, 0]
    with pytest.raises(ValueError, match=r"column 1 has mean 1\.\d+e\+09.*subtract"):
        standardising(stamps)
    with pytest.raises(ValueError, match="too large for float32"):
        standardising(np.array([[1e300], [-1e300]]))


@pytest.mark.parametrize(
    ("shift", "scale", "message"),
    [
        ((), (), "0 shifts"),
        ((0.0,), (1.0, 2.0), "1 shifts and 2 scales"),
        ((0.0,), (0.0,), "positive"),
        ((math.nan,), (1.0,), "finite"),
        ((0.0,), (math.inf,), "finite"),
    ],
)
def test_no_other_transforms(shift, scale, message):
    with pytest.raises(ValueError, match=message):
        Affine(shift, scale)
    with pytest.raises(ValueError, match="2 columns, and values of shape"):
        Affine((0.0, 0.0), (1.0, 1.0))(np.zeros((4, 3)))
