"""Requests: what is asked for, one line a sample, and the one way to serve it a micro-batch at a time."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any, TypedDict

import torch
from torch import Tensor

from fastscore.engine.inputs import Shape, init_lines, known_lines, recorded_lines, tensor, usable
from fastscore.engine.turn import Turn
from fastscore.engine.units import inside
from fastscore.errors import short
from fastscore.model.condition_shapes import Condition, Conditioned, each
from fastscore.model.conditions import Given, Labels, condition_of, constant, further
from fastscore.network.surroundings import undisturbed
from fastscore.ops.host import pinned
from fastscore.ops.noise import NoiseKey


class RequestFields(TypedDict, total=False):
    """Keywords of what a run may give its samples beside seed and ids; see Request.of."""

    labels: Labels
    cond: Given
    others: Sequence[Labels | Given]
    negative: Labels | Given
    init: Any
    known: Any
    y: Tensor | None
    noise: Tensor | None
    prior_ids: Sequence[int] | Tensor | None


@dataclass(frozen=True)
class Request:
    """The samples to draw and what each of them is given: everything that a sampler's settings are not.

    Shards, processes and retries cut a request and never change a line of it: sample k of it is the same however it is
    cut. Made by ``Sampler.request`` and its likes.

    Attributes:
        key: seed, int64 [1] or one a sample [n], and ids, int64 [n].
        cond: labels, int64 [n], a conditioning tensor [n, *cond_shape], or a dict of such; None for no condition.
        others: further conditions of each sample, of guidance with several weights. negative: what guidance leads away
            from in place of the null condition. Each in the form of ``cond``.
        init: where samples start from, [n, D].
        known, mask: known data and where it is known, [n, D].
        y: what a guide steers to, [n, ..].
        guide: what a guide holds for each sample, [n, ..] each; see guidance/per_sample.py.
        noise: recorded normals in place of generated ones, [draws, n, D].
        prior_ids: ids of the noise that samples start from, in place of their own, int64 [n].
        valid: how many lines are samples; the rest pads a micro-batch.
        among: how many samples the run has of which these are a part.
    """

    key: NoiseKey
    cond: Condition = None
    others: tuple[Condition, ...] = ()
    negative: Condition = None
    init: Tensor | None = None
    known: Tensor | None = None
    mask: Tensor | None = None
    y: Tensor | None = None
    guide: tuple[Tensor, ...] = ()
    noise: Tensor | None = None
    prior_ids: Tensor | None = None
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
        others: Sequence[Labels | Given] = (),
        negative: Labels | Given = None,
        init: Any = None,
        known: Any = None,
        y: Tensor | None = None,
        noise: Tensor | None = None,
        prior_ids: Sequence[int] | Tensor | None = None,
    ) -> Request:
        """Check what is asked of a model, and resolve its labels.

        Arguments are those of ``Sampler.run``; of a joint model ``init`` and ``known`` are dicts by part.

        Raises:
            ValueError: bad ids, seed or labels, or a tensor of a shape that does not fit or that requires a gradient.
        """
        if not isinstance(others, tuple | list):
            raise ValueError(f"others = {short(others)} must be a list of conditions, as in others=[[3, 9]]")
        named = {f"others[{k}]": value for k, value in enumerate(others)}
        constant(cond=cond, negative=negative, init=init, known=known, y=y, noise=noise)
        for name, value in named.items():
            constant(**{name: value})
        transform = getattr(model, "transform", None)
        init, known = inside(init, transform), inside(known, transform)
        shape: Any = model.shape
        shapes: dict[str, Shape] = dict(shape) if isinstance(shape, Mapping) else {"": shape}
        with undisturbed(place=device):
            key = NoiseKey.of(seed, ids, device)
            y = tensor("y", y, device)
            if y is not None and (y.ndim == 0 or len(y) != len(key.ids)):
                raise ValueError(f"y has shape {tuple(y.shape)}; its first axis must be the {len(key.ids)} ids")
            data, mask = known_lines(known, shapes, key)
            own = condition_of(model, key, labels, cond)
            more = tuple(further(model, key, own, name, value) for name, value in named.items())
            prior = None if prior_ids is None else NoiseKey.of(0, prior_ids, device).ids
            if prior is not None and len(prior) != len(key.ids):
                raise ValueError(f"prior_ids: {len(prior)} for {len(key.ids)} ids; give one an id")
            return cls(
                NoiseKey(usable(key.seed), usable(key.ids)),
                each(usable, own),
                tuple(each(usable, other) for other in more),
                None if negative is None else each(usable, further(model, key, own, "negative", negative)),
                usable(init_lines(init, shapes, key)),
                usable(data),
                usable(mask),
                usable(y),
                noise=usable(recorded_lines(noise, shapes, key)),
                prior_ids=usable(prior),
            )

    def __len__(self) -> int:
        return len(self.key.ids)

    @property
    def ids(self) -> Tensor:
        """Sample ids, int64 [n]."""
        return self.key.ids

    @property
    def prior(self) -> NoiseKey:
        """The key of the noise that samples start from: their seeds, and their prior ids if they have some."""
        return self.key if self.prior_ids is None else NoiseKey(self.key.seed, self.prior_ids)

    @property
    def told(self) -> tuple[Condition, ...]:
        """The conditions of each sample: its own, the others, and the negative one or None."""
        return (self.cond, *self.others, self.negative)

    def check_start(self, start: str) -> None:
        """Raise ValueError unless there is an ``init`` exactly where samples start from one."""
        if (self.init is None) != (start == "prior"):
            value = "None" if self.init is None else "a tensor"
            raise ValueError(f"init = {value} does not go with start = {start!r}")
        if self.prior_ids is not None and start == "state":
            raise ValueError("prior_ids: start = 'state' starts without noise; leave them out")

    def guided(self, lines: tuple[Tensor, ...]) -> Request:
        """Return it with what a guide holds for each sample, if it holds some; a part of a request has them already.

        Raises:
            ValueError: tensors of another length.
        """
        if self.guide or not lines:
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
        if at == slice(0, len(self)):
            return self
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
        new = {name: change(v, int(name == "noise")) for name in _LINES if (v := getattr(self, name)) is not None}

        def told(cond: Condition) -> Condition:
            return each(lambda v: change(v, 0), cond)

        cond, negative, others = told(self.cond), told(self.negative), tuple(map(told, self.others))
        guide = tuple(change(v, 0) for v in self.guide)
        seed = self.key.seed if len(self.key.seed) == 1 else change(self.key.seed, 0)
        ids = change(self.key.ids, 0)
        valid = min(self.valid, len(ids))
        return Request(NoiseKey(seed, ids), cond, others, negative, **new, guide=guide, valid=valid, among=self.among)


HELD = 1 << 30  # bytes of samples that a GPU may hold twice
_APART = ("key", "valid", "among", "cond", "others", "negative", "guide")  # fields that are cut in a way of their own
_LINES = tuple(f.name for f in fields(Request) if f.name not in _APART)  # the others: a tensor or None


def micro_batches(
    request: Request,
    batch: int,
    turn: Turn,
    compute: Callable[[slice, Request], Tensor],
    not_finite: Callable[[slice, Request, Tensor], None],
    at_once: bool = False,
) -> Iterator[tuple[slice, Tensor]]:
    """Serve a request a micro-batch at a time: cut, padded to one size, computed, checked, cut back.

    On a GPU the host waits for no micro-batch before the next one is on its way, and where they are wanted all at once
    before HELD bytes of them are. Samples are yielded when they are known to be finite.

    Args:
        batch: of the network.
        turn: taken for each micro-batch, and free while a caller holds its samples.
        compute: (positions in the request, their lines padded to ``batch``) -> samples [batch, ..].
        not_finite: raises for samples of which some are NaN or Inf; called within the turn.
        at_once: whether the caller has no use for some samples before it has all.

    Yields:
        positions in the request, their samples.

    Raises:
        RuntimeError: the turn is taken.
    """
    n, ahead = len(request), 0
    drawn = deque[tuple[slice, Request, Tensor, Callable[[], bool]]]()
    turn.look(request.among)
    for start in range(0, n, batch):
        at = slice(start, min(start + batch, n))
        with turn.part(begins=start == 0):
            part = request.part(at).padded(batch)
            x = compute(at, part)[: part.valid]
            drawn.append((at, part, x, finite(x)))
        if x.is_cuda:
            ahead = max(1, HELD // max(1, x.nbytes)) if at_once else 1
        while len(drawn) > (ahead if at.stop < n else 0):
            place, part, x, known = drawn.popleft()
            if not known():
                with turn:
                    not_finite(place, part, x)
            yield place, x


def finite(x: Tensor) -> Callable[[], bool]:
    """Return what tells whether all is finite; a GPU is asked now, behind its work, and waited for then.

    A finite sum has finite terms, and costs a tenth of looking at each; one that is not may have overflowed.
    """
    total, arrived = x.sum(), None
    if x.is_cuda:
        total, arrived = pinned(total)

    def known() -> bool:
        if arrived is not None:
            arrived.synchronize()
        return math.isfinite(float(total)) or bool(torch.isfinite(x).all())

    return known


def bad_samples(x: Tensor, ids: Tensor) -> str:
    """Return how many of the samples are NaN or Inf, and the first of their ids, in words."""
    bad = ~torch.isfinite(x.flatten(1)).all(1)
    return f"{int(bad.sum())} of {len(x)} samples are NaN or Inf, first id {int(ids[: len(x)][bad][0])}"
