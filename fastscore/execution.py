"""How a run is computed, and nothing about what: device, micro-batch, state dtype, network path, backend, graphs.

One frozen object, taken by every sampler, written to run.json, and small enough to travel to another process.
"""

# pyright: reportUnnecessaryIsInstance=false, reportUnnecessaryComparison=false
# What users pass is checked whatever its annotation says.

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass, replace
from functools import lru_cache
from typing import TYPE_CHECKING, Any, TypedDict

import torch
from torch import nn

from fastscore.errors import short, typed, unknown
from fastscore.ops.backend import BACKENDS

if TYPE_CHECKING:
    from typing_extensions import Unpack

NETWORKS = ("own", "auto", "fp32", "tf32", "bf16", "compile", "regional")
GRAPHS = ("step", "loop")
GUIDED = ("auto", "serial", "batched")
MOST = 256  # lines that "auto" gives one call: more fill a GPU anyway, and take as much more of its memory


class ExecutionFields(TypedDict, total=False):
    """The fields of Execution as keywords of a sampler: ``Sampler(model, batch=8)``."""

    device: torch.device | str | None
    batch: int
    dtype: torch.dtype
    network: str
    backend: str
    graph: str
    guided: str


@dataclass(frozen=True)
@typed
class Execution:
    """The settings of how a run is computed.

    Attributes:
        device: of the state; None is where the network's parameters live, or the CPU if it has none. Nobody's module
            is moved: a network elsewhere is refused.
        batch: micro-batch, or lanes of an adaptive solver. The network always runs at this size (a short tail is
            padded with dummy samples that are dropped), so that a sample does not depend on how many are drawn.
        dtype: of the state: torch.float32, or torch.float64 for parity runs.
        network: "own" evaluates the network as it is; "auto", "fp32", "bf16" and, on CUDA, "tf32" compile it ahead of
            time on first use and check it against itself (fastscore.prepare); "compile" runs it through torch.compile
            as one graph, "regional" block by block. TF32 is used in "tf32" alone, and as torch is set in the last two
            and "own".
        backend: of the fused row: "auto", "reference", "cpp" or "triton"; see ops/backend.py.
        graph: CUDA graphs: "off", "step" (one a repeated group of rows), "loop" (one for all; up to 50,000 kernels), or
            "auto": "step", and the plain loop with a warning where the network cannot be captured. Of an adaptive
            solver or a likelihood a tick is one ("step"), of Picard a sweep. None on a CPU, and none with a guide.
        guided: how a row that is mixed of several outputs of one network (classifier-free guidance) evaluates them:
            "serial", one call after the other, each with a micro-batch; "batched", one call with all of their lines,
            in as much more memory; or "auto", batched on CUDA up to 256 lines and serial elsewhere. A network may
            round differently in another number of lines, so this is part of what samples are a function of. Second
            models, adaptive solvers, Picard, rollouts and joint models are serial; so are, on CUDA, networks compiled
            ahead of time unless all evaluations of a plan are mixed alike, as they take one number of lines.

    Raises:
        ValueError: a value outside these ranges, or two that exclude each other.
    """

    device: torch.device | str | None = None
    batch: int = 64
    dtype: torch.dtype = torch.float32
    network: str = "own"
    backend: str = "auto"
    graph: str = "auto"
    guided: str = "auto"

    def __post_init__(self) -> None:
        if self.device is not None:
            object.__setattr__(self, "device", _device(self.device))
        if isinstance(self.batch, bool) or not isinstance(self.batch, int) or self.batch < 1:
            raise ValueError(f"batch = {self.batch!r} must be a whole number, at least 1")
        if self.dtype not in (torch.float32, torch.float64):
            raise ValueError(f"dtype = {short(self.dtype)} must be torch.float32 or torch.float64")
        if self.network not in NETWORKS:
            raise unknown("network", self.network, NETWORKS)
        if self.backend not in BACKENDS:
            raise unknown("backend", self.backend, BACKENDS)
        if self.graph not in ("auto", "off", *GRAPHS):
            raise ValueError(f"graph = {self.graph!r} must be auto, off, {' or '.join(GRAPHS)}")
        if self.guided not in GUIDED:
            raise unknown("guided", self.guided, GUIDED)
        if self.ahead_of_time and self.dtype != torch.float32:
            raise ValueError(f"network = {self.network!r} computes for a float32 state; use network='own'")

    @classmethod
    def of(cls, execution: Execution | None = None, **fields: Unpack[ExecutionFields]) -> Execution:
        """Return an execution with some of its fields given by keyword.

        Raises:
            ValueError: a value out of range.
            TypeError: a keyword that is no field.
        """
        unknown = sorted(set(fields) - set(ExecutionFields.__annotations__))
        if unknown:
            raise TypeError(
                f"unexpected keyword {', '.join(unknown)}; an execution has "
                f"{', '.join(ExecutionFields.__annotations__)}"
            )
        return replace(execution or cls(), **fields)

    def on(self, *networks: object) -> Execution:
        """Return it with the device of these networks, which must agree, and with what that device rules out checked.

        Raises:
            ValueError: networks on several devices, on another one than ``device``, or graphs without CUDA.
        """
        homes = {p.device for net in modules(networks) for p in [*net.parameters(), *net.buffers()]}
        if len(homes) > 1:
            places = ", ".join(sorted(map(str, homes)))
            raise ValueError(f"the network lies on {places}; move all of it to one device, e.g. net.to('cuda')")
        home = next(iter(homes), None)
        device = home or _device(self.device or "cpu")
        if device.type == "cuda" and home is None and not torch.cuda.is_available():
            raise ValueError(f"device = {device}: torch sees no CUDA device here; use device='cpu' or leave it out")
        if self.device is not None and _device(self.device) != device:
            raise ValueError(
                f"device = {self.device} but the network is on {device}, and a sampler moves nobody's network: "
                f"net.to({str(self.device)!r}) first, or leave device out"
            )
        if device.type not in ("cpu", "cuda"):
            raise ValueError(f"device = {device} must be cpu or cuda: rows are computed in float64 tables there")
        if device.type != "cuda" and self.network == "tf32":
            raise ValueError(f"network = 'tf32' needs a CUDA device, not {device}; use network='fp32' or 'auto'")
        if device.type != "cuda" and self.graph in GRAPHS:
            raise ValueError(f"graph = {self.graph!r} needs a CUDA device, not {device}; use graph='auto'")
        return _placed(self, device)

    def around(self, *networks: object) -> tuple[Execution, torch.dtype]:
        """Return it with the device of these networks, and the dtype that they read; errors as of both."""
        on = self.on(*networks)
        return on, on.network_dtype(*networks)

    @property
    def place(self) -> torch.device:
        """The device, of an execution that ``on`` returned."""
        return _device(self.device or "cpu")

    @property
    def fixed(self) -> bool:
        """Whether the network may have been compiled for one number of lines and no others."""
        return self.ahead_of_time and self.place.type == "cuda"

    def batches(self, calls: int) -> bool:
        """Return whether so many evaluations of one network at one input are one call."""
        few = self.place.type == "cuda" and calls * self.batch <= MOST
        return calls > 1 and (self.guided == "batched" or (self.guided == "auto" and few))

    @property
    def ahead_of_time(self) -> bool:
        """Whether the network is compiled before a run and checked against itself."""
        return self.network in ("auto", "fp32", "tf32", "bf16")

    def network_dtype(self, *networks: object) -> torch.dtype:
        """Return the dtype that networks read: that of their parameters, or the state's if they have none.

        Raises:
            ValueError: networks that read different dtypes, or one of float64 and the state not.
        """
        first = [
            next((p.dtype for p in net.parameters() if p.is_floating_point()), self.dtype) for net in modules(networks)
        ]
        dtypes = set(first) or {self.dtype}
        if len(dtypes) > 1:
            raise ValueError(f"networks read {' and '.join(sorted(map(str, dtypes)))}; convert one with net.to(..)")
        dtype = dtypes.pop()
        if dtype != self.dtype and torch.float64 in (dtype, self.dtype):
            raise ValueError(
                f"the network is in {dtype} and the state in {self.dtype}; convert it with net.to({self.dtype})"
            )
        return dtype

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON values."""
        return {k: v if isinstance(v, int) else None if v is None else str(v).removeprefix("torch.")
                for k, v in asdict(self).items()}  # fmt: skip

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Execution:
        """Return the execution that ``to_dict`` described."""
        return cls(**{k: getattr(torch, v) if k == "dtype" else v for k, v in values.items()})


def _device(device: torch.device | str) -> torch.device:
    """Return a device with its index: "cuda" is the current CUDA device."""
    try:
        place = torch.device(device)
    except (RuntimeError, TypeError):
        raise ValueError(f"device = {short(device)} must be cpu, cuda or cuda:N") from None
    if place.type == "cuda" and place.index is None and torch.cuda.is_available():
        return torch.device("cuda", torch.cuda.current_device())
    return place


@lru_cache(maxsize=256)
def _placed(execution: Execution, device: torch.device) -> Execution:
    """Return an execution on a device; a run asks for its own again, and its fields are checked once."""
    return replace(execution, device=device)


def modules(networks: Iterable[object]) -> Iterator[nn.Module]:
    """Yield the networks that are modules; a plain function has no parameters that anyone could see."""
    return (net for net in networks if isinstance(net, nn.Module))
