r"""GITS: the knots of few steps among those of a fine trajectory, by dynamic programming over the cost of each jump.

    V[j, 1] = cost[j, N],   V[j, k] = min_{i > j} cost[j, i] + coeff V[i, k - 1]

V[j, k] is what k jumps from knot j to the last one cost; the path starts at knot 0. ``coeff`` says how much of the
error of a jump is left at the end: above 1 errors grow on their way.

Source: Chen et al. 2024 (On the trajectory regularity of ODE-based diffusion sampling), algorithm 1 and section 4.
"""

from __future__ import annotations

import math

import numpy as np

from fastscore.process.schedule import Array

COEFFS = (0.85, 1.0, 1.15)  # 1.15 is theirs; which is best depends on the data, and a search tries all


def cheapest_path(cost: Array, knots: int, coeff: float = 1.15) -> tuple[list[int], float]:
    """Return the cheapest path of ``knots`` knots from the first to the last, and its V.

    Args:
        cost: of the jump from knot i to knot j > i, [N + 1, N + 1]; the rest of the matrix is not read.
        knots: of the path, both ends included; 2 .. N + 1.
        coeff: finite and positive.

    Raises:
        ValueError: a matrix that is none, or a number out of range.
    """
    cost = np.asarray(cost, np.float64)
    n = len(cost)
    if cost.shape != (n, n) or n < 2 or np.isnan(cost[np.triu_indices(n, 1)]).any():
        raise ValueError(f"cost is of shape {cost.shape}; it must be a matrix of the jumps between two knots or more")
    if not 2 <= knots <= n:
        raise ValueError(f"knots = {knots} must lie in 2 .. {n}, of the path and of the trajectory")
    if not 0.0 < coeff < math.inf:
        raise ValueError(f"coeff = {coeff} must be a positive number")
    jump = np.where(np.triu(np.ones((n, n), bool), 1), cost, math.inf)
    value, following = jump[:, -1].copy(), []
    for _ in range(knots - 2):
        through = jump + coeff * value
        following.append(through.argmin(1))
        value = through.min(1)
    path = [0]
    for then in reversed(following):
        path.append(int(then[path[-1]]))
    return [*path, n - 1], float(value[0])
