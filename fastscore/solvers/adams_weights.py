"""Weights of Adams-Bashforth methods as diff-sampler and ComfyUI have them: a time of their own, and a formula."""

from __future__ import annotations

import math
from itertools import pairwise

import numpy as np

from fastscore.process.schedule import Array
from fastscore.solvers.exponential import Weights, quadrature


def _fixed_vp() -> tuple[float, float]:
    low, high = math.log1p(0.002**2), math.log1p(80.0**2)
    a = (low / 1e-3 - high) / (1e-3 - 1.0)
    return a, high - a


A, B = _fixed_vp()  # of ln(rho^2 + 1) = A t^2 + B t, with rho = 0.002 at t = 0.001 and 80 at 1


def vp_time(rho: Array) -> Array:
    """Return the time of rho in that VP process, whatever the model's own is."""
    return (np.sqrt(B * B + 4.0 * A * np.log1p(rho**2)) - B) / (2.0 * A)


def tab_moments(high: float, low: float, n: int, points: int) -> Weights:
    """Return the means of theta^j over rho, j < n, for a step in rho; theta is the share of its time that lies before.

    Args:
        high, low: rho where the step begins and ends.
        n: number of moments; a single one is 1.
        points: 0 integrates exactly; a number sums over so many even times, each with weight 1 / points.
    """
    if n == 1:
        return [1.0]
    start, end = vp_time(np.array([high, low]))
    if points:
        time = np.linspace(start, end, points)
        growth = A * time**2 + B * time
        slope = 0.5 * (2.0 * A * time + B) * np.exp(growth) / np.sqrt(np.expm1(growth))  # of rho
        weights = slope * (end - start) / (low - high) / points
    else:
        rho, weights = quadrature(high, low)
        time, weights = vp_time(rho), weights / (low - high)
    theta = (time - start) / (end - start)
    return [float(np.sum(theta**j * weights)) for j in range(n)]


def ipndm_v_weights(nodes: Weights) -> Weights:
    """Return the weights of ipndm_v for three or four evaluations; see LMS. The unit of ``nodes`` is the step."""
    h = [1.0, *(later - earlier for later, earlier in pairwise(nodes))]
    ratio, two = h[1] / h[2], 1.0 + h[1]
    second = 0.5 * (1.0 - 1.0 / (3.0 * h[1] * (h[1] + h[2])))
    v = np.array([1.0 + 0.5 / h[1] + second, -0.5 / h[1] - (1.0 + ratio) * second, ratio * second, 0.0])
    if len(nodes) == 3:
        return v[:3].tolist()
    third = 0.5 * (1.0 - 1.0 / (3.0 * two)) + (1.0 - 0.5 / two) / (6.0 * (two + h[2]))
    third *= two * (two + h[2]) / (h[1] * (h[1] + h[2]) * (h[1] + h[2] + h[3]))
    back = h[1] * (h[1] + h[2]) / (h[2] * (h[2] + h[3]))
    v += third * np.array([1.0, -(1.0 + ratio + back), ratio + back * (1.0 + h[2] / h[3]), -back * ratio])
    return v.tolist()
