"""On a CUDA device: the CPU's bits, whatever runs the rows and however they are captured."""

from __future__ import annotations

import gc
import math
import os
import shutil
import subprocess
import sys
import warnings
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel

from fastscore.engine import selfcheck
from fastscore.engine.adaptive.lanes import POLL
from fastscore.engine.picard import Picard
from fastscore.flow import ProbabilityFlow
from fastscore.guidance.mixture import Guidance
from fastscore.joint import JointSampler
from fastscore.model.analytic import by_name, mixture, score_model
from fastscore.model.joint import JointModel, Part
from fastscore.model.nets import build
from fastscore.model.score import ScoreModel
from fastscore.network import arithmetic, surroundings
from fastscore.network.timing import choose_batch
from fastscore.network.trial import Trial
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


def sampler(solver: str, classes: int = 0, **kw) -> Sampler:
    def net(u, t, cond):
        return u / (1.0 + u * u) + (0.0 if cond is None else 0.125 * cond.to(u).view(-1, 1, 1, 1))

    reads, null = Parametrization("edm", "log_sigma/4"), classes or None
    m = ScoreModel(net, (3, 16, 16), EDM(), reads, classes=classes, null=null)
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


@pytest.mark.parametrize("graph", ["off", "step"])
@pytest.mark.parametrize("guided", [None, "serial", "batched"])
def test_a_run_of_many_micro_batches_waits_at_its_end_only(guided, graph):
    """The last copies of what was asked are waited for by events, which this mode does not mind."""
    kw = {"graph": graph} if guided is None else {"graph": graph, "guided": guided, "guidance": Guidance(2.0)}
    fast = sampler("2m", device="cuda", classes=3, **kw)
    request = fast.request(range(800), labels=1)
    expected, out = fast.run(request), torch.empty(800, 3, 16, 16, device="cuda")
    torch.cuda.set_sync_debug_mode("error")
    try:
        fast.run(request, out=out)
        torch.cuda._sleep(1_000_000_000)
        written = [x for _, x in zip(range(2), fast.stream(request), strict=False)]
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert torch.equal(out, expected) and torch.equal(written[1][1], expected[8:16])


@pytest.mark.parametrize("graph", ["off", "step", "loop"])
@pytest.mark.parametrize("backend", ["reference", "triton"])
def test_rows_whose_evaluations_are_one_call(backend, graph):
    """The CPU's bits where a network keeps to its lines; and another one's rounding apart."""
    kw = {"backend": backend, "graph": graph, "guidance": Guidance((2.0, -0.5), (0.1, 20.0)), "classes": 3}
    fields = {"labels": [0, 1, 2, 1, 0], "others": [[1, 1, 0, 2, 2]], "negative": [2, 0, 1, 0, 1]}
    expected = sampler("2m", **{**kw, "graph": "off", "backend": "reference"}).run(range(5), 3, **fields)
    for guided in ("auto", "serial"):
        fast = sampler("2m", device="cuda", guided=guided, **kw)
        assert fast.record()["guided"] == {"auto": "batched"}.get(guided, guided)
        for _ in range(2):
            assert torch.equal(fast.run(range(5), 3, **fields).cpu(), expected)
    model, kw = image_model(), {"backend": backend, "graph": graph, "guidance": Guidance(2.0)}
    samplers = [Sampler(model, steps=6, batch=8, guided=guided, **kw) for guided in ("batched", "serial")]
    drawn = [s.run(range(8), labels=1) for s in samplers]
    assert (drawn[0] - drawn[1]).abs().mean() < 1e-2 * drawn[1].abs().mean()


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


def normals(*shape: int) -> torch.Tensor:
    return NoiseKey.of(0, [0]).normal(0, math.prod(shape)).view(shape)


def image_model() -> ScoreModel:
    """A network of three channels that "auto" takes: attention, residual blocks, an embedding."""
    torch.manual_seed(0)
    net = build(
        {"name": "UNet", "channels": 3, "size": 16, "width": 64, "mult": [1, 2], "blocks": [1, 1], "classes": 3}
    )
    for p in net.parameters():
        p.data.add_(0.02 * normals(*p.shape))  # branches that start at zero, too
    return ScoreModel(net.eval().cuda(), (3, 16, 16), EDM(), Parametrization("edm", "log_sigma/4"), classes=3, null=3)


@pytest.mark.parametrize("kind", ["auto", "bf16", "tf32", "fp32"])
def test_the_error_of_each_arithmetic_is_against_true_float32(kind):
    model = image_model()
    torch.backends.cudnn.allow_tf32 = True  # as users have it
    before = arithmetic.read()
    fast = Sampler(model, steps=8, batch=16, network=kind)
    how = fast.numerics
    assert how.error is not None
    assert how.error <= {"fp32": 1e-4}.get(kind, 1e-2)
    assert (how.dtype, how.tf32) == ({"auto": "bf16"}.get(kind, kind), "both" if kind == "tf32" else "off")
    assert arithmetic.read() == before
    u, c_noise, cond = Trial(model, model.net, 16, torch.device("cuda", 0)).example
    with torch.no_grad(), surroundings.undisturbed(place=u.device, tf32=False):
        exact = model.net.double()(u.double(), c_noise.double(), cond)
        model.net.float()
        error = ((fast.prepared.net(u, c_noise, cond) - exact).norm() / exact.norm()).item()
    assert {"fp32": 0.0, "tf32": 1e-5}.get(kind, 1e-4) < error < {"fp32": 1e-4}.get(kind, 2e-2)
    assert fast.record()["cuda"]["gpu"] == torch.cuda.get_device_name()


def test_the_output_lies_with_its_channels_last_and_attention_is_fused():
    fast = Sampler(image_model(), steps=2, batch=16, network="bf16")
    u = normals(16, 3, 16, 16).cuda()
    net = fast.prepared.net
    F = net(u, torch.zeros(16, device="cuda"), torch.zeros(16, dtype=torch.int64, device="cuda"))
    assert F.is_contiguous(memory_format=torch.channels_last)
    assert F.dtype == torch.float32
    q = normals(4, 2, 256, 64).cuda().bfloat16()
    with sdpa_kernel([SDPBackend.FLASH_ATTENTION, SDPBackend.EFFICIENT_ATTENTION]):
        torch.nn.functional.scaled_dot_product_attention(q, q, q)
        with torch.no_grad():
            image_model().net(u, torch.zeros(16, device="cuda"))  # as it is: float32, memory-efficient


@pytest.mark.parametrize("graph", ["off", "step"])
def test_a_compiled_network_makes_nobody_wait_and_reads_new_weights(graph):
    model = image_model()
    fast = Sampler(model, steps=4, batch=8, network="bf16", graph=graph)
    first = fast.run(range(16), labels=1)
    assert fast.run(range(16), labels=1).equal(first)
    torch.cuda.set_sync_debug_mode("error")
    try:
        fast.engine.loop.run()
    finally:
        torch.cuda.set_sync_debug_mode("default")
    captured = vars(fast.engine).get("captured")
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # nothing is compiled
        for p in model.net.parameters():
            p.data.mul_(1.01)
        assert not fast.run(range(16), labels=1).equal(first)
    assert vars(fast.engine).get("captured") is captured  # nor captured


KEPT = """
import sys
import torch
sys.path[:0] = [{here!r}]
from test_gpu import image_model
from fastscore.network.prepare import prepare
model = image_model()
model.net.head.weight.data.mul_({factor})
said = []
prepare(model, 8, network="bf16", say=said.append)
from torch._dynamo.utils import counters
print(len(said), counters["inductor"]["fxgraph_cache_hit"], counters["inductor"]["fxgraph_cache_miss"])
"""


def test_what_was_compiled_is_found_by_the_next_process(tmp_path):
    environment = {**os.environ, "XDG_CACHE_HOME": str(tmp_path)}
    environment.pop("TORCHINDUCTOR_CACHE_DIR", None)
    found = []
    for factor in (1.0, 1.5):
        code = KEPT.format(here=os.path.dirname(__file__), factor=factor)
        out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment, check=True)
        found.append(out.stdout.split())
        shutil.rmtree(tmp_path / "fastscore" / "inductor")
    assert found == [["1", "0", "1"], ["0", "1", "0"]]


def test_likelihoods_repeat():
    flow = ProbabilityFlow(image_model(), solver=Dopri5(1e-3, 1e-3), batch=4)
    x = torch.linspace(-1.0, 1.0, 4 * 768, device="cuda").view(4, 3, 16, 16)
    first, again = (flow.log_likelihood(x, labels=1).nats for _ in range(2))
    assert torch.equal(first, again)


def test_a_batch_that_memory_has_no_room_for_ends_the_search():
    total = torch.cuda.get_device_properties(0).total_memory
    hungry = ScoreModel(lambda u, c, cond: u + torch.empty(len(u) * total // 40, 1, device="cuda").sum(), (3,), EDM())
    choice = choose_batch(hungry, "cuda", sizes=(1, 16, 64))
    assert choice.batch in (1, 16)


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


def conv(**kw) -> tuple[torch.nn.Module, Sampler]:
    torch.manual_seed(0)
    net = torch.nn.Sequential(torch.nn.Conv2d(3, 8, 3, padding=1), torch.nn.SiLU(), torch.nn.Conv2d(8, 3, 3, padding=1))
    net = net.to("cuda").eval()
    return net, of(net, **kw)


def of(net, act=id, **kw) -> Sampler:
    def call(u, t, cond):
        act(u)
        return net(u)

    m = ScoreModel(call, (3, 16, 16), EDM(), Parametrization("edm", "log_sigma/4"), modules=(net,))
    return Sampler(m, grid=karras(8), batch=8, **kw)


def test_a_recording_outlives_what_a_service_does():
    """The cache is emptied, other samplers come and go, another thread replays, inference mode is on."""
    net, s = conv(graph="step")
    expected = s.run(range(8))
    torch.cuda.empty_cache()
    torch.full((64 << 20,), torch.nan, device="cuda")  # what had been freed holds this now
    assert torch.equal(s.run(range(8)), expected)
    for _ in range(40):
        of(net, graph="step").run(range(8))
    torch.cuda.empty_cache()
    assert torch.equal(s.run(range(8)), expected)
    with torch.inference_mode():
        assert torch.equal(s.run(range(8)), expected)
    with ThreadPoolExecutor(2) as pool:
        assert torch.equal(pool.submit(s.run, range(8)).result(), expected)
        both = [pool.submit(of(net, graph="step").run, range(8)) for _ in range(2)]  # two capture
        assert all(torch.equal(x.result(), expected) for x in both)
    assert torch.cuda.current_stream() == torch.cuda.default_stream()


def test_a_network_that_cannot_be_captured_leaves_the_process_as_it_was():
    """Told before a capture, or by one that breaks."""
    net, good = conv(graph="step")
    expected = good.run(range(8))
    constant = torch.ones(16, 16)
    for act in (
        lambda u: u.sum().item(),
        lambda u: u.nonzero(),
        lambda u: constant.to(u.device),
        lambda u: torch.tensor([1.0, 2.0], device=u.device),
        lambda u: torch.cuda.current_stream().query(),
    ):
        with pytest.warns(UserWarning, match="no CUDA graph"):
            assert torch.equal(of(net, act).run(range(8)), expected)
        assert torch.cuda.current_stream() == torch.cuda.default_stream()
        assert torch.equal(good.run(range(8)), expected)
        assert torch.equal(of(net, graph="step").run(range(8)), expected)
        torch.cuda.synchronize()
        torch.cuda.empty_cache()


def test_weights_that_were_replaced_are_not_read_any_more():
    net, s = conv(graph="step")
    old = s.run(range(8))
    net[0].weight.data = net[0].weight.data * 2.0
    torch.cuda.empty_cache()
    assert torch.equal(s.run(range(8)), of(net, graph="off").run(range(8)))
    net[0] = torch.nn.Conv2d(3, 8, 3, padding=1).to("cuda")
    assert torch.equal(s.run(range(8)), of(net, graph="off").run(range(8)))
    assert not torch.equal(s.run(range(8)), old)


def test_garbage_that_piles_up_ends_no_capture():
    net, s = conv(graph="off")
    expected, before = s.run(range(8)), gc.get_threshold()
    gc.set_threshold(1, 1, 1)
    try:
        for graph in ("step", "loop"):
            assert torch.equal(of(net, graph=graph).run(range(8)), expected)
    finally:
        gc.set_threshold(*before)
    assert gc.isenabled()


def test_exact_models_are_captured():
    for model in (score_model(mixture()), by_name("moons")):
        fast = Sampler(model, steps=8, batch=16, device="cuda", graph="step")
        torch.testing.assert_close(fast.run(range(16)).cpu(), Sampler(model, steps=8, batch=16).run(range(16)))
