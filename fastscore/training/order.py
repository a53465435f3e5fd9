"""The order in which training sees its examples: a function of the seed and of how many were seen."""

from __future__ import annotations

from collections.abc import Iterator
from functools import lru_cache

import numpy as np


def order(n: int, seed: int, seen: int, count: int) -> Iterator[int]:
    """Yield the example at each position: one fresh permutation an epoch."""
    epoch, order = -1, np.empty(0, np.int64)
    for k in range(seen, seen + count):
        if k // n != epoch:
            epoch = k // n
            order = _permutation(n, seed, epoch)
        yield int(order[k % n])


@lru_cache(maxsize=1)
def _permutation(n: int, seed: int, epoch: int) -> np.ndarray:
    return np.random.default_rng([seed, epoch]).permutation(n)
