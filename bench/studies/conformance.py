"""What ``fastscore.conformance`` says of other samplers, and which check finds which published mistake.

    python -m bench.studies.conformance [LIBRARY .. | pairs]    # results/conformance.jsonl and .md; all by default

Libraries that are not installed are named. The mistakes are the pairs of tests/conformance/bugs.py.
"""

from __future__ import annotations

import importlib.util
import json
import math
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from tqdm import tqdm

from bench.records import RESULTS, ROOT, publish
from bench.studies.conformance_peers import LIBRARIES, NOT_RUN, load
from fastscore.conformance import Report, check

Record = dict[str, Any]
PAIRS, FILE = "pairs", RESULTS / "conformance.jsonl"


def bugs() -> dict[str, Any]:
    """Return the pairs of the tests, which are no package."""
    path = ROOT / "tests" / "conformance" / "bugs.py"
    spec = importlib.util.spec_from_file_location("conformance_bugs", Path(path))
    assert spec is not None and spec.loader is not None
    module: ModuleType = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look there
    spec.loader.exec_module(module)
    return module.BUGS


def says(report: Report) -> str:
    """Return the first thing that is off, shortly, for a cell."""
    if report.ok:
        return "nothing"
    first = str(report.failures[0]).split(" (measured")[0]
    others = dict.fromkeys(f.check for f in report.failures[1:] if f.check != report.failures[0].check)
    return first.replace("|", "/") + (f"; also {', '.join(others)}" if others else "")


def peers(name: str) -> list[Record]:
    """Return what was found of a library's samplers."""
    loaded = load(name)
    if isinstance(loaded, str):
        return [{"part": name, "missing": loaded}]
    records: list[Record] = []
    for peer in tqdm(loaded, desc=name):
        report = check(peer.fn, peer.schedule, **peer.options)
        order = report.facts.get("order")
        measured = "" if order is None else "exact" if order == math.inf else f"{order:.2f}"
        steps = peer.options.get("steps", 32)
        cells = [peer.library, peer.name, str(steps), measured, says(report), "; ".join(report.notes)]
        records.append({"part": name, "cells": cells})
    return records


def pairs() -> list[Record]:
    """Return for each mistake what is found first, and what of the same sampler without it."""
    records: list[Record] = []
    for name, bug in tqdm(bugs().items(), desc=PAIRS):
        wrong, right = (check(bug.fn(wrong), bug.schedule, **{"steps": 16, **bug.options}) for wrong in (True, False))
        records.append({"part": PAIRS, "cells": [name, bug.source, says(wrong), says(right)]})
    return records


def page(records: list[Record]) -> str:
    """Return the text of the tables."""
    ours = [r["cells"] for r in records if r["part"] == PAIRS]
    others = [r["cells"] for r in records if r["part"] != PAIRS and "cells" in r]
    missing = [f"{r['part']}: {r['missing']}" for r in records if "missing" in r]
    missing += [f"{k}: {v}" for k, v in NOT_RUN.items()]
    return (
        "Others' samplers on the exact networks of `fastscore.conformance`, as their documentation runs them, at "
        "these steps, twice and four times as many. Order: measured, the lower of mean and variance where stochastic; "
        "exact where only rounding is left. What is off is what the sampler declares and does not do.\n\n"
        f"{_table(['library', 'sampler', 'steps', 'order', 'off', 'notes'], others)}\n\n"
        f"Not run: {'; '.join(missing)}.\n\n## Published mistakes\n\n"
        "Each a small sampler of tests/conformance/bugs.py, with the mistake and without, 16, 32, 64 steps.\n\n"
        f"{_table(['mistake', 'made in', 'first found', 'without it'], ours)}\n\n"
        "Out of reach: guidance at a weight at which no exact answer exists (ComfyUI's CFGZeroStar, and the midpoint "
        "of its dpmpp_2s_ancestral_cfg_pp); ER-SDE's left Riemann sum, 1e-4 of the result; names that mean different "
        "lists in different programs."
    )


def _table(head: list[str], rows: list[list[str]]) -> str:
    return "\n".join("| " + " | ".join(cells) + " |" for cells in [head, ["---"] * len(head), *rows])


def main() -> None:
    """Run what is named, keep what was found of the rest, and write the page."""
    torch.set_num_threads(1)
    parts = [*LIBRARIES, PAIRS]
    for part in sys.argv[1:] or parts:
        new = pairs() if part == PAIRS else peers(part)
        old = [json.loads(line) for line in FILE.read_text().splitlines()] if FILE.exists() else []
        records = sorted([r for r in old if r["part"] != part] + new, key=lambda r: parts.index(r["part"]))
        FILE.write_text("".join(json.dumps(r) + "\n" for r in records))
        print(publish("conformance", "Conformance", page(records)))


if __name__ == "__main__":
    main()
