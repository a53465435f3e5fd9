"""What a check found: the first thing that is off, in words, and everything else."""

from __future__ import annotations

import json
import math
from dataclasses import asdict, dataclass, field
from typing import Any


@dataclass(frozen=True)
class Finding:
    """One thing that is off.

    Attributes:
        check: the check that found it.
        text: what is off, in words.
        value: what was measured.
        low, high: the range that it must lie in; infinite where there is no bound.
        cause: what usually causes it.
    """

    check: str
    text: str
    value: float
    low: float
    high: float
    cause: str

    def __str__(self) -> str:
        if math.isinf(self.low) and math.isinf(self.high):
            bounds = ""
        elif math.isinf(self.high):
            bounds = f" (measured {self.value:.4g}, at least {self.low:.4g} is right)"
        elif math.isinf(self.low):
            bounds = f" (measured {self.value:.4g}, at most {self.high:.4g} is right)"
        else:
            bounds = f" (measured {self.value:.4g}, right is {self.low:.4g} .. {self.high:.4g})"
        return f"{self.check}: {self.text}{bounds}. {self.cause}"


@dataclass(frozen=True)
class Report:
    """The outcome of a check.

    Attributes:
        failures: what is off, what others follow from first.
        notes: what is not wrong, but good to know.
        facts: measured orders, evaluations and errors by name.
        checks: names of the checks that were done.
    """

    failures: tuple[Finding, ...]
    notes: tuple[str, ...] = ()
    facts: dict[str, Any] = field(default_factory=dict)
    checks: tuple[str, ...] = ()

    @property
    def ok(self) -> bool:
        """Whether nothing is off."""
        return not self.failures

    def __str__(self) -> str:
        facts = ", ".join(f"{k} {v:.3g}" if isinstance(v, float) else f"{k} {v}" for k, v in self.facts.items())
        if self.ok:
            lines = [f"Nothing is off in {len(self.checks)} checks: {', '.join(self.checks)}."]
        else:
            lines = [str(self.failures[0])]
            if self.failures[1:]:
                lines.append("Also off, perhaps by the same mistake:")
                lines += [f"  {finding}" for finding in self.failures[1:]]
        lines += [f"Note: {note}" for note in self.notes]
        return "\n".join([*lines, f"Measured: {facts}."] if facts else lines)

    def json(self) -> str:
        """Return the report as JSON; infinite bounds are null."""
        found: dict[str, Any] = {"ok": self.ok, **asdict(self)}
        return json.dumps(_finite(found), indent=1)


def _finite(value: Any) -> Any:
    """Return a value whose numbers JSON has."""
    if isinstance(value, dict):
        return {k: _finite(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(v) for v in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
