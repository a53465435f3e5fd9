"""The rows of a solver under a host's loop are those of ours, to the bit."""

from __future__ import annotations

import copy
import pickle
from typing import Any

import pytest
import torch

from fastscore import (
    EDM,
    Execution,
    Flow,
    Parametrization,
    Sampler,
    ScoreModel,
    StaticThreshold,
    indices,
    karras,
    uniform,
)
from fastscore.engine.stepper import Stepper
from fastscore.ops.noise import NoiseKey, RecordedNoise
from fastscore.process.discrete import discrete_vp
from fastscore.solvers.names import named

SHAPE, IDS = (3, 2), [9, 2, 5]
FAMILIES = {
    "table": (discrete_vp(), indices(5), Parametrization("v")),
    "edm": (EDM(), karras(5), Parametrization("edm", "log_sigma/4")),
    "flow": (Flow(), uniform(5, clean=True), Parametrization("flow")),
}
SOLVERS = ("dpmpp-2m", "unipc", "heun", "dpmpp-2s-ancestral", "dpmpp-3m-sde", "edm-churn", "pndm")
CASES = [(f, s) for f in FAMILIES for s in SOLVERS if (f, s) != ("flow", "pndm")]  # which is singular at pure noise


def net(u: torch.Tensor, c_noise: torch.Tensor, cond: object = None) -> torch.Tensor:
    return torch.tanh(0.7 * u + 1e-3 * c_noise[:, None, None])


def by_host(stepper: Stepper, x: torch.Tensor, interrupt: Any = lambda s: s, keep: bool = True) -> torch.Tensor:
    for k, stage in enumerate(stepper.stages):
        stepper = interrupt(stepper) if k == 2 else stepper
        F = net(stage.c_in * x, torch.full((len(x),), stage.c_noise))
        x = stepper.step(F, x if keep else None)
    return x


@pytest.mark.thirds
@pytest.mark.filterwarnings("ignore:this grid loses")
@pytest.mark.parametrize(
    ("family", "solver"), [(f, s) for f in FAMILIES for s in SOLVERS if (f, s) != ("flow", "pndm")]
)
def test_host_loop_equals_ours(family: str, solver: str) -> None:
    schedule, grid, reads = FAMILIES[family]
    ours = Sampler(ScoreModel(net, SHAPE, schedule, reads), solver=solver, grid=grid, batch=3).run(IDS, seed=4)
    stepper = Stepper(named(solver), grid, SHAPE, 3, schedule=schedule, reads=reads, start="prior")
    key = NoiseKey.of(4, IDS)
    assert torch.equal(by_host(stepper, stepper.start(key)), ours)
    assert torch.equal(by_host(stepper, stepper.start(key), lambda s: pickle.loads(pickle.dumps(s)), False), ours)


def test_copies_are_apart() -> None:
    schedule, grid, reads = FAMILIES["table"]
    one = Stepper(named("dpmpp-2m-sde"), grid, SHAPE, 3, schedule=schedule, reads=reads, start="prior")
    x = one.start(NoiseKey.of(4, IDS))
    expected = by_host(copy.deepcopy(one), x)
    two, y = copy.deepcopy(one), x
    for stage in one.stages:
        F = [net(stage.c_in * v, torch.full((3,), stage.c_noise)) for v in (x, y)]
        x, y = one.step(F[0], x), two.step(F[1], y)
    assert torch.equal(x, expected) and torch.equal(y, expected)


def test_a_run_that_failed_leaves_nothing_to_the_next() -> None:
    schedule, grid, reads = FAMILIES["table"]
    stepper = Stepper(named("dpmpp-3m"), grid, SHAPE, 3, schedule=schedule, reads=reads, start="prior")
    expected = by_host(stepper, stepper.start(NoiseKey.of(4, IDS)))
    for _ in stepper.stages:
        stepper.start(NoiseKey.of(4, IDS))
        stepper.step(torch.full((3, *SHAPE), float("nan")))
    assert torch.equal(by_host(stepper, stepper.start(NoiseKey.of(4, IDS))), expected)


def test_guide_recorded_noise_and_narrow_states() -> None:
    schedule, grid, reads = FAMILIES["table"]
    model, guide = ScoreModel(net, SHAPE, schedule, reads), StaticThreshold(0.5)
    sampler = Sampler(model, solver="dpmpp-2m-sde", grid=grid, batch=3, guide=guide)
    assert sampler.plan is not None
    noise = torch.arange(sampler.plan.draws * 18.0).sin().reshape(-1, 3, *SHAPE)
    arguments: dict[str, Any] = {"schedule": schedule, "reads": reads, "start": "prior", "guide": guide}
    stepper = Stepper(named("dpmpp-2m-sde"), grid, SHAPE, 3, **arguments)
    x = by_host(stepper, stepper.start(NoiseKey.of(0, IDS), noise=RecordedNoise(noise.flatten(2))))
    assert torch.equal(x, sampler.run(IDS, noise=noise))
    half = stepper.start(NoiseKey.of(4, IDS)).half()
    for stage in stepper.stages:
        F = net(half, torch.full((3,), stage.c_noise)).half()
        half = stepper.step(F, half)
    assert half.dtype == torch.float16 and bool(half.isfinite().all())


def test_what_is_refused() -> None:
    schedule, grid, reads = FAMILIES["table"]
    with pytest.raises(ValueError, match="Dopri5 chooses its steps"):
        Stepper(named("dopri5"), grid, SHAPE, 3, schedule=schedule)
    stepper = Stepper(named("ddim"), grid, SHAPE, 3, schedule=schedule, reads=reads, execution=Execution(batch=7))
    x = stepper.start(NoiseKey.of(0, IDS), torch.zeros(3, *SHAPE))
    with pytest.raises(ValueError, match=r"returned \(3, 2, 3\) for an input"):
        stepper.step(x.transpose(1, 2), x)
    with pytest.raises(ValueError, match=r"state \(2, 3, 2\); these steps are of \(3, 3, 2\)"):
        stepper.step(x, x[:2])
    by_host(stepper, stepper.start(NoiseKey.of(0, IDS), x))
    with pytest.raises(ValueError, match="all 5 steps are done"):
        stepper.step(x, x)


class Average:
    """A guide with a memory: the mean of its estimates so far."""

    remembers = True

    def __call__(self, denoise: Any, x: Any, alpha: Any, sigma: Any, y: Any) -> torch.Tensor:
        before = denoise.memory.get("average")
        denoise.memory["average"] = denoise(x) if before is None else 0.5 * (before + denoise(x))
        return denoise.memory["average"]


def test_what_a_guide_keeps_begins_with_every_start_and_travels_with_a_copy() -> None:
    schedule, grid, reads = FAMILIES["edm"]
    model = ScoreModel(net, SHAPE, schedule, reads)
    ours = Sampler(model, solver="dpmpp-2m", grid=grid, batch=3, guide=Average()).run(IDS, seed=4)
    assert not torch.equal(ours, Sampler(model, solver="dpmpp-2m", grid=grid, batch=3).run(IDS, seed=4))
    stepper = Stepper(named("dpmpp-2m"), grid, SHAPE, 3, schedule=schedule, reads=reads, start="prior", guide=Average())
    for interrupt in (lambda s: s, copy.deepcopy, lambda s: pickle.loads(pickle.dumps(s))):
        assert torch.equal(by_host(stepper, stepper.start(NoiseKey.of(4, IDS)), interrupt), ours)
