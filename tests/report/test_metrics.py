from __future__ import annotations

import numpy as np
import pytest
from scipy import linalg

from fastscore.model.nets import build
from fastscore.report.metrics import features, frechet_distance


def test_frechet_distance_against_scipy():
    rng = np.random.default_rng(0)
    a = rng.standard_normal((500, 6)) @ rng.standard_normal((6, 6))
    b = rng.standard_normal((400, 6)) @ rng.standard_normal((6, 6)) + 0.5
    root = linalg.sqrtm(np.cov(a.T) @ np.cov(b.T)).real
    expected = np.square(a.mean(0) - b.mean(0)).sum() + np.trace(np.cov(a.T) + np.cov(b.T) - 2 * root)
    assert frechet_distance(a, b) == pytest.approx(expected, rel=1e-9)
    assert frechet_distance(a, a) == pytest.approx(0.0, abs=1e-9)
    assert frechet_distance(a, a + 2.0) == pytest.approx(24.0, rel=1e-9)


@pytest.mark.parametrize(
    ("a", "b", "message"),
    [
        (np.zeros((1, 2)), np.zeros((5, 2)), "at least two rows"),
        (np.zeros((5, 3)), np.zeros((5, 2)), "shapes"),
        (np.full((5, 2), np.nan), np.zeros((5, 2)), "not finite"),
    ],
)
def test_bad_features_are_named(a, b, message):
    with pytest.raises(ValueError, match=message):
        frechet_distance(a, b)


def test_features_do_not_depend_on_the_batch():
    net = build({"name": "Classifier", "channels": 1, "classes": 3, "width": 8}).eval()
    images = np.random.default_rng(0).integers(0, 256, (7, 12, 12, 1), dtype=np.uint8)
    whole, labels = features(net, images)
    parts, _ = features(net, images, batch=3)
    assert whole.shape == (7, 32)
    assert set(labels) <= {0, 1, 2}
    np.testing.assert_allclose(parts, whole, rtol=1e-4, atol=1e-6)
