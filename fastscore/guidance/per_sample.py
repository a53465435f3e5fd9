"""What a guide holds for each sample, a mask or a matrix of its own, found and cut as the samples are.

Such tensors belong to a request, like the measurements ``y``: line k is that of the k-th id, whatever micro-batch, lane
or shard it is drawn in. A frozen dataclass, guide or operator, tells by ``per_sample(axes)`` which of its fields hold
one line a sample, given how many axes a sample has; fields that are such dataclasses themselves, or tuples of them,
are looked through.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import fields, is_dataclass, replace
from typing import Any

import torch
from torch import Tensor


def lines_of(guide: object, axes: int) -> tuple[Tensor, ...]:
    """Return the tensors of a guide that hold one line a sample, of samples with so many ``axes``."""
    inside = [lines_of(part, axes) for part in _parts(guide)]
    return (*(getattr(guide, name) for name in _names(guide, axes)), *(line for part in inside for line in part))


def with_lines(guide: Any, axes: int, lines: tuple[Tensor, ...]) -> Any:
    """Return a guide with other lines in the place of those that ``lines_of`` finds in it; itself if there are none."""
    return _replaced(guide, axes, iter(lines)) if lines else guide


def each_alone(values: Tensor, alone: Callable[[], Tensor], what: str) -> Tensor:
    """Return ``values`` [N, ..], unless ``alone``, the same function of the first sample, makes several lines.

    Raises:
        ValueError: it does: it holds tensors of several samples, which fit one micro-batch by chance at best.
    """
    if values.ndim and len(values) > 1:
        with torch.no_grad():
            of_each(alone(), 1, what)
    return values


def of_each(values: Tensor, n: int, what: str) -> Tensor:
    """Return ``values`` if they are of ``n`` samples; ValueError if not."""
    if values.shape[:1] != (n,):
        raise ValueError(
            f"{what} makes {tuple(values.shape)} of {n} sample{'s' * (n > 1)}, so it holds tensors of several samples "
            "itself; give Matrix, Masked or Blur one line an id, or put what differs from sample to sample into y"
        )
    return values


def _names(thing: object, axes: int) -> tuple[str, ...]:
    declared = getattr(thing, "per_sample", None)
    return declared(axes) if declared is not None and is_dataclass(thing) and not isinstance(thing, type) else ()


def _parts(thing: object) -> Iterator[object]:
    """Yield the dataclasses that a dataclass holds."""
    if not is_dataclass(thing) or isinstance(thing, type):
        return
    for f in fields(thing):
        value = getattr(thing, f.name)
        yield from value if isinstance(value, tuple) else (value,)


def _replaced(thing: Any, axes: int, lines: Iterator[Tensor]) -> Any:
    if not lines_of(thing, axes):
        return thing
    changes: dict[str, Any] = {name: next(lines) for name in _names(thing, axes)}
    for f in fields(thing):
        value = getattr(thing, f.name)
        if f.name in changes:
            continue
        if isinstance(value, tuple):
            changes[f.name] = tuple(_replaced(part, axes, lines) for part in value)
        else:
            changes[f.name] = _replaced(value, axes, lines)
    return replace(thing, **{name: value for name, value in changes.items() if value is not getattr(thing, name)})
