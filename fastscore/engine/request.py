"""Requests: what is asked for, one line a sample, and the one way to serve it a micro-batch at a time."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any, TypedDict

import torch
from torch import Tensor

from fastscore.engine.turn import Turn
from fastscore.engine.units import inside
from fastscore.errors import short
from fastscore.model.condition_shapes import Condition, Conditioned, each
from fastscore.model.conditions import Given, Known, Labels, condition_of, constant, per_sample
from fastscore.model.conditions import finite as finite_input
from fastscore.network.surroundings import undisturbed
from fastscore.ops.noise import NoiseKey

Shape = tuple[int, ...]


class RequestFields(TypedDict, total=False):
    """Keywords of what a run may give its samples beside seed and ids; see Request.of."""

    labels: Labels
    cond: Given
    init: Any
    known: Any
    y: Tensor | None
    noise: Tensor | None


@dataclass(frozen=True)
class Request:
    """The samples to draw and what each of them is given: everything that a sampler's settings are not.

    Shards, processes and retries cut a request and never change a line of it: sample k of it is the same however it is
    cut. Made by ``Sampler.request`` and its likes.

    Attributes:
        key: seed, int64 [1] or one a sample [n], and ids, int64 [n].
        cond: labels, int64 [n], a conditioning tensor [n, *cond_shape], or a dict of such; None for no condition.
        init: where samples start from, [n, D].
        known, mask: known data and where it is known, [n, D].
        y: what a guide steers to, [n, ..].
        guide: what a guide holds for each sample, [n, ..] each; see guidance/per_sample.py.
        noise: recorded normals in place of generated ones, [draws, n, D].
        valid: how many lines are samples; the rest pads a micro-batch.
        among: how many samples the run has of which these are a part.
    """

    key: NoiseKey
    cond: Condition = None
    init: Tensor | None = None
    known: Tensor | None = None
    mask: Tensor | None = None
    y: Tensor | None = None
    guide: tuple[Tensor, ...] = ()
    noise: Tensor | None = None
    valid: int = -1
    among: int = 0

    def __post_init__(self) -> None:
        if self.valid < 0:
            object.__setattr__(self, "valid", len(self.key.ids))
        object.__setattr__(self, "among", max(self.among, len(self.key.ids)))

    @classmethod
    def of(
        cls,
        model: Conditioned,
        device: torch.device,
        ids: Sequence[int] | Tensor,
        seed: int | Sequence[int] | Tensor = 0,
        *,
        labels: Labels = None,
        cond: Given = None,
        init: Any = None,
        known: Any = None,
        y: Tensor | None = None,
        noise: Tensor | None = None,
    ) -> Request:
        """Check what is asked of a model, and resolve its labels.

        Arguments are those of ``Sampler.run``; of a joint model ``init`` and ``known`` are dicts by part.

        Raises:
            ValueError: bad ids, seed or labels, or a tensor of a shape that does not fit or that requires a gradient.
        """
        constant(cond=cond, init=init, known=known, y=y, noise=noise)
        transform = getattr(model, "transform", None)
        init, known = inside(init, transform), inside(known, transform)
        shape: Any = model.shape
        shapes: dict[str, Shape] = dict(shape) if isinstance(shape, Mapping) else {"": shape}
        with undisturbed(place=device):
            key = NoiseKey.of(seed, ids, device)
            y = _tensor("y", y, device)
            if y is not None and (y.ndim == 0 or len(y) != len(key.ids)):
                raise ValueError(f"y has shape {tuple(y.shape)}; its first axis must be the {len(key.ids)} ids")
            data, mask = _known(known, shapes, key)
            return cls(
                NoiseKey(_usable(key.seed), _usable(key.ids)),
                each(_usable, condition_of(model, key, labels, cond)),
                _usable(_init(init, shapes, key)),
                _usable(data),
                _usable(mask),
                _usable(y),
                noise=_usable(_recorded(noise, shapes, key)),
            )

    def __len__(self) -> int:
        return len(self.key.ids)

    @property
    def ids(self) -> Tensor:
        """Sample ids, int64 [n]."""
        return self.key.ids

    def check_start(self, start: str) -> None:
        """Raise ValueError unless there is an ``init`` exactly where samples start from one."""
        if (self.init is None) != (start == "prior"):
            value = "None" if self.init is None else "a tensor"
            raise ValueError(f"init = {value} does not go with start = {start!r}")

    def guided(self, lines: tuple[Tensor, ...]) -> Request:
        """Return it with what a guide holds for each sample, unless it has that already, as a part of a request does.

        Raises:
            ValueError: tensors of another length.
        """
        if self.guide:
            return self
        for line in lines:
            if len(line) != len(self):
                raise ValueError(
                    f"the guide holds a tensor {tuple(line.shape)}, one line a sample, for {len(line)} samples; there "
                    f"are {len(self)} ids: give it one line an id, in their order"
                )
        return replace(self, guide=tuple(line.detach().to(self.ids.device) for line in lines))

    def part(self, at: slice) -> Request:
        """Return the lines of some samples."""
        return self._each(lambda v, axis: v[at] if axis == 0 else v[:, at])

    def at(self, positions: Sequence[int]) -> Request:
        """Return the lines at some positions, in their order."""
        if isinstance(positions, range) and positions.step == 1:
            return self.part(slice(positions.start, positions.stop))
        index = torch.as_tensor(positions, dtype=torch.int64, device=self.ids.device)
        return self._each(lambda v, axis: v.index_select(axis, index))

    def of_run(self, n: int) -> Request:
        """Return it as a part of a run of n samples."""
        return replace(self, among=n)

    def padded(self, batch: int) -> Request:
        """Return it with copies of its last line up to ``batch``."""
        padding = batch - len(self)
        if padding == 0:
            return self

        def pad(v: Tensor, axis: int) -> Tensor:
            last = v.narrow(axis, v.shape[axis] - 1, 1)
            return torch.cat([v, last.expand(*v.shape[:axis], padding, *v.shape[axis + 1 :])], axis)

        return self._each(pad)

    def columns(self, at: slice) -> Request:
        """Return it with some of the D columns of the state: those of one part of a joint model."""
        cut = {name: getattr(self, name) for name in ("init", "known", "mask", "noise")}
        return replace(self, **{name: None if v is None else v[..., at] for name, v in cut.items()})

    def _each(self, change: Callable[[Tensor, int], Tensor]) -> Request:
        """Return it with every tensor changed along its axis of samples."""
        values = {f.name: getattr(self, f.name) for f in fields(self) if f.name not in ("key", "valid", "among")}
        guide = tuple(change(v, 0) for v in values.pop("guide"))
        cond = each(lambda v: change(v, 0), values.pop("cond"))
        new = {name: None if v is None else change(v, int(name == "noise")) for name, v in values.items()}
        seed = self.key.seed if len(self.key.seed) == 1 else change(self.key.seed, 0)
        ids = change(self.key.ids, 0)
        valid = min(self.valid, len(ids))
        return Request(NoiseKey(seed, ids), cond, **new, guide=guide, valid=valid, among=self.among)


def micro_batches(
    request: Request,
    batch: int,
    turn: Turn,
    compute: Callable[[slice, Request], Tensor],
    not_finite: Callable[[slice, Request, Tensor], None],
) -> Iterator[tuple[slice, Tensor]]:
    """Serve a request a micro-batch at a time: cut, padded to one size, computed, checked, cut back.

    Args:
        batch: of the network.
        turn: taken for each micro-batch, and free while a caller holds its samples.
        compute: (positions in the request, their lines padded to ``batch``) -> samples [batch, ..].
        not_finite: raises for samples of which some are NaN or Inf; called within the turn.

    Yields:
        positions in the request, their samples.

    Raises:
        RuntimeError: the turn is taken.
    """
    n = len(request)
    turn.look(request.among)
    for start in range(0, n, batch):
        at = slice(start, min(start + batch, n))
        with turn:
            part = request.part(at).padded(batch)
            x = compute(at, part)[: part.valid]
            if not finite(x):
                not_finite(at, part, x)
        yield at, x


def finite(x: Tensor) -> bool:
    """Return whether all is finite: a finite sum has finite terms, and costs a tenth of looking at each."""
    return math.isfinite(float(x.sum())) or bool(torch.isfinite(x).all())  # the sum may have overflowed


def bad_samples(x: Tensor, ids: Tensor) -> str:
    """Return how many of the samples are NaN or Inf, and the first of their ids, in words."""
    bad = ~torch.isfinite(x.flatten(1)).all(1)
    return f"{int(bad.sum())} of {len(x)} samples are NaN or Inf, first id {int(ids[: len(x)][bad][0])}"


def _tensor(name: str, values: Any, device: torch.device) -> Tensor | None:
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


def _init(values: Any, shapes: dict[str, Shape], key: NoiseKey) -> Tensor | None:
    if values is None:
        return None
    by_part = _by_part("init", values, shapes)
    if set(by_part) != set(shapes):
        raise ValueError(
            f"init lacks {', '.join(sorted(set(shapes) - set(by_part)))}; every part starts from something"
        )
    names = {p: f"init{_at(p)}" for p in shapes}
    lines = [finite_input(name, per_sample(name, by_part[p], shapes[p], key)).flatten(1) for p, name in names.items()]
    return lines[0] if len(lines) == 1 else torch.cat(lines, 1)


def _known(values: Any, shapes: dict[str, Shape], key: NoiseKey) -> tuple[Tensor | None, Tensor | None]:
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


def _recorded(noise: Tensor | None, shapes: dict[str, Shape], key: NoiseKey) -> Tensor | None:
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


def _usable(values: Any) -> Any:
    """Return a tensor as it is, but for one made in inference mode, which no gradient may pass: a copy of that."""
    return values.clone() if values is not None and values.is_inference() else values


def _at(part: str) -> str:
    return f"[{part!r}]" if part else ""
