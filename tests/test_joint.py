"""Coupled parts: one network, a schedule a part, the joint law of both."""

from __future__ import annotations

import math
from itertools import pairwise

import numpy as np
import pytest
import torch

import fastscore as fs
from fastscore.errors import NonFiniteError
from fastscore.joint import JointSampler
from fastscore.model.joint import JointModel, Part
from fastscore.model.score import ScoreModel
from fastscore.ops.noise import NoiseKey
from fastscore.process.continuous import EDM, VE, VP, Flow
from fastscore.process.grid import karras, uniform
from fastscore.process.parametrization import Parametrization
from fastscore.sampler import Sampler
from fastscore.solvers import DDIM, AnnealedLangevin, DPMpp2M, DPMSolver, EulerMaruyama, Heun, PredictorCorrector

# Three elements of "image" [1, 3], two of "vector" [2]; their cross-covariance is not small.
ROOT = np.linalg.cholesky(0.5 * np.eye(5) + 0.5) @ np.diag([1.0, 0.7, 0.5, 0.8, 0.6])
COV = ROOT @ ROOT.T
MEAN = np.array([0.3, -0.2, 0.5, -0.4, 0.1])
BLOCK = {"image": slice(0, 3), "vector": slice(3, 5)}
SHAPES = {"image": (1, 3), "vector": (2,)}
PARAMETERS = {"image": Parametrization("score", "t"), "vector": Parametrization("x0", "t")}
SCHEDULES = {"image": VP(), "vector": VE()}


def levels(t, schedules=SCHEDULES):
    each = [(float(s.alpha(t)), float(s.sigma(t)), len(range(5)[BLOCK[k]])) for k, s in schedules.items()]
    return np.concatenate([[a] * n for a, _, n in each]), np.concatenate([[s] * n for _, s, n in each])


def joint_score(x, t, schedules=SCHEDULES):
    alpha, sigma = levels(t, schedules)
    total = alpha[:, None] * COV * alpha + np.diag(sigma**2)
    return -np.linalg.solve(total, (x - alpha * MEAN).T).T


def exact(u, label):
    """The exact score of the image and the exact denoiser of the vector, each given both."""
    assert len({float(v) for k in label for v in label[k]}) == 1  # all parts at one time
    t = float(label["image"][0])
    x = torch.cat([u[k].flatten(1) for k in BLOCK], 1).double().numpy()
    s, (alpha, sigma) = joint_score(x, t), levels(t)
    values = {"image": s, "vector": (x + sigma**2 * s) / alpha}
    return {k: torch.from_numpy(values[k][:, BLOCK[k]]).to(u[k]).reshape(u[k].shape) for k in BLOCK}


def model(net=exact):
    return JointModel(net, {k: Part(SHAPES[k], SCHEDULES[k], PARAMETERS[k]) for k in BLOCK})


def packed(x):
    return torch.cat([x[k].flatten(1) for k in BLOCK], 1)


def test_against_a_loop_over_the_packed_state():
    """Euler-Maruyama on the five numbers at once, every element with its own f, g and noise."""
    n, steps, end = 6, 25, 1e-3
    grid = uniform(steps, end=end)
    ours = JointSampler(model(), solver=EulerMaruyama(), grid=grid, batch=4, dtype=torch.float64).run(range(n), 7)
    key, knots = NoiseKey.of(7, range(n)), np.linspace(1.0, end, steps + 1)

    def z(draw):  # draw d of part k is draw 2 d + k
        return torch.cat([key.normal(2 * draw + k, d, torch.float64) for k, d in enumerate((3, 2))], 1).numpy()

    x = np.array([SCHEDULES[k].prior_std for k in BLOCK for _ in range(len(range(5)[BLOCK[k]]))]) * z(0)
    for step, (t, s) in enumerate(pairwise(knots)):
        h, beta = t - s, 0.1 + 19.9 * t
        f = np.array([-0.5 * beta] * 3 + [0.0] * 2)
        g2 = np.array([beta] * 3 + [2e-4 * math.log(5000.0) * 5000.0 ** (2 * t)] * 2)
        x = x - h * (f * x - g2 * joint_score(x, t)) + np.sqrt(g2 * h) * z(step + 1)
    np.testing.assert_allclose(packed(ours).numpy(), x, rtol=1e-8, atol=1e-10)


@pytest.mark.slow
def test_the_coupling_is_sampled():
    """The covariance across parts comes out, inside 5 standard errors and the solver's bias."""
    n = 4000
    x = packed(JointSampler(model(), solver=Heun(), grid=karras(40), batch=2000).run(range(n))).double().numpy()
    error = np.cov(x.T) - COV
    deviation = np.sqrt((COV**2 + np.outer(np.diag(COV), np.diag(COV))) / n)
    assert (np.abs(error) < 5.0 * deviation + 0.01).all()
    assert (np.abs(x.mean(0) - MEAN) < 5.0 * np.sqrt(np.diag(COV) / n) + 0.01).all()
    assert (COV[:3, 3:] > 10 * deviation[:3, 3:]).all()  # so the test would see a part that is alone


def test_one_part_is_the_plain_sampler():
    def net(x, t, cond=None):
        return x / (1.0 + x * x) + 0.01 * t[:, None, None]

    for solver in (DPMpp2M(), DDIM(1.0), PredictorCorrector(DDIM(1.0), AnnealedLangevin())):
        alone = Sampler(ScoreModel(net, (2, 3), EDM()), solver=solver, grid=karras(6), batch=4)
        part = JointModel(lambda u, t: {"x": net(u["x"], t["x"])}, {"x": Part((2, 3), EDM())})
        s = JointSampler(part, solver=solver, grid=karras(6), batch=4)
        assert torch.equal(s.run(range(9), 3)["x"], alone.run(range(9), 3))


def test_parts_share_no_noise_and_samples_no_batch():
    def net(u, t):
        return {k: v / (1.0 + v * v) for k, v in u.items()}

    parts = {k: Part((4,), VP()) for k in ("a", "b", "c")}

    def draw(batch, ids, backend="auto"):
        s = JointSampler(
            JointModel(net, parts), solver=DDIM(1.0), grid=uniform(8, clean=True), batch=batch, backend=backend
        )
        assert len({row.draw for p in s.plans.values() for row in p.rows if row.noisy}) == 3 * 8
        return s.run(ids, 2)

    whole = draw(4, range(10))
    assert not (whole["a"] == whole["b"]).any()
    assert not (whole["b"] == whole["c"]).any()
    for batch, ids, backend in ((1, range(10), "auto"), (7, range(10), "reference"), (4, [6, 3], "auto")):
        again = draw(batch, ids, backend)
        assert all(torch.equal(again[k], whole[k][list(ids)]) for k in parts)
    assert draw(4, [])["c"].shape == (0, 4)


def test_a_network_may_return_what_it_was_given():
    s = JointSampler(model(lambda u, t: u), solver=Heun(), grid=uniform(4), batch=2)
    swapped = JointSampler(
        model(lambda u, t: {k: v.clone() for k, v in u.items()}), solver=Heun(), grid=uniform(4), batch=2
    )
    assert torch.equal(packed(s.run(range(2))), packed(swapped.run(range(2))))


def test_what_does_not_fit_is_named():
    with pytest.raises(ValueError, match="'image' and 'vector' at different times"):
        JointSampler(model(), solver=DPMSolver(2))
    with pytest.raises(ValueError, match="part 'b': the shared times 80"):
        JointSampler(JointModel(exact, {"a": Part((1,), EDM()), "b": Part((1,), VP())}))
    with pytest.raises(ValueError, match="must be a dict of Part"):
        JointSampler(JointModel(exact, {}))
    with pytest.raises(ValueError, match="float16"):
        JointSampler(model(), dtype=torch.float16)
    with pytest.raises(ValueError, match="float64 needs"):
        JointSampler(model(), dtype=torch.float64, backend="cpp")
    s = JointSampler(model(lambda u, t: {"image": u["image"]}), solver=Heun(), grid=uniform(4))
    with pytest.raises(ValueError, match="the network returned"):
        s.run([0])
    s = JointSampler(model(lambda u, t: {k: v + math.nan for k, v in u.items()}), solver=Heun(), grid=uniform(4))
    with pytest.raises(NonFiniteError, match="image: 1 of 1 samples are NaN or Inf, first id 9"):
        s.run([9])
    # A clean end is each part's own: 0 for Flow, minus infinity for VE.
    parts = {"a": Part((1,), Flow()), "b": Part((1,), VE())}
    s = JointSampler(JointModel(lambda u, t: u, parts), grid=uniform(4, start=0.9, clean=True))
    assert [p.rows[-1].s for p in s.plans.values()] == [0.0, -math.inf]


def _net(u, c_noise, cond, strength=1.0):
    shift = 0.3 * cond.to(u).reshape(len(u), -1)[:, :1].reshape(-1, *[1] * (u.ndim - 1))
    return strength * u / (1.0 + u * u) + 0.1 * c_noise.reshape(-1, *[1] * (u.ndim - 1)) + shift


def _alone(strength=1.0, **condition):
    """A score model, and the joint model that has it for its only part."""
    parametrization = fs.Parametrization("v")

    def net(u, c_noise, cond):
        return _net(u, c_noise, cond, strength)

    def joint(u, c_noise, cond):
        return {"a": net(u["a"], c_noise["a"], cond)}

    part = {"a": fs.Part((2, 3), fs.VP(), parametrization)}
    return fs.ScoreModel(net, (2, 3), fs.VP(), parametrization, **condition), fs.JointModel(joint, part, **condition)


@pytest.mark.parametrize("solver", [fs.DDIM(0.5), fs.DPMpp2M()], ids=lambda s: type(s).__name__)
@pytest.mark.parametrize("feature", ["labels", "cond", "null", "weight", "interval", "model", "clip", "data", "state"])
def test_one_part_is_the_sampler_of_that_part_to_the_bit(solver, feature):
    tensor = feature in ("cond", "null")
    (one, joint), (worse, joint_worse) = (
        _alone(s, **({"cond_shape": (2,), "null": torch.zeros(2)} if tensor else {"classes": 3, "null": 3}))
        for s in (1.0, 0.5)
    )
    run = {"cond": torch.tensor([1.0, 2.0])} if tensor else {"labels": [0, 2, 1]}
    guidance = {
        "null": fs.Guidance(2.0, null=torch.tensor([-1.0, 0.0])),
        "weight": fs.Guidance(2.0),
        "interval": fs.Guidance(2.0, (0.1, 5.0)),
        "model": fs.Guidance(2.0, model=worse),
    }.get(feature)
    joint_guidance = fs.Guidance(2.0, model=joint_worse) if feature == "model" else guidance
    settings = {"solver": solver, "grid": fs.uniform(5), "batch": 2, "clip": 0.3 if feature == "clip" else None}
    if feature in ("data", "state"):
        settings["start"], init = feature, 0.4 * torch.ones(2, 3)
        run["init"] = init
    expected = fs.Sampler(one, guidance=guidance, **settings).run([4, 0, 9], 3, **run)
    run |= {"init": {"a": run["init"]}} if "init" in run else {}
    result = fs.JointSampler(joint, guidance=joint_guidance, **settings).run([4, 0, 9], 3, **run)["a"]
    assert torch.equal(result, expected)
