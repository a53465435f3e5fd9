"""torchsde: Euler's method on the reverse SDE of VE."""

from __future__ import annotations

import math
from typing import Any

import torch
import torchsde
from torch import Tensor
from torchsde import BaseBrownian

import fastscore as fs
from bench.peers import SIGMA_MAX, SIGMA_MIN, Draw, Entry, Model, versioned


class ReverseVE:
    """dx = g^2 score dtau + g dw with tau = 1 - t; Song et al. 2021, eq. 6 and 30."""

    noise_type, sde_type = "diagonal", "ito"

    def __init__(self, model: Model, shape: tuple[int, ...]) -> None:
        self.model, self.shape = model, shape

    def sigma(self, tau: Tensor) -> Tensor:
        """Return the noise level."""
        return SIGMA_MIN * (SIGMA_MAX / SIGMA_MIN) ** (1.0 - tau)

    def f(self, tau: Tensor, y: Tensor) -> Tensor:
        """Return the drift."""
        sigma = self.sigma(tau)
        score = self.model(y.reshape(len(y), *self.shape), sigma)
        return 2.0 * math.log(SIGMA_MAX / SIGMA_MIN) * sigma**2 * score.reshape(len(y), -1)

    def g(self, tau: Tensor, y: Tensor) -> Tensor:
        """Return the diffusion."""
        return (math.sqrt(2.0 * math.log(SIGMA_MAX / SIGMA_MIN)) * self.sigma(tau)).expand_as(y)


class Recorded(BaseBrownian):
    """A Brownian motion whose increments are recorded normals."""

    def __init__(self, draw: Draw, like: Tensor) -> None:
        self.draw, self.like = draw, like

    def __call__(self, ta: Any, tb: Any = None, return_U: bool = False, return_A: bool = False) -> Tensor:
        return self.draw(self.like) * (tb - ta).sqrt()

    def __repr__(self) -> str:
        return "Recorded()"

    dtype = property(lambda self: self.like.dtype)
    device = property(lambda self: self.like.device)
    shape = property(lambda self: self.like.shape)
    levy_area_approximation = "none"


def entries(steps: int) -> list[Entry]:
    """Return Euler-Maruyama, evenly spaced in t."""

    def run(model: Model, z: Tensor, draw: Draw | None) -> Tensor:
        y = z.flatten(1) * SIGMA_MAX
        sde = ReverseVE(model, z.shape[1:])
        ends = torch.tensor([0.0, 1.0], device=z.device)
        motion = Recorded(draw, y) if draw else None
        with torch.no_grad():  # a step a little long, so that rounding adds no last one
            y = torchsde.sdeint(sde, y, ends, bm=motion, method="euler", dt=(1.0 + 1e-6) / steps)[-1]
        return y.reshape(z.shape)

    schedule, grid = fs.VE(SIGMA_MIN, SIGMA_MAX), fs.uniform(steps, end=0.0)
    return [Entry(versioned("torchsde"), "Euler, reverse SDE", schedule, fs.EulerMaruyama(), grid, "score", run)]
