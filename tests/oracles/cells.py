"""Tables of cells in one test: every cell is checked, and the message names each that fails."""

from __future__ import annotations

import traceback
from collections.abc import Callable, Iterable


def in_each(cells: Iterable[tuple], check: Callable) -> None:
    """Run a check with the arguments of every cell of a table; one AssertionError names each cell that fails."""
    cells, failures, first = list(cells), [], None
    for cell in cells:
        try:
            check(*cell)
        except Exception as error:
            first = first or error
            at = traceback.extract_tb(error.__traceback__)[-1]
            name = " ".join(str(getattr(part, "__name__", part)) for part in cell)
            failures.append(f"{name}: {type(error).__name__}: {error} (line {at.lineno}: {at.line})")
    assert cells, "a table without cells checks nothing"
    if failures:
        raise AssertionError("\n".join([f"{len(failures)} of {len(cells)} cells fail:", *failures])) from first
