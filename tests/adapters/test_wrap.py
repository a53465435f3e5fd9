"""Calling conventions: every part of the little language, what reaches a network, and what is said when it does not."""

from __future__ import annotations

import copy
import pickle
from collections import namedtuple
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import fastscore as fs
from fastscore.adapters import wrap

U, T = torch.arange(6.0).reshape(3, 2), torch.tensor([0.25, 0.5, 1.0])
LABELS = torch.tensor([1, 0, 3])


class Recorder(nn.Module):
    """A network that keeps what it was called with, and returns its first input."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: tuple[tuple[Any, ...], dict[str, Any]] = ((), {})

    def forward(self, *args: Any, **kwargs: Any) -> Tensor:
        self.seen = args, kwargs
        return args[0]


def seen(call: str, u: Tensor = U, t: Tensor = T, cond: Any = None) -> tuple[tuple[Any, ...], dict[str, Any]]:
    net = Recorder()
    assert wrap(net, call)(u, t, cond) is u
    return net.seen


def test_arguments_come_in_order_or_by_keyword():
    (x, t), rest = seen("x, t")
    assert x is U and t.equal(T) and rest == {}
    (_,), rest = seen('x, timestep=t, y=labels, return_dict=False, mode="a", scale=-0.5, nothing=None', cond=LABELS)
    assert rest["timestep"].equal(T) and rest["y"] is LABELS
    assert {k: rest[k] for k in ("return_dict", "mode", "nothing")} == {
        "return_dict": False,
        "mode": "a",
        "nothing": None,
    }
    assert rest["scale"] == -0.5


def test_arithmetic_rounding_and_one_hot():
    (_, a, b, c, d), _ = seen("x, 1000 * t, 1 - t, -t / 2 + 1, round(999 * t)")
    assert a.equal(1000.0 * T) and b.equal(1.0 - T) and c.equal(1.0 - T / 2.0)
    assert d.dtype == torch.int64 and d.tolist() == [250, 500, 999]
    (_, hot), _ = seen("x, one_hot(class_labels, 3)", cond=LABELS)
    assert hot.tolist() == [[0, 1, 0], [1, 0, 0], [0, 0, 0]] and hot.dtype == U.dtype  # label 3 is none


def test_conditions_come_by_their_names():
    cond = {"tokens": torch.ones(3, 4, dtype=torch.int64), "pooled": torch.zeros(3, 2), "labels": LABELS}
    _, rest = seen('x, tokens=tokens, added={"text": pooled, "n": 3}, y=class_labels, everything=cond', cond=cond)
    assert rest["tokens"] is cond["tokens"] and rest["added"] == {"text": cond["pooled"], "n": 3}
    assert rest["y"] is LABELS and rest["everything"] is cond
    (_, image), _ = seen("x, cond", cond=torch.zeros(3, 5))
    assert image.shape == (3, 5)


def test_labels_of_time_stay_exact_in_a_network_of_few_digits():
    (_, t), _ = seen("x, t", U.bfloat16(), torch.tensor([999.0, 998.0, 1.0]))
    assert t.dtype == torch.float32 and t.tolist() == [999.0, 998.0, 1.0]
    (_, t), _ = seen("x, t", U, T.double())
    assert t.dtype == torch.float32  # a float32 network in a float64 run: its embedding would not meet its weights
    (_, t), _ = seen("x, t", U.double(), T.double())
    assert t.dtype == torch.float64


Output = namedtuple("Output", "sample other")


@pytest.mark.parametrize(("returned", "out"), [
    (U, None), ((U, 1), 0), ([1, U], -1), (Output(U, 1), "sample"), ({"sample": U}, "sample"),
    (torch.cat([U, U + 1.0], 1), "first_half"), (Output(torch.cat([U, U], 1), 1), ("sample", "first_half")),
    (2.0 * U, lambda F: 0.5 * F),
])  # fmt: skip
def test_outputs_are_found(returned, out):
    assert wrap(lambda x, t: returned, out=out)(U, T).equal(U)


def test_a_wrapped_network_is_sampled_copied_and_pickled():
    net = nn.Bilinear(2, 1, 4)
    wrapped = wrap(net, "x, input2=one_hot(labels, 1)", out="first_half")
    model = fs.ScoreModel(wrapped, (2,), fs.VP(), classes=1, null=1)
    x = fs.Sampler(model, steps=2, batch=3).run(range(3), labels=0)
    for copied in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert fs.Sampler(copied, steps=2, batch=3).run(range(3), labels=0).equal(x)
    assert not fs.Sampler(model, steps=2, batch=3).run(range(3)).equal(x)  # without a class
    assert list(wrapped.parameters()) == list(net.parameters())


@pytest.mark.parametrize("call", [
    "x, **cond", "x; t", "x, t)+(t", "x, t,, t", "x, *t", "x, t.T", "x, f(t)", "x, __import__('os')", "x, t ** 2",
    "x, [t]", "x, one_hot(labels, K)", "x, one_hot(labels, 0)", "x, round(t, 2)", "x, lambda: t", "x, t if x else t", 
    "x, 1j * t", "x, {1: t}", "x, {**cond}", "x, t=t, t=t", 7,
])  # fmt: skip
def test_what_cannot_be_read_is_refused(call):
    with pytest.raises(ValueError, match=r"wrap: .*; it lists arguments in order or by keyword"):
        wrap(lambda *args, **kwargs: args[0], call)


def unet(sample: Tensor, timestep: Tensor, class_labels: Tensor | None = None) -> Tensor:
    return sample


def test_errors_name_the_convention_and_what_is_there():
    with pytest.raises(ValueError, match=r"sample: .*class_labels.*cannot be called as \(x, t, y=labels\): .*'y'"):
        wrap(unet, "x, t, y=labels")
    with pytest.raises(
        ValueError, match=r"called as \(x, t, labels\), and this run gives no 'labels': it has sigma, t, x"
    ):
        wrap(unet, "x, t, labels")(U, T)
    with pytest.raises(ValueError, match=r"no 'tokens': it has class_labels, cond, labels, mask, sigma, t, x"):
        wrap(unet, "x, t, tokens")(U, T, {"labels": LABELS, "mask": T})
    with pytest.raises(ValueError, match="out = 'sample', and the network returned a Tensor; a tensor needs no out"):
        wrap(unet, "x, t", out="sample")(U, T)
    with pytest.raises(ValueError, match="out = 2, and the network returned a tuple"):
        wrap(lambda x, t: (x,), out=2)(U, T)
    with pytest.raises(ValueError, match=r"'first_half' needs twice the channels of \(3, 2\); it was \(3, 2\)"):
        wrap(unet, "x, t", out="first_half")(U, T)
    with pytest.raises(ValueError, match=r"out = 1.5 must be a name, an index, 'first_half' or a function"):
        wrap(unet, "x, t", out=1.5)
    with pytest.raises(ValueError, match="net is a int; it must be a network or a function"):
        wrap(3, "x, t")


@pytest.mark.slow
def test_a_wrapped_network_is_exported():
    """torch.export reads through the convention: the networks that are compiled ahead of time go that way."""
    net = wrap(nn.Bilinear(2, 3, 4), "x, input2=one_hot(labels, 3)", out="first_half")
    program = torch.export.export(net, (U, T, LABELS), strict=False)
    assert torch.allclose(program.module()(U, T, LABELS), net(U, T, LABELS))


def test_modules_behind_a_wrapped_function_are_in_eval_mode():
    net = nn.Sequential(nn.Linear(2, 2), nn.Dropout(0.9)).train()
    model = fs.ScoreModel(wrap(lambda x, t: (net(x),), "x, t", out=0), (2,), fs.VP())
    a, b = (fs.Sampler(model, steps=2, batch=3).run(range(3)) for _ in range(2))
    assert a.equal(b) and net.training


def test_named_conditions_of_a_model_reach_the_network():
    def net(x: Tensor, t: Tensor, tokens: Tensor, mask: Tensor, y: Tensor) -> Tensor:
        assert (tokens.dtype, mask.dtype, y.dtype) == (torch.int64, torch.bool, torch.int64)
        return x + (tokens * mask).sum(1, keepdim=True) + y[:, None]

    wrapped = wrap(net, "x, t, tokens, mask=mask, y=labels")
    model = fs.ScoreModel(wrapped, (2,), fs.VP(), cond_shape={"tokens": (None,), "mask": (None,)}, classes=4)
    cond = {"tokens": torch.arange(15).reshape(3, 5), "mask": torch.ones(3, 5, dtype=torch.bool)}
    x = fs.Sampler(model, steps=2, batch=2).run(range(3), labels=[0, 1, 2], cond=cond)
    last = {name: value[2] for name, value in cond.items()}
    assert fs.Sampler(model, steps=2, batch=2).run([2], labels=2, cond=last).equal(x[2:])
