"""What runs give each sample: class labels, conditioning tensors, known data; checked, one line an id."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from fastscore.errors import short, typed
from fastscore.model.condition_shapes import LABELS, Condition, Conditioned, Shape, fits, null_label, plain
from fastscore.ops.noise import LABEL_DRAW, NoiseKey

Labels = int | str | Sequence[int] | Tensor | None
Given = Tensor | Mapping[str, Tensor] | None  # for cond=


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
        elif isinstance(value, Tensor) and plain(name, value).requires_grad and torch.is_grad_enabled():
            raise ValueError(
                f"{name} requires a gradient, and would get none: give {name}.detach(), or call under torch.no_grad(); "
                "what is differentiable in its input is ProbabilityFlow (log_likelihood, encode, decode)"
            )


def condition_of(model: Conditioned, key: NoiseKey, labels: Labels, cond: Given) -> Condition:
    """Return the condition of each sample of ``key`` as the network takes it.

    Args:
        labels: see labels_of.
        cond: [n, *cond_shape], or [*cond_shape] for all, in any dtype, which stays; of a model with named tensors a
            dict of such. What is left out is the model's null condition.

    Raises:
        ValueError: a condition that the model does not take, one of another shape or not finite, or none where the
            model has no null condition.
    """
    shape, null = model.cond_shape, model.null
    if shape is None and cond is not None:
        raise ValueError("cond: this model takes no conditioning tensor (its cond_shape is None)")
    if shape is None:
        return labels_of(model, key, labels)
    if labels is not None and not model.classes:
        raise ValueError("labels: this model takes a conditioning tensor, cond=, and no class")
    if isinstance(shape, Mapping):
        lines = labels_of(model, key, labels)
        found = {} if lines is None else {LABELS: lines}
        return {**found, **_named(shape, null if isinstance(null, Mapping) else {}, key, cond)}
    if cond is None:
        if not isinstance(null, Tensor):
            raise ValueError(
                f"cond is missing: this model takes a tensor {shape} a sample. Give cond=, or say in "
                "the model what absence means to its network: ScoreModel(null=torch.zeros(..))"
            )
        cond = null
    return finite("cond", per_sample("cond", cond, shape, key))


def further(model: Conditioned, key: NoiseKey, cond: Condition, name: str, value: Any) -> Condition:
    """Return a condition beside each sample's own ``cond``, in its form and dtypes: another one, or a negative one.

    Args:
        value: labels, a tensor [*cond_shape] or [n, *cond_shape], or a dict of such by name, in which a sample's own
            value of what is left out stays.

    Raises:
        ValueError: it is none that the model takes; ``name`` names it.
    """
    if cond is None:
        raise ValueError(f"{name}: this model is unconditional; leave it out")
    if not isinstance(cond, dict):
        return _further(model, key, cond, name, value, LABELS if model.classes else "")
    given = value if isinstance(value, Mapping) else {LABELS: value} if model.classes else None
    if given is None or not given or not set(given) <= set(cond):
        raise ValueError(f"{name} = {short(value)} must be a dict by name, of one or more of {', '.join(cond)}")
    named = {k: _further(model, key, cond[k], f"{name}[{k!r}]", v, k) for k, v in given.items()}
    return {**cond, **named}


def _further(model: Conditioned, key: NoiseKey, own: Tensor, name: str, value: Any, part: str) -> Tensor:
    if part == LABELS:
        try:
            found = None if value is None else labels_of(model, key, value)
        except ValueError as error:
            raise ValueError(f"{name}: {error}") from None
        if found is None:
            raise ValueError(f"{name} = None must be a label, or one label an id")
        return found
    shape = model.cond_shape[part] if isinstance(model.cond_shape, Mapping) else model.cond_shape
    assert shape is not None
    return in_dtype(name, finite(name, per_sample(name, value, shape, key)), own, "cond")


def in_dtype(name: str, value: Tensor, like: Tensor, of: str) -> Tensor:
    """Return a condition in the dtype of another one, ``like``; ValueError for numbers that this has not."""
    found = value.to(like.dtype)
    if not (value.is_floating_point() and like.is_floating_point()) and not found.to(value.dtype).equal(value):
        raise ValueError(
            f"{name} is {value.dtype} and has values that the {like.dtype} of {of} has not; give both in one dtype, as "
            "the network takes it"
        )
    return found


def _named(shapes: Mapping[str, Shape], null: Mapping[str, Any], key: NoiseKey, cond: Any) -> dict[str, Tensor]:
    """Return the named tensors of each sample, in the order of the model."""
    given = {} if cond is None else cond
    if not isinstance(given, Mapping):
        kind = f"a tensor {tuple(given.shape)}" if isinstance(given, Tensor) else f"a {type(given).__name__}"
        raise ValueError(f"cond is {kind}; this model takes a dict of tensors: {', '.join(shapes)}")
    if unknown := [name for name in given if name not in shapes]:
        hint = "; the class is given as labels=" if LABELS in unknown else ""
        raise ValueError(f"cond has {', '.join(map(short, unknown))}; this model takes {', '.join(shapes)}{hint}")
    if missing := [name for name in shapes if name not in given and name not in null]:
        raise ValueError(
            f"cond lacks {', '.join(f'{name} {shapes[name]}' for name in missing)}: give {missing[0]!r} in cond=, or "
            f"say in the model what absence means to its network: ScoreModel(null={{{missing[0]!r}: torch.zeros(..)}})"
        )
    values = {name: given[name] if name in given else null[name] for name in shapes}
    names = {name: f"cond[{name!r}]" for name in shapes}
    return {name: finite(names[name], per_sample(names[name], v, shapes[name], key)) for name, v in values.items()}


def finite(name: str, values: Tensor) -> Tensor:
    """Return values a sample, [n, ..]; raise ValueError if one is NaN or Inf, which would be blamed on the network."""
    if not plain(name, values).is_floating_point():
        return values
    if values.element_size() < 2:
        raise ValueError(f"{name} is {values.dtype}, in which torch does not compute; give float16 or wider")
    if bool(values.isfinite().all()):
        return values
    bad = ~values.isfinite().reshape(len(values), -1).all(1)
    first = int(bad.int().argmax())
    raise ValueError(
        f"{name} is NaN or Inf for {int(bad.sum())} of {len(values)} samples, the first at position {first}"
    )


def per_sample(name: str, values: Any, shape: Shape, key: NoiseKey) -> Tensor:
    """Return a tensor given for all samples, [*shape], or one an id as [n, *shape], on the device of ``key``."""
    n = len(key.ids)
    if not isinstance(values, Tensor) or not any(fits(s, tuple(values.shape)) for s in (shape, (n, *shape))):
        description = tuple(values.shape) if isinstance(values, Tensor) else type(values).__name__
        raise ValueError(f"{name} is {description}; it must be a tensor {shape}, or {(n, *shape)} with one an id")
    return values.to(key.ids.device).expand(n, *values.shape[values.ndim - len(shape) :])


def labels_of(model: Conditioned, key: NoiseKey, labels: Labels) -> Tensor | None:
    """Return the label of each sample of ``key``, int64 [n]; None if the model is unconditional.

    Args:
        labels: one label for all, one an id, "random" (uniform, a function of seed and id), or None
            for the null class.

    Raises:
        ValueError: labels for an unconditional model, of another length, or that are no class nor the null class; none
            where the model has no null class.
    """
    classes, null, n, device = model.classes, null_label(model), len(key.ids), key.ids.device
    if not classes:
        if labels is None:
            return None
        raise ValueError("labels: this model is unconditional; leave labels (--class) out")
    if labels is None:
        if null is None:
            known = f"{{{LABELS!r}: {classes}}}" if model.cond_shape is not None else classes
            raise ValueError(
                f"labels are missing: this model has {classes} classes and no null class. Give labels= (a class, one "
                f'an id, or "random"), or say in the model that its network knows one: ScoreModel(null={known})'
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
        none = f"; {null} is none" if null is not None else ", and the model has no null class"
        raise ValueError(f"labels {int(values.min())} .. {int(values.max())} must lie in 0 .. {classes - 1}{none}")
    return values
