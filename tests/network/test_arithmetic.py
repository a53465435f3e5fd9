"""Float32 on CUDA: TF32 or not, for the length of a run; what a record says of it; derivatives that repeat."""

from __future__ import annotations

import threading
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from fastscore.engine.adaptive import divergence
from fastscore.engine.record import record_of
from fastscore.engine.turn import Turn
from fastscore.execution import Execution
from fastscore.flow import ProbabilityFlow
from fastscore.model.score import ScoreModel
from fastscore.network import arithmetic, surroundings
from fastscore.network.prepared import Numerics, Prepared, numerics
from fastscore.network.surroundings import multiplying, repeatable, undisturbed
from fastscore.network.trial import Trial
from fastscore.process.continuous import VP
from fastscore.sampler import Sampler

CUDA = torch.device("cuda", 0)
NEWER = hasattr(torch.backends.cuda.matmul, "fp32_precision")
# What users say, in both sets of names and mixed, one after the other.
SAID = (
    "pass", "b.cuda.matmul.allow_tf32 = True", "b.cudnn.allow_tf32 = False", "b.cudnn.allow_tf32 = True",
    *[f"torch.set_float32_matmul_precision({word!r})" for word in ("medium", "highest")],
    *["b.cuda.matmul.fp32_precision = 'tf32'", "b.cudnn.conv.fp32_precision = 'ieee'", "b.fp32_precision = 'tf32'",
      "b.fp32_precision = 'ieee'", "b.cudnn.fp32_precision = 'tf32'", "b.cudnn.allow_tf32 = False"] * NEWER,
)  # fmt: skip


@pytest.fixture(autouse=True)
def flags():
    state = arithmetic.read()
    yield
    arithmetic.write(state)
    for name in ("generic", "cuda") if NEWER else ():
        torch._C._set_fp32_precision_setter(name, "all", "none")
    arithmetic.write(state)


def everything() -> list[object]:
    """All that torch says of its flags, in both sets of names."""

    def said(read):
        try:
            return read()
        except RuntimeError:
            return "refused"

    newer = [("generic", "all"), ("cuda", "all"), ("cuda", "matmul"), ("cuda", "conv"), ("cuda", "rnn")]
    newer += [("mkldnn", "all"), ("mkldnn", "matmul"), ("mkldnn", "conv")]
    get = torch._C._get_fp32_precision_getter if NEWER else None
    return [
        *map(said, (torch._C._get_cublas_allow_tf32, torch._C._get_cudnn_allow_tf32)),
        said(torch.get_float32_matmul_precision),
        *([get(*which) for which in newer] if get else []),
    ]


def test_flags_are_set_for_a_run_and_given_back_as_they_were_said():
    for line in SAID:
        exec(line, {"torch": torch, "b": torch.backends})
        before, caller = everything(), arithmetic.tf32()
        for wanted, inside in ((True, "both"), (False, "off"), (None, caller)):
            with undisturbed(place=CUDA, tf32=wanted):
                assert arithmetic.tf32() == inside, line
            assert everything() == before, (line, wanted)
            with pytest.raises(ZeroDivisionError), undisturbed(place=CUDA, tf32=wanted):
                raise ZeroDivisionError
            assert everything() == before, (line, wanted)
        with undisturbed(place=torch.device("cpu"), tf32=True):
            assert everything() == before  # they are no business of a CPU


def test_the_four_words_for_them():
    cuda, cudnn = torch.backends.cuda.matmul, torch.backends.cudnn
    found = {}
    for matmul in (False, True):
        for conv in (False, True):
            cuda.allow_tf32, cudnn.allow_tf32 = matmul, conv
            found[matmul, conv] = arithmetic.tf32()
    assert list(found.values()) == ["off", "convolutions", "matmul", "both"]


def seen_by(network: Prepared | nn.Module) -> str:
    with Turn(network, execution=Execution(CUDA)):
        return arithmetic.tf32()


def test_a_run_multiplies_as_its_network_was_prepared():
    def call(*inputs: torch.Tensor) -> torch.Tensor:
        return inputs[0]

    example = torch.zeros(2, 3), torch.zeros(2)
    for said in ("off", "both"):
        net = Prepared(call, example, Numerics("fp32", "full", tf32=said))
        torch.backends.cudnn.allow_tf32 = said == "off"
        before = everything()
        assert seen_by(net) == said
        assert everything() == before
    torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = True
    own = nn.Linear(2, 2)
    assert seen_by(own) == "both"  # the caller's
    assert seen_by(Prepared(call, example, Numerics("bf16", "package"))) == "both"
    assert numerics(own, "own", CUDA).tf32 == "both"
    assert numerics(own, "compile", CUDA).tf32 == "both"
    assert numerics(own, "own", torch.device("cpu")).tf32 is None


def test_errors_are_against_true_float32():
    seen = []

    class Net(nn.Module):
        def forward(self, u, c_noise, cond=None):
            seen.append(arithmetic.tf32())
            return u

    model = ScoreModel(Net(), (3,), VP())
    trial = Trial(model, model.net, 20, torch.device("cpu"))
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = True
    trial.device = CUDA
    assert trial.checked(model.net, "fp32") == 0.0
    assert seen == ["off", "both"]  # the network itself; then what is compared with it, as it runs


def test_runs_that_want_other_arithmetic_take_turns():
    order, entered, leave = [], threading.Event(), threading.Event()

    def other() -> None:
        with multiplying.of(False):
            order.append(arithmetic.tf32())
            entered.set()
            leave.wait(10)
            order.append(arithmetic.tf32())

    thread = threading.Thread(target=other)
    thread.start()
    assert entered.wait(10)
    with multiplying.of(False):  # the same, at the same time
        order.append("beside")
    threading.Timer(0.05, leave.set).start()
    with multiplying.of(True):
        order.append(arithmetic.tf32())
    thread.join()
    assert order == ["off", "beside", "off", "both"]


def test_a_forked_process_is_given_no_setting_of_an_earlier_run():
    setting = []
    shared = surroundings._Shared("toy", lambda: setting[-1:], setting.append)
    with shared.of("run"):
        pass
    setting.append("the caller's, later")
    before = list(setting)
    shared.forget(threading.get_ident())
    assert setting == before
    with shared.of("run"):
        shared.inside.append((-1, "of a thread that the child has not"))
        shared.forget(threading.get_ident())
        assert [value for _, value in shared.inside] == ["run"]


def test_derivatives_on_cuda_come_from_kernels_that_repeat():
    def now() -> tuple[bool, ...]:
        cuda = torch.backends.cuda
        return (
            torch.backends.cudnn.deterministic, cuda.flash_sdp_enabled(), cuda.mem_efficient_sdp_enabled(),
            cuda.cudnn_sdp_enabled(), cuda.math_sdp_enabled(),
        )  # fmt: skip

    before = now()
    torch.backends.cuda.enable_math_sdp(False)
    try:
        for place, inside in ((CUDA, (True, False, False, False, True)), (torch.device("cpu"), (*before[:4], False))):
            with repeatable(place), repeatable(place):
                assert now() == inside
            assert now() == (*before[:4], False)
    finally:
        torch.backends.cuda.enable_math_sdp(True)
    assert now() == before


def test_likelihoods_take_them_for_both_passes(monkeypatch):
    inside, passes = [], []

    class Held:
        def __enter__(self):
            inside.append(self)

        def __exit__(self, *error):
            inside.pop()

    class Watched(torch.autograd.Function):
        @staticmethod
        def forward(ctx, u):
            passes.append(("forward", bool(inside)))
            return 0.5 * u

        @staticmethod
        def backward(ctx, grad):
            passes.append(("backward", bool(inside)))
            return 0.5 * grad

    monkeypatch.setattr(divergence, "repeatable", lambda place: Held())
    model = ScoreModel(lambda u, c_noise, cond: Watched.apply(u), (3,), VP())
    ProbabilityFlow(model, batch=2).log_likelihood(torch.zeros(2, 3))
    assert set(passes) == {("forward", True), ("backward", True)}


def test_a_record_says_what_bits_on_cuda_depend_on(monkeypatch):
    properties = SimpleNamespace(name="NVIDIA H100", major=9, minor=0)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda place: properties)
    torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32 = True, False
    said = arithmetic.described(CUDA)
    assert (said["gpu"], said["architecture"]) == ("NVIDIA H100", "sm_90")
    assert said["attention"] == ["flash", "efficient", "math", "cudnn"]
    torch.backends.cuda.enable_flash_sdp(False)
    torch.backends.cudnn.benchmark = True
    try:
        again = arithmetic.described(CUDA)
        assert {k for k in said if said[k] != again[k]} == {"attention", "cudnn_benchmark"}
    finally:
        torch.backends.cuda.enable_flash_sdp(True)
        torch.backends.cudnn.benchmark = False
    assert {"driver", "cuda", "cudnn", "triton", "cudnn_deterministic", "cublas_workspace"} < set(said)
    model = ScoreModel(lambda u, c_noise, cond: u, (3,), VP())
    sampler = Sampler(model, steps=2, batch=2)
    assert "cuda" not in sampler.record()
    assert sampler.record()["network"]["tf32"] is None
    sampler.execution = SimpleNamespace(place=CUDA, to_dict=dict, network="own")
    sampler.prepared = model
    record = record_of(sampler)
    assert record["cuda"]["gpu"] == "NVIDIA H100"
    assert record["network"]["tf32"] == "convolutions"


def test_tf32_is_asked_for_on_cuda_only():
    with pytest.raises(ValueError, match="network = 'tf32' needs a CUDA device, not cpu; use network='fp32' or 'auto'"):
        Sampler(ScoreModel(lambda u, c_noise, cond: u, (3,), VP()), network="tf32")
