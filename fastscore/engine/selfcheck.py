"""A check of this machine, run once for each device and set of versions: do the bits agree?

The noise against its known values, and for a few rows of two solvers the backend against the
reference and the captured loop against the plain one; on a CPU, where nothing is captured, the
reference against itself under replay. A difference of one bit is an error: samples of this machine
would not be the ones that the noise and the plan define.
"""

from __future__ import annotations

import hashlib
import json
import os
import platform
from collections.abc import Iterator
from pathlib import Path

import torch

from fastscore import __version__
from fastscore import plan as plans
from fastscore.backend import REFERENCE, Ops, resolve
from fastscore.engine.graph import CudaGraphs, Graphed, Tape
from fastscore.engine.loop import Loop
from fastscore.files import write_text
from fastscore.grid import karras
from fastscore.kernels.cpu import launch
from fastscore.model import ScoreModel
from fastscore.noise import VERSION, NoiseKey
from fastscore.parametrization import Parametrization
from fastscore.schedule import VP
from fastscore.solvers import DPMpp2M, Langevin, PredictorCorrector, ReverseDiffusion

NOISE_SHA256 = "0ea92d63ff47ffbb3325f03547f1e2a7665337d924a8d802fc4701312f8d4c4d"


class SelfCheckError(RuntimeError):
    """This machine does not give the bits that fastscore promises."""


def fingerprint(device: torch.device) -> str:
    """Return what a passed check holds for: device, versions, noise."""
    parts = [__version__, f"noise v{VERSION}", torch.__version__, platform.machine(), str(device.type)]
    if device.type == "cuda":
        properties = torch.cuda.get_device_properties(device)
        parts += [properties.name, f"{properties.major}.{properties.minor}", str(torch.version.cuda)]
    elif resolve("auto", device).name == "cpp":
        parts.append(f"cpp {launch.describe()}")
    return " | ".join(parts)


def checks(device: torch.device) -> Iterator[str]:
    """Run the checks one by one; yield the name of each that passed.

    Raises:
        SelfCheckError: a bit differs; the message names the check.
    """
    z = NoiseKey.of(2**63 + 5, range(7), device).normal(3, 777)
    digest = hashlib.sha256(z.cpu().numpy().tobytes()).hexdigest()
    _require(digest == NOISE_SHA256, "noise v1 differs from its known values")
    yield f"noise v{VERSION} equals its known values"
    ops = resolve("auto", device)
    recorder = CudaGraphs(device) if device.type == "cuda" else Tape()
    for name, solver in (
        ("DPM-Solver++(2M)", DPMpp2M()),
        ("reverse diffusion with Langevin", PredictorCorrector(ReverseDiffusion(), Langevin())),
    ):
        plain, fast = _loop(solver, device, REFERENCE), _loop(solver, device, ops)
        taped = fast if device.type == "cuda" else plain
        expected = plain.run()
        if ops is not REFERENCE:
            _require(torch.equal(fast.run(), expected), f"{name}: backend {ops.name} differs from the reference")
            yield f"{name}: {ops.name} equals the reference"
        for mode in ("step", "loop"):
            replayed = Graphed(taped, recorder, mode).run()
            _require(torch.equal(replayed, expected), f"{name}: the replayed {mode} differs from the plain loop")
            yield f"{name}: replayed {mode} equals the plain loop"


def ensure(device: torch.device) -> None:
    """Run the checks on first use of a device and these versions; remember that they passed.

    Raises:
        SelfCheckError: a bit differs.
    """
    file, key = cache_file(), fingerprint(device)
    try:
        passed = json.loads(file.read_text())
    except (OSError, ValueError):
        passed = []
    if key in passed:
        return
    list(checks(device))
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        write_text(file, json.dumps([*passed, key], indent=1))
    except OSError:
        pass  # without a cache the check runs again next time


def cache_file() -> Path:
    """Return where passed checks are remembered."""
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base) / "fastscore" / "selfcheck.json"


def _loop(solver: plans.Solver, device: torch.device, ops: Ops) -> Loop:
    schedule, parametrization = VP(), Parametrization("eps")
    model = ScoreModel(lambda u, t, cond: u / (1.0 + u * u), (3, 7, 11), schedule, parametrization)
    plan = plans.fold(plans.make_plan(solver, schedule, karras(4)(schedule)), schedule, parametrization)
    loop = Loop(plans.validate(plan), model, 5, device, torch.float32, ops)
    key = NoiseKey.of(11, [0, 1, 2**33, 5], device)
    loop.load(key.seed, key.ids, None)
    return loop


def _require(equal: bool, message: str) -> None:
    if not equal:
        raise SelfCheckError(f"{message} on this machine; samples would not be reproducible. Please report it")
