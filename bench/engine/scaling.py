"""Scaling: time and peak memory against batch, dimension, steps and number of samples.

    python -m bench.engine.scaling             # appends bench/results/scaling.jsonl, writes scaling.md and .png
    python -m bench.engine.scaling --quick     # smallest sizes, nothing recorded
    python -m bench.engine.scaling --table     # only scaling.md and .png, from the last record

Every point runs in a process of its own, so that its peak resident memory is its own; what the process holds
before it draws (Python, torch, the plan) is measured apart and taken off. The score costs next to nothing: what
grows here is the engine. Time is the median of several runs in the process, without the first.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from bench.records import RESULTS, ROOT, append, publish

RECORDS, FIGURE = RESULTS / "scaling.jsonl", RESULTS / "scaling.png"
LIMIT_S = 120.0  # a point that takes longer is left out, and says so
IMAGE = (1, 28, 28)

# What varies, its values, and the settings of one point.
AXES: dict[str, tuple[Sequence[Any], str]] = {
    "batch": ((1, 4, 16, 64, 256, 1024), "samples of 1x28x28 in one batch, 20 steps"),
    "dimension": (
        ((2,), (16,), (1, 28, 28), (3, 32, 32), (3, 64, 64), (3, 128, 128), (3, 256, 256)),
        "numbers a sample, batch 16, 20 steps",
    ),
    "steps": ((1, 3, 10, 30, 100, 300, 1000), "steps, 64 samples of 1x28x28"),
    "ids": ((1_000, 10_000, 100_000, 1_000_000), "samples in the plane, batch 1024, 10 steps, streamed"),
}
SMALL = {"batch": (1, 4), "dimension": ((2,), (1, 28, 28)), "steps": (1, 3), "ids": (100, 1000)}


def settings(axis: str, value: Any) -> dict[str, Any]:
    """Return what one point draws."""
    base = {"shape": IMAGE, "batch": 64, "steps": 20, "ids": 64, "stream": False}
    if axis == "batch":
        return base | {"batch": value, "ids": value}
    if axis == "dimension":
        return base | {"shape": tuple(value), "batch": 16, "ids": 16}
    if axis == "steps":
        return base | {"steps": value}
    return base | {"shape": (2,), "batch": 1024, "steps": 10, "ids": value, "stream": True}


def point(setting: dict[str, Any]) -> dict[str, Any]:
    """Draw in this process; return seconds a run and MiB above what the process held before."""
    import torch

    import fastscore as fs
    from bench import telemetry

    shape, batch, n = tuple(setting["shape"]), setting["batch"], setting["ids"]
    cpu = torch.device("cpu")
    constant = torch.full((batch, *shape), 0.1)
    model = fs.ScoreModel(lambda u, t, cond: constant[: len(u)], shape, fs.EDM(), fs.Parametrization("x0"))
    sampler = fs.Sampler(model, solver=fs.DDIM(eta=1.0), grid=fs.karras(setting["steps"]), batch=batch)

    def draw() -> None:
        if setting["stream"]:
            for _ in sampler.stream(range(n)):
                pass
        else:
            sampler.run(range(n))

    fs.Sampler(model, solver=fs.DDIM(eta=1.0), grid=fs.karras(1), batch=1).run([0])  # what the first run loads
    reason = telemetry.reset_peak(cpu)
    before = _resident()
    draw()
    peak = telemetry.peak(cpu, reason)["peak_resident"].value
    seconds, start = [], time.perf_counter()
    while len(seconds) < 3 or (len(seconds) < 50 and time.perf_counter() - start < 0.5):
        run = time.perf_counter()
        draw()
        seconds.append(time.perf_counter() - run)
        if seconds[-1] > 5.0:
            break
    above = None if peak is None else float(peak) - before
    return {"seconds": statistics.median(seconds), "runs": len(seconds), "mib": above, "sampler": sampler.record()}


def _resident() -> float:
    """Return the resident memory of this process in MiB; NaN where the system does not say."""
    try:
        lines = Path("/proc/self/status").read_text().splitlines()
    except OSError:
        return float("nan")
    return next(float(line.split()[1]) for line in lines if line.startswith("VmRSS")) / 1024.0


def measure(axis: str, value: Any) -> dict[str, Any]:
    """Return one point, drawn by a child process."""
    setting = settings(axis, value)
    command = [sys.executable, "-m", "bench.engine.scaling", "--point", json.dumps(setting)]
    try:
        process = subprocess.run(command, capture_output=True, text=True, timeout=LIMIT_S, check=True, cwd=ROOT)
    except subprocess.TimeoutExpired:
        return {"value": value, "skipped": f"longer than {LIMIT_S:.0f} s"}
    return {"value": value, **setting, **json.loads(process.stdout.splitlines()[-1])}


def size(value: Any) -> float:
    """Return a point's place on the horizontal axis."""
    if not isinstance(value, list | tuple):
        return float(value)
    product = 1
    for k in value:
        product *= k
    return float(product)


def table(run: dict[str, Any]) -> str:
    """Return the picture and the table of one run."""
    from bench import report

    env = run["env"]
    lines = [
        "![time and memory against batch, dimension, steps and ids](scaling.png)",
        "",
        "Around a constant in place of the network, first-order SDE steps (one noise draw a row), float32, each point "
        f"in a process of its own; memory is the peak above what the process held before it drew. "
        f"{report.headline(env)}.",
        "",
        "| varied | value | time | a sample and step | peak memory |",
        "| --- | --- | --- | --- | --- |",
    ]
    for axis, points in run["axes"].items():
        for p in points:
            value = "x".join(map(str, p["value"])) if isinstance(p["value"], list | tuple) else f"{p['value']:,}"
            if "skipped" in p:
                lines.append(f"| {axis} | {value} | skipped: {p['skipped']} | | |")
                continue
            step_time = report.duration(p["seconds"] / p["ids"] / p["steps"])
            memory = "unknown" if p["mib"] is None else f"{max(p['mib'], 0.0):.1f} MiB"
            lines.append(f"| {axis} | {value} | {report.duration(p['seconds'])} | {step_time} | {memory} |")
    return "\n".join(lines)


def figure(run: dict[str, Any], path: Path) -> None:
    """Draw time above, memory below, one column an axis."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    fig, rows = plt.subplots(2, len(run["axes"]), figsize=(14, 6), sharex="col", squeeze=False)
    for column, (axis, points) in enumerate(run["axes"].items()):
        measured = [p for p in points if "skipped" not in p]
        x = [size(p["value"]) for p in measured]
        top, bottom = rows[0][column], rows[1][column]
        seconds = [p["seconds"] for p in measured]
        top.loglog(x, seconds, "o-", color="C0", label="measured")
        top.loglog(x, [seconds[-1] * k / x[-1] for k in x], ":", color="gray", label="proportional")
        top.set_title(axis)
        bottom.plot(x, [float("nan") if p["mib"] is None else max(p["mib"], 0.0) for p in measured], "o-", color="C1")
        bottom.set_ylim(bottom=0.0, top=max(10.0, *(1.1 * (p["mib"] or 0.0) for p in measured)))
        bottom.set_xlabel(AXES[axis][1], fontsize=8)
        for axes in (top, bottom):
            axes.grid(alpha=0.3)
    rows[0][0].set_ylabel("seconds a run")
    rows[1][0].set_ylabel("peak memory above start, MiB")
    rows[0][0].legend(frameon=False, fontsize=8)
    fig.suptitle(f"fastscore, {run['env']['device']}, {run['env']['threads']} threads, {run['env']['date'][:10]}")
    fig.tight_layout()
    fig.savefig(path, dpi=110)
    plt.close(fig)


def main(arguments: list[str] | None = None) -> int:
    """Measure every axis; return the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="*", choices=AXES, default=list(AXES), help="axes to measure")
    parser.add_argument("--quick", action="store_true", help="see that it works; figures mean nothing")
    parser.add_argument("--table", action="store_true", help="only redraw from the last record")
    parser.add_argument("--point", help=argparse.SUPPRESS)  # what a child draws
    args = parser.parse_args(arguments)
    if args.point:
        print(json.dumps(point(json.loads(args.point))))
        return 0
    if args.table:
        write(json.loads(RECORDS.read_text().splitlines()[-1]))
        return 0

    import torch
    from tqdm import tqdm

    from bench.records import SCHEMA, environment

    run: dict[str, Any] = {"schema": SCHEMA, "bench": "scaling", "env": environment(torch.device("cpu")), "axes": {}}
    points = [(axis, value) for axis in args.only for value in (SMALL[axis] if args.quick else AXES[axis][0])]
    for axis, value in tqdm(points, unit="point", disable=None):
        run["axes"].setdefault(axis, []).append(measure(axis, value))
    print(table(run))
    if not args.quick:
        append(RECORDS, run)
        write(run)
    return 0


def write(run: dict[str, Any]) -> None:
    """Draw the figure and write the table."""
    figure(run, FIGURE)
    publish("scaling", "Scaling", table(run))


if __name__ == "__main__":
    sys.exit(main())
