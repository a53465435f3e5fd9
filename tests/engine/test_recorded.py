"""Ticks, sweeps and joint rows as a GPU will record them: replays give the bits of the plain run."""

from __future__ import annotations

import gc
import weakref
from dataclasses import replace
from functools import partial
from types import SimpleNamespace

import pytest
import torch
from fake_cuda import FakeCuda
from networks import elementwise_model
from torch.overrides import TorchFunctionMode

import fastscore as fs
from fastscore.engine import cuda_graphs, selfcheck
from fastscore.engine.adaptive.lanes import POLL
from fastscore.engine.adaptive.sums import WeightedSums
from fastscore.engine.capture import Tape
from fastscore.engine.recorded import Repeated
from fastscore.engine.turn import check_together
from fastscore.errors import NonFiniteError
from fastscore.ops.backend import REFERENCE, operators, resolve
from fastscore.ops.noise import NoiseKey

SHAPE = (2, 3)
SOLVERS = {"dopri5": fs.Dopri5(0.05, 0.05), "dpm": fs.DPMAdaptive(3, 0.2, 0.2), "ggf": fs.GottaGoFast(0.9, 0.9)}
KNOWN = torch.tensor([[True, False, True], [False, False, False]])
LINES = {
    "plain": ({}, {}),
    "mixture": ({"guidance": fs.Guidance(2.0, (0.1, 5.0))}, {}),
    "several": ({"guidance": fs.Guidance((2.0, 1.5))}, {"others": [[2] * 6]}),
    "clip": ({"clip": 0.3}, {}),
    "known": ({}, {"known": fs.Known(torch.full(SHAPE, 0.3), KNOWN)}),
    "state": ({"grid": fs.Span(end=0.1, clean=False)}, {}),
    "centred": ({"projection": fs.Centred()}, {}),
}


def sampler(solver, shape=SHAPE, net=None, **kw) -> fs.Sampler:
    model = elementwise_model(shape, classes=4, null=4, projection=kw.pop("projection", None))
    model = model if net is None else replace(model, net=net)
    return fs.Sampler(model, solver=solver, batch=4, backend="reference", **kw)


def taped(s: fs.Sampler) -> fs.Sampler:
    s.engine.lanes.ticking.recorder = Tape
    return s


def labels(n: int) -> list[int]:
    return [k % 4 for k in range(n)]


CASES = [
    ("dopri5", "mixture"), ("dpm", "plain"), ("dopri5", "known"), ("dpm", "several"), ("dopri5", "clip"),
    ("dopri5", "state"), ("dpm", "mixture"), ("dopri5", "centred"), ("dopri5", "plain"),
    ("ggf", "plain"),
]  # fmt: skip


def check_replayed(name: str, feature: str, dtype: torch.dtype = torch.float32) -> None:
    settings, run = LINES[feature]
    plain, recorded = (sampler(SOLVERS[name], dtype=dtype, **settings) for _ in range(2))
    for seed in (3, 4):  # the second run replays what the first recorded
        expected = plain.run(range(6), seed, labels=labels(6), **run)
        assert torch.equal(taped(recorded).run(range(6), seed, labels=labels(6), **run), expected)
    assert torch.equal(recorded.cost.nfe, plain.cost.nfe)
    assert (plain.engine.mode, recorded.engine.mode) == ("off", "step")


def test_replayed_ticks_give_the_bits_of_plain_ones():
    check_replayed(*CASES[0])


@pytest.mark.slow
@pytest.mark.nightly
@pytest.mark.parametrize(("name", "feature"), CASES[1:])
def test_every_replayed_tick_gives_the_bits_of_a_plain_one(name, feature):
    check_replayed(name, feature, torch.float64 if name == "dpm" else torch.float32)


# --- likelihoods, sweeps, joint rows ------------------------------------------------------------


def check_flow(probe: str, solver: str = "dopri5", **kw) -> None:
    model = elementwise_model(SHAPE)
    plain, recorded = (fs.ProbabilityFlow(model, solver=solver, batch=4, **kw) for _ in range(2))
    x = torch.linspace(-1.0, 1.0, 36).view(6, *SHAPE)
    for flow in (plain, recorded):
        flow.encode(x[:1]), flow.log_likelihood(x[:1], probe=probe)
    for transport in recorded.transports.values():
        transport.lanes.ticking.recorder = Tape
    for values in (x, 0.5 * x):
        with_gradient = values.clone().requires_grad_()
        assert torch.equal(recorded.encode(values), plain.encode(values))
        ours, theirs = (flow.log_likelihood(with_gradient, probe=probe) for flow in (recorded, plain))
        assert torch.equal(ours.nats, theirs.nats)
        gradients = [torch.autograd.grad(of.nats.sum(), with_gradient)[0] for of in (ours, theirs)]
        assert torch.equal(*gradients)
    assert {transport.lanes.ticking.mode for transport in recorded.transports.values()} == {"step"}


def test_replayed_likelihoods_with_their_products_and_trails_are_the_plain_ones():
    check_flow("rademacher", "heun", grid=fs.uniform(4))


@pytest.mark.slow
@pytest.mark.nightly
def test_replayed_exact_and_adaptive_likelihoods_are_the_plain_ones():
    check_flow("exact", "heun", grid=fs.uniform(4))
    check_flow("gaussian")


def swept(window: int = 3, classes: int = 4, **kw) -> fs.Sampler:
    model = elementwise_model(SHAPE, classes=classes, null=4)
    return fs.Sampler(
        model,
        solver=fs.DDIM(1.0),
        grid=fs.karras(6),
        batch=4,
        parallel=fs.Picard(window, 0.1),
        backend="reference",
        **kw,
    )


def check_swept(run: dict, **kw) -> None:
    plain, recorded = swept(**kw), swept(**kw)
    engine = recorded.inpainting if "known" in run else recorded.engine
    engine.sweeping.recorder = Tape
    for seed in (3, 4):
        expected = plain.run(range(6), seed, labels=labels(6), **run)
        assert torch.equal(recorded.run(range(6), seed, labels=labels(6), **run), expected)
        other = plain.inpainting if "known" in run else plain.engine
        assert torch.equal(engine.sweeps, other.sweeps)
        assert torch.equal(engine.evaluations, other.evaluations)
    assert (other.mode, engine.mode) == ("picard", "step")


def test_replayed_sweeps_are_the_plain_ones():
    check_swept({}, guidance=fs.Guidance(2.0, (0.1, 5.0)))


@pytest.mark.slow
@pytest.mark.nightly
def test_replayed_sweeps_of_every_kind_are_the_plain_ones():
    check_swept({"known": LINES["known"][1]["known"]})
    check_swept({}, clip=0.4, window=20)
    check_swept({"others": [[2] * 6]}, guidance=fs.Guidance((2.0, 1.5)))


def joint_net(u, t, cond):
    mean = sum(v.flatten(1).mean(1) for v in u.values()) + 0.1 * cond
    return {k: v / (1.0 + v * v) + 0.1 * mean.reshape(-1, *[1] * (v.ndim - 1)) for k, v in u.items()}


def joint(solver, **kw) -> fs.JointSampler:
    parts = {"a": fs.Part(SHAPE, fs.VP()), "b": fs.Part((4,), fs.VE())}
    model = fs.JointModel(joint_net, parts, classes=4, null=4)
    return fs.JointSampler(model, solver=solver, grid=fs.karras(5), batch=4, backend="reference", **kw)


def check_joint(monkeypatch, solver, mode: str = "step", **kw) -> None:
    monkeypatch.setattr("fastscore.engine.capture.CudaGraphs", lambda device, networks: Tape())
    plain, recorded = joint(solver, **kw), joint(solver, **kw)
    recorded.graph = mode
    for seed in (3, 4):
        expected, found = (s.run(range(6), seed, labels=labels(6)) for s in (plain, recorded))
        assert all(torch.equal(found[k], expected[k]) for k in expected)
    noise = torch.ones(max(plan.draws for plan in plain.plans.values()), 1, 10)
    expected, found = (s.run([0], labels=0, noise=noise) for s in (plain, recorded))  # which no graph has read
    assert all(torch.equal(found[k], expected[k]) for k in expected)
    recorded.loop.point(3)
    assert [int(loop.row) for loop in recorded.loop.loops.values()] == [3, 3]  # back where a trial began
    assert (plain.mode, recorded.mode) == ("off", mode)
    graphed = recorded.captured.kept[0]
    assert sum(s.length * s.count for s in graphed.segments) == len(recorded.loop.kinds)


def test_replayed_rows_of_a_joint_model_are_the_plain_ones(monkeypatch):
    check_joint(monkeypatch, fs.DPMpp2M())
    check_joint(monkeypatch, fs.EulerMaruyama(), guidance=fs.Guidance(2.0, (0.1, 5.0)))


@pytest.mark.slow
@pytest.mark.nightly
def test_every_replayed_row_of_a_joint_model_is_the_plain_one(monkeypatch):
    for solver in (fs.Heun(), fs.DDIM(keep_eps=True), fs.PredictorCorrector(fs.DDIM(1.0), fs.AnnealedLangevin())):
        for mode in ("step", "loop"):
            check_joint(monkeypatch, solver, mode)
            check_joint(monkeypatch, solver, mode, guidance=fs.Guidance(2.0))
    check_joint(monkeypatch, fs.DDIM(1.0), clip=0.5)


# --- what a recording holds on to ---------------------------------------------------------------


class Scaled(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.tensor([0.7]))

    def forward(self, u, t, cond=None):
        return self.weight * u / (1.0 + u * u)


class Counted(Tape):
    made = 0

    def record(self, reset, work, tried=False):
        Counted.made += 1
        return super().record(reset, work)


def test_a_recording_is_made_again_when_what_it_reads_has_moved():
    """Values count at once; a tensor that was replaced, or a condition of another dtype, is another recording."""
    net = Scaled()
    model = fs.ScoreModel(net, SHAPE, fs.EDM(), cond_shape=(1,))
    s = fs.Sampler(model, solver=SOLVERS["dopri5"], batch=4)

    def check(made: int, dtype: torch.dtype = torch.float32) -> None:
        cond = torch.zeros(2, 1, dtype=dtype)
        plain = fs.Sampler(model, solver=SOLVERS["dopri5"], batch=4).run(range(2), cond=cond)
        assert torch.equal(s.run(range(2), cond=cond), plain)
        assert Counted.made == made

    Counted.made = 0
    s.engine.lanes.ticking.recorder = Counted
    assert s.engine.mode == "off" or s.engine.mode == "auto"
    check(1)
    net.weight.data.mul_(0.5)
    check(1)
    net.weight = torch.nn.Parameter(torch.tensor([1.3]))
    check(2)
    check(3, torch.float64)


def test_joint_rows_are_recorded_again_for_conditions_of_another_kind(monkeypatch):
    monkeypatch.setattr("fastscore.engine.capture.CudaGraphs", lambda device, networks: Tape())

    def net(u, t, cond):
        return {k: v / (1.0 + v * v) + 0.1 * cond.to(v).reshape(-1, 1, 1) for k, v in u.items()}

    model = fs.JointModel(net, {"a": fs.Part(SHAPE, fs.VP())}, cond_shape=(1,))
    plain, recorded = (fs.JointSampler(model, grid=fs.karras(3), batch=2, backend="reference") for _ in range(2))
    recorded.graph = "step"
    for dtype in (torch.float32, torch.float64):
        cond = torch.linspace(0.0, 1.0, 3, dtype=dtype).view(3, 1)
        assert torch.equal(recorded.run(range(3), cond=cond)["a"], plain.run(range(3), cond=cond)["a"])


def test_what_cannot_be_recorded_runs_plain_or_is_named():
    class Refuses:
        def record(self, reset, work):
            raise RuntimeError("operation not permitted when stream is capturing\nmore")

    s = sampler(SOLVERS["dopri5"])
    expected, ticking = s.run(range(6)), s.engine.lanes.ticking
    ticking.recorder, ticking.graph = Refuses, "auto"
    with pytest.warns(UserWarning, match=r"no CUDA graph: .*not permitted when stream is capturing\)"):
        assert torch.equal(s.run(range(6)), expected)
    assert torch.equal(s.run(range(6)), expected)  # and says so once
    assert s.warm_up(labels=[0] * 4)["graph"] == s.engine.mode == "off"
    s = sampler(SOLVERS["dopri5"])
    s.engine.lanes.ticking.recorder, s.engine.lanes.ticking.graph = Refuses, "step"
    with pytest.raises(ValueError, match=r"graph = 'step': the network cannot be captured .*use graph='off'"):
        s.run(range(6))
    assert not s.engine.turn.busy


class Holding(Tape):
    """Holds what it recorded, as CUDA graphs do."""

    def record(self, reset, work, tried=False):
        replay = super().record(reset, work)
        return partial(lambda replay, *held: replay(), replay, reset, work)


def test_a_recording_ends_with_its_last_user_and_waits_for_no_collection():
    adaptive, picard, flow = sampler(SOLVERS["dopri5"]), swept(), fs.ProbabilityFlow(elementwise_model(SHAPE), batch=2)
    flow.encode(torch.zeros(1, *SHAPE))
    lanes = next(iter(flow.transports.values())).lanes
    adaptive.engine.lanes.ticking.recorder = picard.engine.sweeping.recorder = lanes.ticking.recorder = Holding
    adaptive.run(range(2), labels=0), picard.run(range(2), labels=0), flow.encode(torch.zeros(1, *SHAPE))
    ends = [weakref.ref(thing) for thing in (adaptive.engine.lanes, picard.engine, lanes)]
    assert {ends[0]().ticking.mode, ends[1]().sweeping.mode, ends[2]().ticking.mode} == {"step"}
    gc.disable()
    try:
        del adaptive, picard, flow, lanes
        assert [end() for end in ends] == [None, None, None]
    finally:
        gc.enable()


@pytest.mark.parametrize("adaptive", [True, False])
def test_a_loop_of_unknown_length_is_refused(adaptive):
    for graph, message in (("loop", "as it needs; use graph='auto' or 'step'"), ("step", "")):
        execution = fs.Execution(graph=graph)
        if message:
            with pytest.raises(ValueError, match=message):
                check_together(execution, not adaptive, False, "prior", adaptive, False)
        else:
            check_together(execution, not adaptive, False, "prior", adaptive, False)
            with pytest.raises(ValueError, match="a guide is Python"):
                check_together(execution, not adaptive, True, "prior", adaptive, False)


# --- the host -----------------------------------------------------------------------------------


class Reads(TorchFunctionMode):
    """Counts copies to the host."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_function__(self, func, types, args=(), kwargs=None):
        self.count += func is torch.Tensor.cpu
        return func(*args, **(kwargs or {}))


def test_the_host_reads_once_a_poll():
    """Whether or not somebody arrived: numbers, faults and costs come by one copy."""
    s = sampler(SOLVERS["dopri5"])
    s.run(range(3))
    with Reads() as reads:
        s.run(range(11), progress=lambda done: None, labels=labels(11))
    assert reads.count == s.cost.ticks // POLL > 5


BACKENDS = (("auto", []), ("reference", [pytest.mark.nightly]))


def engines(backend: str, solvers: tuple[str, ...]) -> dict:
    x, known = torch.linspace(-1.0, 1.0, 12).view(2, *SHAPE), LINES["known"][1]
    settings = {"batch": 2, "backend": backend}
    model = elementwise_model(SHAPE)
    adaptive = {name: fs.Sampler(model, solver=SOLVERS[name], **settings) for name in solvers}
    picard = fs.Sampler(model, solver=fs.DDIM(1.0), grid=fs.karras(3), parallel=fs.Picard(2), **settings)
    parts = fs.JointModel(lambda u, t: {k: v / (1.0 + v * v) for k, v in u.items()}, {"a": fs.Part(SHAPE, fs.VP())})
    joint = fs.JointSampler(parts, grid=fs.karras(3), **settings)
    flow = fs.ProbabilityFlow(model, solver="heun", grid=fs.uniform(2), **settings)
    return {
        **{name: partial(s.run, range(3)) for name, s in adaptive.items()},
        **{f"{name}, known": partial(s.run, range(3), **known) for name, s in adaptive.items() if name != "ggf"},
        "picard": partial(picard.run, range(3)),
        "joint": lambda: joint.run(range(3))["a"],
        "encode": lambda: flow.encode(x),
        "likelihood": lambda: flow.log_likelihood(x).nats,
    }


@pytest.mark.parametrize(
    ("backend", "solvers"),
    [
        ("auto", ("dopri5",)),
        *(pytest.param(b, tuple(SOLVERS), marks=[pytest.mark.slow, *late]) for b, late in BACKENDS),
    ],
)
def test_buffers_that_were_made_in_inference_mode_serve_outside_it_and_the_reverse(backend, solvers):
    expected = {name: draw() for name, draw in engines(backend, solvers).items()}
    for first in (True, False):
        for name, draw in engines(backend, solvers).items():
            for inside in (first, not first):
                with torch.inference_mode(inside):
                    x = draw()
                assert torch.equal(x, expected[name]), name
                assert not x.is_inference()


# --- what is added up, and what is left behind ---------------------------------------------------


def test_weighted_sums_are_those_of_a_loop_to_the_bit_whatever_adds_them_up():
    key = NoiseKey.of(0, range(16))
    f32, f64 = torch.float32, torch.float64
    for width, d, dtype in ((2, 3, f32), (4, 40, f32), (8, 40, f32), (8, 3, f64)):
        buffer = torch.stack([key.normal(k, d, dtype)[:5] for k in range(width)])
        weights = key.normal(99, width, f64)
        columns = weights[:5].to(dtype)
        expected = columns[:, :1] * buffer[0]
        for j in range(1, width):
            expected = expected + columns[:, j : j + 1] * buffer[j]
        for ops in (REFERENCE, resolve("auto", torch.device("cpu")), operators("triton")):
            sums = WeightedSums(buffer, ops)
            assert torch.equal(sums(weights, torch.full((5, d), torch.nan, dtype=dtype)), expected)
    assert not WeightedSums(torch.zeros(8, 5, 40), operators("triton")).plain  # the fused row was among them


def test_nothing_of_a_sample_that_failed_is_left_for_the_next():
    def net(u, t, cond=None):
        return torch.where(u.flatten(1).abs().amax(1).view(-1, 1, 1) > 50.0, torch.nan, u / (1.0 + u * u))

    model = fs.ScoreModel(net, SHAPE, fs.VP(), fs.Parametrization("v"))
    s = fs.Sampler(model, solver=SOLVERS["dopri5"], batch=2, start="state")
    good = torch.linspace(-1.0, 1.0, 12).view(2, *SHAPE)
    expected = s.run(range(2), init=good)
    with pytest.raises(NonFiniteError, match="id 0 "):
        s.run(range(2), init=100.0 * good)
    assert torch.equal(s.run(range(2), init=good), expected)


def test_only_cuda_devices_record_and_guides_never_are():
    cuda, cpu = torch.device("cuda"), torch.device("cpu")
    recorders = [Repeated(graph, device, ()).recorder for graph in ("auto", "step", "off") for device in (cuda, cpu)]
    assert [recorder is not None for recorder in recorders] == [True, False, True, False, False, False]
    assert [Repeated(graph, cuda, ()).mode for graph in ("auto", "step", "off")] == ["auto", "step", "off"]
    for s, ticking in ((sampler(SOLVERS["dopri5"]), "auto"), (sampler(SOLVERS["dopri5"], clip=0.3), "off")):
        assert s.engine.lanes.ticking.graph == ticking
    assert (swept().engine.sweeping.graph, swept(guide=fs.StaticThreshold(0.3)).engine.sweeping.graph) == (
        "auto",
        "off",
    )


# --- on devices that are not there ---------------------------------------------------------------


@pytest.fixture
def fake(monkeypatch):
    monkeypatch.setattr(selfcheck, "ensure", lambda device, ops: None)
    monkeypatch.setattr(cuda_graphs, "_leases", {})
    quick = SimpleNamespace(collect=int, isenabled=gc.isenabled, enable=gc.enable, disable=gc.disable)
    monkeypatch.setattr(cuda_graphs, "gc", quick)
    with FakeCuda() as fake:
        yield fake


@pytest.mark.slow
def test_sweeps_joint_rows_and_ticks_of_knots_are_captured_as_a_card_would(fake):
    """By the code that a card runs: streams, what a capture forbids, memory that a graph owns; the plain bits."""
    solver, kw = fs.DPMpp2M(), {"grid": fs.karras(4), "batch": 2, "backend": "reference"}
    model = fs.ScoreModel(lambda u, t: u / (1.0 + u * u), SHAPE, fs.EDM(), fs.Parametrization("edm"))
    parts = fs.JointModel(lambda u, t: {k: v / (1.0 + v * v) for k, v in u.items()}, {"a": fs.Part(SHAPE, fs.VP())})
    x = torch.linspace(-1.0, 1.0, 18).view(3, *SHAPE)
    flow = {"batch": 2, "solver": "heun", "grid": fs.uniform(2)}
    runs = {
        "picard": lambda **at: fs.Sampler(model, solver=solver, parallel=fs.Picard(2), **kw, **at).run(range(3)),
        "joint": lambda **at: fs.JointSampler(parts, solver=solver, **kw, **at).run(range(3))["a"],
        "encode": lambda **at: fs.ProbabilityFlow(model, **flow, **at).encode(x.to(at.get("device", "cpu"))),
    }
    for name, run in runs.items():
        expected = run()
        for graph in ("step", "auto", "off"):
            before = len(fake.calls)
            assert torch.equal(run(device="cuda:1", graph=graph).cpu(), expected), name
            replays = [c for c in fake.calls[before:] if c.kind == "replay"]
            assert (len(replays) > 3) == (graph != "off")


@pytest.mark.slow
@pytest.mark.parametrize("name", ["dopri5", pytest.param("dpm", marks=pytest.mark.nightly)])
def test_ticks_are_captured_as_a_card_would_and_the_host_waits_once_a_poll(fake, name):
    solver, waits = SOLVERS[name], {}
    for rtol in (0.05, 0.001):
        s = sampler(replace(solver, rtol=rtol, atol=rtol), device="cuda:1", graph="step")
        s.run([7], labels=1)
        before = len(fake.calls)
        x = s.run([7], labels=1)
        calls = [c.kind for c in fake.calls[before:]]
        assert torch.equal(x.cpu(), sampler(replace(solver, rtol=rtol, atol=rtol)).run([7], labels=1))
        assert calls.count("replay") == s.cost.ticks
        assert calls.count("capture_begin") == 0
        waits[s.cost.ticks // POLL] = calls.count("sync")
    (few, a), (many, b) = sorted(waits.items())
    assert b - a == many - few > 0  # beyond what one sample takes to enter and to leave
