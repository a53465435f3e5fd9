"""What a GPU will capture, shown without one: the recorded loop replays to the same bits."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from gated import one_in
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx.experimental.proxy_tensor import make_fx

from fastscore import plan as plans
from fastscore.engine import capture
from fastscore.engine.capture import Graphed, Segment, Tape, segments
from fastscore.engine.kind import Kind
from fastscore.engine.loop import Loop
from fastscore.engine.request import Request
from fastscore.execution import Execution
from fastscore.guidance.mixture import BoundPlan
from fastscore.model.nets import build
from fastscore.model.score import ScoreModel
from fastscore.ops.backend import REFERENCE, operators
from fastscore.ops.noise import NoiseKey
from fastscore.process.continuous import VE, VP, SubVP
from fastscore.process.grid import uniform
from fastscore.process.parametrization import Parametrization
from fastscore.solvers import (
    DDIM,
    Ancestral,
    AnnealedLangevin,
    DPMpp2M,
    EulerMaruyama,
    Heun,
    Langevin,
    PredictorCorrector,
    ReverseDiffusion,
)
from fastscore.testing import HostSyncError, no_host_sync

SOLVERS = {
    "em": EulerMaruyama(),
    "dpmpp-2m": DPMpp2M(),
    "heun": Heun(),
    "ancestral": Ancestral(),
    "ddim-keep-eps": DDIM(keep_eps=True),
    "pc-langevin": PredictorCorrector(ReverseDiffusion(), Langevin(corrections=2)),
    "pc-batch": PredictorCorrector(ReverseDiffusion(), Langevin(norm="batch")),
    "2m-ald": PredictorCorrector(DPMpp2M(), AnnealedLangevin()),
}
SCHEDULES = {"vp": VP(), "ve": VE(), "subvp": SubVP()}
SHAPE, BATCH = (1, 8, 8), 4
# Every solver on one schedule, in turn; on the others among the slow tests.
PAIRS = [
    pytest.param(name, schedule, marks=[pytest.mark.slow] if (k + j) % 3 else [])
    for k, name in enumerate(SOLVERS)
    for j, schedule in enumerate(SCHEDULES)
]


def make(name: str, schedule, ops=REFERENCE, steps: int = 6) -> Loop:
    torch.manual_seed(0)
    spec = {"name": "UNet", "channels": 1, "size": 8, "width": 8, "mult": [1, 2], "blocks": [1, 1], "classes": 3}
    net = build(spec).eval()
    for p in net.parameters():
        p.data.normal_(std=0.1)
    model = ScoreModel(net, SHAPE, schedule, Parametrization("eps"), classes=3, null=3)
    grid = uniform(steps, clean=True)(schedule)
    bound = BoundPlan(plans.make_plan(SOLVERS[name], schedule, grid), model)
    return Loop(bound, model, Execution("cpu", BATCH), ops)


def load(loop: Loop, seed: int) -> None:
    loop.load(Request(NoiseKey.of(seed, [7, 1, 2**40]), torch.tensor([0, 1, 2])).padded(BATCH))


@pytest.mark.parametrize(
    ("name", "schedule", "mode"),
    one_in(3, [(*pair.values, mode) for pair in PAIRS for mode in ("step", "loop")]),
)
def test_replay_equals_the_loop(name, schedule, mode):
    loop = make(name, SCHEDULES[schedule])
    load(loop, 3)
    graphed = Graphed(loop, Tape(), mode)
    for seed in (3, 4):
        load(loop, seed)
        for buffer in (loop.x, loop.u, loop.hist, loop.scratch):
            buffer.fill_(float("nan"))
        replayed = graphed.run()
        load(loop, seed)
        loop.u.zero_()
        assert torch.equal(replayed, loop.run())
        assert replayed[:3].isfinite().all()


@pytest.mark.thirds
@pytest.mark.parametrize(("name", "schedule"), PAIRS)
def test_no_row_makes_the_host_wait(name, schedule):
    loop = make(name, SCHEDULES[schedule])
    load(loop, 0)
    with no_host_sync():
        loop.run()


def test_a_network_that_waits_is_caught():
    loop = make("em", VP())
    net = loop.model.net
    loop.model.__dict__["net"] = lambda u, t, cond: net(u, t, cond) * float(t.sum() > 0)
    with pytest.raises(HostSyncError), no_host_sync():
        loop.run()


@pytest.mark.thirds
@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("name", ["pc-langevin", "dpmpp-2m", "heun", "ancestral"])
def test_the_whole_loop_traces_on_fake_cuda(name, schedule):
    """Shapes and devices only: one device, no value ever needed on the host, one update a row."""
    loop = make(name, SCHEDULES[schedule], operators("triton"), steps=3)
    with FakeTensorMode():

        def on_cuda(t: torch.Tensor) -> torch.Tensor:
            return torch.empty(t.shape, dtype=t.dtype, device="cuda")

        for key, value in vars(loop).items():
            if isinstance(value, torch.Tensor):
                setattr(loop, key, on_cuda(value))
        labels = loop.labels
        labels.row, labels.lines, labels.now = loop.row, on_cuda(labels.lines), on_cuda(labels.now)
        labels.parts, labels.moves = [on_cuda(part) for part in labels.parts], True
        loop.key, loop.prior = (NoiseKey(on_cuda(key.seed), on_cuda(key.ids)) for key in (loop.key, loop.prior))
        loop.conditions.first = on_cuda(torch.zeros(BATCH, dtype=torch.int64))
        weight = on_cuda(torch.empty(1, 1, 3, 3))

        def net(u, t, cond):
            return torch.nn.functional.conv2d(u, weight, padding=1) + (t + cond).reshape(-1, 1, 1, 1)

        loop.model = replace(loop.model, net=net)

        def work(x):
            loop.x = x
            rows, own = (loop.table, loop.idx), (loop.scratch, loop.scratch_row)
            loop.update, loop.draw_prior, loop.update_own = (
                loop.ops.bind(x, loop.hist, *where, key, loop.u)
                for where, key in ((rows, loop.key), (rows, loop.prior), (own, loop.key))
            )
            F = None
            for kind in loop.kinds:
                F = loop.advance(kind, F)
            return loop.x * 1.0

        traced = make_fx(work)(on_cuda(loop.x))
    calls = [n.target for n in traced.graph.nodes if n.op == "call_function"]
    assert calls.count(torch.ops.fastscore.update.default) == len(loop.kinds)
    assert calls.count(torch.ops.fastscore.langevin.default) == sum(k.norm is not None for k in loop.kinds)
    values = [n.meta["val"] for n in traced.graph.nodes if isinstance(n.meta.get("val"), torch.Tensor)]
    assert {v.device.type for v in values} == {"cuda"}


def test_what_a_row_tells_its_networks_moves_on_with_the_counter():
    """As on a GPU, where it is no longer looked up, from whatever row the counter is pointed at."""
    labels = make("heun", SCHEDULES["vp"]).labels
    looked_up = {row: (labels.point(row), labels.label(), labels.scale())[1:] for row in range(4)}
    labels.moves = True
    for row in (2, 0):
        labels.point(row)
        assert (labels.label(), labels.scale()) == looked_up[row]
        labels.step(REFERENCE)
        assert (labels.label(), labels.scale()) == looked_up[row + 1]


def test_segments_find_the_repeated_group():
    a, b, c = Kind(True, True, True, None), Kind(True, True, True, "sample"), Kind(True, True, False, None)
    first = Kind(False, False, True, None)
    assert segments([first, *[a] * 9, c]) == [Segment(0, 1, 1), Segment(1, 1, 9), Segment(10, 1, 1)]
    assert segments([first, *[a, b] * 5, c]) == [Segment(0, 1, 1), Segment(1, 2, 5), Segment(11, 1, 1)]
    again = Kind(False, True, False, None)  # uses the last network output
    assert segments([first, *[c, again] * 4]) == [Segment(0, 1, 1), Segment(1, 2, 4)]
    for name in SOLVERS:
        kinds = make(name, VP(), steps=20).kinds
        found = segments(kinds)
        assert sum(s.length * s.count for s in found) == len(kinds)
        assert len(found) <= 4, name


@pytest.mark.slow
def test_operators_pass_opcheck():
    ops = torch.ops.fastscore
    x, hist, table = torch.ones(2, 8), torch.zeros(1, 2, 8), torch.zeros(3, 16)
    idx, seed, ids = torch.zeros(2, dtype=torch.int64), torch.zeros(1, dtype=torch.int64), torch.arange(2)
    operators("triton")
    for F in (None, torch.ones(2, 8), torch.ones(2, 8, dtype=torch.bfloat16)):
        torch.library.opcheck(ops.update.default, (x.clone(), F, hist.clone(), table, idx, seed, ids, torch.ones(2, 8)))
        torch.library.opcheck(ops.update.default, (x.clone(), F, hist.clone(), table, idx, None, None, None))
    scratch, valid = torch.zeros(2, 16), torch.ones(2)
    for norm in plans.NORMS:
        torch.library.opcheck(ops.langevin.default, (x, x + 1, table, idx, seed, ids, scratch.clone(), norm, valid))
    torch.library.opcheck(ops.quantize.default, (torch.zeros(2, 3, 4, 5), "nearest"))
    torch.library.opcheck(ops.quantize.default, (torch.zeros(2, 3, 5, 4).transpose(2, 3), "floor"))


def test_operators_and_reference_agree_on_the_cpu():
    a, b = make("pc-langevin", VE()), make("pc-langevin", VE(), operators("triton"))
    for loop in (a, b):
        load(loop, 1)
    assert torch.equal(a.run(), b.run())


def test_kernels_refuse_recorded_noise():
    loop = make("em", VP(), operators("triton"))
    load(loop, 0)
    loop.run(noise=loop.key)  # falls back to the reference
    with pytest.raises(ValueError, match="recorded noise"):
        operators("triton").update(loop.x, None, loop.hist, loop.table, loop.scratch_row * 0, object())


def test_a_network_that_cannot_be_captured_is_named(monkeypatch):
    """In the words of what went wrong first: the end of a broken capture has an error of its own."""

    class Refuses(Tape):
        def __init__(self, device, networks):
            assert networks == loop.networks

        def record(self, reset, work, tried=False):
            assert tried
            try:
                raise TypeError("operation not permitted when stream is capturing\nmore")
            finally:
                raise RuntimeError("operation failed due to a previous error")  # as capture_end does

    monkeypatch.setattr(capture, "CudaGraphs", Refuses)
    loop = make("heun", VP(), steps=2)
    with pytest.raises(ValueError, match=r"graph = 'loop': .*\(operation not permitted.*capturing\); use graph='off'"):
        capture.capture(loop, "loop")
    with pytest.warns(UserWarning, match="no CUDA graph: .*operation not permitted when stream is capturing.$"):
        assert capture.capture(loop, "auto") is None
    with pytest.raises(ValueError, match="graph = 'whole'"):
        Graphed(loop, Tape(), "whole")


def test_auto_is_step_by_step(monkeypatch):
    """Each kind of row is tried once, and nothing is timed."""
    tried = []

    class Counts(Tape):
        def __init__(self, device, networks):
            pass

        def try_out(self, reset, work):
            tried.append(work)
            return 7

    monkeypatch.setattr(capture, "CudaGraphs", Counts)
    loop = make("heun", VP(), steps=9)
    load(loop, 0)
    monkeypatch.setattr(loop, "run", None)
    graphed = capture.capture(loop, "auto")
    assert graphed is not None
    assert (graphed.mode, len(tried)) == ("step", len(segments(loop.kinds)))
    monkeypatch.setattr(capture, "NODES", 7 * len(loop.kinds) - 1)
    with pytest.raises(ValueError, match="graph = 'loop': its 18 rows launch about"):
        capture.capture(loop, "loop")
    monkeypatch.setattr(capture, "NODES", 7 * len(loop.kinds))
    whole = capture.capture(loop, "loop")
    assert whole is not None
    assert (whole.mode, len(whole.replays)) == ("loop", 1)
