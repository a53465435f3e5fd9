"""Tensors that a run gives its samples, checked: one line a sample."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from fastscore.errors import short
from fastscore.model.conditions import Known, finite, per_sample
from fastscore.ops.noise import NoiseKey

Shape = tuple[int, ...]


def tensor(name: str, values: Any, device: torch.device) -> Tensor | None:
    """Return values as a tensor; ValueError if they are no numbers."""
    try:
        return None if values is None else torch.as_tensor(values, device=device)
    except (TypeError, ValueError, RuntimeError):
        raise ValueError(f"{name} = {short(values)} must be a tensor of numbers, one line an id") from None


def _by_part(name: str, values: Any, shapes: dict[str, Shape]) -> dict[str, Any]:
    """Return what was given for each part; a plain model has one part without a name."""
    if list(shapes) == [""]:
        return {"": values}
    if not isinstance(values, Mapping) or not set(values) <= set(shapes):
        raise ValueError(f"{name} must be a dict by part, with keys among {', '.join(shapes)}")
    return dict(values)


def init_lines(values: Any, shapes: dict[str, Shape], key: NoiseKey) -> Tensor | None:
    """Return where each sample starts from, [n, D of all parts]."""
    if values is None:
        return None
    by_part = _by_part("init", values, shapes)
    if set(by_part) != set(shapes):
        raise ValueError(
            f"init lacks {', '.join(sorted(set(shapes) - set(by_part)))}; every part starts from something"
        )
    names = {p: f"init{_at(p)}" for p in shapes}
    lines = [finite(name, per_sample(name, by_part[p], shapes[p], key)).flatten(1) for p, name in names.items()]
    return lines[0] if len(lines) == 1 else torch.cat(lines, 1)


def known_lines(values: Any, shapes: dict[str, Shape], key: NoiseKey) -> tuple[Tensor | None, Tensor | None]:
    """Return known data and where they are known, [n, D of all parts] each."""
    if values is None:
        return None, None
    data, masks, n = [], [], len(key.ids)
    by_part = _by_part("known", values, shapes)
    for part, shape in shapes.items():
        known = by_part.get(part)
        if known is None:
            known = Known(torch.zeros(shape), torch.zeros(shape, dtype=torch.bool))
        if not isinstance(known, Known):
            raise ValueError(f"known{_at(part)} is a {type(known).__name__}; it must be Known(y, mask)")
        y, mask = known.per_sample(shape, key)
        data.append(y.reshape(n, -1))
        masks.append(mask.reshape(n, -1))
    return (data[0], masks[0]) if len(data) == 1 else (torch.cat([v.float() for v in data], 1), torch.cat(masks, 1))


def recorded_lines(noise: Tensor | None, shapes: dict[str, Shape], key: NoiseKey) -> Tensor | None:
    """Return recorded normals, [draws, n, D of all parts]."""
    if noise is None:
        return None
    n, d = len(key.ids), sum(math.prod(shape) for shape in shapes.values())
    allowed = [(n, d), *((n, *shape) for shape in shapes.values() if len(shapes) == 1)]
    if not isinstance(noise, Tensor) or tuple(noise.shape[1:]) not in allowed:
        description = tuple(noise.shape) if isinstance(noise, Tensor) else type(noise).__name__
        raise ValueError(
            f"recorded noise is {description}; it must be a tensor [draws, {', '.join(map(str, allowed[-1]))}]"
        )
    if not bool(noise.isfinite().all()):
        raise ValueError("recorded noise holds NaN or Inf")
    return noise.reshape(len(noise), n, d).to(key.ids.device)


def usable(values: Any) -> Any:
    """Return a tensor as it is, but for one made in inference mode, which no gradient may pass: a copy of that."""
    return values.clone() if values is not None and values.is_inference() else values


def _at(part: str) -> str:
    return f"[{part!r}]" if part else ""
