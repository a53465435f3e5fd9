"""P0: the machine, its tools, and the ceilings that every other figure is a share of."""

from __future__ import annotations

import shutil
import subprocess
import sysconfig
from collections.abc import Callable
from importlib.metadata import packages_distributions, version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch

from bench.card.card import Card, Facts
from bench.clocks import tf32
from bench.common import copy_of
from bench.records import environment

MODULES = ("triton", "numpy", "scipy", "pytest", "hypothesis", "tqdm", "click", "safetensors", "PIL", "pynvml",
           "diffusers", "torchdiffeq", "torchsde", "azula", "k_diffusion", "pytest_timeout")  # fmt: skip
TOOLS = ("gcc", "g++", "clang++", "nvcc", "ptxas", "compute-sanitizer", "ncu", "nsys", "git")


def run(card: Card) -> None:
    """Record them."""
    card.do("environment", lambda: {"env": environment(card.device)})
    card.do("tools", tools)
    card.do("modules", modules)
    card.do("nvidia-smi", smi)
    if not card.dry:
        card.do("device", lambda: device(card))
    card.do("copy", lambda: copy(card))
    for name, dtype, use in (
        ("bf16", torch.bfloat16, None), ("TF32", torch.float32, True), ("fp32", torch.float32, False),
    ):  # fmt: skip
        card.do(f"product {name}", product(card, dtype, use))


def tools() -> Facts:
    """Say which programs there are; Triton builds its driver with a C compiler and Python's headers."""
    found = {name: shutil.which(name) is not None for name in TOOLS}
    header = Path(sysconfig.get_paths()["include"]) / "Python.h"
    return {"ok": (found["gcc"] or found["clang++"]) and header.exists(), "Python.h": header.exists(), **found}


def modules() -> Facts:
    """Return versions of what may be installed."""
    versions: dict[str, Any] = {}
    distributions = packages_distributions()
    for name in MODULES:
        distribution = (distributions.get(name) or [None])[0]
        versions[name] = (
            None
            if find_spec(name) is None
            else version(distribution)
            if distribution
            else "a stand-in, or no distribution"
        )
    return {name: value or "missing" for name, value in versions.items()}


def smi() -> Facts:
    """Return what the driver says of clocks, power and mode."""
    if shutil.which("nvidia-smi") is None:
        return {"skipped": "nvidia-smi is not installed"}
    query = ["name", "driver_version", "clocks.sm", "clocks.max.sm", "clocks.mem", "power.limit", "power.draw",
             "temperature.gpu", "compute_mode", "mig.mode.current", "persistence_mode", "memory.used"]  # fmt: skip
    command = ["nvidia-smi", f"--query-gpu={','.join(query)}", "--format=csv,noheader"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=20)
    return dict(zip(query, map(str.strip, (done.stdout or done.stderr).split(",")), strict=False))


def device(card: Card) -> Facts:
    """Return what CUDA says of the device."""
    p = torch.cuda.get_device_properties(card.device)
    return {"sms": p.multi_processor_count, "l2_mib": p.L2_cache_size / 2**20, "memory_gib": p.total_memory / 2**30,
            "free_gib": torch.cuda.mem_get_info(card.device)[0] / 2**30}  # fmt: skip


def copy(card: Card) -> Facts:
    """Return the bandwidth of a copy: what it reads and what it writes."""
    moved = card.pick(2**32, 2**20)
    seconds = card.timed(copy_of(moved, card.device))
    return {"gb_per_s": moved / seconds / 1e9, "bytes": moved}


def product(card: Card, dtype: torch.dtype, use: bool | None) -> Callable[[], Facts]:
    """Return a measurement of a matrix product of random data, which clocks depend on."""

    def measure() -> Facts:
        side = card.pick(8192, 64)
        a = torch.empty(side, side, dtype=dtype, device=card.device).normal_()
        out = torch.empty_like(a)
        with tf32(use):
            seconds = card.timed(lambda: torch.mm(a, a, out=out), 5)
        return {"tflop_per_s": 2 * side**3 / seconds / 1e12, "side": side}

    return measure
