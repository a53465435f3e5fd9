"""Rows of numbers from whatever is compared: points, sequences, images of floats or of whole numbers."""

from __future__ import annotations

from contextlib import suppress
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fastscore.report.quality.resample import Floats

BLOCK = 64  # pixels a side of what is compared; larger images are averaged over blocks


def flat(rows: NDArray[Any]) -> Floats:
    """Return rows [n, D] of what is compared: images of whole numbers in -1 .. 1, large ones as means over blocks."""
    white = {"u1": 127.5, "u2": 32767.5}.get(rows.dtype.str[1:])
    if rows.ndim == 4:
        h, w = rows.shape[1:3] if white else rows.shape[2:4]
        block = -(-max(h, w) // BLOCK)
        if block > 1:
            axes = (1, 2) if white else (2, 3)
            return np.concatenate(
                [_blocks(part, block, axes, white) for part in np.array_split(rows, -(-len(rows) // 64))]
            )
    x = rows.reshape(len(rows), -1)
    return x.astype(np.float64) if white is None else x / white - 1.0


def _blocks(rows: NDArray[Any], block: int, axes: tuple[int, int], white: float | None) -> Floats:
    """Return means over blocks of pixels, [n, D]; what is left at the far edges is left out."""
    for axis in axes:
        count = rows.shape[axis] // block
        kept = np.take(rows, range(count * block), axis).astype(np.float64)
        rows = kept.reshape(*rows.shape[:axis], count, block, *rows.shape[axis + 1 :]).mean(axis + 1)
    x = rows.reshape(len(rows), -1)
    return x if white is None else x / white - 1.0


def checked(name: str, values: Any) -> NDArray[Any]:
    """Return what is to be compared as an array; raises ValueError if it cannot be."""
    with suppress(AttributeError):
        values = values.detach().cpu().numpy()
    x = np.asarray(values)
    whole = x.dtype.kind == "u" and x.dtype.itemsize <= 2 and x.ndim == 4
    if x.ndim < 2 or len(x) < 2 or 0 in x.shape or not (whole or x.dtype.kind in "fiu"):
        raise ValueError(
            f"{name}: {x.dtype} {x.shape} must be at least 2 rows of numbers: points [N, D], sequences [N, L, C], "
            "images [N, C, H, W] of floats or [N, H, W, C] of uint8"
        )
    if not whole:
        x = x.astype(np.float64, copy=False)
        if not np.isfinite(x).all():
            raise ValueError(f"{name}: holds values that are not finite")
    return x
