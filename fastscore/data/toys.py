"""Toy sets: points in the plane, and sets of points."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from fastscore.errors import unknown

# Equal Gaussians of the tutorials: where they lie, and the standard deviation of each.
_THIRDS = [(2.0 * math.cos(a), 2.0 * math.sin(a)) for a in (math.pi / 2, 7 * math.pi / 6, 11 * math.pi / 6)]
_EIGHTHS = [(2.0 * math.cos(k * math.pi / 4), 2.0 * math.sin(k * math.pi / 4)) for k in range(8)]
GAUSSIANS = {
    "four-gaussians": ([(-2.0, -2.0), (-2.0, 2.0), (2.0, -2.0), (2.0, 2.0)], 0.5),
    "three-gaussians": (_THIRDS, 0.5),
    "eight-gaussians": (_EIGHTHS, 0.2),
}
CIRCLES = "circles"
# The place of a name seeds its numbers.
_SETS = ("moons", "rings", "checkerboard", "grid", CIRCLES, *GAUSSIANS, "swiss-roll", "spirals")
TOYS = tuple(name for name in _SETS if name != CIRCLES)


def toy(name: str, n: int, seed: int = 0) -> NDArray[np.float32]:
    """Draw ``n`` points [n, 2] of a toy set in the plane; they are a function of name, n and seed.

    With u uniform in 0 .. 1, in units of the plane, noise being normal and of both coordinates:

        moons            two half circles of radius 1 around (-0.5, -0.25) and (0.5, 0.25), noise 0.05
        rings            circles of radius 0.5, 1 and 1.5, noise 0.04
        checkerboard     8 of the 16 unit squares of -2 .. 2
        grid             Gaussians at the 9 points of {-1, 0, 1}^2, std 0.08
        four-gaussians   at (+-2, +-2), std 0.5
        three-gaussians  on a circle of radius 2, at 90, 210 and 330 degrees, std 0.5
        eight-gaussians  on a circle of radius 2, std 0.2
        swiss-roll       (t cos t, t sin t) / 10 with t = 1.5 pi (1 + 2 u), noise 0.05
        spirals          +-a (-cos a, sin a) / 6 with a = 3 pi sqrt(u), noise 0.05

    Args:
        name: one of TOYS; underscores and any case will do.
        n: how many, at least 0.
        seed: at least 0; ``fastscore train NAME`` draws 100,000 with seed 0, a test split has seed 1.

    Raises:
        ValueError: an unknown name.
    """
    name = name.replace("_", "-").lower()
    if name not in TOYS:
        raise unknown("toy set", name, TOYS)
    rng = np.random.default_rng([seed, _SETS.index(name)])
    if name in GAUSSIANS:
        means, std = GAUSSIANS[name]
        x = np.asarray(means)[rng.integers(0, len(means), n)] + std * rng.standard_normal((n, 2))
    elif name == "moons":
        angle, upper = rng.uniform(0.0, np.pi, n), rng.integers(0, 2, n)
        x = np.stack([np.cos(angle), np.sin(angle)], 1)
        x = np.where(upper[:, None] == 1, x, [1.0, 0.5] - x) - [0.5, 0.25]
        x = x + 0.05 * rng.standard_normal((n, 2))
    elif name == "rings":
        angle, radius = rng.uniform(0.0, 2 * np.pi, n), rng.choice([0.5, 1.0, 1.5], n)
        x = radius[:, None] * np.stack([np.cos(angle), np.sin(angle)], 1) + 0.04 * rng.standard_normal((n, 2))
    elif name == "checkerboard":
        cell = rng.integers(0, 8, n)
        row, col = cell // 2, 2 * (cell % 2) + (cell // 2) % 2
        x = np.stack([col, row], 1) + rng.uniform(0.0, 1.0, (n, 2)) - 2.0
    elif name == "swiss-roll":
        t = 1.5 * np.pi * (1.0 + 2.0 * rng.uniform(0.0, 1.0, n))
        x = t[:, None] * np.stack([np.cos(t), np.sin(t)], 1) / 10.0 + 0.05 * rng.standard_normal((n, 2))
    elif name == "spirals":
        a = 3.0 * np.pi * np.sqrt(rng.uniform(0.0, 1.0, n)) * rng.choice([-1.0, 1.0], n)
        x = a[:, None] * np.stack([-np.cos(a), np.sin(np.abs(a))], 1) / 6.0 + 0.05 * rng.standard_normal((n, 2))
    else:
        x = rng.integers(-1, 2, (n, 2)) + 0.08 * rng.standard_normal((n, 2))
    return x.astype(np.float32)


def circles(n: int, seed: int = 0, points: int = 16) -> NDArray[np.float32]:
    """Draw ``n`` sets of points [n, points, 2], each on a circle of its own centre and radius, in no order."""
    rng = np.random.default_rng([seed, _SETS.index(CIRCLES)])
    centre, radius = 0.3 * rng.standard_normal((n, 1, 2)), rng.uniform(0.4, 1.0, (n, 1, 1))
    angle = rng.uniform(0.0, 2 * np.pi, (n, points))
    x = centre + radius * np.stack([np.cos(angle), np.sin(angle)], 2) + 0.02 * rng.standard_normal((n, points, 2))
    return x.astype(np.float32)
