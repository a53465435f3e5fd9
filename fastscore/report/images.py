"""Images as they go into a page: as they are, or made smaller where it has no room."""

from __future__ import annotations

import base64
import io
from dataclasses import dataclass

LARGEST_SIDE = 8192  # pixels; a phone's browser draws no larger one
SCALES = (1.0, 0.7, 0.5, 0.35, 0.25, 0.15)


@dataclass(frozen=True)
class Shown:
    """An image as it goes into a page."""

    kind: str
    data: str
    width: int
    height: int
    scale: float | None  # None: as it was given


def share(sizes: list[int], room: int) -> int:
    """Return the most bytes of one image: all fit into the room if those above it are made as small as it."""
    for k, size in enumerate(sorted(sizes)):
        if size > (most := room // (len(sizes) - k)):
            return most
        room -= size
    return max(sizes, default=0)


def fitted(image: bytes, most: int) -> Shown:
    """Return an image as it is, or as the largest JPEG of at most ``most`` bytes."""
    from PIL import Image

    try:
        with Image.open(io.BytesIO(image)) as opened:
            kind = opened.format
            opened.load()
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise ValueError(f"an image of {len(image)} bytes cannot be read ({error}); give PNG or JPEG") from error
    if kind in ("PNG", "JPEG", "GIF") and len(image) <= most and max(opened.size) <= LARGEST_SIDE:
        return Shown(f"image/{kind.lower()}", base64.b64encode(image).decode(), opened.width, opened.height, None)
    clear = opened.convert("RGBA")
    flat = Image.alpha_composite(Image.new("RGBA", clear.size, "white"), clear).convert("RGB")
    for scale in SCALES:
        width, height = (max(1, round(side * scale)) for side in flat.size)
        if max(width, height) > LARGEST_SIDE:
            continue
        flat.resize((width, height), Image.Resampling.LANCZOS).save(file := io.BytesIO(), "JPEG", quality=80)
        if len(data := file.getvalue()) <= most:
            return Shown("image/jpeg", base64.b64encode(data).decode(), width, height, scale)
    raise ValueError(
        f"an image of {opened.width} x {opened.height} pixels does not fit into the {max(most, 0)} bytes that a "
        "page has for it; leave out other images or frames, or draw it smaller"
    )
