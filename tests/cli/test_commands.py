"""The other commands as a user meets them: plan, likelihood, models, env, --help."""

from __future__ import annotations

import io
import json
import re
from contextlib import redirect_stdout

import click
import numpy as np
import pytest

from fastscore.cli import group
from fastscore.cli.groups import EVERYDAY, GROUPS, Grouped
from fastscore.cli.plot import plot
from fastscore.cli.sample import sample
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


def helped(command, topic=""):
    """Return the lines of a command's help, of one topic."""
    with pytest.raises(click.exceptions.Exit), redirect_stdout(io.StringIO()) as said:
        command.make_context(command.name, ["--help", *([topic] if topic else [])], max_content_width=100)
    return said.getvalue().splitlines()


def flags_of(lines):
    """Return the first long flag of each option that lines describe, from the first title on."""
    lines = lines[next(k for k, line in enumerate(lines) if re.fullmatch(r"\w.*:", line)) :]
    return {re.findall(r"--[\w-]+", line)[0] for line in lines if re.match(r"  -", line) and "--help " not in line}


def test_help_shows_every_option_under_some_topic_and_each_fits_a_screen(monkeypatch):
    monkeypatch.setenv("COLUMNS", "100")
    commands = {**group.commands, **plot.commands}.values()  # plot has a plan of its own, with the same options
    grouped = [command for command in (*commands, group.commands["plan"]) if isinstance(command, Grouped)]
    assert {"sample", "inpaint", "plan", "tune", "likelihood"} <= {command.name for command in grouped}
    for command in grouped:
        options = [p for p in command.params if isinstance(p, click.Option) and not p.hidden]
        expected = {next(flag for flag in p.opts if flag.startswith("--")) for p in options}
        pages = {topic: helped(command, topic) for topic in command.topics if topic != "all"}
        assert set.union(*(flags_of(page) for page in pages.values())) == expected
        assert flags_of(helped(command, "all")) == expected
        short = helped(command)
        everyday, more = "\n".join(short).split("\nMore:\n")
        named = set(re.findall(r"--[\w-]+", more.replace("-\n" + " " * 19, "-"))) - {"--help"}
        assert named == expected - flags_of(everyday.splitlines())  # the rest is named, under its topic
        assert max(len(page) for page in (*pages.values(), short)) <= 50
        assert not [line for line in short if len(line) > 100]
    assert "    fastscore sample fashion -n 64 --class 3 --guidance 2 --out dresses" in helped(sample)
    names = [name for names in GROUPS.values() for name in names]
    assert len(names) == len(set(names)) and set(EVERYDAY) <= set(names)
    assert set(names) <= {p.name for command in grouped for p in command.params}


def test_a_topic_may_be_misspelt_or_none(run):
    code, _, error = run("sample", "--help", "sovler")
    assert code == 2 and "(nearest: solver)" in error
    code, said, _ = run("sample", "-h", "fashion")
    assert code == 0 and "More:" in said
    assert run("sample", "-h", "SOLVER")[1] == run("sample", "--help", "solver")[1] != said
