r"""The FID, by torch-fidelity's Inception and weights that the user has.

The network is the one of Heusel et al. 2017 as torch-fidelity converts it, with TensorFlow's own resizing to 299 x 299;
features are its 2048 pooled ones, and the distance is that of report/metrics.py. Nothing is downloaded.
"""

from __future__ import annotations

import math
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from fastscore.output.progress import Progress
from fastscore.report.metrics import frechet_of_fits
from fastscore.report.quality.figures import Figure

GROUPS, BATCH = 5, 32
Extractor = Callable[[torch.Tensor], torch.Tensor]


class Fit:
    """Sums of features in groups of images, of which Gaussian fits are made: memory does not grow with the images."""

    def __init__(self, images: NDArray[np.uint8], extract: Extractor, tick: Callable[[float], None]) -> None:
        self.counts = np.zeros(GROUPS)
        self._sums: Any = 0.0
        self._squares: Any = 0.0
        for first in range(0, len(images), BATCH):
            x = torch.from_numpy(np.ascontiguousarray(images[first : first + BATCH].transpose(0, 3, 1, 2)))
            f = extract(x.repeat(1, 3 // x.shape[1], 1, 1)).double().numpy()
            if first == 0:
                self._sums = np.zeros((GROUPS, f.shape[1]))
                self._squares = np.zeros((GROUPS, f.shape[1], f.shape[1]))
            for group in range(GROUPS):
                part = f[(np.arange(first, first + len(f)) % GROUPS) == group]
                self.counts[group] += len(part)
                self._sums[group] += part.sum(0)
                self._squares[group] += part.T @ part
            tick(len(f))

    def gaussian(self, without: int | None = None) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Return mean and covariance of all images, or of those outside one group."""
        kept = np.arange(GROUPS) != without
        count = self.counts[kept].sum()
        mean = self._sums[kept].sum(0) / count
        return mean, (self._squares[kept].sum(0) - count * np.outer(mean, mean)) / (count - 1.0)


def fid(
    images: NDArray[np.uint8],
    reference: NDArray[np.uint8],
    real: NDArray[np.uint8] | None,
    extract: Extractor,
    weights: str,
    progress: bool = False,
) -> tuple[Figure, list[str]]:
    """Return the FID of images [N, H, W, C], and what to know when it is read.

    Its standard error is by a jackknife over 5 groups of images; the floor is that of as many real images, or none.

    Args:
        images, reference, real: uint8, C = 1 or 3; grey ones are shown to the network three times.
        extract: features [n, F] of images [n, 3, H, W], uint8; see ``inception``.
        weights: the sha256 of its weights.
        progress: whether to show a bar.

    Raises:
        ValueError: another number of channels, or fewer than 10 images a set.
    """
    sets = [images, reference, *([] if real is None else [real[: len(images)]])]
    for x in sets:
        if x.dtype != np.uint8 or x.ndim != 4 or x.shape[3] not in (1, 3) or len(x) < 2 * GROUPS:
            raise ValueError(
                f"fid: {x.dtype} {x.shape} must be at least {2 * GROUPS} images [N, H, W, C] of 8 bits with C = 1 or 3"
            )
    with Progress(progress, "images").begin(sum(map(len, sets))) as bar:
        ours, theirs, *rest = [Fit(x, extract, bar.advance) for x in sets]
    other = theirs.gaussian()
    value = frechet_of_fits(*ours.gaussian(), *other)
    left = np.array([frechet_of_fits(*ours.gaussian(group), *other) for group in range(GROUPS)])
    stderr = math.sqrt((GROUPS - 1) / GROUPS * float(np.square(left - left.mean()).sum()))
    floor = frechet_of_fits(*rest[0].gaussian(), *other) if rest else None
    least = min(len(images), len(reference))
    few = f", so this one compares only with those of {least}" if least < 50_000 else ""
    caveats = [
        f"fid: Inception's weights have sha256 {weights}; figures by other weights are other figures",
        f"fid: of {len(images)} images against {len(reference)}; it falls as they grow in number. Papers mostly have "
        f"50000{few}",
        "fid: images are resized to 299 x 299 as TensorFlow 1 did it; that some were JPEG files once, or were resized "
        "by another rule, is measured too",
        "fid: its features are ImageNet's; of other kinds of images, grey ones too, it may not say what people see",
    ]
    return Figure(value, floor, stderr), caveats


def inception(state: Mapping[str, Any]) -> Extractor:
    """Return torch-fidelity's Inception with the weights of a state dict, as features [n, 2048] of images.

    Raises:
        ImportError: torch-fidelity is not installed.
        ValueError: weights of another network.
    """
    try:
        from torch_fidelity.feature_extractor_inceptionv3 import (  # pyright: ignore[reportMissingImports]
            FeatureExtractorInceptionV3,
        )
    except (ImportError, RuntimeError) as error:  # the latter: torchvision is of another build than torch
        raise ImportError(f"the FID needs torch-fidelity, extra fid ({error})", name="torch-fidelity") from None
    try:
        with tempfile.TemporaryDirectory() as folder:  # it reads a file, and unpickles it: one that was just written
            copy = Path(folder) / "weights.pth"
            torch.save(dict(state), copy)
            net = FeatureExtractorInceptionV3("inception-v3-compat", ["2048"], feature_extractor_weights_path=str(copy))
    except (RuntimeError, TypeError, AttributeError, KeyError) as error:
        words = " ".join(str(error).split())[:200]
        raise ValueError(f"these are no weights of torch-fidelity's Inception: {words}") from None

    @torch.inference_mode()
    def extract(x: torch.Tensor) -> torch.Tensor:
        return net(x)[0]

    return extract
