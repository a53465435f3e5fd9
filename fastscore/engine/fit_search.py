"""The search of a fit: knots moved one at a time, as long as that lowers the error. No gradients, no noise."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np

Levels = tuple[float, ...]
Error = Callable[[Levels], float]

APART = 0.05  # ln of two levels, at least
FIRST, LONGER, SHORTER, LAST = (
    0.35,
    1.5,
    0.4,
    0.02,
)  # step of a knot over its distance to the next, its changes, its end


def compass(error: Error, start: Levels, trials: int, first: float = FIRST) -> Levels:
    """Return levels with a lower error than ``start``, found in at most ``trials`` evaluations of it.

    Each knot in turn, the cleanest first, is moved in ln(sigma / alpha) to one side, then to the other; what lowers the
    error stays and lengthens the knot's next step, what does not shortens it. Knots keep their order and distance.

    Args:
        error: of levels; inf for ones that cannot be run.
        start: noisiest first; pure noise (inf) at its beginning and 0 at its end stay.
        first: length of the first steps, as a share of the distance to the next knot.

    Source: Kolda, Lewis & Torczon 2003, section 3, by coordinates.
    """
    free = [k for k, level in enumerate(start) if 0.0 < level < math.inf]
    if not free or trials < 2:
        return start
    levels, best, left = start, error(start), trials - 1
    x = np.log([start[k] for k in free])
    gaps = -np.diff(x) if len(x) > 1 else np.ones(1)
    apart, step = min(APART, 0.5 * gaps.min()), first * np.minimum([*gaps, gaps[-1]], [gaps[0], *gaps])[: len(x)]
    side = -np.ones(len(x))
    while left > 0 and step.max() > LAST:
        for k in range(len(x) - 1, -1, -1):
            if step[k] <= LAST:
                continue
            for sign in (side[k], -side[k]):
                moved = x.copy()
                moved[k] += sign * step[k]
                if left <= 0 or (len(x) > 1 and -np.diff(moved).max() < apart):
                    continue
                trial = (*levels[: free[k]], math.exp(moved[k]), *levels[free[k] + 1 :])
                left, value = left - 1, error(trial)
                if value < best:
                    levels, x, best, side[k] = trial, moved, value, sign
                    step[k] *= LONGER
                    break
            else:
                step[k] *= SHORTER
    return levels
