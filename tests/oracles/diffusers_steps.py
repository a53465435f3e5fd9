"""Records what schedulers of diffusers do with a network that is a function of its input alone.

python tests/oracles/diffusers_steps.py tests/data/diffusers_steps.json
"""

from __future__ import annotations

import json
import sys
from typing import Any

import diffusers  # pyright: ignore[reportMissingImports]
import torch

SD = {
    "beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear", "steps_offset": 1,
    "set_alpha_to_one": False, "clip_sample": False,
}  # fmt: skip
V = {"prediction_type": "v_prediction", "clip_sample": False}
CASES: list[tuple[str, dict[str, Any], dict[str, Any]]] = [
    ("DDIMScheduler", SD | {"timestep_spacing": "leading"}, {}),
    ("DDIMScheduler", SD | {"timestep_spacing": "trailing"}, {}),
    ("DDIMScheduler", V | {"rescale_betas_zero_snr": True, "timestep_spacing": "trailing"}, {}),
    ("DDIMScheduler", V | {"beta_schedule": "squaredcos_cap_v2", "prediction_type": "sample"}, {}),
    ("DDIMScheduler", V | {"trained_betas": [0.05 * k for k in range(1, 11)], "num_train_timesteps": 10}, {}),
    ("FlowMatchEulerDiscreteScheduler", {"shift": 3.0}, {}),
    ("FlowMatchEulerDiscreteScheduler", {"use_dynamic_shifting": True, "shift_terminal": 0.1}, {"mu": 0.7}),
    ("FlowMatchEulerDiscreteScheduler", {"shift": 2.0, "use_karras_sigmas": True}, {}),
]


def start() -> torch.Tensor:
    return torch.arange(12.0).sin().reshape(1, 3, 4)


def record(kind: str, entries: dict[str, Any], timing: dict[str, Any]) -> dict[str, Any]:
    scheduler, x = getattr(diffusers, kind)(**entries), start()
    scheduler.set_timesteps(5, **timing)
    for t in scheduler.timesteps:
        x = scheduler.step(torch.tanh(x), t, x).prev_sample
    config = {k: v for k, v in scheduler.config.items() if k[0] != "_"}
    return {
        "kind": kind, "config": config, "timing": timing, "timesteps": scheduler.timesteps.tolist(),
        "state": x.flatten().tolist(),
    }  # fmt: skip


if __name__ == "__main__":
    with open(sys.argv[1], "w") as file:
        json.dump({"diffusers": diffusers.__version__, "cases": [record(*case) for case in CASES]}, file, indent=1)
        file.write("\n")
