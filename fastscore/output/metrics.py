"""How far a run is, as a file for Prometheus: of its text format, for the textfile collector of the node exporter."""

from __future__ import annotations

import time
import warnings
from pathlib import Path

from fastscore.files import atomic
from fastscore.output.progress import Progress

EVERY = 5.0  # seconds between two writes


class Metrics:
    """A text file of gauges that follows a Progress: written at the start, at most each 5 s, and at the end.

    A reader sees a whole file, old or new. That it cannot be written is a warning, once, and ends nothing.

    Args:
        file: where to; its folder is there when the run begins.
        run: folder or address of the run, a label of each value.
        part: (i, N), the part of the run that is meant, another label.
    """

    def __init__(self, file: Path, run: str, part: tuple[int, int] = (0, 1)) -> None:
        self.file, self._written, self._warned = file, -EVERY, False
        self._labels = f'{{run="{escaped(run)}",part="{part[0]}/{part[1]}"}}'

    def __call__(self, progress: Progress) -> None:
        """Write the file if it is time."""
        now = time.monotonic()
        if now - self._written < EVERY and not progress.ended:
            return
        self._written = now
        try:
            with atomic(self.file) as file:
                file.write(self.text(progress).encode())
        except OSError as error:
            if not self._warned:
                warnings.warn(f"metrics: {self.file} cannot be written, {error}; the run goes on", stacklevel=2)
            self._warned = True

    def text(self, progress: Progress) -> str:
        """Return what the file holds."""
        values = {
            "samples": ("Samples to draw.", progress.total),
            "samples_done": ("Samples that are drawn.", int(progress.done + 1e-6)),
            "shards": ("Shards to draw.", progress.shards),
            "shards_done": ("Shards that are complete.", progress.shards_done),
            "samples_per_second": ("Samples drawn in a second, since this process began.", f"{progress.rate:.6g}"),
            "seconds": ("Seconds since this process began to draw.", f"{progress.seconds:.3f}"),
        }
        lines = []
        for name, (meaning, value) in values.items():
            name = f"fastscore_{name}"
            lines += [f"# HELP {name} {meaning}", f"# TYPE {name} gauge", f"{name}{self._labels} {value}"]
        return "\n".join(lines) + "\n"


def escaped(text: str) -> str:
    """Return the value of a label as it stands between quotes."""
    text = text.encode(errors="backslashreplace").decode()  # of a path that is no text
    return text.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")
