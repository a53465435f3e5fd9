"""Moving pictures: samples on their way from noise to data, as GIF or APNG."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from fastscore.report.plots.figures import COLOURS, as_plane, finite, new_figure, pixels, reach, style
from fastscore.report.plots.paths import held
from fastscore.report.plots.points import mosaic, scatter

FRAME, LAST = 80, 2000  # milliseconds that a frame stays, and the last one


def animate(file: BinaryIO, frames: Sequence[NDArray[np.uint8]], format: str) -> None:
    """Write frames [H, W, 3] as a moving picture that loops, its last frame held.

    Args:
        file: open, to write.
        frames: of one size, at least one.
        format: "GIF", in 64 colours chosen for all frames together, or "PNG", which is an APNG.

    Raises:
        ValueError: no frame.
    """
    from PIL import Image

    if not frames:
        raise ValueError("animate: there is no frame")
    images = [Image.fromarray(frame) for frame in frames]
    if format == "GIF":
        palette = Image.fromarray(np.concatenate([frames[0], frames[len(frames) // 2], frames[-1]])).quantize(64)
        levels = np.array(palette.getpalette())
        palette.putpalette(np.where(levels >= 250, 255, levels).tolist())  # paper is white, not the mean of near ones
        images = [image.quantize(palette=palette, dither=Image.Dither.NONE) for image in images]
    durations = [FRAME] * (len(images) - 1) + [LAST]
    images[0].save(file, format=format, save_all=True, append_images=images[1:], duration=durations, loop=0)


def frames_of(
    states: NDArray[Any], names: Sequence[str], told: Callable[[float], None] = lambda done: None
) -> Iterator[NDArray[np.uint8]]:
    """Yield a frame for each state: of images [S, n, C, H, W] a sheet of up to 25, of points their scatter plot.

    Points stay on the axes of the last state, or wider ones where the first fit without making that a dot.

    Args:
        names: a line over each frame of points.
        told: called with how many frames are done.
    """
    states = held(states)
    if states.ndim == 5:
        for k, x in enumerate(states):
            yield _sheet(x)
            told(k + 1)
        return
    planes = [as_plane(x) for x in states]
    centre, half = reach(finite(planes[-1]))
    half = min(3.0 * half, max(half, reach(finite(planes[0]))[1]))
    with style():
        figure, axes = new_figure(3.4, 3.6)
        axis = axes[0, 0]
        axis.set(xlim=(centre[0] - half, centre[0] + half), ylim=(centre[1] - half, centre[1] + half))
        axis.set(xlabel="x_0", ylabel="x_1", aspect="equal")
        axis.set_title(names[0])
        dots = scatter(axis, planes[0], COLOURS[0])
        figure.draw_without_rendering()
        figure.set_layout_engine("none")  # or the axes would move with the length of a title
    for k, (name, plane) in enumerate(zip(names, planes, strict=True)):
        dots.set_offsets(plane[: len(dots.get_offsets())])
        axis.title.set_text(name)
        yield pixels(figure)
        told(k + 1)


def _sheet(images: NDArray[Any]) -> NDArray[np.uint8]:
    sheet = (255.0 * mosaic(images) + 0.5).astype(np.uint8)
    sheet = sheet if sheet.ndim == 3 else sheet[..., None].repeat(3, axis=2)
    scale = max(1, 320 // max(sheet.shape[:2]))
    return sheet.repeat(scale, axis=0).repeat(scale, axis=1)
