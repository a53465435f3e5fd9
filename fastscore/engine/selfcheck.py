"""A check of this machine, run once for each device and set of versions: do the bits agree?

The noise against its known values, and for a few rows of two solvers the backend against the
reference and the captured loop against the plain one; on a CPU, where nothing is captured, the
reference against itself under replay. A difference of one bit is an error: samples of this machine
would not be the ones that the noise and the plan define.
"""

from __future__ import annotations

import hashlib
import json
import math
import platform
import re
import warnings
from collections.abc import Iterator
from functools import cache
from importlib import import_module
from pathlib import Path

import torch
from torch import Tensor, nn

from fastscore import __version__
from fastscore.engine.capture import CudaGraphs, Graphed, Recorder, Tape, first_reason
from fastscore.engine.loop import Loop
from fastscore.engine.request import Request
from fastscore.errors import SelfCheckError, short
from fastscore.execution import GRAPHS, Execution
from fastscore.files import cache_folder
from fastscore.guidance.mixture import BoundPlan
from fastscore.kernels import abi
from fastscore.kernels.cpu import library
from fastscore.model.score import ScoreModel
from fastscore.network.cache import private, read, write
from fastscore.network.surroundings import undisturbed
from fastscore.ops.backend import REFERENCE, Ops, resolve, triton_lack
from fastscore.ops.noise import VERSION, NoiseKey
from fastscore.ops.quantize import ROUNDINGS, quantize_ref
from fastscore.ops.update import KnownRow
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
        parts += [f"driver {driver()}", f"kernels {_sources()}"]
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
    for shape in ((2, 3, 5, 7), (2, 3, 8, 8)):  # ragged, and what is packed
        images = (torch.arange(math.prod(shape), device=device).reshape(shape) - 90.0) / 77.0
        for rounding in ROUNDINGS:
            same = torch.equal(ops.quantize(images, rounding), quantize_ref(images, rounding))
            _require(same, f"quantize {'x'.join(map(str, shape))} to {rounding}")
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
    for d in (9216, 2, 1):  # several tiles and norm's programs a sample, several samples a tile, and no vector at all
        _require(_whole_row(d, device, ops), f"a guided row of {d} in bfloat16 with known data: backend {ops.name}")
    yield f"rows with everything: {ops.name} equals the reference"
    if replay:
        _require(*_real_network(device, ops))
        yield "a network of matrix products: two replays are equal, and near the plain loop"


def driver() -> str:
    """Return the version of the GPU's driver; what torch knows of it where the system does not say."""
    try:
        line = Path("/proc/driver/nvidia/version").read_text().splitlines()[0]
    except (OSError, IndexError):
        return str(getattr(torch._C, "_cuda_getDriverVersion", int)())
    return " ".join(re.findall(r"\d+(?:\.\d+)+", line)) or line


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
    if ops is REFERENCE:
        return ops
    if dtype == torch.float64:
        raise ValueError(f"backend = {backend!r} keeps a float32 state; float64 needs backend='reference'")
    if backend == "auto" and device.type == "cuda":
        reason = _unusable(device, ops)
        if reason:
            warnings.warn(
                f"backend {ops.name}: {reason}: using the reference backend, same samples, slower", stacklevel=3
            )
            return REFERENCE
        return ops
    ensure(device, ops)
    return ops


@cache
def _unusable(device: torch.device, ops: Ops) -> str:
    """Return why a backend cannot run at all on a GPU, or nothing; tried once in a process.

    Triton's first launch needs a C compiler and Python's headers, and much else may be missing on a machine. Wrong bits
    are no such reason: they are raised.
    """
    try:
        ensure(device, ops)
    except SelfCheckError:
        raise
    except Exception as error:  # of a compiler, a linker, a driver
        return f"{type(error).__name__}, {short(first_reason(error))}"
    return ""


def cache_file() -> Path:
    """Return where passed checks are remembered."""
    return cache_folder() / "selfcheck.json"


@cache
def _sources() -> str:
    """Return a digest of the kernels' sources: what was checked before one of them changed is checked again."""
    digest = hashlib.sha256()
    for file in sorted(Path(abi.__file__).parent.rglob("*.py")):
        digest.update(file.read_bytes())
    return digest.hexdigest()[:16]


def _loop(solver: Solver, shape: tuple[int, ...], device: torch.device, ops: Ops, net: nn.Module | None = None) -> Loop:
    schedule = VP()

    def elementwise(u: Tensor, t: Tensor, cond: object) -> Tensor:
        return u / (1.0 + u * u) if net is None else net(u).view_as(u)

    modules = () if net is None else (net,)
    model = ScoreModel(elementwise, shape, schedule, Parametrization("eps"), modules=modules)
    bound = BoundPlan(make_plan(solver, schedule, karras(4)(schedule)), model)
    execution = Execution(device, batch=8)
    loop = Loop(bound, model, execution, ops)
    loop.load(Request(NoiseKey.of(11, [0, 1, 2**33, 5], device)).padded(execution.batch))
    return loop


def _whole_row(d: int, device: torch.device, ops: Ops) -> bool:
    """Return whether a row with all that a row can have is the reference's: two outputs, one of them with its channels
    last, history, mask, noise, clip; and its norms."""
    key = NoiseKey.of(5, range(3), device)
    z = key.normal(0, d + 8).unfold(1, d, 1)  # [3, 9, d], one element further each
    values = [0.9, -0.4, 0.7, 1.1, 1.3, -0.3, 0.6, 0.2, -0.1, 0.05, 0.3, 1.0, 3.0, 1.5, 0.2, 1e9]  # columns of abi.py
    table = torch.tensor([values, [*values[::-1][:11], 3.0, 4.0, 0.0, 0.3, 1e9]], device=device)
    idx = torch.tensor([0, 1, 1], dtype=torch.int32, device=device)  # a row of its own for each sample
    found = []
    for each in (REFERENCE, ops):
        x, hist, u = z[:, 0].clone(), z[:, 1:5].transpose(0, 1).contiguous(), z[:, 0].bfloat16()
        F, F2 = z[:, 5].bfloat16(), z[:, 6].bfloat16()
        F = F.view(3, 3, 1, -1).contiguous(memory_format=torch.channels_last) if d % 3 == 0 else F
        own = torch.zeros(3, abi.WIDTH, device=device)
        each.langevin(x, F, table, idx, key, own, "sample", torch.ones(3, device=device), F2=F2)
        known = KnownRow(z[:, 7].clone(), z[:, 8] > 0.0, table, idx, key)
        each.update(x, F, hist, table, idx, key, F2=F2, known=known, out_u=u)
        found.append((x, hist, u, own))
    return all(torch.equal(a, b) for a, b in zip(*found, strict=True))


def _real_network(device: torch.device, ops: Ops) -> tuple[bool, str]:
    """Return whether replays hold where libraries have workspaces of their own, and what to say."""
    net = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.SiLU(), nn.Flatten(), nn.Linear(256, 192)).to(device)
    with torch.no_grad():
        for p in net.parameters():
            p.copy_(torch.linspace(-0.1, 0.1, p.numel(), device=device).sin().reshape(p.shape))
    loop = _loop(DPMpp2M(), (3, 8, 8), device, REFERENCE if ops.name == "cpp" else ops, net)
    expected = loop.run()
    graphed = Graphed(loop, _recorder(loop), "step")
    first = graphed.run()
    if device.type == "cuda":
        torch.cuda.empty_cache()
    again = graphed.run()
    same = torch.equal(first, again) and torch.allclose(first, expected, 1e-2, 1e-2)
    return same, "a network of matrix products: replays differ from each other or from the plain loop"


def _recorder(loop: Loop) -> Recorder:
    """Return a recorder of its own for each recording: a pool whose graphs have died is not used again."""
    return CudaGraphs(loop.x.device, loop.networks) if loop.x.device.type == "cuda" else Tape()


def _require(equal: bool, message: str) -> None:
    if not equal:
        raise SelfCheckError(f"{message} on this machine; samples would not be reproducible. Please report it")
