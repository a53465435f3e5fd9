"""azula: samplers of a denoiser E[x0 | x_t] on a schedule."""

from __future__ import annotations

from typing import Any

from azula.denoise import Denoiser, DiracPosterior
from azula.noise import VESchedule
from azula.sample import DDIMSampler, DDPMSampler
from torch import Tensor

import fastscore as fs
from bench.peers import SIGMA_MAX, SIGMA_MIN, Draw, Entry, Model, versioned
from bench.peers.inject import normals


class Wrapped(Denoiser):
    """A model as azula's denoiser."""

    def __init__(self, model: Model) -> None:
        super().__init__()
        self.model, self.schedule = model, VESchedule(SIGMA_MIN, SIGMA_MAX)

    def forward(self, x_t: Tensor, t: Tensor, **kwargs: Any) -> DiracPosterior:
        """Return the posterior that stands for its mean."""
        return DiracPosterior(mean=self.model(x_t, self.schedule.sigma(t)))


def entries(steps: int) -> list[Entry]:
    """Return DDIM and DDPM on VE, evenly spaced in ln sigma, down to sigma_min."""

    def entry(name: str, kind: Any, solver: Any) -> Entry:
        def run(model: Model, z: Tensor, draw: Draw | None) -> Tensor:
            sampler = kind(Wrapped(model), steps=steps, silent=True)
            with normals(draw):
                return sampler(z * SIGMA_MAX)

        return Entry(
            versioned("azula"), name, fs.VE(SIGMA_MIN, SIGMA_MAX), solver, fs.uniform(steps, end=0.0), "x0", run
        )

    return [
        entry("DDIM", DDIMSampler, fs.DDIM()),
        entry("DDPM", DDPMSampler, fs.DDIM(eta=1.0)),
    ]
