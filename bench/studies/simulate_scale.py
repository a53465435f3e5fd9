"""What a billion samples cost: a simulation of the shard store with 10,000 workers and failures.

    python -m bench.studies.simulate_scale                  # appends results/simulate_scale.jsonl, writes its .md
    python -m bench.studies.simulate_scale --workers 30000 --patience 300
    python -m bench.studies.simulate_scale --quick          # a small run, nothing recorded

Nothing is sampled and nothing stored; see shard_store.py for what a worker does. Defaults are images of 256x256x3
bytes at 10 a second and GPU, shards of 1,024 (102 s, 201 MB), and 1 % of the workers stopped in an hour. The store
answers 3,500 writes and 5,500 reads a second, what Amazon says of one partition of an S3 bucket before it splits it.
"""

from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Sequence
from dataclasses import asdict, fields, replace
from pathlib import Path
from typing import Any

if not __package__:  # run by its path, not as a module
    sys.path[:1] = []
    sys.path.append(str(Path(__file__).resolve().parents[2]))

from tqdm import tqdm

from bench.records import RESULTS, SCHEMA, append, environment, publish
from bench.studies.shard_store import FOLDER, HOUR, Setting, Simulation, backlog, peak

RECORDS = RESULTS / "simulate_scale.jsonl"
NAME = 80  # bytes that a name takes in a listing of Python's, about
LINK = 12.5e9  # bytes a second of a link of 100 Gb/s
QUICK = {"samples": 200_000, "shard": 100, "workers": 50}
UNSWEPT = ("leases", "strided", "present")  # what the scenarios set


def scenarios(base: Setting) -> dict[str, Setting]:
    """Return what is simulated, by name."""
    calm = {"stopped": 0.0, "hung": 0.0}
    stopped = f"{100 * base.stopped:g} %"
    return {
        "parts alone, nothing fails": replace(base, leases=False, **calm),
        f"parts alone, {stopped} stopped an hour": replace(base, leases=False),
        "leases, nothing fails": replace(base, **calm),
        f"leases, {stopped} stopped an hour": base,
        "leases, ten times as many stopped": replace(base, stopped=10 * base.stopped),
        "leases, five times the patience": replace(base, patience=5 * base.patience),
        "leases, all stopped at half and resumed": replace(base, present=0.5),
        "the same, a part is every N-th shard": replace(base, present=0.5, strided=True),
    }


def measure(setting: Setting, writes: float, reads: float) -> dict[str, Any]:
    """Simulate one setting; return its figures.

    Args:
        writes, reads: requests a second that the store answers.
    """
    out = Simulation(setting).run()
    seconds = out.seconds
    served = {"writes": (out.writes, writes), "reads": (out.reads, reads)}
    rates = {
        kind: {"mean": sum(series) / seconds, "peak": peak(series), "wait": backlog(series, limit)}
        for kind, (series, limit) in served.items()
    }
    return {
        "setting": asdict(setting),
        "hours": seconds / HOUR,
        "efficiency": setting.ideal / seconds,
        "restarts": out.restarts,
        "lost_hours": out.lost / HOUR,
        "twice": out.twice,
        "asked": out.asked,
        **rates,
        "bytes": {"mean": sum(out.stored) / seconds, "peak": peak(out.stored)},
    }


def limits(base: Setting, writes: float, reads: float) -> list[tuple[str, str, float]]:
    """Return what gives way as workers are added: what it is, its limit, and the number of workers that reach it."""
    renewals, per_shard = 6.0 / base.patience, 3.0 / base.seconds  # a lease, the shard, the lease's end
    pages = -(-base.count // FOLDER)
    ramp, in_ramp = base.ramp, f"{reads:,.0f}/s for {base.ramp:g} s"
    return [
        ("one network link, for the shards", "100 Gb/s", LINK * base.seconds / (base.shard * base.sample_bytes)),
        ("writes, with leases", f"{writes:,.0f}/s", writes / (renewals + per_shard)),
        ("writes, parts alone", f"{writes:,.0f}/s", writes * base.seconds),
        (
            "reads, when all resume and each lists its own folders",
            in_ramp,
            reads * ramp / (1.0 + base.count / base.workers / FOLDER),
        ),
        ("reads, when all resume and each lists the run", in_ramp, reads * ramp / pages),
        ("reads, if each that finds nothing lists the run twice a second", f"{reads:,.0f}/s", reads / (2.0 * pages)),
        (
            "writes, if every worker tried every shard from the first",
            f"{writes:,.0f}/s for the run",
            math.sqrt(writes * base.seconds),  # workers x shards of them, in shards x seconds / workers
        ),
    ]


def text(run: dict[str, Any]) -> str:
    """Return the tables of a run, with what stands around them."""
    base = Setting(**run["setting"])
    pages, size = -(-base.count // FOLDER), base.shard * base.sample_bytes
    rows = [_row(name, r) for name, r in run["rows"].items()]
    bounds = sorted(run["limits"], key=lambda row: row[2])
    store = run["store"]
    head = (
        "run",
        "hours",
        "of the ideal speed",
        "stopped",
        "lost, worker-hours",
        "shards twice",
        "requests a shard",
        "writes/s, mean, peak",
        "reads/s, mean, peak",
        "longest wait of writes, reads",
        "GB/s, mean, peak",
    )
    return "\n\n".join(
        [
            f"Simulated, not measured: {base.samples:,} samples of {base.sample_bytes:,} bytes, {base.rate:g} a second "
            f"and worker, {base.workers:,} workers whose speeds differ by {100 * base.spread:g} %; "
            f"{100 * base.stopped:g} % of them are stopped in an hour and back after {base.restart:g} s, "
            f"{100 * base.hung:g} % hang for {base.hang:g} s. Leases are stale after {base.patience:g} s. "
            f"Seed {base.seed}, commit {run['env']['git'] or 'unknown'}, {run['env']['date'][:10]}; by "
            "`python -m bench.studies.simulate_scale`, which takes all of these as options.",
            f"**{base.count:,} shards** of {base.shard:,} samples: {size / 1e6:,.0f} MB and {base.seconds:,.0f} s "
            f"each, {base.samples * base.sample_bytes / 1e12:,.1f} TB. The manifest names no shard, so that it has one "
            f"size however many there are. Listing the run is {pages:,} pages of {FOLDER:,} names: "
            f"{pages * 0.05:,.0f} s if a page takes 50 ms and one waits for the other, and "
            f"{base.count * NAME / 1e6:,.0f} MB if all names are "
            f"held at once. If nothing failed and nobody waited it would take {base.ideal / HOUR:.2f} hours.",
            "\n".join([f"| {' | '.join(head)} |", "|---" * len(head) + "|", *rows]),
            f"Peaks are over 10 s. The longest wait is how far a store that answers {store['writes']:,.0f} writes and "
            f"{store['reads']:,.0f} reads a second would have fallen behind.",
            "Where it breaks first, as workers are added and everything else stays. What says *if* is what the "
            "simulated workers do not do:",
            "\n".join(
                [
                    "| what gives way | limit | workers |",
                    "|---|---|---|",
                    *(f"| {what} | {limit} | {workers:,.0f} |" for what, limit, workers in bounds),
                ]
            ),
        ]
    )


def _row(name: str, r: dict[str, Any]) -> str:
    shards = -(-r["setting"]["samples"] // r["setting"]["shard"]) * (1.0 - r["setting"]["present"])
    cells = [
        name,
        f"{r['hours']:.2f}",
        f"{r['efficiency']:.1%}",
        f"{r['restarts']:,}",
        f"{r['lost_hours']:.1f}",
        f"{r['twice']:,}",
        f"{sum(r['asked'].values()) / shards:.1f}",
        *(f"{r[kind]['mean']:,.0f}, {r[kind]['peak']:,.0f}" for kind in ("writes", "reads")),
        f"{r['writes']['wait']:,.0f} s, {r['reads']['wait']:,.0f} s",
        f"{r['bytes']['mean'] / 1e9:,.1f}, {r['bytes']['peak'] / 1e9:,.1f}",
    ]
    return f"| {' | '.join(cells)} |"


def main(arguments: Sequence[str] | None = None) -> int:
    """Simulate every scenario; return the exit code."""
    import torch

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for field in fields(Setting):
        if field.name not in UNSWEPT:
            kind: type = type(field.default)
            parser.add_argument(f"--{field.name.replace('_', '-')}", type=kind, help=f"[default: {field.default:,}]")
    parser.add_argument("--writes", type=float, default=3500, help="writes a second of the store [default: 3,500]")
    parser.add_argument("--reads", type=float, default=5500, help="reads a second of the store [default: 5,500]")
    parser.add_argument("--quick", action="store_true", help="see that it works; figures mean nothing")
    args = parser.parse_args(arguments)
    given = {k: v for k, v in vars(args).items() if v is not None and k in Setting.__dataclass_fields__}
    try:
        base = Setting(**(QUICK if args.quick else {}) | given)
    except ValueError as error:
        parser.error(str(error))
    if not (args.writes > 0 and args.reads > 0):
        parser.error(f"--writes = {args.writes:g} and --reads = {args.reads:g} must be above 0")
    run = {
        "schema": SCHEMA,
        "bench": "simulate_scale",
        "env": environment(torch.device("cpu")),
        "setting": asdict(base),
        "store": {"writes": args.writes, "reads": args.reads},
        "limits": limits(base, args.writes, args.reads),
        "rows": {name: measure(s, args.writes, args.reads) for name, s in tqdm(scenarios(base).items(), disable=None)},
    }
    print(text(run))
    if not args.quick:
        append(RECORDS, run)
        publish("simulate_scale", "A billion samples, simulated", text(run))
    return 0


if __name__ == "__main__":
    sys.exit(main())
