"""Loggers: whatever has ``log(dict, step=)`` is told figures and pictures of runs of samples and of training.

Nothing of wandb, trackio or tensorboard is imported, and a logger only looks on: it changes no sample, and what it
raises ends no run. The keys are listed in output/README.md.
"""

from __future__ import annotations

import inspect
import itertools
import json
import os
import sys
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from fastscore.errors import short
from fastscore.ops.quantize import quantize_ref
from fastscore.output.pictures import contact_or_density
from fastscore.output.progress import Progress, Told

IMAGES = ("wandb", "trackio")  # packages whose Image takes uint8 [H, W, 3]; trackio's takes nothing else


class Logger(Protocol):
    """Anything with ``log(data, step=)``: a run of wandb or trackio, or a class of three lines."""

    def log(self, data: dict[str, Any], /, *, step: int) -> object: ...


class Log:
    """A logger with how often and what it is told; ``log=`` takes it wherever it takes the logger alone.

        Sampler(model).run(range(64), log=Log(wandb.run, every=5.0, rows=(0, 10, -1)))

    Args:
        to: the logger.
        every: seconds between two entries of figures, at least 0; the last one comes at the end whatever it is.
        rows: after which rows of the first micro-batch estimates of x0 are shown: so many of them, evenly spaced, or
            their numbers, from the end if negative; 0 is none. Of an adaptive solver, which has no rows: at so many
            places on the way.
        shown: images in one picture of them.
        media: makes of a picture, uint8 [H, W, C], what the logger takes; left out: ``Image`` of wandb and trackio for
            their own loggers, and for others the picture as it is.
        values: also give the estimates themselves, float32 [n, *shape] in the units of the data.
        first: step of the first entry; entries of samples are counted from there, through all runs with this Log.

    Raises:
        ValueError: ``to`` has no log(dict, step=), or a number out of range.
    """

    def __init__(
        self,
        to: Logger,
        *,
        every: float = 1.0,
        rows: int | Sequence[int] = 5,
        shown: int = 16,
        media: Callable[[NDArray[np.uint8]], Any] | None = None,
        values: bool = False,
        first: int = 0,
    ) -> None:
        _check(to)
        if not every >= 0.0:
            raise ValueError(f"every = {every} must be at least 0 seconds")
        if shown < 1 or (isinstance(rows, int) and rows < 0):
            raise ValueError(f"rows = {rows} must be at least 0, and shown = {shown} at least 1")
        self.to, self.every, self.rows, self.shown, self.values = to, every, rows, shown, values
        self.media, self.steps = media or _media(to), itertools.count(first)

    @classmethod
    def of(cls, log: Logger | Log) -> Log:
        """Return a Log as it is, and of a logger one with the defaults."""
        return log if isinstance(log, Log) else cls(log)

    def chosen(self, among: Sequence[int], rows: int) -> set[int]:
        """Return the rows that are shown, of a plan of so many, ``among`` being those that evaluate the network.

        Raises:
            ValueError: a row that the plan has not.
        """
        if isinstance(self.rows, int):
            at = np.linspace(0, len(among) - 1, min(self.rows, len(among))).round().astype(int)
            return {among[k] for k in at}
        if wrong := [k for k in self.rows if not -rows <= k < rows]:
            raise ValueError(f"log: rows = {wrong} are not among the {rows} rows of this plan, 0 .. {rows - 1}")
        return {k % rows for k in self.rows}


class Journal:
    """What one run tells a Log.

    Attributes:
        part: whether the run is a part of another one, which tells how far it is.
        details: more figures of an entry.
        pictured: whether the estimates of this run were chosen already.
    """

    def __init__(self, log: Log, part: bool = False) -> None:
        self.log, self.part, self.pictured, self._silent = log, part, False, False
        self.details: Callable[[], dict[str, Any]] = dict
        self._told = time.monotonic()

    @classmethod
    def of(cls, log: Logger | Log | Journal | None) -> Journal | None:
        """Return what tells a logger, None if there is none.

        Raises:
            ValueError: it is no logger.
        """
        return log if log is None or isinstance(log, Journal) else cls(Log.of(log))

    @property
    def due(self) -> bool:
        """Whether it is time for an entry."""
        return not self._silent and time.monotonic() - self._told >= self.log.every

    def tell(self, data: Callable[[], dict[str, Any]], step: int | None = None) -> None:
        """Give the logger an entry, under the next number if it has none.

        A logger that raises is told nothing more of this run, which goes on: hours of samples are worth more than the
        rest of a curve. A warning says so, once.
        """
        if self._silent:
            return
        self._told = time.monotonic()
        try:
            self.log.to.log(data(), step=next(self.log.steps) if step is None else step)
        except Exception as error:
            self._silent = True
            warnings.warn(
                f"log: {type(self.log.to).__name__} raised {type(error).__name__}: {error}; it is told nothing more of "
                "this run, which goes on",
                stacklevel=2,
            )

    def __call__(self, progress: Progress) -> None:
        """Tell how far a run is, in what it counts, if it is time or the end."""
        if self._silent or not (progress.ended or self.due):
            return
        self.tell(lambda: {
            f"sample/{progress.unit}": round(progress.done, 3),
            f"sample/{progress.unit}_total": progress.total,
            f"sample/{progress.unit}_per_s": progress.rate,
            "sample/elapsed_s": progress.seconds,
            **self.details(),
        })  # fmt: skip

    @contextmanager
    def following(self, progress: Told, total: int) -> Iterator[Told]:
        """Give what is to be called with how many of a run's samples are done by now."""
        if self.part:
            yield progress
            return
        caller = progress if callable(progress) else None
        with Progress(caller is None and bool(progress), watch=self).begin(total) as shown:

            def reach(done: float) -> None:
                shown.reach(done)
                if caller is not None:
                    caller(done)

            yield reach

    def show(self, x0: Tensor, images: bool, figures: dict[str, Any]) -> None:
        """Give the logger estimates of x0, [n, *shape] in the units of the data, with figures of where they are from.

        Args:
            images: whether they are images in -1 .. 1; of anything else the picture is a density, of latents none.
        """

        def entry() -> dict[str, Any]:
            values = x0.detach().float().cpu()
            picture = contact_or_density(quantize_ref(values[: self.log.shown]).numpy() if images else values.numpy())
            data = {**figures, "sample/x0_mean": float(values.mean()), "sample/x0_std": float(values.std(correction=0))}
            if picture is not None and picture.shape[2] in (1, 3):
                data["sample/x0"] = picture if self.log.media is None else self.log.media(picture)
            return data | ({"sample/x0_values": values.numpy()} if self.log.values else {})

        self.tell(entry)


class Logged:
    """A source of samples that tells a journal what its estimates and its steps are, for ``draw``."""

    def __init__(self, source: Any, journal: Journal) -> None:
        self.source, self.sampler, self.journal = source, getattr(source, "sampler", source), journal
        self.model, self.ops = source.model, source.ops
        self.record, self.release = source.record, getattr(self.sampler, "release", lambda: None)

    @classmethod
    def of(cls, source: Any, journal: Journal | None) -> Any:
        """Return a source that tells the journal, or the source itself where it has nothing to tell it."""
        if journal is None or "log" not in inspect.signature(source.stream).parameters:
            return source
        return cls(source, journal)

    @property
    def prepared(self) -> object:
        return self.source.prepared

    def stream(self, request: Any, *, progress: Told = False) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield (ids, samples) as the source does."""
        return self.source.stream(request, progress=progress, log=self.journal)


class JsonLines:
    """A logger that appends a line of JSON to a file: the step, and what of an entry are numbers.

    Raises:
        ValueError: the file is there and is none of these.
        OSError: it cannot be written.
    """

    def __init__(self, path: Path | str) -> None:
        self.path, self.next = Path(path), 0
        if os.path.lexists(self.path):
            self.next = _last_step(self.path) + 1
        with self.path.open("a"):
            pass

    def log(self, data: dict[str, Any], /, *, step: int) -> None:
        """Append one entry."""
        numbers = {k: v for k, v in data.items() if isinstance(v, int | float)}
        with self.path.open("a") as file:
            file.write(json.dumps({"step": step, **numbers}) + "\n")


def _last_step(path: Path) -> int:
    """Return the last step of a file of JsonLines, -1 of an empty one; what a kill has cut off may be its end."""
    if not path.is_file():
        raise ValueError(f"{path} is no file; choose another one for the log")
    last = -1
    with path.open(errors="replace") as file:
        for number, line in enumerate(file, 1):
            try:
                last = int(json.loads(line)["step"])
            except (ValueError, KeyError, TypeError):
                if line.endswith("\n") or number == 1:
                    raise ValueError(
                        f"{path} is no log of these, as its line {number} shows; choose another one"
                    ) from None
    return last


def _check(to: object) -> None:
    """Raise ValueError, with the remedy, for what is no logger."""
    method = getattr(to, "log", None)
    if callable(method):
        try:
            inspect.signature(method).bind({}, step=0)
        except TypeError:
            raise ValueError(
                f"log = {short(to)}: its log{inspect.signature(method)} does not take (dict, step=); give a run of "
                "wandb or trackio, or an object with that method"
            ) from None
        except ValueError:  # a builtin whose signature nobody knows
            pass
        return
    if callable(getattr(to, "add_scalar", None)):
        raise ValueError(
            f"log = {short(to)}: a SummaryWriter has add_scalar in place of log(dict, step=); the adapter of three "
            "lines in fastscore/output/README.md makes one of the other"
        )
    if callable(to):
        raise ValueError(
            f"log = {short(to)} is a function; give the object whose method it is (wandb.run, not wandb.log), or "
            "types.SimpleNamespace(log=function) of a function of (dict, step=)"
        )
    raise ValueError(f"log = {short(to)} must have a method log(dict, step=), as a run of wandb or trackio has")


def _media(to: object) -> Callable[[NDArray[np.uint8]], Any] | None:
    """Return what makes pictures for the loggers of wandb and trackio, which whoever made them has imported."""
    package = (to.__name__ if isinstance(to, ModuleType) else type(to).__module__).partition(".")[0]
    image = getattr(sys.modules.get(package), "Image", None) if package in IMAGES else None
    if image is None:
        return None
    return lambda picture: image(np.repeat(picture, 3, 2) if picture.shape[2] == 1 else picture)
