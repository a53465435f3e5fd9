"""Networks of two times: flow maps and consistency trajectories, whose exact form on Gaussian data is known."""

from __future__ import annotations

import pickle
import warnings
from dataclasses import dataclass

import numpy as np
import pytest
import torch

import fastscore as fs
from fastscore import chains
from fastscore.adapters.wrapped import wrap
from fastscore.model.score import evaluate
from fastscore.process.continuous import Trig
from fastscore.process.schedule import lam, t_of_lam

MEAN, STD, N = 0.7, 0.4, 6
GRID = fs.Times((1.0, 0.8, 0.35, 0.0))
NOISE = torch.from_numpy(np.random.default_rng(5).standard_normal((4, N, 3)))


@dataclass(frozen=True)
class FlowMap:
    """x_r of the probability-flow ODE of N(MEAN, STD^2) data, as what a network of two times predicts."""

    schedule: fs.Flow | fs.VP | Trig
    prediction: str
    label: str = "t"

    def __call__(self, u: torch.Tensor, c: torch.Tensor, cond: torch.Tensor | None) -> torch.Tensor:
        assert c.shape == (len(u), 2)
        t, r = (v[:, None] / {"t": 1.0, "999t": 999.0}[self.label] for v in c.unbind(1))
        (alpha, sigma), (alpha_r, sigma_r) = (
            [torch.from_numpy(fn(v.numpy())) for fn in (self.schedule.alpha, self.schedule.sigma)] for v in (t, r)
        )
        mean = MEAN if cond is None else MEAN + cond[:, None].double()
        ends = torch.sqrt((alpha * STD) ** 2 + sigma**2), torch.sqrt((alpha_r * STD) ** 2 + sigma_r**2)
        x_r = alpha_r * mean + ends[1] / ends[0] * (u - alpha * mean)
        if self.prediction == "flow":
            return (u - x_r) / (t - r)
        # D and eps with x_t = alpha D + sigma eps and x_r = alpha_r D + sigma_r eps
        D = (sigma * x_r - sigma_r * u) / (alpha_r * sigma - alpha * sigma_r)
        return D if self.prediction == "x0" else (u - alpha * D) / sigma


def model(prediction: str = "flow", schedule: fs.Flow | fs.VP | Trig | None = None, label: str = "t", **fields):
    on = schedule or fs.Flow()
    return fs.ScoreModel(
        FlowMap(on, prediction, label), (3,), on, fs.Parametrization(prediction, label), two_times=True, **fields
    )


def draw(of: fs.ScoreModel, solver, grid=GRID, **settings) -> tuple[torch.Tensor, fs.Sampler]:
    sampler = fs.Sampler(of, solver=solver, grid=grid, batch=4, dtype=torch.float64, **settings)
    return sampler.run(range(N), noise=NOISE[: sampler.plan.draws]), sampler


def close(ours: torch.Tensor, theirs: torch.Tensor, rtol: float = 0.0, atol: float = 0.0) -> None:
    np.testing.assert_allclose(ours.numpy(), theirs.numpy(), rtol=rtol, atol=atol)


def ends(sampler: fs.Sampler) -> list[float]:
    return [row.c_end for row in sampler.plan.rows if row.evaluate]


@pytest.mark.parametrize("steps", [1, 2, 5])
@pytest.mark.parametrize("solver", [fs.DDIM(), fs.Euler(), fs.DPMSolver(1)], ids=("ddim", "euler", "dpm-1"))
def test_a_flow_map_is_exact_in_any_number_of_steps(steps, solver):
    levels = np.linspace(1.0, 0.0, steps + 1) ** 1.3
    x, sampler = draw(model(), solver, fs.Times(tuple(levels)))
    close(x, MEAN + STD * NOISE[0], atol=1e-14)
    assert ends(sampler) == levels[1:].tolist()  # to the bit, as the labels of t are
    assert sampler.plan.nfe == steps
    # to any r
    x, sampler = draw(model(), solver, fs.Times((1.0, 0.3)))
    close(x, 0.7 * MEAN + np.hypot(0.7 * STD, 0.3) * NOISE[0], atol=1e-14)


@pytest.mark.parametrize("prediction", ["x0", "eps"])
def test_other_predictions_lead_to_the_same_place_on_any_schedule(prediction):
    """From VP's T, where the flow map's exact answer starts from x_T of length 1, whatever the sampler's schedule."""
    t = np.array([1.0, 0.6, 0.2])
    for schedule in (fs.VP(), fs.EDM(sigma_max=200.0), fs.Flow()):
        knots = t_of_lam(schedule, lam(fs.VP(), t))
        x, sampler = draw(model(prediction, fs.VP(), "999t"), fs.DDIM(), fs.Times(tuple(knots)), schedule=schedule)
        (alpha, end), (sigma, low) = ((fn(knots[[0, -1]])) for fn in (schedule.alpha, schedule.sigma))
        start = NOISE[0] * float(sampler.plan.rows[0].c)
        scale = np.hypot(end * STD, low) / np.hypot(alpha * STD, sigma)
        close(x, end * MEAN + scale * (start - alpha * MEAN), rtol=1e-11, atol=1e-11)
        assert ends(sampler) == pytest.approx((999.0 * t[1:]).tolist(), rel=1e-9)


def test_noise_on_the_way_asks_for_the_level_below_it():
    """All noise new: from t to the data. A share of it, or any other: to the level that is left before the draw."""
    x, sampler = draw(model(), fs.Renoise())
    assert ends(sampler) == [0.0, 0.0, 0.0]
    D = MEAN + STD * NOISE[0]
    for k, s in enumerate((0.8, 0.35)):
        y = (1.0 - s) * D + s * NOISE[1 + k]
        D = MEAN + STD * (y - (1.0 - s) * MEAN) / np.hypot((1.0 - s) * STD, s)
    close(x, D, atol=1e-13)
    _, shared = draw(model(), fs.Renoise(0.3))
    rho = [0.7 * 0.8 / 0.2, 0.7 * 0.35 / 0.65]
    assert ends(shared) == pytest.approx([*(v / (1.0 + v) for v in rho), 0.0], rel=1e-13)
    _, tcd = draw(model(), fs.Renoise(0.3, "time"))
    assert ends(tcd) == pytest.approx([0.7 * 0.8, 0.7 * 0.35, 0.0], rel=1e-13)
    _, split = draw(model(), fs.AncestralSplit(fs.DDIM(), 1.0, "flow"))
    assert ends(split) == pytest.approx([0.8**2, 0.35**2 / 0.8, 0.0], rel=1e-13)


@pytest.mark.parametrize(
    "solver",
    [
        fs.Renoise(),
        fs.Renoise(0.4),
        fs.DDIM(0.7),
        fs.AncestralSplit(fs.DDIM(), rule="flow"),
        fs.Churn(fs.DDIM(), noise=1.0),
    ],
)
def test_the_spread_stays_whatever_noise_is_drawn(solver):
    """The marginals are exact in three steps, as no score network's are; exact moments of the linear rows."""
    sampler = fs.Sampler(model(), solver=solver, grid=fs.Times((0.95, 0.8, 0.35, 0.1)), dtype=torch.float64)
    var, mean = (0.05 * STD) ** 2 + 0.95**2, 0.05 * MEAN
    for row in sampler.plan.rows[1:]:
        slope, shift = row.a, 0.0
        if row.evaluate:
            one, zero = (
                row.p * v + row.q * float(model().net(torch.tensor([[v]], dtype=torch.float64), labels(row), None))
                for v in (1.0, 0.0)
            )
            slope, shift = row.a + row.b * (one - zero), row.b * zero
        mean, var = slope * mean + shift, slope**2 * var + row.c**2
    assert mean == pytest.approx(0.9 * MEAN, abs=1e-13)
    assert var == pytest.approx((0.9 * STD) ** 2 + 0.1**2, rel=1e-12)


def labels(row):
    return torch.tensor([[row.c_noise, row.c_end]], dtype=torch.float64)


def test_conditions_guidance_picard_and_copies():
    classes = model(classes=3, null=0)
    x, sampler = draw(classes, fs.DDIM(), guidance=fs.Guidance(2.0))
    assert [row.c_end2 for row in sampler.plan.rows[1:]] == ends(sampler)
    x = sampler.run(range(N), labels=[0, 1, 2, 0, 1, 2], noise=NOISE[:1])
    # The mean of class k is MEAN + k: guidance of the class against 0 doubles the shift; a map mixes as its u does.
    close(x, MEAN + 2.0 * torch.arange(3.0, dtype=torch.float64).repeat(2)[:, None] + STD * NOISE[0], atol=1e-12)
    assert pickle.loads(pickle.dumps(sampler)).run(range(N), labels=1).equal(sampler.run(range(N), labels=1))
    plain, _ = draw(model(), fs.Euler())
    swept = fs.Sampler(model(), solver=fs.Euler(), grid=GRID, batch=4, dtype=torch.float64, parallel=fs.Picard(2))
    assert swept.run(range(N), seed=3).equal(
        fs.Sampler(model(), solver=fs.Euler(), grid=GRID, batch=4, dtype=torch.float64).run(range(N), seed=3)
    )
    other, _ = draw(model(), fs.Euler(), fs.Times((1.0, 0.8, 0.36, 0.0)))
    assert not other.equal(plain)
    assert fs.Sampler(model(), solver=fs.Euler(), grid=GRID).record()["two_times"] is True


def test_a_second_model_has_labels_of_its_own():
    x, sampler = draw(model(), fs.DDIM(), guidance=fs.Guidance(2.0, model=model(label="999t")))
    close(x, MEAN + STD * NOISE[0], atol=1e-12)  # the same map twice
    assert [row.c_end2 for row in sampler.plan.rows[1:]] == [999.0 * r for r in ends(sampler)]


def test_one_step_is_no_reason_to_warn():
    """Of a score network it would be: nothing of the spread comes out."""
    few = fs.Times((1.0, 0.0))
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        fs.Sampler(model(scales=(STD, STD)), solver=fs.DDIM(), grid=few)
        fs.Sampler(model(), solver=fs.DDIM(), grid=fs.Times((1.0, 0.9, 0.0)))
    assert not said
    with pytest.warns(UserWarning, match="will not come out"):
        one = fs.ScoreModel(lambda u, c, cond: u, (3,), fs.Flow(), fs.Parametrization("flow"), scales=(STD, STD))
        fs.Sampler(one, solver=fs.DDIM(), grid=few)


def test_the_hash_of_a_plan_knows_the_ends():
    one = fs.ScoreModel(lambda u, c, cond: u, (3,), fs.Flow(), fs.Parametrization("flow"))
    hashes = {fs.Sampler(m, solver=fs.Euler(), grid=GRID).plan.hash for m in (one, model(), model(label="999t"))}
    assert len(hashes) == 3


def test_wrapped_by_name():
    def map_of(x, t, r):
        return FlowMap(fs.Flow(), "flow")(x, torch.stack([t, r], 1), None)

    wrapped = fs.ScoreModel(wrap(map_of, "x, t, r=r"), (3,), fs.Flow(), fs.Parametrization("flow"), two_times=True)
    assert draw(wrapped, fs.DDIM())[0].equal(draw(model(), fs.DDIM())[0])


REFUSED = {
    "history": (
        lambda: fs.Sampler(model(), solver="dpmpp-2m", steps=5),
        r"row 2 .*maps from t to the end of one step",
    ),
    "stages": (lambda: fs.Sampler(model(), solver="heun", grid=GRID), "row 1 .*a second stage"),
    "bent": (lambda: fs.Sampler(model(), solver=fs.Euler(), schedule=fs.VP(), steps=3), "a bent step"),
    "sde": (lambda: fs.Sampler(model(), solver="em", grid=fs.Times((0.9, 0.5, 0.0))), "a bent step"),
    "corrector": (
        lambda: fs.Sampler(model(), solver=fs.PredictorCorrector(fs.DDIM(), fs.Langevin()), grid=GRID),
        "a corrector or",
    ),
    "keep-eps": (lambda: fs.Sampler(model(), solver=fs.DDIM(keep_eps=True), grid=GRID), "row 1"),
    "adaptive": (lambda: fs.Sampler(model(), solver="dopri5"), r"two_times.*Dopri5 evaluates it for steps"),
    "flow": (lambda: fs.ProbabilityFlow(model()), "two_times.*single time"),
    "chains": (lambda: chains.level_score(model()), "two_times.*wants the score at one"),
    "guide": (
        lambda: fs.Sampler(model(), solver=fs.DDIM(), grid=GRID, guide=fs.StaticThreshold(1.0)),
        "guide: a network of two times",
    ),
    "schedule": (lambda: model("flow", fs.VP()), "VP they are not: use schedule=Flow"),
    "label": (
        lambda: fs.Sampler(
            fs.ScoreModel(
                lambda u, c, cond: u, (3,), fs.Flow(), fs.Parametrization("x0", "log_sigma/4"), two_times=True
            ),
            solver=fs.DDIM(),
            grid=fs.Times((0.9, 0.5, 0.0)),
        ),
        "label 'log_sigma/4' has no value at t = 0",
    ),
    "one label": (
        lambda: evaluate(model(), torch.zeros(2, 3), torch.ones(1), None),
        "maps between two times .*no step's end",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_say_where_a_step_ends_is_refused(case):
    make, message = REFUSED[case]
    with pytest.raises(ValueError, match=message):
        make()


def test_preparing_leaves_the_network_as_it_is_and_says_so():
    net = torch.nn.Linear(3, 3)
    pair = fs.ScoreModel(wrap(net, "x"), (3,), fs.Flow(), fs.Parametrization("flow"), two_times=True)
    said: list[str] = []
    assert fs.prepare(pair, 4, network="fp32", say=said.append) is pair
    assert "pairs of times" in said[0]
