"""Images to PNG files and one array while the next batch computes, against writing between batches.

Claim: the loop pays for a hand-over, not for compression and the disk. The baseline writes as EDM's and
score_sde's scripts do, between batches, with the same functions; what computes is a matrix product that takes
about as long as the writing, on as many threads as PyTorch uses.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import count
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import torch
from torch import Tensor

from bench.common import EAGER, OURS, Case, Check, Setting
from fastscore.ops.quantize import quantize_ref
from fastscore.output.images import write_png
from fastscore.output.pictures import beside
from fastscore.output.store.formats import Shard

SHAPES = ((64, 1, 28, 28), (64, 3, 32, 32), (16, 3, 256, 256))
BATCHES = 8


def cases(setting: Setting) -> Iterator[Case]:
    """Yield one case a shape of a batch."""
    for shape in ((4, 1, 28, 28),) if setting.quick else SHAPES:
        yield case(setting, shape)


def case(setting: Setting, shape: tuple[int, ...]) -> Case:
    """Return the case of one run, which writes every image of its batches."""
    n, c, h, w = shape
    batch_count = 2 if setting.quick else BATCHES
    root = TemporaryDirectory()  # removed with the case
    numbers = count()
    # Smooth images with a little noise compress about as photographs do.
    ramp = torch.linspace(-1.0, 1.0, n * c * h * w).reshape(shape)
    x = (ramp + 0.02 * torch.sin(1e4 * ramp)).to(setting.device)
    a = torch.ones(256, 256, device=setting.device)

    def write_all(folder: Path) -> None:
        for k, image in enumerate(setting.ops.quantize(x).cpu().numpy()):
            write_png(folder / f"{k:06d}.png", image)

    start = time.perf_counter()
    write_all(fresh(root, numbers))
    seconds = time.perf_counter() - start
    start, products = time.perf_counter(), 0
    while time.perf_counter() - start < seconds:
        a = (a @ a) * (1.0 / 256.0)
        products += 1

    def batches() -> Iterator[tuple[Tensor, Tensor]]:
        for k in range(batch_count):
            y = a
            for _ in range(products):
                y = (y @ a) * (1.0 / 256.0)
            yield torch.arange(k * n, (k + 1) * n), x + 0.0 * y[0, 0]

    def ours() -> np.ndarray:
        folder, parts, waiting = fresh(root, numbers), [], None
        write = beside(folder, png=True, subdirs=False)
        with ThreadPoolExecutor(1) as pool:  # as output/store/work.py: one shard is written while the next computes
            for ids, images in batches():
                parts.append(setting.ops.quantize(images).cpu().numpy())
                if waiting is not None:
                    waiting.result()
                waiting = pool.submit(write, Shard(0, "bench", {"samples": parts[-1], "ids": ids.numpy()}))
        return np.concatenate(parts)

    def between() -> np.ndarray:
        folder, parts = fresh(root, numbers), []
        for ids, images in batches():
            parts.append(setting.ops.quantize(images).cpu().numpy())
            for k, image in zip(ids.tolist(), parts[-1], strict=True):
                write_png(folder / f"{k:06d}.png", image)
        return np.concatenate(parts)

    def check() -> list[Check]:
        expected = np.tile(quantize_ref(x).cpu().numpy(), (batch_count, 1, 1, 1))
        return [
            Check(f"bytes that differ, {write.__name__}", float((write() != expected).sum()), 0.0)
            for write in (ours, between)
        ]

    name = f"{batch_count} x " + "x".join(str(k) for k in shape)
    return Case(
        "output", name, {OURS: ours, EAGER: between}, [(OURS, EAGER)], check, (batch_count * n, "image"),
        facts={"backend": setting.ops.name, "writing_share": 0.5}, costed=(),
    )  # fmt: skip


def fresh(root: TemporaryDirectory, numbers: Iterator[int]) -> Path:
    """Return a new folder for one run's files."""
    folder = Path(root.name) / str(next(numbers))
    (folder / "png").mkdir(parents=True)
    return folder
