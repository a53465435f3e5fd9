"""The command line as a user meets it: files, exit codes, messages."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from fastscore import cli
from fastscore.cli.options import ADAPTIVE, SOLVERS


def run(capsys, *argv: str) -> tuple[int, str, str]:
    """Run the command line in this process; return exit code, stdout and stderr."""
    with pytest.raises(SystemExit) as stopped:
        cli.main(list(argv))
    captured = capsys.readouterr()
    return int(stopped.value.code or 0), captured.out, captured.err


def test_sample_writes_points(capsys, tmp_path):
    out = tmp_path / "a"
    code, said, _ = run(capsys, "sample", "analytic:mixture", "-n", "500", "--steps", "15", "--out", str(out))
    assert code == 0
    assert "500 samples, 15 evaluations each" in said
    with np.load(out / "samples.npz") as saved:
        x, ids = saved["samples"], saved["ids"]
    assert (x.dtype, x.shape) == (np.float32, (500, 2))
    assert np.array_equal(ids, np.arange(500))
    assert np.abs(np.linalg.norm(x, axis=1) - 1.0).mean() < 0.15
    report = json.loads((out / "run.json").read_text())
    assert report["nfe"] == 15
    assert report["settings"]["solver"] == "dpmpp-2m"
    assert len(report["plan_sha256"]) == 64
    assert report["timings"]["samples_per_s"] > 0
    assert report["versions"]["noise"] == "v1"
    with Image.open(out / "grid.png") as image:
        assert min(image.size) > 100
        assert len(set(image.get_flattened_data() if hasattr(image, "get_flattened_data") else image.getdata())) > 3


def test_sampling_again_gives_the_same_file(capsys, tmp_path):
    for name in "ab":
        assert run(capsys, "sample", "analytic:gaussian", "-n", "9", "--out", str(tmp_path / name), "--quiet")[0] == 0
    first, second = ((tmp_path / name / "samples.npz").read_bytes() for name in "ab")
    assert first == second


def test_ids_choose_samples(capsys, tmp_path):
    base = ("sample", "analytic:gaussian", "--steps", "5", "--quiet")
    assert run(capsys, *base, "-n", "20", "--out", str(tmp_path / "a"))[0] == 0
    assert run(capsys, *base, "--seeds", "17,3-5", "--out", str(tmp_path / "b"))[0] == 0
    with np.load(tmp_path / "a/samples.npz") as a, np.load(tmp_path / "b/samples.npz") as b:
        assert b["ids"].tolist() == [17, 3, 4, 5]
        assert np.array_equal(b["samples"], a["samples"][[17, 3, 4, 5]])
    assert json.loads((tmp_path / "b/run.json").read_text())["settings"]["ids"] == "17,3-5"


def test_nothing_to_draw_is_no_error(capsys, tmp_path):
    assert run(capsys, "sample", "analytic:gaussian", "-n", "0", "--out", str(tmp_path / "a"))[0] == 0
    with np.load(tmp_path / "a/samples.npz") as saved:
        assert saved["samples"].shape == (0, 2)


def test_two_runs_are_never_mixed(capsys, tmp_path):
    base = ("sample", "fashion", "--batch", "2", "--steps", "1", "--compile", "off", "--png", "--quiet")
    base = (*base, "--out", str(tmp_path))
    assert run(capsys, *base, "-n", "2")[0] == 0
    assert sorted(p.name for p in (tmp_path / "png").iterdir()) == ["000000.png", "000001.png"]
    assert run(capsys, *base, "--ids", "9", "--overwrite")[0] == 0
    assert [p.name for p in (tmp_path / "png").iterdir()] == ["000009.png"]
    assert run(capsys, *base, "-n", "0", "--overwrite")[0] == 0
    assert not (tmp_path / "grid.png").exists()


def test_an_earlier_run_is_never_replaced_unasked(capsys, tmp_path):
    base = ("sample", "analytic:gaussian", "-n", "4", "--quiet", "--out", str(tmp_path))
    assert run(capsys, *base)[0] == 0
    before = (tmp_path / "samples.npz").read_bytes()
    code, _, error = run(capsys, *base, "--seed", "1")
    assert code == 2
    assert "--overwrite" in error
    assert (tmp_path / "samples.npz").read_bytes() == before
    assert run(capsys, *base, "--seed", "1", "--overwrite")[0] == 0
    assert (tmp_path / "samples.npz").read_bytes() != before


@pytest.mark.parametrize("solver", [name for name in SOLVERS if name not in ("none", "score-sde", *ADAPTIVE)])
def test_every_solver_has_a_plan(capsys, solver):
    code, said, error = run(capsys, "plan", "--solver", solver, "--schedule", "subvp", "--steps", "5")
    assert (code, error) == (0, "")
    assert "nan" not in said


@pytest.mark.parametrize(
    "solver", ["dpmpp-2m", "ddim", "ddpm", "ancestral", "em", "reverse-diffusion", "euler", "heun"]
)
@pytest.mark.parametrize(
    "schedule", ["vp", "subvp", "ve", "edm", "vp-cosine", "vp-exponential", "tutorial", "ddpm", "smld"]
)
def test_every_solver_on_every_schedule(capsys, tmp_path, solver, schedule):
    steps = "8" if schedule == "smld" else "200"
    argv = ("sample", "analytic:gaussian", "-n", "64", "--steps", steps, "--quiet", "--out", str(tmp_path))
    code, _, error = run(capsys, *argv, "--solver", solver, "--schedule", schedule)
    assert (code, error) == (0, "")
    with np.load(tmp_path / "samples.npz") as saved:
        x = saved["samples"]
    assert np.isfinite(x).all()
    if schedule != "smld":  # whose ten levels start too low for a prior that forgets the data
        assert abs(x.mean() - 0.5) < 0.15  # the target is N(0.5, 0.5^2); 128 numbers
        assert 0.4 < x.std() < 0.62


@pytest.mark.parametrize("solver", [ADAPTIVE[0], *(pytest.param(s, marks=pytest.mark.slow) for s in ADAPTIVE[1:])])
def test_adaptive_solvers_report_what_they_cost(capsys, tmp_path, solver):
    argv = ("sample", "analytic:gaussian", "-n", "70", "--batch", "16", "--solver", solver, "--rtol", "0.05")
    code, said, _ = run(capsys, *argv, "--out", str(tmp_path))
    assert code == 0
    assert "evaluations each on average" in said
    report = json.loads((tmp_path / "run.json").read_text())
    cost = report["adaptive"]
    assert 0 < cost["nfe_min"] <= cost["nfe_mean"] <= cost["nfe_max"]
    assert 0.0 < cost["utilisation"] <= 1.0
    assert "plan_sha256" not in report
    with np.load(tmp_path / "samples.npz") as saved:
        x, ids = saved["samples"], saved["ids"]
    assert ids.tolist() == list(range(70))
    from fastscore.cli.options import make_adaptive
    from fastscore.model.analytic import by_name
    from fastscore.process.continuous import VP
    from fastscore.sampler import Sampler

    chosen = make_adaptive({"solver": solver, "rtol": 0.05, "atol": None})
    again = Sampler(by_name("gaussian"), schedule=VP(), solver=chosen, batch=16).run([69, 3])
    assert np.array_equal(x[[69, 3]], again.numpy())  # each in its own place


def test_likelihood_of_points(capsys, tmp_path):
    points = np.random.default_rng(0).normal(0.5, 0.5, (40, 2))  # the data of analytic:gaussian
    np.save(tmp_path / "x.npy", points)
    reports = []
    for solver in ((), ("--solver", "rk4", "--steps", "60"), ("--batch", "7")):
        argv = ("likelihood", "analytic:gaussian", str(tmp_path / "x.npy"), "--quiet", "--schedule", "ve", *solver)
        code, said, _ = run(capsys, *argv, "--out", str(tmp_path / "nats.npz"))
        assert code == 0
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
def test_likelihood_of_images(capsys, tmp_path):
    images = np.random.default_rng(0).integers(0, 256, (2, 28, 28, 1), dtype=np.uint8)
    np.savez(tmp_path / "noise.npz", images=images)
    argv = ("likelihood", "fashion", str(tmp_path / "noise.npz"), "--solver", "bs32", "--batch", "2", "--quiet")
    code, said, _ = run(capsys, *argv, "--rtol", "1e-2", "--atol", "1e-2", "--probes", "2")
    assert code == 0
    report = json.loads(said)
    assert report["bits_per_dim"] > 8.0  # uniform noise is worse under the model than under no model at all
    assert report["dequantised"] is True
    assert report["bits_per_dim_stderr_of_probes"] > 0.0


def test_plan_prints_the_table(capsys):
    code, said, _ = run(capsys, "plan", "--solver", "em", "--schedule", "subvp", "--steps", "3", "--corrector", "ald")
    assert code == 0
    assert "SubVP: 5 network evaluations, 5 noise draws, 0 history slots" in said


def test_env_and_models(capsys):
    code, said, _ = run(capsys, "env", "--no-torch")
    assert code == 0
    assert "fastscore" in said
    code, said, _ = run(capsys, "models", "--json")
    assert code == 0
    assert "analytic:mixture" in json.loads(said)["analytic"]


BAD = {
    "no such model": ("sample nothing --out {out}", "bundled model"),
    "no such analytic model": ("sample analytic:x --out {out}", "must be one of gaussian"),
    "steps zero": ("sample analytic:gaussian --steps 0 --out {out}", "0 is outside 1 .. 1000000"),
    "steps text": ("sample analytic:gaussian --steps many --out {out}", "'many' is not a whole number"),
    "fraction": ("sample analytic:gaussian -n 1.5 --out {out}", "not a whole number"),
    "negative": ("sample analytic:gaussian -n -3 --out {out}", "-3"),
    "solver": ("sample analytic:gaussian --solver ddimm --out {out}", "'ddimm' is not one of"),
    "option": ("sample analytic:gaussian --step 5 --out {out}", "No such option"),
    "no out": ("sample analytic:gaussian", "--out"),
    "both": ("sample analytic:gaussian -n 4 --ids 1 --out {out}", "exclude each other"),
    "ids": ("sample analytic:gaussian --ids 5-3 --out {out}", "'5-3' is not an id or a rising range"),
    "twice": ("sample analytic:gaussian --ids 1,1 --out {out}", "twice"),
    "class": ("sample analytic:gaussian --class 3 --out {out}", "unconditional"),
    "eta": ("sample analytic:gaussian --solver heun --eta 1 --out {out}", "--eta belongs to"),
    "eta range": ("sample analytic:gaussian --solver ddim --eta 2 --out {out}", "eta = 2.0 must lie in 0 .. 1"),
    "snr": ("sample analytic:gaussian --snr 0 --out {out}", "above 0"),
    "nan": ("sample analytic:gaussian --t-end nan --out {out}", "nan"),
    "sigma": ("sample analytic:gaussian --schedule vp --sigma-max 3 --out {out}", "--sigma-max belongs to"),
    "sigma order": ("sample analytic:gaussian --schedule ve --sigma-max 0.001 --out {out}", "sigma_min"),
    "times": ("sample analytic:gaussian --t-start 0.1 --t-end 0.5 --out {out}", "must decrease"),
    "device": ("sample analytic:gaussian --device tpu --out {out}", "'tpu' must be cpu, cuda"),
    "no gpu": ("sample analytic:gaussian --device cuda:7 --out {out}", "CUDA devices; use --device cpu"),
    "subdirs alone": ("sample analytic:gaussian --subdirs --out {out}", "--png"),
    "rho unused": ("sample analytic:gaussian --grid uniform --rho 5 --out {out}", "--rho belongs to --grid karras"),
    "png of points": ("sample analytic:gaussian --png --out {out}", "not images"),
    "score-sde": (
        "sample analytic:gaussian --solver score-sde --schedule vp --steps 10 --out {out}",
        "needs more than",
    ),
    "singular": ("sample analytic:gaussian --solver em --schedule flow --steps 5 --out {out}", "start the grid later"),
    "table": ("sample analytic:gaussian --schedule ddpm --steps 2000 --out {out}", "1 .. 1000"),
    "plan": ("plan --solver none", "needs a corrector"),
    "command": ("sampel", "No such command"),
    "data": ("train nothing --out {out}", "neither a known set"),
    "evaluate": ("evaluate {out}", "neither a known set"),
    "num": ("sample analytic:gaussian -n 300M --out {out}", "outside 0 .. 10000000"),
    "unused": ("sample analytic:gaussian --snr 3 --out {out}", "--snr belongs to --corrector"),
    "unused norm": ("plan --norm batch", "--norm belongs to"),
    "huge snr": ("plan --corrector ald --snr 1e200", "at most 1000"),
    "adaptive steps": ("sample analytic:gaussian --solver dopri5 --steps 9 --out {out}", "--steps belongs to"),
    "adaptive grid": ("sample analytic:gaussian --solver ggf --grid karras --out {out}", "--grid belongs to"),
    "adaptive plan": ("plan --solver bs32", "no table to print"),
    "tolerance": ("sample analytic:gaussian --rtol 1e-3 --out {out}", "--rtol belongs to the solvers dopri5, bs32"),
    "tolerance zero": ("sample analytic:gaussian --solver dpm12 --atol 0 --out {out}", "above 0"),
    "likelihood shape": ("likelihood fashion moons", "holds examples of shape (2,), fashion makes (1, 28, 28)"),
    "likelihood data": ("likelihood analytic:moons nothing", "neither a known set"),
    "likelihood steps": ("likelihood analytic:moons moons --steps 5", "--steps belongs to the solvers rk4"),
    "likelihood rtol": ("likelihood analytic:moons moons --solver rk4 --rtol 1e-3", "--rtol belongs to"),
    "likelihood probes": ("likelihood analytic:moons moons --limit 3 --probes 4", "be 1 where the divergence is exact"),
    "likelihood end": ("likelihood analytic:moons moons --t-end 2", "must decrease"),
    "seed": ("sample analytic:gaussian --seed 18446744073709551616 --out {out}", "outside 0 .. 18446744073709551615"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_input_is_named_in_few_lines_with_exit_code_2(capsys, tmp_path, name):
    line, message = BAD[name]
    out = tmp_path / "out"
    code, _, error = run(capsys, *line.format(out=out).split())
    assert code == 2
    assert message in error
    assert len(error.strip().splitlines()) <= 5
    assert "Traceback" not in error
    assert not out.exists()


TOKENS = st.one_of(
    st.sampled_from(
        "-n --ids --steps --solver --schedule --eta --snr --rho --clip --t-end --batch --seed --grid".split()
    ),
    st.sampled_from("0 -1 1e9 1e400 nan inf 64 0.5 vp ve em heun karras leading ,, 3- é \x00 --".split(" ")),
    st.text(max_size=12),
)


@given(tokens=st.lists(TOKENS, max_size=6))
@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_arguments_end_in_a_message_or_a_plan(capsys, tokens):
    """`plan` shares its options with `sample`, and draws nothing."""
    tokens = ["3" if t == "1e9" else t for t in tokens]
    code, _, error = run(capsys, "plan", *tokens)
    assert code in (0, 2)
    assert "Traceback" not in error
    assert len(error.strip().splitlines()) <= 5


def test_a_broken_model_folder_is_named(capsys, tmp_path):
    model, out = tmp_path / "m", tmp_path / "out"
    model.mkdir()
    for text, message in (
        ("{", "not readable JSON"),
        ("[]", '"format": 1'),
        ('{"format": 2}', '"format": 1'),
        ('{"format": 1}', "missing or malformed"),
        ('{"format": 1, "net": {"name": "UNet"}}', "missing or malformed"),
        ('{"format": 1, "net": {"name": "GAN"}}', "missing or malformed"),
    ):
        (model / "config.json").write_text(text)
        code, _, error = run(capsys, "sample", str(model), "--out", str(out))
        assert code == 2, text
        assert message in error


def test_full_disk_is_a_storage_error(tmp_path):
    code = (
        "import resource, sys\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))\n"
        "import signal; signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "from fastscore.cli import main\n"
        "argv = 'sample analytic:gaussian -n 4096 --batch 4096 --steps 2 --quiet --out'.split()\n"
        f"main([*argv, {str(tmp_path)!r}])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 5, done.stderr
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "samples.npz").exists()
    assert not (tmp_path / "run.json").exists()


def test_help_is_quick_to_reach():
    for command in ([], ["sample"], ["plan"], ["train"], ["evaluate"], ["likelihood"], ["models"], ["env"]):
        done = subprocess.run([sys.executable, "-m", "fastscore", *command, "--help"], capture_output=True, text=True)
        assert done.returncode == 0
        assert "Usage: fastscore" in done.stdout


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
    from fastscore.cli.types import Count

    assert Count().convert(text, None, None) == number


def test_package_runs_as_a_module(tmp_path):
    done = subprocess.run(
        [
            sys.executable,
            "-m",
            "fastscore",
            "sample",
            "analytic:moons",
            "-n",
            "3",
            "--out",
            str(tmp_path),
            "--steps",
            "2",
        ],
        capture_output=True,
        text=True,
        cwd=Path("/"),
    )
    assert done.returncode == 0, done.stderr


def test_how_the_network_ran_is_recorded(capsys, tmp_path):
    base = ("sample", "fashion", "-n", "2", "--batch", "2", "--steps", "1", "--quiet", "--out", str(tmp_path))
    assert run(capsys, *base, "--dtype", "fp32", "--compile", "off")[0] == 0
    report = json.loads((tmp_path / "run.json").read_text())
    assert report["network"] == {"dtype": "own", "compile": "off", "error": None, "threads": None, "key": None}
    code, _, error = run(capsys, *base, "--overwrite", "--dtype", "bf16", "--compile", "off")
    assert code == 2
    assert "--dtype bf16 needs --compile auto" in error


def test_without_a_compiler_one_line_says_so(capsys, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("CXX", "/nowhere/g++")
    base = ("sample", "fashion", "-n", "2", "--batch", "2", "--steps", "1", "--quiet", "--out", str(tmp_path / "a"))
    code, _, error = run(capsys, *base)
    assert code == 0
    assert error == "fastscore: the network runs as it is: no C++ compiler (g++ or clang++)\n"


def test_the_micro_batch_can_be_measured(capsys, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    base = ("sample", "analytic:gaussian", "-n", "3", "--batch", "auto", "--quiet", "--out", str(tmp_path / "a"))
    assert run(capsys, *base)[0] == 0
    report = json.loads((tmp_path / "a/run.json").read_text())
    assert report["settings"]["batch"] == "auto"
    assert report["batch"] >= 16
    assert report["threads"] >= 1
