"""Schedules by name: what was not said stays, what does not belong is refused, on the command line as in Python."""

from __future__ import annotations

import json
from dataclasses import replace
from itertools import product

import click
import numpy as np
import pytest
from cells import in_each

from fastscore.cli import options as o
from fastscore.cli.inpaint import inpaint
from fastscore.cli.likelihood import likelihood
from fastscore.cli.plan import plan
from fastscore.cli.sample import sample
from fastscore.cli.train import train
from fastscore.process.beta import CosineBeta, ExponentialBeta, FunctionBeta, LinearBeta
from fastscore.process.config import schedule_from_dict, schedule_to_dict
from fastscore.process.continuous import EDM, VE, VP, Flow, Pair, SubVP, Trig, TutorialVE
from fastscore.process.discrete import DiscreteVE, DiscreteVP, discrete_vp, smld
from fastscore.process.names import SCHEDULES, SETTINGS, named_schedule

VALUES = {
    "sigma_min": 0.125, "sigma_max": 2.5, "beta_min": 0.001, "beta_max": 0.25, "base": 9.0, "shift": 3.0,
    "table_steps": 7, "zero_snr": True, "t_end": 0.03125,
}  # fmt: skip
# One of each name, every setting unlike its default; and the same with one setting changed.
OWN = {
    "vp": VP(LinearBeta(0.2, 10.0), t_end=0.01, T=1.5),
    "subvp": SubVP(LinearBeta(0.2, 10.0), t_end=0.01, T=1.5),
    "ve": VE(0.02, 30.0, 1e-3),
    "edm": EDM(0.01, 9.0),
    "flow": Flow(0.01, 1.5),
    "vp-cosine": VP(CosineBeta(0.02), t_end=0.01, T=0.9),
    "vp-exponential": VP(ExponentialBeta(0.2, 10.0), t_end=0.01, T=1.5),
    "tutorial": TutorialVE(5.0, 0.01),
    "ddpm": discrete_vp(n=40, beta_min=2e-4, beta_max=0.3),
    "ddpm-cosine": discrete_vp("cosine", n=40),
    "smld": smld(6, 0.02, 2.0),
}
TABLES = {
    "ddpm": lambda **v: discrete_vp(**{"n": 40, "beta_min": 2e-4, "beta_max": 0.3} | v),
    "ddpm-cosine": lambda **v: discrete_vp("cosine", **{"n": 40} | v),
    "smld": lambda **v: smld(**{"n": 6, "sigma_min": 0.02, "sigma_max": 2.0} | v),
}


def by_hand(name, setting):
    """The model's own schedule of a name with one setting changed, each class in its own words."""
    own, value = OWN[name], VALUES[setting]
    if name in TABLES:
        return TABLES[name](**{"n" if setting == "table_steps" else setting: value})
    if setting.startswith("beta"):
        return replace(own, beta=replace(own.beta, **{setting: value}))
    return replace(own, **{setting: value})


def close(a, b):
    """Tables are made again from their ends, which rounds."""
    if isinstance(a, DiscreteVP | DiscreteVE):
        (x,), (y,) = vars(a).values(), vars(b).values()
        return type(a) is type(b) and len(x) == len(y) and np.allclose(x, y, rtol=1e-10, atol=0.0)
    return a == b


@pytest.mark.parametrize("name", SCHEDULES)
def test_a_setting_changes_itself_alone_or_is_refused(name):
    own = OWN[name]

    def check(setting, asked):
        if name in SETTINGS[setting]:
            changed = named_schedule(asked, own, **{setting: VALUES[setting]})
            assert close(changed, by_hand(name, setting))
            assert not close(changed, own)
        else:
            with pytest.raises(ValueError, match=f"{setting} belongs to the schedule.*leave it out with schedule "):
                named_schedule(asked, own, **{setting: VALUES[setting]})

    in_each(product(SETTINGS, (name, None)), check)


@pytest.mark.parametrize("name", SCHEDULES)
def test_a_name_that_is_the_models_own_is_the_models_schedule(name):
    for asked in (None, name, name.upper().replace("-", "_")):
        assert named_schedule(asked, OWN[name]) is OWN[name]
    default = named_schedule(name, Trig())
    assert default != OWN[name]
    for other in set(SCHEDULES) - {name}:
        assert named_schedule(name, OWN[other]) == default
    every = {k: VALUES[k] for k in SETTINGS if name in SETTINGS[k]}
    assert named_schedule(name, OWN[name], **every) != OWN[name]


@pytest.mark.parametrize("name", SCHEDULES)
def test_folders_keep_every_setting(name):
    every = {k: VALUES[k] for k in SETTINGS if name in SETTINGS[k]}
    for schedule in (OWN[name], named_schedule(name, Trig(), **every)):
        assert schedule_from_dict(json.loads(json.dumps(schedule_to_dict(schedule)))) == schedule


@pytest.mark.parametrize("kind", ["linear", "cosine"])
def test_tables_to_pure_noise_are_known_again(kind):
    name, table = {"linear": "ddpm", "cosine": "ddpm-cosine"}[kind], discrete_vp(kind, n=30, zero_snr=True)
    assert table.betas[-1] == 1.0
    assert named_schedule(name, table) is table
    assert close(named_schedule(None, table, table_steps=9), discrete_vp(kind, n=9, zero_snr=True))
    assert close(named_schedule(name, table, zero_snr=False), discrete_vp(kind, n=30))


def test_schedules_without_a_name_keep_what_they_are():
    pair = Pair(lambda t: 1 - t, lambda t: t, t_end=0.1, std=2.0)
    assert named_schedule(None, pair) is pair
    assert named_schedule(None, pair, t_end=0.2) == replace(pair, t_end=0.2)
    rate = VP(FunctionBeta(lambda t: 20.0 * np.cos(0.5 * np.pi * (1.0 - t)) ** 2), T=0.9)
    assert named_schedule(None, rate, t_end=0.2) == replace(rate, t_end=0.2)
    own = DiscreteVP((0.1, 0.5, 0.2))
    assert named_schedule(None, own) is own
    assert named_schedule("ddpm", own) == discrete_vp()
    scaled = discrete_vp("scaled-linear")
    for schedule, setting in ((pair, "beta_max"), (rate, "beta_max"), (own, "table_steps"), (scaled, "beta_max")):
        with pytest.raises(ValueError, match=f"{setting} belongs to"):
            named_schedule(None, schedule, **{setting: VALUES[setting]})
    assert named_schedule(None, Trig(), beta_max=9.0) == VP(LinearBeta(0.1, 9.0))


@pytest.mark.parametrize(
    ("name", "settings", "message"),
    [
        ("vp", {"beta_min": 30.0}, "must satisfy 0 < beta_min < beta_max"),
        ("subvp", {"beta_max": 0.01}, "must satisfy 0 < beta_min < beta_max"),
        ("ddpm", {"beta_max": 20.0}, "beta_max = 20.0 of a table.* between 0 and 1 .*vp and subvp"),
        ("smld", {"sigma_min": 2.0}, "must satisfy 0 < sigma_min < sigma_max"),
        ("tutorial", {"base": 0.5}, "base = 0.5 must be above 1"),
        ("ve", {"t_end": 1.0}, "t_end = 1.0 must lie between -inf .* and T = 1.0"),
        ("flow", {"t_end": 0.0}, "t_end = 0.0 must lie between 0.0"),
        ("ddpm-cosine", {"table_steps": 0}, "n = 0 must be at least 1"),
        ("edm", {"t_end": 0.1}, "t_end belongs to"),
        ("flow", {"shift": -1.0}, "shift = -1.0 must be positive"),
        ("ddpm", {"table_steps": 1, "zero_snr": True}, "n = 1 must be at least 2 with zero_snr"),
        ("smld", {"zero_snr": False}, "zero_snr belongs to"),
    ],
)
def test_values_out_of_range_are_named(name, settings, message):
    with pytest.raises(ValueError, match=message):
        named_schedule(name, Trig(), **settings)


COMMANDS = {
    sample: ("analytic:gaussian", "--out", "x"),
    inpaint: ("fashion", "x", "--out", "x"),
    plan: (),
    likelihood: ("analytic:gaussian", "x"),
    train: ("moons", "--out", "x"),
}


@pytest.mark.thirds
@pytest.mark.parametrize("command", COMMANDS, ids=lambda command: command.name)
@pytest.mark.parametrize("name", SCHEDULES)
def test_the_command_line_makes_the_same_schedule(command: click.Command, name):
    settings = {k: VALUES[k] for k in SETTINGS if name in SETTINGS[k] and (command is train or k != "t_end")}
    for asked in ({}, settings, *({k: v} for k, v in settings.items())):
        flags = [w for k, v in asked.items() for w in (f"--{k.replace('_', '-')}", str(v)) if w != "True"]
        with command.make_context(command.name, [*COMMANDS[command], "--schedule", name, *flags]) as context:
            assert o.make_schedule(context.params, OWN[name]) == named_schedule(name, OWN[name], **asked)
            context.params["schedule"] = None
            assert o.make_schedule(context.params, OWN[name]) == named_schedule(None, OWN[name], **asked)
