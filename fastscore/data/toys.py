"""Toy sets: points in the plane, and sets of points."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

TOYS = ("moons", "rings", "checkerboard", "grid")


CIRCLES = "circles"


def toy(name: str, n: int, seed: int = 0) -> NDArray[np.float32]:
    """Draw ``n`` points of a two-dimensional toy set with coordinates of order one."""
    if name not in TOYS:
        raise ValueError(f"toy set {name!r} must be one of {', '.join(TOYS)}")
    rng = np.random.default_rng([seed, TOYS.index(name)])
    if name == "moons":
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
    else:
        x = rng.integers(-1, 2, (n, 2)) + 0.08 * rng.standard_normal((n, 2))
    return x.astype(np.float32)


def circles(n: int, seed: int = 0, points: int = 16) -> NDArray[np.float32]:
    """Draw ``n`` sets of points [n, points, 2], each on a circle of its own centre and radius, in no order."""
    rng = np.random.default_rng([seed, len(TOYS)])
    centre, radius = 0.3 * rng.standard_normal((n, 1, 2)), rng.uniform(0.4, 1.0, (n, 1, 1))
    angle = rng.uniform(0.0, 2 * np.pi, (n, points))
    x = centre + radius * np.stack([np.cos(angle), np.sin(angle)], 2) + 0.02 * rng.standard_normal((n, points, 2))
    return x.astype(np.float32)
