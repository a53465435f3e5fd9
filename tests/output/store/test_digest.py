"""What samples depend on, as a hash: equal for what is equal, in another process too; another for every change."""

from __future__ import annotations

import functools
import os
import subprocess
import sys
from collections import OrderedDict, deque
from dataclasses import dataclass, field
from fractions import Fraction

import numpy as np
import pytest
import torch
from torch import nn

from fastscore.guidance.mixture import Guidance
from fastscore.model.score import ScoreModel
from fastscore.output.store.digest import described, digest
from fastscore.output.store.job import model_digest
from fastscore.process.continuous import EDM, VP
from fastscore.process.parametrization import Parametrization

SCALE, WEIGHTS = 2.0, torch.ones(3)


class Net(nn.Module):
    """A network with one of everything that can be changed."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(2, 2)
        self.inner = nn.Sequential(nn.Linear(2, 2), nn.GroupNorm(1, 2))
        self.register_buffer("kept", torch.ones(2))
        self.register_buffer("unkept", torch.ones(2), persistent=False)
        self.gain, self._shift, self.table = 1.0, 0.5, torch.arange(3)
        for p in self.parameters():
            nn.init.constant_(p, 0.5)

    def forward(self, u: torch.Tensor, c_noise: torch.Tensor) -> torch.Tensor:
        return self.inner(self.layer(u))


def hook(module, args):
    return args


CHANGES = {
    "a weight in place": lambda net: net.layer.weight.data[0, 0].add_(1e-7),
    "a bias": lambda net: net.inner[0].bias.data.zero_(),
    "a buffer": lambda net: net.kept.mul_(2),
    "a buffer out of the state": lambda net: net.unkept.mul_(2),
    "an attribute": lambda net: setattr(net, "gain", 2.0),
    "a private attribute": lambda net: setattr(net, "_shift", 2.0),
    "a tensor that is no buffer": lambda net: net.table.add_(1),
    "an attribute of a module below": lambda net: setattr(net.inner[1], "eps", 1e-3),
    "the kind of a module below": lambda net: net.inner.__setitem__(1, nn.Identity()),
    "dtype": lambda net: net.double(),
    "a hook": lambda net: net.register_forward_pre_hook(hook),
    "no bias": lambda net: setattr(net.layer, "bias", None),
}


@pytest.mark.parametrize("change", CHANGES)
def test_every_change_of_a_network_is_seen(change):
    net, before = Net(), digest(Net())
    assert digest(net) == before
    CHANGES[change](net)
    assert digest(net) != before


def test_what_changes_no_sample_is_not_seen():
    net, before = Net(), digest(Net())
    net.train()
    net.eval()
    net.requires_grad_(False)
    net(torch.ones(1, 2), torch.ones(1))
    assert digest(net) == before


def test_the_forward_of_a_class_of_ones_own_counts():
    def made(forward):
        return type("Mine", (nn.Module,), {"__module__": "mine", "__qualname__": "Mine", "forward": forward})()

    assert digest(made(lambda self, u: u)) == digest(made(lambda self, u: u))
    assert digest(made(lambda self, u: u)) != digest(made(lambda self, u: -u))


def function(scale=1.0, shift=0.0):
    def inner(u, c_noise, factor=shift):
        return scale * u + factor

    return inner


@dataclass(frozen=True)
class Setting:
    """Settings of which one does not print."""

    a: float
    hidden: float = field(default=0.0, repr=False)


class Slotted:
    """An object without a __dict__."""

    __slots__ = ("a",)

    def __init__(self, a: int) -> None:
        self.a = a


class Method:
    """A network that is a method."""

    def __init__(self, a: float) -> None:
        self.a = a

    def net(self, u, c_noise):
        return self.a * u


PAIRS = {
    "None": (None, 0),
    "bool": (True, 1),
    "float": (1.0, 1),
    "zero": (0.0, -0.0),
    "text": ("1", 1),
    "bytes": (b"1", "1"),
    "nesting": ([1, [2]], [1, 2]),
    "length": (["a", "b"], ["a\0b"]),
    "closing": ([[1], 2], [[1, 2]]),
    "split": ([[1], [2, 3]], [[1, 2], [3]]),
    "keys": ({1: "a"}, {"1": "a"}),
    "values": ({"a": 1, "b": 2}, {"a": 2, "b": 1}),
    "set": ({1, 2}, {1, 3}),
    "shape": (torch.zeros(2, 3), torch.zeros(3, 2)),
    "tensor dtype": (torch.zeros(2), torch.zeros(2, dtype=torch.int32)),
    "array dtype": (np.zeros(2, np.float32), np.zeros(2, np.int32)),
    "objects": (np.array([1, "a"], object), np.array([1, "b"], object)),
    "conjugate": (torch.tensor([1 + 1j]), torch.tensor([1 + 1j]).conj()),
    "order": (torch.arange(4).view(2, 2), torch.arange(4).view(2, 2).T),
    "last bit": (torch.tensor(1.0), torch.tensor(1.0).nextafter(torch.tensor(2.0))),
    "dataclass": (Setting(1.0), Setting(2.0)),
    "hidden field": (Setting(1.0), Setting(1.0, 1.0)),
    "slots": (Slotted(1), Slotted(2)),
    "closure": (function(1.0), function(2.0)),
    "default": (function(1.0), function(1.0, 1.0)),
    "code": (lambda u: u + 1, lambda u: u + 2),
    "partial": (functools.partial(pow, 2), functools.partial(pow, 3)),
    "partial of": (functools.partial(function()), functools.partial(function(3.0))),
    "method": (Method(1.0).net, Method(2.0).net),
    "method of a tensor": (torch.zeros(2).add, torch.ones(2).add),
    "name": (torch.sin, torch.cos),
    "kind": (nn.ReLU, nn.GELU),
    "fraction": (Fraction(1, 2), Fraction(1, 3)),
    "deque": (deque([1]), deque([2])),
    "cached": (functools.lru_cache(function(1.0)), functools.lru_cache(function(2.0))),
    "module": (os, sys),
    "untold": (iter([1]).__iter__, object()),
}


@pytest.mark.parametrize("name", PAIRS)
def test_what_differs_differs(name):
    one, other = PAIRS[name]
    assert digest(one) == digest(one)
    assert digest(one) != digest(other)
    assert digest([one]) != digest([other])


def test_what_is_equal_is_equal():
    assert digest({"a": 1, "b": 2}) == digest(OrderedDict(b=2, a=1))
    assert digest({1, 2, 3}) == digest({3, 2, 1})
    assert digest((1, 2)) == digest([1, 2]) == digest([*range(1, 3)])
    assert digest(range(3)) == digest([0, 1, 2])
    whole = torch.arange(12.0).view(3, 4)
    assert digest(whole[:, 1:3]) == digest(whole[:, 1:3].clone())
    assert digest(torch.ones(1).expand(5)) == digest(torch.ones(5))
    assert digest(torch.ones(1).expand(1)) == digest(torch.ones(1))
    assert digest(torch.ones(4, dtype=torch.bfloat16)) == digest(torch.ones(1, dtype=torch.bfloat16).expand(4))
    assert digest(torch.ones(4, requires_grad=True)) == digest(torch.ones(4))
    assert digest(torch.empty(0)) == digest(torch.empty(0)) != digest(torch.empty(0, 1))
    assert digest(torch.tensor([1 + 1j]).conj()) == digest(torch.tensor([1 - 1j]))
    assert digest(function(1.0)) == digest(function(1.0))
    assert digest(functools.partial(function(), factor=1)) == digest(functools.partial(function(), factor=1))
    assert digest(Slotted(1)) == digest(Slotted(1))
    assert digest(nn.Linear) == digest(nn.Linear)


def test_what_a_function_finds_by_name_counts(monkeypatch):
    def net(u, c_noise):
        return [SCALE * x for x in WEIGHTS * u]  # one of them in a function within the function

    before = digest(net)
    monkeypatch.setitem(globals(), "SCALE", 3.0)
    between = digest(net)
    WEIGHTS[0] = 5.0
    assert len({before, between, digest(net)}) == 3
    WEIGHTS[0] = 1.0


def test_what_holds_itself_ends():
    ring: list = [1]
    ring.append(ring)
    other: list = [2]
    other.append(other)
    assert digest(ring) != digest(other)
    this = Method(1.0)
    this.a = this  # pyright: ignore[reportAttributeAccessIssue]
    assert digest(this) == digest(this)

    def again(k):
        return again(k - 1) if k else torch

    assert digest(again) == digest(again)
    net = Net()
    net.others = [net]
    assert digest(net) != digest(Net())


def test_settings_print_and_what_does_not_say_all_is_hashed():
    assert described(VP()) == repr(VP())
    assert described(3.5) == 3.5 and described(None) is None and described("x") == "x"
    assert described(Setting(1.0)) != described(Setting(1.0, 1.0))
    assert described((1, 2)).startswith("tuple ")
    nets = [Net(), Net()]  # which print alike
    nets[1].layer.weight.data[0, 0] = 1.0
    models = [ScoreModel(net, (2,), EDM(), Parametrization("x0")) for net in nets]
    assert described(models[0]) != described(models[1])
    assert described(Guidance(2.0, model=models[0])) != described(Guidance(2.0, model=models[1]))
    assert described(Guidance(2.0)) == "Guidance(weight=2.0, interval=(0.0, inf), model=None, null=None)"


def test_a_model_is_what_it_computes_and_not_what_is_written_about_it():
    net = Net()
    told = ScoreModel(net, (2,), EDM(), Parametrization("x0"), info={"author": "me"})
    assert model_digest(told) == model_digest(ScoreModel(net, (2,), EDM(), Parametrization("x0")))
    assert model_digest(told) != model_digest(ScoreModel(net, (2,), EDM(), Parametrization("eps")))
    assert model_digest(told) != model_digest(ScoreModel(net, (2,), VP(), Parametrization("x0")))


@pytest.mark.slow
def test_what_torch_compiles_is_what_it_was():
    assert digest(torch.compile(function(2.0))) == digest(function(2.0)) != digest(torch.compile(function(3.0)))
    assert digest(torch.compile(Net())) == digest(Net())


@pytest.mark.slow
def test_another_process_finds_the_same():
    code = (
        "from fastscore.output.store.job import model_digest\nfrom fastscore.model.analytic import by_name\n"
        "from fastscore.model.folder import load_model\nfrom test_digest import *\n"
        "print(digest([{'b', 'a', 'c'}, Net(), function(2.0), VP(), Slotted(1), functools.partial(function())]),"
        " model_digest(by_name('mixture')), model_digest(load_model('fashion')))"
    )
    found = set()
    for seed in ("1", "2"):
        environment = os.environ | {"PYTHONHASHSEED": seed, "PYTHONPATH": os.path.dirname(__file__)}
        found.add(subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, check=True).stdout)
    assert len(found) == 1
