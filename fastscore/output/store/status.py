"""How a run stands: what is there of it, who is at what, and how to go on. It reads, and changes nothing.

Of a folder it costs no torch.
"""

from __future__ import annotations

import os
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fastscore.output.commit import COMMITTED, LASTING, LOCK
from fastscore.output.lock import holder
from fastscore.output.record import MANIFEST, RECORD
from fastscore.output.store.folder import Folder
from fastscore.output.store.gather import SAMPLES, recorded
from fastscore.output.store.lease import Held, held
from fastscore.output.store.manifest import Manifest
from fastscore.output.store.place import Place, place_of
from fastscore.output.store.work import CONFLICTS, present

MOST = 1000  # leases that are read


@dataclass(frozen=True)
class Status:
    """What is there of a run.

    Attributes:
        run: folder or address, as it was given.
        manifest: of the run.
        shards, samples: how many are there; the manifest says of how many.
        leases: of its shards, at most MOST.
        conflicts: names of files that hold a shard with other bytes than the one that is there.
        state: "complete", as its record says; "shared", of commands that each draw a part; "unfinished", of one command
            that ended or is under way; "replacing", the same where an earlier run is complete; "committed", all drawn
            and not yet put in place.
        process: (number, host) of the one command that is under way.
        next: the unfinished run that is to replace this complete one.
    """

    run: str
    manifest: Manifest
    shards: int
    samples: int
    leases: tuple[Held, ...] = ()
    conflicts: tuple[str, ...] = ()
    state: str = "shared"
    process: tuple[int, str] | None = None
    next: Status | None = None

    @property
    def complete(self) -> bool:
        """Whether all of it is there, and in its place."""
        return self.state in ("complete", "shared") and self.shards == self.manifest.count

    @property
    def command(self) -> str | None:
        """The command that goes on with it, as a line of a shell; None of a run from Python."""
        if self.state == "complete":
            return shlex.join(["fastscore", "verify", self.run, "--repair"])
        if self.manifest.argv is None:
            return None
        more = {"shared": ["--shard", "0/1"], "replacing": ["--fresh"]}.get(self.state, [])
        return shlex.join(["fastscore", *self.manifest.argv, *more, "--out", self.run])

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON values."""
        manifest, what = self.manifest, self.manifest.what
        unfinished = None if self.next is None else self.next.to_dict()
        return {
            "run": self.run,
            "complete": self.complete,
            "state": self.state,
            "format": manifest.format,
            "shards": {"there": self.shards, "of": manifest.count, "samples": manifest.shard},
            "samples": {"there": self.samples, "of": manifest.n, "ids": manifest.ids},
            "model": manifest.argv[1] if manifest.argv and len(manifest.argv) > 1 else what.get("model"),
            **{k: what.get(k) for k in ("seed", "solver", "schedule", "grid")},
            "leases": [vars(lease) for lease in self.leases],
            "conflicts": list(self.conflicts),
            "process": None if self.process is None else {"pid": self.process[0], "host": self.process[1]},
            "command": None if self.complete else self.command,
            **({} if unfinished is None else {"unfinished": unfinished}),
        }

    def lines(self) -> Iterator[str]:
        """Yield it in words, for people."""
        values, manifest = self.to_dict(), self.manifest
        yield f"{self.run}: {'complete' if self.complete else 'not complete'}"
        yield f"  {self.samples:,} of {manifest.n:,} samples, {self.shards:,} of {manifest.count:,} shards"
        told = {name: values[name] for name in ("model", "seed", "solver", "schedule")}
        yield f"  {', '.join(f'{name} {value}' for name, value in told.items() if value is not None)}"
        if self.process is not None:
            yield f"  process {self.process[0]} on {self.process[1]} is at it"
        for lease in self.leases[:20]:
            yield f"  shard {lease.shard}: {lease.owner} on {lease.host}, sign of life {lease.age:.0f} s ago"
        if len(self.leases) > 20:
            yield f"  and {len(self.leases) - 20} more (--json has them)"
        for name in self.conflicts[:20]:
            yield f"  conflict: {name} has other bytes than the shard that is there"
        if self.next is not None:
            yield "  and, to replace it, an unfinished run:"
            yield from (f"  {line}" for line in self.next.lines())
        if not self.complete and self.process is None:
            yield f"  go on with: {self.command or 'the same call of fastscore.draw; it was begun in Python'}"


def status(run: Path | str) -> Status:
    """Return how the run at a place stands.

    Args:
        run: a folder or an address as ``place_of`` takes them.

    Raises:
        ValueError: there is no run, or none with a manifest.
        ImportError: a bucket without the extra "objects".
        OSError: the place cannot be read.
    """
    name, place = os.fspath(run), place_of(run)
    if not isinstance(place, Folder):
        return _of(name, place, _manifest(place), "shared")
    folder, process, found = place.path, holder(place.path / LOCK), recorded(place.path)
    unfinished = _unfinished(name, folder, process, "unfinished" if found is None else "replacing")
    if found is not None:
        manifest = found[0]
        if not manifest.gathered:
            return _of(name, place, manifest, "complete", next=unfinished)
        count, n = (manifest.count, manifest.n) if (folder / SAMPLES).is_file() else (0, 0)
        return Status(name, manifest, count, n, state="complete", next=unfinished)
    if unfinished is not None:
        return unfinished
    if (folder / RECORD).exists() and not (folder / MANIFEST).exists():
        raise ValueError(
            f"{name} holds a {RECORD} without a manifest, of another command than sample and inpaint or of an earlier "
            "version: such a run is complete when that file is there"
        )
    return _of(name, place, _manifest(place), "shared", process)


def _unfinished(name: str, folder: Path, process: tuple[int, str] | None, state: str) -> Status | None:
    """Return the run that one command has begun in a folder, if there is one."""
    found = recorded(folder / COMMITTED / "new")
    if found is not None:
        return Status(name, found[0], found[0].count, found[0].n, state="committed", process=process)
    for where in (folder / LASTING, folder / LASTING / "new"):
        if where.is_dir() and not where.is_symlink() and (manifest := Manifest.read(Folder(where))) is not None:
            return _of(name, Folder(where), manifest, state, process)
    return None


def _of(
    name: str,
    place: Place,
    manifest: Manifest,
    state: str,
    process: tuple[int, str] | None = None,
    next: Status | None = None,
) -> Status:
    """Return how a run in shards stands."""
    there = present(place, manifest)
    last = manifest.count - 1
    samples = len(there) * manifest.shard - (manifest.count * manifest.shard - manifest.n if last in there else 0)
    leases = tuple(lease for lease in held(place, MOST) if lease.shard not in there)
    conflicts = tuple(sorted(entry.name for entry in place.entries(f"{CONFLICTS}/")))
    return Status(name, manifest, len(there), samples, leases, conflicts, state, process, next)


def _manifest(place: Place) -> Manifest:
    manifest = Manifest.read(place)
    if manifest is None:
        raise ValueError(f"{place.url} holds no run: neither {MANIFEST} nor {RECORD} is there")
    return manifest
