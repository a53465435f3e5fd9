"""What a newcomer meets: a greeting, published settings, the nearest name, completion, a script of one's own."""

from __future__ import annotations

import ast
import json
import os
import shutil
import subprocess
import sys

import numpy as np
import preset_page
import pytest

import fastscore as fs
from fastscore.cli import group
from fastscore.cli import options as o
from fastscore.cli.commands import GREETING
from fastscore.cli.new import KINDS, SCRIPTS
from fastscore.cli.plan import plan
from fastscore.data.load import load
from fastscore.data.toys import toy
from fastscore.model.analytic import by_name, mixture
from fastscore.model.nets import build
from fastscore.plan import make_plan
from fastscore.process.grid import Span
from fastscore.process.names import named_schedule
from fastscore.solvers.names import named
from fastscore.solvers.presets import PRESETS, merged


def test_alone_it_greets_with_commands_that_exist(run):
    code, said, error = run()
    assert (code, said, error) == (0, GREETING, "")
    lines = said.splitlines()
    assert len(lines) < 20 and max(map(len, lines)) <= 102
    commands = [line.split("  ")[1].split()[1:] for line in lines if line.startswith("  fastscore ")]
    assert len(commands) == 5
    for name, *words in commands:
        group.commands[name].make_context(name, words)


def test_a_second_name_is_the_same_command(run):
    assert run("mcmc", "--help")[1] == run("langevin", "--help")[1].replace("fastscore langevin [", "fastscore mcmc [")


# --- the nearest name

TYPOS = {
    "smaple fashion": "'smaple' (nearest: sample)",
    "sample fashon --out {out}": "'fashon' (nearest: fashion)",
    "sample mixture --out {out}": "(nearest: analytic:mixture",
    "sample analytic:mixtre --out {out}": "(nearest: mixture)",
    "sample fashion --slover em --out {out}": "--solver",
    "sample fashion --solver hune --out {out}": "(nearest: heun",
    "sample fashion --solver comfyi:euler --out {out}": "(nearest: comfyui)",
    "sample fashion --network fp16 --out {out}": "(nearest: ",
    "sample fashion --format nzp --out {out}": "(nearest: npz",
    "plan --schedule vpp": "(nearest: vp",
    "plan --grid karas": "(nearest: karras",
    "plan --preset edm-hune-18": "(nearest: edm-heun-18",
    "plan --corrector langvin": "(nearest: langevin)",
    "train mons --out {out}": "(nearest: moons)",
    "train moons --net unit --out {out}": "(nearest: unet",
    "train moons --label log-sigma --out {out}": "(nearest: log_sigma/4",
    "train moons --weighting smple --out {out}": "(nearest: simple",
    "likelihood analytic:moons mons": "(nearest: moons)",
    "completion basch": "(nearest: bash)",
    "new project --data imges": "(nearest: images)",
    "export run --format parqet --out {out}": "(nearest: parquet",
}
CALLS = {
    "heun": lambda: fs.Sampler(fs.score_model(mixture()), solver="huen"),
    "karras": lambda: fs.Grid("karas", 5),
    "fashion": lambda: fs.load_model("fashoin"),
    "moons": lambda: toy("mons", 3),
    "subvp": lambda: named_schedule("subpv", fs.VP()),
    "edm-heun-18": lambda: fs.preset("edm-heun-81"),
    "UNet": lambda: build({"name": "Unet"}),
    "score": lambda: fs.Parametrization("scroe"),
    "mixture": lambda: by_name("mixtrue"),
    "langevin": lambda: named("em", corrector="langvein"),
    "prior": lambda: fs.Sampler(fs.score_model(mixture()), start="priro"),
    "lognormal": lambda: fs.TrainConfig(times="lognorml"),
    "reference": lambda: fs.Execution(backend="refrence"),
}  # fmt: skip


def test_a_misspelt_name_is_told_the_nearest_one(run, tmp_path):
    for line, near in TYPOS.items():
        code, _, error = run(*line.format(out=tmp_path / "out").split())
        assert code == 2 and near in error and len(error.splitlines()) == 1, (line, error)
    assert not list(tmp_path.iterdir())


def test_so_is_one_in_python():
    for near, call in CALLS.items():
        with pytest.raises(ValueError, match=rf"\(nearest: {near}[,)]"):
            call()
    with pytest.raises(ValueError) as refused:
        fs.Grid("xqz", 5)
    assert "nearest" not in str(refused.value)  # of what is near to nothing


# --- published settings

NFE = {
    "ncsn": 1000, "ncsnv2-cifar10": 1161, "ncsnv2-celeba64": 2501, "ncsnv2-ffhq256": 6934, "ddpm-1000": 1000,
    "ddim-50": 50, "song-ve-cifar10-pc": 2000, "song-ve-lsun256-pc": 4000, "song-ve-ffhq1024-pc": 4000,
    "song-vp-cifar10-pc": 1000, "song-subvp-cifar10-pc": 1000, "edm-heun-18": 35, "edm-heun-40": 79,
    "edm-stochastic-imagenet": 511, "restart-imagenet": 203, "dpm-solver-20": 20, "dpm-solver++-20": 20,
}  # fmt: skip


def nfe(settings):
    return make_plan(settings["solver"], settings["schedule"], settings["grid"](settings["schedule"])).nfe


def on_the_command_line(*argv):
    with plan.make_context("plan", list(argv)) as context:
        options = context.params
        schedule, solver = o.make_schedule(options, fs.VP()), o.make_solver(options)
        return schedule, solver, o.make_grid(options, solver, schedule)


def test_every_preset_is_the_same_in_python_and_has_the_evaluations_of_its_source():
    for name in PRESETS:
        settings = fs.preset(name)
        assert on_the_command_line("--preset", name) == tuple(settings.values()), name
        if isinstance(settings["grid"], Span):
            assert name.endswith("-ode") and (settings["solver"].rtol, settings["solver"].atol) == (1e-5, 1e-5)
            assert settings["grid"] == Span(end=1e-5 if "-ve-" in name else 1e-3, clean=False)
            continue
        if NFE[name] <= 300:
            assert nfe(settings) == NFE[name], name
    with plan.make_context("plan", ["--preset", "ncsn"]) as context:
        fine = fs.score_model(mixture(std=0.001))  # whose own grids end at less noise
        schedule, solver = o.make_schedule(context.params, fs.VP()), o.make_solver(context.params)
        assert o.make_grid(context.params, solver, schedule, fine) == fs.ncsn()["grid"]
        assert context.get_parameter_source("solver").name == "COMMANDLINE"  # which inpaint asks
    assert preset_page.PAGE.read_text() == preset_page.page()


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in NFE if NFE[name] > 300])
def test_long_presets_have_the_evaluations_of_their_source(name):
    assert nfe(fs.preset(name)) == NFE[name]


def test_presets_are_what_their_sources_say():
    sigma = {k: fs.preset(k)["schedule"] for k in PRESETS}
    assert sigma["song-ve-cifar10-pc"] == fs.VE(0.01, 50.0) and sigma["song-ve-ffhq1024-pc"] == fs.VE(0.01, 1348.0)
    assert sigma["song-vp-cifar10-pc"] == fs.VP() and sigma["song-subvp-ode"] == fs.SubVP()
    song = fs.preset("song-ve-cifar10-pc")
    assert song["solver"] == fs.ScoreSDE("reverse_diffusion", fs.Langevin(0.16, 1, "batch"))
    assert song["grid"] == fs.uniform(1000, end=1e-5)
    assert fs.preset("ncsn") == fs.ncsn() and fs.preset("ncsnv2-cifar10") == fs.ncsnv2()
    assert fs.preset("ncsnv2-celeba64") == fs.ncsnv2(500, 90.0, epsilon=3.3e-6)
    edm = fs.preset("edm-stochastic-imagenet")
    assert edm["solver"] == fs.Churn(fs.Heun(), 40.0, 0.05, 50.0, 1.003)
    i = np.arange(256)
    levels = (80 ** (1 / 7) + i / 255 * (0.002 ** (1 / 7) - 80 ** (1 / 7))) ** 7
    np.testing.assert_allclose(edm["grid"](edm["schedule"]), [*levels, 0.0], rtol=1e-9)
    ddim, ddpm = fs.preset("ddim-50"), fs.preset("ddpm-1000")
    assert ddim["grid"](ddim["schedule"]).tolist() == [*range(980, -1, -20), -1]
    assert ddpm["grid"](ddpm["schedule"]).tolist() == [*range(999, -1, -1), -1]
    assert ddpm["solver"] == fs.Ancestral("large") and ddpm["schedule"] == fs.discrete_vp()
    fast = fs.preset("dpm-solver-20")
    rows = make_plan(fast["solver"], fast["schedule"], fast["grid"](fast["schedule"])).rows
    assert (rows[0].t, rows[-1].s) == (1.0, 1e-4)
    restart = fs.preset("restart-imagenet")["solver"]
    assert restart.s_noise == 1.003 and sum(one.times * one.steps * 2 for one in restart.solver.intervals) == 132


def test_other_options_take_the_place_of_a_presets_and_say_so(run):
    def said(*argv):
        code, _, error = run("plan", "--preset", *argv)
        return code, error.strip().removeprefix("fastscore: ")

    assert said("edm-heun-18") == (0, "")
    assert said("edm-heun-18", "--steps", "18") == (0, "")
    assert said("edm-heun-18", "--steps", "4") == (0, "preset edm-heun-18, steps = 4 for 18")
    code, error = said("edm-heun-18", "--solver", "em", "--schedule", "vp")
    assert code == 0 and error.endswith("solver = em for heun, without its sigma_min, sigma_max, t_end")
    code, error = said("ddim-50", "--schedule", "vp")
    assert code == 2 and "leading grids index a discrete table" in error
    options, words = merged("edm-heun-18", {"solver": "dpm_adaptive", "steps": None})
    assert "steps" not in options and "grid" not in options and "without its grid, rho, steps" in words
    assert merged("song-ve-cifar10-pc", {"solver": "em", "snr": 0.3})[0]["snr"] == 0.3
    same = "edm-stochastic-imagenet"  # an option with the value that it has anyway takes nothing away
    assert merged(same, {"solver": "edm-churn", "grid": "karras"}) == (PRESETS[same].options, [])
    assert fs.preset("song-vp-ode", solver="em")["grid"] == fs.preset("song-vp-ode", solver="EM", steps=20)["grid"]
    with pytest.raises(ValueError, match="preset: got an unexpected keyword argument 'stepz'"):
        fs.preset("edm-heun-18", stepz=3)


def test_a_preset_stands_in_the_record_of_a_run(run, tmp_path):
    words = ["sample", "analytic:gaussian", "-n", "4", "--preset", "edm-heun-18", "--steps", "3", "--out"]
    code, _, error = run(*words, tmp_path / "quiet", "--quiet")
    assert (code, error) == (0, "")
    record = json.loads((tmp_path / "quiet" / "run.json").read_text())
    assert record["settings"]["preset"] == "edm-heun-18" and record["settings"]["sigma_max"] == 80.0
    assert (record["settings"]["steps"], record["nfe"], record["solver"]) == (3, 5, "Heun(denoise=True)")
    assert run("verify", tmp_path / "quiet")[0] == 0
    sampler = fs.Sampler(by_name("gaussian"), **fs.preset("edm-heun-18", steps=3), batch=64)
    with np.load(tmp_path / "quiet" / "samples.npz") as saved:
        assert np.array_equal(saved["samples"], sampler.run(range(4)).numpy())


# --- what the library can do and options describe


def test_new_options_reach_the_solver_and_leave_others_as_they_were():
    def solver(text):
        return on_the_command_line(*text.split())[1]

    restart = fs.Restart((fs.Interval(0.1, 2.0), fs.Interval(0.5, 1.0, 4, 2)), fs.DPMpp2M())
    assert (
        solver("--restart 0.1,2 --restart .5,1,4,2")
        == restart
        == named("dpmpp-2m", restart=[(0.1, 2.0), (0.5, 1.0, 4, 2)])
    )
    assert solver("--solver heun --restart 1,2 --s-noise 1.01").s_noise == 1.01
    churn = "--solver edm-churn --s-churn 30 --s_min .01 --s_max 1 --s-noise 1.007"
    assert solver(churn) == fs.Churn(fs.Heun(), 30.0, 0.01, 1.0, 1.007)
    assert solver("--solver unipc --order 3 --prediction eps") == fs.UniPC(3, prediction="eps")
    assert solver("--solver dpm-fast --prediction x0") == fs.DPMFast("x0")
    assert solver("--solver ipndm --order 2") == fs.IPNDM(2) and solver("--solver deis --order 1") == fs.DEIS(1)
    kept = {"edm-churn": fs.Churn(noise=1.003), "unipc": fs.UniPC(), "deis": fs.DEIS(), "ipndm": fs.IPNDM()}
    assert all(named(name) == one and repr(named(name)) == repr(one) for name, one in kept.items())


def test_picard_sweeps_draw_the_same(run, tmp_path):
    for name, words in (("one", []), ("sweeps", ["--parallel", "4"]), ("near", ["--parallel", "4,0.1"])):
        code, _, error = run(
            "sample", "analytic:gaussian", "-n", "8", "--steps", "6", "--quiet", "--out", tmp_path / name, *words
        )
        assert (code, error) == (0, "")
    x, same, near = (np.load(tmp_path / name / "samples.npz")["samples"] for name in ("one", "sweeps", "near"))
    assert np.array_equal(x, same) and 0.0 < np.abs(x - near).max() < 0.2
    records = {name: json.loads((tmp_path / name / "run.json").read_text()) for name in ("one", "sweeps", "near")}
    assert not {"parallel", "preset", "restart", "order", "prediction"} & records["one"]["settings"].keys()
    assert records["near"]["settings"]["parallel"] == [4, 0.1] and records["near"]["graph"] == "picard"


def test_new_options_refuse_what_they_cannot_be(run, tmp_path):
    for words, message in {
        "--restart 2,1": "is not LOW,HIGH,STEPS,TIMES",
        "--restart 1,2,0": "is not LOW,HIGH,STEPS,TIMES",
        "--restart 1": "is not LOW,HIGH,STEPS,TIMES",
        "--solver dopri5 --restart 1,2": "restart belongs to solvers with a grid",
        "--solver score-sde --restart 1,2": "restart belongs to solvers with a grid",
        "--restart .001,.002 --steps 2": "lies below rho",
        "--s-churn 3": "s_churn belongs to the solver edm-churn; leave it out with solver dpmpp-2m",
        "--order 3": "order belongs to the solvers deis, deis-tab, lms, unipc",
        "--solver deis --order 9": "outside 1 .. 4",
        "--prediction x0": "prediction belongs to the solvers dpm-fast, unipc",
        "--parallel 0": "is not WINDOW,TOLERANCE",
        "--parallel 4,-1": "is not WINDOW,TOLERANCE",
        "--parallel 4,x": "is not WINDOW,TOLERANCE",
        "--parallel 4 --solver dopri5": "parallel sweeps over rows, which an adaptive solver has not",
        "--parallel 4 --solver em --corrector langevin": "Langevin's step depends on the norm of the score",
    }.items():
        code, _, error = run("sample", "analytic:gaussian", "--out", tmp_path / "out", *words.split())
        assert code == 2 and message in error, (words, error)
        assert not (tmp_path / "out").exists()
    with pytest.raises(ValueError, match="must be a list of"):
        named("heun", restart=3)  # pyright: ignore


# --- completion


def test_completion_knows_names(run, monkeypatch):
    def completed(*words):
        monkeypatch.setenv("COMP_WORDS", "\n".join(["fastscore", *words]))
        monkeypatch.setenv("COMP_CWORD", str(len(words)))
        monkeypatch.setenv("_FASTSCORE_COMPLETE", "bash_complete")
        code, said, error = run()
        assert (code, error) == (0, "")
        return [line.partition(",")[2] for line in said.splitlines()]

    assert completed("sam") == ["sample"]
    assert completed("sample", "fa") == ["fashion"]
    assert completed("sample", "analytic", ":", "mi") == ["mixture"]
    assert completed("sample", "fashion", "--solver", "dopr") == ["dopri5"]
    assert completed("plan", "--grid", "tun") == ["tuned"]
    assert completed("plan", "--schedule", "sub") == ["subvp"]
    assert completed("plan", "--preset", "edm-h") == ["edm-heun-18", "edm-heun-40"]
    assert completed("train", "moo") == ["moons"]
    assert completed("sample", "fashion", "--paral") == ["--parallel"]
    assert completed("sample", "./") == ["./"]


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("bash") is None, reason="completes in bash, which is not installed")
def test_bash_completes_without_torch(tmp_path):
    (tmp_path / "fastscore").write_text(
        f"#!/bin/sh\nexec {sys.executable} -c '"
        "import sys, atexit\n"
        'atexit.register(lambda: "torch" in sys.modules and print("plain,torch"))\n'
        'from fastscore.cli import main\nmain()\' "$@"\n'
    )
    (tmp_path / "fastscore").chmod(0o755)
    script = """
        eval "$(fastscore completion bash)"
        try() {
            COMP_WORDS=("$@"); COMP_CWORD=$(($# - 1)); COMPREPLY=()
            _fastscore_completion fastscore
            echo "${COMPREPLY[*]}"
        }
        try fastscore sample analytic : moo
        try fastscore plan --preset song-vp-o
        for shell in zsh fish; do fastscore completion $shell | grep -c _FASTSCORE_COMPLETE; done
    """
    env = {**os.environ, "PATH": f"{tmp_path}:{os.environ['PATH']}"}
    done = subprocess.run(["bash", "-c", script], capture_output=True, text=True, env=env, timeout=120)
    lines = done.stdout.split()
    assert lines[:2] == ["moons", "song-vp-ode"] and all(int(line) > 0 for line in lines[2:]), done
    assert len(lines) == 4


# --- a script of one's own


@pytest.mark.parametrize("kind", KINDS)
def test_new_writes_a_script_and_data_that_it_reads(run, tmp_path, kind):
    folder = tmp_path / "my_project"
    code, said, error = run("new", folder, "--data", kind)
    assert (code, error) == (0, "") and "python main.py" in said
    script = (folder / "main.py").read_text()
    assert script == (SCRIPTS / f"{kind}.py").read_text()
    assert len(script.splitlines()) <= 40 and ast.get_docstring(ast.parse(script))
    assert len((folder / "README.md").read_text().strip().splitlines()) <= 7
    data = folder / KINDS[kind]
    loaded = load(str(data)) if kind == "images" else np.load(data)
    assert loaded.shape == {"images": (1, 16, 16), "points": (2000, 2), "sequences": (1000, 16, 2)}[kind]
    code, _, error = run("new", folder, "--data", kind)
    assert code == 2 and "already holds" in error


def test_new_checks_names_and_takes_an_empty_folder(run, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty").mkdir()
    assert run("new", "empty")[0] == 0
    (tmp_path / "file").write_text("")
    for name in ("a b", ".hidden", "é\n", "file", "no/such/parent", "..", "/", "x" * 300):
        before = sorted(tmp_path.iterdir())
        code, _, error = run("new", name)
        assert code == 2 and len(error.splitlines()) == 1, (name, error)
        assert sorted(tmp_path.iterdir()) == before


@pytest.mark.slow
@pytest.mark.nightly
@pytest.mark.parametrize("kind", KINDS)
def test_what_new_wrote_trains_and_samples(run, tmp_path, kind):
    folder = tmp_path / "project"
    run("new", folder, "--data", kind)
    script = (folder / "main.py").read_text()
    examples = next(line for line in script.splitlines() if line.startswith("EXAMPLES"))
    (folder / "main.py").write_text(script.replace(examples, "EXAMPLES = 512"))
    drawn = []
    for _ in range(2):  # the second time it goes on where it ended, and draws the same
        done = subprocess.run([sys.executable, "main.py"], cwd=folder, capture_output=True, text=True, timeout=300)
        assert done.returncode == 0 and done.stderr == "", done
        with np.load(folder / "samples" / "samples.npz") as saved:
            drawn.append(saved["samples"])
    assert np.array_equal(*drawn) and len(drawn[0]) == {"images": 64, "points": 1000, "sequences": 200}[kind]
    code, _, error = run(
        "sample", folder / "model", "-n", "4", "--batch", "4", "--network", "own", "--quiet", "--out", tmp_path / "more"
    )
    assert (code, error) == (0, "")
