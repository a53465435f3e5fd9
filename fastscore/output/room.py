"""The room that a run takes on the disk, known before it begins."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from fastscore.output.images import npz_bytes, png_bytes
from fastscore.output.store.job import Job

SPARE = 1 << 20  # bytes for what is small: run.json, the picture of points


def room(job: Job, there: int, extra: Mapping[str, Any], png: bool, further: int) -> dict[str, int]:
    """Return the bytes that the rest of a run writes, by what they are."""
    (shape, kind), n = job.entry, len(job.asked)
    told = 8 + job.told_bytes
    each = math.prod(shape) * kind().itemsize + told
    samples, shards = n * each, (n - there) * each
    if not job.manifest.gathered:
        return {"shards": shards + job.manifest.count * (1 << 13), "rest": SPARE}
    image = kind is np.uint8
    sheets = png_bytes(12 * max(64, shape[0]), 12 * max(64, shape[1]), shape[2]) if image else 0
    return {
        "shards": shards + job.manifest.count * (1 << 13),
        "samples": npz_bytes(samples, *(np.asarray(v).nbytes for v in extra.values()), 0, 0, 0),
        "ids and conditions": n * told,  # on their way into that file
        "images": n * png_bytes(*shape) if png else 0,
        "trajectory": further,
        "rest": sheets + SPARE,
    }
