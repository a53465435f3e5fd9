"""Fitted grids: the search, its error, its starting points, what it refuses, and how a fit is found by name."""

from __future__ import annotations

import itertools
import json
import pickle
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from golden2 import COPY, FOLDER

import fastscore as fs
from fastscore.engine import fit as fits
from fastscore.engine.fit_error import CONTRAST, EndError
from fastscore.engine.fit_paths import jump_costs
from fastscore.engine.fit_search import compass
from fastscore.engine.fitted import Tried, fitted, levels_of, read, times_of
from fastscore.model.analytic import mixture
from fastscore.ops.noise import NoiseKey
from fastscore.process.names import GRIDS, INDICES
from fastscore.solvers.gits import cheapest_path

MIXTURE = fs.score_model(mixture(components=5, radius=2.0, std=0.2))
SETTINGS = {"schedule": fs.VP(), "batch": 32}


pytestmark = pytest.mark.filterwarnings("ignore:noise of")  # named grids that end early


@pytest.fixture(autouse=True)
def own_folder(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


@pytest.fixture(scope="module")
def fit():
    return fs.fit_grid(MIXTURE, 5, "dpmpp-2m", ids=range(36), seed=3, **SETTINGS)


def test_the_programme_finds_the_cheapest_of_all_paths():
    cost = np.triu(NoiseKey.of(1, range(7)).normal(0, 7, torch.float64).numpy() ** 2, 1)
    for knots, coeff in itertools.product(range(2, 8), (0.7, 1.0, 1.3)):
        paths = [(0, *middle, 6) for middle in itertools.combinations(range(1, 6), knots - 2)]

        def price(path, coeff=coeff):
            return sum(coeff**k * cost[i, j] for k, (i, j) in enumerate(itertools.pairwise(path)))

        path, value = cheapest_path(cost, knots, coeff)
        assert tuple(path) == min(paths, key=price)
        assert value == pytest.approx(price(path), rel=1e-12)
    for wrong in ((cost[:3], 3, 1.0), (cost, 8, 1.0), (cost, 1, 1.0), (cost, 3, 0.0), (cost * np.nan, 3, 1.0)):
        with pytest.raises(ValueError, match="must"):
            cheapest_path(*wrong)


def test_the_programme_repeats_recorded_paths():
    folder = FOLDER if (FOLDER / "gits.json").exists() else COPY
    for case in json.loads((folder / "gits.json").read_text()):
        path, value = cheapest_path(np.array(case["cost"]), case["knots"], case["coeff"])
        assert path == case["path"], case["name"]
        assert value == pytest.approx(case["value"], rel=1e-8)  # costs are recorded to nine digits


def test_a_jump_costs_what_an_euler_step_in_the_noise_level_misses():
    schedule, t = fs.Flow(), np.array([1.0, 0.6, 0.25, 0.0])
    x0, eps = (NoiseKey.of(2, range(3)).normal(k, 4, torch.float64) for k in (0, 1))
    alpha, sigma = (torch.from_numpy(v) for v in (schedule.alpha(t), schedule.sigma(t)))
    straight = [a * x0 + s * eps for a, s in zip(alpha, sigma, strict=True)]
    assert np.abs(jump_costs(schedule, t, straight, [x0] * 3)).max() < 1e-12  # a straight path costs nothing
    off = jump_costs(schedule, t, straight, [x0 + 0.1] * 3)
    # An estimate that is 0.1 too large takes away alpha / sigma as much noise: 0.1 (1 - snr_i / snr_j) is left.
    ratio = (sigma / alpha).numpy()
    assert off[1, 2] == pytest.approx(0.1 * (1.0 - ratio[2] / ratio[1]), rel=1e-9)
    assert off[0, 3] == pytest.approx(0.1, rel=1e-9) and off[2, 1] == 0.0


def test_the_search_lowers_the_error_and_keeps_order_ends_and_budget():
    right, calls = np.array([30.0, 5.0, 1.0, 0.2]), []

    def error(levels):
        calls.append(levels)
        return float(np.square(np.log(np.array(levels[1:-1]) / right)).sum())

    start = (np.inf, 60.0, 20.0, 4.0, 0.05, 0.0)
    found = compass(error, start, 120)
    assert error(found) < 0.01 < error(start) and (found[0], found[-1]) == (np.inf, 0.0)
    assert len(calls) <= 122 and all(a > b for levels in calls for a, b in itertools.pairwise(levels))
    calls.clear()
    assert error(compass(error, start, 7)) < error(start) and len(calls) <= 9
    assert compass(lambda levels: np.inf, start, 50) == start  # where nothing can be run
    assert compass(lambda levels: float(levels != start), start, 50) == start  # where nothing is better


def test_the_error_is_relative_and_sees_blur_in_images_alone():
    y, every = 3.0 * NoiseKey.of(4, range(5)).normal(0, 144), slice(0, 5)
    image, points = EndError(y, (1, 12, 12)), EndError(y, (144,))
    half = slice(2, 4)
    assert image(y[half], half) == points(y[half], half) == 0.0
    assert points(1.1 * y, every) == pytest.approx(0.1, rel=1e-5)
    assert image(1.1 * y, every) == pytest.approx(0.2 + CONTRAST * np.log(1.1), rel=0.02)
    assert EndError(3.0 * y, (1, 12, 12))(3.3 * y, every) == pytest.approx(image(1.1 * y, every), rel=1e-4)
    waves = torch.arange(12.0).sin().expand(5, 12, 12)
    for stripes in (2.0 * waves, 2.0 * waves.mT):
        flat = EndError(stripes.flatten(1), (1, 12, 12))
        assert flat(1.1 * stripes.flatten(1), every) == pytest.approx(0.2 + CONTRAST * np.log(1.1), rel=0.1)
    assert EndError(torch.ones(5, 144), (1, 12, 12))(torch.ones(5, 144), every) == 0.0
    moved = y.reshape(-1, 12, 12).roll(1, 2).flatten(1)  # as sharp as before, elsewhere
    blurred = 0.5 * (y + moved)
    assert points(moved, every) > points(blurred, every)
    assert image(blurred, every) - points(blurred, every) > 1.0  # gradients that are gone, and contrast
    shown = EndError(y.sign(), (1, 12, 12))  # of 8 bits: blacker than black is black
    beyond = 1.05 * y.sign()
    assert shown(beyond, every) == pytest.approx(0.1, rel=1e-3)


def test_the_fit_is_nearer_on_other_seeds_than_every_named_grid(fit):
    def error(**settings):
        x = fs.Sampler(MIXTURE, schedule=fs.VP(), batch=256, **settings).run(range(512), seed=99)
        return float((x - right).square().mean().sqrt())

    right = fs.Sampler(MIXTURE, schedule=fs.VP(), batch=256, steps=150).run(range(512), seed=99)
    named = {}
    for name in (name for name in GRIDS if name not in INDICES):
        try:
            named[name] = error(grid=name, steps=5)
        except ValueError:  # has no such number of steps, or not on this schedule
            continue
    assert len(named) > 4
    assert error(solver=fit.solver, grid=fit.times(fs.VP())) < 0.8 * min(named.values())
    assert fit.grid == "fitted" and fit.steps == fit.evaluations == 5 and (fit.ids, fit.held_out) == (24, 12)
    assert fit.error == fit.tried[0].held_out < min(one.held_out for one in fit.tried[1:])
    apart = fs.Sampler(MIXTURE, schedule=fs.VP(), solver=fit.solver, grid=fit.times(fs.VP()), batch=36)
    fine = fs.Sampler(MIXTURE, schedule=fs.VP(), solver=fs.DPMMultistep(3), steps=40, batch=36)
    ends = [one.run([k for k in range(36) if k % 3 == 2], seed=3) for one in (apart, fine)]
    assert fit.error == pytest.approx(float((ends[0] - ends[1]).norm() / ends[1].norm()), rel=1e-3)
    rms = float(fine.run([k for k in range(36) if k % 3 != 2], seed=3).square().mean().sqrt())
    assert fit.levels[0] > 10.0 * rms and fit.levels[-1] <= 0.021 * rms
    assert fit.cost > 0 and fit.model and fit.solver == fs.DPMpp2M()


def test_the_same_call_gives_the_same_grid_in_any_batch(fit):
    again = fs.fit_grid(MIXTURE, 5, "dpmpp-2m", ids=range(36), seed=3, schedule=fs.VP(), batch=11)
    assert np.allclose(again.levels, fit.levels, rtol=1e-6, atol=0.0) and again.cost == fit.cost


def test_a_fit_that_is_worse_on_held_out_ids_gives_the_named_grid(monkeypatch):
    monkeypatch.setattr(fits, "compass", lambda error, start, trials, **how: (40.0, 39.0, 0.03, 0.0))
    fit = fs.fit_grid(MIXTURE, 3, "dpmpp-2m", ids=range(12), **SETTINGS)
    assert fit.grid in GRIDS and fit.levels != (40.0, 39.0, 0.03, 0.0)
    assert fit.error == min(one.held_out for one in fit.tried) < fit.tried[0].held_out
    grid = fs.Sampler(MIXTURE, grid=fit.grid, steps=3, **SETTINGS).grid
    assert fit.levels == levels_of(fs.VP(), grid(fs.VP()))


def test_solvers_and_schedules_are_searched_with_conditions_and_guidance():
    def net(u, c_noise, cond):
        return MIXTURE.net(u, c_noise) + 0.1 * (cond[:, None] - 1.0)

    model = replace(MIXTURE, net=net, classes=2, null=2)
    fit = fs.fit_grid(model, 3, ids=range(9), guidance=fs.Guidance(2.0), schedule=fs.Flow(), batch=9)
    assert fit.weight == 2.0 and fit.evaluations == 6
    assert {one.solver for one in fit.tried} >= {repr(fs.DPMpp2M()), repr(fit.solver)}
    x = fs.Sampler(model, guidance=fs.Guidance(2.0), schedule=fs.Flow(), solver=fit.solver, grid=fit.times(fs.Flow()))
    assert x.run(range(4), labels="random").isfinite().all()
    with pytest.raises(ValueError, match="nobody can see"):
        fit.keep(None)


def test_what_a_grid_does_not_decide_is_refused():
    for solver, words in (("em", "draws noise"), ("dopri5", "rtol and atol"), ("edm-churn", "draws noise")):
        with pytest.raises(ValueError, match=words):
            fs.fit_grid(MIXTURE, 4, solver, ids=range(12), **SETTINGS)
    for steps, ids, words in ((0, range(12), "steps"), (4, range(5), "ids are 5"), (2000, range(12), "steps")):
        with pytest.raises(ValueError, match=words):
            fs.fit_grid(MIXTURE, steps, ids=ids, **SETTINGS)


def test_a_fit_is_found_by_name_for_its_weights_solver_and_steps(fit, tmp_path):
    file = fit.keep(None)
    assert file.is_relative_to(tmp_path / "cache") and read(file) == [fit]
    sampler = fs.Sampler(MIXTURE, grid="tuned", steps=5, **SETTINGS)
    x = sampler.run(range(6), seed=8)
    direct = fs.Sampler(MIXTURE, solver=fs.DPMpp2M(), grid=fit.times(fs.VP()), **SETTINGS)
    assert x.equal(direct.run(range(6), seed=8))
    assert x.equal(fs.Sampler(MIXTURE, grid="tuned", solver="dpmpp-2m", **SETTINGS).run(range(6), seed=8))
    file.unlink()
    assert x.equal(pickle.loads(pickle.dumps(sampler)).run(range(6), seed=8))  # knots, not a name
    with pytest.raises(ValueError, match="none was fitted to these weights"):
        fs.Sampler(MIXTURE, grid="tuned", steps=5, **SETTINGS)
    other = fs.score_model(mixture(components=5, radius=2.0, std=0.21))
    folder = tmp_path / "model"
    folder.mkdir()
    kept = fit.keep(folder)
    assert kept == folder / "tuned.json"
    with pytest.raises(ValueError, match="is of other weights"):
        fitted(replace(other, folder=str(folder)))
    here = replace(MIXTURE, folder=str(folder))
    second = replace(fit, levels=(*fit.levels[:2], 0.0), evaluations=2)
    second.keep(folder)
    replace(second, seed=4).keep(folder)
    assert [(one.steps, one.seed) for one in read(kept)] == [(5, 3), (2, 4)]
    for solver, steps, words in (
        (None, None, "fitted for 2, 5 steps, not for None"),
        (None, 7, "fitted for 2, 5 steps, not for 7.*--evaluations 7"),
        (fs.Heun(), 5, r"fitted for DPMpp2M\(\) in 2 steps, .* not for Heun"),
    ):
        with pytest.raises(ValueError, match=words):
            fitted(here, solver, steps)
    assert fitted(here, None, 5) == fit
    for text in ("[]", '{"format": 2}', "{", '{"format": 1, "grids": [{}]}'):
        kept.write_text(text)
        with pytest.raises(ValueError, match="holds no fitted grids"):
            fitted(here)


def test_guidance_takes_its_own_fit_and_of_several_the_best_on_held_out_ids(fit, tmp_path):
    tried = (Tried("fitted", "", 0.1, 0.1),)
    for one in (
        replace(fit, tried=tried, seed=1),
        replace(fit, tried=(Tried("fitted", "", 0.0, 0.2),), seed=2, solver=fs.UniPC(2)),
        replace(fit, weight=2.0, seed=5, tried=(Tried("fitted", "", 0.0, 0.3),)),
    ):
        one.keep(tmp_path)
    here = replace(MIXTURE, folder=str(tmp_path), classes=0)
    assert fitted(here, None, 5).seed == 1
    assert fitted(here, None, 5, fs.Guidance(2.0, model=MIXTURE)).seed == 5
    assert fitted(here, None, 5, fs.Guidance(3.0, model=MIXTURE)).seed == 1
    assert fitted(here, fs.UniPC(2), 5).seed == 2


def test_levels_are_times_of_any_schedule_but_of_solvers_in_time(fit):
    for schedule in (fs.VP(), fs.EDM(), fs.SubVP(), fs.VE()):
        assert levels_of(schedule, fit.times(schedule)(schedule)) == pytest.approx(fit.levels, rel=1e-9)
    timely = replace(fit, solver=fs.Heun())
    assert timely.times(fs.VP()) == fit.times(fs.VP())
    with pytest.raises(ValueError, match="steps in the time of VP"):
        timely.times(fs.EDM())
    table = fs.discrete_vp()
    own = times_of((20.0, 3.0, 0.31, 0.017), table, table)
    assert all(t == round(t) for t in own.t[:-1]) and own.t[-1] != round(own.t[-1])
    assert times_of((20.0, 3.0), table).t[0] != round(times_of((20.0, 3.0), table).t[0])
    assert times_of((np.inf, 3.0, 0.0), fs.Flow()).t[0] == 1.0
    with pytest.raises(ValueError, match="pure noise"):
        times_of((np.inf, 3.0, 0.0), fs.VP())
    with pytest.raises(ValueError, match="noisier"):
        times_of((1e9, 3.0, 0.0), fs.VP())


def test_a_fit_keeps_to_the_network_s_noise_and_indices():
    table = fs.discrete_vp()
    model = fs.ScoreModel(lambda u, label: 0.1 * u, (2,), table, fs.Parametrization("eps", label="t"))
    fit = fs.fit_grid(model, 4, "ddim", ids=range(9), batch=9)
    t = fit.times(table, table)(table)
    assert all(value == round(value) for value in t[:-1]) and t[-2] >= 0.0 and fit.model == ""


def test_the_bundled_fits_are_of_the_bundled_weights():
    model = fs.load_model("fashion")
    file = Path(model.folder or "") / "tuned.json"
    for fit in read(file) if file.exists() else ():
        assert fitted(model, None, fit.steps) == fit and fit.error == fit.tried[0].held_out
        sampler = fs.Sampler(model, grid="tuned", steps=fit.steps, batch=2)
        assert sampler.plan is not None and sampler.plan.nfe == fit.evaluations == fit.steps
