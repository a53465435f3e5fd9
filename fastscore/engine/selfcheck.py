"""A check of this machine, run once for each device and set of versions: do the bits agree?

The noise against its known values, and for a few rows of two solvers the backend against the
reference and the captured loop against the plain one; on a CPU, where nothing is captured, the
reference against itself under replay. A difference of one bit is an error: samples of this machine
would not be the ones that the noise and the plan define.
"""

from __future__ import annotations

import hashlib
import json
import platform
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path

import torch

from fastscore import __version__
from fastscore.engine.capture import CudaGraphs, Graphed, Recorder, Tape
from fastscore.engine.loop import Loop
from fastscore.engine.request import Request
from fastscore.errors import SelfCheckError
from fastscore.execution import GRAPHS, Execution
from fastscore.files import cache_folder
from fastscore.guidance.mixture import BoundPlan
from fastscore.kernels.cpu import library
from fastscore.model.score import ScoreModel
from fastscore.network.cache import private, read, write
from fastscore.network.surroundings import undisturbed
from fastscore.ops.backend import REFERENCE, Ops, resolve, triton_lack
from fastscore.ops.noise import VERSION, NoiseKey
from fastscore.ops.quantize import ROUNDINGS, quantize_ref
from fastscore.plan.passes import make_plan
from fastscore.plan.rows import NORMS, Solver
from fastscore.process.continuous import VP
from fastscore.process.grid import karras
from fastscore.process.parametrization import Parametrization
from fastscore.solvers import DPMpp2M, Langevin, PredictorCorrector, ReverseDiffusion

NOISE_SHA256 = "0ea92d63ff47ffbb3325f03547f1e2a7665337d924a8d802fc4701312f8d4c4d"


def fingerprint(device: torch.device) -> str:
    """Return what a passed check holds for: device, versions, noise."""
    parts = [__version__, f"noise v{VERSION}", torch.__version__, platform.machine(), str(device.type)]
    if device.type == "cuda":
        properties = torch.cuda.get_device_properties(device)
        parts += [properties.name, f"{properties.major}.{properties.minor}", f"CUDA {torch.version.cuda}"]
        parts += [f"triton {import_module('triton').__version__}" if not triton_lack() else "no triton"]
    elif library.library_file():
        parts.append(f"cpp {library.describe()}")
    return " | ".join(parts)


def checks(device: torch.device, ops: Ops, replay: bool = True) -> Iterator[str]:
    """Run the checks of a backend one by one, with or without replay; yield the name of each that passed.

    Raises:
        SelfCheckError: a bit differs; the message names the check.
    """
    z = NoiseKey.of(2**63 + 5, range(7), device).normal(3, 777)
    digest = hashlib.sha256(z.cpu().numpy().tobytes()).hexdigest()
    _require(digest == NOISE_SHA256, "noise v1 differs from its known values")
    yield f"noise v{VERSION} equals its known values"
    images = (torch.arange(2 * 3 * 5 * 7, device=device).reshape(2, 3, 5, 7) - 90.0) / 77.0
    for rounding in ROUNDINGS:
        _require(torch.equal(ops.quantize(images, rounding), quantize_ref(images, rounding)), f"quantize to {rounding}")
    yield f"quantize: {ops.name} equals the reference"
    langevin = [PredictorCorrector(ReverseDiffusion(), Langevin(norm=norm)) for norm in NORMS[:-1]]
    langevin[-1] = PredictorCorrector(
        langevin[-1], Langevin(norm=NORMS[-1])
    )  # two norms in one plan take half the time
    # 231 elements exercise single accesses and ragged ends, 768 the wide ones.
    for shape, solver in (((3, 7, 11), DPMpp2M()), *(((3, 16, 16), s) for s in (DPMpp2M(), *langevin))):
        name = f"{solver} on {'x'.join(map(str, shape))}"
        plain, fast = _loop(solver, shape, device, REFERENCE), _loop(solver, shape, device, ops)
        # A tape records torch's operations; the C++ library's calls are none.
        taped = plain if ops.name == "cpp" else fast
        expected = plain.run()
        _require(torch.equal(fast.run(), expected), f"{name}: backend {ops.name} differs from the reference")
        yield f"{name}: {ops.name} equals the reference"
        for mode in GRAPHS if replay else ():
            replayed = Graphed(taped, _recorder(taped), mode).run()
            _require(torch.equal(replayed, expected), f"{name}: the replayed {mode} differs from the plain loop")
        if replay:
            yield f"{name}: replayed step and loop equal the plain loop"


def ensure(device: torch.device, ops: Ops) -> None:
    """Run the checks on first use of a backend, a device and these versions; remember that they passed.

    Raises:
        SelfCheckError: a bit differs.
    """
    file, key = cache_file(), f"{fingerprint(device)} | {ops.name}"
    try:
        passed = json.loads(read(private("", make=False) / file.name))
    except (OSError, ValueError):
        passed = []
    if key in passed:
        return
    with undisturbed(place=device):
        list(checks(device, ops, replay=device.type == "cuda"))  # nothing is captured elsewhere
    try:
        write(private("") / file.name, json.dumps([*passed[-99:], key], indent=1).encode())
    except OSError:
        pass  # without a cache the check runs again next time


def trusted(execution: Execution) -> Ops:
    """Return the operations of an execution on its device, which have passed the checks.

    Raises:
        ValueError: a backend that cannot run the state's dtype on the device.
        SelfCheckError: a bit differs.
    """
    backend, device, dtype = execution.backend, execution.place, execution.dtype
    # The kernels are float32; only the reference also runs float64.
    ops = resolve("reference" if dtype == torch.float64 and backend == "auto" else backend, device)
    if ops is not REFERENCE:
        if dtype == torch.float64:
            raise ValueError(f"backend = {backend!r} keeps a float32 state; float64 needs backend='reference'")
        ensure(device, ops)
    return ops


def cache_file() -> Path:
    """Return where passed checks are remembered."""
    return cache_folder() / "selfcheck.json"


def _loop(solver: Solver, shape: tuple[int, ...], device: torch.device, ops: Ops) -> Loop:
    schedule = VP()
    model = ScoreModel(lambda u, t, cond: u / (1.0 + u * u), shape, schedule, Parametrization("eps"))
    bound = BoundPlan(make_plan(solver, schedule, karras(4)(schedule)), model)
    execution = Execution(device, batch=8)
    loop = Loop(bound, model, execution, ops)
    loop.load(Request(NoiseKey.of(11, [0, 1, 2**33, 5], device)).padded(execution.batch))
    return loop


def _recorder(loop: Loop) -> Recorder:
    """Return a recorder of its own for each recording: a pool whose graphs have died is not used again."""
    return CudaGraphs(loop.x.device, loop.networks) if loop.x.device.type == "cuda" else Tape()


def _require(equal: bool, message: str) -> None:
    if not equal:
        raise SelfCheckError(f"{message} on this machine; samples would not be reproducible. Please report it")
