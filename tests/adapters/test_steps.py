"""What a pipeline of diffusers is given, where diffusers is not installed: steps, times, noise and solvers by name."""

from __future__ import annotations

import copy
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import fastscore
from fastscore import Sampler, ScoreModel, solvers
from fastscore.adapters.diffusers.grids import knots_of
from fastscore.adapters.diffusers.noise import seeds_and_ids, seeds_of
from fastscore.adapters.diffusers.options import solver_of
from fastscore.adapters.diffusers.schedules import schedule_of
from fastscore.adapters.diffusers.steps import Steps
from fastscore.process.grid import Times

RECORDED = json.loads((Path(__file__).parents[1] / "data" / "diffusers_steps.json").read_text())["cases"]
DEFAULTS = {
    "num_train_timesteps": 1000, "prediction_type": "epsilon", "timestep_spacing": "leading", "seed": None,
    "variance_type": "fixed_small", "shift": 1.0, "clip_sample": False,
}  # fmt: skip


def steps_of(solver: Any, options: dict[str, Any] | None = None, **entries: Any) -> Steps:
    steps = Steps()
    steps.config = DEFAULTS | entries
    steps.lay_out(solver_of(solver, options)[0])
    return steps


def run(steps: Steps, x: Tensor, begin: int = 0) -> Tensor:
    for t in steps.timesteps[begin:]:
        x = steps.step(torch.tanh(x), t, x).prev_sample
    return x


def start(n: int = 1) -> Tensor:
    return torch.arange(n * 12.0).sin().reshape(n, 3, 4)


@pytest.mark.parametrize("case", RECORDED, ids=lambda c: f"{c['kind'][:4]}-{len(json.dumps(c['config']))}")
def test_first_order_solvers_do_what_was_recorded(case: dict[str, Any]) -> None:
    flow = "Flow" in case["kind"]
    kind = {"prediction_type": "flow_prediction"} if flow else {}
    steps = steps_of("euler" if flow else "ddim", **case["config"] | kind)
    steps.set_timesteps(5, **case["timing"])
    assert steps.timesteps.tolist() == pytest.approx(case["timesteps"], rel=1e-6)
    assert run(steps, start()).flatten().tolist() == pytest.approx(case["state"], abs=2e-5)


@pytest.mark.filterwarnings("ignore:this grid loses")
@pytest.mark.parametrize("solver", ["dpmpp-2m-sde", "heun", "pndm"])
def test_steps_are_the_sampler_s(solver: str) -> None:
    steps, x = steps_of(solver, seed=[4, 5], prediction_type="v_prediction", timestep_spacing="trailing"), start(2)
    steps.set_timesteps(5)
    model = ScoreModel(lambda u, t, cond: torch.tanh(u), (3, 4), steps.schedule, steps.parametrization)
    sampler = Sampler(model, solver=steps.solver, grid=Times(steps.knots), start="state", batch=2)
    assert torch.equal(run(steps, x), sampler.run([0, 0], [4, 5], init=x))
    assert (steps.seeds, steps.ids, steps.step_index) == ([4, 5], [0, 0], len(steps.timesteps))


def test_a_run_from_the_middle_is_a_run_on_the_rest_of_the_grid() -> None:
    steps, x = steps_of("dpmpp-3m-sde", seed=1), start(2)
    steps.set_timesteps(6)
    steps.set_begin_index(3)
    got, rest = run(steps, x, 3), steps.timesteps[3:].tolist()
    steps.set_timesteps(timesteps=rest)
    assert steps.timesteps.tolist() == rest and torch.equal(run(steps, x), got)
    steps.set_timesteps(6)
    assert torch.equal(run(steps, x, 3), got)  # by its time, where nobody said the index
    for solver, match in (("heun", "steps begin at 0, 2, 4"), ("pndm", "warms up")):
        steps = steps_of(solver)
        steps.set_timesteps(6)
        steps.set_begin_index(12 if solver == "pndm" else 1)
        with pytest.raises(ValueError, match=match):
            run(steps, x, steps.begin_index or 0)


def test_image_of_a_batch_and_a_copy_in_the_middle() -> None:
    steps, x = steps_of("dpmpp-2m-sde"), start(8)
    generators = [torch.Generator().manual_seed(k) for k in range(8)]

    def drawn(x: Tensor, generator: Any) -> Tensor:
        nonlocal steps
        steps.set_timesteps(5)
        for k, t in enumerate(steps.timesteps):
            steps = copy.deepcopy(steps) if k == 2 else steps
            (x,) = steps.step(torch.tanh(x), t, x, generator, return_dict=False)
        return x

    together = drawn(x, generators)
    for k in (0, 3, 7):
        assert torch.equal(drawn(x[k : k + 1], [generators[k]])[0], together[k])
        assert torch.equal(drawn(x[k : k + 1], generators[k])[0], together[k])
    assert seeds_of(torch.Generator().manual_seed(-1)) == 2**64 - 1


def test_seeds_and_ids_of_a_batch() -> None:
    assert seeds_and_ids(7, None, 3) == (7, [0, 1, 2])
    assert seeds_and_ids([7, 8], None, 4) == ([7, 8, 7, 8], [0, 0, 0, 0])  # doubled for guidance
    assert seeds_and_ids(7, [4, 5], 4) == (7, [4, 5, 4, 5])
    for seeds, ids in (([1, 2, 3], None), (1, [0, 1, 2]), ([], None)):
        with pytest.raises(ValueError, match="for a batch of 4"):
            seeds_and_ids(seeds, ids, 4)


def knots(config: dict[str, Any], *arguments: Any, **more: Any) -> list[float]:
    config = DEFAULTS | config
    return list(knots_of(config, schedule_of(config), *arguments, **more))


def test_lists_are_taken_as_they_are() -> None:
    flow = {"prediction_type": "flow_prediction", "shift": 3.0}
    assert knots(flow, None, [1.0, 0.75]) == [1.0, 0.75, 0.0]
    assert knots(flow, 2, None, [1000, 400, 0]) == [1.0, 0.4, 0.0]
    assert knots(flow, None, np.linspace(1.0, 0.5, 2)) == pytest.approx([1.0, 0.75, 0.0])  # even: not yet shifted
    assert knots(flow, None, [1.0, 0.5], shift=1.0) == [1.0, 0.5, 0.0]
    assert knots({}, None, None, torch.tensor([999, 500.5])) == [999.0, 500.5, -1.0]
    schedule = schedule_of(DEFAULTS)
    most = float(schedule.sigma(999) / schedule.alpha(999))
    at = knots({}, None, [1.0005 * most, 1.0, 0.0])  # as published lists are rounded
    assert (at[0], at[2]) == (999.0, -1.0)
    assert float(schedule.sigma(at[1]) / schedule.alpha(at[1])) == pytest.approx(1.0, rel=1e-9)


def test_ends_and_offsets() -> None:
    assert knots({"set_alpha_to_one": False, "steps_offset": 1}, 4) == [751, 501, 251, 1, 0]
    assert knots({"final_sigmas_type": "sigma_min", "timestep_spacing": "trailing"}, 2) == [999, 499, 0]
    assert knots({"use_karras_sigmas": True}, 3)[0] == 999.0
    assert len(knots({"timestep_spacing": "arctan"}, 7)) == 8


@pytest.mark.parametrize(
    ("config", "arguments", "match"),
    [
        ({}, (None,), "needs num_inference_steps"),
        ({}, (0,), "num_inference_steps = 0"),
        ({}, (2, None, [500, 600]), "must fall"),
        ({}, (None, None, ["a"]), "timesteps = "),
        ({}, (None, None, torch.tensor([])), "must fall"),
        ({}, (3, None, [500]), "num_inference_steps = 3 for a list of 1"),
        ({}, (None, [400.0, 1.0]), "noisier than"),
        ({}, (None, [1.0, float("nan")]), "must be positive"),
        ({}, (None, None, [1200, 3]), "leave DiscreteVP's range"),
        ({}, (4, None, None, 0.5), "mu = 0.5"),
        ({"timestep_spacing": "uneven"}, (4,), "timestep_spacing = 'uneven'"),
        ({"set_alpha_to_one": False}, (4,), "ends at the first noise level"),
        ({"prediction_type": "flow_prediction", "use_dynamic_shifting": True}, (4,), "needs mu"),
    ],
)
def test_grids_that_are_refused(config: dict[str, Any], arguments: tuple[Any, ...], match: str) -> None:
    with pytest.raises(ValueError, match=match):
        steps = steps_of("ddim", **config)
        steps._timeline = steps._along(tuple(knots(config, *arguments)))
        _ = steps._timeline.stages


@pytest.mark.parametrize(
    "solver",
    [
        solvers.DPMMultistep(3, "x0", "exact", 0.5),
        solvers.PredictorCorrector(solvers.Heun(), solvers.AnnealedLangevin(0.1, 2)),
        solvers.ScaledNoise(solvers.DDIM(1.0), 1.01),
        solvers.Restart((solvers.Interval(0.1, 0.3, 2),), solvers.Heun()),
    ],
    ids=lambda s: type(s).__name__,
)
def test_solvers_survive_json(solver: Any) -> None:
    _, name, options = solver_of(solver)
    again = solver_of(name, json.loads(json.dumps(options)))
    assert again[0] == solver and again[1:] == (name, options)


@pytest.mark.parametrize(
    ("solver", "options", "match"),
    [
        ("dopri5", {}, "'dopri5' chooses its steps"),
        ("DPMAdaptive", {}, "'DPMAdaptive' chooses its steps"),
        (solvers.GottaGoFast(), {}, "chooses its steps"),
        ("ddim", {"gamma": 1.0}, "solver_options of ddim"),
        ("Heun", {"gamma": 1.0}, "solver_options of Heun"),
        ("ScaledNoise", {"solver": {"name": "Fast"}}, "name = 'Fast'"),
        ("fastest", {}, "solver = 'fastest'"),
        (solvers.UniPC(), {"p": 3}, "leave solver_options out"),
        (solvers.SASolver(tau=lambda t, s: 1.0), {}, "cannot be written"),
        (3, {}, "solver = 3 must be"),
    ],
)
def test_solvers_that_are_refused(solver: Any, options: dict[str, Any], match: str) -> None:
    with pytest.raises(ValueError, match=match):
        solver_of(solver, options)


def test_the_package_imports_without_diffusers(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [
        m for m in sys.modules if m.split(".")[0] == "diffusers" or m == "fastscore.adapters.diffusers.scheduler"
    ]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "diffusers", None)
    names: dict[str, Any] = {}
    exec("from fastscore import *", names)
    assert "Sampler" in names and "Scheduler" not in names and "Scheduler" not in fastscore.__all__
    for home in ("fastscore", "fastscore.adapters.diffusers"):
        with pytest.raises(ImportError, match="pip install diffusers") as error:
            exec(f"from {home} import Scheduler", {})
        assert error.value.name == "diffusers"
