"""fastscore launch: a file is printed or written, with how to submit it; a command that would fail makes none."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time

import pytest

SAMPLE = ("sample", "analytic:mixture", "-n", "10M", "--out", "s3://bucket/run")
OPTIONS = {"slurm": (), "k8s": ("--image", "fast:1"), "skypilot": ()}
SUBMIT = {"slurm": "sbatch {}", "k8s": "kubectl apply -f {}", "skypilot": "sky jobs launch --num-jobs 4 {}"}


@pytest.mark.parametrize("scheduler", OPTIONS)
def test_printed_or_written(run, tmp_path, scheduler):
    launch = ("launch", scheduler, "--parts", "4", *OPTIONS[scheduler])
    code, printed, error = run(*launch, "--dry-run", "--", *SAMPLE)
    assert (code, error) == (0, "") and "10M" in printed and "s3://bucket/run" in printed
    file = tmp_path / "it's a job"
    assert run(*launch, "--output", file, *SAMPLE) == (
        0, f"{file} is written; submit it with: {SUBMIT[scheduler]}\n".format(f"'{tmp_path}/it'\"'\"'s a job'"), "",
    )  # fmt: skip
    assert file.read_text() == printed
    code, _, error = run(*launch, "--output", file, "--", *SAMPLE)
    assert code == 2 and "is already there" in error and file.read_text() == printed
    assert run(*launch, "--name", "b", "--overwrite", "--output", file, "--", *SAMPLE)[0] == 0
    assert file.read_text() != printed


@pytest.mark.parametrize(
    ("options", "words", "said"),
    [
        ((), SAMPLE, "--dry-run to print the file, or --output"),
        (("--dry-run", "--output", "x"), SAMPLE, "--dry-run to print the file, or --output"),
        (("--dry-run",), (), "must be `sample MODEL"),
        (("--dry-run",), ("train", "fashion", "--out", "x"), "must be `sample MODEL"),
        (("--dry-run",), (*SAMPLE, "--stpes", "4"), "No such option '--stpes'"),
        (("--dry-run",), (*SAMPLE, "--steps", "many"), "'many' is not a whole number"),
        (("--dry-run",), ("sample", "--out", "s3://b/x"), "Missing argument 'MODEL'"),
        (("--dry-run",), (*SAMPLE, "--overwrite"), "leave it out"),
        (("--dry-run", "--time", "4 hours"), SAMPLE, "time = '4 hours'"),
        (("--dry-run", "--at-once", "5"), SAMPLE, "at once = 5"),
        (("--dry-run", "--name", "No Name"), SAMPLE, "name = 'No Name'"),
    ],
)
def test_mistakes(run, tmp_path, monkeypatch, options, words, said):
    monkeypatch.chdir(tmp_path)
    code, printed, error = run("launch", "slurm", "--parts", "4", *options, "--", *words)
    assert (code, printed) == (2, "") and said in error and error.count("\n") == 1
    assert not list(tmp_path.iterdir())


def test_parts_must_be_said(run):
    code, _, error = run("launch", "slurm", "--dry-run", "--", *SAMPLE)
    assert code == 2 and "--parts" in error


def test_no_torch_is_imported():
    code = (
        "import sys; from fastscore.cli import main\n"
        f"try: main(['launch', 'slurm', '--parts', '4', '--dry-run', '--', *{SAMPLE}])\n"
        "except SystemExit as e: sys.exit(e.code or bool({'torch', 'numpy', 'ray'} & set(sys.modules)))"
    )
    assert subprocess.run([sys.executable, "-c", code], stdout=subprocess.DEVNULL).returncode == 0


def test_ray_needs_a_run_and_ray(run, tmp_path, monkeypatch):
    code, _, error = run("launch", "ray", tmp_path / "run")
    assert code == 2 and "holds no manifest.json" in error
    mixture = ("sample", "analytic:mixture", "-n", "25", "--steps", "3", "--out", tmp_path / "run")
    assert run(*mixture, "--manifest-only")[0] == 0
    monkeypatch.setitem(sys.modules, "ray", None)
    code, _, error = run("launch", "ray", "--address", "local", tmp_path / "run")
    assert code == 3 and "needs Ray; install it with: pip install ray" in error
    assert run("launch", "ray", "--workers", "0", tmp_path / "run")[0] == 2
    assert run(*mixture, "--shard", "0/1", "--quiet")[0] == 0
    assert run("launch", "ray", tmp_path / "run")[:2] == (0, f"all 1 shards are in {tmp_path / 'run'}\n")


@pytest.mark.slow
@pytest.mark.nightly
def test_ray_stopped_and_gone_on_with(run, tmp_path):
    """SIGTERM in the middle, and all the processes of the cluster killed with it: the same bytes in the end."""
    pytest.importorskip("ray", reason="pip install ray: a cluster of this machine")
    slow = ("sample", "fashion", "-n", "60", "--shard-size", "4", "--steps", "40", "--batch", "4", "--network", "own")
    assert run(*slow, "--manifest-only", "--out", tmp_path / "run")[0] == 0
    assert run(*slow, "--shard", "0/1", "--out", tmp_path / "whole")[0] == 0
    whole = {p.name: p.read_bytes() for p in (tmp_path / "whole/shards").rglob("*.npz")}
    launch = [sys.executable, "-m", "fastscore", "launch", "ray", "--address", "local", tmp_path / "run"]
    for number in (signal.SIGTERM, signal.SIGKILL):
        there = len(list((tmp_path / "run").rglob("*.npz")))
        process = subprocess.Popen(launch, stderr=subprocess.PIPE, start_new_session=True)
        while process.poll() is None and len(list((tmp_path / "run").rglob("*.npz"))) < there + 2:
            time.sleep(0.05)
        (os.kill if number == signal.SIGTERM else os.killpg)(process.pid, number)
        error = process.communicate()[1].decode()
        if number == signal.SIGTERM:
            assert process.returncode == 75 and "the same command goes on" in error
        assert there + 2 <= len(list((tmp_path / "run").rglob("*.npz"))) < len(whole)
    assert subprocess.run(launch).returncode == 0
    assert {p.name: p.read_bytes() for p in (tmp_path / "run/shards").rglob("*.npz")} == whole
