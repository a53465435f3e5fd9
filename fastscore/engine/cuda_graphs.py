"""CUDA graphs that leave the process as it was, whatever happens while they are recorded.

A capture that breaks half-way leaves its thread on a foreign stream and, up to torch 2.11, the allocator in a state of
its own. So what cannot be captured is told before: the work is evaluated once under a mode that refuses what no graph
can hold. What may still fail is undone: stream, device, garbage collection and the pool are given back in any case.
"""

from __future__ import annotations

import gc
import threading
import warnings
import weakref
from collections.abc import Callable, Generator
from contextlib import ExitStack, contextmanager

import torch
from torch import Tensor, nn

from fastscore.network.surroundings import behind
from fastscore.network.watch import tensors
from fastscore.testing import Capturable

Work = Callable[[], None]
STREAMS = 32  # that torch has, of each of two priorities; then they come again

_lock = threading.RLock()  # of this process: two captures at once are forbidden, and a warm-up allocates
_leases: dict[int, _Leases] = {}


class _Leases:
    """Streams of a device that captures were on: one goes to one recording at a time, and again after its end.

    Libraries keep a workspace for each stream, which graphs captured there point to. Where two share a stream, the
    end of the first frees what the other one still uses.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.free: list[torch.cuda.Stream] = []
        self.taken: set[int] = set()

    def take(self) -> Lease:
        """Return a stream that no other living recording was made on.

        Raises:
            RuntimeError: each stream is taken.
        """
        for k in range(0 if self.free else 2 * STREAMS):
            stream = torch.cuda.Stream(self.device, priority=0 if k < STREAMS else -1)
            if stream.cuda_stream not in self.taken:
                self.free.append(stream)
                break
        if not self.free:
            raise RuntimeError(
                f"{len(self.taken)} recordings are alive on {self.device}, as many as torch has streams; release() a "
                "sampler that is not used"
            )
        lease = Lease(self.free.pop())
        self.taken.add(lease.stream.cuda_stream)
        weakref.finalize(lease, self.give_back, lease.stream).atexit = False
        return lease

    def give_back(self, stream: torch.cuda.Stream) -> None:
        """Take a stream back whose recordings are gone."""
        self.taken.discard(stream.cuda_stream)
        self.free.append(stream)


class Lease:
    """A stream for as long as somebody holds this."""

    def __init__(self, stream: torch.cuda.Stream) -> None:
        self.stream = stream


class Recording:
    """A captured graph, called to replay it on the current stream; it owns whatever it reads.

    A graph knows tensors by their addresses and kernels by theirs. So the tensors that the work found are held, though
    their owner may replace them, and the work itself, which holds the code.
    """

    def __init__(self, graph: torch.cuda.CUDAGraph, device: torch.device, *holds: object) -> None:
        self.graph, self.device, self.holds = graph, device, holds

    def __call__(self) -> None:
        with torch.cuda.device(self.device):
            self.graph.replay()


class CudaGraphs:
    """Recorder of CUDA graphs over one memory pool and one stream, which end with the last of them.

    Args:
        device: with its index.
        networks: what the work evaluates: tensors of modules behind them are held beside those that were seen.
    """

    def __init__(self, device: torch.device, networks: tuple[object, ...] = ()) -> None:
        gc.collect()  # memory of graphs that are gone, and their streams
        self.device, self.networks, self.pool = device, networks, torch.cuda.graph_pool_handle()
        with _lock:
            self.lease = _leases.setdefault(device.index or 0, _Leases(device)).take()
        self.read: dict[int, Tensor] = {}

    def try_out(self, reset: Work, work: Work) -> int:
        """Warm up, and look whether the work can be captured; return about how many kernels it launches.

        The first time, libraries choose kernels and networks compile; the second time each operation is looked at.

        Raises:
            HostSyncError: it cannot: the operation is named. Nothing was captured.
        """
        with _lock, self._around():
            with self._beside():
                reset()
                work()
            with self._beside(), self._looking() as looking:
                reset()
                if looking is None:
                    work()
                else:
                    with looking:
                        work()
                    self.read |= looking.read
            with self._beside():
                reset()
        return 0 if looking is None else looking.launches

    def record(self, reset: Work, work: Work, tried: bool = False) -> Work:
        """Capture the work, once it was tried out, alone or in parts, and return the call that replays it.

        Raises:
            Exception: whatever a capture raises; stream, device and collection are as before.
        """
        if not tried:
            self.try_out(reset, work)
        graph = torch.cuda.CUDAGraph()
        with _lock, self._around(), _uncollected():
            reset()
            _clear_workspaces()  # so that the capture takes its own, from its own pool
            try:
                with torch.cuda.graph(
                    graph, pool=self.pool, stream=self.lease.stream, capture_error_mode="thread_local"
                ):
                    work()
            except BaseException:
                self._abandon()
                raise
            finally:
                _clear_workspaces()
        return Recording(graph, self.device, self.lease, work, list(self.read.values()), self._of_modules())

    def _of_modules(self) -> list[Tensor]:
        return [t.detach() for m in behind(*self.networks) for _, t in tensors(m)]

    @contextmanager
    def _around(self) -> Generator[None]:
        """Be on the device, and afterwards where the caller was: a broken capture does not go back by itself."""
        device, stream = torch.cuda.current_device(), torch.cuda.current_stream(self.device)
        try:
            torch.cuda.set_device(self.device)
            yield
        finally:
            torch.cuda.set_stream(stream)  # which is on this device, and goes to it
            torch.cuda.set_device(device)

    @contextmanager
    def _beside(self) -> Generator[None]:
        """Be on the capture's stream, behind what the caller's has to do, and it behind this."""
        current = torch.cuda.current_stream(self.device)
        self.lease.stream.wait_stream(current)
        try:
            with torch.cuda.stream(self.lease.stream):
                yield
        finally:
            current.wait_stream(self.lease.stream)

    @contextmanager
    def _looking(self) -> Generator[Capturable | None]:
        """Return the mode that looks at operations; None where code that was compiled would have to run in it.

        Compiled code does not run under such a mode; it is told to run as it is written, which holds for the whole
        process, as does torch's own watch over waiting. Both are left alone while other threads are there.
        """
        if _others():
            modules = behind(*self.networks)
            plain = all(isinstance(net, nn.Module) for net in self.networks if callable(net))
            compiled = any(getattr(m, "_compiled_call_impl", None) or hasattr(m, "_orig_mod") for m in modules)
            yield Capturable(self.device) if plain and modules and not compiled else None
            return
        with ExitStack() as exits:
            exits.enter_context(torch.compiler.set_stance("force_eager"))
            exits.callback(_watch_waiting, torch.cuda.get_sync_debug_mode())
            _watch_waiting("error")
            yield Capturable(self.device)

    def _abandon(self) -> None:
        """Let the allocator leave the pool of a capture that broke, which torch up to 2.11 does not."""
        end = getattr(torch._C, "_cuda_endAllocateToPool", None)
        try:
            if end is not None:
                end(self.device.index or 0, self.pool)
        except RuntimeError:
            pass  # it has left


@contextmanager
def _uncollected() -> Generator[None]:
    """Collect no garbage: a dead kernel's end unloads its module, which breaks a capture."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


def _clear_workspaces() -> None:
    clear = getattr(torch._C, "_cuda_clearCublasWorkspaces", None)
    if clear is not None:
        clear()


def _watch_waiting(mode: int | str) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that it is a prototype
        torch.cuda.set_sync_debug_mode(mode)


def _others() -> bool:
    """Return whether other threads are there."""
    return threading.active_count() > 1
