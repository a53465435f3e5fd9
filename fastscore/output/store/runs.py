"""Complete runs as their shards, however they lie; and one run of the parts that were drawn apart."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from fastscore.output.commit import LASTING, settle
from fastscore.output.record import MANIFEST, RECORD
from fastscore.output.store.folder import Folder
from fastscore.output.store.formats import Shard
from fastscore.output.store.gather import read_shard, recorded, scatter
from fastscore.output.store.manifest import Manifest
from fastscore.output.store.place import Place, place_of
from fastscore.output.store.work import keep, present


def shards_of(where: Path | str) -> tuple[Manifest, Iterator[Shard]]:
    """Return the manifest of a complete run, and its shards in order, read one at a time.

    Args:
        where: a folder or an address as ``place_of`` takes them; its samples may be in shards, or in one samples.npz.

    Raises:
        ValueError: there is no run, or it lacks shards.
        DamagedError: while they are read: a shard is not what was written.
    """
    place = place_of(where)
    if isinstance(place, Folder):
        settle(place.path)
        found = recorded(place.path)
        if found is not None and found[0].gathered:
            return found[0], iter(scatter(place.path, found[0]))
        if found is None and (place.path / LASTING).is_dir():
            raise ValueError(f"the run in {where} is not complete; the command that began it goes on with it")
    manifest = _manifest(place)
    there = present(place, manifest)
    if len(there) < manifest.count:
        raise ValueError(
            f"{where} holds {len(there)} of {manifest.count} shards; the command that began the run draws the rest"
        )
    return manifest, (read_shard(place, manifest, number) for number in range(manifest.count))


def merge(sources: Sequence[Place], out: Place) -> tuple[Manifest, set[int]]:
    """Copy the shards of partial runs of one manifest to one place; return it, and the shards that are there then.

    Every shard is checked as it is read. What is there already stays, and must be the same; so a merge that was ended
    is gone on with by the same call.

    Args:
        sources: at least one.

    Raises:
        ValueError: a place without a run in shards, or with one of another manifest; the message names what differs.
        DamagedError: a shard is not what was written.
        SelfCheckError: two parts have the same shard with other bytes.
    """
    first = _manifest(sources[0])
    for place in (*sources[1:], out):
        other = Manifest.read(place) if place is out else _manifest(place)
        if other is not None and other.hash != first.hash:
            differences = "; ".join(first.differences(other)[:4])
            raise ValueError(
                f"{place.url} holds another run than {sources[0].url} ({differences}); only parts of one are merged"
            )
    first.write(out)
    there = present(out, first)
    for place in sources:
        for number in sorted(present(place, first)):
            shard = read_shard(place, first, number)
            keep(out, first, shard)
            there.add(number)
    return first, there


def _manifest(place: Place) -> Manifest:
    """Return the manifest of the run in shards at a place; raises ValueError if there is none."""
    manifest = Manifest.read(place)
    if manifest is None:
        raise ValueError(f"{place.url} holds no run: it has no {MANIFEST}, nor a {RECORD} with what is in one")
    return manifest
