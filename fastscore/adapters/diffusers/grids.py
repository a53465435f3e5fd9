r"""The knots that a scheduler's config, or a pipeline, asks for.

Of a table the knots are its indices, -1 the data; of a rectified flow they are its sigma. A shift k moves sigma to
k sigma / (1 + (k - 1) sigma); with ``use_dynamic_shifting`` the pipeline says mu, and k = e^mu of the exponential rule
and mu of the linear one.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
from torch import Tensor

from fastscore.errors import short
from fastscore.process.continuous import Flow
from fastscore.process.grid import Grid
from fastscore.process.level_rules import Karras, Polyexponential
from fastscore.process.names import NAMED, SPACINGS, listed
from fastscore.process.schedule import Array, Schedule, lam, t_of_lam, table

ROUNDED = 1e-3  # relative, by which published lists of sigmas exceed the noise of their tables


def knots_of(
    config: Mapping[str, Any],
    schedule: Schedule,
    steps: int | None,
    sigmas: Any = None,
    timesteps: Any = None,
    mu: float | None = None,
    shift: float | None = None,
) -> tuple[float, ...]:
    """Return the knots of a run, noisiest first, the end included.

    Args:
        config: of the scheduler. schedule: its table or flow.
        steps: number of steps, of the config's own spacing.
        sigmas: sigma / alpha of each step, or a flow's sigma, with or without the end. They are taken as they are;
            but a flow's even list from 1 is what pipelines pass for a grid that is not shifted yet, and is shifted.
        timesteps: times of the network, with or without the end, in place of ``sigmas``; never shifted.
        mu: of the dynamic shift. shift: in place of the config's.

    Raises:
        ValueError: lists that are no falling numbers or leave the schedule, mu missing, or no steps at all.
    """
    flow = isinstance(schedule, Flow)
    given = sigmas if sigmas is not None else timesteps
    if given is not None:
        listed = given.tolist() if isinstance(given, Tensor | np.ndarray) else given
        values = table("sigmas" if sigmas is not None else "timesteps", listed)
        if len(values) and steps not in (None, len(values), len(values) - 1):
            raise ValueError(f"num_inference_steps = {steps} for a list of {len(values)}; leave it out")
    elif steps is None:
        raise ValueError("set_timesteps needs num_inference_steps, or a list of sigmas or timesteps")
    elif not isinstance(steps, int | np.integer) or steps < 1:
        raise ValueError(f"num_inference_steps = {short(steps)} must be a whole number, at least 1")
    else:
        values = None
    if mu is not None and not flow:
        raise ValueError(f"mu = {mu} shifts the times of a rectified flow; this network has a table of betas")
    if flow:
        knots = _flow(config, values, sigmas is not None, int(steps or 0), mu, shift)
    elif values is None:
        knots = _spaced(config, schedule, int(steps or 0))
    elif sigmas is not None:
        knots = _indices(schedule, values)
    else:
        knots = values
    if values is None or (len(knots) and knots[-1] > schedule.t_clean):
        knots = _ended(config, schedule, knots)
    if len(knots) < 2 or not np.all(np.diff(knots) < 0.0):
        raise ValueError(f"times {short(knots.tolist())} must fall, each below the one before")
    return tuple(knots.tolist())


def _ended(config: Mapping[str, Any], schedule: Schedule, knots: Array) -> Array:
    """Return knots with the end: the data, or the first index of a table where the config stops there."""
    to_data = config.get("final_sigmas_type") in (None, "zero") and config.get("set_alpha_to_one", True)
    if to_data:
        return np.append(knots, schedule.t_clean)
    if isinstance(schedule, Flow) or knots[-1] <= 0.0:
        raise ValueError(
            "this config ends at the first noise level (set_alpha_to_one=False or final_sigmas_type='sigma_min'), "
            "where its last step would begin, too: take final_sigmas_type='zero' and set_alpha_to_one=True, or "
            "steps_offset=1"
        )
    return np.append(knots, 0.0)


def _spaced(config: Mapping[str, Any], schedule: Schedule, steps: int) -> Array:
    spacing = config["timestep_spacing"]
    spacing = "karras" if config.get("use_karras_sigmas") else spacing
    spacing = "logsnr" if config.get("use_exponential_sigmas") else spacing
    spacing = listed("timestep_spacing", spacing, (*SPACINGS, *NAMED))
    offset = int(config.get("steps_offset") or 0) if spacing == "leading" else 0
    return Grid(spacing, steps, clean=True, offset=offset)(schedule)[:-1]


def _indices(schedule: Schedule, sigmas: Array) -> Array:
    """Return the times of levels sigma / alpha; one that rounding put above the last is the last."""
    if np.any(np.isnan(sigmas)) or np.any(sigmas < 0.0):
        raise ValueError(f"sigmas = {short(sigmas.tolist())} must be positive, and fall")
    with np.errstate(divide="ignore"):
        levels, bottom = -np.log(sigmas), float(lam(schedule, schedule.T))
    levels = np.where((levels < bottom) & (levels > bottom - ROUNDED), bottom, levels)
    return np.where(sigmas > 0.0, t_of_lam(schedule, np.where(sigmas > 0.0, levels, bottom)), schedule.t_clean)


def _flow(
    config: Mapping[str, Any], values: Array | None, is_sigma: bool, steps: int, mu: float | None, shift: float | None
) -> Array:
    n, fixed = config["num_train_timesteps"], float(config.get("shift") or 1.0)
    if values is not None and not is_sigma:
        return values / n
    if values is not None and not _unshifted(values, n):
        return values
    lowest = np.array(1.0 / n)
    if config.get("use_dynamic_shifting"):
        if mu is None:
            raise ValueError("use_dynamic_shifting: set_timesteps needs mu, which Flux-like pipelines pass")
        factor = math.exp(mu) if config.get("time_shift_type", "exponential") == "exponential" else mu
    else:
        factor, lowest = fixed if shift is None else shift, shifted(lowest, fixed)
    if values is not None:
        even = values
    elif config.get("use_flow_sigmas"):  # of UniPC
        even = np.linspace(1.0, 1.0 / n, steps + 1)[:-1]
    else:  # of FlowMatchEuler, whose last level is shifted twice
        even = np.linspace(1.0, float(lowest), steps)
    knots = shifted(even, factor)
    if config.get("shift_terminal"):
        knots = 1.0 - (1.0 - knots) * (1.0 - config["shift_terminal"]) / (1.0 - knots[-1])
    if config.get("use_karras_sigmas"):
        return Karras()(len(knots), knots[0], knots[-1])
    return Polyexponential()(len(knots), knots[0], knots[-1]) if config.get("use_exponential_sigmas") else knots


def shifted(sigma: Array, factor: float) -> Array:
    """Return a flow's levels after a shift. Source: Esser et al. 2024, eq. 23."""
    return factor * sigma / (1.0 + (factor - 1.0) * sigma)


def _unshifted(sigmas: Array, n: int) -> bool:
    """Return whether sigmas are one of the even lists from 1 that pipelines pass: to 1/len, or to 1/n."""
    count = len(sigmas)
    ends = (1.0 / count, 1.0 / n) if count else ()
    return any(np.allclose(sigmas, np.linspace(1.0, end, count), rtol=0.0, atol=1.0 / n) for end in ends)
