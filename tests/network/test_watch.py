"""Prepared networks are never stale: whatever changed a network, and however, the next run computes with it."""

from __future__ import annotations

import copy
import pickle
import warnings
from functools import partial

import pytest
import torch
from torch import nn

import fastscore as fs
from fastscore.engine.capture import Graphed, Tape
from fastscore.network import package
from fastscore.network import prepare as network
from fastscore.network.jit import Regional, has_compiler
from fastscore.network.prepare import Inexact, Numerics, Prepared, prepare
from fastscore.network.watch import Snapshot, attributes

D = 6


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear, self.norm = nn.Linear(D, D), nn.BatchNorm1d(D)
        self.factor, self.table, self.options = 0.5, torch.ones(D), {"shift": 0.25}

    def forward(self, u):
        return self.norm(torch.tanh(self.linear(u))) * self.factor * self.table + self.options["shift"]


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.Sequential(Block(), Block())

    def forward(self, u, c_noise, cond=None):
        return self.blocks(u) + 0.01 * c_noise[:, None]


def set_data(t: torch.Tensor, value: torch.Tensor) -> None:
    t.data = value


def step(net: Net) -> None:
    """What an optimizer does, which takes seconds to import."""
    sum(p.square().sum() for p in net.parameters()).backward()
    with torch.no_grad():
        for p in net.parameters():
            p.add_(p.grad, alpha=-0.1)
    net.zero_grad(set_to_none=True)


def trained(net: Net) -> None:
    """A forward pass in training mode, which moves batch statistics alone."""
    net.train()(torch.linspace(-1.0, 1.0, 4 * D).view(4, D), torch.zeros(4))
    net.eval()


CHANGES = {
    "optimizer": step,
    "data.add_": lambda net: net.blocks[0].linear.weight.data.add_(0.25),
    "one bit": lambda net: net.blocks[1].linear.bias.data.view(torch.int32)[:1].bitwise_xor_(1 << 20),
    "data =": lambda net: set_data(net.blocks[0].linear.weight, net.blocks[0].linear.weight.data * 2.0),
    "load_state_dict": lambda net: net.load_state_dict({k: v * 0.5 for k, v in net.state_dict().items()}),
    "assign": lambda net: net.load_state_dict({k: v * 0.5 for k, v in net.state_dict().items()}, assign=True),
    "parameter": lambda net: setattr(net.blocks[0].linear, "bias", nn.Parameter(torch.ones(D))),
    "statistics": trained,
    "buffer": lambda net: net.blocks[1].norm.running_mean.add_(1.0),
    "numpy": lambda net: net.blocks[0].linear.weight.detach().numpy().__iadd__(1.0),
    "plain tensor": lambda net: net.blocks[0].table.mul_(2.0),
    "plain number": lambda net: setattr(net.blocks[0], "factor", -0.5),
    "number in a dict": lambda net: net.blocks[0].options.update(shift=1.0),
    "layer": lambda net: net.blocks.__setitem__(1, Block()),
    "more layers": lambda net: net.blocks.append(Block()),
    "hook": lambda net: net.blocks[0].register_forward_hook(lambda m, args, out: 2.0 * out),
    "forward": lambda net: setattr(net.blocks[1], "forward", lambda u: 0.5 * u),
    "activation": lambda net: setattr(net.blocks[0].norm, "eps", 1.0),
}


def frozen(trial, kind, say):
    """Stand in for the compiler: like a package it has a copy of everything, and like one it is checked."""
    net = Prepared(copy.deepcopy(trial.net).eval(), trial.example, Numerics(kind, "package"))
    trial.checked(net, "fp32")
    return net


@pytest.fixture
def compiler(monkeypatch):
    monkeypatch.setattr(network, "_packaged", frozen)


def model() -> fs.ScoreModel:
    torch.manual_seed(0)
    return fs.ScoreModel(Net(), (D,), fs.VP())


def draw(m: fs.ScoreModel) -> torch.Tensor:
    return fs.Sampler(m, grid=fs.uniform(3), batch=4).run(range(6))


@pytest.mark.thirds
@pytest.mark.parametrize("how", CHANGES)
def test_a_change_of_any_kind_counts_from_the_next_run_on(how, compiler):
    m = model()
    sampler = fs.Sampler(m, grid=fs.uniform(3), batch=4, network="fp32")
    before = sampler.run(range(6))
    assert before.equal(draw(m))
    CHANGES[how](m.net)
    with pytest.warns(UserWarning, match=r"network has changed since it was compiled; compiled in fp32 again in \d"):
        after = sampler.run(range(6))
    assert after.equal(draw(m))  # the network itself, as it is now
    assert not after.equal(before)


@pytest.mark.thirds
@pytest.mark.parametrize("how", ["one bit", "assign", "statistics", "number in a dict"])
def test_a_network_of_prepare_keeps_up_too_and_is_said_once(how, compiler):
    m, said = model(), []
    net = m.net
    given = prepare(m, 4, network="fp32", say=said.append)
    before = draw(m)
    assert draw(given).equal(before)
    assert not said
    CHANGES[how](net)
    assert draw(given).equal(draw(m))
    assert not draw(m).equal(before)
    assert len(said) == 1
    u, t = torch.ones(4, D), torch.ones(4)
    net.blocks[0].linear.weight.data.add_(0.5)
    with torch.no_grad():
        assert given.net(u, t).equal(net.eval()(u, t))  # also outside a run
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        given.net(u, t)  # and is not said twice


def test_what_is_no_change_compiles_nothing(compiler):
    m = model()
    sampler = fs.Sampler(m, grid=fs.uniform(3), batch=4, network="fp32")
    before = sampler.run(range(6))
    weight = m.net.blocks[0].linear.weight
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        m.net.train()
        weight.grad = torch.ones_like(weight)
        weight.data = weight.data.clone()  # elsewhere, the same
        weight.data.add_(0.0)
        m.net.load_state_dict({k: v.clone() for k, v in m.net.state_dict().items()})
        m.net.zero_grad()
        assert sampler.run(range(6)).equal(before)


def test_not_a_number_is_itself_and_zero_has_a_sign():
    net = nn.Linear(2, 2)
    net.weight.data.fill_(torch.nan)
    net.bias.data.zero_()
    seen = Snapshot(net, "values")
    assert seen.holds()
    net.bias.data.neg_()
    assert not seen.holds()


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.int8, torch.bool, torch.complex64])
def test_tensors_of_every_kind_are_compared(dtype):
    net = nn.Module()
    net.register_buffer("v", torch.zeros(3, 4, dtype=dtype).T)  # not contiguous
    seen = Snapshot(net, "values")
    assert seen.holds()
    net.v[3, 2] = 1
    assert not seen.holds()


def test_a_network_that_cannot_be_prepared_again_runs_as_it_is_and_the_reason_is_said(compiler, monkeypatch):
    m, said = model(), []
    given = prepare(m, 4, network="fp32", say=said.append)
    draw(given)

    def inexact(trial, kind, say):
        raise Inexact("far off")

    monkeypatch.setattr(network, "_packaged", inexact)
    m.net.blocks[0].linear.weight.data.add_(0.25)
    assert draw(given).equal(draw(m))
    assert said[0] == "the network runs as it is: far off"
    assert "used as it is again" in said[1]
    assert given.net.numerics == Numerics()
    monkeypatch.setattr(network, "_packaged", frozen)
    m.net.blocks[0].linear.weight.data.add_(0.25)
    assert draw(given).equal(draw(m))
    assert given.net.numerics.dtype == "fp32"


def test_a_prepared_network_travels_as_what_it_was_made_of(compiler):
    m = model()
    given = prepare(m, 4, network="fp32")
    sampler = fs.Sampler(given, grid=fs.uniform(3), batch=4)
    before = sampler.run(range(6))
    for again in (pickle.loads(pickle.dumps(sampler)), copy.deepcopy(sampler)):
        assert isinstance(again.model.net, Prepared)
        assert again.run(range(6)).equal(before)
    with pytest.raises(TypeError, match="stands for no network"):
        pickle.dumps(Prepared(lambda u: u, (torch.zeros(1),), Numerics()))


def test_the_key_of_a_package_tells_networks_apart_that_print_alike():
    a, b = Net(), Net()
    b.load_state_dict(a.state_dict())
    key = partial(package.key_of, shape=(4, D), dtype="fp32")
    assert key(a) == key(b)
    b.blocks[1].factor = 0.25
    assert key(a) != key(b)
    b.blocks[1].factor, b.blocks[0].table = 0.5, torch.zeros(D)
    assert key(a) != key(b)
    assert ("blocks.0", "factor", "0.5") in attributes(a)


@pytest.mark.parametrize("how", ["data.add_", "data =", "parameter", "buffer", "plain number", "layer"])
def test_a_regional_copy_has_the_networks_own_tensors(how, monkeypatch):
    monkeypatch.setattr(nn.Module, "compile", lambda self, **options: None)
    net = Net().eval()
    regional, inputs = Regional(net, {Block}), (torch.ones(4, D), torch.ones(4))
    with torch.no_grad():
        CHANGES[how](net)
        with regional.steady():
            assert regional(*inputs).equal(net(*inputs))


def test_a_recording_is_made_anew_for_tensors_that_were_replaced(monkeypatch):
    """On a GPU a graph; here its stand-in, which keeps the very tensors."""
    m = model()
    sampler = fs.Sampler(m, grid=fs.uniform(3), batch=4, backend="reference")  # a tape does not see calls of C++
    engine, made = sampler.engine, []

    def capture(loop, mode):
        made.append(mode)
        return Graphed(loop, Tape(), "loop")

    monkeypatch.setattr("fastscore.engine.batches.capture", capture)
    engine.graph = "loop"
    for count, how in ((1, "data.add_"), (2, "data ="), (3, "parameter"), (3, "statistics"), (4, "plain number")):
        CHANGES[how](m.net)
        m.net.train()
        assert sampler.run(range(4)).equal(draw_as(m))
        assert len(made) == count, how  # in place is seen by the recording itself


def draw_as(m: fs.ScoreModel) -> torch.Tensor:
    return fs.Sampler(m, grid=fs.uniform(3), batch=4).run(range(4))


@pytest.mark.slow
@pytest.mark.nightly
@pytest.mark.skipif(not has_compiler(), reason="compiling needs g++")
@pytest.mark.parametrize("kind", ["fp32", "bf16", "compile", "regional"])
def test_compiled_networks_are_not_stale(kind, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    m = model()
    sampler = fs.Sampler(m, grid=fs.uniform(3), batch=4, network=kind)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        own = draw_as(m)
        assert (sampler.run(range(4)) - own).abs().max() < 1e-2 * own.abs().max()
        for how in ("data.add_", "statistics", "parameter"):
            before = own
            CHANGES[how](m.net)
            after, own = sampler.run(range(4)), draw_as(m)
            assert (after - own).abs().max() < 0.1 * (own - before).abs().max(), how
