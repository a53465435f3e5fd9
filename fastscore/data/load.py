"""Training data: image files, IDX files, NumPy files and toy sets. What goes in and what comes out: README.md.

Images are whole numbers NHWC in memory where they are in the file; a network sees them in [-1, 1]:

    x = u / 127.5 - 1,     u = clip(floor(127.5 x + 128), 0, 255)     (the rounding of EDM)
"""

from __future__ import annotations

import os
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fastscore.data.affine import Affine, standardising
from fastscore.data.arrays import KINDS, Range, as_latents, channels_last, examples_and_labels, in_range, is_image
from fastscore.data.idx import idx_folder
from fastscore.data.images import ALPHAS, SUFFIXES, image_folder, read_image
from fastscore.data.toys import CIRCLES, TOYS, circles, toy
from fastscore.errors import nearest

FASHION_MNIST = "fashion-mnist"
FASHION_MNIST_CLASSES = (
    "t-shirt", "trouser", "pullover", "dress", "coat", "sandal", "shirt", "sneaker", "bag", "ankle boot",
)  # fmt: skip
_FASHION_MNIST_FOLDER = "/usr/share/datasets/fashion-mnist"


@dataclass(frozen=True)
class Dataset:
    """Examples and, where there are any, class labels.

    Attributes:
        x: uint8 or uint16 images [N, H, W, C]; or floats: images [N, C, H, W] in -1 .. 1, points [N, D] and sequences
            [N, L, C].
        labels: int64 [N] or None.
        class_names: one per class; empty if unlabelled.
        value_range: (black, white) of images whose floats or range it was; None for others.
        transform: of points and sequences, to the units that ``x`` is in from those that a network sees.
        latents: whether ``x``, floats [N, C, H, W] in any units, is what an autoencoder made of images.
    """

    x: NDArray[Any]
    labels: NDArray[np.int64] | None = None
    class_names: tuple[str, ...] = ()
    value_range: Range | None = None
    transform: Affine | None = None
    latents: bool = False

    @classmethod
    def of(cls, x: Any) -> Dataset:
        """Return examples that are given as an array or a tensor [N, ...].

        Raises:
            ValueError: no example, or numbers that are not finite.
        """
        x = x if isinstance(x, np.ndarray) else x.detach().cpu().numpy()
        if x.ndim in (2, 3):
            x = x.astype(np.promote_types(x.dtype, np.float32))  # rounded once they are of unit scale
        elif x.dtype != np.uint8 or x.ndim != 4:
            x = x.astype(np.float32)
        if x.ndim < 2 or not len(x) or not np.isfinite(x).all():
            raise ValueError(f"data of shape {x.shape} must be at least one example [N, ...] of finite numbers")
        return cls(x)

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of one network sample: [C, H, W] of an image, [D] of a point, [L, C] of a sequence or point set."""
        if self.x.dtype.kind != "u":
            return self.x.shape[1:]
        _, h, w, c = self.x.shape
        return (c, h, w)

    @property
    def step(self) -> float | None:
        """The distance of two levels as a network sees them, of images in whole numbers; None for other data."""
        return {"u1": 1.0 / 127.5, "u2": 1.0 / 32767.5}.get(self.x.dtype.str[1:])

    def network_range(self, index: NDArray[np.int64]) -> NDArray[np.float32]:
        """Return examples as the network sees them: float32, images as NCHW in [-1, 1], points in its units."""
        x = self.x[index]
        if self.step is None:
            return (x if self.transform is None else self.transform.inverse(x)).astype(np.float32)
        half = np.float32(1.0 / self.step)  # 127.5 or 32767.5, exactly
        pixels = np.ascontiguousarray(x.transpose(0, 3, 1, 2), dtype=np.float32)
        return (pixels / half - np.float32(1.0)).astype(np.float32, copy=False)

    def standardised(self, always: bool | None = None, sigma_data: float | None = None) -> Dataset:
        """Return it with a transform that gives points and sequences unit scale, if they have another; see affine.py.

        Args:
            always: transform data of unit scale too; False: nothing.
            sigma_data: what somebody has said of their spread: where that is it, within a factor of 2, a network is
                scaled to the data already, and they stay as they are.

        Raises:
            ValueError: a column whose spread is lost in float32.
        """
        if self.x.ndim not in (2, 3) or self.transform is not None or always is False:
            return self
        known = sigma_data is not None and 0.5 <= float(self.x.std(dtype=np.float64)) / sigma_data <= 2.0
        return self if known and not always else replace(self, transform=standardising(self.x, bool(always)))


def load(
    source: str,
    split: str = "train",
    toy_size: int = 100_000,
    *,
    kind: str = "auto",
    shape: tuple[int, ...] | None = None,
    value_range: Range | None = None,
    alpha: str = "refuse",
) -> Dataset:
    """Load a data set by name or path.

    Args:
        source: "fashion-mnist" (the folder of Debian's package ``dataset-fashion-mnist``, or the one
            that the environment variable FASHION_MNIST names); a toy set (see data/toys.py;
            circles, whose samples are sets of 16 points); a folder of IDX files
            or of images (one subfolder a class), or one image; an .npy or .npz file of images [N, H, W], [N, H, W, C]
            or [N, C, H, W], float points [N, D] or sequences [N, L, C] (keys ``samples``, ``images``, ``x`` or
            ``arr_0``; labels under ``labels``, ``y`` or ``arr_1``; a split's own as ``x_test`` or ``test_images``).
        split: "train" or "test", where the source has both.
        toy_size: points drawn of a toy set.
        kind: "images" or "sequences" says what an array [N, A, B] is, "latents" that floats [N, C, H, W] are those of
            an autoencoder and not images, as the key ``latents`` does; "auto" goes by the rule of data/arrays.py.
        shape: of a sample of the model that the data are for: settles which axis is what, and the class of numbers.
        value_range: (black, white) of the images, if it is not that of their type.
        alpha: what becomes of transparency; see data/images.py.

    Raises:
        ValueError: nothing usable there, or something with two readings; the message says what was expected.
    """
    for name, value, choices in (("split", split, ("train", "test")), ("kind", kind, KINDS), ("alpha", alpha, ALPHAS)):
        if value not in choices:
            raise ValueError(f"{name} = {value!r} must be {', '.join(choices[:-1])} or {choices[-1]}")
    if value_range is not None and not -np.inf < value_range[0] < value_range[1] < np.inf:
        raise ValueError(f"value_range = {value_range} must be (black, white), finite and rising")
    if source.replace("_", "-").lower() in TOYS:
        return Dataset(toy(source, toy_size, seed=0 if split == "train" else 1))
    if source == CIRCLES:
        return Dataset(circles(toy_size, seed=0 if split == "train" else 1))
    names: tuple[str, ...] = ()
    path = Path(source)
    if source == FASHION_MNIST:
        path, names = Path(os.environ.get("FASHION_MNIST", _FASHION_MNIST_FOLDER)), FASHION_MNIST_CLASSES
        if not path.is_dir():
            raise ValueError(
                f"fashion-mnist: no folder {path}; install Debian's package dataset-fashion-mnist "
                "or set FASHION_MNIST to a folder that holds the four .gz files"
            )
    key, labels, last = "", None, True
    if path.is_file() and path.suffix.lower() in (".npy", ".npz"):
        key, x, labels = examples_and_labels(path, split)
        last = key == "samples" and x.dtype == np.uint8  # a run of samples
        if kind == "latents" or (kind == "auto" and "latents" in key):
            return Dataset(as_latents(x, source), labels, _numbered(labels), latents=True)
        if not is_image(x, kind, key, shape, source):
            if not np.isfinite(x).all():
                raise ValueError(f"{source}: holds values that are not finite")
            return Dataset(x.astype(np.promote_types(x.dtype, np.float32)), labels, _numbered(labels))
    elif kind == "latents":
        raise ValueError(f"{source}: latents are floats [N, C, H, W] in an .npy or .npz file")
    elif (path.is_dir() and any(path.glob("*-idx[0-9]-*"))) or (path.is_dir() and any(path.glob("*.idx[0-9]-*"))):
        x, labels = idx_folder(path, split)
        x, last = (x[..., None], True) if x.ndim == 3 else (x, False)
    elif path.is_dir():
        x, labels, names = image_folder(path, split, alpha)
    elif path.suffix.lower() in SUFFIXES and path.exists():
        x = read_image(path, alpha)[None]
    else:
        known = (FASHION_MNIST, *TOYS, CIRCLES)
        raise ValueError(
            f"data {source!r}{nearest(source, known)} is neither a known set ({', '.join(known)}) nor an image, a "
            "folder, .npy or .npz file"
        )
    if not last or x.ndim == 3:
        x = channels_last(x, source, shape, "samples" in key)
    if shape is not None and value_range is None and x.dtype == np.uint8:
        value_range = (0.0, 255.0)  # a dark image is one
    x, value_range = in_range(x, source, value_range)
    x = x if x.dtype.kind == "u" else np.ascontiguousarray(x.transpose(0, 3, 1, 2))
    return Dataset(x, labels, names if labels is not None and names else _numbered(labels), value_range)


def _numbered(labels: NDArray[np.int64] | None) -> tuple[str, ...]:
    """Return the names of classes that are known by number only."""
    return () if labels is None else tuple(str(k) for k in range(int(labels.max()) + 1))
