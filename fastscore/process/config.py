"""Schedules to and from plain JSON values."""

from __future__ import annotations

from dataclasses import fields, is_dataclass
from typing import Any

from fastscore.errors import unknown
from fastscore.process.beta import CosineBeta, ExponentialBeta, LinearBeta
from fastscore.process.continuous import EDM, VE, VP, Flow, SubVP, Trig, TutorialVE
from fastscore.process.discrete import DiscreteVE, DiscreteVP

_SCHEDULES = (
    VP,
    SubVP,
    VE,
    TutorialVE,
    EDM,
    Flow,
    Trig,
    DiscreteVP,
    DiscreteVE,
    LinearBeta,
    ExponentialBeta,
    CosineBeta,
)


_CLASSES = {c.__name__: c for c in _SCHEDULES}


def schedule_to_dict(schedule: Any) -> dict[str, Any]:
    """Return a schedule as plain JSON values, with its class under ``name``."""
    name = type(schedule).__name__
    if name not in _CLASSES:
        raise ValueError(f"{name} holds Python functions and cannot be saved; only {', '.join(_CLASSES)} can")
    values = {k.name: getattr(schedule, k.name) for k in fields(schedule)}
    nested = {k: schedule_to_dict(v) if is_dataclass(v) else v for k, v in values.items()}
    return {"name": name, **nested}


def schedule_from_dict(data: dict[str, Any]) -> Any:
    """Build the schedule that ``schedule_to_dict`` described.

    Raises:
        ValueError: unknown name or argument.
    """
    values = dict(data)
    name = values.pop("name", None)
    if name not in _CLASSES:
        raise unknown("schedule name", name, _CLASSES)
    values = {k: schedule_from_dict(v) if isinstance(v, dict) else v for k, v in values.items()}
    if "beta" in values and not callable(values["beta"]):
        raise ValueError(f"schedule {name}: beta = {values['beta']!r} must describe a noise rate")
    try:
        return _CLASSES[name](**values)
    except TypeError as error:
        raise ValueError(f"schedule {name}: {error}") from None
