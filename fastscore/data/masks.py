"""What inpainting starts from: known images, and masks of any common form; two readings are refused with both."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from fastscore.data.arrays import Range, in_range
from fastscore.data.images import read_layers
from fastscore.data.limits import numpy_arrays
from fastscore.data.load import Dataset, load

KEYS = ("mask", "masks", "")


def known_images(
    source: str, shape: tuple[int, ...], value_range: Range | None = None, limit: int | None = None
) -> tuple[Dataset, NDArray[np.bool_] | None]:
    """Return images for a model, and where a single image file is transparent, bool [1, H, W, 1]; None if nowhere.

    What is transparent may be the hole that is to be filled in, so it is no error here. An 8-bit image file becomes
    grey or coloured as the model is.

    Args:
        source: an image file, or what ``load`` takes.
        shape: of the model's samples, [1 or 3, H, W].
        value_range: (black, white) of the data that the model was trained on, if it was not 0 .. 255.
        limit: how many to take; None for all.

    Raises:
        ValueError: no readable images, or images of another shape.
    """
    path, clear = Path(source), None
    if path.is_file() and path.suffix.lower() not in (".npy", ".npz"):
        x, opacity = read_layers(path)
        clear = None if opacity is None else opacity[None] < 255
        eight = x.dtype == np.uint8
        if eight and shape[0] == 1 and x.shape[2] == 3:
            x = np.asarray(Image.fromarray(x).convert("L"))[:, :, None]
        elif eight and shape[0] == 3 and x.shape[2] == 1:
            x = x.repeat(3, 2)
        x, value_range = in_range(x[None], source, value_range or ((0.0, 255.0) if eight else None))
        dataset = Dataset(x if x.dtype.kind == "u" else x.transpose(0, 3, 1, 2), value_range=value_range)
    else:
        dataset = load(source, "test", shape=shape, value_range=value_range)
    if dataset.shape != shape:
        raise ValueError(f"{source} holds {dataset.x.dtype} {dataset.shape}; this model has images of shape {shape}")
    labels = None if dataset.labels is None else dataset.labels[:limit]
    return replace(dataset, x=dataset.x[:limit], labels=labels), clear


def read_mask(path: Path, images: tuple[int, int, int]) -> NDArray[np.bool_]:
    """Return where to fill in, True there: bool [1, H, W], or [N, H, W] with a mask an image.

    What is white is filled in, or what is transparent. Of an array that is True, 1, 255 or whatever is not 0, if there
    are two values; of more of them what is brighter than half, as edges and JPEG leave few in between.

    Args:
        path: an image, or an .npy or .npz file (its key ``mask`` or ``masks``, or its only one) of shape [H, W],
            [H, W, 1], [1, H, W], or with an axis for N images.
        images: N, H, W of the images.

    Raises:
        ValueError: no readable file, another shape, or a mask with two readings; the message says which and what to do.
    """
    _, h, w = images
    if path.suffix.lower() in (".npy", ".npz"):
        return _holes(_shaped(_array(path), images, path), str(path))
    values, opacity = read_layers(path)
    if values.shape[:2] != (h, w):
        raise ValueError(f"--mask {path} is {values.shape[0]} x {values.shape[1]} pixels; expected {h} x {w}")
    if opacity is None:
        return _holes(_grey(values), str(path))[None]
    hole = opacity[:, :, 0] < 128
    grey = _grey(values)
    if set(np.unique(grey).tolist()) == {0, 255} and ((grey == 255) != hole).any():
        raise ValueError(
            f"--mask {path} has two readings: filled in is what is transparent ({hole.sum()} pixels), or what is white "
            f"({(grey == 255).sum()} pixels). Save it without transparency, white where to fill in"
        )
    return hole[None]


def _array(path: Path) -> NDArray[Any]:
    def wanted(names: list[str]) -> list[str]:
        key = next((k for k in KEYS if k in names), None)
        if key is None and len(names) != 1:
            raise ValueError(f"--mask {path} has the keys {', '.join(names) or 'none'}; expected mask, or a single one")
        return [names[0] if key is None else key]

    return next(iter(numpy_arrays(path, wanted).values()))


def _shaped(values: NDArray[Any], images: tuple[int, int, int], path: Path) -> NDArray[Any]:
    """Return the values as [1 or N, H, W]."""
    n, h, w = images
    readings = []
    for count in dict.fromkeys((1, n)):
        shapes = [(count, h, w), (count, h, w, 1), (count, 1, h, w), *([(h, w), (h, w, 1)] if count == 1 else [])]
        if values.shape in shapes:
            readings.append(values.reshape(count, h, w))
        for axis in (1, 3):  # the channels of a colour image, if all are the same
            if values.ndim == 4 and values.shape == (*(count, h, w)[:axis], 3, *(count, h, w)[axis:]):
                first = values.take([0], axis)
                if (values != first).any():
                    raise ValueError(f"--mask {path} {values.shape} has three channels that differ; save one of them")
                readings.append(first.reshape(count, h, w))
    if values.shape == (h, w, 3) and (values == values[:, :, :1]).all():
        readings.append(values[None, :, :, 0])
    if not readings:
        raise ValueError(f"--mask {path} has shape {values.shape}; expected {h} x {w}, or {n} of them")
    if any(r.shape != readings[0].shape or (r != readings[0]).any() for r in readings[1:]):
        raise ValueError(
            f"--mask {path} {values.shape} may be one mask of {h} x {w} or one for each of {n} images; save it as "
            f"(1, {h}, {w}), or with as many axes as the images"
        )
    return readings[0]


def _grey(values: NDArray[Any]) -> NDArray[Any]:
    """Return [H, W] of colours [H, W, C]: the brightest channel, so that any colour on black is a mask."""
    return values.max(2)


def _holes(values: NDArray[Any], where: str) -> NDArray[np.bool_]:
    """Return where values [.., H, W] say that something is to be filled in.

    Raises:
        ValueError: values that are not finite, negative, or of two readings.
    """
    if values.dtype == bool:
        return values
    if values.dtype.kind not in "fiu":
        raise ValueError(f"--mask {where} holds {values.dtype}; it must hold bools or numbers")
    if not np.isfinite(values).all():
        raise ValueError(f"--mask {where} holds NaN or Inf")
    levels = np.unique(values)
    if len(levels) <= 2 and (levels[0] == 0 or levels.tolist() == [levels[-1]]) and levels[-1] >= 0:
        return values != 0
    low, high = float(levels[0]), float(levels[-1])
    full = 1.0 if values.dtype.kind == "f" and high <= 1.0 else 255.0 if high <= 255.0 else 65535.0
    hole = values > full / 2
    between = (values > full / 16) & (values < full - full / 16)
    if low < 0 or not hole.any() or hole.all() or 4 * between.sum() > values.size:
        raise ValueError(
            f"--mask {where} has two readings: of its {len(levels)} values {low:g} .. {high:g}, filled in is what "
            f"is not 0 ({(values != 0).sum()} pixels), or what is brighter than half ({hole.sum()}). Save 0 where the "
            "image stays and 255 where to fill in"
        )
    return hole
