"""Runs of diffusers' schedulers around a network of one line, recorded: python tests/oracles/diffusers_runs.py.

The recording holds what a scheduler says of itself (config, timesteps, sigmas) and where its own loop ends, so that a
checkout without diffusers proves the same equality as one that has it.
"""

from __future__ import annotations

import copy
import inspect
import json
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

import fastscore as fs
from fastscore.adapters.diffusers.models import Labels
from fastscore.adapters.diffusers.samplers import Recipe
from fastscore.adapters.diffusers.solvers import RULES

FILE = Path(__file__).resolve().parents[1] / "data" / "diffusers.json"
N, SHAPE = 3, (2, 3)
TABLES = ("alphas_cumprod", "one", "final_alpha_cumprod")
LEVELS = ("sigmas", "sigmas_interpol", "sigmas_up", "sigmas_down")
SD = {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012}
FLOW = {"use_flow_sigmas": True, "flow_shift": 3.0, "prediction_type": "flow_prediction"}
V = {"prediction_type": "v_prediction"}
ZERO_SNR = {**V, "rescale_betas_zero_snr": True, "timestep_spacing": "trailing"}
MIN = {"final_sigmas_type": "sigma_min"}
SPACED: tuple[dict[str, Any], ...] = (
    {}, {"timestep_spacing": "leading", "steps_offset": 1}, {"timestep_spacing": "trailing", **V},
    {"use_karras_sigmas": True}, {"use_exponential_sigmas": True}, {"use_beta_sigmas": True},
    {"use_karras_sigmas": True, "timestep_spacing": "leading", **SD},
)  # fmt: skip
CONFIGS: dict[str, tuple[dict[str, Any], ...]] = {
    "DDPM": (
        {}, {"clip_sample": False}, {"variance_type": "fixed_large"}, {"beta_schedule": "squaredcos_cap_v2", **V},
        {"thresholding": True, "sample_max_value": 1.5}, {"beta_schedule": "sigmoid", "timestep_spacing": "trailing"},
        {"beta_schedule": "laplace"}, {"clip_sample_range": 2.0, "prediction_type": "sample"}, ZERO_SNR,
        {"trained_betas": np.linspace(1e-3, 0.05, 200).tolist(), "num_train_timesteps": 200},
    ),
    "DDIM": (
        {}, {"clip_sample": False, "timestep_spacing": "linspace"},
        {"clip_sample": False, "timestep_spacing": "trailing"}, {**ZERO_SNR, "clip_sample": False},
        {"set_alpha_to_one": False, "steps_offset": 1, "clip_sample": False, **SD, **V},
        {"thresholding": True, "clip_sample": False}, {"eta": 0.7, "clip_sample_range": 0.8},
    ),
    "PNDM": ({"skip_prk_steps": True}, {"skip_prk_steps": True, "steps_offset": 1, **SD}),
    "EulerDiscrete": (
        *SPACED, MIN, ZERO_SNR, {"interpolation_type": "log_linear"}, {"prediction_type": "sample"},
        {"timestep_type": "continuous", "use_karras_sigmas": True, "sigma_min": 0.002, "sigma_max": 700.0, **V},
    ),
    "EulerAncestralDiscrete": SPACED[:3],
    "HeunDiscrete": (*SPACED, {"clip_sample": True}),
    "LMSDiscrete": SPACED,
    "KDPM2Discrete": SPACED,
    "KDPM2AncestralDiscrete": SPACED[1:3],
    "DPMSolverMultistep": (
        *SPACED, {"solver_order": 3}, {"solver_order": 1}, {"solver_type": "heun"}, {"use_lu_lambdas": True},
        {"algorithm_type": "sde-dpmsolver++"}, {"algorithm_type": "dpmsolver", **MIN},
        {"algorithm_type": "sde-dpmsolver", **MIN}, {"euler_at_final": True, **MIN}, {"lower_order_final": False},
        FLOW, {"use_flow_sigmas": True}, {"thresholding": True}, {"thresholding": True, "sample_max_value": 2.0},
        {"rescale_betas_zero_snr": True, **V}, {"lambda_min_clipped": -5.1}, {**MIN, "use_karras_sigmas": True},
        {"beta_schedule": "squaredcos_cap_v2", "use_karras_sigmas": True},
        {"beta_schedule": "squaredcos_cap_v2", "use_karras_sigmas": True, "steps": 18},
        {"solver_order": 3, "steps": 18},
    ),
    "DPMSolverSinglestep": (
        {}, {"steps": 9}, {"solver_order": 3}, {"solver_order": 3, "steps": 9, **MIN}, FLOW,
        {"use_karras_sigmas": True},
        {"lower_order_final": True, "solver_order": 3, "steps": 12, **MIN}, {"algorithm_type": "dpmsolver", **MIN},
    ),
    "UniPCMultistep": (
        *SPACED, {"solver_order": 3}, {"solver_order": 3, "predict_x0": False, **MIN}, {"solver_type": "bh1", **MIN},
        {"disable_corrector": [0, 1]}, MIN, FLOW, {**FLOW, "shift_terminal": 0.1}, {**FLOW, "use_karras_sigmas": True},
        ZERO_SNR, {"thresholding": True}, {**FLOW, "use_dynamic_shifting": True, "mu": 0.6},
    ),
    "DEISMultistep": (*SPACED, {"solver_order": 3}, {"solver_order": 3, "use_karras_sigmas": True, "steps": 18}, FLOW),
    "EDMEuler": ({}, V, MIN, {"sigma_schedule": "exponential"}),
    "EDMDPMSolverMultistep": ({}, V, MIN, {"solver_order": 3}, {"algorithm_type": "sde-dpmsolver++"}),
    "FlowMatchEulerDiscrete": (
        {}, {"shift": 3.0}, {"shift_terminal": 0.1}, {"use_karras_sigmas": True}, {"use_beta_sigmas": True},
        {"use_dynamic_shifting": True, "mu": 0.8}, {"use_dynamic_shifting": True, "mu": 0.8, "sigmas": 6},
        {"use_dynamic_shifting": True, "time_shift_type": "linear", "mu": 0.8},
    ),
    "FlowMatchHeunDiscrete": ({}, {"shift": 2.0}),
}  # fmt: skip
REFUSED: dict[str, tuple[tuple[dict[str, Any], str], ...]] = {  # and a word of the message
    "DDPM": (({"variance_type": "learned_range"}, "variance_type"),),
    "DDIM": (({"thresholding": True, "sample_max_value": 2.0}, "sample_max_value"),),
    "PNDM": (
        ({}, "skip_prk_steps"), ({"skip_prk_steps": True, "set_alpha_to_one": True}, "set_alpha_to_one"),
        ({"skip_prk_steps": True, "timestep_spacing": "trailing", "steps": 12}, "timestep_spacing"),
    ),
    "KDPM2AncestralDiscrete": (({"use_karras_sigmas": True}, "two labels"),),
    "DPMSolverMultistep": (({"solver_order": 3, "use_karras_sigmas": True, **MIN}, "order 3"),),
    "DPMSolverSinglestep": (({"solver_type": "heun"}, "solver_type"), ({"algorithm_type": "sde-dpmsolver++"}, "sde")),
    "UniPCMultistep": (
        ({"solver_type": "bh1"}, "NaN"), ({"predict_x0": False}, "NaN"), ({"lower_order_final": False}, "NaN"),
        ({"use_karras_sigmas": True, **MIN}, "final_sigmas_type"),
    ),
    "DEISMultistep": (({"solver_order": 3, "use_karras_sigmas": True}, "order 3"),),
    "EulerDiscrete": (({"use_karras_sigmas": True, "sigma_max": 700.0}, "beyond the table"),),
    "FlowMatchEulerDiscrete": (({"invert_sigmas": True}, "invert_sigmas"), ({"stochastic_sampling": True}, "stoch")),
    "DPMSolverSDE": (({}, "Brownian"),),
    "ScoreSdeVe": (({}, "from_score_sde"),),
    "LCM": (({}, "LCM"),),
    "SASolver": (({}, "SASolver"),),
    "TCD": (({}, "TCD"),),
}  # fmt: skip


def cases(of: dict[str, Any]) -> Iterator[tuple[str, str, Any]]:
    """Yield (name, class, config) of a table above."""
    for kind, configs in of.items():
        for k, config in enumerate(configs):
            yield f"{kind}/{k}", f"{kind}Scheduler", config


def asked(config: dict[str, Any]) -> tuple[dict[str, Any], int | None, dict[str, Any], float]:
    """Return the entries of a config, and of the run: steps, further arguments of set_timesteps, eta."""
    own = {k: v for k, v in config.items() if k not in ("steps", "mu", "sigmas", "eta")}
    timing = {"mu": config["mu"]} if "mu" in config else {}
    steps = config.get("steps", 10)
    if "sigmas" in config:
        steps, timing["sigmas"] = None, np.linspace(1.0, 1.0 / config["sigmas"], config["sigmas"])
    return own, steps, timing, config.get("eta", 0.0)


def made(kind: str, config: dict[str, Any]) -> Any:
    """Return the scheduler, its tables widened: the same float32 numbers, and no rounding in what it does with them."""
    import diffusers

    scheduler = getattr(diffusers, kind)(**config)
    for name in TABLES:
        if hasattr(scheduler, name):
            setattr(scheduler, name, getattr(scheduler, name).double())
    return scheduler


def noise(draws: int = 40) -> Tensor:
    """Return the normals of a run, [draws, N, *SHAPE]."""
    return torch.from_numpy(np.random.default_rng(7).standard_normal((draws, N, *SHAPE)))


def network(u: Tensor, label: Tensor) -> Tensor:
    """Return an output that depends on every label and is not linear."""
    level = label.double().reshape(-1, 1, 1)
    return torch.tanh(1.3 * u + torch.sin(level / 70.0)) + 0.2 * u.flip(-1) * torch.cos(level / 50.0)


@contextmanager
def normals(scheduler: Any, draws: Iterator[Tensor]) -> Iterator[None]:
    """Give a scheduler recorded normals."""
    module = sys.modules[type(scheduler).__module__]
    own = getattr(module, "randn_tensor", None)
    if own is not None:
        module.randn_tensor = lambda shape, **_: next(draws)
    try:
        yield
    finally:
        if own is not None:
            module.randn_tensor = own


def loop(
    scheduler: Any, net: Callable[[Tensor, Tensor], Tensor], z: Tensor, steps: int | None, timing: Any, eta: float = 0.0
) -> Tensor:
    """Return where a scheduler's own loop ends, on the normals z [draws, N, ..]; as pipelines write it."""
    scheduler, draws = copy.deepcopy(scheduler), iter(z)
    scheduler.set_timesteps(**({} if steps is None else {"num_inference_steps": steps}), **timing)
    for name in LEVELS if z.dtype == torch.float64 else ():
        if isinstance(getattr(scheduler, name, None), Tensor):
            setattr(scheduler, name, getattr(scheduler, name).double())
    if hasattr(scheduler, "set_begin_index"):
        scheduler.set_begin_index(0)  # or it looks for the first label, and skips a step if it is there twice
    x = next(draws) * float(getattr(scheduler, "init_noise_sigma", 1.0))
    with normals(scheduler, draws), torch.no_grad():
        for t in scheduler.timesteps:
            u = scheduler.scale_model_input(x, t) if hasattr(scheduler, "scale_model_input") else x
            more = {"eta": eta} if type(scheduler).__name__ == "DDIMScheduler" else {}
            x = scheduler.step(net(u, t.expand(len(x))), t, x, return_dict=False, **more)[0]
    return x


def ours(recipe: Recipe, z: Tensor) -> Tensor:
    """Return where a Sampler ends under a recipe, on the same normals."""
    labels = Labels(recipe.scale, *zip(*recipe.pairs, strict=True)) if recipe.pairs else Labels(recipe.scale)

    def net(u: Tensor, c_noise: Tensor) -> Tensor:
        return recipe.sign * network(u, labels(c_noise))

    model = fs.ScoreModel(net, SHAPE, recipe.schedule, recipe.parametrization)
    return fs.Sampler(model, batch=N, dtype=z.dtype, **recipe.settings).run(range(N), noise=z)


class Said:
    """As much of a scheduler as the adapter reads, from the recording."""

    def __init__(self, entry: dict[str, Any]) -> None:
        self.config, self._later = dict(entry["config"]), entry["said"]

    def set_timesteps(self, num_inference_steps: int | None = None, **timing: Any) -> None:
        """Say the recorded times."""
        for name, value in self._later.items():
            dtype = torch.int64 if name == "timesteps" and self._later["whole"] else torch.float32
            setattr(self, name, torch.tensor(value, dtype=dtype) if isinstance(value, list) else value)


@cache
def recorded() -> dict[str, Any]:
    """Return the recording: runs, refusals, tables."""
    return json.loads(FILE.read_text())


def said(kind: str, entry: dict[str, Any]) -> Any:
    """Return a stand-in for a recorded scheduler, of a class of its name."""
    return type(kind, (Said,), {})({**entry, "config": recorded()["classes"][kind] | entry["config"]})


def record() -> None:
    """Write the recording."""
    runs: dict[str, Any] = {}
    classes: dict[str, Any] = {}
    for name, kind, config in cases(CONFIGS):
        own, steps, timing, eta = asked(config)
        scheduler = made(kind, own)
        end = loop(scheduler, network, noise(), steps, timing, eta)
        assert end.isfinite().all(), name
        classes[kind] = {k: v for k, v in made(kind, {}).config.items() if not k.startswith("_")}
        scheduler.set_timesteps(**({} if steps is None else {"num_inference_steps": steps}), **timing)
        names = ("timesteps",) if RULES[kind].family == "index" else ("timesteps", "sigmas", "sigmas_interpol")
        there = {k: getattr(scheduler, k).tolist() for k in names if hasattr(scheduler, k)}
        there |= {"whole": not scheduler.timesteps.is_floating_point(), "order": scheduler.order}
        there["init_noise_sigma"] = float(getattr(scheduler, "init_noise_sigma", 1.0))
        changed = {k: v for k, v in scheduler.config.items() if k in classes[kind] and v != classes[kind][k]}
        runs[name] = {"config": changed, "steps": steps, "eta": eta, "said": there, "end": end.flatten().tolist()}
    content = {"classes": classes, "runs": runs, "tables": tables()}
    FILE.write_text(json.dumps(content, separators=(",", ":")) + "\n")


def tables() -> list[dict[str, Any]]:
    """Return configs with abar at some indices, float32."""
    import diffusers

    found = []
    for kind in ("DDPMScheduler", "DDIMScheduler", "EulerDiscreteScheduler", "HeunDiscreteScheduler"):
        for betas in ("linear", "scaled_linear", "squaredcos_cap_v2", "sigmoid", "laplace"):
            for zero in (False, True):
                more = {"beta_schedule": betas, **({"rescale_betas_zero_snr": True} if zero else {})}
                if not more.keys() <= inspect.signature(getattr(diffusers, kind)).parameters.keys():
                    continue
                try:
                    scheduler = getattr(diffusers, kind)(**more)
                except NotImplementedError:  # what a scheduler says to a table that it does not know
                    continue
                at = [0, 1, 2, 10, 100, 500, 900, 997, 998, 999]
                config = {"_class_name": kind, "beta_start": scheduler.config.beta_start, **more}
                config["beta_end"] = scheduler.config.beta_end
                found.append({"config": config, "at": at, "abar": scheduler.alphas_cumprod[at].tolist()})
    return found


if __name__ == "__main__":
    record()
