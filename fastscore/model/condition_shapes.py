"""Conditions as models declare them: none, class labels, a tensor, or tensors by name; and the map over one."""

# pyright: reportUnnecessaryIsInstance=false
# What users pass is checked whatever its annotation says.

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from numbers import Integral
from typing import Any, Protocol, overload

import torch
from torch import Tensor

from fastscore.errors import short

LABELS = "labels"  # the class in a dict of named tensors
Shape = tuple[int | None, ...]  # None: an axis whose length each request chooses, one for all of its samples
CondShape = Shape | Mapping[str, Shape] | None
Null = int | Tensor | Mapping[str, int | Tensor] | None
Condition = Tensor | dict[str, Tensor] | None  # as a network takes it, a line a sample
_NAME = re.compile(r"[A-Za-z_]\w{0,63}", re.ASCII)


class Conditioned(Protocol):
    """The part of a model that says which labels or conditions a run may give it; ScoreModel and JointModel have it."""

    @property
    def classes(self) -> int: ...
    @property
    def cond_shape(self) -> CondShape: ...
    @property
    def null(self) -> Null: ...
    @property
    def shape(self) -> Any: ...


@dataclass(frozen=True)
class Several:
    """Conditions of as many evaluations, whose outputs are summed: F(u) = sum_i w_i F(u, c_i).

    Attributes:
        conds: the first is the samples' own. weights: w_i; one that is 0 is not evaluated.
        at: lines where that holds, bool [N], the others having F(u, c_1) alone; None for all.
    """

    conds: tuple[Condition, ...]
    weights: tuple[float, ...]
    at: Tensor | None = None

    def sum(self, outputs: Callable[[Condition], list[Tensor]]) -> list[Tensor]:
        """Return the sums of what ``outputs`` makes of each condition, [N, D] each; of lines outside, the first's."""
        own = None if self.at is None else outputs(self.conds[0])
        total: list[Tensor] | None = None
        for k, (cond, w) in enumerate(zip(self.conds, self.weights, strict=True)):
            if w == 0.0:
                continue
            found = own if k == 0 and own is not None else outputs(cond)
            terms = [w * F.to(torch.promote_types(F.dtype, torch.float32)) for F in found]
            total = terms if total is None else [a + b for a, b in zip(total, terms, strict=True)]
        assert total is not None
        if own is None or self.at is None:
            return total
        return [torch.where(self.at[:, None], a, b.to(a)) for a, b in zip(total, own, strict=True)]


Told = Condition | Several  # what one output of a row is evaluated with


def own(cond: Told) -> Condition:
    """Return the samples' own condition, the first of several."""
    return cond.conds[0] if isinstance(cond, Several) else cond


@overload
def each(change: Callable[[Tensor], Tensor], cond: Condition) -> Condition: ...
@overload
def each(change: Callable[[Tensor], Tensor], cond: Told) -> Told: ...
def each(change: Callable[[Tensor], Tensor], cond: Told) -> Told:
    """Return a condition, or several, with each of its tensors changed; a dict of its own."""
    if isinstance(cond, Several):
        at = None if cond.at is None else change(cond.at)
        return Several(tuple(each(change, c) for c in cond.conds), cond.weights, at)
    if isinstance(cond, dict):
        return {name: change(v) for name, v in cond.items()}
    return None if cond is None else change(cond)


def tensors_of(cond: Condition) -> list[Tensor]:
    """Return the tensors of a condition, in their order."""
    return list(cond.values()) if isinstance(cond, dict) else [] if cond is None else [cond]


def null_label(model: Conditioned) -> int | None:
    """Return the label that stands for none; None if the model has no such label."""
    null = model.null.get(LABELS) if isinstance(model.null, Mapping) else model.null
    return null if isinstance(null, int) else None


def declared(model: Conditioned) -> tuple[CondShape, Null]:
    """Return ``cond_shape`` and ``null`` of a model, checked, in tuples and dicts that nobody else holds.

    Raises:
        ValueError: a number of classes, shapes, names or a null condition that cannot be.
    """
    classes, shape = model.classes, model.cond_shape
    if not isinstance(classes, int) or isinstance(classes, bool) or classes < 0:
        raise ValueError(f"classes = {short(classes)} must be a number of classes, 0 for none")
    if isinstance(shape, Mapping):
        shape = _by_name(shape)
    elif shape is not None:
        shape = sizes("cond_shape", shape, open=True)
        if classes:
            raise ValueError(
                f"a model takes classes or one nameless tensor, not both: name it, cond_shape={{'cond': {shape}}}. "
                f"Its network then gets a dict of 'cond' and {LABELS!r}, and runs take labels= and cond={{'cond': ..}}"
            )
    return shape, checked_null("null", model.null, classes, shape)


def checked_null(what: str, null: Null, classes: int, shape: CondShape) -> Null:
    """Return a null condition of a model with these ``classes`` and this ``cond_shape``, if it can be one.

    A label alone, of a model that has tensors by name beside its classes, becomes {"labels": label}.

    Raises:
        ValueError: it cannot; ``what`` names it.
    """
    if null is None:
        return None
    if not isinstance(shape, Mapping):
        return _null_label(what, null, classes) if shape is None else _null_tensor(what, null, shape)
    names = [*([LABELS] if classes else []), *shape]
    if classes and isinstance(null, Integral):
        null = {LABELS: int(null)}
    if not isinstance(null, Mapping) or not null or not set(null) <= set(names):
        kind = f"a dict of {', '.join(map(repr, null)) or 'nothing'}" if isinstance(null, Mapping) else _kind(null)
        raise ValueError(f"{what} is {kind}; it must be a dict by name, of one or more of {', '.join(names)}")
    return {
        name: _null_label(f"{what}[{name!r}]", null[name], classes)
        if name == LABELS
        else _null_tensor(f"{what}[{name!r}]", null[name], shape[name])
        for name in names
        if name in null
    }


def sizes(name: str, value: Any, *, open: bool = False, scalar: bool = False) -> tuple[Any, ...]:
    """Return a shape as a tuple of integers.

    Args:
        open: whether None is a size: that of an axis whose length each request chooses.
        scalar: whether there may be no sizes: one number a sample.

    Raises:
        ValueError: no sizes, or one that is no positive integer.
    """
    listed = tuple(value) if isinstance(value, tuple | list) else (0,)
    whole = (isinstance(k, int) and not isinstance(k, bool) and k > 0 for k in listed)
    if not (listed or scalar) or not all(ok or (open and k is None) for ok, k in zip(whole, listed, strict=True)):
        hint = f"; did you mean ({value},)?" if isinstance(value, int) else ""
        none = ", or None for a length that each request chooses," if open else ","
        raise ValueError(f"{name} = {short(value)} must be positive integers{none} without the batch axis{hint}")
    return listed


def fits(shape: Shape, actual: tuple[int, ...]) -> bool:
    """Return whether a tensor's shape is one that was declared."""
    return len(shape) == len(actual) and all(k is None or k == n for k, n in zip(shape, actual, strict=True))


def is_open(shape: CondShape) -> bool:
    """Return whether requests choose a length."""
    shapes = shape.values() if isinstance(shape, Mapping) else () if shape is None else (shape,)
    return any(None in sizes for sizes in shapes)


def plain(name: str, value: Tensor) -> Tensor:
    """Return a tensor of real numbers in memory of its own; raise ValueError for another kind."""
    if value.is_meta or value.layout != torch.strided or value.is_complex():
        kind = "on meta, without values" if value.is_meta else "complex" if value.is_complex() else "sparse"
        raise ValueError(f"{name} is {kind}; it must be a plain tensor of real numbers")
    return value


def _by_name(shapes: Mapping[Any, Any]) -> dict[str, Shape]:
    if not shapes:
        raise ValueError("cond_shape = {} names no tensor; leave it out, or name one: {'tokens': (77,)}")
    for name in shapes:
        if not isinstance(name, str) or not _NAME.fullmatch(name) or name == LABELS:
            word = f", and {LABELS!r} is the class: say classes=" if name == LABELS else ""
            raise ValueError(f"cond_shape: the name {short(name)} must be up to 64 letters, digits and _{word}")
    if len({name.lower() for name in shapes}) < len(shapes):
        raise ValueError(f"cond_shape: names {', '.join(shapes)} must differ in more than their case; files have them")
    return {name: sizes(f"cond_shape[{name!r}]", shape, open=True, scalar=True) for name, shape in shapes.items()}


def _null_label(what: str, null: Any, classes: int) -> int:
    if isinstance(null, Tensor):
        raise ValueError(f"{what} has shape {tuple(null.shape)}; it must be a label, 0 .. {classes}, an int")
    if not isinstance(null, Integral) or isinstance(null, bool) or not 0 <= int(null) <= classes > 0:
        raise ValueError(f"{what} = {short(null)} must be a label, 0 .. {classes}, of a model with classes")
    return int(null)


def _null_tensor(what: str, null: Any, shape: Shape) -> Tensor:
    if not isinstance(null, Tensor) or not fits(shape, tuple(null.shape)):
        raise ValueError(f"{what} is {_kind(null)}; it must be a tensor of cond_shape, {shape}")
    if plain(what, null).is_floating_point() and not bool(null.isfinite().all()):
        raise ValueError(f"{what} holds NaN or Inf")
    return null


def _kind(value: Any) -> str:
    return f"{tuple(value.shape)}" if isinstance(value, Tensor) else short(value)
