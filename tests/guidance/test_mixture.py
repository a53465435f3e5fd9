"""Guidance folded into rows: exact on Gaussians, the same bits on every backend and in every company."""

from __future__ import annotations

import math
from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
import torch
from networks import elementwise_model

from fastscore import plan as plans
from fastscore.engine.capture import Graphed, Tape
from fastscore.engine.loop import Loop
from fastscore.engine.picard import Picard
from fastscore.engine.request import Request
from fastscore.execution import Execution
from fastscore.guidance.mixture import BoundPlan, Guidance
from fastscore.kernels.cpu import library
from fastscore.model.conditions import Known
from fastscore.model.score import ScoreModel
from fastscore.ops.backend import REFERENCE, Ops, operators
from fastscore.ops.noise import NoiseKey
from fastscore.process.continuous import EDM, VE, VP, Flow, SubVP, Trig
from fastscore.process.grid import karras, uniform
from fastscore.process.parametrization import Parametrization
from fastscore.sampler import Sampler
from fastscore.solvers import (
    DDIM,
    Ancestral,
    Dopri5,
    DPMpp2M,
    GottaGoFast,
    Heun,
    Langevin,
    PredictorCorrector,
    RePaint,
    ReverseDiffusion,
    StochasticHeun,
    UniPC,
)

CPU = torch.device("cpu")
MEANS, STDS = torch.tensor([-1.0, 0.5, 0.1], dtype=torch.float64), torch.tensor([0.4, 0.7, 1.1], dtype=torch.float64)
SOLVERS = {
    "2m": DPMpp2M(),
    "heun": Heun(),
    "ddim": DDIM(eta=1.0, keep_eps=True),
    "unipc": UniPC(),
    "sde-heun": StochasticHeun(),
    "pc": PredictorCorrector(ReverseDiffusion(), Langevin()),
    "repaint": RePaint(Ancestral(), jump=2, times=2),
}


def denoiser(x, alpha, sigma, k):
    """E[x_0 | x_t] of N(MEANS[k], STDS[k]^2) in every coordinate."""
    column = [-1] + [1] * (x.ndim - 1)
    mean, variance = MEANS.to(x)[k].reshape(column), STDS.to(x)[k].reshape(column) ** 2
    return mean + alpha * variance / (alpha**2 * variance + sigma**2) * (x - alpha * mean)


def two_classes(prediction: str = "x0", shape=(40,)) -> ScoreModel:
    """Gaussian classes 0 and 1, and class 2, the null class, as networks of a prediction on the Trig schedule."""

    def net(x, t, cond):
        t = t.to(x).reshape(-1, *[1] * (x.ndim - 1))
        alpha, sigma = torch.cos(t), torch.sin(t)
        D = denoiser(x, alpha, sigma, cond)
        return {"x0": D, "eps": (x - alpha * D) / sigma, "v": (alpha * x - D) / sigma}[prediction]

    return ScoreModel(net, shape, Trig(), Parametrization(prediction, "t"), classes=2, null=2)


@pytest.mark.thirds
@pytest.mark.parametrize("schedule", [VP(), SubVP(), VE(), EDM()], ids=lambda s: type(s).__name__)
@pytest.mark.parametrize("name", SOLVERS)
def test_the_guided_estimate_is_the_closed_form(name, schedule):
    model, w, interval = two_classes("v"), 2.5, (0.2, 6.0)
    kw = {"schedule": schedule, "solver": SOLVERS[name], "grid": karras(7), "dtype": torch.float64, "batch": 4}
    sampler = Sampler(model, guidance=Guidance(w, interval), **kw)
    labels, steps = torch.tensor([0, 1, 1, 0]), []
    sampler.run(range(4), labels=labels, callback=steps.append)
    guided = 0
    for before, step in pairwise(steps):
        if step.x0 is None:
            continue
        alpha, sigma = float(schedule.alpha(step.t)), float(schedule.sigma(step.t))
        own, null = (denoiser(before.x, alpha, sigma, k) for k in (labels, torch.tensor(2)))
        inside = interval[0] < sigma / alpha <= interval[1]
        guided += inside
        wanted = w * own + (1.0 - w) * null if inside else own
        size = before.x.abs().max() / alpha + wanted.abs().max()
        assert (step.x0 - wanted).abs().max() <= 1e-12 * w * float(size)
    evaluations = sum(step.x0 is not None for step in steps)
    assert 0 < guided < evaluations
    assert sampler.plan.nfe == evaluations + guided
    other = Sampler(model, **kw).run(range(4), labels=labels)
    assert not torch.allclose(steps[-1].x, other, atol=1e-3)


def test_every_row_uses_the_mixture():
    """A guided run is the run of a model whose network is the mixture."""
    model, w = two_classes("eps"), -1.5

    def mixed(x, t, cond):
        return w * model.net(x, t, cond) + (1.0 - w) * model.net(x, t, torch.full_like(cond, 2))

    for solver in SOLVERS.values():
        kw = {"schedule": VP(), "solver": solver, "grid": karras(6), "dtype": torch.float64, "batch": 3}
        x = Sampler(model, guidance=Guidance(w), **kw).run(range(3), labels=1)
        assert torch.allclose(x, Sampler(replace(model, net=mixed), **kw).run(range(3), labels=1), rtol=1e-9, atol=1e-9)


def test_autoguidance_may_have_another_schedule_and_prediction():
    model, second = two_classes("v"), two_classes("v")
    data = 0.9

    def edm(u, c_noise, cond):  # the second network as EDM would train it: u = c_in x, F = (D - c_skip x) / c_out
        sigma = torch.exp(4.0 * c_noise.double()).reshape(-1, 1)
        norm = (sigma**2 + data**2).sqrt()
        x = u * norm
        D = denoiser(x, 1.0, sigma, torch.tensor(2))
        return ((D - data**2 / norm**2 * x) / (sigma * data / norm)).to(u)

    worse = ScoreModel(edm, (40,), EDM(1e-4, 200.0), Parametrization("edm", "log_sigma/4", data))
    kw = {"schedule": VP(), "grid": karras(6), "dtype": torch.float64, "batch": 3}
    x = Sampler(model, guidance=Guidance(2.0, model=worse), **kw).run(range(3), labels=0)
    y = Sampler(second, guidance=Guidance(2.0), **kw).run(range(3), labels=0)
    assert torch.allclose(x, y, rtol=1e-8, atol=1e-8)


def plain(**kw) -> ScoreModel:
    kw = {"classes": 3, **kw}
    return elementwise_model((1, 6, 6), **{"null": kw["classes"] or None, **kw})


def known(n: int = 9) -> Known:
    y = NoiseKey.of(77, range(n)).normal(0, 36).reshape(n, 1, 6, 6)
    return Known(y, torch.arange(36).reshape(1, 6, 6) % 3 == 0)


def draw(name: str, ids=range(9), batch: int = 4, **kw) -> torch.Tensor:
    run = {"labels": torch.tensor([k % 3 for k in ids])}
    if kw.pop("inpaint", False):
        run["known"] = Known(known().y[list(ids)], known().mask)
    return Sampler(plain(), solver=SOLVERS[name], grid=karras(5), batch=batch, **kw).run(ids, seed=3, **run)


@pytest.mark.thirds
@pytest.mark.parametrize("inpaint", [False, True], ids=["whole", "inpaint"])
@pytest.mark.parametrize("name", SOLVERS)
def test_samples_see_no_company_and_backends_agree_to_the_bit(name, inpaint):
    kw = {"guidance": Guidance(1.7, (0.1, 20.0)), "inpaint": inpaint}
    x = draw(name, **kw)
    assert x.isfinite().all()
    assert torch.equal(draw(name, batch=9, **kw), x)
    order = [7, 0, 4]
    assert torch.equal(draw(name, order, **kw), x[order])
    if library.library_file():
        assert torch.equal(draw(name, backend="reference", **kw), draw(name, backend="cpp", **kw))


def test_weight_one_is_the_unguided_run_to_the_bit():
    for name in SOLVERS:
        assert torch.equal(draw(name, guidance=Guidance(1.0)), draw(name))
        assert torch.equal(draw(name, guidance=Guidance(5.0, (1e3, 1e4))), draw(name))  # no row lies there
    assert not torch.equal(draw("2m", guidance=Guidance(1.001)), draw("2m"))


def loop_of(name: str, ops: Ops = REFERENCE, inpaint: bool = True, guidance: Guidance | None = None) -> Loop:
    model, guidance = plain(), guidance or Guidance(1.7, (0.1, 20.0))
    plan = plans.make_plan(SOLVERS[name], model.schedule, karras(5)(model.schedule))
    loop = Loop(BoundPlan(plan, model, guidance), model, Execution("cpu", 4), ops, known=inpaint)
    load(loop, 5)
    return loop


def load(loop: Loop, seed: int) -> None:
    data = known(3) if loop.known is not None else None
    request = Request.of(loop.model, CPU, [4, 0, 2**40], seed, labels=[0, 1, 2], known=data)
    loop.load(request.padded(4))


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["loop", pytest.param("step", marks=pytest.mark.nightly)])
@pytest.mark.parametrize("name", SOLVERS)
def test_guided_and_masked_rows_are_captured(name, mode):
    loop = loop_of(name)
    graphed = Graphed(loop, Tape(), mode)
    for seed in (5, 6):
        load(loop, seed)
        for buffer in (loop.x, loop.u, loop.scratch):
            buffer.fill_(math.nan)
        replayed = graphed.run()
        assert torch.equal(replayed, loop.run())
        assert replayed.isfinite().all()


def test_operators_take_the_second_output_and_the_known_part():
    assert torch.equal(loop_of("pc", operators("triton")).run(), loop_of("pc").run())
    loop = loop_of("pc", operators("triton"))
    x, table, idx = torch.ones(2, 36), loop.table, torch.zeros(2, dtype=torch.int64)
    seed, ids, hist, scratch = torch.tensor([3]), torch.tensor([5, 6]), torch.zeros(1, 2, 36), torch.zeros(2, 16)
    part = (torch.zeros(2, 36), torch.zeros(2, 36, dtype=torch.bool), loop.known_table)
    ops = torch.ops.fastscore
    for noisy in (True, False):
        torch.library.opcheck(
            ops.update.default, (x.clone(), x, hist.clone(), table, idx, seed, ids, x.clone(), x + 1, *part, noisy)
        )
    torch.library.opcheck(ops.langevin.default, (x, x, table, idx, seed, ids, scratch, "sample", torch.ones(2), x + 1))


def test_recorded_noise_covers_the_known_part():
    sampler = Sampler(plain(), solver=SOLVERS["ddim"], grid=karras(4), batch=4)
    draws = sampler.plan.draws + len(sampler.plan.rows)
    key = NoiseKey.of(8, range(5))
    z = torch.stack([key.normal(k, 36) for k in range(draws)])
    x = sampler.run(range(5), 8, known=known(5))
    assert torch.equal(sampler.run(range(5), noise=z, known=known(5)), x)
    with pytest.raises(ValueError, match=f"this plan needs {draws}"):
        sampler.run(range(5), noise=z[:-1], known=known(5))


def test_conditioning_tensors_and_their_null():
    m = plain(classes=0, cond_shape=(2,), null=torch.zeros(2))
    cond = torch.tensor([[float(k), -k] for k in range(6)])
    kw = {"grid": karras(4), "batch": 4}
    x = Sampler(m, **kw).run(range(6), cond=cond)
    assert torch.equal(Sampler(m, **kw).run([3, 1], cond=cond[[3, 1]]), x[[3, 1]])
    assert torch.equal(Sampler(m, **kw).run([3], cond=cond[3]), x[3:4])
    assert not torch.equal(x[1], x[2])
    assert torch.equal(Sampler(m, **kw).run([2]), Sampler(m, **kw).run([2], cond=torch.zeros(2)))
    own = {"solver": Dopri5(1e-3, 1e-3), "batch": 4}
    assert torch.equal(
        Sampler(m, **own).run([3, 1], cond=cond[[3, 1]]), Sampler(m, **own).run(range(6), cond=cond)[[3, 1]]
    )
    guided = Sampler(m, guidance=Guidance(2.0, null=cond[5]), **kw).run(range(6), cond=cond)
    assert torch.allclose(guided[5], x[5], atol=1e-5)  # guided away from its own condition: nowhere
    assert not torch.allclose(guided[1], x[1], atol=1e-2)
    zeros = Sampler(m, guidance=Guidance(2.0), **kw).run([0], cond=cond[0])
    assert torch.equal(zeros, Sampler(m, guidance=Guidance(2.0, null=torch.zeros(2)), **kw).run([0], cond=cond[0]))


def test_a_network_that_works_in_place_is_guided_too():
    def in_place(u, t, cond):
        return u.mul_(0.5).add_(cond.reshape(-1, 1, 1, 1))

    def clean(u, t, cond):
        return 0.5 * u + cond.reshape(-1, 1, 1, 1)

    a, b = (Sampler(replace(plain(), net=n), grid=karras(4), guidance=Guidance(3.0)) for n in (in_place, clean))
    assert torch.equal(a.run(range(3), labels=1), b.run(range(3), labels=1))


def test_starts():
    """Data at an intermediate time, a state as it is, and the prior; later draws stay the same."""
    model, schedule = plain(), VP()
    x0, grid = known(3).y, uniform(5, start=0.4, clean=True)
    kw = {"schedule": schedule, "grid": grid, "batch": 4, "solver": DDIM(eta=1.0)}
    steps = []
    a = Sampler(model, start="data", **kw).run(range(3), init=x0, callback=steps.append)
    key = NoiseKey.of(0, range(3))
    alpha, sigma = np.float32(schedule.alpha(0.4)), np.float32(schedule.sigma(0.4))
    x_t = alpha * x0 + sigma * key.normal(0, 36).reshape(x0.shape)
    assert torch.equal(steps[0].x, x_t)
    b = Sampler(model, start="state", **kw)
    assert torch.equal(b.run(range(3), init=x_t), a)
    assert b.plan.draws == Sampler(model, **kw).plan.draws
    near = Sampler(model, start="data", **{**kw, "grid": uniform(3, start=0.002, clean=True)}).run(range(3), init=x0)
    assert (near - x0).abs().max() < 0.2


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: Guidance(math.nan), "weight = nan must be a number"),
        (lambda: Guidance(2.0, (3.0, 3.0)), "low < high"),
        (lambda: Sampler(plain(classes=0), guidance=Guidance(2.0)), "no null condition"),
        (lambda: Sampler(plain(), guidance=Guidance(2.0, null=torch.zeros(2))), "null has shape"),
        (lambda: Sampler(plain(), guidance=Guidance(2.0, model=two_classes())), "samples of shape"),
        (lambda: Sampler(plain(), guidance=Guidance(2.0, model=plain(classes=5))), "first one's condition"),
        (lambda: plain(cond_shape=(2,)), "not both"),
        (lambda: Sampler(plain(), start="noise"), "start = 'noise'"),
        (lambda: Sampler(plain(), start="data").run([0]), "init = None"),
        (lambda: Sampler(plain()).run([0], init=torch.zeros(1, 6, 6)), "does not go with start = 'prior'"),
        (lambda: Sampler(plain(), start="data").run([0], init=torch.zeros(6, 6)), r"init is \(6, 6\)"),
        (lambda: Sampler(plain()).run([0], cond=torch.zeros(2)), "no conditioning tensor"),
        (lambda: Sampler(plain(classes=0, cond_shape=(2,))).run([0], labels=1), "no class"),
        (lambda: Sampler(plain(classes=0, cond_shape=(2,))).run([0], cond=torch.zeros(3)), r"cond is \(3,\)"),
        (lambda: Sampler(plain()).run([0], known=Known(torch.zeros(1, 6, 6), torch.zeros(1, 6, 6))), "must be bool"),
        (
            lambda: Sampler(plain()).run([0], known=Known(torch.zeros(1, 6, 6), torch.zeros(5, 5, dtype=torch.bool))),
            "broadcast",
        ),
        (
            lambda: Sampler(plain()).run(
                [0], known=Known(torch.full((1, 6, 6), math.nan), torch.ones(1, 6, 6, dtype=torch.bool))
            ),
            "not finite",
        ),
        (lambda: Sampler(plain()).run([0], y=torch.zeros(1)), "has none"),
        (lambda: Sampler(plain(), solver=GottaGoFast()).run([0], known=known(1)), "integrates the SDE"),
        (lambda: Sampler(plain(), solver=Dopri5(), parallel=Picard(4)), "which an adaptive solver has not"),
        (
            lambda: Sampler(two_classes("eps"), schedule=Flow(), grid=uniform(5, start=1.0), guide=lambda *a: a[1]),
            "start the grid later",
        ),
    ],
)
def test_bad_calls_are_named(call, message):
    with pytest.raises(ValueError, match=message):
        call()
