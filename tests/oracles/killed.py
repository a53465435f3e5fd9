"""A command that notes the shards it draws and kills itself at a point: ``killed.py NOTES POINT KIND WORDS..``."""

from __future__ import annotations

import os
import signal
import sys
import threading

from fastscore.output.store import folder
from fastscore.output.store.folder import Folder
from fastscore.output.store.job import Job

SIGNAL = signal.SIGKILL
POINTS = ("written", "synced", "linked")  # of a Folder; in a bucket the first is before a request, the others after


def command(notes: str, point: str, kind: str, words: list[str]) -> None:
    """Run a command line of fastscore.

    Args:
        notes: a file to which the number of each shard that is drawn is added.
        point: where it dies; "" for nowhere.
        kind: the beginning of the name of the file at which it dies: "shards/", or "leases/".
    """
    making, draw, create = threading.local(), Job.draw, Folder.create
    handle = os.open(notes, os.O_CREAT | os.O_WRONLY | os.O_APPEND)

    def at(reached: str) -> None:
        if reached == point and getattr(making, "name", "").startswith((kind, "shards/")):  # at the first shard at last
            os.kill(os.getpid(), SIGNAL)

    def named(self: Folder, name: str, data: bytes) -> bool:
        making.name = name
        return create(self, name, data)

    def noted(self: Job, number: int, *rest: object) -> object:
        shard = draw(self, number, *rest)  # pyright: ignore[reportArgumentType]
        os.write(handle, b"%d\n" % number)
        return shard

    folder._at, Folder.create, Job.draw = at, named, noted  # pyright: ignore[reportAttributeAccessIssue]
    if any(word.startswith("s3://") for word in words):
        in_buckets(at, making)
    from fastscore.cli import main

    main(words)


def in_buckets(at, making) -> None:
    """Reach the points around the requests that make an object."""
    import obstore

    put = obstore.put

    def reaching(store, key, data, **options):
        making.name = key[key.find("/") + 1 :] if options.get("mode") == "create" else "other"
        at("written")
        done = put(store, key, data, **options)
        at("synced")
        at("linked")
        return done

    obstore.put = reaching


if __name__ == "__main__":
    command(sys.argv[1], sys.argv[2], sys.argv[3], sys.argv[4:])
