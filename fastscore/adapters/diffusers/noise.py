"""The noise of a pipeline's images by seed and id, from the generators that it was given."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch


def seeds_of(generator: Any) -> int | list[int]:
    """Return the seed of a generator, or of each of a list.

    A generator stands for the seed that it was made with, whatever was drawn from it since.
    """
    if isinstance(generator, torch.Generator):
        return generator.initial_seed() % (1 << 64)
    return [g.initial_seed() % (1 << 64) for g in generator]


def fresh_seed() -> int:
    """Return a seed from torch's global generator, which ``torch.manual_seed`` governs."""
    return int(torch.empty((), dtype=torch.int64, device="cpu").random_())


def seeds_and_ids(
    seeds: int | Sequence[int], ids: Sequence[int] | None, batch: int
) -> tuple[int | list[int], list[int]]:
    """Return seed and id of each image of a batch.

    Args:
        seeds: one seed for all, whose images have the ids 0, 1, .. ; or one an image, each with the id 0, so that image
            k of a batch is the image that its seed gives alone.
        ids: other ids.
        batch: number of states. A multiple of the seeds, or ids, is that many copies of the images one after another,
            as pipelines make of them that double their state for guidance.

    Raises:
        ValueError: a number of seeds or ids that does not divide the batch.
    """
    if ids is None:
        ids = range(batch) if isinstance(seeds, int) else [0] * len(seeds)
    return seeds if isinstance(seeds, int) else _repeated("seeds", seeds, batch), _repeated("ids", ids, batch)


def _repeated(name: str, values: Sequence[int], batch: int) -> list[int]:
    if not values or batch % len(values):
        raise ValueError(f"{len(values)} {name} for a batch of {batch}: give one an image")
    return [int(k) for k in values] * (batch // len(values))
