"""Records: the environment they stand in, and where they are kept."""

from __future__ import annotations

import json
import os
import platform
import re
import subprocess
from collections.abc import Mapping
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import numpy as np
import torch

from bench import telemetry
from fastscore import __version__
from fastscore.ops import noise

SCHEMA = 1  # of a record; a reader ignores records of another one
ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "bench" / "results"


def environment(device: torch.device) -> dict[str, Any]:
    """Return what a figure depends on besides the code; null where unknown."""
    try:
        import triton

        triton_version = triton.__version__
    except ImportError:
        triton_version = None
    state = _git("status", "--porcelain")
    with telemetry.Meter(telemetry.uuid_of(device)) as meter:
        limit = meter.report(1)["power_limit"]
    return {
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else f"CPU ({processor()})",
        "type": device.type,
        "cpu": processor(),
        "threads": torch.get_num_threads(),
        "load": os.getloadavg()[0] if hasattr(os, "getloadavg") else None,
        "power_limit_w": limit.value,
        "cuda": torch.version.cuda,
        "torch": torch.__version__,
        "triton": triton_version,
        "numpy": np.__version__,
        "python": platform.python_version(),
        "fastscore": __version__,
        "noise": f"v{noise.VERSION}",
        "tf32": {"matmul": torch.backends.cuda.matmul.allow_tf32, "convolution": torch.backends.cudnn.allow_tf32},
        "cudnn_benchmark": torch.backends.cudnn.benchmark,
        "sdpa": sdpa(),
        "gpu": gpu(device) if device.type == "cuda" else None,
        "deterministic": torch.are_deterministic_algorithms_enabled(),
        "git": os.environ.get("FASTSCORE_COMMIT") or _git("rev-parse", "--short=12", "HEAD"),
        "dirty": None if state is None else bool(state),
        "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
    }


def gpu(device: torch.device) -> dict[str, Any]:
    """Return what there is to say of a CUDA device."""
    p = torch.cuda.get_device_properties(device)
    return {
        "driver": telemetry.driver(),
        "cudnn": torch.backends.cudnn.version(),
        "capability": f"{p.major}.{p.minor}",
        "multiprocessors": p.multi_processor_count,
        "memory_mib": p.total_memory // 2**20,
        "l2_mib": p.L2_cache_size // 2**20,
    }


def sdpa() -> dict[str, bool]:
    """Return which kernels torch may choose for attention."""
    cuda = torch.backends.cuda
    return {
        "flash": cuda.flash_sdp_enabled(),
        "memory efficient": cuda.mem_efficient_sdp_enabled(),
        "cudnn": cuda.cudnn_sdp_enabled(),
        "math": cuda.math_sdp_enabled(),
    }


def processor() -> str:
    """Return the CPU's name as the kernel gives it."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


def results_file(env: Mapping[str, Any], folder: Path = RESULTS) -> Path:
    """Return where the records of a device are kept."""
    return folder / (re.sub(r"[^a-z0-9]+", "-", env["device"].lower()).strip("-") + ".jsonl")


def append(path: Path, record: Mapping[str, Any]) -> None:
    """Append one record as a JSON line."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a") as file:
        file.write(json.dumps(record) + "\n")


def load(path: Path) -> list[dict[str, Any]]:
    """Read the records of this schema."""
    records = [json.loads(line) for line in path.read_text().splitlines() if line.strip()]
    return [r for r in records if r.get("schema") == SCHEMA]


def between(text: str, marker: str, content: str) -> str:
    """Replace what stands between <!-- marker --> and <!-- /marker -->; text without them stays."""
    start, end = f"<!-- {marker} -->", f"<!-- /{marker} -->"
    if start not in text or end not in text:
        return text
    before, after = text.split(start, 1)
    return f"{before}{start}\n{content}\n{end}{after.split(end, 1)[1]}"


def publish(name: str, title: str, text: str) -> Path:
    """Write a generated table to bench/results/NAME.md; return the file."""
    file = RESULTS / f"{name}.md"
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(f"# {title}\n\n{text}\n")
    return file


def _git(*arguments: str) -> str | None:
    try:
        process = subprocess.run(["git", *arguments], cwd=ROOT, capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return None
    return process.stdout.strip()
