"""Schedulers of diffusers, as recorded, repeated here to where their own loops end; no diffusers is needed."""

from __future__ import annotations

import diffusers_runs as runs
import numpy as np
import pytest
import torch

import fastscore as fs
from fastscore.adapters.diffusers.samplers import described, repeated
from fastscore.adapters.diffusers.schedules import alphas_bar, schedule_of
from fastscore.process.continuous import EDM, Flow
from fastscore.process.discrete import DiscreteVP

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")  # the recorded grids are theirs
DAILY = (
    "DDPM/0", "DDPM/6", "DDIM/0", "DDIM/1", "EulerDiscrete/0", "HeunDiscrete/7", "DPMSolverMultistep/3",
    "UniPCMultistep/15", "EDMEuler/1", "FlowMatchEulerDiscrete/5",
)  # fmt: skip
# Schedulers whose own arithmetic is float32 whatever it is given: they cannot come closer to float64 than that.
FLOAT32 = ("Euler", "Heun", "LMS", "KDPM2", "DPMSolverM", "EDM", "FlowMatch", "UniPC", "DEIS", "DPMSolverS")


def tolerance(name: str) -> float:
    """Return how far a run may end from its recording, relative to it."""
    return 2e-6 if name.startswith(FLOAT32) else 1e-9


def ended(name: str) -> tuple[torch.Tensor, torch.Tensor]:
    """Return where a recorded run ends here, and where it ended there."""
    kind, entry = f"{name.split('/')[0]}Scheduler", runs.recorded()["runs"][name]
    recipe = repeated(runs.said(kind, entry), entry["steps"], entry["eta"])
    return runs.ours(recipe, runs.noise()), torch.tensor(entry["end"], dtype=torch.float64).view(runs.N, *runs.SHAPE)


def close(name: str) -> None:
    """Check a run against its recording."""
    here, there = ended(name)
    error = float((here - there).abs().max() / there.abs().max())
    assert error < tolerance(name), f"{name}: {error:.1e}"


@pytest.mark.thirds
@pytest.mark.parametrize("name", DAILY)
def test_scheduler_is_repeated(name):
    close(name)


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name, _, _ in runs.cases(runs.CONFIGS) if name not in DAILY])
def test_every_recorded_scheduler_is_repeated(name):
    close(name)


def test_recording_is_of_the_cases():
    assert list(runs.recorded()["runs"]) == [name for name, _, _ in runs.cases(runs.CONFIGS)]


@pytest.mark.parametrize("entry", runs.recorded()["tables"], ids=lambda e: "-".join(map(str, e["config"].values())))
def test_tables_are_those_of_diffusers(entry):
    """Near the data 1 - abar tells: there float32 leaves few digits, and a table in float64 is another one."""
    config, at, abar = entry["config"], entry["at"], np.array(entry["abar"])
    table = alphas_bar(config).double().numpy()[at]
    assert np.allclose(1.0 - table, 1.0 - abar, rtol=1e-6, atol=1e-12)
    assert np.allclose(table, abar, rtol=1e-6, atol=1e-12)
    schedule = schedule_of(config)
    assert isinstance(schedule, DiscreteVP)
    falling = abar > abar[-1]  # 2^-24 in place of 0 may be more than the indices before it have
    assert np.allclose(schedule.alpha(np.array(at))[falling] ** 2, abar[falling], rtol=1e-6, atol=0.0)
    assert schedule.alpha(schedule.T) ** 2 == pytest.approx(abar[-1], rel=1e-6)


def test_what_a_config_says_of_a_network():
    assert described({"_class_name": "FlowMatchEulerDiscreteScheduler", "shift": 3.0}).settings == {
        "schedule": Flow(shift=3.0)
    }
    dynamic = {"_class_name": "FlowMatchEulerDiscreteScheduler", "shift": 3.0, "use_dynamic_shifting": True}
    assert described(dynamic).settings == {}
    assert described({"prediction_type": "v_prediction"}).parametrization.prediction == "v"
    edm = described({"_class_name": "EDMEulerScheduler", "prediction_type": "v_prediction", "sigma_data": 1.0})
    assert (edm.schedule, edm.sign, edm.parametrization.sigma_data) == (EDM(0.002, 80.0), -1.0, 1.0)
    with pytest.raises(ValueError, match="from_score_sde"):
        described({"_class_name": "ScoreSdeVeScheduler"})
    continuous = {"timestep_type": "continuous", "prediction_type": "v_prediction", "sigma_max": 700.0}
    video = described(continuous)
    assert float(np.tan(video.schedule.T)) == pytest.approx(700.0)
    model = fs.ScoreModel(lambda u, c_noise: 0.0 * u, (2,), video.schedule, video.parametrization)
    plan = fs.Sampler(model, solver="dpmpp-2m", steps=5, batch=2).plan
    assert plan is not None and max(row.c_noise for row in plan.rows) <= 0.25 * np.log(700.0) + 1e-6
    with pytest.raises(ValueError, match="prediction_type = 'magic'"):
        described({"prediction_type": "magic"})
    with pytest.raises(ValueError, match="beta_schedule = 'cubic'"):
        schedule_of({"beta_schedule": "cubic"})
