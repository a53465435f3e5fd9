"""What a comparison found: figures with floors, standard errors and p-values, and what they say together."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from fastscore.errors import typed

LEVEL = 0.01


@dataclass(frozen=True)
class Figure:
    """One figure of samples.

    Attributes:
        value: of the samples against the reference.
        floor: the same of real data against the reference; None where there are too few.
        stderr: the standard error of ``value``; None where there are too few.
        p: how likely a figure at least as far off is of samples that are right; None if it is not tested.
    """

    value: float
    floor: float | None = None
    stderr: float | None = None
    p: float | None = None

    @property
    def distance(self) -> float | None:
        """How many standard errors lie between value and floor."""
        if self.floor is None or not self.stderr:
            return None
        return abs(self.value - self.floor) / self.stderr


@dataclass(frozen=True)
class Quality:
    """Figures of samples, by name, and what is to be known when they are read.

    A figure differs if its p-value, times as many as Holm's procedure asks for, is at most ``level``: of samples that
    are right, the chance that any figure is said to differ is at most ``level``. Source: Holm 1979.

    Attributes:
        figures: by name.
        samples, reference: what was compared, in words.
        caveats: sentences.
        level: the family-wise error rate, in 0 .. 1.
    """

    figures: Mapping[str, Figure]
    samples: str = ""
    reference: str = ""
    caveats: Sequence[str] = field(default_factory=tuple)
    level: float = LEVEL

    @property
    def adjusted(self) -> dict[str, float]:
        """The p-values of the figures that have one, adjusted by Holm's procedure."""
        return holm({name: f.p for name, f in self.figures.items() if f.p is not None})

    @property
    def different(self) -> tuple[str, ...]:
        """The figures that differ from those of real data."""
        return tuple(name for name, p in self.adjusted.items() if p <= self.level)

    @property
    def verdict(self) -> str:
        """What all figures say together."""
        different, tested = self.different, len(self.adjusted)
        if not tested:
            return "nothing was tested"
        if different:
            return f"differs in {len(different)} of {tested} figures: {', '.join(different)}"
        return f"as real data: no figure of {tested} differs"

    def verdict_of(self, name: str) -> str:
        """What one figure says: "as real data", "differs: 6.1 standard errors", or "not tested"."""
        figure = self.figures[name]
        if figure.p is None:
            return "not tested"
        if name not in self.different:
            return "as real data"
        # Where the floor has other sizes than the value, or the figure moved towards it, the p-value says it better.
        far = figure.distance
        return f"differs: {far:.1f} standard errors" if far and far >= 2.0 else f"differs: p {_p(figure.p)}"

    def record(self) -> dict[str, dict[str, Any]]:
        """Return {name: {"value", "floor", "stderr", "p", "verdict"}} for JSON; "overall" counts those that differ."""
        found = {
            name: {
                "value": _short(f.value), "floor": _short(f.floor), "stderr": _short(f.stderr), "p": _short(f.p),
                "verdict": self.verdict_of(name),
            }
            for name, f in self.figures.items()
        }  # fmt: skip
        p = min(self.adjusted.values(), default=None)
        return {
            **found,
            "overall": {
                "value": float(len(self.different)), "floor": 0.0, "stderr": None, "p": _short(p),
                "verdict": self.verdict,
            },
        }  # fmt: skip

    def table(self) -> str:
        """Return the figures as a table of text, the verdict, and the caveats."""
        head = ("figure", "value", "floor", "standard error", "p", "verdict")
        rows = [
            (
                name,
                _text(f.value),
                _text(f.floor),
                _text(f.stderr),
                "" if f.p is None else _p(f.p).removeprefix("= "),
                self.verdict_of(name),
            )
            for name, f in self.figures.items()
        ]
        widths = [max(len(row[k]) for row in (head, *rows)) for k in range(5)]

        def line(row: Sequence[str]) -> str:
            cells = [row[0].ljust(widths[0]), *(row[k].rjust(widths[k]) for k in range(1, 5)), row[5]]
            return "  ".join(cells).rstrip()

        lines = [f"{self.samples} against {self.reference}", ""] if self.samples else []
        lines += [line(head), *map(line, rows), "", f"{self.verdict} (family-wise error {self.level:g}, Holm)"]
        return "\n".join([*lines, *(f"- {caveat}" for caveat in self.caveats)])

    def __str__(self) -> str:
        return self.table()


@typed
def holm(p: Mapping[str, float]) -> dict[str, float]:
    """Return p-values adjusted by Holm's procedure: of the i-th smallest of k, max over j <= i of (k - j) p_j."""
    adjusted, largest = dict[str, float](), 0.0
    for rank, name in enumerate(sorted(p, key=lambda key: p[key])):
        largest = max(largest, min(1.0, (len(p) - rank) * p[name]))
        adjusted[name] = largest
    return {name: adjusted[name] for name in p}


def _short(value: float | None) -> float | None:
    """Return six significant digits, which do not depend on the order of a sum; None for what JSON does not know."""
    return None if value is None or not math.isfinite(value) else float(f"{value:.6g}")


def _text(value: float | None) -> str:
    return "" if value is None else f"{value:.4g}"


def _p(p: float) -> str:
    return "< 1e-12" if p < 1e-12 else f"= {p:.2g}"
