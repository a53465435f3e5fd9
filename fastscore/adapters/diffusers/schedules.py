"""The noise levels of a diffusers scheduler's config as schedules of this engine.

Their tables are float32, and networks were trained on them: near the data 1 - abar has few digits left in float32, so
that sigma_0 of DDPM's table differs by 3e-4 from the formula's. Hence the tables here are theirs to the bit, widened.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fastscore.errors import short, unknown
from fastscore.process.continuous import EDM, Flow
from fastscore.process.discrete import DiscreteVP
from fastscore.process.schedule import Array, Schedule, table

BETAS = ("linear", "scaled_linear", "squaredcos_cap_v2", "sigmoid", "laplace")
NEARLY_ZERO_SNR = 2.0**-24  # abar at the last index of these, where DDPM and DDIM have 0 (Lin et al. 2024)
NEARLY = ("Euler", "DPM", "UniPC")


def schedule_of(config: Mapping[str, Any]) -> Schedule:
    r"""Return the schedule that a scheduler's config describes: a table, EDM's or rectified flow.

        abar_i = prod_{j <= i} (1 - beta_j),   alpha = sqrt(abar),   sigma = sqrt(1 - abar)

    Args:
        config: as scheduler_config.json holds it, with ``_class_name``; what is missing is DDPMScheduler's default.

    Raises:
        ValueError: a beta schedule that is none of BETAS, betas that make no table, or score_sde's scheduler.
    """
    kind = str(config.get("_class_name", ""))
    if kind.startswith("FlowM") or config.get("use_flow_sigmas") or config.get("prediction_type") == "flow_prediction":
        return Flow()
    if kind.startswith("EDM"):
        return EDM(float(config.get("sigma_min", 0.002)), float(config.get("sigma_max", 80.0)))
    if kind == "ScoreSdeVeScheduler":
        raise ValueError(
            f"{kind}: its networks see images in 0 .. 1, and samples here are in -1 .. 1; from_score_sde(wrap(unet, "
            "'x, t', out='sample'), sde, shape, continuous=True) brings them there"
        )
    abar = _falling(alphas_bar(config).double().numpy())
    return DiscreteVP(tuple(1.0 - abar / np.append(1.0, abar[:-1])))


def alphas_bar(config: Mapping[str, Any]) -> Tensor:
    """Return abar of a config, float32 [num_train_timesteps], by the operations of diffusers in their order.

    Raises:
        ValueError: as for schedule_of.
    """
    betas = _betas(config)
    rescale = bool(config.get("rescale_betas_zero_snr"))
    if rescale:
        # sqrt(abar), moved so that the last is 0 and scaled so that the first one stays: Lin et al. 2024, algorithm 1.
        root = torch.cumprod(1.0 - betas, 0).sqrt()
        first, last = root[0].clone(), root[-1].clone()
        abar = ((root - last) * (first / (first - last))) ** 2
        betas = 1.0 - torch.cat([abar[:1], abar[1:] / abar[:-1]])
    abar = torch.cumprod(1.0 - betas, 0)
    if rescale and str(config.get("_class_name", "")).startswith(NEARLY):
        abar[-1] = NEARLY_ZERO_SNR
    return abar


def _falling(abar: Array) -> Array:
    """Return a table that falls to its last value, where 2^-24 is more signal than the indices before it have."""
    first = int(np.argmax(abar <= abar[-1]))
    if 0 < first < len(abar) - 1:
        abar[first - 1 :] = np.geomspace(abar[first - 1], abar[-1], len(abar) - first + 1)
    return abar


def _betas(config: Mapping[str, Any]) -> Tensor:
    trained, kind = config.get("trained_betas"), config.get("beta_schedule", "linear")
    n = config.get("num_train_timesteps", 1000)
    low, high = float(config.get("beta_start", 1e-4)), float(config.get("beta_end", 0.02))
    if trained is not None:
        return torch.tensor(table("trained_betas", trained), dtype=torch.float32)
    if not isinstance(n, int) or n < 1:
        raise ValueError(f"num_train_timesteps = {short(n)} must be a positive integer")
    if kind == "linear":
        return torch.linspace(low, high, n, dtype=torch.float32)
    if kind == "scaled_linear":
        return torch.linspace(low**0.5, high**0.5, n, dtype=torch.float32) ** 2
    if kind == "sigmoid":  # GeoDiff's
        return torch.sigmoid(torch.linspace(-6.0, 6.0, n, dtype=torch.float32)) * (high - low) + low
    if kind not in BETAS:
        raise unknown("beta_schedule", kind, BETAS)
    bar = _cosine if kind == "squaredcos_cap_v2" else _laplace
    return torch.tensor([min(1.0 - bar((i + 1) / n) / bar(i / n), 0.999) for i in range(n)], dtype=torch.float32)


def _cosine(t: float) -> float:
    """abar of Nichol & Dhariwal 2021, eq. 17."""
    return math.cos((t + 0.008) / 1.008 * math.pi / 2) ** 2


def _laplace(t: float) -> float:
    """sqrt(snr / (1 + snr)) with a Laplace law of ln snr: Hang et al. 2024, as diffusers writes it."""
    snr = math.exp(-0.5 * math.copysign(1.0, 0.5 - t) * math.log(1.0 - 2.0 * abs(0.5 - t) + 1e-6))
    return math.sqrt(snr / (1.0 + snr))
