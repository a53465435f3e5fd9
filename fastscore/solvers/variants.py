"""Options of published variants, which a solver's repr names only where they are used.

The repr of a solver is part of a run's record: what runs as it always did keeps the record it always had.
"""

from __future__ import annotations

from dataclasses import field, fields
from typing import Any

_VARIANT = {"variant": True}


def published(default: Any) -> Any:
    """Return a dataclass field of a published variant, with the value that leaves it out."""
    return field(default=default, metadata=_VARIANT)


def published_repr(self: Any) -> str:
    """Return the repr of a dataclass, without variants that are left out."""
    shown = [
        f"{entry.name}={getattr(self, entry.name)!r}"
        for entry in fields(self)
        if entry.metadata != _VARIANT or getattr(self, entry.name) != entry.default
    ]
    return f"{type(self).__name__}({', '.join(shown)})"
