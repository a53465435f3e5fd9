"""Noise that changes on the way: an eta that is a function of a step's times."""

import math
import pickle
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import pytest
import torch
from cases import SETTINGS

import fastscore as fs
from fastscore.plan.passes import make_plan
from fastscore.process.continuous import EDM
from fastscore.solvers.grids import default_grid
from fastscore.solvers.names import SOLVERS, named, owning


@dataclass(frozen=True)
class Falling:
    """More noise where steps start late in time, none in short ones."""

    most: float = 0.9

    def __call__(self, t: float, s: float) -> float:
        return self.most * min(t - s, 1.0) / (1.0 + abs(t)) if t - s > 0.1 else 0.0


SOLVERS_WITH_ETA = {
    "ddim": fs.DDIM,
    "ddim-keep-eps": lambda eta: fs.DDIM(eta, keep_eps=True),
    "euler-maruyama": fs.EulerMaruyama,
    "stochastic-heun": fs.StochasticHeun,
    "dpm-multistep": lambda eta: fs.DPMMultistep(3, "x0", "exact", eta),
    "dpm-multistep-eps": lambda eta: fs.DPMMultistep(2, "eps", "paper", eta),
    "dpm-multistep-diffusers": lambda eta: fs.DPMMultistep(3, "x0", "diffusers", eta),
    "dpm-solver": lambda eta: fs.DPMSolver(2, "x0", eta),
    "ancestral": lambda eta: fs.AncestralSplit(fs.DPMSolver(2, "x0"), eta),
    "ancestral-flow": lambda eta: fs.AncestralSplit(fs.DPMSolver(2, "flow"), eta, "flow"),
    "renoise": fs.Renoise,
    "renoise-time": lambda eta: fs.Renoise(eta, "time"),
    "sa-predictor": lambda eta: fs.SASolver(3, 0, eta),
}


@pytest.mark.thirds
@pytest.mark.parametrize("name", SOLVERS_WITH_ETA)
def test_each_step_is_that_of_its_own_constant(name):
    make = SOLVERS_WITH_ETA[name]
    for setting in ("vp-linear", "subvp", "ve", "edm", "flow", "smld-table"):
        schedule, t = SETTINGS[setting].schedule, np.array(SETTINGS[setting].knots)
        window = fs.EtaWindow(0.3, 2.5, 0.8, "end", "ratio")
        rho = schedule.sigma(t) / schedule.alpha(t)
        for eta, amounts in (
            (Falling(), [Falling()(*pair) for pair in pairwise(t)]),
            (window, [0.8 if 0.3 <= v <= 2.5 else 0.0 for v in rho[1:]]),
        ):
            assert len(set(amounts)) > 1, "all alike"
            found = make(eta).steps(schedule, t)
            for k, amount in enumerate(amounts):
                assert found[k] == make(amount).steps(schedule, t)[k], (setting, k, amount)


def test_a_window_that_is_never_open_leaves_the_ode():
    t = fs.uniform(6)(fs.VP())
    for make in SOLVERS_WITH_ETA.values():
        quiet = make_plan(make(fs.EtaWindow(2.0, 3.0)), fs.VP(), t)
        assert quiet.rows == make_plan(make(0.0), fs.VP(), t).rows
        assert quiet.draws == 1


def test_windows_count_in_time_or_in_noise_from_either_end():
    t = np.array([8.0, 4.0, 2.0, 1.0, 0.5])  # of EDM both are sigma
    schedule = EDM(0.5, 8.0)
    for at, noisy in (("start", [2, 3]), ("end", [1, 2])):
        by_time, by_ratio = (fs.DDIM(fs.EtaWindow(1.0, 2.0, at=at, of=of)) for of in ("time", "ratio"))
        assert by_time.steps(schedule, t) == by_ratio.steps(schedule, t)
        assert [k for k, group in enumerate(by_time.steps(schedule, t)) if group[-1].c] == noisy
    pure = fs.DDIM(fs.EtaWindow(0.5, math.inf, of="ratio")).steps(fs.Flow(), np.array([1.0, 0.5, 0.2]))
    assert [bool(group[0].c) for group in pure] == [True, True]  # sigma / alpha is infinite at the first
    solver = fs.SASolver(tau=fs.EtaWindow(0.1, 2.0))
    assert pickle.loads(pickle.dumps(solver)) == solver == fs.SASolver(tau=fs.TauWindow(0.1, 2.0))


def test_by_name():
    assert named("em", eta_window=(0.1, 5.0)) == fs.EulerMaruyama(fs.EtaWindow(0.1, 5.0, of="ratio"))
    both = named("ddim", eta=0.5, eta_window=(0.1, math.inf), s_noise=1.1)
    assert both == fs.ScaledNoise(fs.DDIM(fs.EtaWindow(0.1, math.inf, 0.5, of="ratio")), 1.1)
    assert named("dpmpp-2m-sde", eta=0.5).eta == named("sa", eta=0.5).tau == 0.5
    grids = [default_grid(fs.SASolver(tau=v), fs.VP(), fs.VP(), 9) for v in (0.0, 0.7, fs.EtaWindow(0.1, 0.5))]
    assert grids[0] != grids[1] == grids[2]
    for name in SOLVERS:
        if name in owning("eta"):
            solver = named(name, eta=0.7, eta_window=(0.1, 5.0))
            fixed, moving = (default_grid(v, fs.VP(), fs.VP(), 9) for v in (named(name, eta=0.7), solver))
            assert fixed == moving or name in ("em", "milstein", "heun-sde", "dpm-2-ancestral")  # fitted to the noise
            rows = make_plan(solver, fs.VP(), moving(fs.VP())).rows[1:]
            assert any(row.c for row in rows) and not all(row.c for row in rows)
        else:
            with pytest.raises(ValueError, match=f"eta_window belongs to .* solver {name}"):
                named(name, eta_window=(0.1, 5.0))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: fs.EtaWindow(1.0, 2.0, of="sigma"), "of = 'sigma' must be time or ratio"),
        (
            lambda: make_plan(fs.DDIM(torch.nn.Linear(1, 1)), fs.VP(), fs.uniform(3)(fs.VP())),
            r"DDIM: eta = Linear\(.* raised .*must take two numbers",
        ),
        (lambda: fs.DDIM(lambda t: 1.0), "DDIM: eta = <function .* must take two numbers, the times of a step"),
        (lambda: fs.SASolver(tau=lambda: 1.0), "SASolver: tau = <function .* must take two numbers"),
        (lambda: steps(fs.DDIM(lambda t, s: 1.5)), r"DDIM: eta\(t, s\) = 1.5 must lie in 0 .. 1"),
        (lambda: steps(fs.EulerMaruyama(lambda t, s: -0.5)), r"EulerMaruyama: eta\(t, s\) = -0.5 must be at least 0"),
        (lambda: steps(fs.StochasticHeun(lambda t, s: math.inf)), r"StochasticHeun: eta\(t, s\) = inf"),
        (lambda: steps(fs.DPMMultistep(eta=lambda t, s: math.nan)), r"DPMMultistep: eta\(t, s\) = nan .*not NaN"),
        (lambda: steps(fs.DPMSolver(2, "x0", lambda t, s: "1")), r"DPMSolver: eta\(t, s\) = '1' must be a number"),
        (lambda: steps(fs.AncestralSplit(fs.Euler(), lambda t, s: -1.0)), r"AncestralSplit: eta\(t, s\) = -1"),
        (lambda: fs.DPMSolver(3, "x0", fs.EtaWindow(0.0, 1.0)), "order 1 or 2"),
        (lambda: named("ddim", eta_window=(0.1, 1.0)), "of ddim with eta > 0"),
        (lambda: named("em", eta_window=(2.0, 1.0)), "low = 2.0 must not exceed"),
    ],
)
def test_what_is_no_eta_is_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def steps(solver):
    return solver.steps(fs.VP(), np.array([1.0, 0.6, 0.3]))
