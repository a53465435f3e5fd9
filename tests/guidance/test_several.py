"""Several weighted conditions, negative ones and intervals by steps: against closed forms, in every engine."""

from __future__ import annotations

import math
import pickle
from itertools import pairwise

import numpy as np
import pytest
import textbook_guidance
import torch
import works

import fastscore as fs
from fastscore import plan as plans
from fastscore.data.affine import Affine
from fastscore.engine.capture import Graphed, Tape
from fastscore.engine.loop import Loop
from fastscore.engine.request import Request
from fastscore.execution import Execution
from fastscore.guidance.mixture import BoundPlan, Guidance
from fastscore.model.analytic import gaussian
from fastscore.model.score import ScoreModel
from fastscore.output.store.job import Asked, conditions
from fastscore.process.continuous import EDM, VP, Trig
from fastscore.process.grid import karras, logsnr
from fastscore.process.parametrization import Parametrization
from fastscore.sampler import Sampler
from fastscore.solvers import DDIM, DPMpp2M, Heun

MEANS, STDS = torch.tensor([-1.0, 0.5, 0.1, 0.9]).double(), torch.tensor([0.4, 0.7, 1.1, 0.6]).double()
CLASSES = {"classes": 3, "null": 3}
LABELS = {"labels": [0, 1, 2]}


def D(x, alpha, sigma, k):
    """E[x_0 | x_t] of N(MEANS[k], STDS[k]^2) in every coordinate."""
    column = [-1] + [1] * (x.ndim - 1)
    mean, variance = MEANS.to(x)[k].reshape(column), STDS.to(x)[k].reshape(column) ** 2
    return mean + alpha * variance / (alpha**2 * variance + sigma**2) * (x - alpha * mean)


def model(prediction="v", null: int | None = 3, seen=None) -> ScoreModel:
    """Three Gaussian classes and a null class."""

    def net(u, t, cond):
        t = t.to(u).reshape(-1, *[1] * (u.ndim - 1))
        alpha, sigma = torch.cos(t), torch.sin(t)
        if seen is not None:
            seen.append(cond.tolist())
        out = D(u, alpha, sigma, cond)
        return {"x0": out, "eps": (u - alpha * out) / sigma, "v": (alpha * u - out) / sigma}[prediction]

    return ScoreModel(net, (6,), Trig(), Parametrization(prediction, "t"), classes=3 if null == 3 else 4, null=null)


def sampler(guidance, net=None, **kw) -> Sampler:
    kw = {"schedule": VP(), "solver": DDIM(), "grid": logsnr(6), "dtype": torch.float64, "batch": 2} | kw
    return Sampler(net or model(), guidance=guidance, **kw)


@pytest.mark.parametrize(
    "weights", [(2.0, 1.5), (3.0, -1.0, 0.5), (2.0, -2.0), (0.3, 0.7), (0.0, 1.7), (-1.0, 0.0, 0.4)]
)
def test_the_estimate_is_the_composition(weights):
    others, own, negative = [[1, 2, 2], 0][: len(weights) - 1], torch.tensor([0, 1, 2]), torch.tensor([2, 3, 0])
    interval = (0.1, 8.0)
    for schedule, solver, prediction in ((VP(), Heun(), "v"), (EDM(), DPMpp2M(), "eps"), (VP(), DDIM(0.5, True), "x0")):
        steps, kw = [], {"schedule": schedule, "solver": solver, "grid": karras(6), "batch": 3}
        run = sampler(Guidance(weights, interval), model(prediction), **kw)
        run.run(range(3), labels=own, others=others, negative=negative, callback=steps.append, seed=3)
        conds, evaluations = [own, *(torch.tensor(o).expand(3) for o in others)], 0
        for before, step in pairwise(steps):
            if step.x0 is None:
                continue
            alpha, sigma = float(schedule.alpha(step.t)), float(schedule.sigma(step.t))
            away, first = (D(before.x, alpha, sigma, k) for k in (negative, own))
            inside = interval[0] < sigma / alpha <= interval[1]
            wanted = away + sum(w * (D(before.x, alpha, sigma, k) - away) for w, k in zip(weights, conds, strict=True))
            wanted = wanted if inside else first
            evaluations += sum(w != 0 for w in weights) + (math.fsum(weights) != 1.0) if inside else 1
            size = float(before.x.abs().max()) / alpha + float(wanted.abs().max())
            assert (step.x0 - wanted).abs().max() < 1e-12 * 6 * size, (schedule, solver, step.t)
        assert run.plan.nfe == evaluations


@pytest.mark.thirds
@pytest.mark.parametrize(
    "column",
    [*works.COLUMNS[:3], *(pytest.param(v, marks=pytest.mark.slow) for v in works.COLUMNS[3:5]), "joint"],
)
@pytest.mark.filterwarnings("ignore:Langevin with per-sample norms")
def test_what_several_conditions_come_to_in_every_engine(column):
    def draw(guidance, dtype=torch.float64, batch=2, **asked):
        return works.run(column, CLASSES, {"guidance": guidance, "dtype": dtype}, {**LABELS, **asked}, batch)

    one = draw(Guidance(2.5))
    for weights in ((1.5, 1.0), (3.0, -1.0, 0.5)):
        same = draw(Guidance(weights), others=[[0, 1, 2]] * (len(weights) - 1))
        assert torch.allclose(same, one, rtol=1e-12, atol=1e-12), weights
    interval = Guidance((1.5, 1.0), (0.1, 1.0))
    limited = draw(Guidance(2.5, (0.1, 1.0)))
    assert torch.allclose(draw(interval, others=[[0, 1, 2]]), limited, rtol=1e-12, atol=1e-12)
    plain = works.run(column, CLASSES, {}, LABELS)  # weight 1 in float32, to the bit
    assert torch.equal(draw(Guidance(1.0), torch.float32, negative=1), plain)
    assert torch.equal(draw(Guidance((1.0, 0.0)), torch.float32, others=[2]), plain)
    assert torch.equal(draw(Guidance((4.0, -2.0), (1e6, 1e7)), torch.float32, others=[2]), plain)
    away = draw(Guidance(2.5), negative=[1, 2, 0])
    assert torch.equal(draw(Guidance(2.5, null=1), labels=[0, 0, 0])[0], draw(Guidance(2.5), negative=1, labels=0)[0])
    assert not torch.allclose(away, one, atol=1e-3)
    full = {"others": [[2, 0, 1], 1], "negative": [1, 1, 3]}
    mixed = draw(Guidance((1.5, 1.2, -0.4), (0.1, 1.0)), torch.float32, **full)
    assert mixed.isfinite().all()
    assert torch.equal(draw(Guidance((1.5, 1.2, -0.4), (0.1, 1.0)), torch.float32, 3, **full), mixed)


def test_adaptive_solvers_take_whatever_the_network_predicts():
    for prediction in ("x0", "eps"):
        kw = {"solver": fs.BogackiShampine(1e-2, 1e-2), "grid": fs.Span(end=0.1, clean=False)}
        run = sampler(Guidance((1.5, 1.0), (0.2, 3.0)), model(prediction), **kw)
        two = run.run(range(2), labels=[0, 1], others=[[0, 1]])
        one = sampler(Guidance(2.5, (0.2, 3.0)), model(prediction), **kw).run(range(2), labels=[0, 1])
        assert torch.allclose(two, one, rtol=1e-11, atol=1e-11), prediction


def test_tensors_names_and_dtypes():
    """A further condition is in the form of the sample's own, and keeps the sample's value of what it leaves out."""

    def net(u, c_noise, cond):
        return works.net(u, c_noise, cond)

    m = ScoreModel(
        net, (4,), VP(), Parametrization("v"), classes=3, cond_shape={"tokens": (None,), "mask": (2,)},
        null={"labels": 3, "tokens": torch.zeros(2), "mask": torch.ones(2)},
    )  # fmt: skip
    tokens, other = torch.tensor([[1.0, 2.0], [0.5, 4.0]]), torch.tensor([[3.0, 1.0], [2.0, 2.0]])
    mask = torch.tensor([[1.0, 0.0], [1.0, 1.0]])
    run = Sampler(m, guidance=Guidance((2.0, 1.0)), grid=karras(4), batch=2, dtype=torch.float64)
    given = {"labels": [0, 1], "cond": {"tokens": tokens, "mask": mask}}
    x = run.run(range(2), **given, others=[{"tokens": other}], negative={"labels": 2})
    for k in range(2):
        own, null = {"tokens": tokens[k], "mask": mask[k]}, {"labels": 2, "tokens": tokens[k], "mask": mask[k]}
        alone = Sampler(m, guidance=Guidance((2.0, 1.0), null=null), grid=karras(4), batch=2, dtype=torch.float64)
        further = {"tokens": other[k], "mask": mask[k], "labels": k}
        assert torch.equal(alone.run([k], labels=k, cond=own, others=[further])[0], x[k])
    tensor = ScoreModel(net, (4,), VP(), Parametrization("v"), cond_shape=(2,), null=torch.zeros(2))
    run = Sampler(tensor, guidance=Guidance((2.0, -0.5)), grid=karras(4), batch=2)
    y = run.run(range(2), cond=tokens, others=[other[0]], negative=other)
    assert torch.equal(run.run([1], cond=tokens[1], others=[other[0]], negative=other[1]), y[1:])
    longer = run.run(range(2), cond=tokens.half(), others=[other.double()])  # in the dtype of the sample's own
    assert longer.isfinite().all()


def test_subspaces_units_and_networks_that_write_into_their_input():
    """The offset of a subspace counts as often as the weights; an input is each evaluation's own."""

    def in_place(u, t, cond):
        return u.mul_(0.5).add_(cond.reshape(-1, 1))

    on = fs.Constrained(torch.tensor([[1.0, 1.0, 0.0]]).double(), torch.tensor([0.7]).double())
    units = Affine((1.0, 2.0, 3.0), (0.5, 2.0, 1.0))
    for net, extra in ((works.net, {"projection": on}), (works.net, {"transform": units}), (in_place, {})):
        m = ScoreModel(net, (3,), VP(), Parametrization("v"), classes=3, null=3, **extra)
        for solver in (DDIM(0.5), fs.PredictorCorrector(DDIM(), fs.Langevin(norm="expected"))):
            kw = {"solver": solver, "grid": karras(4), "batch": 2, "dtype": torch.float64}
            one = Sampler(m, guidance=Guidance(2.5), **kw).run(range(3), labels=[0, 1, 2])
            run = Sampler(m, guidance=Guidance((1.5, 1.0)), **kw)
            two = run.run(range(3), labels=[0, 1, 2], others=[[0, 1, 2]])
            assert torch.allclose(two, one, rtol=1e-12, atol=1e-12), (extra, solver)


@pytest.mark.slow
def test_a_rule_takes_the_mean_of_several_conditions():
    """The conditional estimate of D_1, D_2, .. is their mean by weights, and w the sum; in every engine with guides."""
    for column in ("plan", "Picard", "adaptive ODE"):
        for guide in (fs.APG(0.3, 0.5), fs.CFGRescale(0.5)):
            given = {"guide": guide, "dtype": torch.float64}
            one = works.run(column, CLASSES, {**given, "guidance": Guidance(2.5, (0.1, 2.0))}, LABELS)
            asked = {**LABELS, "others": [[0, 1, 2]]}
            two = works.run(column, CLASSES, {**given, "guidance": Guidance((1.5, 1.0), (0.1, 2.0))}, asked)
            assert torch.allclose(two, one, rtol=1e-12, atol=1e-12), (column, guide)
    steps, run = [], sampler(Guidance((2.0, 1.0)), guide=fs.APG(0.3, 1.0), batch=3)
    run.run(range(3), labels=[0, 1, 2], others=[[2, 2, 0]], callback=steps.append)
    for before, step in pairwise(steps):
        alpha, sigma = float(VP().alpha(step.t)), float(VP().sigma(step.t))
        a, b, u = (D(before.x, alpha, sigma, torch.tensor(k)) for k in ([0, 1, 2], [2, 2, 0], [3, 3, 3]))
        mean = (2.0 * a + b) / 3.0
        for k in range(3):
            wanted = textbook_guidance.apg(mean[k].numpy(), u[k].numpy(), 3.0, {}, 0.3, 1.0)
            assert np.allclose(step.x0[k].numpy(), wanted, rtol=1e-9, atol=1e-9)


@pytest.mark.slow
def test_rows_of_several_conditions_are_captured():
    """What a CUDA graph freezes, on a stand-in for one."""
    m, guidance = model(), Guidance((1.7, 0.5, -0.4), (0.1, 20.0))
    plan = plans.make_plan(DPMpp2M(), VP(), karras(6)(VP()))
    loop = Loop(BoundPlan(plan, m, guidance), m, Execution("cpu", 4))
    graphed = None
    for seed in (5, 6):
        asked = {"labels": [0, 1, 2], "others": [[2, 1, 0], seed - 5], "negative": [3, 0, seed - 5]}
        loop.load(Request.of(m, torch.device("cpu"), [4, 0, 2**40], seed, **asked).padded(4))
        graphed = graphed or Graphed(loop, Tape(), "loop")
        assert torch.equal(graphed.run(), loop.run())


def test_requests_are_cut_recorded_and_told_apart():
    run = sampler(Guidance((2.0, 1.0)), batch=3)
    request = run.request(range(7), labels=1, others=[[0, 1, 2, 0, 1, 2, 0]], negative=[3, 2, 1, 0, 3, 2, 1])
    x = run.run(request)
    assert torch.equal(run.run(request.at([6, 2])), x[[6, 2]])
    assert torch.equal(run.run(request.part(slice(2, 5))), x[2:5])
    assert torch.equal(run.run(pickle.loads(pickle.dumps(request))), x)
    kept = conditions(request.part(slice(0, 2)))
    assert {k: v.tolist() for k, v in kept.items()} == {
        "labels": [1, 1], "cond.others0": [0, 1], "cond.negative": [3, 2],
    }  # fmt: skip
    plain = sampler(Guidance(2.0)).request(range(7), labels=1)
    told = [Asked.of(r).told for r in (plain, sampler(Guidance(2.0)).request(range(7), labels=1, negative=2), request)]
    assert len(set(told)) == 3
    assert repr(Guidance(2.0)) == "Guidance(weight=2.0, interval=(0.0, inf), model=None, null=None)"  # as it ever was
    assert repr(Guidance(2.0, steps=(0.2, 1.0))).endswith("steps=(0.2, 1.0))")
    graphs = sampler(Guidance((2.0, 1.0)))  # a run without, one with, again
    first = graphs.run(range(3), labels=1, others=[0])
    graphs.run(range(3), labels=1, others=[0], negative=2)
    assert torch.equal(graphs.run(range(3), labels=1, others=[0]), first)


def test_evaluations_are_those_that_count():
    """A weight of 0 costs nothing, weights that sum to 1 no null condition, and a row outside one evaluation."""
    both = [0, 1, 3]
    cases = {(0.5, 0.5): [0, 1], (1.0, 0.0): [0], (0.0, 2.0): [1, 3], (2.0, 1.0): both, (2.0, -2.0): both}
    for weights, conds in cases.items():
        seen: list = []
        run = sampler(Guidance(weights), model(seen=seen), grid=logsnr(2), batch=1, network="own")
        run.run([0], labels=0, others=[1])
        assert [k for (k,) in seen] == conds * 2, weights
        assert run.plan.nfe == 2 * len(conds)


def test_shares_of_the_steps_count_as_diffusers_does():
    for n, share in ((6, (0.2, 0.8)), (7, (0.0, 0.5)), (5, (0.6, 1.0)), (10, (0.3, 0.31))):
        for solver, stages in ((DDIM(), 1), (Heun(), 2), (DPMpp2M(), 1)):
            run = sampler(Guidance(3.0, steps=share), solver=solver, grid=logsnr(n))
            rows = [row for row in run.plan.rows if row.evaluate]
            mixed = [row.q2 != 0.0 for row in rows]
            per_step = [stages] * (n - 1) + [1]
            step = np.repeat(np.arange(n), per_step)
            assert mixed == [int(share[0] * n) <= i < int(share[1] * n) for i in step], (n, share, solver)
    both = sampler(Guidance(3.0, (0.5, math.inf), steps=(0.0, 0.8)), grid=logsnr(6))
    levels = [float(VP().sigma(r.t) / VP().alpha(r.t)) for r in both.plan.rows if r.evaluate]
    assert [r.q2 != 0.0 for r in both.plan.rows if r.evaluate] == [v > 0.5 and i < 4 for i, v in enumerate(levels)]
    joint = fs.JointModel(works.both, {"a": fs.Part((2,), fs.VP()), "b": fs.Part((3,), fs.VE())}, classes=3, null=3)
    plans = fs.JointSampler(joint, grid=fs.uniform(5), guidance=Guidance(2.0, steps=(0.2, 0.6))).plans
    for plan in plans.values():
        assert [r.q2 != 0.0 for r in plan.rows if r.evaluate] == [False, True, True, False, False]


def bad(guidance, net=None, **asked):
    return lambda: sampler(guidance, net).run(range(2), **{"labels": 0, **asked})


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: Guidance(()), "must be a number or a list of numbers"),
        (lambda: Guidance((2.0, math.inf)), "must be finite"),
        (lambda: Guidance((0.0, 0.0)), "several not all 0"),
        (lambda: Guidance((2.0, "3")), "list of numbers"),
        (lambda: Guidance(2.0, steps=(0.5, 0.5)), "shares 0 <= start < stop <= 1"),
        (lambda: Guidance(2.0, steps=(0.0, 1.5)), "shares 0 <= start < stop <= 1"),
        (lambda: sampler(Guidance(2.0, steps=(0.0, 0.5)), solver=fs.Dopri5(), grid=None), "shares of a grid's steps"),
        (lambda: sampler(Guidance((2.0, 1.0), model=model())), "a second model takes one"),
        (bad(Guidance((2.0, 1.0))), "others: 0 further conditions for a sampler with a guidance of weight"),
        (bad(Guidance(2.0), others=[1]), "others: 1 further conditions"),
        (bad(None, others=[1]), "with no guidance"),
        (bad(Guidance((2.0, 1.0)), others=[0, 1]), r"others: 2 further.*others=\[\[3, 9\]\]"),
        (bad(Guidance((2.0, 1.0)), others=3), "others = 3 must be a list of conditions"),
        (bad(Guidance((2.0, 1.0)), others=[7]), r"others\[0\]: labels 7 .. 7 must lie in"),
        (bad(Guidance((2.0, 1.0)), others=[None]), r"others\[0\] = None must be a label"),
        (bad(Guidance((2.0, 1.0)), others=[[0, 1, 2]]), r"others\[0\]: labels: \(3,\) labels for 2 ids"),
        (bad(None, negative=1), "negative: this sampler leads away from nothing"),
        (bad(Guidance(2.0, model=model()), negative=1), "leads away from a second model"),
        (bad(Guidance(2.0), negative=9), "negative: labels 9"),
        (
            lambda: Sampler(fs.score_model(gaussian(0.0, 1.0, (2,)))).run([0], negative=1),
            "negative: this model is unconditional",
        ),
    ],
)
def test_bad_calls_are_named(call, message):
    with pytest.raises(ValueError, match=message):
        call()
