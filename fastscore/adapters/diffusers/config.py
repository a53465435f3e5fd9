"""The config of another scheduler as one of ours: complete, and refused where its noise is not repeated here."""

from __future__ import annotations

import inspect
import math
from collections.abc import Mapping
from typing import Any

from fastscore.adapters.diffusers.library import library
from fastscore.errors import short, unknown
from fastscore.guidance.denoiser import Guide
from fastscore.guidance.thresholds import Quantile, StaticThreshold

PREDICTIONS = {"epsilon": "eps", "sample": "x0", "v_prediction": "v", "flow_prediction": "flow"}
# Whose configs are a table of betas, or a rectified flow, and a spacing.
FLOWS = ("FlowMatchEulerDiscreteScheduler", "FlowMatchHeunDiscreteScheduler")
TABLES = tuple(
    f"{name}Scheduler"
    for name in (
        "DDIM", "DDIMParallel", "DDPM", "DDPMParallel", "DEISMultistep", "DPMSolverMultistep", "DPMSolverSDE",
        "DPMSolverSinglestep", "EulerAncestralDiscrete", "EulerDiscrete", "HeunDiscrete", "KDPM2AncestralDiscrete",
        "KDPM2Discrete", "LMSDiscrete", "PNDM", "SASolver", "UniPCMultistep",
    )
)  # fmt: skip
SAYING = ("beta_schedule", "trained_betas", "prediction_type")  # of a table, or of a flow: one is there
# Entries that change noise levels or times in a way that nothing here repeats, and the values that leave them alone.
NEUTRAL: dict[str, tuple[Any, ...]] = {
    "use_beta_sigmas": (False, None), "use_lu_lambdas": (False, None), "invert_sigmas": (False, None),
    "timestep_type": ("discrete", None), "sigma_min": (None,), "sigma_max": (None,), "sigma_data": (None,),
    "snr_shift_scale": (None,), "lambda_min_clipped": (-math.inf, None),
}  # fmt: skip


def complete(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return a config as ours reads it, with the defaults of the class that it names where entries are missing.

    diffusers' own ``from_config`` drops what the other scheduler left at a default, which need not be ours.

    Raises:
        ValueError: a scheduler, or an entry of one, whose noise levels are not repeated here.
    """
    name = str(config.get("_class_name") or "")
    values = {k: v for k, v in config.items() if k != "_use_default_values"}
    origin = getattr(library(), name, None)
    if origin is not None and name not in (*TABLES, *FLOWS):
        raise ValueError(
            f"{name}: its noise levels are not those of a table of betas or of a rectified flow, which Scheduler "
            f"samples; it takes the config of one of {', '.join((*TABLES, *FLOWS))}"
        )
    if origin is not None:
        defaults = {k: p.default for k, p in inspect.signature(origin.__init__).parameters.items() if k != "self"}
        values = {k: v for k, v in defaults.items() if v is not inspect.Parameter.empty} | values
    if "shift" in values and "prediction_type" not in values:  # FlowMatch's; one in memory has no _class_name
        values["prediction_type"] = "flow_prediction"
    if values.get("use_flow_sigmas") and "flow_shift" in values:
        values["prediction_type"], values["shift"] = "flow_prediction", values["flow_shift"] or 1.0
    if not name and values and not any(values.get(entry) for entry in SAYING):
        raise ValueError(f"config names none of {', '.join(SAYING)}: which noise was the network trained on?")
    return _checked(name, values)


def _checked(name: str, values: dict[str, Any]) -> dict[str, Any]:
    for entry, neutral in NEUTRAL.items():
        value = values.get(entry)
        if value not in neutral and value != str(neutral[0]):  # -inf is a string in JSON files of old versions
            raise ValueError(
                f"{name or 'config'}: {entry} = {short(value)} is not repeated here; from_config(config, "
                f"{entry}={neutral[0]!r}) leaves it out"
            )
    return values


def prediction_of(config: Mapping[str, Any]) -> str:
    """Return what the network of a config predicts, by the name that it has here."""
    kind = config["prediction_type"]
    if kind not in PREDICTIONS:
        raise unknown("prediction_type", kind, PREDICTIONS)
    return PREDICTIONS[kind]


def guide_of(config: Mapping[str, Any]) -> Guide | None:
    """Return what a config does to the estimate of x0: dynamic thresholding, a clip, or nothing."""
    if config.get("thresholding"):
        return Quantile(float(config["dynamic_thresholding_ratio"]), float(config["sample_max_value"]))
    return StaticThreshold(float(config["clip_sample_range"])) if config.get("clip_sample") else None
