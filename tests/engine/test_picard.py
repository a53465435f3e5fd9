"""Picard sweeps: the sequential result, sooner."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from networks import elementwise_model

from fastscore.engine.picard import Picard
from fastscore.errors import NonFiniteError
from fastscore.guidance.guides import DynamicThreshold
from fastscore.guidance.mixture import Guidance
from fastscore.model import analytic
from fastscore.model.conditions import Known
from fastscore.model.score import ScoreModel
from fastscore.ops.noise import NoiseKey
from fastscore.process.continuous import EDM, VP
from fastscore.process.grid import karras, uniform
from fastscore.process.parametrization import Parametrization
from fastscore.sampler import Sampler
from fastscore.solvers import (
    DDIM,
    DDPM,
    DEIS,
    PNDM,
    AnnealedLangevin,
    Churn,
    DPMpp2M,
    DPMSolver,
    Heun,
    Interval,
    Langevin,
    PredictorCorrector,
    RePaint,
    Restart,
    UniPC,
)

SHAPE = (1, 3, 5)
SOLVERS = {
    "ddim": DDIM(),
    "ddim-eta1": DDIM(1.0),
    "heun": Heun(),
    "churn": Churn(),
    "2m": DPMpp2M(),
    "unipc-3": UniPC(3),
    "deis-4": DEIS(4),
    "pndm": PNDM(),
    "restart": Restart((Interval(0.4, 1.6, 2, 3),), DPMSolver(2)),
    "pc-ald": PredictorCorrector(DDIM(1.0), AnnealedLangevin()),
}


def sampler(solver, window=None, tolerance=0.0, batch=8, classes=0, **kw):
    model = elementwise_model(SHAPE, classes=classes, null=classes or None)
    parallel = None if window is None else Picard(window, tolerance)
    return Sampler(model, solver=solver, grid=karras(16), batch=batch, parallel=parallel, **kw)


@pytest.mark.thirds
@pytest.mark.parametrize("name", SOLVERS)
def test_a_converged_window_is_the_sequential_run_to_the_bit(name):
    expected = sampler(SOLVERS[name]).run(range(11), 3)
    for window in (1, 6, 1000):
        s = sampler(SOLVERS[name], window)
        assert torch.equal(s.run(range(11), 3), expected)
        sweeps, nfe = s.engine.sweeps, s.plan.nfe
        assert (sweeps == nfe).all() if window == 1 else (sweeps < nfe).all()
        assert (s.engine.evaluations >= nfe).all()
        assert (s.engine.evaluations <= sweeps * min(window, nfe)).all()
    assert (sweeps <= 0.9 * nfe).all()


@pytest.mark.parametrize("kw", [{"backend": "reference"}, {"dtype": torch.float64}, {"clip": 0.7}, {"classes": 3}])
def test_settings_of_the_sampler_hold(kw):
    labels = "random" if kw.get("classes") else None
    expected = sampler(DPMpp2M(), **kw).run(range(5), labels=labels)
    assert torch.equal(sampler(DPMpp2M(), 5, **kw).run(range(5), labels=labels), expected)
    assert not torch.equal(sampler(DPMpp2M(), 5).run(range(5)), expected) or kw.get("backend")


def test_within_a_tolerance_a_sample_does_not_depend_on_its_company():
    whole = sampler(DDIM(1.0), 6, 0.1)
    x = whole.run(range(13), 5)
    assert len(set(whole.engine.sweeps.tolist())) > 1  # samples move on their own
    for batch in (1, 4, 13):
        s = sampler(DDIM(1.0), 6, 0.1, batch)
        assert torch.equal(s.run(range(13), 5), x)
        assert torch.equal(s.engine.sweeps, whole.engine.sweeps)
        assert torch.equal(s.engine.evaluations, whole.engine.evaluations)
    assert torch.equal(sampler(DDIM(1.0), 6, 0.1).run([12, 4], 5), x[[12, 4]])


def test_a_tolerance_bounds_the_error_and_saves_sweeps():
    exact = sampler(DDIM(1.0)).run(range(32), 1)
    errors, sweeps = [], []
    for tolerance in (1.0, 0.1, 0.01, 0.0):
        s = sampler(DDIM(1.0), 16, tolerance, batch=32)
        errors.append(float((s.run(range(32), 1) - exact).square().mean().sqrt()))
        sweeps.append(float(s.engine.sweeps.double().mean()))
    assert errors[0] > 3 * errors[1] > 9 * errors[2] > 0.0 == errors[3]
    assert sweeps[0] < sweeps[1] < sweeps[2] < sweeps[3] < 16


@pytest.mark.thirds
@pytest.mark.parametrize(("window", "tolerance"), [(5, 0.1), (20, 0.03), (7, 0.0)])
def test_against_the_algorithm_written_for_one_sample(window, tolerance):
    """ParaDiGMS over the plan's rows in NumPy: same samples, sweeps and evaluations."""
    target, schedule, d = analytic.gaussian(0.3, 0.4, (3,)), VP(), 3
    model = analytic.score_model(target)
    s = Sampler(
        model,
        schedule=schedule,
        solver=DDIM(1.0),
        grid=uniform(20),
        batch=4,
        dtype=torch.float64,
        parallel=Picard(window, tolerance),
    )
    ours = s.run(range(4), 2)
    rows, key = s.plan.rows, NoiseKey.of(2, range(4))
    n = s.plan.nfe
    for sample in range(4):
        z = [key.normal(k, d, torch.float64)[sample].numpy() for k in range(s.plan.draws)]

        def net(x, k):
            label = torch.tensor([rows[k].c_noise], dtype=torch.float64)
            return target(torch.from_numpy(rows[k].c_in * x)[None], label)[0].numpy()

        x = {0: rows[0].c * z[0]}  # x[k] enters row k + 1
        at, sweeps, evaluations = 0, 0, 0
        for k in range(1, window + 1):
            x[k] = x[0]
        while at < n:
            inside = range(at, min(at + window, n))
            F = {k: net(x[k], k + 1) for k in inside}
            sweeps, evaluations, old = sweeps + 1, evaluations + len(inside), dict(x)
            for k in inside:
                row = rows[k + 1]
                x[k + 1] = row.a * x[k] + row.b * (row.p * x[k] + row.q * F[k]) + row.c * z[row.draw]
            at += 1
            while at < inside[-1] + 1:
                t, before = rows[at + 1].t, rows[at].t
                r, sigma = schedule.alpha(before) / schedule.alpha(t), schedule.sigma(t)
                added = schedule.sigma(before) ** 2 - (r * sigma) ** 2
                std = max(math.sqrt(added) * sigma / schedule.sigma(before), rows[at].c)
                if math.sqrt(np.mean((x[at] - old[at]) ** 2)) > tolerance * std:
                    break
                at += 1
            last = max(inside) + 1
            for k in range(last + 1, at + window + 1):
                x[k] = x[last]
        np.testing.assert_allclose(ours[sample].numpy(), x[n], rtol=1e-10)
        assert int(s.engine.sweeps[sample]) == sweeps or tolerance == 0.0  # to the last bit only with the same bits
        assert int(s.engine.evaluations[sample]) == evaluations or tolerance == 0.0
        assert sweeps < n


def test_a_real_network_agrees_up_to_its_rounding():
    from fastscore.model.nets import build

    torch.manual_seed(0)
    net = build({"name": "MLP", "dim": 2, "width": 32})
    for p in net.parameters():
        torch.nn.init.normal_(p, std=0.2)
    model = ScoreModel(net, (2,), EDM(), Parametrization("edm", "log_sigma/4"))
    s = Sampler(model, grid=karras(12), batch=16, parallel=Picard(6))
    x = s.run(range(20))
    assert torch.allclose(x, Sampler(model, grid=karras(12), batch=16).run(range(20)), rtol=1e-4, atol=1e-4)
    assert s.warm_up()["graph"] == s.engine.mode == "picard"
    assert torch.equal(torch.cat([part for _, part in s.stream(range(20))]), x)


def test_what_does_not_go_together_is_refused():
    with pytest.raises(ValueError, match="window = 0"):
        Picard(0)
    with pytest.raises(ValueError, match=r"tolerance = -0\.1"):
        Picard(4, -0.1)
    s = sampler(DDIM(1.0), 4)
    with pytest.raises(ValueError, match="recorded noise and callbacks"):
        s.run([0], noise=torch.zeros(s.plan.draws, 1, 15))
    with pytest.raises(ValueError, match="recorded noise and callbacks"):
        s.run([0], callback=print)
    with pytest.raises(ValueError, match="AnnealedLangevin"):
        sampler(PredictorCorrector(DDIM(), Langevin(norm="batch")), 4).run([0])
    broken = sampler(DDIM(), 4)
    broken.model = replace(broken.model, net=lambda x, t, cond: x + math.nan)
    with pytest.raises(NonFiniteError, match="first id 7"):
        broken.run([7, 8])
    assert sampler(DDIM(), 4).run([]).shape == (0, *SHAPE)


@pytest.mark.thirds
@pytest.mark.parametrize("guided", [False, True])
@pytest.mark.parametrize("name", ["ddim-eta1", "2m", "heun", "repaint"])
def test_mixtures_guides_and_known_data_are_those_of_the_rows(name, guided):
    solver = {**SOLVERS, "repaint": RePaint(DDPM(), 2, 2)}[name]
    mask = torch.zeros(SHAPE, dtype=torch.bool)
    mask[:, 0] = True
    known = Known(torch.full(SHAPE, 0.25), mask)
    settings = {"guidance": Guidance(2.0, (0.1, 5.0)), "guide": DynamicThreshold(0.5, 0.2) if guided else None}
    for run in ({}, {"known": known}):
        rows, sweeps = (
            sampler(solver, window, classes=3, batch=2, **settings).run([4, 0, 9], 3, labels=[0, 1, 2], **run)
            for window in (None, 3)
        )
        assert torch.equal(rows, sweeps)
