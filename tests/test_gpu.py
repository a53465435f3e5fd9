"""On a CUDA device: the CPU's bits, whatever runs the rows and however they are captured."""

from __future__ import annotations

import pytest
import torch

from fastscore.engine import selfcheck
from fastscore.model.score import ScoreModel
from fastscore.ops.backend import resolve
from fastscore.ops.noise import NoiseKey
from fastscore.process.continuous import EDM
from fastscore.process.grid import karras
from fastscore.process.parametrization import Parametrization
from fastscore.sampler import Sampler
from fastscore.solvers import DPMpp2M, Heun, Langevin, PredictorCorrector, ReverseDiffusion

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


def test_graph_memory_is_released():
    torch.cuda.synchronize()
    before = torch.cuda.memory_allocated()
    for _ in range(3):
        sampler("2m", device="cuda", graph="loop").run(range(8))
    torch.cuda.empty_cache()
    assert torch.cuda.memory_allocated() <= before


def test_selfcheck():
    device = torch.device("cuda")
    assert len(list(selfcheck.checks(device, resolve("triton", device)))) == 12
