"""The last act: a run of samples that is killed in the middle, gone on with, and the same to the last bit."""

from __future__ import annotations

import hashlib
import json
import shlex
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from fastscore.cli.demo.act import Act, Say, sheet
from fastscore.errors import SelfCheckError
from fastscore.report.page import Code, Picture, Section, Table

PATIENCE, LOOK, TRIES = 300.0, 0.01, 3  # seconds for a process; between two looks; runs that end before their kill
TEXT = """
Long runs end early: machines are taken away, jobs run out of time. A run of samples here is drawn in shards, and the
noise of each sample is a function of the seed and the sample's number alone. So the same command goes on with a killed
run where it was, and what comes out is what would have come out: not alike, but the same bytes.

Two processes drew the same images. One was left alone; the other was killed (SIGKILL, which no program can refuse) as
soon as its first shard was on disk, and the same command was given again.
"""


def words(count: int, steps: int) -> list[str]:
    """Return the command line of the run, without where to."""
    return [
        "sample", "fashion", "-n", str(count), "--steps", str(steps), "--batch", "8", "--shard-size", "8",
        "--network", "own", "--device", "cpu", "--seed", "1",
    ]  # fmt: skip


@contextmanager
def started(argv: Sequence[str]) -> Iterator[subprocess.Popen[str]]:
    """Start fastscore in a process of its own, which does not outlive the block, whatever ends that."""
    command = [sys.executable, "-m", "fastscore", *argv, "--quiet"]
    process = subprocess.Popen(
        command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
    )
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


def finish(process: subprocess.Popen[str]) -> None:
    """Wait until a process has ended well.

    Raises:
        OSError: the system could not write, read or hold what the run needs, in the words of the run.
        SelfCheckError: it ended in any other way.
    """
    try:
        error = process.communicate(timeout=PATIENCE)[1].strip()
    except subprocess.TimeoutExpired:
        raise SelfCheckError(f"a run of the demo has not ended within {PATIENCE:.0f} s; this machine hangs") from None
    if process.returncode:
        said = error.splitlines()[-1].removeprefix("fastscore: error: ") if error else f"exit {process.returncode}"
        raise (OSError if process.returncode in (3, 5) else SelfCheckError)(f"a run of the demo failed: {said}")


def shards(folder: Path) -> int:
    """Return how many shards of an unfinished run are on disk."""
    return sum(1 for _ in (folder / ".run").rglob("shards/*.npz"))


def kill(argv: Sequence[str], folder: Path) -> int:
    """Start a run, kill it when its first shard is there, and return how many are: 0 if it ended before the kill."""
    with started([*argv, "--out", str(folder)]) as process:
        deadline = time.monotonic() + PATIENCE
        while process.poll() is None and time.monotonic() < deadline:
            if shards(folder):
                process.kill()
                break
            time.sleep(LOOK)
        process.wait()
        if (folder / "run.json").exists():
            return 0
        if not shards(folder):
            finish(process)
        return shards(folder)


def hashed(folder: Path) -> tuple[str, dict[str, Any]]:
    """Return the SHA-256 of a run's ids and samples, and its record."""
    with np.load(folder / "samples.npz") as saved:
        digest = hashlib.sha256(saved["ids"].tobytes())
        digest.update(saved["samples"].tobytes())
    return digest.hexdigest(), json.loads((folder / "run.json").read_text())


def act(quick: bool, say: Say, work: Path) -> Act:
    """Kill a run and go on with it; compare it with one that was left alone.

    Raises:
        SelfCheckError: the two differ, or what was there before the kill was drawn again.
    """
    count, steps = (40, 4) if quick else (64, 6)
    argv, folders = words(count, steps), [work / "undisturbed", work / "killed"]
    with ExitStack() as stack:
        undisturbed = stack.enter_context(started([*argv, "--out", str(folders[0])]))
        there = 0
        for k in range(TRIES):
            folders[1] = work / f"killed-{k}"
            if there := kill(argv, folders[1]):
                break
        total = count // 8
        if there:
            say(f"a run of {count} images: killed (SIGKILL) with {there} of {total} shards on disk")
        else:
            say(f"a run of {count} images: ended each time before the kill, on this machine")
        with started([*argv, "--out", str(folders[1])]) as again:
            finish(again)
        finish(undisturbed)
    (one, _), (other, record) = map(hashed, folders)
    kept = record["timings"].get("shards_found", 0)
    say(f"gone on with: {total - kept} shards drawn, {kept} kept; SHA-256 {other[:16]}, undisturbed {one[:16]}")
    if one != other:
        raise SelfCheckError(
            f"a run that was killed and gone on with has other bytes (SHA-256 {other[:16]}) than one that was left "
            f"alone ({one[:16]}); this machine does not give the bits that fastscore promises: see `fastscore doctor`"
        )
    if there and kept < there:
        raise SelfCheckError(f"of {there} shards that were on disk before the kill, {kept} were kept")
    with np.load(folders[1] / "samples.npz") as saved:
        images = saved["samples"]
    rows = [["left alone", total, 0, one], ["killed and gone on with", total - kept, kept, other]]
    command = shlex.join(["fastscore", *argv, "--out", "run"])
    parts = [
        Table(
            ["run", "shards drawn at the end", "kept from before", "SHA-256 of ids and samples"], rows, "Equal hashes."
        ),
        Code(
            f"{command}\nfastscore status run    # how far it is, while it runs or after it was ended\n{command}    # goes on"
        ),
        Picture(sheet(images[:16], 8), f"The first 16 of the {count} images."),
    ]
    figures = {"sha256": other, "equal": one == other, "killed": bool(there)}
    return Act(Section("A run that is killed and gone on with", TEXT, parts), figures)
