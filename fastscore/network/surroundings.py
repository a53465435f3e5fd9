"""The surroundings of a run: its networks' modes, and the settings of the caller's thread, for its length only.

A sampler is a function of its settings, and the caller's objects are the caller's. So a run puts its networks in eval
mode, records no gradients, and shuts out autocast, inference mode, the default dtype and device and the number of
threads as they happen to be; afterwards all of it is as it was, also when the run fails.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Generator, Iterator
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import is_dataclass
from functools import partial
from types import FunctionType, MethodType, ModuleType
from typing import Any

import torch
from torch import nn

from fastscore.network import arithmetic

PATIENCE = 600.0  # seconds for a micro-batch of another thread in another dtype
MEMBERS = 100  # containers of more hold data, not networks
_LEAVES = (bool, int, float, str, bytes, type(None), torch.Tensor, torch.dtype, torch.device, ModuleType)

_PROCESS = os.getpid()  # a forked one lacks the threads of OpenMP's pool, and would wait for them for ever

_lock = threading.Lock()
_evaluated: dict[nn.Module, list[int]] = {}  # modules that were in training mode; threads whose runs keep them in eval


def behind(*networks: object) -> list[nn.Module]:
    """Return the modules that networks and guides are or run, each submodule once.

    Looked through are bound methods, functools.partial, decorated functions, what a function closes over and the
    globals that it names, small containers, and the attributes of callable objects. A module that a function finds
    in another way is named by ``ScoreModel.modules``.
    """
    return all_behind(*networks)[0]


def all_behind(*networks: object) -> tuple[list[nn.Module], list[torch.Tensor]]:
    """Return the modules as ``behind`` does, and tensors that are found so in no module: what a function closes over.

    One walk finds both: it is made before each micro-batch that is replayed.
    """
    found: dict[nn.Module, None] = {}
    loose: list[torch.Tensor] = []
    seen: dict[int, object] = {}  # holds what was seen, so that no id comes twice
    left: list[Any] = list(networks)
    while left:
        thing = left.pop()
        if isinstance(thing, torch.Tensor):
            loose.append(thing)
        if isinstance(thing, _LEAVES) or id(thing) in seen:
            continue
        seen[id(thing)] = thing
        if isinstance(thing, nn.Module):
            modules = list(thing.modules())
            found |= dict.fromkeys(modules)
            own = [v for m in modules for k, v in vars(m).items() if k[:1] != "_"]
            left += [v for v in own if not isinstance(v, _LEAVES)]
        elif isinstance(thing, list | tuple | set | frozenset | dict):
            if len(thing) <= MEMBERS:
                left += thing.values() if isinstance(thing, dict) else thing
        elif isinstance(thing, MethodType):
            left += [thing.__self__, thing.__func__]
        elif isinstance(thing, partial):
            left += [thing.func, *thing.args, *thing.keywords.values()]
        elif isinstance(thing, FunctionType):
            left.append(getattr(thing, "__wrapped__", None))
            if str(thing.__module__).split(".")[0] not in ("torch", "numpy"):
                left += [*_cells(thing), *(thing.__defaults__ or ()), *(thing.__kwdefaults__ or {}).values()]
                left += [thing.__globals__[k] for k in thing.__code__.co_names if k in thing.__globals__]
        elif (callable(thing) or is_dataclass(thing)) and not isinstance(thing, type):
            left += getattr(thing, "__dict__", {}).values()
    return list(found), loose


def _cells(function: FunctionType) -> Iterator[object]:
    """Yield what a function closes over."""
    for cell in function.__closure__ or ():
        try:
            yield cell.cell_contents
        except ValueError:  # not yet assigned
            pass


@contextmanager
def evaluating(*networks: object) -> Generator[None]:
    """Run networks, and modules behind functions, in eval mode; leave each submodule in the mode that it had.

    Runs of several threads may share a network: it returns to its mode with the last of them.
    """
    held = []
    with _lock:
        for m in behind(*networks):
            if m.training or m in _evaluated:
                _evaluated.setdefault(m, []).append(threading.get_ident())
                m.training = False
                held.append(m)
    try:
        yield
    finally:
        with _lock:
            for m in held:
                _evaluated[m].remove(threading.get_ident())
                if not _evaluated[m]:
                    del _evaluated[m]
                    m.training = True


class _Shared:
    """A setting of the whole process, held for a run: runs of threads that want different values take turns.

    Args:
        name: in torch.
        read, write: the setting; what ``read`` returns can be written.
    """

    def __init__(self, name: str, read: Callable[[], Any], write: Callable[[Any], object]) -> None:
        self.name, self.read, self.write = name, read, write
        self.free, self.outside = threading.Condition(), None
        self.inside: list[tuple[int, Any]] = []  # runs that go on: their threads, and what they want

    @contextmanager
    def of(self, value: Any) -> Generator[None]:
        """Hold it at a value, or if None at what it is outside; where the last run ends it is as before the first."""
        run = threading.get_ident(), value
        with self.free:
            # Within a callback of a run none can wait for that.
            if self.inside and all(thread != run[0] for thread, _ in self.inside):
                alone = self.free.wait_for(lambda: all(other == value for _, other in self.inside), PATIENCE)
                if not alone:
                    raise RuntimeError(
                        f"a run of another thread has held torch's {self.name}, which is one for the process, for "
                        f"{PATIENCE:.0f} s, and this one needs {value}; does its callback wait for this thread?"
                    )
            if not self.inside:
                self.outside = self.read()
            self.inside.append(run)
            self.set()
        try:
            yield
        finally:
            with self.free:
                del self.inside[len(self.inside) - 1 - self.inside[::-1].index(run)]
                self.set()
                self.free.notify_all()

    def set(self) -> None:
        """Set it to what the latest run wants, or to what it was outside."""
        wanted = self.inside[-1][1] if self.inside else None
        wanted = self.outside if wanted is None else wanted
        if self.read() != wanted:
            self.write(wanted)

    def forget(self, me: int) -> None:
        """Forget the runs of other threads than ``me``, and the lock that they held."""
        held, self.free = self.inside, threading.Condition()
        self.inside = [run for run in held if run[0] == me]
        if held:
            self.set()


def _kernels(state: tuple[bool, ...] | None = None) -> tuple[bool, ...]:
    """Return, or set: is cuDNN deterministic; may attention be flash, memory-efficient, cuDNN's, plain products."""
    cuda: Any = torch.backends.cuda
    cudnn: Any = torch.backends.cudnn
    if state is not None:
        cudnn.deterministic = state[0]
        setters = cuda.enable_flash_sdp, cuda.enable_mem_efficient_sdp, cuda.enable_cudnn_sdp, cuda.enable_math_sdp
        for enable, on in zip(setters, state[1:], strict=True):
            enable(on)
    attention = cuda.flash_sdp_enabled(), cuda.mem_efficient_sdp_enabled(), cuda.cudnn_sdp_enabled()
    return cudnn.deterministic, *attention, cuda.math_sdp_enabled()


_default = _Shared("default dtype", torch.get_default_dtype, torch.set_default_dtype)
multiplying = _Shared("TF32 setting", arithmetic.read, arithmetic.write)  # of CUDA's float32: True, False
_backward = _Shared("choice of kernels", _kernels, _kernels)


@contextmanager
def repeatable(place: torch.device) -> Generator[None]:
    """Let derivatives of a network on CUDA come out the same each time.

    cuDNN's gradients of convolutions, and those of fused attention, may add in the order in which blocks end; for this
    length others are taken. Those of attention can be differentiated again, too.
    """
    with _backward.of((True, False, False, False, True)) if place.type == "cuda" else nullcontext():
        yield


def _after_fork() -> None:
    """Forget the runs of threads that a forked process has not, and the locks that they held."""
    global _lock
    me, _lock = threading.get_ident(), threading.Lock()
    for shared in (_default, multiplying, _backward):
        shared.forget(me)
    for m in list(_evaluated):
        _evaluated[m] = [thread for thread in _evaluated[m] if thread == me]
        if not _evaluated[m]:
            del _evaluated[m]
            m.training = True


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)


@contextmanager
def undisturbed(
    dtype: torch.dtype = torch.float32,
    place: torch.device | None = None,
    threads: int | None = None,
    gradients: bool = False,
    tf32: bool | None = None,
) -> Generator[None]:
    """Shut out what the caller's thread has set, and record no gradients.

    Args:
        dtype: default dtype inside, that of the state.
        place: where networks that name no device make their tensors, where the caller has set another device than
            the CPU; left alone otherwise.
        threads: of torch on the CPU; left alone if None. One in a forked process.
        gradients: leave the caller's grad mode.
        tf32: whether CUDA rounds the factors of float32 products to TF32; as the caller has it if None.
    """
    enabled = gradients and torch.is_grad_enabled()
    threads = 1 if os.getpid() != _PROCESS else threads
    outside = torch.get_num_threads()
    # Inference mode first: to leave it switches gradients on.
    with torch.inference_mode(False), torch.set_grad_enabled(enabled), _default.of(dtype), ExitStack() as exits:
        for kind in {"cpu", "cpu" if place is None else place.type}:
            if torch.is_autocast_enabled(kind):
                exits.enter_context(torch.autocast(kind, enabled=False))
        if torch.get_default_device() not in (torch.device("cpu"), place):
            exits.enter_context(torch.device(place or "cpu"))
        if place is not None and place.type == "cuda":
            exits.enter_context(multiplying.of(tf32))
        if threads not in (None, outside):
            exits.callback(torch.set_num_threads, outside)
            torch.set_num_threads(threads)
        yield
