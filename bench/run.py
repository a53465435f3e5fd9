"""Measure fastscore against PyTorch on this machine.

    python bench/run.py                 every bench, appended to bench/results/<device>.jsonl
    python bench/run.py noise update    only these
    python bench/run.py --quick         smallest sizes, no torch.compile, nothing recorded

A result that is wrong is not timed, and the exit code is 1. See bench/README.md.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

if not __package__:  # run by its path, not as a module
    sys.path[:1] = []  # bench is found after what is installed: fastscore without an install has no kernels
    sys.path.append(str(Path(__file__).resolve().parents[1]))

MODULES = {name: f"bench.ops.{name}" for name in ("noise", "norms", "output", "quantize", "update")}
MODULES |= {"peers": "bench.peers.cases", "sampler": "bench.engine.sampler"}
NAMES = sorted(MODULES)


def main(arguments: list[str] | None = None) -> int:
    """Run benches; return the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "names", nargs="*", metavar="NAME", help=f"what to measure: {', '.join(NAMES)}; all if left out"
    )
    parser.add_argument("--quick", action="store_true", help="see that everything works; figures mean nothing")
    parser.add_argument("--device", default="auto", help="cpu, cuda or cuda:N; auto: cuda where there is one")
    parser.add_argument("--points", type=int, default=1_000_000, metavar="N", help="two-dimensional samples of peers")
    parser.add_argument("--match", default="", metavar="TEXT", help="only peers' cases whose name contains TEXT")
    parser.add_argument("--json", type=Path, metavar="F", help="append records to F, not to bench/results")
    parser.add_argument("--md", type=Path, metavar="F", help="write this run's tables to F")
    args = parser.parse_args(arguments)
    unknown = [name for name in args.names if name not in NAMES]
    if unknown:
        parser.error(f"no bench called {', '.join(unknown)}; there are {', '.join(NAMES)}")
    try:
        return run(args)
    except ValueError as error:  # such as a device that is not there
        parser.error(str(error))


def run(args: argparse.Namespace) -> int:
    """Measure, print and record; a record is on disk as soon as it is made."""
    from importlib import import_module

    import torch
    from tqdm import tqdm

    from bench import common, records, report
    from fastscore.ops.backend import named_device

    device = named_device(args.device)
    # float32 is float32 in every variant of every bench; else the gate would compare roundings of TF32
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    setting, env = common.Setting(device, args.quick, args.points, args.match), records.environment(device)
    file = args.json or (None if args.quick else records.results_file(env))
    print(report.headline(env))
    measured = []
    with tqdm(args.names or NAMES, unit="bench", disable=None) as bar:
        for name in bar:
            for case in import_module(MODULES[name]).cases(setting):
                bar.set_postfix_str(f"{name}: {case.name}"[:60])
                try:
                    result = common.measure(case, setting)
                except common.RedGate as error:
                    result = {"bench": name, "case": case.name, "quick": args.quick, "red": str(error)}
                measured.append({"schema": records.SCHEMA, **result, "env": env})
                tqdm.write(report.text(result), file=sys.stdout)
                if file:
                    records.append(file, measured[-1])
    if file:
        print(f"{len(measured)} records appended to {file}")
    if args.md:
        texts = (report.tables(measured), report.against_peers(measured))
        args.md.write_text("\n\n".join(filter(None, texts)) + "\n")
        print(f"tables written to {args.md}")
    return 1 if any("red" in record for record in measured) else 0


if __name__ == "__main__":
    sys.exit(main())
