"""Conditions of a sample: class labels, conditioning tensors, known data; checked, one an id."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from fastscore.model.score import Conditioned
from fastscore.ops.noise import LABEL_DRAW, NoiseKey

Labels = int | str | Sequence[int] | Tensor | None


@dataclass(frozen=True)
class Known:
    """The known part of the data, for inpainting: after every row it is alpha y + sigma z at the row's noise level.

    The z are draws of their own, after the plan's; the rest of the sample is drawn as ever. An adaptive solver of the
    ODE takes one z for the whole way, the sample's prior draw. A replaced part steers the rest through the network
    alone, which is an approximation: see RePaint and fastscore.PiGDM.

    Attributes:
        y: clean data in the network's range, [*shape] for all samples or [n, *shape]; ignored where it is unknown.
        mask: True where y is known, bool; broadcasts to y.

    Source: Song et al. 2021, appendix I.2; Lugmayr et al. 2022, eq. 8.
    """

    y: Tensor
    mask: Tensor

    def per_sample(self, shape: tuple[int, ...], key: NoiseKey) -> tuple[Tensor, Tensor]:
        """Return data, 0 where it is unknown, and mask, [n, *shape] each.

        Raises:
            ValueError: a tensor of another shape, a mask that is not bool, or known data that is not finite.
        """
        y, mask = per_sample("known.y", self.y, shape, key), torch.as_tensor(self.mask)
        if mask.dtype != torch.bool:
            raise ValueError(f"known.mask is {mask.dtype}; it must be bool, True where y is known")
        try:
            mask = mask.expand((len(key.ids), *shape) if mask.ndim > len(shape) else shape)
        except RuntimeError:
            raise ValueError(f"known.mask has shape {tuple(mask.shape)}; it must broadcast to {shape}") from None
        mask = per_sample("known.mask", mask, shape, key)
        y = torch.where(mask, y, 0.0)
        if not bool(y.isfinite().all()):
            raise ValueError("known.y is not finite where the mask is True")
        return y, mask


def constant(**values: Any) -> None:
    """Check that nothing among named tensors, ``Known`` and dicts of them asks for a gradient that it would not get.

    Raises:
        ValueError: a tensor that requires one, unless under torch.no_grad().
    """
    for name, value in values.items():
        if isinstance(value, Mapping):
            constant(**{f"{name}[{key!r}]": part for key, part in value.items()})
        elif isinstance(value, Known):
            constant(**{f"{name}.y": value.y})
        elif isinstance(value, Tensor) and value.requires_grad and torch.is_grad_enabled():
            raise ValueError(
                f"{name} requires a gradient, and would get none: give {name}.detach(), or call under torch.no_grad(); "
                "what is differentiable in its input is ProbabilityFlow (log_likelihood, encode, decode)"
            )


def condition_of(model: Conditioned, key: NoiseKey, labels: Labels, cond: Tensor | None) -> Tensor | None:
    """Return the condition of each sample of ``key`` as the network takes it: labels, a tensor, or None.

    Args:
        labels: see labels_of.
        cond: [n, *cond_shape], or [*cond_shape] for all; None is zeros.

    Raises:
        ValueError: a condition that the model does not take, or one of another shape.
    """
    if model.cond_shape is None:
        if cond is not None:
            raise ValueError("cond: this model takes no conditioning tensor (its cond_shape is None)")
        return labels_of(model, key, labels)
    if labels is not None:
        raise ValueError("labels: this model takes a conditioning tensor, cond=, and no class")
    if cond is None:
        cond = torch.zeros(model.cond_shape)
    return per_sample("cond", cond, model.cond_shape, key)


def condition_buffer(model: Conditioned, batch: int, dtype: torch.dtype, device: torch.device) -> Tensor | None:
    """Return what holds the conditions of a micro-batch; None if the network takes none."""
    if model.cond_shape is not None:
        return torch.zeros(batch, *model.cond_shape, dtype=dtype, device=device)
    return torch.zeros(batch, dtype=torch.int64, device=device) if model.classes else None


def per_sample(name: str, values: Tensor, shape: tuple[int, ...], key: NoiseKey) -> Tensor:
    """Return a tensor given for all samples, [*shape], or one an id as [n, *shape], on the device of ``key``."""
    n = len(key.ids)
    if not isinstance(values, Tensor) or tuple(values.shape) not in (shape, (n, *shape)):
        description = tuple(values.shape) if isinstance(values, Tensor) else type(values).__name__
        raise ValueError(f"{name} is {description}; it must be a tensor {shape}, or {(n, *shape)} with one an id")
    return values.to(key.ids.device).expand(n, *shape)


def labels_of(model: Conditioned, key: NoiseKey, labels: Labels) -> Tensor | None:
    """Return the label of each sample of ``key``, int64 [n]; None if the model is unconditional.

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
