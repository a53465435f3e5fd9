"""Processes of this machine that draw one run: whoever of them is killed is started again, and loses one shard."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import IO, Any

from fastscore.errors import Coded
from fastscore.output.load import cores
from fastscore.output.store.formats import Shard
from fastscore.output.store.job import Job
from fastscore.output.store.lease import Leases
from fastscore.output.store.place import Place
from fastscore.output.store.work import Beat, Stopped, Tally, present, work

LOOK, PATIENCE, RESTARTS = 0.2, 10.0, 5  # seconds; seconds until a process is killed; deaths in a row without a shard


class WorkerError(Coded):
    """A worker ended with an error of its own; the message is its last line.

    Attributes:
        code: its exit code.
    """

    def __init__(self, code: int, message: str) -> None:
        super().__init__(message)
        self.code = code


@dataclass
class Worker:
    """A process, what it was started with, and what it says."""

    process: subprocess.Popen[bytes]
    said: IO[bytes]
    number: int


def crew(
    argv: Sequence[str], workers: int, devices: Sequence[int] | None, part: tuple[int, int] = (0, 1)
) -> Callable[[Job, Place, Beat], Tally]:
    """Return what draws a run by processes: (job, place, beat) -> what was done.

    Args:
        argv: words of the command line that draws the run, after ``fastscore``.
        workers: how many processes, at least 1.
        devices: CUDA devices, in turn; None for what the command line says.
        part: (i, N), of the run.
    """

    def start(number: int, place: Place) -> Worker:
        spec = f"{number}:{workers}:{part[0]}:{part[1]}:{os.getpid()}:{place.url}"
        environment = dict(os.environ)
        if devices:
            environment["CUDA_VISIBLE_DEVICES"] = _visible(devices[number % len(devices)])
        elif "OMP_NUM_THREADS" not in environment:
            environment["OMP_NUM_THREADS"] = str(threads(workers))
        said = tempfile.TemporaryFile()
        process = subprocess.Popen(
            [sys.executable, "-m", "fastscore", *argv, "--worker", spec],
            env=environment, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=said, start_new_session=True,
        )  # fmt: skip
        return Worker(process, said, number)

    def draw(job: Job, place: Place, beat: Beat) -> Tally:
        manifest, begun = job.manifest, time.perf_counter()
        mine = set(manifest.part(*part))
        there = present(place, manifest, mine) & mine
        tally, deaths, running = Tally(found=len(there)), 0, list[Worker]()
        try:
            for k in range(workers if mine - there else 0):
                running.append(start(k, place))
            while running:
                time.sleep(LOOK)
                looked = time.perf_counter()
                new = present(place, manifest, mine - there) & (mine - there)
                there |= new
                samples = sum(last - first for first, last in map(manifest.span, new))
                tally.drawn, tally.samples = tally.drawn + len(new), tally.samples + samples
                beat(samples, len(new))  # of none too: time goes on for who looks on
                if new:
                    deaths, tally.first = 0, tally.first or time.perf_counter() - begun
                if mine <= there:
                    break
                for worker in [w for w in running if w.process.poll() is not None]:
                    running.remove(worker)
                    code = worker.process.returncode
                    if code == 0:
                        continue
                    deaths += 1
                    if (code > 0 and code not in (75, 137, 143)) or deaths > RESTARTS:
                        raise WorkerError(code if code > 0 else 75, _last_line(worker, code))
                    running.append(start(worker.number, place))
                time.sleep(min(5.0, 20 * (time.perf_counter() - looked)))  # looking costs a twentieth of the time
            there |= present(place, manifest, mine - there)
            if not mine <= there:
                raise WorkerError(75, "the workers ended, and shards are missing; the same command goes on")
        finally:
            end([worker.process for worker in running])
        Leases(place, "crew").clear(there)
        return tally

    return draw


def serve(
    job: Job,
    place: Place,
    number: int,
    workers: int,
    part: tuple[int, int],
    parent: int,
    kept: Callable[[Shard], None],
) -> Tally:
    """Be a worker: draw what is missing until all is there or the process that started this one is gone."""

    def orphaned(samples: float = 0.0, shards: int = 0) -> None:
        if os.getppid() != parent:
            raise Stopped("the process that started this worker is gone")

    orphaned()
    shards = len(job.manifest.part(*part))
    leases = Leases(place, f"worker {number} of {workers}")
    return work(job, place, part=part, leases=leases, start=number * shards // workers, beat=orphaned, kept=kept)


def end(processes: Sequence[subprocess.Popen[Any]]) -> None:
    """End processes in order, and those that do not end after PATIENCE seconds at once."""
    for process in processes:
        with suppress(ProcessLookupError):
            process.send_signal(signal.SIGTERM)
    late = time.monotonic() + PATIENCE
    for process in processes:
        try:
            process.wait(max(0.0, late - time.monotonic()))
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def threads(workers: int) -> int:
    """Return how many threads each of some workers gets of the cores that this process may use."""
    return max(1, cores() // workers)


def _visible(device: int) -> str:
    """Return a device by the name that CUDA_VISIBLE_DEVICES has for it."""
    names = [name for name in os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",") if name]
    return names[device] if device < len(names) else str(device)


def _last_line(worker: Worker, code: int) -> str:
    worker.said.seek(0)
    lines = [line for line in worker.said.read().decode(errors="replace").splitlines() if line.strip()]
    line = lines[-1].strip().removeprefix("fastscore: error: ") if lines else "it said nothing"
    return f"worker {worker.number} ended with {code if code > 0 else f'signal {-code}'}: {line}"
