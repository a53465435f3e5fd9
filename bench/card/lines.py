"""DIR/records.jsonl: written a line at a time, and read whatever a crash has left of it."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

NAME, END = "records.jsonl", "end of phase"


def write(out: Path, record: Mapping[str, Any]) -> None:
    """Append one record, whole and on the disk before anything else happens."""
    line = (json.dumps(record, default=str) + "\n").encode()
    file = os.open(out / NAME, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    try:
        os.write(file, line)
        os.fsync(file)
    finally:
        os.close(file)


def load(out: Path) -> list[dict[str, Any]]:
    """Read the records; a line that a crash cut off is left out."""
    records = []
    try:
        lines = (out / NAME).read_text(errors="replace").splitlines()
    except OSError:
        return records
    for line in lines:
        try:
            records.append(json.loads(line))
        except ValueError:
            continue
    return records
