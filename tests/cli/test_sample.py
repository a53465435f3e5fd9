"""fastscore sample as a user meets it: files, what is replaced, what is recorded."""

from __future__ import annotations

import json
import resource
import signal
import subprocess
import sys
from functools import partial

import numpy as np
import pytest
import torch
from gated import one_in
from PIL import Image

from fastscore.cli.sample import network_of, sample
from fastscore.model.analytic import by_name
from fastscore.network.timing import choose_batch
from fastscore.process.continuous import VP
from fastscore.sampler import Sampler
from fastscore.solvers.names import ADAPTIVE, named

POINTS = ("sample", "analytic:gaussian", "--steps", "5", "--quiet")
IMAGES = ("sample", "fashion", "--batch", "2", "--steps", "1", "--network", "own", "--quiet")


def report_of(out):
    return json.loads((out / "run.json").read_text())


def arrays_of(out):
    with np.load(out / "samples.npz") as saved:
        return dict(saved)


def test_a_negative_class(run, tmp_path):
    """What guidance leads away from: a run of its own, recorded, and refused without a weight."""
    base = (*IMAGES, "-n", "2", "--class", "3", "--guidance", "2")
    assert run(*base, "--out", tmp_path / "a")[0] == 0
    assert run(*base, "--negative", "5", "--out", tmp_path / "b")[0] == 0
    assert run(*base, "--negative", "10", "--out", tmp_path / "c")[0] == 0  # the null class itself
    a, b, c = (arrays_of(tmp_path / name) for name in "abc")
    assert np.array_equal(a["samples"], c["samples"])
    assert not np.array_equal(a["samples"], b["samples"])
    assert b["cond.negative"].tolist() == [5, 5]
    assert report_of(tmp_path / "b")["settings"]["negative"] == 5
    code, _, error = run(*base, "--negative", "5", "--out", tmp_path / "a")  # another run is there
    assert code != 0, error
    code, _, error = run(*IMAGES, "-n", "2", "--negative", "5", "--out", tmp_path / "d")
    assert code == 2, error
    assert "need --guidance" in error


def test_sample_writes_points(run, tmp_path):
    out = tmp_path / "a"
    code, said, _ = run("sample", "analytic:mixture", "-n", "500", "--steps", "15", "--out", out)
    assert code == 0
    assert "500 samples, 15 evaluations each" in said
    assert said.strip().endswith(f"{out}/samples.npz, grid.png, run.json")
    saved = arrays_of(out)
    assert list(saved) == ["samples", "ids"]
    x = saved["samples"]
    assert (x.dtype, x.shape) == (np.float32, (500, 2))
    assert np.array_equal(saved["ids"], np.arange(500))
    assert np.abs(np.linalg.norm(x, axis=1) - 1.0).mean() < 0.15
    report = report_of(out)
    assert report["nfe"] == 15
    assert (report["settings"]["solver"], report["solver"]) == ("dpmpp-2m", "DPMpp2M()")
    assert len(report["plan_sha256"]) == 64
    assert report["execution"]["batch"] == 64
    assert report["execution"]["device"].startswith("cuda" if torch.cuda.is_available() else "cpu")  # --device auto
    assert report["settings"]["device"] == "auto"
    assert report["timings"]["samples_per_s"] > 0
    assert report["versions"]["noise"] == "v1"
    with Image.open(out / "grid.png") as image:
        assert min(image.size) > 100
        assert len(set(image.get_flattened_data() if hasattr(image, "get_flattened_data") else image.getdata())) > 3


def test_ids_choose_samples(run, tmp_path):
    assert run(*POINTS, "-n", "20", "--out", tmp_path / "a")[0] == 0
    assert run(*POINTS, "--seeds", "17,3-5", "--out", tmp_path / "b")[0] == 0
    a, b = arrays_of(tmp_path / "a"), arrays_of(tmp_path / "b")
    assert b["ids"].tolist() == [17, 3, 4, 5]
    assert np.array_equal(b["samples"], a["samples"][[17, 3, 4, 5]])
    assert report_of(tmp_path / "b")["settings"]["ids"] == "17,3-5"


def test_nothing_to_draw_is_no_error(run, tmp_path):
    assert run(*POINTS, "-n", "0", "--out", tmp_path / "a")[0] == 0
    assert arrays_of(tmp_path / "a")["samples"].shape == (0, 2)
    assert report_of(tmp_path / "a")["timings"]["samples_per_s"] is None


def test_two_runs_are_never_mixed(run, tmp_path):
    base = (*IMAGES, "--png", "--out", tmp_path)
    assert run(*base, "-n", "2")[0] == 0
    assert sorted(p.name for p in (tmp_path / "png").iterdir()) == ["000000.png", "000001.png"]
    (tmp_path / "png/mine.png").touch()
    assert run(*base, "--ids", "9", "--overwrite")[0] == 0
    assert sorted(p.name for p in (tmp_path / "png").iterdir()) == ["000009.png", "mine.png"]
    assert run(*base, "-n", "0", "--overwrite")[0] == 0
    assert not (tmp_path / "grid.png").exists()
    assert sorted(p.name for p in tmp_path.iterdir()) == ["png", "run.json", "samples.npz"]


def test_an_earlier_run_is_replaced_only_when_asked_and_only_by_a_whole_one(run, tmp_path, monkeypatch):
    base = (*POINTS, "-n", "4", "--out", tmp_path)
    assert run(*base)[0] == 0
    before = (tmp_path / "samples.npz").read_bytes()
    code, _, error = run(*base, "--seed", "1")
    assert code == 2
    assert "already holds a run with other settings (seed: 0 there, 1 here" in error
    with monkeypatch.context() as broken:
        broken.setattr("fastscore.output.run.write_text", lambda *_: (_ for _ in ()).throw(OSError("no space left")))
        assert run(*base, "--seed", "1", "--overwrite")[0] == 5
    assert (tmp_path / "samples.npz").read_bytes() == before
    assert sorted(p.name for p in tmp_path.iterdir()) == [".run", "grid.png", "run.json", "samples.npz"]
    with monkeypatch.context() as idle:
        idle.setattr("fastscore.sampler.Sampler.stream", lambda *_, **__: pytest.fail("drawn again"))
        assert run(*base, "--seed", "1", "--overwrite")[0] == 0
    assert (tmp_path / "samples.npz").read_bytes() != before
    assert sorted(p.name for p in tmp_path.iterdir()) == ["grid.png", "run.json", "samples.npz"]


def test_full_disk_is_a_storage_error(run, tmp_path):
    before = signal.signal(signal.SIGXFSZ, signal.SIG_IGN), resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, before[1][1]))
    try:
        code, _, error = run(*POINTS, "-n", "4096", "--batch", "4096", "--out", tmp_path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before[1])
        signal.signal(signal.SIGXFSZ, before[0])
    assert code == 5, error
    assert "Traceback" not in error
    assert not list(tmp_path.iterdir())


SOLVERS = ["dpmpp-2m", "ddim", "ddpm", "ancestral", "em", "reverse-diffusion", "euler", "heun"]
SCHEDULES = ["vp", "subvp", "ve", "edm", "vp-cosine", "vp-exponential", "tutorial", "ddpm", "smld"]


@pytest.mark.thirds
@pytest.mark.parametrize(
    ("solver", "schedule"),
    one_in(
        4,
        [
            pytest.param(solver, schedule, marks=[] if solver == SOLVERS[k % len(SOLVERS)] else pytest.mark.slow)
            for solver in SOLVERS
            for k, schedule in enumerate(SCHEDULES)
        ],
    ),
)
def test_every_solver_on_every_schedule(run, tmp_path, solver, schedule):
    steps = "8" if schedule == "smld" else "200"
    argv = ("sample", "analytic:gaussian", "-n", "64", "--steps", steps, "--quiet", "--out", tmp_path)
    code, _, error = run(*argv, "--solver", solver, "--schedule", schedule)
    assert code == 0 and ("not noise alone" in error if schedule == "smld" else not error)
    x = arrays_of(tmp_path)["samples"]
    assert np.isfinite(x).all()
    if schedule != "smld":  # whose ten levels start too low for a prior that forgets the data
        assert abs(x.mean() - 0.5) < 0.15  # the target is N(0.5, 0.5^2); 128 numbers
        assert 0.4 < x.std() < 0.62


@pytest.mark.parametrize("solver", [ADAPTIVE[0], *(pytest.param(s, marks=pytest.mark.slow) for s in ADAPTIVE[1:])])
def test_adaptive_solvers_report_what_they_cost(run, tmp_path, solver):
    argv = ("sample", "analytic:gaussian", "-n", "70", "--batch", "16", "--solver", solver, "--rtol", "0.05")
    code, said, _ = run(*argv, "--out", tmp_path)
    assert code == 0
    assert "evaluations each on average" in said
    report = report_of(tmp_path)
    cost = report["adaptive"]
    assert 0 < cost["nfe_min"] <= cost["nfe_mean"] <= cost["nfe_max"]
    assert 0.0 < cost["utilisation"] <= 1.0
    assert "plan_sha256" not in report
    saved = arrays_of(tmp_path)
    assert saved["ids"].tolist() == list(range(70))
    again = Sampler(by_name("gaussian"), schedule=VP(), solver=named(solver, rtol=0.05), batch=16).run([69, 3])
    assert np.array_equal(saved["samples"][[69, 3]], again.numpy())  # each in its own place


def test_package_runs_as_a_module(tmp_path):
    done = subprocess.run(
        [sys.executable, "-m", "fastscore", "plan", "--steps", "2"], capture_output=True, text=True, cwd=tmp_path
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert "VP: 2 network evaluations" in done.stdout


@pytest.mark.parametrize("words", ["--network own", "--dtype fp32 --compile off"])
def test_how_the_network_ran_is_recorded(run, tmp_path, words):
    code, _, error = run(*IMAGES[:-3], *words.split(), "--quiet", "-n", "2", "--out", tmp_path)
    assert (code, error.count("is now --network own")) == (0, int("dtype" in words))
    report = report_of(tmp_path)
    none = dict.fromkeys(("error", "threads", "key", "lines", "residual", "tf32", "instead"))
    assert report["network"] == {"dtype": "own", "compile": "off", **none}
    assert report["execution"]["network"] == report["settings"]["network"] == "own"


@pytest.mark.parametrize(
    ("old", "network"),
    [
        ("--dtype fp32 --compile off", "own"),
        ("--dtype fp32", "fp32"),
        ("--dtype auto --compile auto", "auto"),
        ("--compile full", "compile"),
        ("--compile regional", "regional"),
        ("--dtype bf16 --compile auto", "bf16"),
    ],
)
def test_the_old_options_of_the_network_mean_one_of_the_new(capsys, old, network):
    with sample.make_context("sample", ["fashion", "--out", "a", *old.split()]) as context:
        assert network_of(context.params) == network
    assert capsys.readouterr().err == f"fastscore: {old} is now --network {network}\n"


def test_old_and_new_options_of_the_network_exclude_each_other(run, tmp_path):
    code, _, error = run(*POINTS, "--network", "auto", "--dtype", "fp32", "--out", tmp_path)
    assert code == 2 and "--network replaces --dtype and --compile" in error
    code, _, error = run(*POINTS, "--dtype", "bf16", "--compile", "off", "--out", tmp_path)
    assert code == 2 and "say --network bf16 alone" in error
    _, said, _ = run("sample", "--help")
    assert "--network" in said and "--dtype" not in said and "--compile" not in said


def test_without_a_compiler_one_line_says_so(run, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("CXX", "/nowhere/g++")
    argv = [word for word in IMAGES if word not in ("--network", "own")]
    code, _, error = run(*argv, "-n", "2", "--out", tmp_path / "a")
    assert code == 0
    assert error == "fastscore: the network runs as it is: no C++ compiler (g++ or clang++)\n"


def test_the_micro_batch_can_be_measured(run, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr("fastscore.network.timing.choose_batch", partial(choose_batch, sizes=(16, 32), threads=(1,)))
    assert run(*POINTS, "-n", "3", "--batch", "auto", "--out", tmp_path / "a")[0] == 0
    report = report_of(tmp_path / "a")
    assert report["settings"]["batch"] == "auto"
    assert report["execution"]["batch"] >= 16
    assert report["threads"] == 1
