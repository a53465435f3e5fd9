"""Serving on CUDA devices that are not there (tests/oracles/fake_cuda.py): recorded ticks, bits, and who waits."""

from __future__ import annotations

import gc
import threading
import warnings
import weakref
from collections.abc import Iterator
from concurrent.futures import TimeoutError
from types import SimpleNamespace
from typing import Any

import fake_cuda
import pytest
import torch
from fake_cuda import FakeCuda
from torch import Tensor, nn

import fastscore as fs
from fastscore.engine import cuda_graphs, selfcheck

SETTINGS: dict[str, Any] = {"batch": 3, "backend": "reference"}


class Net(nn.Module):
    """Element by element, so that values are those of a CPU."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.tensor(0.7))

    def forward(self, u: Tensor, c_noise: Tensor, cond: Tensor | None = None) -> Tensor:
        shift = 0.0 if cond is None else 0.1 * cond.to(u)[:, None]
        return self.weight * torch.atan(u) + shift


def served(net: nn.Module, graph: str) -> tuple[Tensor, fs.Engine]:
    reads = fs.Parametrization("edm", "log_sigma/4")
    model = fs.ScoreModel(net, (2,), fs.EDM(), reads, classes=3, null=3)
    plans = (
        {"solver": fs.DDIM(), "steps": 12}, {"solver": fs.DDIM(1.0), "steps": 9}, {"steps": 14},
        {"solver": "heun", "steps": 6}, {"solver": fs.DDIM(), "steps": 7, "guidance": fs.Guidance(2.0)},
    )  # fmt: skip
    samplers = [fs.Sampler(model, batch=3, backend="reference", **settings) for settings in plans]
    engine = fs.Engine(model, batch=3, backend="reference", graph=graph)
    ids = [[10 * k, 10 * k + 1] for k in range(5)] + [[10 * k + 5] for k in range(5)]
    handles = [engine.submit(samplers[k % 5], at, seed=k % 5, labels=k % 3) for k, at in enumerate(ids)]
    return torch.cat([handle.result().cpu() for handle in handles]), engine


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:this grid")
def test_recorded_ticks_on_a_card_give_the_bits_of_a_cpu():
    expected, _ = served(Net(), "off")
    for graph in ("off", "auto"):
        with FakeCuda() as fake:
            x, engine = served(Net().to("cuda:1"), graph)
            assert torch.equal(x, expected) and fake.current_device() == 0
            replays = [call.kind for call in fake.calls].count("replay")
            assert replays == 0 if graph == "off" else 2 * replays > engine.ticks
            # The host reads where samples leave, and nowhere else.
            back = [name for name in fake.syncs if name.startswith("copy from cuda")]
            assert len(back) <= 2 * 15 + 10


@pytest.fixture
def fake(monkeypatch) -> Iterator[FakeCuda]:
    monkeypatch.setattr(selfcheck, "ensure", lambda device, ops: None)
    monkeypatch.setattr(cuda_graphs, "_leases", {})
    quick = SimpleNamespace(collect=int, isenabled=gc.isenabled, enable=gc.enable, disable=gc.disable)
    monkeypatch.setattr(cuda_graphs, "gc", quick)  # a collection of all that the tests hold takes longer than a capture
    with FakeCuda() as fake:
        yield fake


def model(net: nn.Module) -> fs.ScoreModel:
    return fs.ScoreModel(net, (2,), fs.EDM(), fs.Parametrization("edm", "log_sigma/4"))


def drawn(weight: float = 0.7, **settings: Any) -> Tensor:
    """Return samples 0 .. 7 of a CPU."""
    net = Net()
    net.weight.data.fill_(weight)
    return fs.Sampler(model(net), **SETTINGS, **settings).run(range(8))


def replayed(fake: FakeCuda) -> int:
    return [call.kind for call in fake.calls].count("replay")


@pytest.mark.parametrize(
    ("graph", "plan"),
    [
        ("off", {"steps": 3}),
        pytest.param("auto", {"steps": 5}, marks=[pytest.mark.slow, pytest.mark.nightly]),
        pytest.param("off", {"solver": fs.BogackiShampine(0.5, 0.5)}, marks=[pytest.mark.slow, pytest.mark.nightly]),
        pytest.param("auto", {"solver": fs.BogackiShampine(0.5, 0.5)}, marks=[pytest.mark.slow, pytest.mark.nightly]),
    ],
)
def test_callers_on_streams_of_their_own_wait_for_each_other(fake, graph, plan):
    one, expected = model(Net().to("cuda:1")), drawn(**plan)[:4]
    engine, s = fs.Engine(one, graph=graph, **SETTINGS), fs.Sampler(one, **SETTINGS, **plan)
    sides = [torch.cuda.Stream("cuda:1") for _ in range(3)]
    for k in range(2 if graph == "off" else 5):
        with torch.cuda.stream(sides[k % 3]):
            handle = engine.submit(s, torch.arange(4, device="cuda:1"))
        with torch.cuda.stream(sides[(k + 1) % 3]), pytest.raises(TimeoutError):
            handle.result(timeout=1e-4)
        with torch.cuda.stream(sides[(k + 2) % 3]):
            handle.result()
        assert torch.equal(handle.result().cpu(), expected)  # on another one again
    results: list[Tensor] = []

    def client(stream: Any) -> None:
        with torch.cuda.stream(stream):
            results.append(engine.submit(s, range(4)).result(60).cpu())

    threads = [threading.Thread(target=client, args=(side,)) for side in sides]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert len(results) == 3 and all(torch.equal(x, expected) for x in results)


@pytest.mark.slow
def test_replaced_weights_are_recorded_again_and_the_old_ones_freed(fake):
    one, s = model(net := Net().to("cuda:1")), None
    engine, s, old = fs.Engine(one, **SETTINGS), fs.Sampler(one, steps=5, **SETTINGS), list[weakref.ref[Any]]()
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # that there is no graph
        for k in range(3):
            before, expected = replayed(fake), drawn(0.7 - 0.2 * k, steps=5)
            net.weight = nn.Parameter(torch.tensor(0.7 - 0.2 * k).to("cuda:1"))
            old.append(weakref.ref(net.weight.memory))  # pyright: ignore
            for _ in range(2):
                assert torch.equal(engine.submit(s, range(8)).result().cpu(), expected)
            assert replayed(fake) > before
    gc.collect()
    assert [ref() is not None for ref in old] == [False, False, True]


@pytest.mark.slow
@pytest.mark.nightly
def test_replaced_weights_count_in_lanes_that_are_never_empty(fake):
    plan: dict[str, Any] = {"solver": fs.BogackiShampine(1e-3, 1e-3)}
    one, expected = model(net := Net().to("cuda:1")), drawn(0.2, **plan)
    engine, s = fs.Engine(one, **SETTINGS), fs.Sampler(one, **SETTINGS, **plan)
    asked = []
    for k in range(3):
        asked.append(engine.submit(s, [100 + k]))
        engine.submit(s, [200 + k]).cancel()
        with pytest.raises(TimeoutError):
            asked[-1].result(timeout=1e-4)
    late = engine.submit(s, range(8))
    asked[0].result()
    assert replayed(fake) and not asked[2].done()
    net.weight = nn.Parameter(torch.tensor(0.2).to("cuda:1"))
    assert torch.equal(late.result().cpu(), expected)


@pytest.mark.slow
@pytest.mark.nightly
def test_where_no_stream_is_left_there_are_no_graphs(fake, monkeypatch):
    monkeypatch.setattr(cuda_graphs, "STREAMS", 1)
    monkeypatch.setattr(fake_cuda, "STREAMS", 2)
    one = model(Net().to("cuda:1"))
    others = [fs.Sampler(one, steps=3, **SETTINGS) for _ in range(2)]
    for s in others:
        s.run(range(3))
    plans: tuple[dict[str, Any], ...] = ({"steps": 5}, {"solver": fs.BogackiShampine(0.1, 0.1)})
    for plan in plans:
        s, expected = fs.Sampler(one, **SETTINGS, **plan), drawn(**plan)
        for draw in (s.run, lambda ids, s=s: fs.Engine(one, **SETTINGS).submit(s, ids).result()):
            with pytest.warns(UserWarning, match="no CUDA graph: .* recordings are alive"):
                assert torch.equal(draw(range(8)).cpu(), expected)


FULL, CTRL_C = torch.OutOfMemoryError, KeyboardInterrupt
FAILURES = [
    (FULL, "", 0, True), (FULL, "", 19, True), (FULL, "clone", 3, False), (FULL, "new_empty", 0, False),
    (FULL, "index_put", 9, False), (CTRL_C, "", 7, True), (CTRL_C, "atan", 9, False),
]  # fmt: skip


@pytest.mark.slow
@pytest.mark.nightly
@pytest.mark.parametrize(("kind", "name", "after", "capturing"), FAILURES)
def test_failures_anywhere_leave_an_engine_that_works(fake, kind, name, after, capturing):
    """In operations of every kind, captured or not: the failure or right samples, and right samples after it."""
    one, expected = model(Net().to("cuda:1")), {steps: drawn(steps=steps) for steps in (4, 6)}
    samplers = {steps: fs.Sampler(one, steps=steps, **SETTINGS) for steps in expected}
    engine = fs.Engine(one, **SETTINGS)
    asked = {steps: engine.submit(s, range(8)) for steps, s in samplers.items()}
    fake.plant(name, kind("planted"), after, capturing)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for _ in range(2):
            for steps, handle in asked.items():
                try:
                    assert torch.equal(handle.result().cpu(), expected[steps])
                except kind as error:
                    assert "planted" in str(error)
            fake.planted.clear()
            asked = {steps: engine.submit(s, range(8)) for steps, s in samplers.items()}
        for steps, handle in asked.items():
            assert torch.equal(handle.result().cpu(), expected[steps])
    assert gc.isenabled() and torch.cuda.current_device() == 0 and fake.capturing is None and not fake.open_pools
    assert torch.cuda.current_stream("cuda:1").stream_id == 0 and torch.is_grad_enabled()
