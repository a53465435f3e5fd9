"""Measure fastscore against PyTorch on this machine.

    python bench/run.py                 every bench, appended to bench/results/<device>.jsonl
    python bench/run.py noise update    only these
    python bench/run.py --quick         smallest sizes, no torch.compile, nothing recorded
    python bench/run.py sampler --batch 512 --network own,auto --tf32 off --budget 300 --out DIR

A result that is wrong is not timed, and the exit code is 1. See bench/README.md.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

if not __package__:  # run by its path, not as a module
    sys.path[:1] = []  # bench is found after what is installed: fastscore without an install has no kernels
    sys.path.append(str(Path(__file__).resolve().parents[1]))

if TYPE_CHECKING:
    from bench.common import Setting

MODULES = {name: f"bench.ops.{name}" for name in ("noise", "norms", "output", "quantize", "update")}
MODULES |= {"peers": "bench.peers.cases", "sampler": "bench.engine.sampler"}
NAMES = sorted(MODULES)


def parser() -> argparse.ArgumentParser:
    """Return the options."""
    found = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    found.add_argument("names", nargs="*", metavar="NAME", help=f"what to measure: {', '.join(NAMES)}; all if left out")
    found.add_argument("--quick", action="store_true", help="see that everything works; figures mean nothing")
    found.add_argument("--device", default="auto", help="cpu, cuda or cuda:N; auto: cuda where there is one")
    found.add_argument("--batch", type=int, metavar="N", help="micro-batch of sampler and peers; 64 and 16 if left out")
    found.add_argument("--network", default="own,compile", metavar="A,B", help="how sampler and peers run networks")
    found.add_argument("--tf32", choices=("user", "off"), default="user", help="as torch has it, or float32 alone")
    found.add_argument("--budget", type=float, metavar="S", help="seconds; what does not fit is named and left out")
    found.add_argument("--points", type=int, default=1_000_000, metavar="N", help="two-dimensional samples of peers")
    found.add_argument("--match", default="", metavar="TEXT", help="only peers' cases whose name contains TEXT")
    found.add_argument("--out", type=Path, metavar="DIR", help="records and tables go there, not to bench/results")
    found.add_argument("--json", type=Path, metavar="F", help="append records to F, not to bench/results")
    found.add_argument("--md", type=Path, metavar="F", help="write this run's tables to F")
    return found


def main(arguments: list[str] | None = None) -> int:
    """Run benches; return the exit code."""
    options = parser()
    args = options.parse_args(arguments)
    unknown = [name for name in args.names if name not in NAMES]
    if unknown:
        options.error(f"no bench called {', '.join(unknown)}; there are {', '.join(NAMES)}")
    if args.batch is not None and args.batch < 1:
        options.error(f"--batch {args.batch} must be a whole number, at least 1")
    if args.budget is not None and not 0.0 < args.budget < float("inf"):
        options.error(f"--budget {args.budget} must be a positive number of seconds")
    try:
        return run(args)
    except ValueError as error:  # such as a device that is not there
        options.error(str(error))


def run(args: argparse.Namespace) -> int:
    """Measure, print and record; a record is on disk as soon as it is made."""
    from bench import records, report
    from bench.clocks import tf32
    from bench.common import Setting
    from fastscore.errors import unknown
    from fastscore.execution import NETWORKS
    from fastscore.ops.backend import named_device

    device, networks = named_device(args.device), tuple(filter(None, args.network.split(",")))
    for name in networks:
        if name not in NETWORKS:
            raise unknown("--network", name, NETWORKS)
    with tf32(None if args.tf32 == "user" else False):
        env = records.environment(device)
        setting = Setting(device, args.quick, args.points, args.match, args.batch, networks)
        file = args.json
        if file is None and (args.out or not args.quick):
            file = records.results_file(env, args.out or records.RESULTS)
        print(report.headline(env))
        measured: list[dict[str, Any]] = []

        def keep(record: dict[str, Any]) -> None:
            measured.append({"schema": records.SCHEMA, **record, "env": env})
            if file:
                records.append(file, measured[-1])

        left_out = measure_all(args.names or NAMES, setting, args.budget, keep)
    if left_out:
        print(f"no time left for {', '.join(left_out)}; the budget was {args.budget:g} s")
    if file:
        print(f"{len(measured)} records appended to {file}")
    if md := args.md or (args.out and args.out / "tables.md"):
        texts = (report.tables(measured), report.against_peers(measured))
        md.parent.mkdir(parents=True, exist_ok=True)
        md.write_text("\n\n".join(filter(None, texts)) + "\n")
        print(f"tables written to {md}")
    return 1 if any("red" in record for record in measured) else 0


def measure_all(
    names: list[str], setting: Setting, budget: float | None, keep: Callable[[dict[str, Any]], None]
) -> list[str]:
    """Measure benches one after another, each in its share of the seconds left; return those that had not enough."""
    from dataclasses import replace
    from importlib import import_module

    from tqdm import tqdm

    from bench import common, report

    left_out, end = [], setting.now() + budget if budget else float("inf")
    with tqdm(names, unit="bench", disable=None) as bar:
        for k, name in enumerate(bar):
            share = setting.now() + (end - setting.now()) / (len(names) - k)
            cases = iter(import_module(MODULES[name]).cases(replace(setting, deadline=share)))
            while True:
                if setting.now() >= share:
                    left_out.append(f"the rest of {name}")
                    break
                case = next(cases, None)
                if case is None:
                    break
                bar.set_postfix_str(f"{name}: {case.name}"[:60])
                try:
                    result = common.measure(case, replace(setting, deadline=share))
                except common.RedGate as error:
                    result = {"bench": name, "case": case.name, "quick": setting.quick, "red": str(error)}
                keep(result)
                tqdm.write(report.text(result), file=sys.stdout)
    return left_out


if __name__ == "__main__":
    sys.exit(main())
