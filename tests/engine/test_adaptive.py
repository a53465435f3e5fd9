"""Adaptive solvers: error against tolerance, independence of the lanes around, what refilling them saves."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from gated import one_in
from networks import elementwise, elementwise_model

from fastscore.engine.adaptive.brownian import UNITS, Path
from fastscore.engine.adaptive.levels import NoiseLevels
from fastscore.errors import NonFiniteError, StepSizeError
from fastscore.kernels import abi
from fastscore.model import analytic
from fastscore.model.score import ScoreModel
from fastscore.ops.backend import REFERENCE, resolve
from fastscore.ops.noise import NoiseKey
from fastscore.plan.passes import fold
from fastscore.plan.rows import Plan, Row
from fastscore.process.continuous import EDM, VE, VP, Flow, SubVP, Trig
from fastscore.process.discrete import discrete_vp
from fastscore.process.grid import Span, karras
from fastscore.process.parametrization import Parametrization
from fastscore.sampler import Sampler
from fastscore.solvers import BogackiShampine, Dopri5, DPMAdaptive, DPMpp2M, GottaGoFast
from fastscore.solvers.adaptive import Control
from fastscore.solvers.adaptive_steps import method_of
from fastscore.testing import no_host_sync

SHAPE = (1, 6, 6)
SLOW = pytest.mark.slow
SOLVERS = {
    "dopri5": Dopri5(1e-3, 1e-3),
    "bs32": BogackiShampine(1e-2, 1e-2),
    "dpm12": DPMAdaptive(2),
    "dpm23": DPMAdaptive(3, control=Control(p=0.2, d=0.1)),
    "ggf": GottaGoFast(0.2, 0.2),
}


def model(classes: int = 0) -> ScoreModel:
    return elementwise_model(SHAPE, classes=classes, null=classes or None)


# --- one sample and the others -----------------------------------------------------------------


@pytest.mark.parametrize("name", ["dopri5", *(pytest.param(n, marks=SLOW) for n in ("bs32", "dpm12", "dpm23", "ggf"))])
def test_a_sample_does_not_depend_on_the_lanes_around_it(name):
    def run(lanes, ids=range(9), dtype=torch.float32):
        return Sampler(model(), solver=SOLVERS[name], batch=lanes, dtype=dtype).run(ids, seed=5)

    whole = run(64)
    assert whole.isfinite().all()
    assert whole.std() > 0.01
    assert torch.equal(run(1, range(3)), whole[:3])
    assert torch.equal(run(4), whole)
    assert torch.equal(run(4, [8, 2, 7]), whole[[8, 2, 7]])
    assert not torch.equal(run(4, [8, 2, 7], torch.float64).float(), whole[[8, 2, 7]])


def test_labels_stay_with_their_samples():
    s = Sampler(model(4), solver=Dopri5(1e-3, 1e-3), batch=5)
    whole = s.run(range(30), labels="random")
    labels = s.request(range(30), 0, labels="random").cond
    for k in (0, 7, 29):
        assert torch.equal(s.run([k], labels=int(labels[k]))[0], whole[k])


@pytest.mark.slow
def test_a_batch_norm_couples_a_micro_batch_and_no_more():
    solver = replace(SOLVERS["dpm12"], norm="batch")

    def run(ids, lanes=4):
        s = Sampler(model(), solver=solver, batch=lanes)
        return s.run(ids), s.cost

    (whole, cost), (part, _) = run(range(10)), run(range(4, 8))
    assert torch.equal(part, whole[4:8])  # the second of three
    assert all(len(set(nfe.tolist())) == 1 for nfe in cost.nfe.split(4))
    assert torch.equal(run(range(3), 3)[0], run(range(3), 16)[0])  # empty lanes do not count
    assert not torch.equal(run(range(3))[0], run(range(4))[0][:3])


def test_stream_yields_every_sample_once():
    s = Sampler(model(), solver=BogackiShampine(), batch=4)
    assert len(s.cost.nfe) == 0  # before any run
    whole, seen = s.run(range(11), seed=2), []
    for ids, x in s.stream(range(11), seed=2):
        seen += ids.tolist()
        assert torch.equal(x, whole[ids])
    assert sorted(seen) == list(range(11))
    assert s.run([]).shape == (0, *SHAPE)
    assert s.cost.utilisation == 1.0


# --- what it costs -----------------------------------------------------------------------------


def uneven() -> ScoreModel:
    """A mixture of a broad component, whose samples need few steps, and narrow ones that need many."""
    stds = torch.tensor([0.8, 0.01, 0.02], dtype=torch.float64)
    means = torch.tensor([[0.0, 0.0], [2.0, 0.0], [-2.0, 1.0]], dtype=torch.float64)
    return analytic.score_model(analytic.GaussianMixture(torch.tensor([0.6, 0.2, 0.2]).double(), means, stds))


@SLOW
def test_refilled_lanes_save_a_quarter_of_the_evaluations():
    s = Sampler(uneven(), schedule=VP(), solver=Dopri5(), batch=32, dtype=torch.float64)
    s.run(range(320))
    cost = s.cost
    assert cost.ticks <= 0.75 * cost.without_refill
    assert cost.utilisation > 0.85
    print(cost, cost.summary())
    # The claim of what it would cost otherwise, run by run.
    apart = 0
    for k in range(0, 64, 32):
        s.run(range(k, k + 32))
        assert torch.equal(s.cost.nfe, cost.nfe[k : k + 32])
        apart += s.cost.ticks
    longest = sum(int(part.max()) for part in cost.nfe[:64].split(32))
    assert longest <= apart < longest + 2 * 4  # the host looks every fourth tick


def test_cost_counts_calls_of_the_network():
    calls = []

    def net(x, t, cond):
        calls.append(len(x))
        return elementwise(x, t, cond)

    s = Sampler(replace(model(), net=net), solver=Dopri5(1e-4, 1e-4), batch=3)
    s.run(range(7))
    assert calls == [3] * s.cost.ticks
    # 6 evaluations a step and one more; the last is also the denoised end's.
    assert torch.equal(s.cost.nfe, 6 * s.cost.steps + 1)
    s = Sampler(model(), solver=DPMAdaptive(3), batch=3)
    s.run(range(7))
    assert torch.equal(s.cost.nfe, 3 * s.cost.steps - s.cost.rejected + 1)


@pytest.mark.parametrize("name", ["dopri5", "dpm23", "ggf"])
def test_the_host_waits_for_nothing_in_a_tick(name):
    s = Sampler(model(), solver=SOLVERS[name], batch=3)
    s.run(range(3))
    if s.engine.lanes.path is not None:
        s.engine.lanes.path.looks = False  # as on a GPU, and wherever a tick is recorded
    with no_host_sync():
        s.engine.lanes.tick()


# --- error against tolerance -------------------------------------------------------------------

MIXTURE = analytic.score_model(analytic.mixture())


@pytest.mark.parametrize(
    "schedule", one_in(2, [VP(), SubVP(), VE(), EDM(), discrete_vp(), Flow()]), ids=lambda s: type(s).__name__
)
def test_the_error_is_within_three_tolerances(schedule):
    def run(solver):
        return Sampler(MIXTURE, schedule=schedule, solver=solver, batch=100, dtype=torch.float64).run(range(100))

    exact = run(Dopri5(1e-9, 1e-9))
    for solver in (Dopri5(1e-5, 1e-5), BogackiShampine(1e-3, 1e-3), DPMAdaptive(2, 1e-3, 1e-3), DPMAdaptive(3)):
        error = (run(solver) - exact).abs() / (solver.atol + solver.rtol * exact.abs())
        rms = error.square().mean(1).sqrt()
        print(f"{solver}: median {rms.median():.2f}, 90 % within {rms.quantile(0.9):.2f} tolerances")
        assert float(rms.median()) < 1.0, solver
        # The rest pass between two components, where the flow itself tears small differences apart.
        assert float(rms.quantile(0.9)) < 3.0, solver


@pytest.mark.slow
def test_every_error_is_within_three_tolerances_where_the_flow_keeps_distances():
    target = analytic.score_model(analytic.gaussian(0.3, 0.4, (12,)))

    def run(solver):
        return Sampler(target, schedule=VE(), solver=solver, batch=50, dtype=torch.float64).run(range(50))

    exact = run(Dopri5(1e-10, 1e-10))
    for solver in (Dopri5(1e-5, 1e-5), BogackiShampine(), DPMAdaptive(2), DPMAdaptive(3), DPMAdaptive(3, 1e-4, 1e-4)):
        error = (run(solver) - exact).abs() / (solver.atol + solver.rtol * exact.abs())
        assert float(error.square().mean(1).sqrt().max()) < 3.0, solver


def taken(solver: object, lam: float, h: float, f: object, y: np.ndarray, dW: np.ndarray) -> tuple[np.ndarray, ...]:
    """One step by the engine's weights with evaluations f(x, lam): result and error."""
    method = method_of(solver, torch.device("cpu"))
    tau, step = (torch.tensor([v], dtype=torch.float64) for v in (lam, h))

    def combined(weights: torch.Tensor) -> np.ndarray:
        parts = [y, *k] + [np.zeros_like(y)] * (method.width - 1 - len(k))
        if isinstance(solver, GottaGoFast):
            parts[-1] = dW
        return sum(w * part for w, part in zip(weights[0].tolist(), parts, strict=True))

    k = []
    for stage in range(method.stages):
        place, weights = method.point(torch.tensor([stage]), tau, step)
        k.append(f(combined(weights), lam + float(place) * h))
    return tuple(combined(weights) for weights in method.finish(tau, step))


def circle(lam: float) -> tuple[float, float]:
    return 1.0 / math.sqrt(1.0 + math.exp(-2.0 * lam)), 1.0 / math.sqrt(1.0 + math.exp(2.0 * lam))


RNG = np.random.default_rng(0)
Y, DW = RNG.standard_normal(5), 0.3 * RNG.standard_normal(5)


def rate(x: np.ndarray, lam: float) -> np.ndarray:
    return np.sin(x) + 0.2 * lam


@pytest.mark.parametrize(("lam", "h"), [(-1.3, 0.4), (0.7, 0.9)])
def test_gotta_go_fast_steps_as_its_paper_says(lam, h):
    g, g_end = (math.sqrt(2.0) * circle(v)[1] for v in (lam, lam + h))
    k1 = h * rate(Y, lam) + g * DW
    k2 = h * rate(Y + k1, lam + h) + g_end * DW
    result, error = taken(GottaGoFast(), lam, h, rate, Y, DW)
    assert result == pytest.approx(Y + 0.5 * (k1 + k2), rel=1e-13)
    assert error == pytest.approx(0.5 * (k2 - k1), rel=1e-12)


@pytest.mark.parametrize(("lam", "h"), [(-1.3, 0.4), (0.7, 0.9), (1.0, -0.5)])
def test_dpm_solver_12_steps_as_its_paper_says(lam, h):
    def to(r: float) -> tuple[float, float]:
        (a, _), (a_r, s_r) = circle(lam), circle(lam + r * h)
        return a_r / a, s_r * math.expm1(r * h)

    eps = rate(Y, lam)
    low = to(1.0)[0] * Y - to(1.0)[1] * eps
    middle = to(0.5)[0] * Y - to(0.5)[1] * eps
    high = to(1.0)[0] * Y - to(1.0)[1] * rate(middle, lam + 0.5 * h)
    result, error = taken(DPMAdaptive(2), lam, h, rate, Y, DW)
    assert result == pytest.approx(high, rel=1e-13)
    assert error == pytest.approx(high - low, rel=1e-11)


# --- coefficients ------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("prediction", ["eps", "x0", "edm"])
@pytest.mark.parametrize("quantity", ["v", "eps", "drift"])
def test_coefficients_between_the_nodes(prediction, quantity):
    network, chosen = VP(), SubVP()
    m = ScoreModel(elementwise, SHAPE, network, Parametrization(prediction, "999t"))
    levels = NoiseLevels(m, chosen, quantity, 1.0, 1e-3, torch.device("cpu"))
    lam = np.linspace(-4.99, 6.0, 997)
    phi = np.arctan(np.exp(-lam))
    rows = tuple(Row(t, t, 1.0, 1.0, m="v" if quantity == "v" else "eps") for t in phi.tolist())
    rows = fold(Plan(Trig(), rows), network, m.parametrization).rows
    p, q = np.array([r.p for r in rows]), np.array([r.q for r in rows])
    if quantity == "drift":
        p, q = np.sin(phi) ** 2 - 2.0 * np.sin(phi) * p, -2.0 * np.sin(phi) * q
    level = levels.at(torch.from_numpy(lam)).first
    for ours, exact in zip((level.p, level.q), (p, q), strict=True):
        assert (np.abs(ours.numpy() - exact) <= 1e-8 * np.abs(exact) + 1e-12).all()
    assert np.abs(level.c_in.numpy() - [r.c_in for r in rows]).max() < 1e-9
    assert np.abs(level.c_noise.numpy() - [r.c_noise for r in rows]).max() < 1e-6  # of 999


# --- the stochastic solver ---------------------------------------------------------------------


def paths(n: int, span: float = 5.0, ops=REFERENCE) -> Path:
    return Path(NoiseKey.of(3, range(n)), span, 8, -(-n // 16) * 16, torch.float32, ops)


def ends(path: Path, *units: int) -> list[torch.Tensor]:
    """W at each of the units, as steps that end there see it."""
    found = []
    for unit in units:
        path.to = torch.full_like(path.at, unit)
        path.increment(torch.ones_like(path.at, dtype=torch.bool))
        found.append(path.w_end.clone())
    return found


def test_brownian_paths_have_the_covariance_of_brownian_motion():
    n, s, path = 4000, [0, 3, 9000, 32768, 40001, UNITS], paths(4000)
    w = torch.stack([v.double() for v in ends(path, *s)])
    expected = 5.0 / UNITS * torch.minimum(*torch.meshgrid(torch.tensor(s), torch.tensor(s), indexing="ij")).double()
    covariance = torch.einsum("ind,jnd->ij", w, w) / (8 * n)
    spread = torch.sqrt((expected.diag()[:, None] * expected.diag()[None] + expected**2) / (8 * n))
    assert ((covariance - expected).abs() <= 4.5 * spread + 1e-12).all()


def test_a_path_is_the_same_however_it_is_read():
    path, other = paths(20), paths(5)
    first, second = ends(path, 40001, 777)
    assert torch.equal(torch.stack(ends(path, 777, 40001)), torch.stack([second, first]))
    assert torch.equal(ends(other, 777)[0], second[:5])
    compiled = paths(20, ops=resolve("auto", torch.device("cpu")))
    assert torch.equal(ends(compiled, 777)[0], second)
    # A rejected step: the increment over two halves is that over the whole.
    path.at.fill_(500)
    path.w_start = ends(path, 500)[0]
    path.to.fill_(777)
    every = torch.ones_like(path.at, dtype=torch.bool)
    whole = path.increment(every).clone()
    path.to.fill_(600)
    half = path.increment(every).clone()
    path.accept(every)
    path.to.fill_(777)
    assert torch.allclose(half + path.increment(every), whole, atol=1e-6)


def test_rounded_steps_are_short_by_less_than_a_part_in_eight():
    path = paths(64)
    h = torch.logspace(-3, 0.5, 64, dtype=torch.float64)
    none = torch.zeros(64, dtype=torch.bool)
    got = path.aim(h, none)
    assert (got <= h).all() and (got > h * 0.874 - 5.0 / UNITS).all()
    assert (path.aim(h, ~none) == 5.0).all()
    assert (path.aim(h * 0.0, none) == 0.0).all()


@SLOW
@pytest.mark.parametrize("schedule", [VP(), VE(), Flow()], ids=lambda s: type(s).__name__)
def test_gotta_go_fast_draws_from_the_target(schedule):
    target = analytic.score_model(analytic.gaussian(0.5, 0.3, (16,)))
    s = Sampler(target, schedule=schedule, solver=GottaGoFast(0.1, 0.01), grid=Span(clean=False), batch=250)
    x = s.run(range(500)).double()
    alpha, sigma = float(schedule.alpha(schedule.t_end)), float(schedule.sigma(schedule.t_end))
    std = math.hypot(0.3 * alpha, sigma)
    assert abs(float(x.mean()) - 0.5 * alpha) < 4.0 * std / math.sqrt(x.numel())
    assert abs(float(x.std()) - std) < 4.0 * std / math.sqrt(2 * x.numel()) + 0.01  # statistics, and atol
    assert 0.0 < s.cost.rejected_share < 0.3


# --- what ends in an error ---------------------------------------------------------------------


@pytest.mark.parametrize("name", ["dopri5", "dpm12", "ggf"])
def test_a_sample_that_is_not_finite_is_named(name):
    def broken(x, t, cond):
        bad = (x.flatten(1).mean(1) > 0.2) & (t < -0.5)
        return torch.where(bad.reshape(-1, 1, 1, 1), float("nan"), elementwise(x, t, None))

    s = Sampler(replace(model(), net=broken), solver=SOLVERS[name], batch=8)
    with pytest.raises(NonFiniteError, match=r"id 1\d\d at sigma/alpha = .* NaN or Inf"):
        s.run(range(100, 164))
    with pytest.raises(NonFiniteError):  # and the sampler is ready for another run
        s.run(range(100, 164))


def test_a_tolerance_that_cannot_be_met_is_named():
    def rough(x, t, cond):
        return 1e4 * torch.sin(1e7 * x)

    s = Sampler(replace(model(), net=rough), solver=Dopri5(1e-12, 1e-12), batch=2)
    with pytest.raises(StepSizeError, match=r"id 3 .*needs a step of less than .* rtol = 1e-12"):
        s.run([3])
    s = Sampler(model(), solver=Dopri5(1e-9, 1e-9, attempts=5), batch=2, dtype=torch.float64)
    with pytest.raises(StepSizeError, match=r"id 7 .*has taken 5 steps, the most"):
        s.run([7])
    s = Sampler(replace(model(), net=rough), solver=GottaGoFast(1e-9, 1e-9), batch=2)
    with pytest.raises(StepSizeError, match=r"needs a step of less than"):
        s.run([3])


def fixed(**kw) -> Sampler:
    return Sampler(model(), solver=kw.pop("solver", Dopri5()), batch=kw.pop("batch", 2), **kw)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: fixed(grid=karras(5)), "Dopri5 chooses its own steps; grid must be a Span"),
        (lambda: fixed(solver=DPMpp2M(), grid=Span()), "DPMpp2M needs the steps of a grid"),
        (lambda: fixed(grid=Span(start=0.1, end=0.5)).run([0]), "must decrease"),
        (lambda: fixed(grid=Span(end=0.0)).run([0]), "lam is infinite"),
        (lambda: fixed(batch=1 << 16).run([0]), "at most 32768"),
        (lambda: fixed().run([0], callback=print), "no rows"),
        (lambda: fixed(solver=GottaGoFast()).run([0], noise=torch.zeros(1, 1, 36)), "as many normals as it needs"),
        (lambda: fixed().run([0], noise=torch.zeros(1, 3, 36)), "must be a tensor"),
        (lambda: Sampler(model()).cost, "has a plan"),
        (lambda: Dopri5(rtol=0.0), "rtol = 0.0 must be above 0"),
        (lambda: DPMAdaptive(4), "order = 4"),
        (lambda: BogackiShampine(norm="max"), "norm = 'max'"),
        (lambda: GottaGoFast(first=-1.0), "must be positive"),
        (lambda: Control(low=2.0), "low < 1 < high"),
    ],
)
def test_bad_calls_are_named(call, message):
    with pytest.raises(ValueError, match=message):
        call()


@pytest.mark.slow
def test_weights_of_a_path_have_the_covariance_of_brownian_motion():
    """cov(W(s), W(t)) = min(s, t) follows from the weights of the draws: no sampling, so no coefficient may be off."""
    path = paths(2)
    units = [1, 777, 12345, 32768, 40001, UNITS - 1, UNITS]
    loads = []
    for s in units:
        weights: dict[int, float] = {}

        def update(x, F, hist, table, idx, key, weights=weights):
            draw, weight = int(table[0, abi.DRAW]), float(table[0, abi.C])
            weights[draw] = weights.get(draw, 0.0) + weight

        path.ops = replace(path.ops, update=update)
        path.to.fill_(s)
        path.increment(torch.ones_like(path.at, dtype=torch.bool))
        loads.append(weights)
    for s, a in zip(units, loads, strict=True):
        for t, b in zip(units, loads, strict=True):
            covariance = sum(a[draw] * b[draw] for draw in a.keys() & b.keys())
            assert covariance == pytest.approx(min(s, t) / UNITS * path.span, rel=1e-5)
