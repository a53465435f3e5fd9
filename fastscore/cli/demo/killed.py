"""The last act: a run of samples that is killed in the middle, gone on with, and the same to the last bit."""

from __future__ import annotations

import hashlib
import json
import shlex
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from fastscore.cli.demo.act import Act, Say, sheet
from fastscore.errors import SelfCheckError
from fastscore.model.folder import load_model
from fastscore.ops.quantize import quantize_ref
from fastscore.report.page import Code, Picture, Section, Table
from fastscore.sampler import Sampler

PATIENCE, LOOK, TRIES = 300.0, 0.01, 3  # seconds for a process; between two looks; runs that end before their kill
TEXT = """
Long runs end early: machines are taken away, jobs run out of time. A run of samples here is drawn in shards, and the
noise of each sample is a function of the seed and the sample's number alone. So the same command goes on with a killed
run where it was, and what comes out is what would have come out: not alike, but the same bytes.

The same images were drawn twice: once and left alone, and once in a process that was killed (SIGKILL, which no program
can refuse) as soon as its first shard was on disk; then the same command was given again.
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
    return sum(1 for _ in (folder / ".run/shards").rglob("*.npz"))


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


def undisturbed(count: int, steps: int) -> tuple[NDArray[np.int64], NDArray[np.uint8]]:
    """Return ids and images of the same run, drawn in this process and left alone."""
    sampler = Sampler(load_model("fashion"), steps=steps, batch=8, network="own")
    x = sampler.run(range(count), 1, labels="random")
    return np.arange(count), quantize_ref(x).numpy()


def digest(ids: NDArray[np.int64], images: NDArray[np.uint8]) -> str:
    """Return the SHA-256 of ids and images."""
    return hashlib.sha256(ids.tobytes() + images.tobytes()).hexdigest()


def act(quick: bool, say: Say, work: Path) -> Act:
    """Kill a run and go on with it; compare it with one that was left alone.

    Raises:
        SelfCheckError: the two differ, or what was there before the kill was drawn again.
    """
    count, steps = (40, 3) if quick else (48, 6)
    argv, total, there, folder = words(count, steps), count // 8, 0, work
    one = digest(*undisturbed(count, steps))
    for k in range(TRIES):
        folder = work / f"run-{k}"
        if there := kill(argv, folder):
            break
    ended = f"killed (SIGKILL) with {there} of {total} shards on disk" if there else "ended before the kill, each time"
    say(f"a run of {count} images in a process of its own: {ended}")
    with started([*argv, "--out", str(folder)]) as again:
        finish(again)
    with np.load(folder / "samples.npz") as saved:
        images, other = saved["samples"], digest(saved["ids"], saved["samples"])
    kept = json.loads((folder / "run.json").read_text())["timings"].get("shards_found", 0)
    say(f"gone on with: {kept} shards kept, {total - kept} drawn; SHA-256 {other[:16]}, left alone {one[:16]}")
    if one != other:
        raise SelfCheckError(
            f"a run that was killed and gone on with has other bytes (SHA-256 {other[:16]}) than one that was left "
            f"alone ({one[:16]}); this machine does not give the bits that fastscore promises: see `fastscore doctor`"
        )
    if kept < there:
        raise SelfCheckError(f"of {there} shards that were on disk at the kill, {kept} were kept")
    command = shlex.join(["fastscore", *argv, "--out", "run"])
    rows = [["left alone", total, 0, one], ["killed and gone on with", total - kept, kept, other]]
    parts = [
        Table(["run", "shards drawn", "kept from before", "SHA-256 of ids and images"], rows, "The hashes are equal."),
        Code(f"{command}\nfastscore status run\n{command}"),
        Picture(sheet(images[:24], 12), f"The first 24 of the {count} images."),
    ]
    figures = {"sha256": other, "equal": one == other, "killed": bool(there)}
    return Act(Section("A run that is killed and gone on with", TEXT, parts), figures)
