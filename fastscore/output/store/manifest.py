"""The manifest of a run: all that its bytes depend on, written once, and how it is cut into shards."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any

from fastscore.errors import short
from fastscore.output.record import MANIFEST, SHARDS
from fastscore.output.store.formats import format_of

if TYPE_CHECKING:
    from fastscore.output.store.place import Place

VERSION = 1
LARGEST = 1 << 26  # bytes of a manifest that is read
DEEPEST = 50  # levels of its values


@dataclass(frozen=True)
class Manifest:
    """What a run is: two of equal manifests have equal bytes.

    Attributes:
        n: number of samples, at least 0.
        ids: their ids as ranges, in order: "0-9999999".
        shard: samples of one shard, at least 1; the last may have fewer.
        format: of a shard: npz, adm-npz, npy, tar or parquet.
        gathered: whether the shards become one samples.npz when all are there.
        what: that samples are a function of: seed, model, conditions, schedule, solver, grid, plan.
        numerics: how they are computed: versions, machine, network, micro-batch.
        argv: the command line that draws it, without where to; None of a run from Python. Two runs may differ in it.
    """

    n: int
    ids: str
    shard: int
    format: str = "npz"
    gathered: bool = False
    what: Mapping[str, Any] = field(default_factory=dict)
    numerics: Mapping[str, Any] = field(default_factory=dict)
    argv: tuple[str, ...] | None = None

    def __post_init__(self) -> None:
        if not (0 <= self.n < 1 << 63 and self.shard >= 1):
            raise ValueError(f"n = {self.n} must be in 0 .. 2**63 - 1 and shard = {self.shard} at least 1")
        format_of(self.format)

    @property
    def count(self) -> int:
        """The number of shards."""
        return -(-self.n // self.shard)

    def span(self, number: int) -> tuple[int, int]:
        """Return the positions of a shard's samples in the run: the first, and the one after the last.

        Raises:
            ValueError: there is no such shard.
        """
        if not 0 <= number < self.count:
            raise ValueError(f"shard {number} must be in 0 .. {self.count - 1}")
        return number * self.shard, min(self.n, (number + 1) * self.shard)

    def part(self, i: int, of: int) -> range:
        """Return the shards of one of N parts: a stretch, so that who draws it looks into few folders.

        Raises:
            ValueError: there is no such part.
        """
        if not 0 <= i < of:
            raise ValueError(f"part {i} of {of} must be in 0 .. {of - 1}")
        return range(self.count * i // of, self.count * (i + 1) // of)

    def name(self, number: int) -> str:
        """Return the name of a shard's file below the run."""
        return f"{SHARDS}/{number // 1000:04d}/{number:07d}.{format_of(self.format).suffix}"

    def number(self, name: str) -> int | None:
        """Return which shard a name is that of, or None."""
        digits = name.rsplit("/", 1)[-1].split(".")[0]
        number = int(digits) if digits.isascii() and digits.isdecimal() and len(digits) < 19 else -1
        return number if 0 <= number < self.count and self.name(number) == name else None

    @cached_property
    def hash(self) -> str:
        """The sha256 of all that bytes depend on; every shard names it."""
        return hashlib.sha256(json.dumps(self._compared(), sort_keys=True).encode()).hexdigest()

    def differences(self, other: Manifest, mixed: bool = False) -> list[str]:
        """Return in words in which keys another manifest differs: "seed: 0 there, 1 here".

        Args:
            other: the one that is there.
            mixed: leave out ``numerics``, in which machines differ.
        """
        mine, theirs = _flat(self._compared()), _flat(other._compared())
        keys = [k for k in sorted({*mine, *theirs}) if not (mixed and k.startswith("numerics"))]
        return [
            f"{k.removeprefix('what.')}: {short(theirs.get(k))} there, {short(mine.get(k))} here"
            for k in keys
            if mine.get(k) != theirs.get(k)
        ]

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON values."""
        return {"manifest": VERSION, **asdict(self), "argv": None if self.argv is None else list(self.argv)}

    @classmethod
    def from_dict(cls, values: Any, where: str = "manifest") -> Manifest:
        """Return the manifest that ``to_dict`` described.

        Raises:
            ValueError: values that describe none.
        """
        kinds = {"n": int, "ids": str, "shard": int, "format": str, "gathered": bool, "what": dict, "numerics": dict}
        if not isinstance(values, dict) or values.get("manifest") != VERSION:
            raise ValueError(f"{where} is no manifest of version {VERSION}; was it written by another fastscore?")
        found = {k: values.get(k) for k in kinds}
        for k, kind in kinds.items():
            if type(found[k]) is not kind:
                raise ValueError(f"{where}: {k} = {short(found[k])} must be a {kind.__name__}")
        argv = values.get("argv")
        if argv is not None and not (isinstance(argv, list) and all(isinstance(v, str) for v in argv)):
            raise ValueError(f"{where}: argv = {short(argv)} must be null or a list of words")
        if max(map(_depth, (found["what"], found["numerics"]))) > DEEPEST:
            raise ValueError(f"{where} is nested deeper than {DEEPEST} levels, which no run's manifest is")
        try:
            return cls(**found, argv=None if argv is None else tuple(argv))  # pyright: ignore[reportArgumentType]
        except ValueError as error:
            raise ValueError(f"{where}: {error}") from None

    @classmethod
    def read(cls, place: Place) -> Manifest | None:
        """Return the manifest of the run that lies at a place; None if there is none.

        Raises:
            ValueError: it cannot be read.
        """
        try:
            data = place.read(MANIFEST)
        except FileNotFoundError:
            return None
        where = f"{place.url.rstrip('/')}/{MANIFEST}"
        try:
            values = json.loads(data[: LARGEST + 1])
        except (ValueError, RecursionError):
            raise ValueError(f"{where} cannot be read; move the run away, or start another") from None
        return cls.from_dict(values, where)

    def write(self, place: Place) -> None:
        """Write it, unless one is there: then that one is the run's, and must be the same."""
        place.create(MANIFEST, (json.dumps(self.to_dict(), indent=1, sort_keys=True) + "\n").encode())

    def _compared(self) -> dict[str, Any]:
        values = json.loads(json.dumps(self.to_dict()))
        return {k: v for k, v in values.items() if k != "argv"}


def machine(device: Any) -> dict[str, str]:
    """Return what the bits of a network depend on beside itself: the processor and the versions of its libraries."""
    import torch

    from fastscore import __version__
    from fastscore.ops.machine import processor
    from fastscore.ops.noise import VERSION as NOISE

    on = torch.cuda.get_device_name(device) if device.type == "cuda" else processor()
    return {"fastscore": __version__, "noise": f"v{NOISE}", "torch": torch.__version__, "device": on}


def _depth(value: Any) -> int:
    """Return how deep a JSON value is nested; at most one level more than is allowed."""
    level, depth = [value], 0
    while level and depth <= DEEPEST:
        inside = (v.values() if isinstance(v, dict) else v for v in level if isinstance(v, dict | list))
        level, depth = [part for parts in inside for part in parts], depth + 1
    return depth


def _flat(values: Mapping[str, Any], above: str = "") -> dict[str, Any]:
    """Return nested values by dotted keys."""
    flat: dict[str, Any] = {}
    for key, value in values.items():
        flat |= _flat(value, f"{above}{key}.") if isinstance(value, dict) and value else {f"{above}{key}": value}
    return flat
