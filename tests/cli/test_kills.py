"""Real processes, killed at random, crowded and misled: nothing lost, nothing mixed, nothing hung."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time

import numpy as np
import pytest

pytestmark = pytest.mark.slow
ARGV = ("sample", "analytic:mixture", "-n", "3000", "--steps", "6", "--quiet", "--network", "own", "--device", "cpu")
AGAIN = """if True:
    import sys
    from fastscore.cli import main
    for seed in range(1, 10_000):
        print(seed, flush=True)
        try:
            main([*sys.argv[1:], "--seed", str(seed)])
        except SystemExit as end:
            if end.code:
                raise
"""
PNGS = (
    "sample",
    "fashion",
    "-n",
    "3",
    "--batch",
    "3",
    "--steps",
    "1",
    "--quiet",
    "--network",
    "own",
    "--device",
    "cpu",
    "--png",
)


def start(*argv, code=None):
    command = [sys.executable, "-m", "fastscore"] if code is None else [sys.executable, "-c", code]
    return subprocess.Popen([*command, *map(str, argv)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def finished(process):
    said, error = process.communicate(timeout=120)
    assert "Traceback" not in error, error
    return process.returncode, said, error


def wait_for(path, process):
    for _ in range(3000):
        if path.exists():
            return
        assert process.poll() is None, process.communicate()
        time.sleep(0.02)
    raise AssertionError(f"no {path}")


def state(out):
    """Return the seed of the whole run that a folder holds: of its record, its samples and its images."""
    run = json.loads((out / "run.json").read_text())
    with np.load(out / "samples.npz") as saved:
        samples = saved["samples"]
    assert len(samples) == run["settings"]["num"]
    return run["settings"]["seed"], samples


@pytest.mark.parametrize(
    ("end", "argv"),
    [
        pytest.param(signal.SIGKILL, ARGV, id="kill-points"),
        pytest.param(signal.SIGKILL, PNGS, id="kill-images", marks=pytest.mark.nightly),
        pytest.param(signal.SIGTERM, ARGV, id="term-points", marks=pytest.mark.nightly),
        pytest.param(signal.SIGTERM, PNGS, id="term-images", marks=pytest.mark.nightly),
    ],
)
def test_a_process_that_ends_anywhere_leaves_a_whole_run(run, tmp_path, argv, end):
    """One that replaces its own run again and again, ended at a random instant; the next command finds a whole one."""
    out, chance, seeds, pauses = tmp_path / "out", random.Random(end), [], 2
    (out / "png/holiday").mkdir(parents=True)
    (out / "png/holiday/photo.png").write_text("mine")
    for _ in range(pauses):
        process = start(*argv, "--overwrite", "--out", out, code=AGAIN)
        assert process.stdout is not None
        while int(process.stdout.readline()) < 4:
            pass
        time.sleep(chance.random() * 0.2)
        process.send_signal(end)
        begun = int(("0\n" + process.communicate(timeout=60)[0]).split()[-1]) or 4
        # 75 where it was told to end while it drew, as a run that can be gone on with.
        assert process.returncode in (-end, 128 + end, *([75] if end == signal.SIGTERM else []))
        # Without --overwrite the next one only looks, and puts in place what was committed.
        code, _, error = run(*argv, "--out", out)
        assert code == 2 and "already holds" in error
        seed, samples = state(out)
        assert begun - 1 <= seed <= begun
        seeds.append(seed)
        assert run(*argv, "--seed", seed, "--out", tmp_path / f"whole-{len(seeds)}")[0] == 0
        assert np.array_equal(samples, state(tmp_path / f"whole-{len(seeds)}")[1])
        if argv is PNGS:
            for k in range(3):
                same = tmp_path / f"whole-{len(seeds)}" / f"png/00000{k}.png"
                assert (out / f"png/00000{k}.png").read_bytes() == same.read_bytes()
    assert run(*argv, "--overwrite", "--out", out)[0] == 0
    assert (out / "png/holiday/photo.png").read_text() == "mine"
    assert not [name for name in os.listdir(out) if name.startswith(".")]


def test_two_processes_never_share_a_folder(run, tmp_path):
    out = tmp_path / "out"
    first = start(*ARGV[:2], "-n", "4M", "--steps", "200", "--quiet", "--out", out)
    try:
        wait_for(out / ".run-lock", first)
        code, _, error = run(*ARGV, "--out", out)
        assert code == 2 and len(error.strip().splitlines()) == 1
        assert f"another process (process {first.pid} on" in error
        assert first.poll() is None
    finally:
        first.kill()
        first.communicate()
    assert [name for name in os.listdir(out) if name.startswith(".run-")]  # what a kill leaves
    assert run(*ARGV, "--out", out)[0] == 0
    assert sorted(os.listdir(out)) == ["grid.png", "run.json", "samples.npz"]


@pytest.mark.nightly
def test_two_trainings_never_share_a_folder_and_a_killed_one_goes_on(run, tmp_path):
    out = tmp_path / "model"
    argv = ("train", "moons", "--no-compile", "--quiet", "--width", "16", "--out", out)
    first = start(*argv, "--images", "5M")
    try:
        wait_for(out / "loss.csv", first)
        code, _, error = run(*argv, "--images", "1k")
        assert code == 2 and f"process {first.pid} on" in error
    finally:
        first.kill()
        first.communicate()
    code, _, error = run(*argv, "--images", "12k")
    assert code == 0, error
    assert len((out / "loss.csv").read_text().splitlines()) > 1
    assert not [name for name in os.listdir(out) if name.startswith(".")]


def test_pipes_and_bombs_end_at_once(tmp_path):
    """In processes of their own, of which none may take two minutes."""
    import zipfile

    folder = tmp_path / "images"
    folder.mkdir()
    os.mkfifo(folder / "x.png")
    with (
        zipfile.ZipFile(tmp_path / "bomb.npz", "w", zipfile.ZIP_DEFLATED) as archive,
        archive.open("x.npy", "w") as file,
    ):
        np.lib.format.write_array_header_1_0(file, {"descr": "|u1", "fortran_order": False, "shape": (17 << 24, 1, 1)})
        for _ in range(17):
            file.write(bytes(1 << 24))
    out = ("--out", str(tmp_path / "out"))
    cases = [
        (("train", folder, *out), "x.png is a named pipe and no file"),
        (("train", tmp_path / "bomb.npz", *out), "unpacks from"),
        (("inpaint", "fashion", folder / "x.png", "--box", "1,1,2,2", *out), "x.png is a named pipe and no file"),
    ]
    processes = [start(*argv) for argv, _ in cases]
    for process, (_, message) in zip(processes, cases, strict=True):
        code, _, error = finished(process)
        assert code == 2 and len(error.strip().splitlines()) == 1, error
        assert message in error
    assert not (tmp_path / "out").exists()
