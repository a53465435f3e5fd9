"""CUDA devices that are not there: what their code does, on a CPU, with every rule of theirs that a capture can break.

    with FakeCuda(devices=2) as fake:
        net = net.to("cuda:1")
        x = Sampler(model, batch=8).run(range(20))  # x.device is cuda:1
        fake.launches, fake.syncs, fake.calls

A tensor says that it lies on "cuda:0" and holds a CPU tensor; each operation runs there at once, in the order of the
calls, so values are those of a CPU. What a card would do otherwise is played: devices may not be mixed, a copy to
pinned memory arrives when its stream is waited for, streams that touch the same memory without waiting for each other
are an error, ``torch.empty`` is NaN. ``torch.cuda.graph`` is torch's own code, over graphs that do nothing while they
are recorded and do it again on replay, over the very memory: what was freed is an error, results of before are NaN.
What a capture forbids invalidates it, whose end then raises, as torch's does.

Planted failures: ``fake.plant(name, error, after, capturing)``; ``fake.collect`` collects garbage in each capture.
"""

from __future__ import annotations

import ctypes
import gc
import itertools
import threading
import weakref
from collections import defaultdict
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple
from unittest import mock

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes
from torch.utils._pytree import tree_flatten, tree_leaves, tree_map

aten = torch.ops.aten
NAN = float("nan")
STREAMS = 32  # of a device; the next one is the first again
_BLAS = {aten.mm, aten.addmm, aten.bmm, aten.baddbmm, aten.convolution, aten.linear}  # that have a workspace
_EMPTY = {aten.empty, aten.empty_strided, aten.empty_like, aten.new_empty, aten.new_empty_strided}
_ALLOCATE = _EMPTY | {aten.detach, aten.alias, aten.lift_fresh}  # without a kernel
_MIXES = {aten.copy_, aten._to_copy, aten.index, aten.index_put, aten.index_put_, aten.set_}


class Call(NamedTuple):
    """One call of CUDA: what it is ("launch", "sync", ..), its name, where, and whether it was recorded only."""

    kind: str
    name: str
    device: int
    stream: int
    captured: bool = False


class IllegalAccess(RuntimeError):
    """An access that a card would answer with wrong values or with an end of the process."""


class Memory:
    """A block of a device's memory; freed with the last tensor that holds it."""

    def __init__(self, device: int, graph: Any = None) -> None:
        self.device, self.graph = device, None if graph is None else weakref.ref(graph)
        self.written: tuple[Stream, int] | None = None
        self.read: dict[Stream, int] = {}


class Stream:
    """A stream: what it has done, and of others what it has waited for."""

    def __init__(self, fake: FakeCuda, device: int, number: int) -> None:
        self.fake, self.device, self.stream_id = fake, torch.device("cuda", device), number
        self.device_index, self.device_type, self.cuda_stream = device, 1, 1000 * device + number
        self.seen: dict[Stream, int] = defaultdict(int)
        self.pending: list[tuple[int, Tensor, Tensor]] = []  # copies to pinned memory on their way
        self.capture: Graph | None = None

    def wait_event(self, event: Event) -> None:
        self.fake.note("wait", f"event of {event.stream}", self)
        _merge(self.seen, event.seen)

    def wait_stream(self, other: Stream) -> None:
        self.fake.note("wait", f"stream {other.stream_id}", self)
        _merge(self.seen, other.seen)

    def record_event(self, event: Event | None = None) -> Event:
        event = event or Event()
        event.record(self)
        return event

    def query(self) -> bool:
        self.fake.forbid("query of a stream", self)
        return not self.pending

    def synchronize(self) -> None:
        self.fake.synchronize_with(self.seen, "Stream.synchronize", self)

    def __repr__(self) -> str:
        return f"<stream {self.stream_id} of cuda:{self.device_index}>"


class Event:
    """A point in the work of a stream."""

    fake: FakeCuda

    def __init__(self, enable_timing: bool = False, blocking: bool = False, interprocess: bool = False) -> None:
        self.seen: dict[Stream, int] = {}
        self.stream: Stream | None = None

    def record(self, stream: Stream | None = None) -> None:
        self.stream = stream or self.fake.current_stream()
        self.fake.note("record", "event", self.stream)
        self.seen = dict(self.stream.seen)

    def wait(self, stream: Stream | None = None) -> None:
        (stream or self.fake.current_stream()).wait_event(self)

    def query(self) -> bool:
        self.fake.forbid("query of an event", self.fake.current_stream())
        return all(self.fake.host[s] >= t for s, t in self.seen.items())

    def synchronize(self) -> None:
        if self.stream is not None:
            self.fake.synchronize_with(self.seen, "Event.synchronize", self.stream)

    def elapsed_time(self, end: Event) -> float:
        return 1.0


class Graph:
    """torch.cuda.CUDAGraph: operations over the memory that they were recorded with."""

    fake: FakeCuda

    def __init__(self, keep_graph: bool = False) -> None:
        self.calls: list[tuple[Any, Any, Any, list[Tensor], list[bool], list[Any], list[Any]]] = []
        self.invalid = ""
        self.handle: Any = None
        self.stream: Stream | None = None
        self.before: dict[int, tuple[Tensor, Tensor]] = {}
        self.workspaces: list[Any] = []

    def capture_begin(self, pool: Any = None, capture_error_mode: str = "global", **options: Any) -> None:
        fake, stream = self.fake, self.fake.current_stream()
        fake.note("capture_begin", capture_error_mode, stream)
        if fake.capturing is not None:
            raise RuntimeError("two captures at once in one process")
        if stream.stream_id == 0:
            raise RuntimeError("CUDA graphs must be captured on a non-default stream")
        self.handle = pool or fake.graph_pool_handle()
        graphs = fake.pools[self.handle]
        if graphs and all(graph() is None for graph in graphs):
            raise RuntimeError("INTERNAL ASSERT FAILED: use_count > 0; the graphs of this pool have died")
        graphs.append(weakref.ref(self))
        self.mode, self.thread, self.stream = capture_error_mode, threading.get_ident(), stream
        fake.capturing = stream.capture = self
        fake.open_pools.add(self.handle)
        if fake.collect:
            gc.enable() if fake.collect == "always" else None
            threshold = gc.get_threshold()
            gc.set_threshold(1)
            _ = [[] for _ in range(50)]
            gc.set_threshold(*threshold)

    def capture_end(self) -> None:
        fake, stream = self.fake, self.stream
        fake.note("capture_end", "", fake.current_stream())
        if fake.capturing is not self or stream is None:
            raise RuntimeError("capture_end without a capture")
        fake.capturing = stream.capture = None
        for live, values in self.before.values():
            live.copy_(values)
        for *_, outs, fresh, _, _ in self.calls:
            _poison(outs, fresh)
        self.before = {}
        if self.invalid:
            self.calls = []
            raise RuntimeError(f"CUDA error: operation failed due to a previous error during capture ({self.invalid})")
        fake.open_pools.discard(self.handle)
        self.finalizer = weakref.finalize(self, fake.free, self.calls, stream)

    def replay(self) -> None:
        fake, stream = self.fake, self.fake.current_stream()
        fake.forbid("replay", stream)
        if self.stream is None or stream.device != self.stream.device:
            raise IllegalAccess(f"a graph of {self.stream} is replayed on {stream}")
        fake.note("replay", f"{len(self.calls)} calls", stream)
        if any(space() is None for space in self.workspaces):
            raise IllegalAccess("a graph's cuBLAS workspace was freed")
        for graph in fake.pools[self.handle]:
            for *_, outs, fresh, _, _ in () if (g := graph()) is None else g.calls:
                _poison(outs, fresh)
        for func, args, kwargs, outs, fresh, reads, writes in self.calls:
            for block in (*reads, *writes):
                if (memory := block()) is None:
                    raise IllegalAccess(f"a graph reads memory that was freed, in {func}")
                fake.touch(stream, memory, block in writes, str(func))
            for old, new, is_fresh in zip(outs, _tensors(func(*args, **kwargs)), fresh, strict=True):
                if is_fresh:
                    old.copy_(new)

    def reset(self) -> None:
        self.finalizer()
        self.calls = []

    def pool(self) -> Any:
        return self.handle

    def instantiate(self) -> None:
        pass


class CudaTensor(torch.Tensor):
    """A tensor that says it is on a CUDA device."""

    inner: Tensor
    memory: Memory
    fake: FakeCuda

    @staticmethod
    def __new__(cls, inner: Tensor, memory: Memory, requires_grad: bool = False) -> CudaTensor:
        t = torch.Tensor._make_wrapper_subclass(
            cls, inner.size(), strides=inner.stride(), storage_offset=inner.storage_offset(), dtype=inner.dtype,
            layout=inner.layout, device=torch.device("cuda", memory.device), requires_grad=requires_grad,
        )  # fmt: skip
        t.inner, t.memory = inner, memory
        return t

    def __init__(self, *_: Any) -> None:
        pass

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return cls.fake.dispatch(func, args, kwargs or {})

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func == Tensor.data.__set__ and all(isinstance(t, CudaTensor) for t in args):  # pyright: ignore
            torch._C._disabled_torch_function_impl(func, types, args, kwargs or {})
            args[0].inner, args[0].memory = args[1].inner, args[1].memory
            return None
        return torch._C._disabled_torch_function_impl(func, types, args, kwargs or {})

    def data_ptr(self) -> int:
        return self.inner.data_ptr()

    def untyped_storage(self) -> torch.UntypedStorage:
        return self.inner.untyped_storage()

    def record_stream(self, stream: Any) -> None:
        pass

    def tolist(self) -> Any:
        return self.cpu().tolist()

    def numpy(self, *, force: bool = False) -> Any:
        raise TypeError(f"can't convert {self.device} tensor to numpy. Use Tensor.cpu() first")

    def new_tensor(self, data: Any, **kwargs: Any) -> Tensor:
        return torch.tensor(data, **{"dtype": self.dtype, "device": self.device, **kwargs})

    def __deepcopy__(self, memo: dict[int, Any]) -> Tensor:
        if id(self) not in memo:
            copy = self.detach().clone().requires_grad_(self.requires_grad)
            if isinstance(self, torch.nn.Parameter):
                copy = torch.nn.Parameter(copy, self.requires_grad)
            memo[id(self)] = copy
        return memo[id(self)]

    def __repr__(self, **_: Any) -> str:
        return f"{self.inner!r} on {self.device}"


class FakeCuda(TorchDispatchMode):
    """A process that has CUDA devices.

    Attributes:
        calls: every call so far.
        collect: whether garbage is collected in captures: "" no, "if enabled", "always".
    """

    def __init__(self, devices: int = 2, name: str = "Fake CUDA") -> None:
        super().__init__()
        self.devices, self.name, self.collect = devices, name, ""
        self.calls: list[Call] = []
        self.streams: dict[tuple[int, int], Stream] = {}
        self.made = [itertools.count() for _ in range(devices)]
        self.host: dict[Stream, int] = defaultdict(int)
        self.local = threading.local()
        self.capturing: Graph | None = None
        self.pools: dict[Any, list[Any]] = defaultdict(list)
        self.open_pools: set[Any] = set()  # that the allocator serves; up to torch 2.11 one that broke stays
        self.handles = itertools.count(1)
        self.workspaces: dict[Stream, Any] = {}
        self.planted: list[list[Any]] = []
        self.sync_debug = 0
        self.pinned: set[int] = set()
        self.lock = threading.RLock()

    # What was called.

    @property
    def launches(self) -> list[str]:
        """Names of kernels launched, recorded ones not, replays as one each."""
        return [c.name for c in self.calls if c.kind in ("launch", "replay") and not c.captured]

    @property
    def recorded(self) -> list[str]:
        """Names of kernels recorded in graphs: the launches that a replay does without the host."""
        return [c.name for c in self.calls if c.kind == "launch" and c.captured]

    @property
    def syncs(self) -> list[str]:
        """Names of what made the host wait for a device."""
        return [c.name for c in self.calls if c.kind == "sync"]

    def plant(self, name: str, error: BaseException, after: int = 0, capturing: bool = False) -> None:
        """Raise an error in an operation whose name holds ``name``, after so many; in a capture only if asked."""
        self.planted.append([name, error, after, capturing])

    def note(self, kind: str, name: str, stream: Stream) -> None:
        """List a call."""
        self.calls.append(Call(kind, name, stream.device_index, stream.stream_id, stream.capture is not None))

    def forbid(self, what: str, stream: Stream) -> None:
        """Raise where a capture forbids this, which is then of no use any more."""
        graph = self.capturing
        if graph is not None and (graph.thread == threading.get_ident() or graph.mode == "global"):
            graph.invalid = graph.invalid or what
            raise RuntimeError(f"CUDA error: operation not permitted when stream is capturing ({what})")

    def sync(self, what: str, stream: Stream) -> None:
        """Make the host wait for a stream."""
        self.forbid(what, stream)
        if self.sync_debug == 2:
            raise RuntimeError(f"called a synchronizing CUDA operation ({what})")
        self.note("sync", what, stream)
        self.arrive(stream.seen)

    def synchronize_with(self, seen: dict[Stream, int], what: str, stream: Stream) -> None:
        """Make the host wait for some of the work of a stream."""
        self.forbid(what, stream)
        self.note("sync", what, stream)
        self.arrive(seen)

    def arrive(self, seen: dict[Stream, int]) -> None:
        """Let copies to the host arrive, those that have been waited for."""
        with self.lock:
            _merge(self.host, seen)
            for stream in list(self.streams.values()):
                ready = [p for p in stream.pending if p[0] <= self.host[stream]]
                stream.pending = [p for p in stream.pending if p[0] > self.host[stream]]
                for _, target, values in ready:
                    target.copy_(values)

    def touch(self, stream: Stream, memory: Memory, write: bool, name: str) -> None:
        """Let a stream read or write memory; raise if another one may still be at it."""
        others = [memory.written] if memory.written else []
        others += list(memory.read.items()) if write else []
        for other, t in others:
            if other is not stream and stream.seen[other] < t and self.host[other] < t:
                raise IllegalAccess(f"{name} on {stream} does not wait for {other}, which uses the same memory")
        now = (stream, stream.seen[stream])
        if write:
            memory.written, memory.read = now, {}
        else:
            memory.read[now[0]] = now[1]

    def free(self, calls: list[Any], stream: Stream) -> None:
        """Free the memory of a graph that has died, and as torch 2.12 does the workspace of its stream."""
        with _disable_current_modes(), torch.no_grad():  # whatever goes on where a collection finds it
            for *_, outs, fresh, _, _ in calls:
                _poison(outs, fresh)
        self.workspaces.pop(stream, None)

    def workspace(self, stream: Stream) -> None:
        """Give a matrix product the workspace of its stream, which a capture takes from its own pool."""
        space, graph = self.workspaces.get(stream), stream.capture
        if space is not None and space.graph is not None and (graph is None or space.graph() is not graph):
            raise IllegalAccess(f"a workspace on {stream} lies in the pool of another graph")
        if space is None:
            space = self.workspaces[stream] = Memory(stream.device_index, graph)
        if graph is not None and (space.graph is None or space.graph() is not graph):
            graph.workspaces.append(weakref.ref(space))

    # Every operation of torch.

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return self.dispatch(func, args, kwargs or {})

    def dispatch(self, func: Any, args: Any, kwargs: dict[str, Any]) -> Any:
        with self.lock:
            return self._dispatch(func, args, kwargs)

    def _dispatch(self, func: Any, args: Any, kwargs: dict[str, Any]) -> Any:
        packet = getattr(func, "overloadpacket", func)
        tensors = _tensors((args, kwargs))
        cuda = [t for t in tensors if isinstance(t, CudaTensor)]
        if packet in (aten._pin_memory, aten.pin_memory) or kwargs.get("pin_memory"):
            kwargs = {**kwargs, "pin_memory": None}
            out = args[0].clone() if packet in (aten._pin_memory, aten.pin_memory) else func(*args, **kwargs)
            self.pinned.add(out.untyped_storage().data_ptr())
            return out
        if packet is aten.is_pinned:
            return args[0].untyped_storage().data_ptr() in self.pinned
        if packet is aten._fused_sdp_choice and cuda:
            return 0  # the one way that is made of operations of every device
        device = kwargs.get("device")
        place = cuda[0].device if device is None and cuda else torch.device(device or "cpu")
        if place.type == "cuda" and place.index is None:
            place = torch.device("cuda", self.current_device())
        if place.type != "cuda" and not cuda:
            return func(*args, **kwargs)
        if place.type == "cuda" and place.index >= self.devices:
            raise RuntimeError("CUDA error: invalid device ordinal")
        self._alike(packet, tensors, cuda)
        near = place if place.type == "cuda" else cuda[0].device
        stream = self.current_stream(near)
        name = str(packet).removeprefix("aten.")
        self._fail(name, stream)
        if packet in (aten._local_scalar_dense, aten.is_nonzero, aten.equal):
            self.sync(name, stream)
        elif {torch.Tag.dynamic_output_shape, torch.Tag.data_dependent_output} & set(func.tags):
            masks = [t for t in tensors[1:] if t.dtype in (torch.bool, torch.uint8)]
            if packet not in (aten.index, aten.index_put, aten.index_put_) or masks:
                self.sync(name, stream)
        if packet in (aten.copy_, aten._to_copy) or (packet is aten.index and len(cuda) < len(tensors)):
            moved = self._copy(packet, func, args, kwargs, place, stream, tensors)
            if moved is not NotImplemented:
                return moved
            out = self._launch(packet, func, args, kwargs, place, stream, name)
            for other in {t.device for t in tensors if isinstance(t, CudaTensor)} - {stream.device}:
                _merge(self.current_stream(other).seen, stream.seen)  # which waits for a copy from its device
            if self.calls[-2:-1] and self.calls[-2].kind == "sync":
                self.arrive(stream.seen)
            return out
        return self._launch(packet, func, args, kwargs, place, stream, name)

    def _fail(self, name: str, stream: Stream) -> None:
        for failure in self.planted:
            if failure[0] in name and (not failure[3] or stream.capture is not None):
                failure[2] -= 1
                if failure[2] < 0:
                    self.planted.remove(failure)
                    raise failure[1]

    def _alike(self, packet: Any, tensors: list[Tensor], cuda: list[Any]) -> None:
        if packet in _MIXES:
            return
        places = {t.device for t in cuda} | {t.device for t in tensors if not isinstance(t, CudaTensor) and t.ndim}
        if len(places) > 1:
            raise RuntimeError(
                f"Expected all tensors to be on the same device, but found {', '.join(sorted(map(str, places)))} "
                f"({packet})"
            )

    def _copy(
        self, packet: Any, func: Any, args: Any, kwargs: Any, place: Any, stream: Stream, tensors: list[Tensor]
    ) -> Any:
        """Do a copy between host and device; NotImplemented where both are on devices."""
        source = tensors[-1] if packet is aten.index else args[1] if packet is aten.copy_ else args[0]
        target = place if packet is aten._to_copy else args[0].device
        blocking = not (kwargs.get("non_blocking") or (packet is aten.copy_ and len(args) > 2 and args[2]))
        if source.device.type == "cpu" and target.type == "cuda":
            if blocking or source.untyped_storage().data_ptr() not in self.pinned:
                self.sync(f"copy from cpu to {target}", stream)
            return NotImplemented
        if source.device.type == "cuda" and target.type == "cpu":
            inner = _inner((args, kwargs))
            self._run(stream, [source.memory], [], "copy to the host")
            if packet is aten.copy_ and not blocking and args[0].untyped_storage().data_ptr() in self.pinned:
                values = source.inner.clone()
                self.note("launch", "copy to pinned memory", stream)
                args[0].fill_(NAN if args[0].is_floating_point() else 99)
                stream.pending.append((stream.seen[stream], args[0], values))
                return args[0]
            self.sync(f"copy from {source.device} to cpu", stream)
            inner[1].pop("device", None)
            out = func(*inner[0], **inner[1])
            out = out.clone() if packet is aten._to_copy and out is source.inner else out
            return args[0] if packet is aten.copy_ else out
        if source.device != target:
            _merge(stream.seen, self.current_stream(source.device).seen)
            _merge(stream.seen, self.current_stream(target).seen)
        return NotImplemented

    def _run(self, stream: Stream, reads: list[Memory], writes: list[Memory], name: str) -> None:
        if stream.capture is None:
            _merge(stream.seen, self.host)
            stream.seen[stream] += 1
            for memory in reads:
                self.touch(stream, memory, False, name)
            for memory in writes:
                self.touch(stream, memory, True, name)

    def _launch(self, packet: Any, func: Any, args: Any, kwargs: Any, place: Any, stream: Stream, name: str) -> Any:
        given, back = {}, {}
        for t in _tensors((args, kwargs)):
            if isinstance(t, CudaTensor):
                given[t.inner.untyped_storage().data_ptr()] = t.memory
                back[id(t.inner)] = t
        new_args, new_kwargs = _inner((args, kwargs), freeze=stream.capture is not None)
        if new_kwargs.get("device") is not None:
            new_kwargs["device"] = torch.device("cpu")
        schema = getattr(func, "_schema", None)
        changed = [] if schema is None else _changed(schema, args, kwargs)
        writes = [t.memory for t in changed]
        reads = [m for m in given.values() if m not in writes]
        graph = stream.capture
        if graph is not None:
            for t in changed:
                key = t.inner.untyped_storage().data_ptr()
                if key not in graph.before:
                    whole = torch.empty(0, dtype=t.dtype).set_(t.inner.untyped_storage())
                    graph.before[key] = whole, whole.clone()
        result = func(*new_args, **new_kwargs)
        outs = _tensors(result)
        fresh = [t.untyped_storage().data_ptr() not in given for t in outs]
        if packet in _EMPTY:
            _poison(outs, fresh)
        if packet in _BLAS:
            self.workspace(stream)
        if writes or (any(fresh) and packet not in _ALLOCATE):
            self.note("launch", name, stream)
            self._run(stream, reads, writes, name)
        made = {
            t.untyped_storage().data_ptr(): Memory(place.index, graph)
            for t, new in zip(outs, fresh, strict=True)
            if new
        }
        if graph is not None:
            known = [weakref.ref(m) for m in reads if m.graph is None or m.graph() is not graph]
            target = [weakref.ref(m) for m in writes if m.graph is None or m.graph() is not graph]
            graph.calls.append((func, new_args, new_kwargs, outs, fresh, known, target))
        elif made:
            for memory in made.values():
                memory.written = stream, stream.seen[stream]

        def wrap(t: Any) -> Any:
            if not isinstance(t, Tensor):
                return t
            if id(t) in back:
                return back[id(t)]
            key = t.untyped_storage().data_ptr()
            return CudaTensor(t, made.get(key) or given[key])

        return tree_map(wrap, result)

    # torch.cuda, where a process has one.

    def current_device(self) -> int:
        return getattr(self.local, "device", 0)

    def exchange_device(self, index: int) -> int:
        before = self.current_device()
        if index is not None and index >= 0:
            if index >= self.devices:
                raise RuntimeError("CUDA error: invalid device ordinal")
            self.local.device = index
        return before

    def set_device(self, device: Any) -> None:
        self.exchange_device(self.index(device))

    def index(self, device: Any) -> int:
        if device is None:
            return self.current_device()
        if isinstance(device, int):
            return device
        index = torch.device(device).index
        return self.current_device() if index is None else index

    def stream(self, device: int, number: int) -> Stream:
        if (device, number) not in self.streams:
            self.streams[device, number] = Stream(self, device, number)
        return self.streams[device, number]

    def new_stream(self, device: Any = None, priority: int = 0, **_: Any) -> Stream:
        index = self.index(device)
        return self.stream(index, 1 + next(self.made[index]) % STREAMS)

    def current_stream(self, device: Any = None) -> Stream:
        index = self.index(device)
        return getattr(self.local, "streams", {}).get(index) or self.stream(index, 0)

    def default_stream(self, device: Any = None) -> Stream:
        return self.stream(self.index(device), 0)

    def set_stream(self, stream: Stream | None) -> None:
        if stream is not None:
            self.local.streams = {**getattr(self.local, "streams", {}), stream.device_index: stream}
            self.local.device = stream.device_index

    def synchronize(self, device: Any = None) -> None:
        index = self.index(device)
        self.forbid("synchronize", self.current_stream(index))
        self.note("sync", "synchronize", self.current_stream(index))
        for stream in [s for s in self.streams.values() if s.device_index == index]:
            self.arrive(stream.seen)

    def graph_pool_handle(self) -> tuple[int, int]:
        return (0, next(self.handles))

    def empty_cache(self) -> None:
        self.note("empty_cache", "", self.current_stream())

    def set_sync_debug_mode(self, mode: Any) -> None:
        self.sync_debug = {"default": 0, "warn": 1, "error": 2}.get(mode, mode)

    def properties(self, device: Any = None) -> SimpleNamespace:
        return SimpleNamespace(
            name=self.name, major=9, minor=0, total_memory=1 << 36, multi_processor_count=132, uuid="fake",
            L2_cache_size=50 << 20,
        )  # fmt: skip

    def _collecting(self, phase: str, info: dict[str, int]) -> None:
        graph = self.capturing
        if phase == "start" and graph is not None and graph.thread == threading.get_ident():
            graph.invalid = graph.invalid or "a kernel's module was unloaded by a garbage collection"

    def __enter__(self) -> FakeCuda:
        guards = _guard()
        assert guards[1] is None, "this process has CUDA"
        guards[1] = guards[0]
        self.lift = torch._C._only_lift_cpu_tensors()
        torch._C._set_only_lift_cpu_tensors(True)
        self.overwrite = torch.__future__.get_overwrite_module_params_on_conversion()
        torch.__future__.set_overwrite_module_params_on_conversion(True)  # Module.to makes parameters of our own kind
        CudaTensor.fake = Event.fake = Graph.fake = self
        fakes = {
            "is_available": lambda: True, "device_count": lambda: self.devices, "is_initialized": lambda: True,
            "current_device": self.current_device, "set_device": self.set_device,
            "_exchange_device": self.exchange_device, "_maybe_exchange_device": self.exchange_device,
            "Stream": self.new_stream, "Event": Event, "CUDAGraph": Graph, "current_stream": self.current_stream,
            "default_stream": self.default_stream, "set_stream": self.set_stream, "synchronize": self.synchronize,
            "graph_pool_handle": self.graph_pool_handle, "empty_cache": self.empty_cache,
            "get_device_properties": self.properties, "get_device_name": lambda device=None: self.name,
            "get_device_capability": lambda device=None: (9, 0), "_lazy_init": lambda: None,
            "set_sync_debug_mode": self.set_sync_debug_mode, "get_sync_debug_mode": lambda: self.sync_debug,
            "is_current_stream_capturing": lambda: self.current_stream().capture is not None,
            "memory_allocated": lambda device=None: 0, "is_bf16_supported": lambda *_: True,
            "mem_get_info": lambda device=None: (1 << 36, 1 << 36),
        }  # fmt: skip
        start = threading.Thread.run

        def run(thread: threading.Thread) -> None:
            with self.of_thread():
                start(thread)

        patches = [mock.patch.object(torch.cuda, name, value, create=True) for name, value in fakes.items()]
        patches += [
            mock.patch.object(torch.cuda.graph, "default_capture_stream", None),
            mock.patch.object(torch._C, "_host_emptyCache", lambda: None, create=True),
            mock.patch.object(torch._C, "_cuda_clearCublasWorkspaces", self.workspaces.clear, create=True),
            mock.patch.object(
                torch._C, "_cuda_endAllocateToPool", lambda device, pool: self.open_pools.discard(pool), create=True
            ),
            mock.patch.object(threading.Thread, "run", run),
        ]
        self.patches = patches
        for patch in patches:
            patch.start()
        gc.callbacks.append(self._collecting)
        return super().__enter__()  # pyright: ignore[reportReturnType]

    def of_thread(self) -> TorchDispatchMode:
        """Return a mode that gives another thread the devices."""
        return _InThread(self)

    def __exit__(self, *error: Any) -> None:
        super().__exit__(*error)
        gc.callbacks.remove(self._collecting)
        for patch in reversed(self.patches):
            patch.stop()
        torch._C._set_only_lift_cpu_tensors(self.lift)
        torch.__future__.set_overwrite_module_params_on_conversion(self.overwrite)
        _guard()[1] = None


class _InThread(TorchDispatchMode):
    def __init__(self, fake: FakeCuda) -> None:
        super().__init__()
        self.fake = fake

    def __enter__(self) -> _InThread:
        torch._C._set_only_lift_cpu_tensors(True)  # of this thread
        return super().__enter__()  # pyright: ignore[reportReturnType]

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return self.fake.dispatch(func, args, kwargs or {})


def _guard() -> Any:
    """Return where torch keeps the guards of devices: that of a CPU, which does nothing, will do for CUDA."""
    c10 = ctypes.CDLL(str(Path(torch.__file__).parent / "lib" / "libc10.so"))
    return (ctypes.c_void_p * 2).in_dll(c10, "_ZN3c104impl26device_guard_impl_registryE")


def _merge(into: dict[Stream, int], seen: dict[Stream, int]) -> None:
    for stream, t in list(seen.items()):
        into[stream] = max(into.get(stream, 0), t)


def _tensors(tree: Any) -> list[Tensor]:
    return [t for t in tree_leaves(tree) if isinstance(t, Tensor)]


def _inner(tree: Any, freeze: bool = False) -> Any:
    """Return the CPU tensors of a tree; numbers of the host's are frozen in a capture."""
    leaves, spec = tree_flatten(tree)

    def of(t: Any) -> Any:
        if isinstance(t, CudaTensor):
            return t.inner
        return t.clone() if freeze and isinstance(t, Tensor) else t

    return spec.unflatten([of(t) for t in leaves]) if hasattr(spec, "unflatten") else tree_map(of, tree)


def _changed(schema: Any, args: Any, kwargs: dict[str, Any]) -> list[Any]:
    """Return the tensors that an operation writes."""
    found = []
    for k, arg in enumerate(schema.arguments):
        if arg.alias_info is not None and arg.alias_info.is_write:
            value = args[k] if k < len(args) else kwargs.get(arg.name)
            found += [t for t in _tensors(value) if isinstance(t, CudaTensor)]
    return found


def _poison(tensors: list[Tensor], fresh: list[bool]) -> None:
    for t, is_fresh in zip(tensors, fresh, strict=True):
        if is_fresh and t.is_floating_point():
            t.fill_(NAN)
