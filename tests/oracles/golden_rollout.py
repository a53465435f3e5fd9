"""Rollouts of flow_grpo, FlowCPS, DanceGRPO, ddpo, sglang and verl-omni, recorded, and the samplers that repeat them.

``python tests/oracles/golden_rollout.py`` writes the copy in tests/data that must always run: two of three samples.
"""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

import fastscore as fs

FOLDER = Path(os.environ.get("FASTSCORE_GOLDEN2", Path(__file__).resolve().parents[3] / "shared" / "golden2"))
COPY = Path(__file__).resolve().parents[1] / "data"
KEPT = ("v", "z", "prev", "log_prob", "v_replay", "log_prob_replay", "own_prev", "own_log_prob", "own_log_prob_replay")


@dataclass(frozen=True)
class Run:
    """A recorded rollout: settings, and arrays by name, steps first."""

    settings: dict
    arrays: dict[str, np.ndarray]

    def tensor(self, name: str, dtype: torch.dtype) -> Tensor:
        return torch.from_numpy(self.arrays[name]).to(dtype)

    @property
    def form(self) -> str:
        return "square" if "no constants" in self.settings["log_prob"] else "gaussian"

    def solver(self) -> tuple[object, object, tuple[float, ...]]:
        """Return the solver, its schedule and its knots."""
        s = self.settings
        if s["kind"] == "ddim":
            bars = torch.cumprod(1.0 - torch.linspace(0.00085**0.5, 0.012**0.5, 1000) ** 2, 0).double()  # in float32
            table = fs.DiscreteVP(tuple((1.0 - bars / torch.cat([bars.new_ones(1), bars[:-1]])).tolist()))
            solver = fs.DDIM(s["eta"], fixed_stride=True, set_alpha_to_one=False)
            return solver, table, (*(float(t) for t in range(901, 0, -100)), table.t_clean)
        a = s["noise_level"]
        solver = {
            "sde": lambda: fs.FlowSDE(a, last_noise=True),
            "dance": lambda: fs.DanceSDE(a, last_noise=True),
            "cps": lambda: fs.CPS(a),
        }[s["kind"]]()
        return solver, fs.Flow(), tuple(s["sigmas"])

    def sampler(self, dtype: torch.dtype, output: str = "v", **settings: object) -> fs.Sampler:
        """Return a sampler whose network returns what the recorded one did, step after step."""
        solver, schedule, knots = self.solver()
        F, times = self.tensor(output, dtype), torch.tensor(knots[:-1], dtype=dtype)

        def net(u: Tensor, c_noise: Tensor, cond: Tensor | None = None) -> Tensor:
            k = int((times - c_noise[0]).abs().argmin())
            return (F[k] if k < len(F) else 0.0 * F[0])[: len(u)]  # CPS was recorded without its last step

        predicts = fs.Parametrization("eps" if self.settings["kind"] == "ddim" else "flow", label="t")
        model = fs.ScoreModel(net, tuple(F.shape[2:]), schedule, predicts)
        grid = fs.Times(knots)
        return fs.Sampler(model, solver=solver, grid=grid, batch=F.shape[1], dtype=dtype, **settings)

    def noise(self, dtype: torch.dtype) -> Tensor:
        """Return the recorded draws, that of the prior first; one for the step that CPS was recorded without."""
        return torch.cat([self.tensor("x", dtype)[:1], self.tensor("z", dtype), self.tensor("z", dtype)[:1]])


@cache
def recorded() -> dict[str, Run]:
    """Return all runs."""
    folder = FOLDER if (FOLDER / "rollout.json").exists() else COPY
    settings = json.loads((folder / "rollout.json").read_text())["cases"]
    with np.load(folder / "rollout.npz") as file:
        arrays = {name: file[name] for name in file.files}
    runs = {}
    for name, s in settings.items():
        own = {key.split("/")[1]: value for key, value in arrays.items() if key.startswith(f"{name}/")}
        own["x"] = own["x"] if len(own["x"]) > 1 else np.concatenate([own["x"], own["prev"][:-1]])
        runs[name] = Run(s, own)
    return runs


if __name__ == "__main__":
    text = (FOLDER / "rollout.json").read_text()
    (COPY / "rollout.json").write_text(text if text.endswith("\n") else text + "\n")
    copied = {}
    for name, run in recorded().items():
        assert np.array_equal(run.arrays["x"][1:], run.arrays["prev"][:-1])
        copied[f"{name}/x"] = run.arrays["x"][:1, :2]
        copied |= {f"{name}/{key}": run.arrays[key][:, :2] for key in KEPT if key in run.arrays}
    np.savez_compressed(COPY / "rollout.npz", **copied)
