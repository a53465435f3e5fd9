"""Arrays as data: which axis is what, and which range of values is black to white.

A rule decides where people's files leave no doubt; elsewhere both readings are named, with the way to say which.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fastscore.data.limits import check_labels, numpy_arrays

KINDS = ("auto", "images", "sequences", "latents")
IMAGES, LABELS = ("samples", "images", "x", "arr_0", "latents"), ("labels", "y", "arr_1")
Range = tuple[float, float]


def examples_and_labels(path: Path, split: str) -> tuple[str, NDArray[Any], NDArray[np.int64] | None]:
    """Read from an .npy or .npz file the key of the examples, the examples, and their labels or None.

    Keys of a split (``x_test``, ``test_images``, and their labels) go before those of the whole; other arrays of the
    file are not touched.

    Raises:
        ValueError: no key that is known, or labels that are not one small integer an example; see limits.numpy_arrays.
    """
    chosen: list[str] = []

    def of_split(keys: tuple[str, ...]) -> list[str]:
        return [key for k in keys for key in (f"{k}_{split}", f"{split}_{k}")]

    def wanted(names: list[str]) -> list[str]:
        key = next((k for k in (*of_split(IMAGES), *IMAGES, "") if k in names), None)
        if key is None:
            raise ValueError(f"{path} has keys {', '.join(names)}; expected {', '.join(IMAGES)}, or x_{split}")
        labels = of_split(LABELS) if key in of_split(IMAGES) else LABELS
        chosen.extend([key, *[k for k in labels if k in names][:1]])
        return chosen

    arrays = numpy_arrays(path, wanted)
    key, x = chosen[0], arrays[chosen[0]]
    if x.ndim == 0 or not x.size:
        raise ValueError(f"{path}: {key} {x.shape} is empty")
    if len(chosen) == 1:
        return key, x, None
    labels = arrays[chosen[1]]
    labels = labels[:, 0] if labels.shape == (len(x), 1) else labels
    if labels.shape != (len(x),) or labels.dtype.kind not in "iu":
        raise ValueError(f"{path}: labels must be {len(x)} non-negative integers, got {labels.dtype} {labels.shape}")
    check_labels(path, labels)
    return key, x, labels.astype(np.int64)


def is_image(x: NDArray[Any], kind: str, key: str, shape: tuple[int, ...] | None, where: str) -> bool:
    """Return whether an array of examples [N, ..] holds images rather than points or sequences.

    With four axes it does, with two it does not. With three, integers are images [N, H, W]. Floats are images if their
    key is ``images`` or each is a square of 8 pixels or more, sequences [N, L, C] if C < 8; else it must be said.

    Args:
        kind: one of KINDS; "auto" goes by the rule.
        key: under which the file holds it.
        shape: of a sample of the model that they are for, if there is one.
        where: name of the source, for errors.

    Raises:
        ValueError: neither, or both.
    """
    numbers = x.dtype.kind in "fiub"
    if numbers and shape is not None and len(shape) == 3 and x.shape == shape[1:]:
        return True  # one grey image
    if numbers and (x.ndim == 4 or (x.ndim == 3 and x.dtype.kind in "iub" and kind != "sequences")):
        return True
    if not numbers or x.ndim not in (2, 3) or x.dtype.kind != "f":
        raise ValueError(
            f"{where}: {x.dtype} {x.shape} is neither uint8 images [N, H, W(, C)] (uint16, int and float ones will do) "
            "nor float points [N, D] or sequences [N, L, C]"
        )
    if x.ndim == 2 or kind == "sequences":
        return False
    if kind == "images" or "images" in key or (shape is not None and len(shape) == 3):
        return True
    _, a, b = x.shape
    if shape is not None or (b < 8 and a != b):
        return False
    if a == b >= 8:
        return True
    raise ValueError(
        f"{where}: {x.dtype} {x.shape} may be images of {a} x {b} pixels, or sequences of {a} tokens of {b} numbers. "
        f"Say which: --net unet or --net transformer; or save images as [N, {a}, {b}, 1]"
    )


def as_latents(x: NDArray[Any], where: str) -> NDArray[np.float32]:
    """Return latents [N, C, H, W] as a network sees them: as they are, in whatever units.

    Raises:
        ValueError: another number of axes, no floats, or values that are not finite.
    """
    if x.ndim != 4 or x.dtype.kind != "f":
        raise ValueError(f"{where}: {x.dtype} {x.shape} are no latents; they are floats [N, C, H, W]")
    if not np.isfinite(x).all():
        raise ValueError(f"{where}: holds values that are not finite")
    return np.ascontiguousarray(x, np.float32)


def channels_last(
    x: NDArray[Any], where: str, shape: tuple[int, ...] | None = None, last: bool = False
) -> NDArray[Any]:
    """Return images [N, H, W], [N, H, W, C] or [N, C, H, W] as [N, H, W, C].

    Of the two readings of four axes the one with 1 to 4 channels is taken, of two such the one with 1 or 3, and of two
    such the one of square images.

    Args:
        shape: [C, H, W] of the model that they are for, which settles it; one image alone may then lack the axis N.
        last: whether channels are last where both readings are as likely.

    Raises:
        ValueError: both readings are as likely.
    """
    if shape is not None and len(shape) == 3:
        c, h, w = shape
        x = x[None] if x.shape in ((h, w), (h, w, c), (c, h, w)) else x
    if x.ndim == 3:
        if x.shape[2] in (3, 4) and x.shape[1] != x.shape[2] and shape is None:
            h, w, c = x.shape
            raise ValueError(
                f"{where}: {x.shape} may be one image of {h} x {w} and {c} channels, or {h} images of {w} x {c}. "
                f"Save it as (1, {h}, {w}, {c}), or as ({h}, {w}, {c}, 1)"
            )
        return x[:, :, :, None]
    n, a, b, c = x.shape
    if shape in ((a, b, c), (c, a, b)) and not a == b == c:
        return x if shape == (c, a, b) else x.transpose(0, 2, 3, 1)
    of_last, of_first = ((k <= 4, k in (1, 3), square) for k, square in ((c, a == b), (a, b == c)))
    if of_last == of_first and not last and not a == b == c == 1:
        raise ValueError(
            f"{where}: {x.shape} may be {n} images of {a} x {b} pixels and {c} channels [N, H, W, C], or of {b} x {c} "
            f"pixels and {a} channels [N, C, H, W]. Save grey images as [N, H, W], or transpose what has the channels "
            "first and store it under the key samples of an .npz file, which has them last"
        )
    return x if of_last >= of_first else x.transpose(0, 2, 3, 1)


def in_range(x: NDArray[Any], where: str, values: Range | None = None) -> tuple[NDArray[Any], Range | None]:
    """Return images as Dataset keeps them, and the range that their floats had.

    uint8 fills 0 .. 255 and uint16 0 .. 65535, whatever the brightest pixel, so that a value means the same in every
    file; other integers count as 8 bits up to 255 and as 16 above; True is white. Floats with a negative value are
    in -1 .. 1, as networks have them, and others in 0 .. 1, as image libraries do. What fills next to nothing of its
    range is refused: it is mostly in another.

    Args:
        x: [N, H, W, C].
        values: (black, white), if it was said: any numbers then become floats, black -1 and white 1.

    Returns: uint8 or uint16 as it is, or float32 in -1 .. 1, and (black, white) of that.

    Raises:
        ValueError: values that are not finite, outside a range that was said, or that leave two readings.
    """
    if x.dtype == bool:
        x = x.astype(np.uint8) * np.uint8(255)
    low, high = float(x.min()), float(x.max())
    if not np.isfinite(low) or not np.isfinite(high):
        raise ValueError(f"{where}: holds values that are not finite")
    if values is not None and values == {"u1": (0.0, 255.0), "u2": (0.0, 65535.0)}.get(x.dtype.str[1:]):
        return x, None
    if values is not None:
        black, white = values
        slack = 1e-5 * (white - black)
        if low < black - slack or high > white + slack:
            raise ValueError(f"{where}: values {low:g} .. {high:g} leave the range {black:g} .. {white:g}")
        return (2.0 * (x.astype(np.float64) - black) / (white - black) - 1.0).astype(np.float32), (black, white)
    remedy = "Say which: --range BLACK,WHITE; in Python value_range="
    if x.dtype.kind == "f":
        if low >= 0.0 and high <= 1.0 + 1e-5:
            return (2.0 * x.astype(np.float64) - 1.0).astype(np.float32), (0.0, 1.0)
        if low >= -1.0 - 1e-5 and high <= 1.0 + 1e-5:
            return x.astype(np.float32), (-1.0, 1.0)
        raise ValueError(f"{where}: float images {low:g} .. {high:g} are neither in 0 .. 1 nor in -1 .. 1. {remedy}")
    if low < 0 or high > 65535:
        raise ValueError(f"{where}: {x.dtype} images {low:g} .. {high:g} are in neither 8 nor 16 bits. {remedy}")
    wide = x.dtype == np.uint16 or high > 255
    if 0 < high <= (4095 if wide else 1):
        likely = 1 if high <= 1 else 255 if high <= 255 else 4095
        raise ValueError(
            f"{where}: {x.dtype} images of {low:g} .. {high:g} may be white at {likely}, or dark ones of 0 .. "
            f"{65535 if wide else 255}. {remedy}"
        )
    return x.astype(np.uint16 if wide else np.uint8), None
