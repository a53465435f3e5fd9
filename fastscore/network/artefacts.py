"""What torch.compile makes, kept in this user's cache for later processes: one file a key, read whole or not at all.

It is native code, and Python that torch runs, so the rules are those of packages (see network/cache.py). torch keeps
the same in ``inductor/``, file by file; that folder is scratch, cleared by size. Before version 2.7 it is all there is.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Generator
from contextlib import contextmanager, nullcontext
from typing import Any

import torch

from fastscore.network import cache as files
from fastscore.network import package


@contextmanager
def kept(key: str, say: files.Say) -> Generator[bool]:
    """Compile with what an earlier process made for this key, and keep what had to be made anew.

    Yields whether there is any; before torch 2.7 nobody knows.

    Args:
        key: code, versions, device and shapes; not weights.
        say: called with one line when something cannot be read or kept.
    """
    files.inductor(say)
    if not hasattr(torch.compiler, "save_cache_artifacts"):
        yield False
        return
    had = _load(key, say)
    with _alone():
        yield bool(had)
        _save(key, had, say)


def _load(key: str, say: files.Say) -> set[str]:
    """Hand torch what is kept for a key; return the names of its parts."""
    try:
        note = files.private("networks", make=False) / f"{files.checked_name(key)}.json"
        file, data = files.whole(note, json.loads(files.read(note)))
        info = torch.compiler.load_cache_artifacts(data)
        if info is None:
            raise ValueError("torch cannot read it")
    except FileNotFoundError:
        return set()
    except Exception as error:  # of the file, or whatever torch makes of it
        say(f"compiled network {key} ignored: {package.one_line(error)}")
        return set()
    files.used(file)
    files.used(note)
    return _parts(info)


def _save(key: str, had: set[str], say: files.Say) -> None:
    """Keep what torch has compiled, if any of it is new."""
    try:
        made = torch.compiler.save_cache_artifacts()
        if made is None or _parts(made[1]) <= had:
            return
        data, home = made[0], package.folder()
        digest = hashlib.sha256(data).hexdigest()
        name = f"{key}-{digest[:8]}{package.KINDS[1]}"  # its own, so that two processes never mix halves
        files.write(home / name, data)
        files.write(home / f"{key}.json", (json.dumps({"file": name, "sha256": digest}) + "\n").encode())
        package.tidy(home)
    except Exception as error:  # as above; it is compiled again next time
        say(f"what torch compiled is not kept: {package.one_line(error)}")


def _parts(info: Any) -> set[str]:
    return {f"{kind} {part}" for kind, parts in info.artifacts.items() for part in parts}


def _alone() -> Any:
    """Return a context in which torch collects this compilation alone, not all that the process has compiled."""
    try:
        from torch.compiler._cache import CacheArtifactManager

        return CacheArtifactManager.with_fresh_cache()
    except (ImportError, AttributeError):  # a private name; without it the file is larger
        return nullcontext()
