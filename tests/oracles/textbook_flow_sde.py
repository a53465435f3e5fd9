"""Flow-SDE, DanceGRPO's SDE and CPS as plain loops, with a process's own f and g; and a window of DDIM's noise.

In flow matching, x_t = (1 - t) x_0 + t eps and v = eps - x_0, they are the formulas of the papers: Liu et al. 2025,
x + [v + g^2/(2t) (x + (1 - t) v)] dt + g sqrt(-dt) z with g = a sqrt(t / (1 - t)); Xue et al. 2025, the same with a
constant g; Wang & Yu 2025, (1 - s) x_0 + sqrt(s^2 - c^2) eps + c z with c = s sin(a pi / 2).
"""

from __future__ import annotations

from itertools import pairwise

import numpy as np
from textbook import Process, ddim, score


def diffused(process: Process, D, times, x, z, a: float, constant: bool = False) -> np.ndarray:
    """dx = [v - G^2 score / 2] dt + G dw backwards in time; v is that of the probability-flow ODE."""
    for t, s in pairwise(times):
        if process.sigma(s) == 0.0:
            return D(x, process.alpha(t), process.sigma(t))
        dt, slope = s - t, score(process, D, t, x)
        v = process.f(t) * x - 0.5 * process.g2(t) * slope
        G = a if constant else a * np.sqrt(0.5 * process.g2(t))
        x = x + (v - 0.5 * G**2 * slope) * dt + G * np.sqrt(-dt) * next(z)
    return x


def cps(process: Process, D, times, x, z, a: float) -> np.ndarray:
    for t, s in pairwise(times):
        x0 = D(x, process.alpha(t), process.sigma(t))
        eps = (x - process.alpha(t) * x0) / process.sigma(t)
        c = process.sigma(s) * np.sin(0.5 * np.pi * a)
        x = process.alpha(s) * x0 + np.sqrt(process.sigma(s) ** 2 - c**2) * eps
        if c > 0.0:
            x = x + c * next(z)
    return x


def first_step_noisy(process: Process, D, times, x, z) -> np.ndarray:
    """DDIM with eta = 1 in the first step and 0 in the others."""
    x = ddim(process, D, times[:2], x, z, eta=1.0)
    return ddim(process, D, times[1:], x, z) if len(times) > 2 else x
