"""The network on a CUDA device that is played: whatever needs one to be there, and none to compute."""

from __future__ import annotations

import copy
import gc
import warnings
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fastscore.engine import selfcheck
from fastscore.guidance.mixture import Guidance
from fastscore.model.nets import build
from fastscore.model.score import ScoreModel
from fastscore.network import arithmetic, prepared
from fastscore.network import prepare as network
from fastscore.network.bf16 import Recipe, Traced
from fastscore.network.prepared import Prepared
from fastscore.network.timing import choose_batch
from fastscore.ops.backend import REFERENCE
from fastscore.process.continuous import EDM
from fastscore.process.parametrization import Parametrization
from fastscore.sampler import Sampler
from fastscore.solvers import DDIM

FakeCuda: Any = pytest.importorskip("fake_cuda").FakeCuda
SPEC = {"name": "UNet", "channels": 3, "size": 8, "width": 16, "mult": [1], "blocks": [1], "attention": [0]}


class Copied:
    """In place of what is compiled: a copy of the network, evaluated by its recipe."""

    made: list[Recipe] = []

    def __init__(self, net: nn.Module, recipe: Recipe, example: tuple[Tensor, ...]) -> None:
        self.net, self.recipe, self.complete = copy.deepcopy(net), recipe, True
        self.made.append(recipe)

    def load(self, net: nn.Module) -> None:
        with torch.no_grad():
            for own, p in zip(self.net.parameters(), net.parameters(), strict=True):
                own.copy_(p)

    def __call__(self, *inputs: Tensor) -> Tensor:
        return Traced(self.net, self.recipe)(*inputs)


@pytest.fixture
def fake(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(network, "SMALL", 0)
    for module in (network, prepared):
        monkeypatch.setattr(module, "Stored", Copied)
    Copied.made.clear()
    monkeypatch.setattr("fastscore.sampler.trusted", lambda execution: REFERENCE)
    gc.disable()  # whatever becomes of that in a capture is no matter of the network
    try:
        with FakeCuda(devices=2) as fake:
            yield fake
    finally:
        gc.enable()


def unet() -> nn.Module:
    torch.manual_seed(0)
    net = build(SPEC).eval()
    for p in net.parameters():
        p.data.normal_(std=0.1)
    return net


def model(place: str = "cuda:1") -> ScoreModel:
    torch.manual_seed(0)

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layers = nn.Sequential(nn.Conv2d(3, 16, 1), nn.SiLU(), nn.Conv2d(16, 16, 1), nn.Conv2d(16, 3, 1))

        def forward(self, u, c_noise, cond=None):
            return self.layers(u) * (1.0 + c_noise[:, None, None, None])

    return ScoreModel(Net().to(place), (3, 4, 4), EDM(), Parametrization("edm", "log_sigma/4"))


@pytest.mark.slow
def test_auto_is_bf16_there_and_a_run_waits_for_nothing_but_its_weights(fake):
    with pytest.warns(UserWarning, match="compiling the network for this machine in bf16, once for these layers"):
        sampler = Sampler(model(), steps=3, batch=4, network="auto", graph="off")
        first = sampler.run(range(12))
    how = sampler.record()
    assert (how["network"]["dtype"], how["network"]["residual"], how["network"]["tf32"]) == ("bf16", "bf16", "off")
    assert how["cuda"]["gpu"] == fake.name
    assert len(Copied.made) == 1
    before = len(fake.syncs)
    sampler.run(range(4))
    one = len(fake.syncs) - before
    before = len(fake.syncs)
    assert sampler.run(range(12)).equal(first)
    equal = 1  # of the line above
    assert len(fake.syncs) - before - equal <= 3 * one - 2  # weights are looked at once, not for each micro-batch


@pytest.mark.slow
def test_new_weights_are_neither_compiled_nor_captured_again(fake):
    given = model("cuda:0")
    sampler = Sampler(given, steps=3, batch=4, network="bf16", graph="step")
    first = sampler.run(range(8))
    captured = fake.recorded
    for p in given.net.parameters():
        p.data.mul_(1.01)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        again = sampler.run(range(8))
    assert not again.equal(first)
    assert again.equal(Sampler(given, steps=3, batch=4, network="bf16", graph="off").run(range(8)))
    assert len(Copied.made) == 2  # one a sampler
    assert fake.recorded == captured


def test_where_a_device_is_too_old_it_is_said_once_and_the_samples_are_the_networks_own(fake, monkeypatch):
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda place: (7, 0))
    monkeypatch.setattr(network, "_said", set())
    with pytest.warns(UserWarning, match=r"runs as it is: Fake CUDA is sm_70; compiled networks need sm_80") as said:
        found = [Sampler(model(), steps=3, batch=4, network="auto", graph="off").run(range(4)) for _ in range(2)]
    assert len([w for w in said if "sm_70" in str(w.message)]) == 1
    assert found[0].equal(Sampler(model(), steps=3, batch=4, graph="off").run(range(4)))
    assert not Copied.made


def test_attention_of_a_network_as_it_is_reads_heads_that_lie_together(fake, monkeypatch):
    """Fused kernels take no others. On a CPU, whose bits are promised, nothing is moved."""
    seen, real = [], F.scaled_dot_product_attention
    monkeypatch.setattr(F, "scaled_dot_product_attention", lambda *three: seen.extend(three) or real(*three))
    u, c_noise = torch.linspace(-1.0, 1.0, 768).view(4, 3, 8, 8), torch.linspace(0.1, 1.0, 4)
    outs = []
    for place, step in (("cpu", 64), ("cuda:0", 1)):
        seen.clear()
        with torch.no_grad():
            outs.append(unet().to(place)(u.to(place), c_noise.to(place)).cpu())
        assert {v.stride(-1) for v in seen} == {step}, place
    assert torch.allclose(*outs, rtol=1e-5, atol=1e-5)


def test_memory_bounds_the_micro_batch(fake):
    hungry = model("cuda:0")
    assert choose_batch(hungry, sizes=(2, 4)).batch in (2, 4)
    fake.plant("convolution", torch.OutOfMemoryError("CUDA out of memory"), after=16)
    hungry.net.layers[0].weight.data.mul_(2.0)  # another key
    assert choose_batch(hungry, sizes=(2, 4, 8)).batch == 2


@pytest.mark.slow
def test_tf32_is_off_in_a_run_and_as_it_was_after_it(fake):
    seen = []
    given = model("cuda:0")
    given.net.register_forward_hook(lambda *_: seen.append(arithmetic.tf32()))
    before = arithmetic.read()
    for kind, inside in (("own", {arithmetic.tf32()}), ("bf16", {"off"}), ("fp32", {"off"}), ("tf32", {"off", "both"})):
        seen.clear()
        sampler = Sampler(given, steps=2, batch=4, network=kind, graph="off")
        sampler.run(range(4))
        assert set(seen) == inside, kind
        if kind != "own":  # and where somebody else calls it
            seen.clear()
            sampler.prepared.net(torch.zeros(4, 3, 4, 4, device="cuda:0"), torch.zeros(4, device="cuda:0"))
            assert seen == ["both" if kind == "tf32" else "off"]
        assert sampler.record()["network"]["tf32"] in inside
        assert arithmetic.read() == before


def test_doctor_says_what_auto_is_there(fake, monkeypatch, run):
    monkeypatch.setattr(selfcheck, "checks", lambda place, ops: iter(()))
    monkeypatch.setenv("FASTSCORE_BACKEND", "reference")
    code, out, _ = run("doctor", "--device", "cuda:1")
    assert code == 0
    assert "network on cuda:1: --network auto is bf16 where the scores agree within 1 %" in out
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda place: (7, 0))
    _, out, _ = run("doctor", "--device", "cuda:1")
    assert "auto is the network as it is: Fake CUDA is sm_70; compiled networks need sm_80 or newer" in out


@pytest.mark.slow
def test_guided_rows_are_one_call_of_a_network_that_was_compiled_for_it(fake):
    """For twice the lines where every row makes both evaluations, and for a micro-batch where some make one."""

    class Labelled(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layers = nn.Sequential(nn.Conv2d(3, 8, 1), nn.SiLU(), nn.Conv2d(8, 3, 1))
            self.classes = nn.Embedding(4, 3)

        def forward(self, u, c_noise, cond):
            return self.layers(u + self.classes(cond)[:, :, None, None]) * (1.0 + c_noise[:, None, None, None])

    torch.manual_seed(0)
    reads = Parametrization("edm", "log_sigma/4")
    given = ScoreModel(Labelled().to("cuda:1"), (3, 4, 4), EDM(), reads, classes=3, null=3)
    drawn = []
    for guidance, guided, lines in (
        (Guidance(2.0), "auto", 8),
        (Guidance(2.0), "serial", 4),
        (Guidance(2.0, (0.5, 20.0)), "auto", 4),
    ):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            settings = {"solver": DDIM(eta=1.0), "guidance": guidance, "guided": guided}
            sampler = Sampler(given, steps=3, batch=4, network="fp32", graph="step", **settings)
            drawn.append(sampler.run(range(6), labels=[0, 1, 2, 0, 1, 2]).cpu())
        assert isinstance(sampler.prepared.net, Prepared) and sampler.prepared.net.inputs[0][0] == lines
        assert sampler.record()["guided"] == ("batched" if lines == 8 else "serial")
    assert torch.allclose(drawn[0], drawn[1], rtol=1e-4, atol=1e-4) and not torch.allclose(drawn[0], drawn[2])
