"""On a CUDA device: the CPU's bits, whatever runs the rows and however they are captured."""

from __future__ import annotations

import pytest
import torch

from fastscore.engine import selfcheck
from fastscore.engine.adaptive.lanes import POLL
from fastscore.engine.picard import Picard
from fastscore.flow import ProbabilityFlow
from fastscore.joint import JointSampler
from fastscore.model.joint import JointModel, Part
from fastscore.model.score import ScoreModel
from fastscore.ops.backend import resolve
from fastscore.ops.noise import NoiseKey
from fastscore.process.continuous import EDM
from fastscore.process.grid import karras
from fastscore.process.parametrization import Parametrization
from fastscore.sampler import Sampler
from fastscore.solvers import (
    Dopri5,
    DPMAdaptive,
    DPMpp2M,
    GottaGoFast,
    Heun,
    Langevin,
    PredictorCorrector,
    ReverseDiffusion,
)

pytestmark = pytest.mark.gpu

SOLVERS = {"2m": DPMpp2M(), "heun": Heun(), "pc": PredictorCorrector(ReverseDiffusion(), Langevin())}


def sampler(solver: str, **kw) -> Sampler:
    m = ScoreModel(lambda u, t, cond: u / (1.0 + u * u), (3, 16, 16), EDM(), Parametrization("edm", "log_sigma/4"))
    return Sampler(m, solver=SOLVERS[solver], grid=karras(8), batch=8, **kw)


def test_noise_bits():
    ids = [0, 1, 2**40, 2**63 - 1]
    cpu, cuda = (NoiseKey.of(2**64 - 3, ids, device).normal(5, 1001) for device in ("cpu", "cuda"))
    assert torch.equal(cpu, cuda.cpu())


@pytest.mark.parametrize("graph", ["off", "step", "loop", "auto"])
@pytest.mark.parametrize("backend", ["reference", "triton"])
@pytest.mark.parametrize("solver", SOLVERS)
def test_trajectories_of_an_elementwise_network(solver, backend, graph):
    fast = sampler(solver, device="cuda", backend=backend, graph=graph)
    expected = sampler(solver).run(range(20))
    assert torch.equal(fast.run(range(20)).cpu(), expected)
    assert torch.equal(fast.run([19, 3]).cpu(), expected[[19, 3]])


@pytest.mark.parametrize("solver", SOLVERS)
def test_no_row_makes_the_host_wait(solver):
    fast = sampler(solver, device="cuda")
    fast.run(range(8))
    torch.cuda.set_sync_debug_mode("error")
    try:
        fast.engine.loop.run()
    finally:
        torch.cuda.set_sync_debug_mode("default")


@pytest.mark.parametrize("graph", ["off", "loop"])
def test_a_run_is_on_the_callers_stream_and_waits_for_no_other(graph):
    """After what the stream has still to do, and while the default stream is busy for seconds."""
    fast = sampler("2m", device="cuda", graph=graph, start="state")
    init = torch.linspace(-1.0, 1.0, 8 * 3 * 16 * 16).view(8, 3, 16, 16)
    expected = fast.run(range(8), init=init).cpu()  # captured
    given, out = torch.full(init.shape, torch.nan, device="cuda"), torch.empty(init.shape, device="cuda")
    stream = torch.cuda.Stream()
    torch.cuda.synchronize()
    torch.cuda._sleep(20_000_000_000)
    with torch.cuda.stream(stream):
        torch.cuda._sleep(100_000_000)
        given.copy_(init.pin_memory(), non_blocking=True)  # comes late, and in order
        found = fast.run(range(8), init=given, out=out).cpu()
        assert torch.cuda.current_stream() == stream
    assert not torch.cuda.default_stream().query()
    assert torch.equal(found, expected)
    torch.cuda.synchronize()


ADAPTIVE = {"dopri5": Dopri5(1e-3, 1e-3), "dpm": DPMAdaptive(3), "ggf": GottaGoFast(0.2, 0.2)}


def adaptive(solver: str, **kw) -> Sampler:
    m = ScoreModel(lambda u, t, cond: u / (1.0 + u * u), (3, 16, 16), EDM(), Parametrization("edm", "log_sigma/4"))
    return Sampler(m, solver=ADAPTIVE[solver], batch=8, **kw)


@pytest.mark.parametrize("backend", ["reference", "triton"])
@pytest.mark.parametrize("solver", ADAPTIVE)
def test_captured_ticks_are_plain_ones(solver, backend):
    """To the bit on the device; the CPU has other last digits of exp and log, and so other steps."""
    plain, fast = (adaptive(solver, device="cuda", backend=backend, graph=graph) for graph in ("off", "step"))
    expected = plain.run(range(20))
    for _ in range(2):
        assert torch.equal(fast.run(range(20)), expected)
    assert torch.equal(fast.run([19, 3]), expected[[19, 3]])
    assert (plain.engine.mode, fast.engine.mode) == ("off", "step")
    assert torch.allclose(expected.cpu(), adaptive(solver).run(range(20)), rtol=0.05, atol=0.05)


@pytest.mark.parametrize("solver", ADAPTIVE)
def test_no_tick_makes_the_host_wait(solver):
    fast = adaptive(solver, device="cuda", graph="step")
    fast.run(range(8))
    lanes = fast.engine.lanes
    tick = lanes.ready()
    torch.cuda.set_sync_debug_mode("error")
    try:
        for _ in range(POLL):
            tick()
        with torch.no_grad():
            lanes.tick()
    finally:
        torch.cuda.set_sync_debug_mode("default")


def test_captured_likelihoods_sweeps_and_joint_rows_are_plain_ones():
    m = ScoreModel(lambda u, t, cond: u / (1.0 + u * u), (3, 4, 4), EDM(), Parametrization("edm", "log_sigma/4"))
    x = torch.linspace(-1.0, 1.0, 10 * 48, device="cuda").view(10, 3, 4, 4)
    flows = [ProbabilityFlow(m, batch=4, device="cuda", graph=graph) for graph in ("off", "step")]
    plain, captured = (flow.log_likelihood(x, probe="rademacher").nats for flow in flows)
    assert torch.equal(plain, captured)
    kw = {"solver": DPMpp2M(), "grid": karras(8), "batch": 4, "device": "cuda"}
    sweeps = [Sampler(m, parallel=Picard(4), graph=graph, **kw).run(range(10)) for graph in ("off", "step")]
    assert torch.equal(*sweeps)
    joint = JointModel(lambda u, t: {k: v / (1.0 + v * v) for k, v in u.items()}, {k: Part((8,), EDM()) for k in "ab"})
    rows = [JointSampler(joint, graph=graph, **kw).run(range(10)) for graph in ("off", "step", "loop", "auto")]
    assert all(torch.equal(found[k], rows[0][k]) for found in rows for k in "ab")


def test_graph_memory_is_released():
    torch.cuda.synchronize()
    before = torch.cuda.memory_allocated()
    for _ in range(3):
        sampler("2m", device="cuda", graph="loop").run(range(8))
    torch.cuda.empty_cache()
    assert torch.cuda.memory_allocated() <= before


def test_selfcheck():
    device = torch.device("cuda")
    assert len(list(selfcheck.checks(device, resolve("triton", device)))) == 14
