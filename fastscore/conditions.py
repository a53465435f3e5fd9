"""What a sample is conditioned on: class labels, checked and drawn."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from fastscore.model import ScoreModel
from fastscore.noise import LABEL_DRAW, NoiseKey

Labels = int | str | Sequence[int] | Tensor | None


def labels_of(model: ScoreModel, key: NoiseKey, labels: Labels) -> Tensor | None:
    """Return the label of each sample of ``key``, int64 [N]; None if the model is unconditional.

    Args:
        labels: one label for all, one an id, "random" (uniform, a function of seed and id), or None
            for the null class.

    Raises:
        ValueError: labels for an unconditional model, of another length, or outside 0 .. classes.
    """
    classes, n, device = model.classes, len(key.ids), key.ids.device
    if labels is None:
        return torch.full((n,), classes, device=device) if classes else None
    if not classes:
        raise ValueError("labels: this model is unconditional; leave labels (--class) out")
    if isinstance(labels, str):
        if labels != "random":
            raise ValueError(f"labels = {labels!r} must be a label, one label an id, 'random' or None")
        return key.integer(LABEL_DRAW, classes)
    try:
        values = torch.as_tensor(labels, device=device)
    except (TypeError, ValueError, RuntimeError):
        values = torch.empty(0)
    if values.is_floating_point() or values.is_complex() or values.dtype == torch.bool:
        raise ValueError(f"labels = {str(labels)[:60]} must be integers")
    values = values.to(torch.int64)
    values = values.expand(n) if values.ndim == 0 else values
    if values.shape != (n,):
        raise ValueError(f"labels: {tuple(values.shape)} labels for {n} ids")
    if n and not (0 <= int(values.min()) and int(values.max()) <= classes):
        raise ValueError(
            f"labels {int(values.min())} .. {int(values.max())} must lie in 0 .. {classes - 1} ({classes}: none)"
        )
    return values
