r"""Quality of samples: a Frechet distance in the feature space of a classifier.

    FID = |mu_1 - mu_2|^2 + tr(S_1 + S_2 - 2 (S_1^{1/2} S_2 S_1^{1/2})^{1/2})

The formula is Heusel et al. 2017's; the features are those of a small classifier trained on the same
data, so the number compares with nothing but other numbers of the same classifier. Report it beside
its floor, the distance between training and test images.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from fastscore.model.nets.classifier import Classifier


@torch.inference_mode()
def features(net: Classifier, images: NDArray[Any], batch: int = 500) -> tuple[NDArray, NDArray]:
    """Return (features [N, F], predicted labels [N]) of uint8 images [N, H, W, C], float64 and int64."""
    parts, labels = [], []
    for start in range(0, len(images), batch):
        x = torch.tensor(images[start : start + batch]).permute(0, 3, 1, 2).float() / 127.5 - 1.0
        f = net.features(x)
        parts.append(f.double().numpy())
        labels.append(net.head(f).argmax(1).numpy())
    return np.concatenate(parts), np.concatenate(labels)


def frechet_distance(a: NDArray, b: NDArray) -> float:
    """Return the Frechet distance between the Gaussian fits of two feature sets [N, F].

    Raises:
        ValueError: fewer than two examples on a side, or values that are not finite.
    """
    if len(a) < 2 or len(b) < 2 or a.shape[1:] != b.shape[1:]:
        raise ValueError(f"frechet_distance: shapes {a.shape} and {b.shape}; at least two rows of equal length a side")
    if not (np.isfinite(a).all() and np.isfinite(b).all()):
        raise ValueError("frechet_distance: features are not finite")
    (mean_a, cov_a), (mean_b, cov_b) = ((v.mean(0), np.atleast_2d(np.cov(v, rowvar=False))) for v in (a, b))
    return frechet_of_fits(mean_a, cov_a, mean_b, cov_b)


def frechet_of_fits(mean_a: NDArray, cov_a: NDArray, mean_b: NDArray, cov_b: NDArray) -> float:
    """Return the Frechet distance of two Gaussians: means [F], covariances [F, F]."""
    values, vectors = np.linalg.eigh(cov_a)
    root = (vectors * np.sqrt(np.maximum(values, 0.0))) @ vectors.T
    cross = np.sqrt(np.maximum(np.linalg.eigvalsh(root @ cov_b @ root), 0.0)).sum()
    shift = float(np.square(mean_a - mean_b).sum())
    return shift + float(np.trace(cov_a) + np.trace(cov_b) - 2.0 * cross)
