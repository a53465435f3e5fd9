"""Solvers as entries of a JSON file: a name, and options that are plain values."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields, is_dataclass
from typing import Any

from fastscore import solvers
from fastscore.errors import short, unknown
from fastscore.plan.rows import Solver
from fastscore.solvers.adaptive import Adaptive
from fastscore.solvers.names import ADAPTIVE, DEFAULT, SOLVERS, named


def solver_of(solver: Any, options: Mapping[str, Any] | None = None) -> tuple[Solver, str, dict[str, Any]]:
    """Return a solver with its name and its options, from which it can be made again.

    Args:
        solver: a name of solvers/names.py, the name of a class of fastscore.solvers, or an object of one; None for
            the default.
        options: of the name, arguments of ``named``; of the class, its fields, where a solver within a solver is
            {"name": class, field: value, ..}.

    Raises:
        ValueError: an unknown name or option, a solver that holds functions, or one that chooses its own steps.
    """
    if solver is not None and not isinstance(solver, str):
        if options:
            raise ValueError(f"solver = {short(solver)} has its options; leave solver_options out, or give its name")
        if isinstance(solver, Adaptive):
            raise _adaptive(type(solver).__name__)
        described = _plain(solver)
        if not isinstance(described, dict):
            raise ValueError(f"solver = {short(solver)} must be a name, or a solver of fastscore.solvers")
        solver, options = described.pop("name"), described
    name, options = DEFAULT if solver is None else solver, dict(options or {})
    if name in solvers.__all__:
        made = _built({"name": name, **options})
    else:
        if str(name).replace("_", "-").lower() in ADAPTIVE:
            raise _adaptive(name)
        try:
            made = named(name, **options)
        except TypeError as error:
            raise ValueError(f"solver_options of {name}: {error}") from None
    if isinstance(made, Adaptive):
        raise _adaptive(name)
    return made, name, options


def _adaptive(name: str) -> ValueError:
    planned = ", ".join(k for k in SOLVERS if k not in (*ADAPTIVE, "none"))
    return ValueError(
        f"solver = {name!r} chooses its steps by what the network returns, and a pipeline fixes them before it starts; "
        f"take one of {planned}"
    )


def _plain(value: Any) -> Any:
    """Return a value of a solver's field as JSON has it."""
    if is_dataclass(value) and not isinstance(value, type):
        if type(value).__name__ not in solvers.__all__:
            raise ValueError(f"solver = {short(value)} is none of fastscore.solvers, whose names a file can hold")
        return {"name": type(value).__name__, **{f.name: _plain(getattr(value, f.name)) for f in fields(value)}}
    if isinstance(value, tuple | list):
        return [_plain(v) for v in value]
    if value is None or isinstance(value, bool | int | float | str):
        return value
    raise ValueError(f"{short(value)} cannot be written to a scheduler_config.json; a solver with plain options can")


def _built(value: Any) -> Any:
    if isinstance(value, list):
        return tuple(_built(v) for v in value)
    if not isinstance(value, Mapping):
        return value
    name = value.get("name")
    if name not in solvers.__all__:
        raise unknown("solver name", name, solvers.__all__)
    try:
        return getattr(solvers, name)(**{k: _built(v) for k, v in value.items() if k != "name"})
    except TypeError as error:
        raise ValueError(f"solver_options of {name}: {error}") from None
