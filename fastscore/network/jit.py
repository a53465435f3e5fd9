"""torch.compile around the score network."""

from __future__ import annotations

import os
import shutil
import warnings
from collections import Counter
from collections.abc import Callable, Generator
from contextlib import contextmanager
from copy import deepcopy
from types import FunctionType, MethodType
from typing import Any

import torch
from torch import Tensor, nn

from fastscore.model.condition_shapes import Condition
from fastscore.network.cache import inductor
from fastscore.network.watch import Snapshot, tensors

Net = Callable[[Tensor, Tensor, Condition], Tensor]


def has_compiler(device: torch.device | str = "cpu") -> bool:
    """Return whether torch can compile for a device: CUDA brings its own compiler, a CPU needs C++ (or $CXX)."""
    return torch.device(device).type == "cuda" or compiler() is not None


def compiler() -> str | None:
    """Return the C++ compiler that torch would run: $CXX, or the first of g++, clang++ and c++ on the PATH."""
    names = [os.environ["CXX"]] if os.environ.get("CXX") else ["g++", "clang++", "c++"]
    return next(filter(None, map(shutil.which, names)), None)


def compiled(
    net: Net, mode: str, device: torch.device | str = "cpu", options: dict[str, Any] | None = None
) -> Callable[..., Tensor]:
    """Return the network run through torch.compile, without graph breaks and at fixed shapes.

    Args:
        net: the network; it is not changed.
        mode: "compile": as one graph, which is fastest; "regional": each class of block that occurs more than once,
            so that equal blocks share one compilation.
        device: that it runs on.
        options: of torch's compiler, for "compile".

    Raises:
        ValueError: no compiler, or nothing repeated to compile.
    """
    if not has_compiler(device):
        raise ValueError(f"network = {mode!r} needs a C++ compiler (g++ or clang++) on the CPU; use network='own'")
    inductor(lambda line: warnings.warn(line, stacklevel=4))
    if mode == "compile":

        def call(*inputs: Any) -> Tensor:
            return net(*inputs)

        return torch.compile(_own(call), fullgraph=True, dynamic=False, options=options)
    if not isinstance(net, nn.Module):
        raise ValueError("network = 'regional' needs an nn.Module; use network='compile'")
    blocks = Counter(type(m) for m in net.modules() if type(m).__module__.split(".")[0] != "torch")
    repeated = {kind for kind, count in blocks.items() if count > 1}
    if not repeated:
        raise ValueError(
            f"network = 'regional': {type(net).__name__} repeats no block of its own; use network='compile'"
        )
    return Regional(net, repeated)


def _own(function: Any) -> Any:
    """Return a function with code of its own.

    torch counts compilations by code, and refuses the ninth: of nine micro-batches of a network, networks of a class,
    or shapes of a block.
    """
    if not isinstance(function, FunctionType):  # wrapped in something else
        return function
    code, default = function.__code__.replace(), function.__defaults__
    own = FunctionType(code, function.__globals__, function.__name__, default, function.__closure__)
    own.__kwdefaults__ = function.__kwdefaults__
    return own


class Regional(nn.Module):
    """A network whose repeated blocks are compiled: in a copy, which has the network's own tensors for its own."""

    def __init__(self, net: nn.Module, repeated: set[type]) -> None:
        super().__init__()
        self.net, self.repeated = net, repeated
        self.refresh()

    def refresh(self) -> None:
        """Copy the network as it is."""
        copy = deepcopy(self.net, {id(t): t for _, t in tensors(self.net)})
        codes: dict[Any, Any] = {}  # of equal blocks, which share their compilation
        for m in copy.modules():
            if type(m) in self.repeated:
                equal = type(m), *(p.shape for p in m.parameters())
                m.forward = MethodType(codes.setdefault(equal, _own(type(m).forward)), m)
                m.compile(fullgraph=True)
        self.copy, self.seen = copy, Snapshot(self.net, "objects")

    @contextmanager
    def steady(self, look: bool = True) -> Generator[None]:
        """Copy the network again if a layer or a tensor of it has been replaced, and one is to ``look``."""
        if look and not self.seen.holds():
            self.refresh()
        yield

    def forward(self, u: Tensor, c_noise: Tensor, cond: Condition = None) -> Tensor:
        return self.copy(u, c_noise, cond)
