"""What an act of the demonstration gives: lines for the terminal, figures, and its part of the report."""

from __future__ import annotations

import io
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from fastscore.output.images import contact_sheet
from fastscore.report.page import Section

Say = Callable[[str], None]
SEED = 0
INK = np.array([11.0, 98.0, 179.0])


@dataclass(frozen=True)
class Act:
    """One act, done.

    Attributes:
        section: of the report.
        figures: what was measured, the same in every run on a machine.
    """

    section: Section
    figures: dict[str, Any] = field(default_factory=dict)


def png(image: NDArray[np.uint8]) -> bytes:
    """Return an image [H, W, C], grey or RGB, as a PNG file."""
    file = io.BytesIO()
    Image.fromarray(image[:, :, 0] if image.shape[2] == 1 else image).save(file, "PNG", optimize=True)
    return file.getvalue()


def sheet(images: NDArray[np.uint8], columns: int) -> bytes:
    """Return images [N, H, W, C] as one PNG, so many in a row."""
    return png(contact_sheet(images, columns=columns))


def cloud(points: NDArray[Any], reach: float, size: int = 240, bins: int = 80) -> NDArray[np.uint8]:
    """Draw points [N, 2] within +-reach as a density on white, [size, size, 3]; a square of the densest eighth is full.

    All clouds of one reach have one scale, so that frames of them can be compared.
    """
    counts, _, _ = np.histogram2d(-points[:, 1], points[:, 0], bins=bins, range=[[-reach, reach]] * 2)
    level = np.clip(np.sqrt(counts * bins * bins / (40.0 * len(points))), 0.0, 1.0)[:, :, None]
    image = (255.0 + (INK - 255.0) * level).round().astype(np.uint8)
    return image.repeat(size // bins, 0).repeat(size // bins, 1)


def beside(panels: Sequence[NDArray[np.uint8]], gap: int = 8) -> NDArray[np.uint8]:
    """Return pictures of one height beside each other, each in a grey frame."""
    framed = []
    for panel in panels:
        panel = np.pad(panel, ((1, 1), (1, 1), (0, 0)), constant_values=160)
        framed += [panel, np.full((len(panel), gap, panel.shape[2]), 255, np.uint8)]
    return np.concatenate(framed[:-1], 1)
