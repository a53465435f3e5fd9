"""Samples as files and pictures: .npz, PNG, contact sheets, density plots."""

from __future__ import annotations

import math
import os
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from fastscore.files import atomic
from fastscore.output.store import entries

THREADS = min(4, os.cpu_count() or 1)  # that make images files
BLOCK = 4096  # bytes, of which disks give a file whole ones


def write_npz(path: Path, **arrays: Any) -> None:
    """Write arrays as an .npz file."""
    with atomic(path) as file:
        np.savez(file, **arrays)


def npz_bytes(*sizes: int) -> int:
    """Return the most bytes of an .npz file of arrays of these bytes."""
    return sum(sizes) + 1024 * len(sizes) + 1024


def write_png(path: Path, image: NDArray[np.uint8]) -> None:
    """Write one uint8 image [H, W, C], grey or RGB.

    Raises:
        ValueError: neither 1 nor 3 channels.
    """
    with atomic(path) as file:
        save_png(file, image)


def save_png(file: BinaryIO, image: NDArray[np.uint8]) -> None:
    """Write one image to an open file, as ``write_png`` does."""
    if image.ndim != 3 or image.shape[2] not in (1, 3):
        raise ValueError(f"a PNG needs 1 or 3 channels; the sample has shape {image.shape}")
    Image.fromarray(image[:, :, 0] if image.shape[2] == 1 else image).save(file, format="PNG")


def small_pngs(images: NDArray[np.uint8]) -> NDArray[np.uint8] | None:
    """Return the PNG file of each of images [N, H, W, 1 or 3], uint8 [N, length]; None of larger ones.

    Small are those that fit in one block of a disk as they are: compression would save no room, and takes most of the
    time. All are made at once.
    """
    return entries.files(images) if entries.length(images) <= BLOCK else None


def png_bytes(height: int, width: int, channels: int) -> int:
    """Return the most bytes of a PNG file on disk: deflate's bound, and the chunks' heads, in whole blocks."""
    raw = height * (width * channels + 1)
    return -(-(raw + raw // 1000 + 1024) // BLOCK) * BLOCK


def contact_sheet(images: NDArray[np.uint8], columns: int = 0, scale: int = 0, gap: int = 2) -> NDArray[np.uint8]:
    """Tile uint8 images [N, H, W, C] row by row on white.

    Args:
        columns: 0 makes the sheet about square.
        scale: integer enlargement; 0 brings small images to about 56 pixels.
    """
    n, h, w, c = images.shape
    columns = columns or max(1, math.ceil(math.sqrt(n)))
    scale = scale or max(1, 56 // max(h, w))
    images = images.repeat(scale, axis=1).repeat(scale, axis=2)
    h, w = h * scale, w * scale
    rows = max(1, math.ceil(n / columns))
    sheet = np.full((rows * (h + gap) + gap, columns * (w + gap) + gap, c), 255, np.uint8)
    for k, image in enumerate(images):
        top, left = gap + (k // columns) * (h + gap), gap + (k % columns) * (w + gap)
        sheet[top : top + h, left : left + w] = image
    return sheet


def density_sheet(points: NDArray[np.floating], size: int = 384) -> NDArray[np.uint8]:
    """Draw the first two coordinates of points [N, D >= 1] as a density on white, uint8 [S, S, 1]."""
    xy = np.stack([points[:, 0], points[:, 1] if points.shape[1] > 1 else np.zeros(len(points))], 1)
    reach = 1.1 * float(np.abs(xy).max(initial=1e-6))
    bins = min(size, max(48, int(math.sqrt(len(points)))))
    counts, _, _ = np.histogram2d(-xy[:, 1], xy[:, 0], bins=bins, range=[[-reach, reach], [-reach, reach]])
    level = np.sqrt(counts / max(float(np.quantile(counts[counts > 0], 0.98)) if counts.any() else 1.0, 1.0))
    cell = -(-size // bins)
    image = (255.0 * (1.0 - np.clip(level, 0.0, 1.0))).astype(np.uint8)
    return image.repeat(cell, 0).repeat(cell, 1)[:, :, None]
