"""Conditions of a sample: class labels, conditioning tensors, known data; checked, one an id."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from fastscore.errors import short, typed
from fastscore.model.score import Conditioned
from fastscore.ops.noise import LABEL_DRAW, NoiseKey

Labels = int | str | Sequence[int] | Tensor | None


@dataclass(frozen=True)
@typed
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
        elif isinstance(value, Tensor) and (value.is_meta or value.layout != torch.strided or value.is_complex()):
            kind = "on meta, without values" if value.is_meta else "complex" if value.is_complex() else "sparse"
            raise ValueError(f"{name} is {kind}; it must be a plain tensor of real numbers")
        elif isinstance(value, Tensor) and value.requires_grad and torch.is_grad_enabled():
            raise ValueError(
                f"{name} requires a gradient, and would get none: give {name}.detach(), or call under torch.no_grad(); "
                "what is differentiable in its input is ProbabilityFlow (log_likelihood, encode, decode)"
            )


def condition_of(model: Conditioned, key: NoiseKey, labels: Labels, cond: Tensor | None) -> Tensor | None:
    """Return the condition of each sample of ``key`` as the network takes it: labels, a tensor, or None.

    Args:
        labels: see labels_of.
        cond: [n, *cond_shape], or [*cond_shape] for all, in any dtype; None is the model's null condition.

    Raises:
        ValueError: a condition that the model does not take, one of another shape or not finite, or none where the
            model has no null condition.
    """
    if model.cond_shape is None:
        if cond is not None:
            raise ValueError("cond: this model takes no conditioning tensor (its cond_shape is None)")
        return labels_of(model, key, labels)
    if labels is not None:
        raise ValueError("labels: this model takes a conditioning tensor, cond=, and no class")
    if cond is None:
        if not isinstance(model.null, Tensor):
            raise ValueError(
                f"cond is missing: this model takes a tensor {tuple(model.cond_shape)} a sample. Give cond=, or say in "
                "the model what absence means to its network: ScoreModel(null=torch.zeros(..))"
            )
        cond = model.null
    return finite("cond", per_sample("cond", cond, tuple(model.cond_shape), key))


def finite(name: str, values: Tensor) -> Tensor:
    """Return values a sample, [n, ..]; raise ValueError if one is NaN or Inf, which would be blamed on the network."""
    if values.is_meta or values.layout != torch.strided:
        raise ValueError(f"{name} is {'on meta, without values' if values.is_meta else 'sparse'}; give a plain tensor")
    if not values.is_floating_point() or bool(values.isfinite().all()):
        return values
    bad = ~values.isfinite().flatten(1).all(1)
    first = int(bad.int().argmax())
    raise ValueError(
        f"{name} is NaN or Inf for {int(bad.sum())} of {len(values)} samples, the first at position {first}"
    )


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
        ValueError: labels for an unconditional model, of another length, or that are no class nor the null class; none
            where the model has no null class.
    """
    classes, null, n, device = model.classes, model.null, len(key.ids), key.ids.device
    if not classes:
        if labels is None:
            return None
        raise ValueError("labels: this model is unconditional; leave labels (--class) out")
    if labels is None:
        if not isinstance(null, int):
            raise ValueError(
                f"labels are missing: this model has {classes} classes and no null class. Give labels= (a class, one "
                f'an id, or "random"), or say in the model that its network knows one: ScoreModel(null={classes})'
            )
        return torch.full((n,), null, device=device)
    if isinstance(labels, str):
        if labels != "random":
            raise ValueError(f"labels = {labels!r} must be a label, one label an id, 'random' or None")
        return key.integer(LABEL_DRAW, classes)
    try:
        values = torch.as_tensor(labels, device=device)
    except (TypeError, ValueError, RuntimeError):
        values = torch.empty(0)
    if values.is_floating_point() or values.is_complex() or values.dtype == torch.bool:
        raise ValueError(f"labels = {short(labels)} must be integers")
    values = values.to(torch.int64)
    values = values.expand(n) if values.ndim == 0 else values
    if values.shape != (n,):
        raise ValueError(f"labels: {tuple(values.shape)} labels for {n} ids")
    top = classes if null == classes else classes - 1
    if n and not (0 <= int(values.min()) and int(values.max()) <= top):
        none = f"; {null} is none" if isinstance(null, int) else ", and the model has no null class"
        raise ValueError(f"labels {int(values.min())} .. {int(values.max())} must lie in 0 .. {classes - 1}{none}")
    return values
