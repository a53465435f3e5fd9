"""Rows whose evaluations are one call: the bits of one call after the other, where a network keeps to its lines."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from fake_cuda import FakeCuda

import fastscore as fs
from fastscore.engine import cuda_graphs, selfcheck
from fastscore.engine.batches import Batches
from fastscore.engine.capture import Graphed, Tape
from fastscore.engine.mixes import batched_by, compiled_lines
from fastscore.output.store.job import job_of

LABELS = [0, 1, 2, 2, 1]
PC = fs.PredictorCorrector(fs.ReverseDiffusion(), fs.Langevin())


class Net(torch.nn.Module):
    """Element by element, with how many lines it was called with; it may write into its input."""

    def __init__(self, writes: bool = True):
        super().__init__()
        self.writes = writes
        self.weight, self.lines = torch.nn.Parameter(torch.tensor(0.7)), []

    def forward(self, u, c_noise, cond):
        self.lines.append(len(u))
        tensors = [cond] if isinstance(cond, torch.Tensor) else [v for _, v in sorted(cond.items())]
        assert {len(u), len(c_noise)} | {len(v) for v in tensors} == {len(u)}
        axes = [1] * (u.ndim - 1)
        shift = sum((k + 1) * v.to(u.dtype).reshape(len(v), -1).sum(1).view(-1, *axes) for k, v in enumerate(tensors))
        out = self.weight * torch.atan(u) + 0.1 * shift + 0.01 * c_noise.view(-1, *axes).to(u.dtype)
        if self.writes:
            u.fill_(math.nan)
        return out


def model(**kw) -> fs.ScoreModel:
    made = {"classes": 3, "null": 3} | kw
    return fs.ScoreModel(Net(), (4,), fs.EDM(), fs.Parametrization("edm", "log_sigma/4"), **made)


def sampler(m=None, guidance=None, **settings):
    kw = {"steps": 4, "batch": 3, "solver": fs.DPMpp2M(), "guidance": guidance or fs.Guidance(2.0)} | settings
    return fs.Sampler(m or model(), **kw)


NAMED = {
    "classes": 3, "cond_shape": {"tokens": (None,), "mask": (2,)},
    "null": {"labels": 3, "tokens": torch.zeros(2), "mask": torch.ones(2)},
}  # fmt: skip
TOKENS = torch.arange(10.0).view(5, 2)
SEVERAL = {"others": [[2, 0, 1, 1, 0], 1, 0], "negative": [3, 3, 0, 1, 2]}
# Settings, what a run gives, and how many lines the network sees at a time.
CASES = {
    "null": ({}, {}, {6}),
    "negative": ({}, {"negative": [2, 2, 0, 0, 3]}, {6}),
    "interval": ({"guidance": fs.Guidance(2.0, (0.1, 5.0))}, {}, {3, 6}),
    "steps": ({"guidance": fs.Guidance(2.0, steps=(0.3, 0.8)), "solver": fs.Heun()}, {}, {3, 6}),
    "several": ({"guidance": fs.Guidance((1.5, 0.0, 1.0, -0.5), (0.1, 5.0))}, SEVERAL, {3, 12}),
    "of one": ({"guidance": fs.Guidance((2.0, -1.0))}, {"others": [[2, 0, 1, 1, 0]]}, {6}),
    "cfg++": ({"guidance": fs.Guidance(0.6, rule="cfg++"), "solver": fs.Heun()}, {}, {3, 6}),
    "several, cfg++": (
        {"guidance": fs.Guidance((0.5, 0.3, 0.0, 0.2), rule="cfg++"), "solver": fs.Heun()},
        SEVERAL,
        {3, 9, 12},
    ),
    "rule": ({"guide": fs.Chain((fs.CFGRescale(0.7), fs.StaticThreshold(1.0)))}, {}, {6}),
    "rule, cfg++": ({"guidance": fs.Guidance(0.6, rule="cfg++"), "clip": 1.0}, {}, {3, 6}),
    "pc": ({"solver": PC}, {}, {6}),
    "known": ({"solver": fs.DDIM(eta=1.0)}, {"known": fs.Known(torch.zeros(4), torch.arange(4) < 2)}, {6}),
    "float64": ({"dtype": torch.float64}, {}, {6}),
}


@pytest.mark.filterwarnings("ignore:Langevin with per-sample norms")
@pytest.mark.parametrize("name", CASES)
def test_one_call_has_the_bits_of_several(name):
    settings, fields, lines = CASES[name]
    double = settings.get("dtype") == torch.float64
    made = {}
    for guided in ("serial", "batched"):
        m = model()
        m.net.to(torch.float64) if double else None
        run = sampler(m, guided=guided, **settings)
        steps = []
        made[guided] = run.run(range(5), 3, labels=LABELS, **fields, callback=steps.append), [s.x0 for s in steps]
        assert set(m.net.lines) == (lines if guided == "batched" else {3})
        assert run.record()["guided"] == guided
        last = {"others": lambda v: [x if isinstance(x, int) else x[4:] for x in v], "negative": lambda v: v[4:]}
        alone = {k: last.get(k, lambda v: v)(v) for k, v in fields.items()}
        assert torch.equal(run.run([4], 3, labels=[LABELS[4]], **alone)[0], made[guided][0][4])
    x, rows = zip(*made.values(), strict=True)
    assert torch.equal(*x) and x[0].isfinite().all()
    assert all((a is None and b is None) or torch.equal(a, b) for a, b in zip(*rows, strict=True))


def test_conditions_by_name_and_those_of_another_length():
    """Each sample keeps its own value of what the null condition leaves out; lengths that differ are calls apart."""
    for null, negative, lines in (
        (NAMED["null"], None, {6}),
        ({"labels": 3}, None, {6}),
        (NAMED["null"], {"tokens": TOKENS.flip(0)}, {6}),
        ({"tokens": torch.zeros(3)}, None, {3}),
        (NAMED["null"], {"tokens": torch.ones(5)}, {3}),
    ):
        made = []
        for guided in ("serial", "batched"):
            m = model(**NAMED | {"null": null})
            run = sampler(m, guided=guided)
            for tokens in (TOKENS, TOKENS + 1.0):  # the buffers take what the next run gives
                fields = {"cond": {"tokens": tokens, "mask": torch.ones(2)}, "labels": LABELS}
                made.append(run.run(range(5), **fields, negative=negative))
        assert set(m.net.lines) == lines, (null, negative)
    m = model(**NAMED)
    run, labels = sampler(m, guided="batched"), {"labels": LABELS}
    for tokens in (TOKENS, torch.ones(5, 3), TOKENS):  # the null condition has two
        m.net.lines.clear()
        x = run.run(range(5), **labels, cond={"tokens": tokens, "mask": torch.ones(2)}, negative=None)
        assert set(m.net.lines) == {6 if tokens is TOKENS else 3}
        away = run.run(range(5), **labels, cond={"tokens": tokens, "mask": torch.ones(2)}, negative={"tokens": tokens})
        assert not torch.equal(x, away) and m.net.lines[-1] == 6
        assert torch.equal(made[0], made[2]) and torch.equal(made[1], made[3]) and not torch.equal(made[0], made[1])


def test_a_tensor_is_differentiated_through_one_call():
    def energy(x0, y):
        return (x0 - 0.5).square().flatten(1).sum(1)

    made = []
    for guided in ("serial", "batched"):
        m = replace(model(), net=Net(writes=False))
        run = sampler(m, guide=fs.EnergyGuidance(energy, 0.3), guided=guided)
        made.append(run.run(range(5), labels=LABELS))
        assert set(m.net.lines) == {6 if guided == "batched" else 3}
    assert torch.allclose(*made, rtol=1e-6, atol=1e-6) and made[0].isfinite().all()


@pytest.mark.parametrize("mode", ["step", pytest.param("loop", marks=pytest.mark.slow)])
def test_a_recorded_row_reads_what_was_laid_out_for_it(mode):
    run, plain = (
        sampler(guidance=fs.Guidance((1.5, -1.0), (0.1, 5.0)), guided=g, backend="reference")
        for g in ("batched", "serial")
    )
    loop, graphed = run.engine.loop, None
    for seed in (1, 2):
        fields = {"labels": LABELS[seed : seed + 3], "others": [[seed, 0, 2]], "negative": [0, seed, 1]}
        loop.load(run.request(range(3), seed, **fields))
        graphed = graphed or Graphed(loop, Tape(), mode)
        loop.mixes.inputs.fill_(math.nan)
        assert torch.equal(graphed.run(), plain.run(range(3), seed, **fields)), (mode, seed)


def test_where_it_is_one_call_is_said(monkeypatch):
    """On CUDA up to so many lines, never on a CPU unless asked for; and a run's record and its shards say it."""
    assert sampler().record()["guided"] == "serial" and "guided" not in fs.Sampler(model(), steps=2).record()
    monkeypatch.setattr(selfcheck, "ensure", lambda device, ops: None)
    monkeypatch.setattr(cuda_graphs, "_leases", {})
    with FakeCuda():
        assert fs.Execution("cuda:0").batches(2) and not fs.Execution("cuda:0").batches(1)
        for batch, weights, how in ((128, 2.0, "batched"), (129, 2.0, "serial"), (85, (1.0, 2.0), "batched")):
            m = model()
            m.net.to("cuda:1")
            run = sampler(m, fs.Guidance(weights), batch=batch, backend="reference")
            assert run.record()["guided"] == how, batch
        for settings, lines in (
            ({}, 6),
            ({"guided": "serial"}, 3),
            ({"guidance": fs.Guidance((2.0, 1.0))}, 9),
            ({"guidance": fs.Guidance(2.0, (0.1, 5.0))}, 3),  # rows of one call and of two
            ({"guidance": fs.Guidance(0.6, rule="cfg++"), "solver": fs.Heun()}, 3),
            ({"guidance": fs.Guidance(0.6, rule="cfg++"), "solver": fs.DDIM()}, 6),
            ({"parallel": fs.Picard(4)}, 12),
            ({"network": "own"}, 3),
            ({"guidance": fs.Guidance(2.0, model=model())}, 3),
        ):
            m = model()
            m.net.to("cuda:1")
            second = settings.get("guidance", fs.Guidance(1.0)).model
            second.net.to("cuda:1") if second is not None else None
            run = sampler(m, **{"network": "bf16", "backend": "reference"} | settings)
            assert compiled_lines(run) == lines, settings
            assert not run.execution.fixed or bool(batched_by(run)) == (lines in (6, 9))
    said = [job_of(sampler(guided=g), fs.Request.of(model(), torch.device("cpu"), range(3), labels=0)).ready().manifest
            for g in ("serial", "batched")]  # fmt: skip
    assert "guided" not in said[0].numerics and said[1].numerics["guided"] == "batched"


@pytest.mark.parametrize("graph", ["step", *(pytest.param(g, marks=pytest.mark.slow) for g in ("off", "loop"))])
def test_on_a_device_that_is_not_there(graph, monkeypatch):
    monkeypatch.setattr(selfcheck, "ensure", lambda device, ops: None)
    monkeypatch.setattr(cuda_graphs, "_leases", {})
    asked = [({"labels": LABELS}, 1), ({"labels": LABELS[::-1], "negative": [0, 1, 2, 2, 0]}, 2)]
    expected = [sampler(guidance=fs.Guidance(2.0, (0.1, 5.0))).run(range(5), s, **fields) for fields, s in asked]
    with FakeCuda() as fake:
        m = model()
        m.net.to("cuda:1")
        run = sampler(m, fs.Guidance(2.0, (0.1, 5.0)), backend="reference", graph=graph)
        for (fields, seed), x in zip(asked * 2, expected * 2, strict=True):
            assert torch.equal(run.run(range(5), seed, **fields).cpu(), x)
        assert 6 in m.net.lines and isinstance(run.engine, Batches) and run.engine.mode == graph
        request = run.request(range(30), labels=0)
        run.run(request)
        del fake.calls[:]
        run.run(request)
        assert len(fake.syncs) == 10  # each when all are on their way
        assert [call.kind for call in fake.calls].index("sync") > len(fake.calls) // 2


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"solver": "dopri5"}, "an adaptive solver evaluates"),
        ({"parallel": fs.Picard(2)}, "Picard's sweeps evaluate"),
        ({"guidance": fs.Guidance(2.0, model=model())}, "a second model is a network of its own"),
        ({"guided": "twice"}, "must be one of auto, serial, batched"),
    ],
)
def test_what_cannot_be_one_call_is_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        sampler(**{"guided": "batched"} | settings)


def test_a_rollout_and_its_replay_call_one_after_the_other():
    run = sampler(solver=fs.DDIM(eta=1.0), guided="batched")
    rollout = run.rollout(range(5), labels=LABELS)
    assert set(run.model.net.lines) == {3} and torch.equal(run.replay(rollout), rollout.replayed)
