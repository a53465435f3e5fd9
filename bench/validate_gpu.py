"""Validate this machine's GPU with one command: self-check, tests, memory checker, bench; one report.

    python bench/validate_gpu.py [--budget 1800] [--out DIR] [--quick]

Every step has its share of the seconds that are left, and is ended at its limit. Its output goes to a file of DIR as
it comes, and DIR/validation.json and .md are written after each step, so that a run that is killed leaves a report.
DIR is bench/results/validation-<device> if left out, and records go to bench/results then. Exit code 0 if everything
passed, 1 if not, 3 if there is no GPU. A step that cannot run, or has no time left, says why and does not count as
passed.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path

if not __package__:  # run by its path, not as a module
    sys.path[0] = str(Path(__file__).resolve().parents[1])

import torch

from bench import report
from bench.card.spare import ENTRY, ERROR, MEMORY
from bench.records import ROOT, environment, load, results_file

TAIL = 40  # lines of a step's output that the report keeps
LATE = -1  # the exit code of a step that was ended at its limit
Run = Callable[[Sequence[str], float, Path], int]
CHECK = (
    "import torch; from fastscore.ops.backend import resolve; from fastscore.engine.selfcheck import checks; "
    "device = torch.device('cuda'); [*map(print, checks(device, resolve('auto', device)))]"
)


@dataclass(frozen=True)
class Step:
    """One step before it runs.

    Attributes:
        name: in the report.
        share: of the budget, in seconds of a run of 600.
        command: what it runs, for so many seconds at most.
        lacks: why it cannot run.
    """

    name: str
    share: float
    command: Callable[[float], Sequence[str]]
    lacks: str = ""


@dataclass(frozen=True)
class Result:
    """What one step did; ``passed`` is None if it could not run."""

    name: str
    command: str
    passed: bool | None
    seconds: float
    output: str


def run_here(command: Sequence[str], seconds: float, log: Path) -> int:
    """Run a command in the repository, its output in a file; end it and what it began after so many seconds."""
    with log.open("wb") as file:
        process = subprocess.Popen(command, cwd=ROOT, stdout=file, stderr=subprocess.STDOUT, start_new_session=True)
        try:
            return process.wait(seconds)
        except subprocess.TimeoutExpired:
            return LATE
        finally:
            with suppress(ProcessLookupError, PermissionError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def steps(out: Path, records: Path, quick: bool) -> list[Step]:
    """Return every step; the quickest that can fail comes first."""
    python = sys.executable
    # Without torch's caching allocator each tensor is an allocation, so that a stray access shows.
    guard = ["env", "PYTORCH_NO_CUDA_MEMORY_CACHING=1", "compute-sanitizer", "--error-exitcode", str(ERROR)]
    bits = [python, str(ENTRY), "bench.card.bits", "--only", ";".join(MEMORY), "--out", str(out / "memcheck")]
    measure = [python, str(ROOT / "bench" / "run.py"), "--device", "cuda", "--json", str(records)]
    measure += ["--quick"] * quick

    def bench(*words: str) -> Callable[[float], Sequence[str]]:
        return lambda seconds: [*measure, *words, "--budget", f"{0.9 * seconds:.0f}"]

    return [
        Step("self-check", 30, lambda seconds: [python, "-c", CHECK]),
        Step("pytest -m gpu", 180, lambda seconds: [python, "-m", "pytest", "-q", "-m", "gpu", "tests"]),
        Step("bench, TF32 as torch has it", 200, bench()),
        Step("bench, TF32 off", 100, bench("sampler", "--tf32", "off")),
        Step(
            "compute-sanitizer", 90, lambda seconds: [*guard, "--tool", "memcheck", *bits],
            "" if shutil.which("compute-sanitizer") else "compute-sanitizer is not installed (CUDA toolkit)",
        ),
    ]  # fmt: skip


def perform(
    planned: Sequence[Step], run: Run, out: Path, budget: float, done: Callable[[Sequence[Result]], None],
    now: Callable[[], float] = time.monotonic,
) -> list[Result]:  # fmt: skip
    """Run every step, whatever the others did, each in its share of the seconds left; report after each."""
    results: list[Result] = []
    end = now() + budget
    for k, step in enumerate(planned):
        seconds = (end - now()) * step.share / sum(s.share for s in planned[k:] if not s.lacks or s is step)
        reason = step.lacks or ("" if seconds > 1.0 else "no time left")
        if reason:
            results.append(Result(step.name, "", None, 0.0, reason))
        else:
            print(f"{step.name} ...", flush=True)
            log, start, command = out / f"{name_of(step.name)}.log", now(), step.command(seconds)
            code = run(command, seconds, log)
            took = round(now() - start, 1)
            how = "" if code != LATE else f"ended at its limit of {seconds:.0f} s\n"
            lines = log.read_text(errors="replace").splitlines() if log.exists() else []
            tail = how + "\n".join(lines[-TAIL:])
            results.append(Result(step.name, " ".join(command), code == 0, took, tail))
            print(f"{step.name}: {'passed' if code == 0 else how or f'FAILED with exit code {code}'}", flush=True)
        done(results)
    return results


def name_of(step: str) -> str:
    """Return the name of a step's file."""
    return "-".join("".join(c if c.isalnum() else " " for c in step).lower().split())


def markdown(env: dict, results: Sequence[Result], tables: str) -> str:
    """Return the report."""
    words = {True: "passed", False: "**FAILED**", None: "could not run"}
    lines = [f"# Validation on {env['device']}", "", f"{report.headline(env)}.", "", "| step | result | seconds |"]
    lines += ["|---|---|---|", *(f"| {s.name} | {words[s.passed]} | {s.seconds:.0f} |" for s in results)]
    for s in results:
        lines += ["", f"## {s.name}", "", f"`{s.command}`" if s.command else "", "```", s.output, "```"]
    return "\n".join([*lines, "", "## Figures", "", tables, ""])


def main(arguments: list[str] | None = None, run: Run = run_here) -> int:
    """Validate; return the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--budget", type=float, default=1800.0, metavar="S", help="seconds of all steps (1800)")
    parser.add_argument("--out", type=Path, metavar="DIR", help="report, output and records go there")
    parser.add_argument("--quick", action="store_true", help="a quick bench: its figures mean nothing")
    args = parser.parse_args(arguments)
    if not 0.0 < args.budget < float("inf"):
        parser.error(f"--budget {args.budget} must be a positive number of seconds")
    if not torch.cuda.is_available():
        print("no CUDA device on this machine: nothing validated")
        return 3
    env = environment(torch.device("cuda"))
    kept = results_file(env)
    out = (args.out or kept.with_name(f"validation-{kept.stem}")).resolve()
    out.mkdir(parents=True, exist_ok=True)
    records = out / "bench.jsonl" if args.quick or args.out else kept

    def write(results: Sequence[Result]) -> None:
        measured = [r for r in load(records) if r["env"]["date"] >= env["date"]] if records.exists() else []
        text = json.dumps({"env": env, "steps": [asdict(s) for s in results]}, indent=1)
        (out / "validation.json").write_text(text + "\n")
        (out / "validation.md").write_text(markdown(env, results, report.tables(measured)))

    results = perform(steps(out, records, args.quick), run, out, args.budget, write)
    print(f"report: {out / 'validation.md'}")
    return 0 if all(s.passed is not False for s in results) else 1


if __name__ == "__main__":
    sys.exit(main())
