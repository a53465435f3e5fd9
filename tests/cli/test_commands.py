"""The other commands as a user meets them: plan, likelihood, models, env, --help."""

from __future__ import annotations

import json

import click
import numpy as np
import pytest

from fastscore.cli import group
from fastscore.cli.groups import GROUPS, Grouped
from fastscore.cli.types import Count
from fastscore.solvers.names import ADAPTIVE, SOLVERS


@pytest.mark.thirds
@pytest.mark.parametrize("solver", [name for name in SOLVERS if name not in ("none", "score-sde", *ADAPTIVE)])
def test_every_solver_has_a_plan(run, solver):
    code, said, error = run("plan", "--solver", solver, "--schedule", "subvp", "--steps", "5")
    assert (code, error) == (0, "")
    assert "nan" not in said


def test_likelihood_of_points(run, tmp_path):
    points = np.random.default_rng(0).normal(0.5, 0.5, (14, 2))  # the data of analytic:gaussian
    np.save(tmp_path / "x.npy", points)
    reports = []
    for solver in ((), ("--solver", "rk4", "--steps", "60"), ("--batch", "7")):
        argv = ("likelihood", "analytic:gaussian", str(tmp_path / "x.npy"), "--quiet", "--schedule", "ve", *solver)
        code, said, error = run(*argv, "--out", tmp_path / "nats.npz", *(("--overwrite",) if reports else ()))
        assert code == 0, error
        reports.append(json.loads(said))
        with np.load(tmp_path / "nats.npz") as saved:
            nats = saved["nats"]
        exact = -2.0 * ((points - 0.5) ** 2).sum(1) - np.log(2.0 * np.pi * 0.25)
        assert np.abs(nats - exact).max() < 0.06  # the prior's width of 50 leaves out the mean, the end has sigma 0.01
        assert reports[-1]["nats"] == pytest.approx(nats.mean(), abs=1e-5)
        assert reports[-1]["bits_per_dim"] == pytest.approx(-nats.mean() / 2 / np.log(2), abs=1e-5)
    assert reports[0]["bits_per_dim"] == reports[2]["bits_per_dim"]
    assert reports[0]["bits_per_dim_stderr_of_probes"] == 0.0


@pytest.mark.slow
def test_likelihood_of_images(run, tmp_path):
    images = np.random.default_rng(0).integers(0, 256, (2, 28, 28, 1), dtype=np.uint8)
    np.savez(tmp_path / "noise.npz", images=images)
    argv = ("likelihood", "fashion", str(tmp_path / "noise.npz"), "--solver", "bs32", "--batch", "2", "--quiet")
    code, said, _ = run(*argv, "--rtol", "1e-2", "--atol", "1e-2", "--probes", "2")
    assert code == 0
    report = json.loads(said)
    assert report["bits_per_dim"] > 8.0  # uniform noise is worse under the model than under no model at all
    assert report["dequantised"] is True
    assert report["bits_per_dim_stderr_of_probes"] > 0.0


def test_plan_prints_the_table(run):
    code, said, _ = run("plan", "--solver", "em", "--schedule", "subvp", "--steps", "3", "--corrector", "ald")
    assert code == 0
    assert "SubVP: 5 network evaluations, 5 noise draws, 0 history slots" in said


def test_env_and_models(run):
    code, said, _ = run("env", "--no-torch")
    assert code == 0
    assert "fastscore" in said
    code, said, _ = run("models", "--json")
    assert code == 0
    assert "analytic:mixture" in json.loads(said)["analytic"]


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("64", 64),
        ("50k", 50_000),
        ("16.1k", 16_100),
        ("1.001k", 1001),
        ("1.5M", 1_500_000),
        ("1e6", 1_000_000),
        ("2G", 2_000_000_000),
        ("0.5k", 500),
    ],
)
def test_counts(text, number):
    assert Count().convert(text, None, None) == number


@pytest.mark.parametrize(
    "command",
    [
        "",
        "sample",
        "inpaint",
        "langevin",
        "plan",
        "tune",
        "train",
        "evaluate",
        "likelihood",
        "export",
        "merge",
        "models",
        "env",
    ],
)
def test_every_command_has_help(run, command):
    code, said, _ = run(*command.split(), "--help")
    assert code == 0
    assert "Usage: fastscore" in said


def test_help_sorts_options_by_what_they_say():
    grouped = [command for command in group.commands.values() if isinstance(command, Grouped)]
    assert [command.name for command in grouped] == ["sample", "inpaint", "plan", "tune", "likelihood"]
    for command in grouped:
        context = click.Context(command, help_option_names=["-h", "--help"])
        texts = []
        for kind in (Grouped, click.Command):
            formatter = click.HelpFormatter(width=200)
            kind.format_options(command, context, formatter)
            texts.append(formatter.getvalue())
        sorted_lines, lines = ({line.strip() for line in text.splitlines() if line[:1] == " "} for text in texts)
        flags = [{line.split("  ")[0] for line in part if line.startswith("-")} for part in (sorted_lines, lines)]
        assert flags[0] == flags[1] and len(flags[0]) > 5  # each of them once, none lost
        titles = [line[:-1] for line in texts[0].splitlines() if line.endswith(":") and line[:1] != " "]
        assert titles == [title for title in (*GROUPS, "Options") if title in titles] and len(titles) > 2
        rest = texts[0].split("\nOptions:")[1]
        assert [line.split()[0] for line in rest.splitlines() if line.strip()] == ["-h,"], rest
    names = [name for names in GROUPS.values() for name in names]
    assert len(names) == len(set(names))
    assert set(names) <= {p.name for command in grouped for p in command.params}
