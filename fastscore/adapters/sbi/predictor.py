"""Our solvers in sbi's own sampling: a predictor, and the times that it steps through."""

from __future__ import annotations

from functools import cache
from importlib import import_module
from typing import Any

import torch
from torch import Tensor

from fastscore.adapters.host import HostSteps
from fastscore.adapters.sbi.draws import SHIFT
from fastscore.adapters.sbi.model import estimator_of, from_sbi
from fastscore.errors import typed
from fastscore.model.score import ScoreModel
from fastscore.ops.noise import NoiseKey
from fastscore.plan.rows import Solver
from fastscore.process.grid import Grid, Times


@typed
def predictor(
    posterior: Any,
    *,
    solver: Solver | str = "sa",
    steps: int | None = 25,
    grid: Grid | Times | None = None,
    seed: int = 0,
) -> dict[str, Any]:
    """Return what makes a posterior of sbi sample with a solver of ours: its predictor, and the times of its steps.

        theta = posterior.sample((10_000,), x=x, **predictor(posterior, steps=25))

    sbi draws where samples start by torch's global state and calls its potential, composed or guided as it was asked
    for. The noise on the way is a function of seed, step and id; draw j of observation b has the id 2^32 b + j, counted
    on over the batches of a predictor, so that none repeats another. One step is done a call, any solver with a grid:
    multistep ones keep their history, and start anew where sbi does, at the first time.

    Args:
        posterior: sampled by ``sample_with="sde"``, which alone asks a predictor; an FMPE of one observation a sample.
        steps, grid: as of a Sampler.
        seed: 0 .. 2^64-1, of the noise on the way.

    Raises:
        ValueError: what ``from_sbi`` and Sampler refuse; while sampling, other times than these, or composed or guided
            scores of a flow, which say nothing at pure noise.
        ImportError: sbi is not installed.
    """
    model = from_sbi(posterior)
    steps_of = HostSteps(solver, model.schedule, model.parametrization, grid, None if grid is not None else steps)
    made = _class()(posterior.potential_fn, model, steps_of, seed)
    times = torch.tensor(steps_of.knots, device=estimator_of(posterior).mean_base.device)
    return {"predictor": made, "ts": times}


@cache
def _class() -> Any:
    """Return the class, which can only be made where sbi is."""
    try:
        base: Any = import_module("sbi.samplers.score.predictors").Predictor
    except ModuleNotFoundError as error:
        message = "fastscore.adapters.sbi.predictor is a predictor of sbi: pip install sbi"
        raise ImportError(message, name="sbi") from error

    class Predictor(base):
        """Steps of one solver; see ``predictor``."""

        def __init__(self, potential_fn: Any, model: ScoreModel, steps: HostSteps, seed: int) -> None:
            super().__init__(potential_fn)
            self.model, self.steps, self.seed, self.drawn = model, steps, seed, 0

        def predict(self, theta: Tensor, t1: Tensor, t0: Tensor) -> Tensor:
            draws, many = theta.shape[:2]

            def key() -> NoiseKey:
                ids = (torch.arange(many) << SHIFT)[None] + torch.arange(self.drawn, self.drawn + draws)[:, None]
                self.drawn += draws
                return NoiseKey.of(self.seed, ids.flatten(), theta.device)

            def network(u: Tensor, label: Tensor) -> Tensor:
                return self._output(u.view(theta.shape), label[0]).reshape(u.shape)

            return self.steps.step(theta.flatten(0, 1), float(t1), float(t0), network, key).view(theta.shape)

        def _output(self, theta: Tensor, time: Tensor) -> Tensor:
            potential = self.potential_fn
            if self.model.parametrization.prediction == "score":
                return potential.gradient(theta, time)
            if (potential.x_is_iid and len(potential.x_o) > 1) or potential.guidance_method is not None:
                raise ValueError(
                    "composed or guided scores of a flow say nothing at pure noise, where this starts: use "
                    "fastscore.adapters.from_sbi(posterior, x, iid=..)"
                )
            return potential.vector_field_estimator.ode_fn(theta, potential.x_o, time)

    return Predictor
