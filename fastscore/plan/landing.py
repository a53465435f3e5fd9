r"""Where a row leads: the times that a network of two times is asked about.

Such a network, F(x_t, t, r), is made for the one step from t to r: what it says of D and eps is what carries x_t there,
alpha_r D + sigma_r eps, as if both were constant on the way. So r is no choice of a sampler. It follows from the row:
the factors of D and of eps in a x + b m say at which noise level the step ends, before fresh noise is added.
"""

from __future__ import annotations

import numpy as np

from fastscore.plan.rows import Plan
from fastscore.process.parametrization import Parametrization, components, network_time
from fastscore.process.schedule import Array, Schedule, t_of_lam

CLOSE = 1e-9  # relative; a row's own end, and none of the noise


def end_labels(plan: Plan, reads: Array, model: Schedule, parametrization: Parametrization) -> list[float]:
    """Return the labels of r for the rows that read an output of a network of two times.

    Args:
        plan: not folded. reads: which of its rows read an output.
        model, parametrization: the schedule that the network was trained on, and its label.

    Raises:
        ValueError: a row that is no step from t to one r; or a label that has no value there, as ln sigma of the data.
    """
    ends = [_end(plan, k, model) for k, at in enumerate(reads) if at]
    with np.errstate(divide="ignore", invalid="ignore"):
        labels = parametrization.c_noise(model, np.array(ends))
    if not np.isfinite(labels).all():
        at = ends[int(np.argmin(np.isfinite(labels)))]
        raise ValueError(
            f"two_times: label {parametrization.label!r} has no value at t = {at:.6g}, where a step ends; use 't', "
            "or end the grid at sigma > 0"
        )
    return labels.tolist()


def _end(plan: Plan, k: int, model: Schedule) -> float:
    """Return r of row k, in the time of the network's schedule."""
    row, schedule = plan.rows[k], plan.schedule
    (alpha, alpha_s), (sigma, sigma_s) = (fn(np.array([row.t, row.s])) for fn in (schedule.alpha, schedule.sigma))
    of_data, of_eps = (float(v) for v in components(row.m, schedule, row.t))
    data, eps = row.a * alpha + row.b * of_data, row.a * sigma + row.b * of_eps
    alone = row.evaluate and row.push is None and row.langevin is None  # who reads a history finds it pushed
    if not alone or not abs(data - alpha_s) <= CLOSE * alpha_s or not eps >= -CLOSE * sigma:
        raise ValueError(
            f"row {k} (t = {row.t:.6g} to {row.s:.6g}): this network maps from t to the end of one step (two_times), "
            "and this solver uses its output otherwise: in a history, a second stage, a corrector or a bent step. "
            "Use DDIM, Renoise or AncestralSplit(DDIM()), or on Flow Euler"
        )
    if eps <= CLOSE * sigma:
        return model.t_clean
    if abs(eps - sigma_s) <= CLOSE * sigma_s:
        return float(network_time(model, schedule, row.s)[0])
    return float(t_of_lam(model, np.log(data / eps))[0])
