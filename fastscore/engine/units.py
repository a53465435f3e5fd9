"""The units of a model's data around an engine, which computes in those of its network: x = shift + scale y.

Whatever a caller sees or gives is an x: samples, states on the way, estimates, ``init``, known data.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, replace
from typing import TYPE_CHECKING, Any

from torch import Tensor

from fastscore.data.affine import Affine
from fastscore.model.conditions import Known
from fastscore.model.score import ScoreModel

if TYPE_CHECKING:
    from fastscore.engine.loop import Step


def seen(callback: Callable[[Step], None] | None, transform: Affine | None) -> Callable[[Step], None] | None:
    """Return a callback that is shown the states and estimates of a run in the units of the data."""
    if callback is None or transform is None:
        return callback
    shown = callback

    def show(step: Step) -> None:
        shown(replace(step, x=transform(step.x), x0=None if step.x0 is None else transform(step.x0)))

    return show


def outside(stream: Iterable[tuple[Any, Tensor]], transform: Affine | None) -> Iterator[tuple[Any, Tensor]]:
    """Yield what an engine yields, its samples in the units of the data."""
    for at, x in stream:
        yield at, x if transform is None else transform(x)


def inside(values: Any, transform: Affine | None) -> Any:
    """Return ``init``, or known data, in the units of the network; others are left for their check."""
    if transform is None or values is None:
        return values
    if isinstance(values, Known):
        return replace(values, y=inside(values.y, transform))
    fits = isinstance(values, Tensor) and values.shape[-1:] == (len(transform.shift),)
    return transform.inverse(values) if fits else values


def samples_of(y: Tensor, model: ScoreModel) -> Tensor:
    """Return states [n, D] of a network as samples [n, *shape] in the units of the data."""
    y = y.reshape(-1, *model.shape)
    return y if model.transform is None else model.transform(y)


def check_alike(model: ScoreModel, second: ScoreModel) -> None:
    """Raise ValueError unless a second model's samples are in the units and on the subspace of the first one's."""
    if second.transform != model.transform:
        raise ValueError("guidance: the second model's data are in other units; train both on the same data")
    if second.projection != model.projection:
        raise ValueError(
            f"guidance: the second model's projection is {second.projection}, the first one's {model.projection}; "
            "give both the same"
        )


def described(model: ScoreModel) -> dict[str, Any]:
    """Return what a record says of a model beside its network and schedule: units, subspace and names of classes."""
    columns = {"transform": model.transform, "base": model.base}
    said: dict[str, Any] = {name: asdict(own) for name, own in columns.items() if own is not None}
    if model.two_times:
        said["two_times"] = True
    if model.projection is not None:
        said["projection"] = repr(model.projection)
    return said | ({"class_names": list(model.class_names)} if model.class_names else {})


def log_determinant(model: ScoreModel) -> float:
    """Return ln |dx/dy| of a sample: ln p(x) = ln p(y) - ln |dx/dy|."""
    return 0.0 if model.transform is None else model.transform.log_determinant(model.shape)
