"""A folder's model is sampled on its own schedule by the command as by the library, whatever is changed."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from fastscore.model.folder import load_model, save_model
from fastscore.model.nets import build
from fastscore.model.score import ScoreModel
from fastscore.process.beta import LinearBeta
from fastscore.process.continuous import EDM, VE, VP, Flow, SubVP, TutorialVE
from fastscore.process.discrete import discrete_vp, smld
from fastscore.process.parametrization import Parametrization
from fastscore.sampler import Sampler

SPEC = {"name": "MLP", "dim": 2, "width": 16, "depth": 1}
RATE = LinearBeta(0.3, 12.0)
CASES = {
    "ve": (VE(0.02, 9.0, t_end=0.05), "--sigma-max 12", lambda s: replace(s, sigma_max=12.0)),
    "edm": (EDM(0.05, 9.0), "--sigma-min 0.1", lambda s: replace(s, sigma_min=0.1)),
    "vp": (VP(RATE, t_end=0.05, T=1.2), "--beta-max 14", lambda s: replace(s, beta=LinearBeta(0.3, 14.0))),
    "subvp": (SubVP(RATE, t_end=0.05), "--beta-min 0.2", lambda s: replace(s, beta=LinearBeta(0.2, 12.0))),
    "tutorial": (TutorialVE(12.0, t_end=0.05), "--base 20", lambda s: replace(s, base=20.0)),
    "flow": (Flow(t_end=0.05), "--shift 3", lambda s: replace(s, shift=3.0)),
    "ddpm": (discrete_vp(n=40, beta_max=0.3), "--table-steps 30", lambda s: discrete_vp(n=30, beta_max=0.3)),
    "smld": (smld(8, 0.05, 9.0), "--sigma-max 12", lambda s: smld(8, 0.05, 12.0)),
}


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # five steps and an untrained network
@pytest.mark.parametrize("changed", [False, True])
@pytest.mark.parametrize("name", CASES)
def test_the_command_samples_as_the_library_does(run, tmp_path, name, changed):
    own, flags, change = CASES[name]
    torch.manual_seed(0)
    (tmp_path / "m").mkdir()
    net = build(SPEC)
    save_model(tmp_path / "m", net, SPEC, ScoreModel(net, (2,), own, Parametrization("x0", "sigma")), torch.float32)
    model = load_model(tmp_path / "m")
    assert model.schedule == own
    schedule = change(own) if changed else own
    expected = Sampler(model, schedule=schedule, solver="em", steps=5, batch=4).run(range(4))
    for k, named in enumerate((f"--schedule {name}", "")):
        words = [*named.split(), *(flags.split() if changed else [])]
        line = ("sample", tmp_path / "m", "-n", 4, "--batch", 4, "--solver", "em", "--steps", 5, "--network", "own")
        code, _, error = run(*line, *words, "--device", "cpu", "--quiet", "--out", tmp_path / str(k))
        assert code == 0, error
        with np.load(tmp_path / str(k) / "samples.npz") as saved:
            assert np.allclose(saved["samples"], expected, rtol=1e-5, atol=1e-6)  # tables are made again: last bits
