"""Types of command-line values: whole numbers, bounded numbers, ids, names, pairs."""

from __future__ import annotations

import math
import re
from decimal import Decimal
from pathlib import Path
from typing import Any

import click
from click.shell_completion import CompletionItem

from fastscore.errors import unknown
from fastscore.process.names import GRIDS, TUNED, grid_name
from fastscore.solvers.names import grid_of


class Count(click.ParamType):
    """A whole number, also as 50k, 1.5M or 1e6, within bounds."""

    name = "count"

    def __init__(self, low: int = 0, high: int = 2**63 - 1) -> None:
        self.low, self.high = low, high

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        """Parse one value."""
        if isinstance(value, int):
            number = value
        elif re.fullmatch(r"\d{1,30}", str(value)):
            number = int(value)
        else:
            match = re.fullmatch(r"(\d{1,15}(?:\.\d{1,15})?(?:e\d{1,2})?)([kKmMgG]?)", str(value))
            scaled = Decimal(match[1]) * 1000 ** " kmg".index(match[2].lower() or " ") if match else Decimal("0.5")
            if scaled != int(scaled):
                self.fail(f"{shorten(value)!r} is not a whole number (examples: 64, 50k, 1e6).", param, ctx)
            number = int(scaled)
        if not self.low <= number <= self.high:
            self.fail(f"{number} is outside {self.low} .. {self.high}.", param, ctx)
        return number


class AutoCount(Count):
    """A Count, or "auto"."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """Parse one value."""
        return "auto" if str(value).lower() == "auto" else super().convert(value, param, ctx)


class Number(click.ParamType):
    """A finite number within bounds; the low one is excluded if ``open`` is set."""

    name = "number"

    def __init__(self, low: float = -math.inf, high: float = math.inf, open: bool = False) -> None:
        self.low, self.high, self.open = low, high, open

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        """Parse one value."""
        try:
            number = float(value)
        except ValueError:
            self.fail(f"{shorten(value)!r} is not a number.", param, ctx)
        inside = self.low < number <= self.high if self.open else self.low <= number <= self.high
        if not math.isfinite(number) or not inside:
            bound = f"{'above' if self.open else 'at least'} {self.low:g}"
            bound += "" if math.isinf(self.high) else f" and at most {self.high:g}"
            self.fail(f"{number:g} must be a finite number{'' if math.isinf(self.low) else ' ' + bound}.", param, ctx)
        return number


class Interval(click.ParamType):
    """Two numbers LO,HI with LO < HI: finite ones, or levels from 0 to inf."""

    name = "LO,HI"

    def __init__(self, example: str, levels: bool = False) -> None:
        self.example, self.levels = example, levels

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[float, float]:
        """Parse one pair."""
        try:
            low, high = value if isinstance(value, tuple) else map(float, str(value).split(","))
        except ValueError:
            low, high = 1.0, 0.0
        if not (0.0 <= low < high if self.levels else -math.inf < low < high < math.inf):
            bound = "0 <= LO < HI" if self.levels else "LO < HI"
            self.fail(f"{shorten(value)!r} is not LO,HI with {bound} (example: {self.example}).", param, ctx)
        return low, high


class Restarted(click.ParamType):
    """A restart LOW,HIGH,STEPS,TIMES, the last two of which may be left out."""

    name = "LOW,HIGH,STEPS,TIMES"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[Any, ...]:
        """Parse one restart."""
        if isinstance(value, tuple):
            return value
        match = re.fullmatch(r"([\d.e+-]{1,30}),([\d.e+-]{1,30})(?:,(\d{1,6}))?(?:,(\d{1,6}))?", str(value))
        try:
            low, high = (float(match[1]), float(match[2])) if match else (1.0, 0.0)
        except ValueError:
            low, high = 1.0, 0.0
        counts = [int(k) for k in match.groups()[2:] if k is not None] if match else []
        if not (0.0 < low < high < math.inf and all(counts)):
            self.fail(f"{shorten(value)!r} is not LOW,HIGH,STEPS,TIMES (example: 0.06,0.3,5,6).", param, ctx)
        return (low, high, *counts)


class Sweeps(click.ParamType):
    """Picard's WINDOW,TOLERANCE, the second of which may be left out."""

    name = "WINDOW,TOLERANCE"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[int, float]:
        """Parse one pair."""
        if isinstance(value, tuple):
            return value
        window, _, tolerance = str(value).partition(",")
        try:
            bound = float(tolerance or 0.0)
        except ValueError:
            bound = math.nan
        if not re.fullmatch(r"\d{1,6}", window) or not int(window) or not 0.0 <= bound < math.inf:
            self.fail(f"{shorten(value)!r} is not WINDOW,TOLERANCE (examples: 16 and 16,0.1).", param, ctx)
        return int(window), bound


class Out(click.ParamType):
    """The path of a file or folder to write; or, with ``buckets``, an address such as s3://bucket/run, as text."""

    name = "path"

    def __init__(self, buckets: bool = False) -> None:
        self.buckets = buckets

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Path | str:
        """Parse one path; what may be there the command decides, see output.commit."""
        if not str(value).strip():
            self.fail("the path to write to is empty; name one ('.' is the folder you are in).", param, ctx)
        if re.match("(s3|gs|az)://", str(value)):
            if not self.buckets:
                self.fail(f"{shorten(value)} is in a bucket, and this command writes to a folder.", param, ctx)
            return str(value)
        return Path(value)


class Part(click.ParamType):
    """A part I/N of a run, 0 <= I < N."""

    name = "I/N"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[int, int]:
        """Parse one part."""
        match = re.fullmatch(r"(\d{1,9})/(\d{1,9})", str(value))
        if not isinstance(value, tuple) and (match is None or not int(match[1]) < int(match[2])):
            self.fail(f"{shorten(value)!r} is not I/N with 0 <= I < N (example: 0/4).", param, ctx)
        return (int(match[1]), int(match[2])) if match else value


class Devices(click.ParamType):
    """Numbers of CUDA devices, each once, or "all"."""

    name = "devices"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> list[int] | str:
        """Parse one list."""
        if isinstance(value, list) or str(value).lower() == "all":
            return value if isinstance(value, list) else "all"
        if not re.fullmatch(r"\d{1,3}(,\d{1,3})*", str(value)):
            self.fail(f"{shorten(value)!r} is not a list of devices (examples: 0,1 and all).", param, ctx)
        numbers = [int(part) for part in str(value).split(",")]
        if len(set(numbers)) != len(numbers):
            self.fail(f"{shorten(value)!r} names a device twice.", param, ctx)
        return numbers


class Ids(click.ParamType):
    """Sample ids as a list of numbers and ranges: 0-63,100,7."""

    name = "ids"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> list[int] | range:
        """Parse one list; one range alone costs no memory, however long."""
        if isinstance(value, list | range):
            return value
        alone = re.fullmatch(r"(\d{1,19})-(\d{1,19})", str(value).strip())
        if alone and int(alone[1]) <= int(alone[2]) < 2**63 and int(alone[2]) - int(alone[1]) < 10**12:
            return range(int(alone[1]), int(alone[2]) + 1)
        ids: list[int] = []
        for part in str(value).split(","):
            match = re.fullmatch(r"(\d{1,19})(?:-(\d{1,19}))?", part.strip())
            first, last = (int(match[1]), int(match[2] or match[1])) if match else (1, 0)
            if not first <= last < 2**63:
                self.fail(f"{shorten(part)!r} is not an id or a rising range (example: 0-63,100).", param, ctx)
            if last - first + len(ids) >= 10_000_000:
                self.fail("more than 10 million ids; split the run.", param, ctx)
            ids += range(first, last + 1)
        if len(set(ids)) != len(ids):
            self.fail("an id appears twice.", param, ctx)
        return ids


class StepNumbers(click.ParamType):
    """Numbers of steps, from the end if negative: 0,5,-1; or a slice of them as Python writes it: ::10. Stays text."""

    name = "steps"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:
        """Check one list or slice; ``chosen`` says what it is."""
        text, number = str(value).replace(" ", ""), r"-?\d{1,9}"
        if not re.fullmatch(rf"{number}(,{number})*|({number})?:({number})?(:({number})?)?", text):
            example = "(examples: 0,5,-1 and ::10)"
            self.fail(f"{shorten(value)!r} is neither numbers of steps nor a slice of them {example}.", param, ctx)
        return text

    @staticmethod
    def chosen(text: str | None) -> list[int] | slice | None:
        """Return what ``Sampler.trajectory`` takes; None for None."""
        if text is None or ":" not in text:
            return None if text is None else [int(part) for part in text.split(",")]
        return slice(*(int(part) if part else None for part in text.split(":")))


class Name(click.Choice):
    """A choice that takes underscores for hyphens and any case."""

    def normalize_choice(self, choice: Any, ctx: click.Context | None) -> str:
        """Fold spelling before comparing."""
        return str(choice).replace("_", "-").lower()

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:
        """Parse one name; another one is refused in the words of the library."""
        known = {self.normalize_choice(choice, ctx): choice for choice in self.choices}
        folded = self.normalize_choice(value, ctx)
        if folded not in known:
            title = param.name or "name" if param else "name"
            self.fail(f"{unknown(title, shorten(value), self.choices)}.", param, ctx)
        return known[folded]


class GridName(Name):
    """The name of a grid, by any of its spellings; there are too many for the usage to list."""

    def shell_complete(self, ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem]:
        """Return the names that begin so."""
        return [CompletionItem(name) for name in (*GRIDS, TUNED) if name.startswith(incomplete.lower())]

    def get_metavar(self, param: click.Parameter, ctx: click.Context | None = None) -> str:
        """Return what stands for the value in the usage."""
        return "NAME"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:
        """Parse one name."""
        try:
            return TUNED if str(value).strip().lower() == TUNED else grid_name(shorten(value))
        except ValueError as error:
            self.fail(f"{error}.", param, ctx)


class SolverName(Name):
    """The name of a solver, ours or another project's: too many for the usage; the library says what is near others."""

    def get_metavar(self, param: click.Parameter, ctx: click.Context | None = None) -> str:
        """Return what stands for the value in the usage."""
        return "NAME"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:
        """Parse one name."""
        folded = self.normalize_choice(value, ctx)
        if folded in self.choices:
            return folded
        try:
            grid_of(str(value))
        except ValueError as error:
            self.fail(f"{error}.", param, ctx)
        return str(value)


def shorten(value: object, limit: int = 60) -> str:
    """Return one short printable line of a value, for error messages."""
    text = "".join(c if c.isprintable() else "?" for c in str(value))
    return text if len(text) <= limit else text[: limit - 3] + "..."
