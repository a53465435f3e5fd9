"""One phase in this process: python -X faulthandler bench/card MODULE --name P4 --out DIR --seconds 40 [--dry]."""

from __future__ import annotations

import argparse
import ctypes
import signal
import sys
from contextlib import suppress
from importlib import import_module
from pathlib import Path

sys.path[:1] = []  # bench is found after what is installed: fastscore without an install has no kernels
sys.path.append(str(Path(__file__).resolve().parents[2]))


def main() -> None:
    """Run it."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("module")
    parser.add_argument("--name", default="phase")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("--dry", action="store_true")
    parser.add_argument("--only", default="", help="items, separated by semicolons")
    args = parser.parse_args()
    with suppress(OSError, AttributeError):  # Linux: a phase ends with the run that began it (PR_SET_PDEATHSIG)
        ctypes.CDLL(None).prctl(1, signal.SIGKILL)
    from bench.card.card import Card

    args.out.mkdir(parents=True, exist_ok=True)
    only = tuple(filter(None, args.only.split(";")))
    import_module(args.module).run(Card(args.out, args.name, args.seconds, args.dry, only))


if __name__ == "__main__":
    main()
