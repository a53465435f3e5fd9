"""Ticks, sweeps and joint rows as a GPU will record them: replays give the bits of the plain run."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from networks import elementwise_model
from torch.overrides import TorchFunctionMode

import fastscore as fs
from fastscore.engine.adaptive.lanes import POLL
from fastscore.engine.adaptive.sums import WeightedSums
from fastscore.engine.capture import Tape
from fastscore.ops.backend import REFERENCE, operators, resolve
from fastscore.testing import no_host_sync

SHAPE = (2, 3)
SOLVERS = {"dopri5": fs.Dopri5(0.05, 0.05), "dpm": fs.DPMAdaptive(3, 0.2, 0.2), "ggf": fs.GottaGoFast(0.9, 0.9)}
KNOWN = torch.tensor([[True, False, True], [False, False, False]])
LINES = {
    "plain": ({}, {}),
    "mixture": ({"guidance": fs.Guidance(2.0, (0.1, 5.0))}, {}),
    "several": ({"guidance": fs.Guidance((2.0, 1.5))}, {"others": [[2] * 6]}),
    "clip": ({"clip": 0.3}, {}),
    "known": ({}, {"known": fs.Known(torch.full(SHAPE, 0.3), KNOWN)}),
    "state": ({"grid": fs.Span(end=0.1, clean=False)}, {}),
}


def sampler(solver, shape=SHAPE, net=None, **kw) -> fs.Sampler:
    model = elementwise_model(shape, classes=4, null=4, projection=kw.pop("projection", None))
    model = model if net is None else replace(model, net=net)
    return fs.Sampler(model, solver=solver, batch=4, backend="reference", **kw)


def taped(s: fs.Sampler) -> fs.Sampler:
    s.engine.lanes.ticking.recorder = Tape
    return s


def labels(n: int) -> list[int]:
    return [k % 4 for k in range(n)]


CASES = [
    ("dopri5", "mixture"), ("dpm", "plain"), ("dopri5", "known"), ("dpm", "several"), ("dopri5", "clip"),
    ("dopri5", "state"), ("dpm", "mixture"), ("ggf", "plain"), ("ggf", "mixture"), ("dopri5", "plain"),
]  # fmt: skip


def check_replayed(name: str, feature: str, dtype: torch.dtype = torch.float32) -> None:
    settings, run = LINES[feature]
    plain, recorded = (sampler(SOLVERS[name], dtype=dtype, **settings) for _ in range(2))
    for seed in (3, 4):  # the second run replays what the first recorded
        expected = plain.run(range(6), seed, labels=labels(6), **run)
        assert torch.equal(taped(recorded).run(range(6), seed, labels=labels(6), **run), expected)
    assert torch.equal(recorded.cost.nfe, plain.cost.nfe)
    assert (plain.engine.mode, recorded.engine.mode) == ("off", "step")


def test_replayed_ticks_give_the_bits_of_plain_ones():
    for name, feature in CASES[:4]:
        check_replayed(name, feature)


@pytest.mark.slow
@pytest.mark.parametrize(("name", "feature"), CASES[4:])
def test_every_replayed_tick_gives_the_bits_of_a_plain_one(name, feature):
    check_replayed(name, feature)
    check_replayed(name, feature, torch.float64)
