"""Names mean the same in Python and on the command line, and so do the errors."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from fastscore import execution
from fastscore.cli import options as o
from fastscore.cli import runs
from fastscore.cli.plan import plan
from fastscore.model.analytic import by_name
from fastscore.ops.backend import BACKENDS, named_device
from fastscore.output.store.formats import FORMATS
from fastscore.plan import NORMS
from fastscore.process.continuous import EDM, VE, VP, Flow, Trig
from fastscore.process.discrete import smld
from fastscore.process.grid import Grid, Span, arctan, karras
from fastscore.process.names import SCHEDULES, SPACINGS, named_schedule
from fastscore.sampler import Sampler
from fastscore.solvers import DDIM, Heun, RePaint
from fastscore.solvers.grids import default_grid
from fastscore.solvers.names import SOLVERS, named


def on_the_command_line(*argv):
    with plan.make_context("plan", list(argv)) as context:
        return o.make_solver(context.params)


@pytest.mark.parametrize("name", SOLVERS)
def test_every_solver_is_the_same_in_python(name):
    corrector = {"corrector": "ald", "snr": 0.2} if name == "none" else {}
    flags = [word for k, v in corrector.items() for word in (f"--{k}", str(v))]
    solver = on_the_command_line("--solver", name, *flags)
    assert repr(named(name, **corrector)) == repr(solver)
    assert repr(named(name.upper().replace("-", "_"), **corrector)) == repr(solver)


@pytest.mark.parametrize(
    ("flags", "expected"),
    [
        ("--solver ddim --eta 0.5", "DDIM(eta=0.5, keep_eps=False)"),
        ("--solver em --eta 0", "EulerMaruyama(eta=0.0)"),
        (
            "--solver ddim --eta 0.5 --eta-window 0.1,5",
            "DDIM(eta=EtaWindow(low=0.1, high=5.0, eta=0.5, at='start', of='ratio'), keep_eps=False)",
        ),
        ("--solver milstein --s-noise 1.01", "ScaledNoise(solver=EulerMaruyama(eta=1.0), s_noise=1.01)"),
        ("--solver ddim --eta 1 --s_noise 1.01", "ScaledNoise(solver=DDIM(eta=1.0, keep_eps=False), s_noise=1.01)"),
        ("--solver edm-churn --s-noise 1", "noise=1.0)"),
        ("--solver em --corrector langevin --norm tutorial", "norm='tutorial'"),
        ("--solver ddpm --variance large", "Ancestral(variance='large', denoise=True)"),
        ("--solver heun --corrector langevin --norm batch --corrections 2", "norm='batch'"),
        ("--solver score-sde --corrector langevin --predictor none", "predictor='none'"),
        ("--solver dopri5 --rtol 0.1 --atol 0.2", "rtol=0.1, atol=0.2"),
    ],
)
def test_options_reach_the_solver(flags, expected):
    assert expected in repr(on_the_command_line(*flags.split()))


@pytest.mark.parametrize("name", SCHEDULES)
def test_every_schedule_has_a_name(name):
    schedule = named_schedule(name.replace("-", "_"), Trig())
    assert schedule == named_schedule(name, EDM())
    assert float(schedule.sigma(np.float64(schedule.T))) > 0.0


def test_a_schedule_left_out_is_the_models_own():
    assert named_schedule(None, VP(t_end=1e-2)) == VP(t_end=1e-2)
    assert named_schedule(None, Trig()) == VP()
    assert named_schedule(None, EDM(0.01, 9.0), sigma_max=4.0) == EDM(0.01, 4.0)


def gaussian(**settings):
    return Sampler(by_name("gaussian"), schedule=VP(), **settings)


SAME = {
    "unknown solver": (lambda: named("ddimm"), "--solver ddimm"),
    "unknown schedule": (lambda: named_schedule("vpp", VP()), "--schedule vpp"),
    "unknown corrector": (lambda: named("heun", corrector="mala"), "--solver heun --corrector mala"),
    "eta of heun": (lambda: named("heun", eta=1.0), "--solver heun --eta 1"),
    "window of heun": (lambda: named("heun", eta_window=(0.1, 5.0)), "--solver heun --eta-window 0.1,5"),
    "window of an ode": (lambda: named("ddim", eta_window=(0.1, 5.0)), "--solver ddim --eta-window 0.1,5"),
    "eta out of range": (lambda: gaussian(solver=named("ddim", eta=2.0)), "--solver ddim --eta 2"),
    "s_noise of heun": (lambda: named("heun", s_noise=1.1), "--solver heun --s-noise 1.1"),
    "s_noise of ddim": (lambda: named("ddim", s_noise=1.1), "--solver ddim --s-noise 1.1"),
    "rtol on a grid": (lambda: named("heun", rtol=0.1), "--solver heun --rtol 0.1"),
    "steps of an adaptive solver": (lambda: gaussian(solver="dopri5", steps=9), "--solver dopri5 --steps 9"),
    "grid of an adaptive solver": (
        lambda: default_grid(named("ggf"), VP(), VP(), spacing="karras"),
        "--solver ggf --grid karras",
    ),
    "rho of a uniform grid": (
        lambda: default_grid(Heun(), VP(), VP(), spacing="uniform", rho=5.0),
        "--solver heun --grid uniform --rho 5",
    ),
    "rho where even times suit": (lambda: default_grid(named("em"), VP(), VP(), rho=5.0), "--solver em --rho 5"),
    "snr of nothing": (lambda: named("heun", snr=0.3), "--solver heun --snr 0.3"),
    "norm of ald": (lambda: named("heun", corrector="ald", norm="batch"), "--solver heun --corrector ald --norm batch"),
    "no predictor": (lambda: named("none"), "--solver none"),
    "corrector of an adaptive solver": (lambda: named("ggf", corrector="ald"), "--solver ggf --corrector ald"),
    "bound of vp": (lambda: named_schedule("vp", VP(), sigma_max=3.0), "--schedule vp --sigma-max 3"),
    "bounds in disorder": (lambda: named_schedule("ve", VP(), sigma_max=1e-3), "--schedule ve --sigma-max 0.001"),
    "no such device": (lambda: named_device("tpu"), "--device tpu"),
    "no such GPU": (lambda: named_device("cuda:77"), "--device cuda:77"),
}


@pytest.mark.parametrize("case", SAME)
def test_errors_are_the_same_in_both(run, tmp_path, case):
    in_python, flags = SAME[case]
    with pytest.raises(ValueError) as refused:
        in_python()
    code, _, error = run("sample", "analytic:gaussian", "--out", tmp_path / "out", *flags.split())
    assert code == 2
    assert str(refused.value) in error
    assert "--" not in str(refused.value)
    assert not (tmp_path / "out").exists()


def test_grids_suit_solver_and_schedule():
    def spacing(solver, schedule):
        return default_grid(solver, schedule, schedule).spacing

    assert default_grid(named("dpmpp-2m"), EDM(), EDM()) == arctan(20)
    assert default_grid(named("ddpm"), VP(), VP()) == arctan(20, rho=5.0, scale=2.0)
    assert default_grid(DDIM(0.5), VP(), VP()) == default_grid(RePaint(named("ddpm")), VP(), VP())
    assert default_grid(named("em"), VE(), VE(), 50) == Grid("uniform", 50, clean=True)
    assert spacing(named("heun"), VE()) == spacing(named("heun"), VP()) == "karras"
    assert spacing(named("heun"), Flow()) == "arctan"
    assert default_grid(named("heun"), smld(), smld()) == replace(karras(10), whole=True)
    assert default_grid(named("dpmpp-2m"), smld(), smld(), scales=(1e-3, 1.0)).end < 0.0
    assert default_grid(named("score-sde"), VP(), VP()).clean is False
    assert default_grid(named("ggf"), VP(), VP(), end=0.01) == Span(end=0.01)


def test_words_that_the_command_line_repeats_are_those_of_the_library():
    """They stand in modules that need torch or NumPy, which no --help is to wait for."""
    assert sorted(o.NETWORKS) == sorted(execution.NETWORKS)
    assert sorted(o.GRAPHS) == sorted(("auto", "off", *execution.GRAPHS))
    assert o.GUIDED == execution.GUIDED
    assert o.BACKENDS == BACKENDS
    assert o.NORMS == NORMS
    assert runs.FORMATS == tuple(FORMATS)
    for spacing in SPACINGS:
        assert Grid(spacing, 3).spacing == spacing
