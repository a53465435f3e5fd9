"""Validate this machine's GPU with one command: tests, self-check, memory checker, bench; one report.

    python bench/validate_gpu.py [--quick]

Writes bench/results/validation-<device>.json and .md. Exit code 0 if everything passed, 1 if not, 3 if
there is no GPU. A step that cannot run says why and does not count as passed.
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

if not __package__:  # run by its path, not as a module
    sys.path[0] = str(Path(__file__).resolve().parents[1])

import torch

from bench import report
from bench.records import ROOT, environment, load, results_file

TAIL = 40  # lines of a step's output that the report keeps
Run = Callable[[Sequence[str]], "subprocess.CompletedProcess[str]"]


@dataclass(frozen=True)
class Step:
    """What one step did; ``passed`` is None if it could not run."""

    name: str
    command: str
    passed: bool | None
    seconds: float
    output: str


def run_here(command: Sequence[str]) -> subprocess.CompletedProcess[str]:
    """Run a command in the repository, its output in one string."""
    return subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def steps(run: Run, records: Path, quick: bool) -> list[Step]:
    """Run every step, whatever the others did."""
    python, kernels = sys.executable, ROOT / "tests" / "kernels"
    check = (
        "import torch; from fastscore.ops.backend import resolve; from fastscore.engine.selfcheck import checks; "
        "device = torch.device('cuda'); [*map(print, checks(device, resolve('auto', device)))]"
    )
    results = [
        step("pytest -m gpu", [python, "-m", "pytest", "-q", "-m", "gpu"], run),
        step("self-check", [python, "-c", check], run),
    ]
    if not shutil.which("compute-sanitizer"):
        results.append(Step("compute-sanitizer", "", None, 0.0, "compute-sanitizer is not installed (CUDA toolkit)"))
    elif not kernels.is_dir():
        results.append(Step("compute-sanitizer", "", None, 0.0, "there are no tests/kernels"))
    else:
        # Without torch's caching allocator each tensor is an allocation, so that a stray access shows.
        guard = [
            "env",
            "PYTORCH_NO_CUDA_MEMORY_CACHING=1",
            "compute-sanitizer",
            "--tool",
            "memcheck",
            "--error-exitcode",
            "9",
        ]
        results.append(
            step("compute-sanitizer", [*guard, python, "-m", "pytest", "-q", "-m", "gpu", str(kernels)], run)
        )
    bench = [python, str(ROOT / "bench" / "run.py"), "--device", "cuda", "--json", str(records)]
    results.append(step("bench", bench + ["--quick"] * quick, run))
    return results


def step(name: str, command: Sequence[str], run: Run) -> Step:
    """Run one step."""
    print(f"{name} ...", flush=True)
    start = time.perf_counter()
    result = run(command)
    passed = result.returncode == 0
    print(f"{name}: {'passed' if passed else f'FAILED with exit code {result.returncode}'}", flush=True)
    lines = result.stdout.splitlines()[-TAIL:]
    return Step(name, " ".join(command), passed, round(time.perf_counter() - start, 1), "\n".join(lines))


def markdown(env: dict, results: Sequence[Step], tables: str) -> str:
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
    parser.add_argument("--quick", action="store_true", help="a quick bench: its figures mean nothing")
    args = parser.parse_args(arguments)
    if not torch.cuda.is_available():
        print("no CUDA device on this machine: nothing validated")
        return 3
    env = environment(torch.device("cuda"))
    file = results_file(env)
    base = file.with_name(f"validation-{file.stem}")
    records = base.with_name(f"{base.name}.records.jsonl") if args.quick else file
    results = steps(run, records, args.quick)
    measured = [r for r in load(records) if r["env"]["date"] >= env["date"]] if records.exists() else []
    base.with_suffix(".json").write_text(
        json.dumps({"env": env, "steps": [asdict(s) for s in results]}, indent=1) + "\n"
    )
    base.with_suffix(".md").write_text(markdown(env, results, report.tables(measured)))
    print(f"report: {base.with_suffix('.md')}")
    return 0 if all(s.passed is not False for s in results) else 1


if __name__ == "__main__":
    sys.exit(main())
