"""P9: NVIDIA's own tools on a few kernels, where they are installed: stray accesses, races, what a kernel waits for."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from functools import partial
from pathlib import Path

from bench.card.card import Card, Facts

ENTRY = Path(__file__).parent
ERROR = 9  # exit code of compute-sanitizer when it found something
MEMORY = ("update SDE 7x784", "update SDE 7x2", "update SDE 7x1009", "update ODE, 3 slots, clipped 7x784",
          "update known, CFG, own rows 7x3072", "update bf16, CFG, D odd 7x129", "langevin sample float32 7x3072",
          "langevin batch bfloat16 7x1009", "quantize 2x3x5x7 nearest", "quantize 4x3x8x8 floor")  # fmt: skip
RACES = tuple(f"langevin {norm} float32 7x3072" for norm in ("sample", "batch", "expected"))
METRICS = ("dram__throughput.avg.pct_of_peak_sustained_elapsed", "sm__throughput.avg.pct_of_peak_sustained_elapsed",
           "smsp__issue_active.avg.pct_of_peak_sustained_active", "gpu__time_duration.sum")  # fmt: skip


def tool(card: Card, words: Sequence[str], module: str, items: Sequence[str]) -> Facts:
    """Run a phase's items under a tool; every tensor is an allocation of its own, so that a stray access shows."""
    if shutil.which(words[0]) is None:
        return {"skipped": f"{words[0]} is not installed"}
    limit = max(1.0, card.left())
    with tempfile.TemporaryDirectory() as folder:  # its records are not ours: a tool makes everything slow
        command = [*words, sys.executable, str(ENTRY), module, "--out", folder, "--only", ";".join(items)]
        command += ["--seconds", str(limit), *(["--dry"] if card.dry else [])]
        env = {**os.environ, "PYTORCH_NO_CUDA_MEMORY_CACHING": "1"}
        done = subprocess.run(command, env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
                              timeout=limit)  # fmt: skip
    found = {"found": "errors"} if done.returncode == ERROR else {}
    return {"ok": done.returncode == 0, "exit": done.returncode, **found, "output": done.stdout[-1500:]}


def run(card: Card) -> None:
    """Run them."""
    sanitizer = ["compute-sanitizer", "--error-exitcode", str(ERROR), "--tool"]
    ncu = ["ncu", "--csv", "--clock-control", "none", "--launch-count", "40", "--metrics", ",".join(METRICS)]
    card.do_all({
        "memcheck": partial(tool, card, [*sanitizer, "memcheck"], "bench.card.bits", MEMORY),
        "racecheck": partial(tool, card, [*sanitizer, "racecheck"], "bench.card.bits", RACES),
        "ncu": partial(tool, card, ncu, "bench.card.rows", ("row SDE 512x3072", "norms 512x3072")),
    })  # fmt: skip
