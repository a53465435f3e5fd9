"""The first minutes on a GPU: everything that only a card can answer, in one call.

    python bench/first_gpu.py --out DIR --budget 540 [--only P4,P5] [--dry]

One process a phase, each with its share of the seconds that are left and a hard limit; what hangs or crashes is
ended, and the next phase begins. Every result is a line of DIR/records.jsonl as soon as it is there; DIR/log has all
output; DIR/summary.md is written after each phase and at the end, also when this is stopped by SIGTERM or SIGINT.

It needs torch, triton and NumPy, and neither an install nor a network. FASTSCORE_COMMIT names the commit where there
is no git. --dry runs the same code on a CPU at tiny sizes. The exit code is 0 if nothing failed, 1 if something did,
and 3 if there is no GPU.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import Any

if not __package__:  # run by its path, not as a module
    # bench is found after what is installed: fastscore without an install has no kernels
    sys.path.append(str(Path(sys.path.pop(0)).resolve().parent))

from bench.card import lines, summary
from bench.card.plan import PHASES, Phase

ROOT = Path(__file__).resolve().parents[1]
ENTRY = ROOT / "bench" / "card"
RESERVE = 5.0  # seconds at the end, for the summary
GRACE = 20.0  # that a timed phase waits for what runs beside the ones before it
# What fastscore imports and no phase needs: a machine without them gets modules of empty classes.
STANDINS = ("tqdm", "safetensors", "safetensors.torch", "PIL")
STANDIN = '''"""A stand-in: this machine lacks the package."""
def __getattr__(name):
    if name.startswith("__"):
        raise AttributeError(name)
    return type(name, (Exception,), {})
'''
PROBE = (
    f"NAMES = {[(name, f'import {name}') for name in STANDINS]}"
    + """
import json
found = {}
for name, work in (("kernels", "import fastscore.kernels.abi"), ("cuda", "import torch; torch.cuda.init()"), *NAMES):
    try:
        exec(work)
        found[name] = True
    except BaseException:
        found[name] = False
print(json.dumps(found))
"""
)


def say(text: str) -> None:
    """Print it, if anybody still reads."""
    with suppress(OSError):
        print(text, flush=True)


class Stopped(Exception):
    """A signal says to end; its number is the argument."""


@dataclass
class Child:
    """The process of a phase, and the thread that copies its output."""

    phase: Phase
    process: subprocess.Popen[bytes]
    begun: float
    ended: float | None = None
    pump: threading.Thread | None = None


@dataclass
class Run:
    """One run of phases.

    Args:
        out: the folder of its records.
        budget: seconds of all phases together.
        dry: on a CPU.
        now: the clock.
    """

    out: Path
    budget: float
    dry: bool
    now: Callable[[], float] = time.monotonic
    environment: dict[str, str] = field(default_factory=lambda: dict(os.environ))
    children: list[Child] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.end = self.now() + self.budget

    def left(self) -> float:
        """Return how many seconds phases still have."""
        return self.end - RESERVE - self.now()

    def all(self, phases: Sequence[Phase]) -> None:
        """Run them; each gets its share of what is left, so that what one does not use the others have."""
        for k, phase in enumerate(phases):
            rest, quiet = phases[k:], []
            for later in phases[k + 1 :]:
                if later.timed:
                    break
                quiet.append(later)
            if phase.timed:
                self.join()
            each = self.left() / max(1e-9, sum(p.seconds for p in rest))
            if phase.beside:
                if quiet:  # else nothing runs that it could run beside
                    self.start(phase, each * sum(p.seconds for p in quiet))
                continue
            seconds = each * phase.seconds
            if self.left() < 1.0:
                self.put(phase, "not begun: no time left", 0.0, None)
            else:
                self.finish(self.start(phase, seconds), min(self.left(), 1.2 * seconds + 3.0))
            summary.write(self.out, phases)
        self.join()

    def start(self, phase: Phase, seconds: float) -> Child:
        """Begin a phase in a process group of its own."""
        command = [sys.executable, "-X", "faulthandler", str(ENTRY), phase.module, "--name", phase.name]
        command += ["--out", str(self.out), "--seconds", f"{seconds:.1f}", *(["--dry"] if self.dry else [])]
        say(f"== {phase.name}: {phase.answers}; {seconds:.0f} s")
        pipes = {"stdin": subprocess.DEVNULL, "stdout": subprocess.PIPE, "stderr": subprocess.STDOUT}
        process = subprocess.Popen(command, cwd=ROOT, env=self.environment, start_new_session=True, **pipes)
        child = Child(phase, process, self.now())
        child.pump = threading.Thread(target=self.copy, args=(child,), daemon=True)
        child.pump.start()
        self.children.append(child)
        return child

    def copy(self, child: Child) -> None:
        """Write a phase's output to DIR/log and to here, line by line."""
        output = child.process.stdout
        assert output is not None
        with (self.out / "log").open("ab", buffering=0) as log:
            for line in output:
                log.write(line)
                with suppress(OSError, ValueError):  # nobody reads here any more
                    sys.stdout.buffer.write(line)
                    sys.stdout.flush()
        child.ended = self.now()

    def join(self) -> None:
        """Wait a little for what runs beside, then end it."""
        for child in [c for c in self.children if c.phase.beside]:
            self.finish(child, min(GRACE, max(0.0, self.left())))

    def finish(self, child: Child, limit: float) -> None:
        """Wait for a phase, end it at its limit, and record how it ended."""
        try:
            code = child.process.wait(max(0.0, limit))
            ended = "finished" if code == 0 else f"crashed: exit code {code}"
            if code < 0:
                ended = f"crashed: {signal.Signals(-code).name}"
        except subprocess.TimeoutExpired:
            ended, code = "ended at its limit", None
        self.kill(child, code is None)
        self.put(child.phase, ended, (child.ended or self.now()) - child.begun, code == 0)

    def kill(self, child: Child, hung: bool) -> None:
        """End a phase's processes; one that hangs first says where, through faulthandler."""
        if hung:
            child.process.send_signal(signal.SIGABRT)
            with suppress(subprocess.TimeoutExpired):
                child.process.wait(2.0)
        with suppress(ProcessLookupError, PermissionError):
            os.killpg(child.process.pid, signal.SIGKILL)
        child.process.wait()
        if child.pump is not None:
            child.pump.join(2.0)
        self.children.remove(child)

    def put(self, phase: Phase, ended: str, seconds: float, ok: bool | None) -> None:
        """Record how a phase ended."""
        say(f"== {phase.name}: {ended}, {seconds:.1f} s")
        facts = {"phase": phase.name, "item": lines.END, "ok": ok, "dry": self.dry}
        lines.write(self.out, {**facts, "ended": ended, "seconds": seconds})


def prepared(scratch: Path, dry: bool) -> tuple[dict[str, str], dict[str, Any]]:
    """Return the environment of every phase, with caches of this run's own, and what a first look found.

    fastscore that is not installed has no kernels: a folder of links that has them then goes before everything.
    """
    env = {**os.environ, "PYTHONUNBUFFERED": "1"}
    env |= {name: str(scratch / name.lower()) for name in ("TRITON_CACHE_DIR", "TORCHINDUCTOR_CACHE_DIR")}
    env["XDG_CACHE_HOME"] = str(scratch / "cache")
    if dry:
        env |= {"CUDA_VISIBLE_DEVICES": "", "FASTSCORE_BACKEND": "reference", "OMP_NUM_THREADS": "1"}
    try:
        probe = subprocess.run([sys.executable, "-c", PROBE], cwd=scratch, env=env, capture_output=True, timeout=180)
        found = json.loads(probe.stdout.splitlines()[-1])
    except (subprocess.TimeoutExpired, ValueError, IndexError):
        found = {}  # the phases will say what is wrong
    site = scratch / "site"
    if not found.get("kernels", True):
        (site / "fastscore").mkdir(parents=True)
        for path in (ROOT / "fastscore").iterdir():
            (site / "fastscore" / path.name).symlink_to(path)
        with suppress(FileExistsError):
            (site / "fastscore" / "kernels").symlink_to(ROOT / "kernels")
    for name in (name for name in STANDINS if not found.get(name, True)):
        file = site / (name.replace(".", "/") + ".py" if "." in name else f"{name}/__init__.py")
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(STANDIN)
    env["PYTHONPATH"] = os.pathsep.join(filter(None, [str(site) if site.exists() else "", env.get("PYTHONPATH", "")]))
    return env, found


def folder(text: str) -> Path:
    """Return a folder that an option names; an empty text, as of a variable that is not set, names none."""
    if not text.strip():
        raise argparse.ArgumentTypeError("give a folder")
    return Path(text)


def main(arguments: list[str] | None = None, phases: Sequence[Phase] = PHASES) -> int:
    """Run phases; return the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=folder, required=True, help="a folder without records of another run")
    parser.add_argument("--budget", type=float, default=540.0, metavar="S", help="seconds of it all (540)")
    parser.add_argument("--only", default="", metavar="P4,P5", help="these phases; all if left out")
    parser.add_argument("--dry", action="store_true", help="on the CPU, tiny: figures mean nothing")
    args = parser.parse_args(arguments)
    names = [name.strip() for name in args.only.split(",") if name.strip()]
    unknown = [name for name in names if name not in [p.name for p in phases]]
    if unknown:
        parser.error(f"no phase {', '.join(unknown)}; there are {', '.join(p.name for p in phases)}")
    if not 0.0 < args.budget < float("inf"):
        parser.error(f"--budget {args.budget} must be a positive number of seconds")
    if args.only and not names:
        parser.error(f"--only {args.only!r} names no phase; leave it out for all")
    chosen = [p for p in phases if not names or p.name in names]
    try:
        if (args.out / lines.NAME).exists():
            parser.error(f"--out {args.out} has the records of another run; give another folder")
        args.out.mkdir(parents=True, exist_ok=True)
        (args.out / "log").open("ab").close()
        summary.write(args.out, chosen)  # what it cannot write is told now, not when a card has answered
    except OSError as error:
        parser.error(f"--out {args.out} cannot be written ({error.strerror}); give another folder")
    return watched(Run(args.out.resolve(), args.budget, args.dry), chosen)


def watched(run: Run, phases: Sequence[Phase]) -> int:
    """Run phases; whatever happens, end their processes and write the summary."""

    def stop(number: int, frame: FrameType | None) -> None:
        for name in (signal.SIGTERM, signal.SIGINT):
            signal.signal(name, signal.SIG_IGN)
        raise Stopped(number)

    before = {name: signal.signal(name, stop) for name in (signal.SIGTERM, signal.SIGINT)}
    scratch, code = Path(tempfile.mkdtemp()), 0
    try:
        run.environment, found = prepared(scratch, run.dry)
        if not run.dry and not found.get("cuda", True):
            say("no CUDA device on this machine; --dry runs on a CPU")
            return 3
        run.all(phases)
    except Stopped as stopped:
        code = 128 + int(stopped.args[0])
    finally:
        for child in list(run.children):  # a signal, or an error of this file
            run.kill(child, hung=False)
            run.put(child.phase, "stopped", run.now() - child.begun, False)
        for name, handler in before.items():
            signal.signal(name, handler)
        text = summary.write(run.out, phases)
        shutil.rmtree(scratch, ignore_errors=True)
    say(text)
    return code or int(any(record["ok"] is False for record in lines.load(run.out)))


if __name__ == "__main__":
    sys.exit(main())
