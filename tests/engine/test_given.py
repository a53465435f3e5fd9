"""``out=``: samples go where the caller wants them, or nothing is drawn and the message says why."""

from __future__ import annotations

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

import fastscore as fs
from fastscore.data.affine import Affine
from fastscore.engine.given import _overlaps_itself

SHAPE, IDS = (2, 3), range(10)
SOLVERS = {"plan": "dpmpp-2m", "adaptive": fs.BogackiShampine(0.5, 0.5)}
PARTS = {"a": fs.Part((2,), fs.VP()), "b": fs.Part((3,), fs.VE())}


def net(u, c_noise, cond=None):
    return 0.5 * u


def sampler(solver="plan", **settings):
    settings = {"steps": 3} | settings if solver == "plan" else settings
    return fs.Sampler(fs.ScoreModel(net, SHAPE, fs.VP()), solver=SOLVERS[solver], batch=4, **settings)


def joint():
    return fs.JointSampler(fs.JointModel(lambda u, c: {k: 0.5 * v for k, v in u.items()}, PARTS), steps=2, batch=4)


def views():
    """Tensors of one shape and every kind of strides, within others that nothing else may touch."""
    n, nan = len(IDS), float("nan")
    return {
        "whole": lambda: (x := torch.full((n, *SHAPE), nan), x),
        "some lines": lambda: ((x := torch.full((n + 5, *SHAPE), nan)), x[3:-2]),
        "every other line": lambda: ((x := torch.full((2 * n, *SHAPE), nan)), x[::2]),
        "a column": lambda: ((x := torch.full((n, 4, *SHAPE), nan)), x[:, 1]),
        "transposed": lambda: ((x := torch.full((3, n, 2), nan)), x.permute(1, 2, 0)),
        "of a parameter": lambda: ((x := torch.nn.Parameter(torch.full((n, *SHAPE), nan))).data, x.data),
    }


@pytest.mark.parametrize("solver", SOLVERS)
def test_samples_are_written_where_they_shall_be_and_nowhere_else(solver):
    drawer = sampler(solver)
    expected = drawer.run(IDS, 3)
    for name, make in views().items() if solver == "plan" else list(views().items())[3:4]:
        whole, out = make()
        address = out.data_ptr()
        assert drawer.run(IDS, 3, out=out) is out, name
        assert out.data_ptr() == address and out.equal(expected), name
        assert int(whole.isnan().sum()) == whole.numel() - out.numel(), name
        assert not out.requires_grad


def test_dtypes_units_and_requests_of_their_own():
    wide = sampler(dtype=torch.float64)
    out = torch.empty(3, *SHAPE, dtype=torch.float64)
    assert wide.run(wide.request([5, 1, 3]), out=out) is out and out.equal(wide.run([5, 1, 3]))
    assert wide.run([], out=out[:0]).shape == (0, *SHAPE)
    scaled = fs.ScoreModel(net, (3,), fs.VP(), transform=Affine((1.0, 2.0, 3.0), (1.0, 10.0, 0.1)))
    drawer, out = fs.Sampler(scaled, steps=2, batch=4), torch.empty(5, 3)
    assert drawer.run(range(5), out=out).equal(drawer.run(range(5)))


def test_modes_of_the_caller():
    drawer, out = sampler(), torch.empty(len(IDS), *SHAPE)
    expected = drawer.run(IDS)
    with torch.inference_mode():
        own = torch.empty(len(IDS), *SHAPE)
        assert drawer.run(IDS, out=own).equal(expected)
        assert drawer.run(IDS, out=out).equal(expected)
    with pytest.raises(ValueError, match="out was made in inference mode, outside which it cannot be written"):
        drawer.run(IDS, out=own)
    with torch.enable_grad(), torch.device("meta"):
        assert drawer.run(IDS, out=out).equal(expected)
        assert drawer.run(IDS).equal(expected)


BAD = {
    "no tensor": (lambda: [0.0], r"out = \[0.0\] must be a dense tensor, \[10, 2, 3\] torch.float32 on cpu"),
    "numpy": (lambda: torch.empty(10, *SHAPE).numpy(), "must be a dense tensor"),
    "sparse": (lambda: torch.zeros(10, *SHAPE).to_sparse(), "must be a dense tensor"),
    "more lines": (lambda: torch.empty(11, *SHAPE), r"out has shape \(11, 2, 3\), and .* has \(10, 2, 3\)"),
    "flat": (lambda: torch.empty(10, 6), r"out has shape \(10, 6\)"),
    "dtype": (lambda: torch.empty(10, *SHAPE, dtype=torch.float64), "out has dtype torch.float64"),
    "half": (lambda: torch.empty(10, *SHAPE, dtype=torch.bfloat16), "out has dtype torch.bfloat16"),
    "device": (lambda: torch.empty(10, *SHAPE, device="meta"), "out has device meta, and .* has cpu"),
    "gradient": (lambda: torch.empty(10, *SHAPE, requires_grad=True), "out requires a gradient"),
    "one line for all": (lambda: torch.empty(1, *SHAPE).expand(10, -1, -1), "elements that share their memory"),
    "lines that overlap": (lambda: torch.empty(15).as_strided((10, 2, 3), (1, 3, 1)), "elements that share"),
}


@pytest.mark.parametrize("what", BAD)
def test_what_cannot_be_written_is_refused_before_anything_is_drawn(what, monkeypatch):
    drawer, (make, words) = sampler(), BAD[what]
    monkeypatch.setattr("fastscore.engine.loop.Loop.run", lambda *_: pytest.fail("drawn"))
    with pytest.raises(ValueError, match=words):
        drawer.run(IDS, out=make())


def test_memory_that_is_still_read_is_refused_by_its_name():
    x = torch.zeros(12, *SHAPE)
    noised = sampler(start="data")
    for out in (x[:10], x[2:], x[1:11]):  # its own lines, later and earlier ones
        with pytest.raises(ValueError, match="out lies in the memory of init, which is read while"):
            noised.run(IDS, init=x[1:11], out=out)
    conditional = fs.Sampler(fs.ScoreModel(net, SHAPE, fs.VP(), cond_shape=SHAPE), steps=2, batch=4)
    with pytest.raises(ValueError, match="out lies in the memory of cond"):
        conditional.run(IDS, cond=x[:10], out=x[:10])
    flat = torch.zeros(150)
    with pytest.raises(ValueError, match="memory of init"):  # by one number
        noised.run(IDS, init=flat[:60].view(10, *SHAPE), out=flat[59:119].view(10, *SHAPE))
    assert noised.run(IDS, init=flat[:60].view(10, *SHAPE), out=flat[60:120].view(10, *SHAPE)).isfinite().all()
    draws = sampler().plan.draws
    noise = torch.zeros(draws + 1, 10, *SHAPE)
    with pytest.raises(ValueError, match="out lies in the memory of noise"):
        sampler().run(IDS, noise=noise[:draws], out=noise[0])
    assert sampler().run(IDS, noise=noise[:draws], out=noise[draws]).isfinite().all()
    assert noised.run(range(2), init=x[:2], out=x[2:4]).isfinite().all()


def test_an_error_leaves_what_was_done():
    def fails(u, c_noise, cond):
        calls.append(1)
        return 0.5 * u if len(calls) <= 4 else u * float("nan")

    calls, out = [], torch.full((8, *SHAPE), -7.0)
    drawer = fs.Sampler(fs.ScoreModel(fails, SHAPE, fs.VP()), solver="euler", steps=4, batch=4)
    with pytest.raises(fs.NonFiniteError):
        drawer.run(range(8), out=out)
    assert not (out[:4] == -7.0).any() and (out[4:] == -7.0).all()


class Largest(TorchDispatchMode):
    """The most elements of any tensor that is made."""

    count = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        self.count = max([self.count, *(t.numel() for t in tree_leaves(result) if isinstance(t, torch.Tensor))])
        return result


@pytest.mark.slow  # the first use of a dispatch mode imports for seconds
def test_nothing_is_made_as_large_as_what_is_given():
    drawer, out, found = sampler(steps=2), torch.empty(40, *SHAPE), []
    drawer.run(range(4))
    for given in (None, out):
        with Largest() as largest:
            drawer.run(range(40), out=given)
        found.append(largest.count)
    assert found[1] < out.numel() == found[0]


def test_parts_of_a_joint_model():
    drawer = joint()
    expected = drawer.run(IDS, 3)
    whole = torch.full((10, 5), float("nan"))
    out = {"b": torch.empty(10, 3), "a": torch.empty(10, 2)}
    found = drawer.run(IDS, 3, out=out)
    assert list(found) == ["a", "b"] and all(found[k] is out[k] and out[k].equal(expected[k]) for k in out)
    for bad, words in (
        (out["a"], r"must be a dict of tensors by part: a, b"),
        ({"a": out["a"]}, "by part: a, b"),
        ({**out, "c": out["a"]}, "by part: a, b"),
        ({**out, "a": out["b"]}, r"out\['a'\] has shape \(10, 3\)"),
        ({"a": whole[:, :2], "b": whole[:, 1:4]}, r"out\['a'\] and out\['b'\] share their memory"),
    ):
        with pytest.raises(ValueError, match=words):
            drawer.run(IDS, out=bad)


@pytest.mark.parametrize(
    ("sizes", "strides", "overlap"),
    [
        ((3, 4), (4, 1), False), ((3, 4), (1, 3), False), ((3, 4), (3, 1), True), ((3, 1), (1, 0), False),
        ((3, 2), (0, 1), True), ((0, 5), (0, 0), False), ((), (), False), ((2, 2, 2), (4, 1, 2), False),
        ((2, 3, 2), (5, 2, 1), True), ((1, 1), (0, 0), False),
    ],
)  # fmt: skip
def test_overlaps_are_those_of_the_addresses(sizes, strides, overlap):
    x = torch.arange(100).as_strided(sizes, strides)
    assert _overlaps_itself(x) == overlap == (len(x.unique()) < x.numel())
