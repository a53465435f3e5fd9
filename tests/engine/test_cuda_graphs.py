"""CUDA graphs on devices that are not there: the plain loop's bits, and a process that stays as it was."""

from __future__ import annotations

import copy
import gc
import threading
import time
import warnings
import weakref
from collections.abc import Callable, Iterator
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from fake_cuda import FakeCuda, IllegalAccess

import fastscore as fs
from fastscore.engine import capture, cuda_graphs, selfcheck
from fastscore.model.analytic import gaussians, mixture, score_model

SHAPE = (1, 4, 4)


class CompilationError(Exception):
    """As Triton's: no RuntimeError."""


@pytest.fixture
def fake(monkeypatch) -> Iterator[FakeCuda]:
    monkeypatch.setattr(selfcheck, "ensure", lambda device, ops: None)
    monkeypatch.setattr(cuda_graphs, "_leases", {})
    quick = SimpleNamespace(collect=int, isenabled=gc.isenabled, enable=gc.enable, disable=gc.disable)
    monkeypatch.setattr(cuda_graphs, "gc", quick)  # a collection of all that the tests hold takes longer than a capture
    there = threading.active_count()  # some that earlier tests have left
    monkeypatch.setattr(cuda_graphs, "_others", lambda: threading.active_count() > there)
    with FakeCuda() as fake:
        yield fake


def network(seed: int = 0) -> torch.nn.Module:
    torch.manual_seed(seed)
    return torch.nn.Sequential(
        torch.nn.Conv2d(1, 3, 3, padding=1), torch.nn.SiLU(), torch.nn.Conv2d(3, 1, 3, padding=1)
    )


def model(net: torch.nn.Module, act: Callable[[torch.Tensor], object] = id) -> fs.ScoreModel:
    """Return the model of a network that does something with its input first."""

    def call(u: torch.Tensor, t: torch.Tensor, cond: object) -> torch.Tensor:
        act(u)
        return net(u)

    return fs.ScoreModel(call, SHAPE, fs.VP(), fs.Parametrization("eps"), modules=(net,))


def sampler(net: torch.nn.Module, act: Callable[[torch.Tensor], object] = id, **options: object) -> fs.Sampler:
    return fs.Sampler(model(net, act), **{"steps": 4, "batch": 4, "device": "cuda:1"} | options)


def test_the_bits_of_the_plain_loop_on_the_devices_of_the_networks(fake):
    """In every mode, on each device, and device and stream of the caller as they were."""
    expected = sampler(network(), device="cpu").run(range(6))
    side = torch.cuda.Stream("cuda:0")
    for graph in ("off", "step", "loop", "auto"):
        for place in ("cuda:0", "cuda:1"):
            s = sampler(network().to(place), device=place, graph=graph)
            before = len(fake.calls)
            with torch.cuda.stream(side):
                for _ in range(2):
                    assert torch.equal(s.run(range(6)).cpu(), expected), (graph, place)
                assert torch.cuda.current_device() == 0
                assert torch.cuda.current_stream() == side
            assert torch.cuda.current_stream("cuda:1").stream_id == 0
            assert s.engine.mode == {"auto": "step"}.get(graph, graph)
            replays = {c.device for c in fake.calls[before:] if c.kind == "replay"}
            assert replays == (set() if graph == "off" else {int(place[-1])})
            waited = {c.device for c in fake.calls[before:] if c.name == "synchronize"}
            assert waited <= {int(place[-1])}  # no context is made on another device
            if graph != "off":
                rows, captures = len(s.plan.rows), [c for c in fake.calls[before:] if c.kind == "capture_begin"]
                assert {c.name for c in captures} == {"thread_local"}
                assert len(captures) == len(s.engine.captured.segments)
                # Rows tried out: each kind twice, and never the whole loop.
                updates = [c for c in fake.calls[before:] if "update" in c.name and not c.captured]
                assert len(updates) < 2 * rows or graph == "step"
                assert s.warm_up().keys() == {"first_s", "capture_s", "graph"}


def test_what_no_graph_can_hold_is_told_before_anything_is_captured(fake):
    """The plain loop runs, with one warning that names the operation; ``step`` refuses."""
    constant = torch.ones(1, 4, 4)
    refused = [
        ("_local_scalar_dense", lambda u: u.sum().item()),
        ("_local_scalar_dense", lambda u: bool(u.sum() > 1e9)),
        ("nonzero", torch.nonzero),
        ("mask", lambda u: u[u > 0]),
        ("copies from cpu to cuda:1", lambda u: u + constant.to(u.device)),
        ("copies from cpu to cuda:1", lambda u: u + torch.tensor([1.0, 2.0, 3.0, 4.0], device=u.device)),
        ("copies from cuda:1 to cpu", torch.Tensor.cpu),
        ("generator", lambda u: torch.nn.functional.dropout(u, 0.5, True)),
        ("unique", torch.unique),
    ]
    expected = sampler(network(), device="cpu").run(range(3))
    for name, act in refused:
        net, before = network().to("cuda:1"), len(fake.calls)
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            s = sampler(net, act)
            for _ in range(2):
                assert torch.equal(s.run(range(3)).cpu(), expected), name
        told = [str(w.message) for w in caught if "no CUDA graph" in str(w.message)]
        assert len(told) == 1, told
        assert name in told[0], told
        assert s.engine.mode == "off"
        with pytest.raises(ValueError, match="graph = 'step': the network cannot be captured"):
            sampler(net, act, graph="step").run(range(3))
        assert not any(c.kind.startswith("capture") for c in fake.calls[before:]), name
        undisturbed(fake)


def undisturbed(fake: FakeCuda) -> None:
    """Assert that a process is as it was, and that it can capture."""
    assert torch.cuda.current_device() == 0
    assert all(torch.cuda.current_stream(k).stream_id == 0 for k in range(2))
    assert fake.capturing is None
    assert not fake.open_pools
    assert gc.isenabled()
    assert fake.sync_debug == 0
    assert not cuda_graphs._others()


def test_a_capture_that_breaks_leaves_the_process_as_it_was(fake):
    """Whatever the error is, and however the end of the capture adds one of its own."""

    def raising(error: BaseException) -> Callable[[torch.Tensor], None]:
        def act(u: torch.Tensor) -> None:
            if fake.capturing is not None:
                raise error

        return act

    broken = {
        "query of a stream": lambda u: torch.cuda.current_stream(u.device).query(),  # no operation of torch
        "no kernel image": raising(CompilationError("no kernel image\nat line 3")),
        "out of memory": raising(torch.OutOfMemoryError("CUDA out of memory. Tried to allocate")),
    }
    good, expected = sampler(network().to("cuda:1")), sampler(network(), device="cpu").run(range(3))
    for name, act in broken.items():
        with pytest.warns(UserWarning, match=name):
            assert torch.equal(sampler(network().to("cuda:1"), act).run(range(3)).cpu(), expected)
        undisturbed(fake)
        with pytest.raises(ValueError, match=f"graph = 'loop': the network cannot be captured .*{name}"):
            sampler(network().to("cuda:1"), act, graph="loop").run(range(3))
        undisturbed(fake)
        assert torch.equal(good.run(range(3)).cpu(), expected)
        assert good.engine.mode == "step"
    with pytest.raises(KeyboardInterrupt):
        sampler(network().to("cuda:1"), raising(KeyboardInterrupt())).run(range(3))
    undisturbed(fake)
    fake.plant("update", torch.OutOfMemoryError("CUDA out of memory"), after=1, capturing=True)
    with pytest.warns(UserWarning, match="out of memory"):
        assert torch.equal(sampler(network().to("cuda:1")).run(range(3)).cpu(), expected)
    undisturbed(fake)


def test_a_graph_owns_what_it_reads_and_is_recorded_again_once_that_was_replaced(fake):
    """Parameters, buffers, what a function closes over and what an object holds."""
    place = torch.device("cuda:1")

    class Scaled:
        def __init__(self) -> None:
            self.scale = torch.full((1,), 0.5, device=place)

        def __call__(self, u: torch.Tensor, t: torch.Tensor, cond: object) -> torch.Tensor:
            return u * self.scale

    net, shift, scaled = network().to(place), torch.full((1,), 0.25, device=place), Scaled()

    def call(u: torch.Tensor, t: torch.Tensor, cond: object) -> torch.Tensor:
        return net(u) + shift + scaled(u, t, cond)

    s = fs.Sampler(replace(model(net), net=call), steps=4, batch=4, device=place)

    def weight() -> None:
        net[0].weight.data = net[0].weight.data * 2.0

    def parameter() -> None:
        net[2].bias = torch.nn.Parameter(net[2].bias.detach() + 1.0)

    def closed_over() -> None:
        nonlocal shift
        shift = shift + 1.0

    def attribute() -> None:
        scaled.scale = scaled.scale + 1.0

    def module() -> None:
        net[1] = torch.nn.Tanh()

    for change in (weight, parameter, closed_over, attribute, module):
        old = s.run(range(4))
        graphed = s.engine.captured
        assert graphed.mode == "step"
        change()
        gc.collect()
        again = graphed.run()  # of tensors that nobody else holds any more
        assert torch.equal(again, old), change.__name__
        new = s.run(range(4))
        assert not torch.equal(new, old), change.__name__
        assert s.engine.captured is not graphed
        assert torch.equal(new, fs.Sampler(s.model, steps=4, batch=4, device=place, graph="off").run(range(4)))


def test_a_model_that_has_moved_is_recorded_where_it_is(fake):
    net = network().to("cuda:1")
    s = fs.Sampler(model(net), steps=4, batch=4)
    expected = s.run(range(4)).cpu()
    net.to("cuda:0")
    before = len(fake.calls)
    found = s.run(range(4))
    assert found.device == torch.device("cuda:0")
    assert torch.equal(found.cpu(), expected)
    assert {c.device for c in fake.calls[before:] if c.kind in ("replay", "launch")} == {0}
    with pytest.raises(ValueError, match="cuda:1 but the network is on cuda:0"):
        sampler(net)


def test_two_samplers_on_two_devices_in_turn(fake):
    nets = [network().to(f"cuda:{k}") for k in range(2)]
    samplers = [sampler(net, device=f"cuda:{k}") for k, net in enumerate(nets)]
    expected = sampler(network(), device="cpu").run(range(12))
    for _ in range(2):
        for s, found in zip(samplers, [s.stream(range(12)) for s in samplers], strict=True):
            for at, x in found:
                assert torch.equal(x.cpu(), expected[at.cpu()])
                assert x.device == s.execution.place
                undisturbed(fake)


def test_no_stream_is_shared_by_recordings_that_live_and_each_is_used_again(fake):
    """Where two share one, the end of the first frees a workspace that the second reads."""
    net, expected = network().to("cuda:1"), sampler(network(), device="cpu").run(range(4))
    kept = [sampler(net) for _ in range(3)]
    for s in kept:
        s.run(range(4))
    streams = {id(r.holds[0].stream) for s in kept for r in s.engine.captured.replays}
    assert len(streams) == len(kept)
    for _ in range(4):
        s = sampler(net, steps=1)
        s.run(range(4))
        del s
        gc.collect()
    assert len({c.stream for c in fake.calls if c.kind == "capture_begin"}) == len(kept) + 1
    del kept[0]
    gc.collect()
    for s in kept:
        assert torch.equal(s.run(range(4)).cpu(), expected)
    leases = cuda_graphs._Leases(torch.device("cuda:0"))
    many = [leases.take() for _ in range(32)]
    assert len({lease.stream for lease in many}) == 32
    with pytest.raises(RuntimeError, match="32 recordings are alive on cuda:0"):
        leases.take()
    del many[7]
    leases.take()


def test_one_recorder_records_again_and_again(fake):
    """What a capture leaves on its stream lies in the pool of a graph, and is not used by what comes after."""
    x, a, b = (torch.full((2, 2), v, device="cuda:0") for v in (1.0, 0.5, 2.0))
    recorder = cuda_graphs.CudaGraphs(torch.device("cuda:0"))

    def times(m: torch.Tensor) -> Callable[[], None]:
        return recorder.record(lambda: x.fill_(1.0), lambda: x.copy_(x @ m))

    half, double = times(a), times(b)
    x.fill_(1.0)
    double()
    assert x.tolist() == [[4.0, 4.0], [4.0, 4.0]]
    half()
    assert x.tolist() == [[4.0, 4.0], [4.0, 4.0]]
    undisturbed(fake)


def test_a_recording_ends_with_its_last_user(fake):
    """Without waiting for a garbage collection, which may come when the card is full."""
    net = network().to("cuda:1")
    gc.collect()
    gc.disable()
    try:
        s = sampler(net)
        s.run(range(4))
        graphs = [weakref.ref(r.graph) for r in s.engine.captured.replays]
        buffer = weakref.ref(s.engine.loop.x.memory)
        s.release()
        assert [graph() for graph in graphs] == [None] * len(graphs)
        assert buffer() is None
    finally:
        gc.enable()


class Block(torch.nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x.sin() * 2.0


def test_compiled_code_is_looked_at_as_it_is_written(monkeypatch):
    """It does not run under a mode, and once it was tried there it never does again."""
    monkeypatch.setattr(cuda_graphs, "_watch_waiting", lambda mode: None)
    monkeypatch.setattr(torch.cuda, "get_sync_debug_mode", lambda: 0)
    net = network().eval()
    whole = torch.compile(net, fullgraph=True, dynamic=False, backend="eager")
    parts = torch.nn.Sequential(Block(), Block())
    for part in parts:
        part.compile(fullgraph=True, backend="eager")
    u = torch.ones(1, 1, 4, 4)
    with torch.no_grad():
        for compiled in (whole, parts):
            expected = compiled(u)
            graphs = object.__new__(cuda_graphs.CudaGraphs)
            graphs.device, graphs.networks = u.device, (compiled,)
            with graphs._looking() as looking, looking:
                compiled(u)
            assert looking.launches == 3 if compiled is whole else 4
            assert torch.equal(compiled(u), expected)
            other = threading.Timer(60.0, id)
            other.start()  # whose compiled code would not run as compiled meanwhile
            try:
                with graphs._looking() as looking:
                    assert looking is None
                graphs.networks = (network(),)
                with graphs._looking() as looking:
                    assert looking is not None
            finally:
                other.cancel()
                other.join()


def test_no_garbage_is_collected_while_a_graph_is_recorded(fake):
    fake.collect = "if enabled"
    for enabled in (True, False):
        (gc.enable if enabled else gc.disable)()
        try:
            s = sampler(network().to("cuda:1"), graph="step")
            s.run(range(4))
            assert gc.isenabled() == enabled
        finally:
            gc.enable()


def test_threads_capture_one_at_a_time_and_others_may_go_on(fake):
    """Two capture at once, a third reads values on the host all the time."""
    expected, found, done = sampler(network(), device="cpu").run(range(4)), [], threading.Event()
    together, nets = threading.Barrier(2), {f"cuda:{k}": network().to(f"cuda:{k}") for k in range(2)}

    def draw(place: str) -> None:
        s = sampler(nets[place], device=place, graph="step")
        together.wait(60)
        found.append(s.run(range(4)).cpu())

    def read() -> None:
        x = torch.ones(3, device="cuda:0")
        while not done.is_set():
            found.extend([] if x.sum().item() == 3.0 else [None])
            done.wait(0.001)

    threads = [threading.Thread(target=draw, args=(f"cuda:{k}",)) for k in range(2)]
    reader = threading.Thread(target=read)
    for thread in (*threads, reader):
        thread.start()
    for thread in threads:
        thread.join(60)
    done.set()
    reader.join(60)
    assert len(found) == 2
    assert all(torch.equal(x, expected) for x in found)
    undisturbed(fake)


def test_a_second_capture_waits_for_the_first(fake):
    xs, together, done = [torch.zeros(1, device=f"cuda:{k}") for k in range(2)], threading.Barrier(2), []

    def record(x: torch.Tensor) -> None:
        def work() -> None:
            x.add_(1.0)
            graph = fake.capturing
            time.sleep(0.1 * (graph is not None and graph.thread == threading.get_ident()))

        recorder = cuda_graphs.CudaGraphs(x.device)
        together.wait(60)
        recorder.record(x.zero_, work)()
        done.append(x.item())

    threads = [threading.Thread(target=record, args=(x,)) for x in xs]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert done == [1.0, 1.0]
    undisturbed(fake)


def test_a_loop_of_too_many_kernels_is_refused_with_the_remedy(fake, monkeypatch):
    monkeypatch.setattr(capture, "NODES", 30)
    net = network().to("cuda:1")
    assert sampler(net, graph="loop", steps=2).run(range(4)).isfinite().all()
    with pytest.raises(ValueError, match=r"graph = 'loop': its 41 rows launch about \d+ kernels.*use graph='step'"):
        sampler(net, graph="loop", steps=40).run(range(4))
    assert sampler(net, steps=40).run(range(4)).isfinite().all()
    undisturbed(fake)


def test_every_exact_model_is_captured(fake):
    """Their constants are on the device from the first evaluation on."""
    exact = {
        "mixture": score_model(mixture(components=5)),
        "gaussians": score_model(gaussians("four-gaussians")),
        "empirical": fs.model.analytic.by_name("moons"),
    }
    for name, m in exact.items():
        expected = fs.Sampler(m, steps=3, batch=4).run(range(6))
        s = fs.Sampler(m, steps=3, batch=4, device="cuda:1", graph="step")
        s.run(range(6))
        before = len(fake.syncs)
        s.engine.loop.run()
        assert fake.syncs[before:] == [], name
        assert torch.equal(s.run(range(6)).cpu(), expected), name
        held = getattr(m.net, "means" if name != "empirical" else "points")
        held.mul_(2.0)  # on the host, of what was captured on the device
        expected = fs.Sampler(m, steps=3, batch=4).run(range(6))
        assert torch.equal(s.run(range(6)).cpu(), expected), name
        assert torch.equal(
            copy.deepcopy(m.net)(expected, torch.full((6,), 0.5)), m.net(expected, torch.full((6,), 0.5))
        )
        held.div_(2.0)


def test_the_devices_that_are_not_there_have_their_rules(fake):
    """What the other tests rely on: each planted failure is one."""
    x, y = torch.ones(2, 2, device="cuda:0"), torch.ones(2, 2, device="cuda:0")
    with pytest.raises(RuntimeError, match="same device"):
        x + torch.ones(2, 2)
    with pytest.raises(RuntimeError, match="same device"):
        x + x.to("cuda:1")
    graph, stream = torch.cuda.CUDAGraph(), torch.cuda.Stream()
    gc.disable()
    try:
        with torch.cuda.graph(graph, stream=stream):
            z = x @ y
            x.add_(z)
        assert z.isnan().all().item()  # nothing was done
        assert x.sum().item() == 4.0
        graph.replay()
        assert x.sum().item() == 12.0
        y.fill_(0.0)
        graph.replay()
        assert x.sum().item() == 12.0
        del y
        with pytest.raises(IllegalAccess, match="freed"):
            graph.replay()
        stream.wait_stream(torch.cuda.current_stream())
        with (
            pytest.raises(RuntimeError, match="previous error during capture"),
            torch.cuda.graph(torch.cuda.CUDAGraph(), stream=stream),
        ):
            x.sum().item()
        assert torch.cuda.current_stream() == stream  # torch's own code does not go back
        torch.cuda.set_stream(torch.cuda.default_stream())
    finally:
        gc.enable()
    x.add_(1.0)
    with torch.cuda.stream(torch.cuda.Stream()), pytest.raises(IllegalAccess, match="does not wait"):
        x.mul_(2.0)
    host = torch.empty(2, 2, pin_memory=True)
    host.copy_(x, non_blocking=True)
    assert host.isnan().all()
    torch.cuda.current_stream().record_event().synchronize()
    assert torch.equal(host, x.cpu())


@pytest.mark.slow
def test_every_bundled_model_and_every_kind_of_loop_is_captured(fake):
    """To the plain loop's values, and no row of a run makes the host wait."""
    from fastscore.model.analytic import NAMES, by_name
    from fastscore.model.folder import bundled

    def drawn(model: fs.ScoreModel, place: str, **options: object) -> torch.Tensor:
        named = {"labels": [1, 0, 2]} if model.classes else {}
        s = fs.Sampler(model, **{"steps": 2, "batch": 3, "device": place} | options)
        x = s.run(range(3), **named)
        if place != "cpu":
            before = len(fake.syncs)
            s.engine.captured.run()
            assert fake.syncs[before:] == []
        return x.cpu()

    net = network()
    for load in [
        *(lambda name=name: fs.load_model(name) for name in bundled()),
        *(lambda name=name: by_name(name) for name in NAMES),
    ]:
        expected, model_there = drawn(load(), "cpu"), load()
        for m in model_there.networks:
            if isinstance(m, torch.nn.Module):
                m.to("cuda:1")
        assert torch.equal(drawn(model_there, "cuda:1", graph="step"), expected), model_there
    m = replace(model(net), classes=3, null=3)
    loops = [
        {"solver": "heun"},
        {"solver": "ancestral"},
        {"solver": fs.PredictorCorrector(fs.ReverseDiffusion(), fs.Langevin(norm="batch"))},
        {"solver": fs.PredictorCorrector(fs.ReverseDiffusion(), fs.Langevin(norm="sample"))},
        {"solver": "dpmpp-2m", "guidance": fs.Guidance(2.0)},
        {"solver": "dpmpp-2m", "guidance": fs.Guidance(2.0, interval=(0.2, 5.0))},
        {"solver": "ddim", "guidance": fs.Guidance(0.5, rule="cfg++")},
        {"clip": 1.0},
    ]
    expected = [drawn(m, "cpu", **options) for options in loops]
    net.to("cuda:1")
    for options, x in zip(loops, expected, strict=True):
        for graph in ("step", "loop"):
            assert torch.equal(drawn(m, "cuda:1", graph=graph, **options), x), options
    image = torch.linspace(-1.0, 1.0, 16).view(SHAPE)
    known = fs.Known(image, torch.arange(16).view(SHAPE) < 8)
    there = sampler(net, graph="step").run(range(3), known=known).cpu()
    assert torch.equal(there, sampler(net, graph="off").run(range(3), known=known).cpu())
