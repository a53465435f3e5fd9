"""The grids of other codes: their recorded lists, loops of their own for other settings, and where they are refused."""

from __future__ import annotations

import math
import pickle
from dataclasses import replace
from functools import cache
from pathlib import Path

import golden2_grids
import numpy as np
import pytest
import torch

import fastscore as fs
from bench.studies.named_grids import table as made_table
from fastscore.model.analytic import mixture
from fastscore.process.beta import CosineBeta
from fastscore.process.continuous import EDM, VE, VP, Flow, SubVP, Trig
from fastscore.process.discrete import DiscreteVE, discrete_vp, smld
from fastscore.process.grid import Grid, karras, logsnr, shifted
from fastscore.process.level_rules import (
    BetaLevels,
    Karras,
    Laplace,
    LinearQuadratic,
    Nodes,
    Piecewise,
    Polyexponential,
)
from fastscore.process.named_grids import NAMED_GRIDS, entries
from fastscore.process.names import NAMED
from fastscore.process.quantiles import beta_distribution, beta_quantile
from fastscore.process.rules import BetaIndices, Leading
from fastscore.process.schedule import lam
from fastscore.solvers.grids import default_grid
from fastscore.solvers.names import named

SD15, FLOW3, WIDE = golden2_grids.SD15, golden2_grids.FLOW3, golden2_grids.WIDE
MODEL = fs.score_model(mixture())


def test_recorded_lists():
    """Levels and times agree; labels that a code rounds, or reads off ln sigma, lie within one index."""
    lists, copied = golden2_grids.recorded(), golden2_grids.ALWAYS
    assert {f"grid/{name}" for name in copied} <= {*lists} and len(lists) in (138, len(copied))
    for name, recorded in lists.items():
        levels, times = golden2_grids.ours(name, recorded)
        assert levels is not None or times is not None
        for ours, key in ((levels, "sigmas"), (times, "timesteps")):
            if ours is None:
                continue
            theirs = np.array(recorded[key])
            assert ours.shape == theirs.shape, (name, key)
            labels = key == "timesteps" and levels is not None
            bound = 1.0 if labels else golden2_grids.TOLERANCE * abs(theirs).max()
            assert abs(ours - theirs).max() <= bound, (name, key)


@cache
def quantiles(n: int) -> list[float]:
    return beta_quantile(np.array([1.0 - i / n for i in range(n)]), 0.6, 0.6).tolist()


def comfy(name: str, table: np.ndarray, n: int, shift: float | None = None) -> list[float]:
    """ComfyUI's lists, as loops over its own table; ``shift`` of a flow."""
    N = len(table)

    def level(ts: float) -> float:  # of a timestep
        if shift is not None:
            t = ts / 1000.0
            return shift * t / (1.0 + (shift - 1.0) * t)
        low, high = math.floor(ts), math.ceil(ts)
        w = ts - low
        return math.exp((1.0 - w) * math.log(table[low]) + w * math.log(table[high]))

    first, last = (1000.0 * table[-1], 1000.0 * table[0]) if shift is not None else (N - 1.0, 0.0)
    high, low = table[-1], table[0]
    if name == "simple":
        return [table[-(1 + int(i * N / n))] for i in range(n)] + [0.0]
    if name == "normal":
        return [level(first + (last - first) * i / max(n - 1, 1)) for i in range(n)] + [0.0]
    if name == "sgm-uniform":
        return [level(first + (last - first) * i / n) for i in range(n)] + [0.0]
    if name == "ddim-uniform":
        found, x = [0.0], 1
        while x < N:
            found.append(table[x])
            x += max(N // n, 1)
        return found[::-1]
    if name == "beta":
        found = []
        for i in range(n):
            index = int(np.rint(quantiles(n)[i] * (N - 1) + 1e-9))
            found += [table[index]] if not found or table[index] != found[-1] else []
        return [*found, 0.0]
    if name == "exponential":
        return [math.exp(math.log(high) + (math.log(low / high)) * i / max(n - 1, 1)) for i in range(n)] + [0.0]
    if name == "karras-comfyui":
        a, b = high ** (1 / 7), low ** (1 / 7)
        return [(a + (b - a) * i / max(n - 1, 1)) ** 7 for i in range(n)] + [0.0]
    if name == "kl-optimal":
        u = [i / max(n - 1, 1) for i in range(n)]
        return [math.tan(v * math.atan(low) + (1.0 - v) * math.atan(high)) for v in u] + [0.0]
    assert name == "linear-quadratic"
    if n == 1:
        return [high, 0.0]
    L, q = n // 2, 0.025
    d = L - q * n
    A, B = d / (L * (n - L) ** 2), q / L - 2.0 * d / (n - L) ** 2
    v = [i * q / L for i in range(L)] + [A * i * i + B * i + A * L * L for i in range(L, n)] + [1.0]
    return [high * (1.0 - x) for x in v]


RULES = (
    "simple", "normal", "sgm-uniform", "ddim-uniform", "beta", "exponential", "karras-comfyui", "kl-optimal",
    "linear-quadratic",
)  # fmt: skip


@pytest.mark.parametrize("counts", [(1, 3, 23), pytest.param((2, 5, 7, 50), marks=pytest.mark.slow)])
@pytest.mark.parametrize("name", RULES)
def test_comfyuis_lists_at_other_settings(name, counts):
    """Any number of steps, on other tables, on a part of one, and on flows of other shifts."""
    tables = (SD15, discrete_vp("cosine"), discrete_vp("linear", 100), smld(60, 0.01, 50.0))
    for n in counts:
        for table in tables:
            sigmas = np.exp(-lam(table, np.arange(table.T + 1.0)))
            ours, theirs = golden2_grids.levels(Grid(name, n), table), comfy(name, sigmas, n)
            np.testing.assert_allclose(ours, theirs, rtol=1e-9, atol=1e-12 * sigmas[-1], err_msg=f"{n} {len(sigmas)}")
        part = DiscreteVE(tuple(np.exp(-lam(SD15, np.arange(100.0, 600.0)))))
        np.testing.assert_allclose(
            golden2_grids.levels(Grid(name, n, start=599.0, end=100.0), SD15),
            golden2_grids.levels(Grid(name, n), part),
            rtol=1e-9,
        )
        for shift in (1.0, 3.0, 7.0):
            t = np.arange(1, 1001) / 1000
            sigmas = shift * t / (1.0 + (shift - 1.0) * t)
            ours = golden2_grids.levels(Grid(name, n), Flow(shift=shift))
            np.testing.assert_allclose(ours, comfy(name, sigmas, n, shift), rtol=1e-9, err_msg=f"{n} {shift}")


def test_lists_between_other_ends():
    for low, high in ((0.002, 80.0), (0.0292, 14.6), (0.5, 2.0)):
        schedule = EDM(low, high)
        for n in (1, 2, 5, 23):
            u = np.linspace(0.0, 1.0, n)
            for grid, expected in (
                (Grid("exponential", n), high * (low / high) ** u),
                (Grid("karras-comfyui", n), (high ** (1 / 7) + u * (low ** (1 / 7) - high ** (1 / 7))) ** 7),
                (Grid(Polyexponential(3.0), n), np.exp((1.0 - u) ** 3 * math.log(high / low) + math.log(low))),
                (Grid("beta-a1111", n), low + (high - low) * beta_quantile(1.0 - u, 0.6, 0.6)),
                (Grid(BetaLevels(0.5, 2.0), n), low + (high - low) * beta_quantile(1.0 - u, 0.5, 2.0)),
            ):
                np.testing.assert_allclose(grid(schedule), [*expected, 0.0], rtol=1e-10, err_msg=str(grid))
            u = np.arange(n + 1) / n
            expected, noisy = np.tan(u * np.arctan(low) + (1.0 - u) * np.arctan(high)), Grid("kl-optimal-a1111", n)
            np.testing.assert_allclose(noisy(schedule), expected, rtol=1e-10)
            np.testing.assert_array_equal(Grid("kl-optimal", n, clean=False)(schedule), noisy(schedule))
    laplace = Grid(Laplace(0.5, 0.3), 6)(EDM(1e-3, 1e3))  # 7 levels, of quantiles 1, 5/6 ..
    expected = [math.exp(0.5 - 0.3 * math.log(2.0 * (1.0 - q) + 1e-5)) for q in (1.0, 5 / 6, 4 / 6)]
    np.testing.assert_allclose(laplace[:3], expected, rtol=1e-10)
    np.testing.assert_allclose(laplace[3:] * laplace[:4][::-1], math.e, rtol=1e-10)  # symmetric about e^mu
    assert len(Grid("laplace", 10)(FLOW3)) == 6  # half of its levels are above a flow's most noise
    mixed, share = Grid("karras-exponential", 4, start=80.0)(EDM(0.1, 88.0)), 0.3 * (1.0 - np.arange(5) / 5)
    expected = (1.0 - share) * Karras()(5, 88.0, 0.1) + share * Polyexponential()(5, 88.0, 0.1)
    np.testing.assert_allclose(mixed, np.where(expected < 0.15, 0.9, 1.0) * expected, rtol=1e-10)


def test_lists_through_nodes():
    """AYS at another number of steps, by hand: ComfyUI has n + 1 points of which the last is 0, A1111 n before it."""
    nodes = NAMED_GRIDS["ays-svd"].rule.levels
    wide = VE(1e-3, 700.0)
    np.testing.assert_allclose(golden2_grids.levels(Grid("ays-svd", 5), wide), [*nodes[:-1:2], 0.0], rtol=1e-9)
    a1111 = NAMED_GRIDS["ays-sdxl-a1111"].rule.levels
    np.testing.assert_allclose(golden2_grids.levels(Grid("ays-sdxl-a1111", 11), wide), [*a1111, 0.0], rtol=1e-9)
    halfway = golden2_grids.levels(Grid("optimal-steps-flux", 20), Flow())
    np.testing.assert_allclose(halfway[1] ** 2, 0.9968 * 0.9886, rtol=1e-12)
    np.testing.assert_array_equal(Grid("ays-sdxl-timesteps", 10)(SD15)[[0, 1, -2, -1]], [999, 845, 13, -1])
    np.testing.assert_array_equal(Grid("lcm", 4)(SD15), [999, 759, 499, 259, -1])
    np.testing.assert_array_equal(Grid(Leading(1.0), 4)(SD15), [801, 601, 401, 201, -1])
    for name, steps in (("optimal-steps-flux", 10), ("optimal-steps-wan", 20), ("optimal-steps-chroma", 40)):
        listed = NAMED_GRIDS[name].rule.levels
        np.testing.assert_allclose(golden2_grids.levels(Grid(name, steps), Flow()), [*listed[:-1], 0.0], rtol=1e-9)


def test_bong_tangent_and_piecewise_at_other_settings():
    for n in (1, 2, 3, 5, 23, 50):
        sigma = golden2_grids.levels(Grid("bong-tangent", n), Flow())
        m = n + 2
        middle, slope = int(0.6 * m), 0.2 / (m / 40)
        expected = [1.0]
        if n > 1:
            f = [(2 / math.pi * math.atan(-slope * (x - middle)) + 1) / 2 for x in range(middle)]
            g = [(2 / math.pi * math.atan(-slope * x) + 1) / 2 for x in range(m - middle)]
            expected = [0.5 + 0.5 * (v - f[-1]) / (f[0] - f[-1]) if len(f) > 1 else 1.0 for v in f][:-1]
            expected += [0.5 * (v - g[-1]) / (g[0] - g[-1]) for v in g][:-1]
        np.testing.assert_allclose(sigma, [*expected, 0.0], rtol=1e-12)
        trig, flow = Grid("bong-tangent", n)(Trig())[1:-1], Grid("bong-tangent", n)(Flow())[1:-1]
        np.testing.assert_allclose(lam(Trig(), trig), lam(Flow(), flow), atol=1e-9)  # the same alpha : sigma
        levels = Grid("piecewise", n)(EDM(0.02, 1000.0))
        low = n // 2
        high = n - low
        by_hand = [1000.0 * 0.01 ** (i / high) for i in range(high + 1)]
        by_hand += [(10 ** (1 / 7) + (0.02 ** (1 / 7) - 10 ** (1 / 7)) * i / (low - 1)) ** 7 for i in range(1, low)]
        np.testing.assert_allclose(levels, [*by_hand[:n], 0.0], rtol=1e-10)


def test_beta_quantiles_are_scipys():
    """Values of scipy.stats.beta.ppf 1.17.1, and the function that it inverts."""
    p = np.array([1e-6, 0.05, 0.3, 0.5, 0.77, 0.95])
    recorded = {
        (0.6, 0.6): [
            1.8558824624053043e-10, 0.012554456873611399, 0.23401700387523572, 0.5, 0.8461624142323502,
            0.9874455431263885,
        ],
        (0.5, 0.7): [
            1.5697528676016355e-12, 0.003921301529818253, 0.13726226496361177, 0.3610839131320438, 0.7481434013731645,
            0.9693759361774907,
        ],
        (2.0, 5.0): [
            0.00025828782935406356, 0.06284989170835438, 0.18180347131894917, 0.26444998329566005, 0.402118402610099,
            0.5818034092520259,
        ],
        (0.05, 0.1): [
            2.8666978182396772e-117, 2.733896082152991e-23, 9.995556378637372e-08, 0.002727503975633613,
            0.9777245696551187, 0.9999999946458448,
        ],
        (300.0, 20.0): [
            0.8539775782798309, 0.9138263337187849, 0.9311134463567754, 0.9384103332713694, 0.9478394973850175,
            0.9580664449798505,
        ],
    }  # fmt: skip
    for (a, b), expected in recorded.items():
        np.testing.assert_allclose(beta_quantile(p, a, b), expected, rtol=1e-13)
    for a, b in ((0.6, 0.6), (2.0, 5.0), (300.0, 20.0), (1000.0, 1000.0)):
        np.testing.assert_allclose(beta_distribution(beta_quantile(p, a, b), a, b), p, rtol=0.0, atol=1e-12)
    np.testing.assert_array_equal(beta_quantile(np.array([0.0, 1.0]), 0.6, 0.6), [0.0, 1.0])
    np.testing.assert_allclose(beta_quantile(p, 1.0, 1.0), p, rtol=1e-15)
    for a, b in ((0.0, 1.0), (1.0, 2000.0), (math.nan, 1.0)):
        with pytest.raises(ValueError, match="both must be above 0 and at most 1000"):
            beta_quantile(p, a, b)


def test_a_grid_has_the_steps_of_its_code_and_says_so():
    assert len(Grid("ddim-uniform", 23)(SD15)) == 25 and len(Grid("ddim-uniform", 20)(SD15)) == 21
    short = Grid("beta", 60)(smld(60, 0.01, 50.0))
    assert 40 < len(short) < 61 and short[0] == 59 and short[-1] == -1 and np.all(np.diff(short) < 0.0)
    with pytest.warns(UserWarning, match="ddim-uniform of 23 steps has 24 on this schedule"):
        sampler = fs.Sampler(MODEL, schedule=SD15, grid="ddim_uniform", steps=23, batch=4)
    assert sampler.plan.nfe == 24


def test_without_the_clean_end_a_list_is_one_step_longer_before_it():
    for name in NAMED:
        schedule = {"ays-svd": VE(1e-3, 700.0), "ays-svd-diffusers": VE(1e-3, 700.0)}.get(name, WIDE)
        schedule = SD15 if "timesteps" in name else Flow() if name[:4] in ("bong", "opti") else schedule
        start = 2000.0 if name == "karras-exponential" else None
        grid = Grid(name, 9, start=start, clean=False)
        np.testing.assert_array_equal(grid(schedule), replace(grid, steps=10, clean=True)(schedule)[:-1], err_msg=name)


SCHEDULES = (EDM(), VE(), VP(), SubVP(), Flow(), FLOW3, Trig(), SD15, discrete_vp(zero_snr=True))


@pytest.mark.parametrize("schedule", SCHEDULES, ids=lambda s: type(s).__name__)
def test_every_name_runs_on_every_schedule_or_says_why_not(schedule):
    ran = []
    for name in NAMED:
        try:
            grid = Grid(name, 10)
            t = grid(schedule)
        except ValueError as error:
            said = str(error)
            assert said.startswith(name) and "\n" not in said and len(said) < 300, name
            continue
        ran.append(name)
        assert np.all(np.diff(t) < 0.0) and schedule.T >= t[0] and t[-1] >= schedule.t_clean
        assert (t[-1] == schedule.t_clean) == grid.clean
    infinite = bool(lam(schedule, schedule.T) == -np.inf)
    index = {"simple", "normal", "sgm-uniform", "ddim-uniform", "beta", "beta57", "leading-dpm", "linspace-dpm", "lcm"}
    assert index | {"kl-optimal", "kl-optimal-a1111", "ays-sd15", "ays-sdxl-a1111"} <= {*ran}
    assert ("even" in ran) == math.isfinite(schedule.t_clean)
    assert ({"exponential", "karras-comfyui", "beta-a1111", "linear-quadratic"} <= {*ran}) == (
        not infinite or isinstance(schedule, Flow)
    )
    assert ({"bong-tangent", "optimal-steps-wan"} <= {*ran}) == infinite


def test_what_a_schedule_without_a_table_has_instead():
    t = Grid("sgm-uniform", 5)(VP())
    np.testing.assert_allclose(t, [*np.linspace(1.0, 1e-3, 6)[:-1], 0.0], rtol=1e-12)  # even times
    np.testing.assert_allclose(Grid("normal", 5)(EDM()), [*np.geomspace(80.0, 0.002, 5), 0.0], rtol=1e-12)  # ComfyUI's
    np.testing.assert_allclose(Grid("simple", 4)(Flow()), [1.0, 0.75, 0.5, 0.25, 0.0], rtol=1e-12)
    np.testing.assert_allclose(Grid("simple", 7)(Flow(t_end=1e-4))[:3], [1.0, 0.8572, 0.7143], rtol=1e-12)  # Flux's
    assert entries(Trig()) == entries(VP(CosineBeta())) == entries(VE()) == entries(EDM()) == 1000
    np.testing.assert_allclose(Grid("even", 3)(Flow(shift=5.0)), [1.0, 2 / 3, 1 / 3, 0.0], rtol=1e-12)
    np.testing.assert_allclose(Grid("even", 4, start=0.5)(VP()), [0.5, 0.375, 0.25, 0.125, 0.0], rtol=1e-12)
    # Where its end is said, a list of even times on a flow has the shift once.
    np.testing.assert_allclose(Grid("normal", 3, end=0.2)(FLOW3), [1.0, 0.6, 0.2, 0.0], rtol=1e-12)
    np.testing.assert_allclose(Grid("normal", 3)(FLOW3)[2], 0.003 / 1.002, rtol=1e-9)
    assert Grid("kl-optimal", 6)(Trig())[0] == Trig.T
    np.testing.assert_allclose(Grid("kl-optimal", 6)(EDM()), fs.arctan(6, rho=1.0, scale=1.0)(EDM()), rtol=1e-9)
    np.testing.assert_allclose(Grid("exponential", 6)(VP()), logsnr(6)(VP()), rtol=1e-9)
    np.testing.assert_allclose(Grid("karras-comfyui", 6)(VP()), karras(6)(VP()), rtol=1e-9)


def test_whole_indices_and_shifts_of_named_grids():
    for name in ("simple", "ddim-uniform", "beta", "karras-comfyui", "kl-optimal"):
        t = Grid(name, 10, whole=True)(SD15)
        np.testing.assert_array_equal(t, np.round(t))
    for name in ("karras-comfyui", "kl-optimal", "exponential"):  # an end is not missed by a rounding
        np.testing.assert_array_equal(Grid(name, 10)(SD15)[[0, -2]], [999.0, 0.0])
        np.testing.assert_array_equal(Grid(name, 10)(EDM())[[0, -2]], [80.0, 0.002])
        np.testing.assert_array_equal(Grid(name, 3, start=500.5, end=7.25)(SD15)[[0, 2]], [500.5, 7.25])
    assert Grid("simple", 3, start=500.5)(SD15)[0] == 500.5
    np.testing.assert_array_equal(Grid("simple", 10)(SD15), [999, 899, 799, 699, 599, 499, 399, 299, 199, 99, -1])
    np.testing.assert_allclose(shifted(Grid("even", 8), 3.0)(Flow()), FLOW3.sigma(Grid("even", 8)(FLOW3)), rtol=1e-12)


def test_samplers_take_names():
    ours = fs.Sampler(MODEL, schedule=VP(), grid="KL_Optimal", steps=6, batch=4)
    assert ours.grid == Grid("kl-optimal", 6, clean=True) and ours.plan.nfe == 6
    same = fs.Sampler(MODEL, schedule=VP(), grid=Grid("kl-optimal", 6), batch=4)
    assert torch.equal(ours.run(range(4)), same.run(range(4)))
    assert fs.Sampler(MODEL, grid="default", steps=6, batch=4).grid == fs.Sampler(MODEL, steps=6, batch=4).grid
    assert fs.Sampler(MODEL, grid="automatic", batch=4).grid == fs.Sampler(MODEL, batch=4).grid
    assert fs.Sampler(MODEL, schedule=EDM(), grid="beta", batch=4).grid.steps == 20
    assert pickle.loads(pickle.dumps(ours)).grid == ours.grid
    joint = fs.JointModel(lambda u, t, cond: u, {"a": fs.Part((2,), VP()), "b": fs.Part((3,), VP())})
    assert fs.JointSampler(joint, grid="simple", steps=4, batch=4).grid == Grid("simple", 4)
    flow = fs.ProbabilityFlow(MODEL, schedule=VP(), solver="heun", grid="sgm-uniform", steps=8, batch=4)
    np.testing.assert_allclose(flow.grid(VP()), np.linspace(1.0, 1e-3, 10)[:-1], rtol=1e-12)
    assert fs.ProbabilityFlow(MODEL, schedule=VP(), solver="heun", batch=4).grid.steps == 100
    for call, message in (
        (lambda: fs.Sampler(MODEL, grid="kl-optimum"), r"\(nearest: kl-optimal"),
        (lambda: fs.Sampler(MODEL, grid="align-your-steps"), "ays-sd15, ays-sdxl or ays-svd"),
        (lambda: fs.Sampler(MODEL, solver="dopri5", grid="beta"), "grid spacing = beta belongs to solvers with a grid"),
        (lambda: fs.Sampler(MODEL, schedule=VP(), grid="ays-svd", steps=10), "begins at sigma / alpha = 700"),
        (lambda: fs.Sampler(MODEL, schedule=EDM(), grid="karras-exponential"), "begins at sigma / alpha = 88"),
        (lambda: Grid("karras-exponential", 5)(Flow()), "begins at pure noise, noisier"),
        (lambda: Grid("beta", 5, offset=1), "offset = 1"),
        (lambda: Grid("nearly", 5), r"grid spacing = 'nearly' \(nearest: normal\) must be one of uniform"),
        (lambda: Grid(BetaIndices(-1.0), 5), "BetaIndices: a = -1.0 must be positive"),
        (lambda: Grid(Leading(-1.0), 5), "offset = -1.0 must be at least 0"),
        (lambda: Grid(Piecewise(steps_low=9), 5)(WIDE), "steps_low = 9 must be below 5"),
        (lambda: Grid(Laplace(beta=0.0), 5), "beta = 0.0 positive"),
        (lambda: Nodes((1.0, 2.0)), "Nodes: levels = .* must fall, and be positive"),
        (lambda: Nodes(()), "must fall"),
        (lambda: Nodes((math.nan, 1.0)), "must fall"),
        (lambda: Grid(LinearQuadratic(5.0), 8)(EDM()), "8 levels are not all above 0"),
        (lambda: Grid("lcm", 51)(SD15), "steps = 51 must be at most 50"),
        (lambda: Grid("ays-sd15-diffusers", 9)(SD15), "ays-sd15-diffusers: the list has 10 levels"),
        (lambda: Grid("ays-sd15-timesteps", 10)(discrete_vp("linear", 100)), "of a table of 1000 noise levels"),
        (lambda: Grid("ays-sd15-timesteps", 10)(VP()), "are indices of a discrete table; on VP take the levels"),
        (lambda: Grid("simple", 1001)(SD15), "simple grid of 1001 steps repeats a time"),
        (lambda: Grid("exponential", 5, end=0.0)(Flow()), "the last level before sigma = 0 has noise"),
        (lambda: Grid("simple", 5, end=0.0)(EDM()), "the last level before sigma = 0 has noise"),
    ):
        with pytest.raises(ValueError, match=message):
            call()


def test_rho_of_a_named_grid_is_its_rules():
    grid = default_grid(named("dpmpp-2m"), EDM(), EDM(), 5, spacing="polyexponential", rho=2.0)
    assert grid == Grid(Polyexponential(2.0), 5)
    with pytest.raises(ValueError, match="rho = 2 belongs to"):
        default_grid(named("dpmpp-2m"), EDM(), EDM(), 5, spacing="beta", rho=2.0)
    short = discrete_vp("linear", 12)
    assert default_grid(named("ddim"), short, short, spacing="simple", scales=(0.1, 1.0)) == Grid("simple", 12)
    assert default_grid(named("ddim"), EDM(), EDM(), spacing="beta", scales=(1e-4, 1.0)).end is None
    assert default_grid(fs.ScoreSDE(), EDM(), EDM(), 5, spacing="beta").clean is False
    assert default_grid(named("ddim"), EDM(), EDM(), 5, spacing="kl-optimal-a1111").clean is False


def test_names_stand_in_both_places():
    assert {*NAMED} == {*NAMED_GRIDS} and len({*NAMED}) == len(NAMED)


@pytest.mark.slow
def test_the_published_table_is_that_of_the_code():
    """Else run python -m bench.studies.named_grids."""
    published = (Path(__file__).parents[2] / "bench" / "results" / "grids.md").read_text()
    assert made_table() in published
