"""What callers give a run beside the lines of its samples, checked before anything is drawn.

Recorded noise has to reach for the plan; a tensor that samples are written to has to be theirs alone.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import fields, replace
from itertools import combinations
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from fastscore.errors import short
from fastscore.execution import Execution

if TYPE_CHECKING:
    from fastscore.engine.request import Request


def with_noise(request: Request, draws: int) -> Request:
    """Return a request whose recorded noise, if it has any, is used; raises ValueError if that is of fewer draws."""
    if request.noise is None:
        return request
    if len(request.noise) < draws:
        raise ValueError(f"recorded noise has {len(request.noise)} draws; this plan needs {draws}")
    return request if draws else replace(request, noise=None)


def destination(
    out: Tensor | None, request: Request, shape: tuple[int, ...], execution: Execution, name: str = "out"
) -> Tensor:
    """Return the tensor [n, *shape] that the samples of a request are written to: ``out``, or a new one.

    Strides are the caller's own: a slice of a larger tensor is as good as a whole one, and is written in place.

    Raises:
        ValueError: ``out`` has another shape, dtype or device than the samples, requires a gradient, was made in
            inference mode and is used outside it, holds two elements in one place, or lies in memory that the request
            is still read from.
    """
    wanted = (len(request), *shape)
    with torch.inference_mode(False):
        if out is None:
            return torch.empty(wanted, dtype=execution.dtype, device=execution.place)
        like = torch.empty(0, dtype=execution.dtype, device=execution.place)
    given: Any = out
    if not isinstance(given, Tensor) or str(given.layout) != "torch.strided":
        raise ValueError(
            f"{name} = {short(given)} must be a dense tensor, {list(wanted)} {like.dtype} on {like.device}"
        )
    for what, found, right in (
        ("shape", tuple(out.shape), wanted), ("dtype", out.dtype, like.dtype), ("device", out.device, like.device),
    ):  # fmt: skip
        if found != right:
            raise ValueError(f"{name} has {what} {found}, and what is written to it has {right}; make it so")
    if out.requires_grad:
        raise ValueError(f"{name} requires a gradient, and samples have none; give {name}.detach()")
    if out.is_inference() and not torch.is_inference_mode_enabled():
        raise ValueError(f"{name} was made in inference mode, outside which it cannot be written; make it elsewhere")
    if _overlaps_itself(out):
        raise ValueError(f"{name} has elements that share their memory, as expand makes them; give it memory for each")
    for read, tensor in _tensors(request):
        if _may_share(out, tensor):
            raise ValueError(
                f"{name} lies in the memory of {read}, which is read while samples are written; give one of them a "
                "copy (clone) or memory of its own"
            )
    return out


def destinations(
    out: Mapping[str, Tensor] | None, request: Request, shapes: Mapping[str, tuple[int, ...]], execution: Execution
) -> dict[str, Tensor]:
    """Return the same of each part of a joint model: those of ``out``, or new ones; raises ValueError as well."""
    given: Any = dict.fromkeys(shapes) if out is None else out
    if not isinstance(given, Mapping) or set(given) != set(shapes):
        raise ValueError(f"out = {short(given)} must be a dict of tensors by part: {', '.join(shapes)}")
    made = {k: destination(given[k], request, shape, execution, f"out[{k!r}]") for k, shape in shapes.items()}
    for one, other in combinations(made, 2):
        if _may_share(made[one], made[other]):
            raise ValueError(f"out[{one!r}] and out[{other!r}] share their memory; give each part its own")
    return made


def _overlaps_itself(x: Tensor) -> bool:
    """Return whether two elements may lie in one place: whether an axis steps over less than those within it reach."""
    reach = 0
    for stride, size in sorted(zip(x.stride(), x.shape, strict=True)):
        if size > 1 and x.numel():
            if stride <= reach:
                return True
            reach += (size - 1) * stride
    return False


def _may_share(a: Tensor, b: Tensor) -> bool:
    """Return whether the memory that two tensors reach has a byte in common, or one between them."""
    if not a.numel() or not b.numel() or a.device != b.device:
        return False
    (first, last), (begin, end) = (_span(x) for x in (a, b))
    return first < end and begin < last


def _span(x: Tensor) -> tuple[int, int]:
    """Return the addresses of a tensor's first byte and behind its last."""
    reach = sum((size - 1) * stride for size, stride in zip(x.shape, x.stride(), strict=True))
    return x.data_ptr(), x.data_ptr() + (reach + 1) * x.element_size()


def _tensors(request: Request) -> Iterator[tuple[str, Tensor]]:
    """Yield what a request is read from, with its name."""
    yield "ids", request.ids
    yield "seed", request.key.seed
    for field in fields(request):
        value = getattr(request, field.name)
        parts = value.values() if isinstance(value, Mapping) else value if isinstance(value, tuple) else (value,)
        yield from ((field.name, part) for part in parts if isinstance(part, Tensor))
