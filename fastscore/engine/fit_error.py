r"""The error of a fit: how far the ends x of runs in few steps lie from the ends y of the same paths in many.

    e = |x - y| / |y|                                                        of anything

and of images, [C, H, W] with H, W >= 8,

    e + |grad x - grad y| / |grad y| + 10 |ln c(x) - ln c(y)|

with | | the rms over samples and elements, grad the differences of neighbours, and c the mean absolute Laplacian in
windows of 4 x 4 pixels, of images as they are shown: those of 8 bits are cut off at black and white first.

The rms of pixels alone is least for blurred images: it ends at so much noise that the last step averages details away,
which is what eyes and classifiers see first, and it counts what nobody sees, blacker than black. On the bundled model
the last term alone orders grids nearly as the Frechet distance of a classifier's features to the ends y does. No
trained features are in it, so that they may judge what comes of it.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn.functional import avg_pool2d

SMALLEST, WINDOW, STRIDE = 8, 4, 2  # pixels: edge of what is taken for an image; of the windows of c
CONTRAST, FLOOR = 10.0, 0.02  # weight of the last term; contrast that is not seen, over the greatest value
SHOWN = 0.95  # share of values in -1 .. 1, and little beyond, of images of 8 bits
BEYOND = 1.1


class EndError:
    """The error against the ends of a fine trajectory.

    Args:
        ends: of all samples, [n, D].
        shape: of one sample.

    Attributes:
        scale: rms of the ends.
    """

    def __init__(self, ends: Tensor, shape: tuple[int, ...]) -> None:
        self.right, self.shape, self.scale = ends, shape, rms(ends)
        self.image = len(shape) == 3 and min(shape[1:]) >= SMALLEST
        shown = float((ends.abs() <= BEYOND).double().mean()) >= SHOWN and float(ends.abs().amax()) > 0.5
        self.bound, self.floor = (1.0, FLOOR) if shown else (math.inf, FLOOR * self.scale)

    def __call__(self, ends: Tensor, at: slice) -> float:
        """Return the error of the ends of some samples, [n, D]."""
        x, y = ends, self.right[at]
        error = rms(x - y) / rms(y)
        if not self.image:
            return error
        x, y = x.reshape(-1, *self.shape), y.reshape(-1, *self.shape)
        edges = rms(gradients(x - y)) / max(rms(gradients(y)), FLOOR * self.floor)
        return error + edges + CONTRAST * rms(self.contrast(x) - self.contrast(y))

    def contrast(self, x: Tensor) -> Tensor:
        """Return ln c of images [N, C, H, W]."""
        x = x.clamp(-self.bound, self.bound)
        middle = x[..., 1:-1, 1:-1]
        around = x[..., 2:, 1:-1] + x[..., :-2, 1:-1] + x[..., 1:-1, 2:] + x[..., 1:-1, :-2]
        return (avg_pool2d((4.0 * middle - around).abs(), WINDOW, STRIDE) + self.floor).log()


def rms(x: Tensor) -> float:
    """Return the root of the mean square, in float64."""
    return float(x.double().square().mean().sqrt())


def gradients(x: Tensor) -> Tensor:
    """Return the differences of neighbours of images [N, C, H, W], [N, ..]."""
    return torch.cat([x.diff(dim=-1).flatten(1), x.diff(dim=-2).flatten(1)], 1)
