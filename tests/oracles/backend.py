"""What processes that are started anew must be able to import: a dataset of samples, and a function that draws some."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from torch.utils.data import IterableDataset, get_worker_info

import fastscore as fs


class Drawn(IterableDataset):
    """Samples 0 .. n - 1 as training data: worker w of W draws every W-th."""

    def __init__(self, drawer: fs.Sampler, n: int) -> None:
        self.drawer, self.n = drawer, n

    def __iter__(self) -> Iterator[tuple[int, torch.Tensor]]:
        worker = get_worker_info()
        first, step = (0, 1) if worker is None else (worker.id, worker.num_workers)
        for ids, x in self.drawer.stream(range(first, self.n, step), 3):
            yield from zip(ids.tolist(), x, strict=True)


def drawn(drawer: fs.Sampler, ids: range) -> np.ndarray:
    return drawer.run(ids, 3).numpy()
