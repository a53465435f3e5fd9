"""The way of CUDA, on a CPU: the recipe's layers and layouts, weights stored once, and what is never compiled again."""

from __future__ import annotations

import sys
import warnings
from dataclasses import replace
from functools import cache
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from fastscore.model.nets import build
from fastscore.model.score import ScoreModel
from fastscore.network import jit, package, stored
from fastscore.network import prepare as network
from fastscore.network.bf16 import RECIPES, HeavyInBf16, Traced
from fastscore.network.prepare import Inexact, Numerics, Prepared, Trial, numerics, prepare
from fastscore.network.stored import Stored
from fastscore.network.watch import Snapshot
from fastscore.process.continuous import EDM
from fastscore.process.parametrization import Parametrization
from fastscore.sampler import Sampler

CPU, CUDA = torch.device("cpu"), torch.device("cuda", 0)
LAST = torch.channels_last
BF16 = RECIPES["cuda"]["bf16"]
aten = torch.ops.aten


@pytest.fixture(autouse=True)
def home(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.delenv("TORCHINDUCTOR_CACHE_DIR", raising=False)
    monkeypatch.setattr(network, "_said", set())


@pytest.fixture
def uncompiled(monkeypatch):
    """The trace itself in place of what is compiled of it; and how often there was one."""
    made = []
    monkeypatch.setattr(stored, "compiled", lambda net, *how: made.append(how) or net)
    return made


@pytest.fixture
def cuda(uncompiled, monkeypatch):
    """The way of CUDA, taken on the CPU; and what was compiled."""
    monkeypatch.setattr(network, "PACKAGED", ())
    monkeypatch.setattr(network, "SMALL", 0)
    monkeypatch.setattr(network, "native_bf16", lambda: True)
    return uncompiled


def values(*shape: int) -> torch.Tensor:
    return torch.linspace(-1.0, 1.0, torch.Size(shape).numel()).mul(7.0).sin().reshape(shape)


def unet(channels: int = 3) -> nn.Module:
    spec = {"name": "UNet", "channels": channels, "size": 8, "width": 16, "mult": [1], "blocks": [1], "attention": [0]}
    torch.manual_seed(0)
    net = build({**spec, "classes": 3, "embedding": "sinusoidal"}).eval()
    for p in net.parameters():
        p.data.normal_(std=0.1)
    return net


EXAMPLE = values(4, 3, 8, 8), values(4), torch.arange(4) % 3


def news(line: str) -> None:
    """What is said of a network that has not been compiled before, and nothing else."""
    assert line.startswith("compiling the network for this machine in "), line


class Layers(nn.Module):
    """Layers called as a score network."""

    def __init__(self, *layers: nn.Module) -> None:
        super().__init__()
        self.layers = nn.Sequential(*layers)

    def forward(self, u, c_noise, cond=None):
        return self.layers(u) * (1.0 + c_noise[:, None, None, None])


def small() -> ScoreModel:
    torch.manual_seed(0)
    layers = nn.Conv2d(3, 16, 3, padding=1), nn.SiLU(), nn.Conv2d(16, 16, 3, padding=1), nn.Conv2d(16, 3, 1)
    return ScoreModel(Layers(*layers), (3, 4, 4), EDM(), Parametrization("edm", "log_sigma/4"))


# The recipe


def test_between_heavy_layers_lies_the_residual_dtype_and_light_ones_compute_in_float32():
    """Stem and norms read float32 and give bfloat16; the head gives what it computed; the embedding stays apart."""
    x, wide, stem, head, up = (
        values(2, 3, 5, 5),
        values(2, 16, 5, 5),
        values(16, 3, 3, 3),
        values(3, 16, 1, 1),
        values(3, 16, 2, 2),
    )
    vector, matrix, w, b = values(2, 16), values(24, 16), values(24, 16, 3, 3), values(16)
    low = wide.bfloat16()
    norms = {
        F.group_norm: (4, b, b), F.layer_norm: ((5,), b[:5], b[:5]), torch.group_norm: (4, b, b),
        F.batch_norm: (b.clone(), b.abs().clone(), b, b), F.rms_norm: ((5,), b[:5]),
    }  # fmt: skip
    with HeavyInBf16(torch.bfloat16):
        assert F.conv2d(low, w).equal(F.conv2d(low, w.bfloat16()))
        assert F.conv2d(x, stem).equal(F.conv2d(x, stem))
        heavy, begun, ended = F.conv2d(wide, w), F.conv2d(x, stem), F.conv2d(low, head)
        begun_up, embedded = F.conv_transpose2d(x, up), F.linear(vector, matrix)
        normed = [norm(low, *rest) for norm, rest in norms.items()]
    assert heavy.dtype == torch.bfloat16
    assert heavy.equal(F.conv2d(low, w.bfloat16()))
    assert begun.equal(F.conv2d(x, stem).bfloat16())
    assert begun_up.equal(F.conv_transpose2d(x, up).bfloat16())
    assert ended.dtype == torch.float32
    assert ended.equal(F.conv2d(low.float(), head))
    assert embedded.equal(F.linear(vector, matrix))
    for found, (norm, rest) in zip(normed, norms.items(), strict=True):
        assert found.equal(norm(low.float(), *rest).bfloat16()), norm


def test_the_recipe_of_a_cpu_is_what_it_was():
    """bfloat16 is read there, and float32 given; nothing is moved."""
    assert [(r.residual, r.channels_last) for (r,) in RECIPES["cpu"].values()] == [(torch.float32, False)] * 2
    net = unet()
    with HeavyInBf16():
        expected = net(*EXAMPLE)
    assert Traced(net, RECIPES["cpu"]["bf16"][0])(*EXAMPLE).equal(expected)


# Weights of its own


@cache
def made() -> tuple[nn.Module, Stored]:
    """A U-Net and what is stored of it, not compiled."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(stored, "compiled", lambda net, *how: net)
        net = unet()
        return net, Stored(net, BF16[0], EXAMPLE)


def test_weights_are_stored_once_as_layers_read_them(uncompiled):
    layers = small().net.eval()
    pair = values(4, 3, 4, 4), values(4)
    for net, it, example in (
        (*made(), EXAMPLE),
        *((layers, Stored(layers, recipe, pair), pair) for recipe in (BF16[1], *RECIPES["cuda"]["fp32"])),
    ):
        own = dict(it.module.named_buffers())
        assert own.keys() == it.sources.keys()
        assert not list(it.module.parameters())
        assert not any(m.training for m in it.module.modules())  # as in a run, which then has no mode to change
        theirs = {v.untyped_storage().data_ptr() for v in (*net.parameters(), *net.buffers())}
        assert not theirs & {v.untyped_storage().data_ptr() for v in own.values()}
        reads = [n for n in it.module.graph.nodes if n.op == "get_attr" and n.target in own]
        assert {n.target for n in reads} == own.keys()
        assert not [u for n in reads for u in n.users if u.target is aten.to.dtype]  # nothing casts them
        assert all(v.is_contiguous(memory_format=LAST) for v in own.values() if v.dim() == 4)
        assert it(*example).equal(Traced(net, it.recipe)(*example))
        kinds = {source: own[name].dtype for name, source in it.sources.items()}
        heavy = {k for k, dtype in kinds.items() if dtype == torch.bfloat16}
        if net is layers:
            assert heavy == ({"layers.2.weight", "layers.2.bias"} if it.recipe.kind == "bf16" else set())
        else:
            assert {"down.0.blocks.0.conv1.weight", "mid_attention.qkv.weight", "mid1.conv2.bias"} < heavy
            light = {"stem.weight", "head.weight", "embed.0.weight", "features.freqs", "norm.weight", "label.weight"}
            assert light < kinds.keys() - heavy
    assert uncompiled[-1] == ("compile", CPU, stored.OPTIONS)


def test_other_weights_are_read_in_place():
    net, it = made()
    where = {name: v.data_ptr() for name, v in it.module.named_buffers()}
    before = it(*EXAMPLE)
    with torch.no_grad():
        for v in (*net.parameters(), *net.buffers()):
            v.mul_(1.03)
    it.load(net)
    assert not it(*EXAMPLE).equal(before)
    assert it(*EXAMPLE).equal(Traced(net, BF16[0])(*EXAMPLE))
    assert {name: v.data_ptr() for name, v in it.module.named_buffers()} == where
    assert it.complete


@pytest.mark.slow
def test_casts_are_found_as_older_versions_trace_them(uncompiled, monkeypatch):
    """torch 2.6 gives operations that others are made of."""
    real, net = torch.export.export, small().net.eval()
    monkeypatch.setattr(torch.export, "export", lambda *args, **kwargs: real(*args, **kwargs).run_decompositions())
    it = Stored(net, BF16[0], (values(4, 3, 4, 4), values(4)))
    dtypes = {source: getattr(it.module, own).dtype for own, source in it.sources.items()}
    assert {k for k, v in dtypes.items() if v == torch.bfloat16} == {"layers.2.weight", "layers.2.bias"}
    casts = [n for n in it.module.graph.nodes if n.target is aten._to_copy.default]
    assert casts
    assert all(n.args[0].op != "get_attr" for n in casts)


@pytest.mark.slow
def test_tensors_that_the_trace_would_hold_are_no_weights(uncompiled):
    net = small().net.eval()
    pair = values(4, 3, 4, 4), values(4)
    assert Stored(net, BF16[0], pair).complete
    net.table = torch.ones(3)
    assert not Stored(net, BF16[0], pair).complete


def test_no_gradient_is_recorded():
    u = EXAMPLE[0].clone().requires_grad_()
    assert not made()[1](u, *EXAMPLE[1:]).requires_grad


# Layouts


class Layouts(TorchDispatchMode):
    """The operations that ran, with what they read and gave."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[tuple[Any, list[torch.Tensor], Any]] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        self.calls.append((func, [a for a in args if isinstance(a, torch.Tensor)], out))
        return out


def test_images_lie_with_their_channels_last_from_the_first_layer_to_the_output():
    it = made()[1]
    with Layouts() as seen, torch.no_grad():
        out = it.module(*EXAMPLE)
    convolutions = [c for c in seen.calls if "convolution" in str(c[0])]
    assert len(convolutions) > 10
    for func, (u, weight, *_), given in convolutions:
        assert all(v.is_contiguous(memory_format=LAST) for v in (u, weight, given)), func
    assert out.stride() == (192, 1, 24, 3)
    copies = [c for c in seen.calls if c[0] is aten.clone.default and c[1][0].dim() == 4]
    assert len(copies) == 1  # of the input
    net = Prepared(it, EXAMPLE, Numerics("bf16", "full"))
    assert net(*EXAMPLE).stride() == (192, 1, 24, 3)  # handed on as it is


def test_attention_reads_heads_whose_channels_lie_together(monkeypatch):
    """Fused attention takes no others: it would run as products of matrices, with all scores in memory."""
    seen, real = [], F.scaled_dot_product_attention
    monkeypatch.setattr(F, "scaled_dot_product_attention", lambda *three: seen.append(three) or real(*three))
    net = unet()
    with torch.no_grad():
        net(EXAMPLE[0].contiguous(memory_format=LAST), *EXAMPLE[1:])
    assert len(seen) == 3
    for three in seen:
        assert all(v.stride(-1) == 1 for v in three)
        assert len({v.untyped_storage().data_ptr() for v in three}) == 1  # views of one output: nothing was copied


def test_what_lies_as_it_should_is_handed_to_compiled_code_as_it_is():
    given = []
    net = Prepared(lambda *inputs: given.extend(inputs) or inputs[0], EXAMPLE, Numerics("fp32", "full", tf32="off"))
    net.held = True
    aligned = [torch.empty(v.shape, dtype=v.dtype).copy_(v) for v in EXAMPLE]
    net(*aligned)
    assert all(a is b for a, b in zip(given, aligned, strict=True))


# Which arithmetic


def test_a_device_that_lacks_something_is_named(monkeypatch):
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda place: "Quadro RTX 6000")
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda place: (7, 5))
    assert network.lack(CUDA) == "Quadro RTX 6000 is sm_75; compiled networks need sm_80 or newer"
    assert network.lack(CPU) == ""
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda place: (8, 0))
    monkeypatch.setattr(network, "find_spec", lambda name: None)
    assert network.lack(CUDA) == "triton is not installed (pip install triton)"
    monkeypatch.setattr(network, "find_spec", lambda name: object())
    assert network.lack(CUDA) == ""


def test_where_it_cannot_be_had_the_network_runs_as_it_is(cuda, monkeypatch):
    """Said once of a machine where nobody asked for more, each time where somebody did."""
    monkeypatch.setattr(network, "lack", lambda place: "no triton")
    said: list[str] = []
    model = small()
    for kind, lines in (("auto", 1), ("auto", 1), ("bf16", 2), ("fp32", 3), ("bf16", 4)):
        assert prepare(model, 4, network=kind, say=said.append) is model
        assert said == ["the network runs as it is: no triton"] * lines
    assert not cuda


def test_what_nobody_can_check_runs_as_it_is(cuda):
    model = small()
    double = replace(model, net=Layers(nn.Conv2d(3, 3, 1)).double())
    several = replace(model, net=model.net, cond_shape=(2,))
    for given, reason in ((double, "needs float32 weights, not torch.float64"), (several, "what conditioning tensors")):
        said: list[str] = []
        assert prepare(given, 4, network="auto", say=pytest.fail) is given
        assert prepare(given, 4, network="bf16", say=said.append) is given
        assert reason in said[0]
    with pytest.raises(ValueError, match="computes for a float32 state"):
        Sampler(double, network="auto", dtype=torch.float64)
    assert not cuda


@pytest.mark.slow
def test_auto_is_bf16_with_residuals_in_bf16(cuda):
    for asked in ("auto", "bf16"):
        how = numerics(prepare(small(), 4, network=asked, say=news).net)
        assert (how.dtype, how.compile, how.residual, how.instead) == ("bf16", "full", "bf16", None)
        assert 1e-4 < how.error < 1e-2
        assert how.lines is None
    how = numerics(prepare(small(), 4, network="fp32", say=news).net)
    assert (how.dtype, how.residual) == ("fp32", None)
    assert how.error < 1e-6


class Summing(Layers):
    """Many small additions: each is lost where the sum is in bfloat16."""

    def forward(self, u, c_noise, cond=None):
        x = self.layers[0](u)
        for _ in range(40):
            x = x + 1e-3 * self.layers[1](x)
        return self.layers[2](x) * (1.0 + c_noise[:, None, None, None])


class Strict(Layers):
    """Mixes dtypes in a way that torch refuses."""

    def forward(self, u, c_noise, cond=None):
        x = self.layers[1](self.layers[0](u))
        return self.layers[2](torch.lerp(x, torch.zeros(x.shape), 0.1)) * (1.0 + c_noise[:, None, None, None])


@pytest.mark.slow
def test_residuals_are_float32_where_bfloat16_loses_too_much_or_cannot_be(cuda):
    for kind in (Summing, Strict):
        torch.manual_seed(0)
        net = kind(nn.Conv2d(3, 16, 1), nn.Conv2d(16, 16, 1), nn.Conv2d(16, 3, 1)).eval()
        if kind is Summing:
            with torch.no_grad():
                net.layers[1].weight.copy_(torch.eye(16)[:, :, None, None])
        model = replace(small(), net=net)
        how = numerics(prepare(model, 4, network="auto", say=news).net)
        assert (how.dtype, how.residual) == ("bf16", "fp32"), kind
        assert len(cuda) == 1  # nothing was compiled in vain
        cuda.clear()


@pytest.mark.slow
def test_float32_where_bfloat16_errs_by_more_than_a_percent(cuda):
    """A difference of large numbers, which bfloat16 cannot hold; the reason is said, and kept in the record."""

    class Cancelling(Layers):
        def forward(self, u, c_noise, cond=None):
            x = self.layers[0](u)
            return self.layers[2](self.layers[1](x + 300.0) - self.layers[1](x.new_full(x.shape, 300.0))) + 0.0 * u

    torch.manual_seed(0)
    net = Cancelling(nn.Conv2d(3, 16, 1), nn.Conv2d(16, 16, 1), nn.Conv2d(16, 3, 1)).eval()
    said: list[str] = []
    sampler = Sampler(replace(small(), net=net), steps=2, batch=4, network="auto")
    model = prepare(sampler.model, 4, network="auto", say=said.append)
    how = numerics(model.net)
    assert how.dtype == "fp32"
    assert how.instead is not None
    assert "in bf16 the network's score errs by" in how.instead
    assert said[1:] == [f"the network runs in fp32: {how.instead}"]
    with pytest.warns(UserWarning, match="the network runs in fp32: in bf16 the network's score errs by"):
        assert sampler.record()["network"]["instead"] == how.instead
    said.clear()
    asked = prepare(sampler.model, 4, network="bf16", say=said.append)  # and nothing else
    assert asked is sampler.model
    assert "errs by" in said[0]


@pytest.mark.slow
def test_a_compiler_that_fails_leaves_the_network_as_it_is(cuda, monkeypatch):
    """As without a C compiler, which triton needs, or with no memory left."""
    for error in (
        RuntimeError("Failed to find C compiler"),
        torch.OutOfMemoryError("CUDA out of memory"),
        KeyError("x"),
    ):

        def fails(*inputs: torch.Tensor, error=error) -> torch.Tensor:
            raise error

        monkeypatch.setattr(stored, "compiled", lambda net, *how, fails=fails: fails)
        said: list[str] = []
        model = small()
        assert prepare(model, 4, network="auto", say=said.append) is model
        assert len(said) == 2
        assert type(error).__name__ in said[1]


# Never compiled again


@pytest.mark.slow
def test_new_weights_compile_nothing_and_are_checked(cuda, monkeypatch):
    said: list[str] = []
    model = small()
    fast = prepare(model, 4, network="bf16", say=said.append)
    sampler = Sampler(model, steps=3, batch=4, network="bf16")
    first = sampler.run(range(4))
    call, checks, real = sampler.prepared.net.call, [], Trial.checked

    def checked(self, call, kind):
        checks.append(type(call).__name__)
        return real(self, call, kind)

    monkeypatch.setattr(Trial, "checked", checked)
    count = len(cuda)
    for change in (lambda p: p.data.mul_(1.01), lambda p: setattr(p, "data", p.data.clone() * 1.01)):
        checks.clear()
        for p in model.net.parameters():
            change(p)
        with warnings.catch_warnings():
            warnings.simplefilter("error")  # nothing that takes long is to be told of
            found = sampler.run(range(4))
        assert checks == ["Traced", "Prepared"]  # the same rule for every set of weights
        assert sampler.prepared.net.call is call  # as graphs know it
        assert not found.equal(first)
        assert found.equal(Sampler(model, steps=3, batch=4, network="bf16").run(range(4)))
        first = found
        count += 1  # that of the fresh sampler
        assert len(cuda) == count
    assert len(said) == 1  # that it was compiled, once
    with pytest.warns(UserWarning, match="has changed since it was compiled; compiled in bf16 again"):
        model.net.layers[1] = nn.ReLU()  # other code
        assert not sampler.run(range(4)).equal(first)
    assert len(cuda) == count + 1
    assert sampler.prepared.net.call is not call
    assert isinstance(fast.net, Prepared)


def test_a_run_compares_weights_once(cuda, monkeypatch):
    """However many micro-batches it has: on a GPU that waits. What changes on the way counts from the next run on."""
    model = small()
    sampler = Sampler(model, steps=2, batch=4, network="bf16")
    expected = sampler.run(range(12))
    looked, real = [], Snapshot.holds
    monkeypatch.setattr(Snapshot, "holds", lambda self: looked.append(self) or real(self))
    assert sampler.run(range(12)).equal(expected)
    assert len(looked) == 1
    parts = sampler.stream(range(12))
    first = next(parts)[1]
    for p in model.net.parameters():
        p.data.mul_(1.02)
    assert torch.cat([first, *[x for _, x in parts]]).equal(expected)
    assert len(looked) == 2
    assert not sampler.run(range(12)).equal(expected)


@pytest.mark.slow
def test_a_run_finds_compiled_code_as_it_was_checked(traced_only, monkeypatch):
    """One compilation of one micro-batch: no mode or setting of a run, or of its caller, is another one to torch."""
    monkeypatch.setattr(network, "PACKAGED", ())
    model = small()
    model.net.train()
    sampler = Sampler(model, steps=3, batch=4, network="bf16")
    with torch.autocast("cpu", torch.bfloat16):
        first = sampler.run(range(5))
    assert traced_only["unique_graphs"] == 1
    with torch.inference_mode():
        assert sampler.run(range(5)).equal(first)
    sampler.prepared.net(values(4, 3, 4, 4), values(1).expand(4))
    for p in model.net.parameters():
        p.data = p.data * 1.01
    sampler.run(range(5))
    assert traced_only["unique_graphs"] == 1
    assert model.net.training


@pytest.mark.slow
def test_a_tensor_that_is_no_weight_is_compiled_anew(cuda):
    class Table(Layers):
        def forward(self, u, c_noise, cond=None):
            return self.layers(u) * self.table

    net = Table(nn.Conv2d(3, 16, 1), nn.Conv2d(16, 3, 1)).eval()
    net.table = torch.ones(1)  # the trace holds its value
    fast = prepare(replace(small(), net=net), 4, network="fp32", say=lambda line: None).net
    u, c_noise = values(4, 3, 4, 4), values(4)
    first = fast(u, c_noise)
    net.table.mul_(2.0)
    assert fast(u, c_noise).equal(2.0 * first)
    assert len(cuda) == 2


@pytest.mark.slow
def test_new_weights_that_bfloat16_cannot_hold_run_in_float32(cuda, monkeypatch):
    model = small()
    net = prepare(model, 4, network="auto", say=news).net
    said: list[str] = []
    net.origin = replace(net.origin, say=said.append)
    real = Trial.checked

    def checked(self, call, kind):
        if kind == "bf16":
            raise Inexact("far")
        return real(self, call, kind)

    monkeypatch.setattr(Trial, "checked", checked)
    model.net.layers[0].weight.data.mul_(2.0)
    u, c_noise = values(4, 3, 4, 4), values(4)
    assert net(u, c_noise).sub(model.net(u, c_noise)).abs().max() < 1e-5
    assert (net.numerics.dtype, net.numerics.instead) == ("fp32", "far")
    assert len(said) == 3


def test_keys_tell_code_devices_and_shapes_apart_and_not_weights(monkeypatch):
    monkeypatch.setattr(network, "Stored", lambda net, recipe, example: SimpleNamespace(recipe=recipe))
    monkeypatch.setattr(Trial, "checked", lambda self, call, kind: 0.0)

    def key(model=None, batch=4, kind="bf16", machine="H100"):
        monkeypatch.setattr(network, "processor", lambda: machine)
        model = model or small()
        return network._jit(Trial(model, model.net.eval(), batch, CPU), kind, news).numerics.key

    other, attribute = small(), small()
    for p in other.net.parameters():
        p.data.mul_(1.01)
    attribute.net.gain = 2.0
    assert key() == key() == key(other)
    keys = [key(), key(batch=5), key(kind="fp32"), key(machine="A100"), key(attribute)]
    monkeypatch.setattr(torch, "__version__", "9.9")
    keys.append(key())
    assert len(set(keys)) == 6
    monkeypatch.undo()
    net = small().net
    assert package.key_of(net, (4, 3), "x", ["A"]) != package.key_of(net, (4, 3), "x")


@pytest.fixture
def traced_only(monkeypatch):
    """torch.compile without its compiler; and what it has counted."""
    from torch._dynamo.utils import counters

    real = torch.compile
    monkeypatch.setattr(torch, "compile", lambda net, fullgraph, dynamic=None, options=None: real(
        net, fullgraph=fullgraph, dynamic=dynamic, backend="eager"))  # fmt: skip
    monkeypatch.setattr(jit, "inductor", lambda say: None)
    monkeypatch.setattr(jit, "has_compiler", lambda device: True)
    counters.clear()
    return counters["stats"]


@pytest.mark.slow
def test_the_ninth_micro_batch_compiles_too(traced_only):
    """torch counts by code, and refuses the ninth of one; networks and sizes each have code of their own."""
    net = Layers(nn.Conv2d(1, 1, 1))
    for n in range(2, 13):
        assert jit.compiled(net, "compile")(values(n, 1, 1, 1), values(n), None).shape == (n, 1, 1, 1)
    assert traced_only["unique_graphs"] == 11


class Block(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.layer = nn.Linear(width, width)

    def forward(self, x, *, gain=2.0):
        return gain * self.layer(x).relu()


@pytest.mark.slow
def test_many_sizes_of_a_block_compile_and_equal_ones_share_it(traced_only):
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.blocks = nn.ModuleList(Block(width) for width in (*range(2, 13), 2, 3))

        def forward(self, u, c_noise, cond=None):
            return u + sum(block(u[:, : block.layer.in_features]).sum(1, keepdim=True) for block in self.blocks)

    net = Net()
    for n in (4, 5):
        u = values(n, 13)
        assert jit.compiled(net, "regional")(u, None, None).equal(net(u, None))
        assert traced_only["unique_graphs"] == 11 * (n - 3)


# Compiled

TWO_PROCESSES = """
import sys
sys.path[:0] = {path!r}
from test_stored import CPU, network, small, Trial
model = small()
for p in model.net.parameters():
    p.data.mul_(1.0 + {change})
net = network._jit(Trial(model, model.net.eval(), 4, CPU), "bf16", print)
from torch._dynamo.utils import counters  # which makes torch choose a folder, if none has been
found = counters["inductor"]
print("RESULT", found["fxgraph_cache_hit"], found["fxgraph_cache_miss"], net.numerics.error > 1e-4)
"""


@pytest.mark.slow
@pytest.mark.nightly
@pytest.mark.skipif(not jit.has_compiler(), reason="torch.compile needs g++ on the CPU")
def test_another_process_with_other_weights_compiles_nothing(tmp_path):
    """From the one file that is kept: what torch's own folder held is gone."""
    import os
    import shutil
    import subprocess

    def process(change: float) -> list[str]:
        code = TWO_PROCESSES.format(path=[os.path.dirname(__file__)], change=change)
        environment = {**os.environ, "XDG_CACHE_HOME": str(tmp_path / "cache")}
        environment.pop("TORCHINDUCTOR_CACHE_DIR", None)
        out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment, check=True)
        shutil.rmtree(tmp_path / "cache" / "fastscore" / "inductor")
        return out.stdout.splitlines()

    assert process(0.0)[1:] == ["RESULT 0 1 True"]
    (file,) = (tmp_path / "cache" / "fastscore" / "networks").glob("*.compiled")
    kept = file.read_bytes()
    assert process(0.02) == ["RESULT 1 0 True"]
    file.write_bytes(kept[:-1] + b"\0")  # whatever is no longer what was written is not run
    said = process(0.0)
    assert "its bytes are not those that were written" in said[0]
    assert said[2:] == ["RESULT 0 1 True"]


def test_gpus_are_told_apart(monkeypatch):
    from fastscore.network.arithmetic import accelerator

    names = set()
    for name, major in (("NVIDIA H100", 9), ("NVIDIA A100", 8)):
        monkeypatch.setattr(torch.cuda, "get_device_properties", lambda place, n=name, m=major: SimpleNamespace(
            name=n, major=m, minor=0))  # fmt: skip
        names.add(tuple(accelerator(CUDA)))
    assert len(names) == 2
