"""The demonstration: its parts in small, the folder it writes to, and all of it as a process."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time

import numpy as np
import pytest

from fastscore.cli.demo import killed, points
from fastscore.cli.demo.act import cloud
from fastscore.errors import SelfCheckError
from fastscore.model.analytic import mixture

ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1"}


def demo(*argv, **rest):
    command = [sys.executable, "-m", "fastscore", "demo", *map(str, argv)]
    return subprocess.Popen(command, stdout=-1, stderr=-1, text=True, env=ENVIRONMENT, **rest)


def test_the_width_of_clusters_is_relative_to_their_own():
    target = mixture()
    x = points.exact(target, 500, 1)
    assert points.width(x, target) == pytest.approx(1.0, abs=0.06)
    assert points.width(0.5 * (x - x) + target.means.float().repeat(63, 1)[:500], target) < 1e-6
    assert cloud(x.numpy(), 1.6).shape == (240, 240, 3) and cloud(x.numpy(), 1.6).min() < 100


def test_the_first_act_tells_what_it_measures(monkeypatch):
    monkeypatch.setattr(points, "STEPS", (8, 16))
    monkeypatch.setattr(points, "TOLERANCES", (0.1,))
    monkeypatch.setattr(points, "_frames", lambda n: points.Picture(points.png(np.zeros((2, 2, 1), np.uint8)), "none"))
    said = []
    act = points.act(True, said.append)
    assert act.figures["alone_is_the_same"] and act.figures[points.EM]["evaluations"] == 8
    for name in (points.EM, points.PC, points.ODE, points.DPM):
        figures = act.figures[name]
        assert any(f"{figures['sliced_wasserstein']:.3f}" in line for line in said if line.startswith(name))
    assert "the same to the last bit" in said[-1]
    kinds = [type(part).__name__ for part in act.section.parts]
    assert kinds == ["Picture", "Chart", "Chart", "Table", "Picture"]
    one = points.Sampler.run
    monkeypatch.setattr(points.Sampler, "run", lambda self, ids, seed: one(self, ids, seed) + (len(ids) == 1))
    with pytest.raises(SelfCheckError, match="drawn alone has other bits"):
        points.act(True, said.append)


def test_a_folder_of_another_kind_is_refused(run, tmp_path):
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos/a.png").write_text("mine")
    (tmp_path / "linked").symlink_to(tmp_path / "photos")
    (tmp_path / "other").mkdir()
    (tmp_path / "other/demo.json").write_text('{"mine": 1}')
    for name, message in (
        ("photos", "already holds a.png and is no earlier demo's; choose another folder with --out"),
        ("photos/a.png", "is a file and no folder"),
        ("linked", "is a symbolic link"),
        ("other", "already holds demo.json and is no earlier demo's"),
    ):
        code, _, error = run("demo", "--out", tmp_path / name)
        assert code == 2 and message in error, error
    assert os.listdir(tmp_path / "photos") == ["a.png"] and os.listdir(tmp_path / "other") == ["demo.json"]


@pytest.mark.slow
def test_a_killed_run_with_other_bytes_is_told(tmp_path, monkeypatch):
    """What breaks the going on, or the bytes, must not pass for the same."""
    said, one = [], killed.undisturbed
    monkeypatch.setattr(killed, "undisturbed", lambda count, steps: one(count, steps + 1))
    with pytest.raises(SelfCheckError, match="has other bytes"):
        killed.act(True, said.append, tmp_path)
    assert "killed (SIGKILL) with" in said[0]
    monkeypatch.setattr(killed, "undisturbed", one)
    begun = killed.kill
    monkeypatch.setattr(killed, "kill", lambda argv, folder: begun(argv, folder) and 5)
    with pytest.raises(SelfCheckError, match=r"of 5 shards that were on disk at the kill, [1-4] were kept"):
        (tmp_path / "again").mkdir()
        killed.act(True, said.append, tmp_path / "again")


@pytest.mark.slow
@pytest.mark.parametrize("times", [1, pytest.param(2, marks=pytest.mark.nightly)])
def test_it_plays_from_a_fresh_folder_and_again_with_the_same_figures(tmp_path, times):
    out, pages, figures = tmp_path / "demo", [], []
    for _ in range(times):
        process = demo("--quick", "--out", out)
        said, error = process.communicate(timeout=300)
        assert process.returncode == 0, error
        pages.append((out / "report.html").read_text())
        entry = json.loads((out / "demo.json").read_text())
        assert entry["complete"] and set(entry["seconds"]) > set(entry["figures"])
        figures.append(entry["figures"])
        assert sorted(os.listdir(out)) == ["demo.json", "report.html"]
    assert figures[0] == figures[-1]
    last = figures[0]["A run that is killed and gone on with"]
    assert last["killed"] and last["equal"] and last["sha256"] in pages[0] and last["sha256"][:16] in said
    assert "Traceback" not in error and len(pages[0]) < 3_000_000
    assert not re.findall(r"""(?:src|href)=["'](?!data:|#)""", pages[0])
    assert "http://" not in pages[0] and "https://" not in pages[0]
    for title in figures[0]:
        assert title.split(":")[0] in said


@pytest.mark.slow
@pytest.mark.nightly
def test_a_demo_that_is_ended_leaves_no_process_and_can_be_given_again(tmp_path):
    out = tmp_path / "demo"
    process = demo("--quick", "--out", out, start_new_session=True)
    deadline = time.monotonic() + 200
    while not list(out.glob(".demo-work/run-*")) and time.monotonic() < deadline:
        assert process.poll() is None, process.communicate()
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)  # to itself alone: what it has started must not outlive it
    _, error = process.communicate(timeout=60)
    assert process.returncode == 130 and "Traceback" not in error
    assert subprocess.run(["pgrep", "-g", str(process.pid)], capture_output=True).stdout == b""
    assert sorted(os.listdir(out)) == ["demo.json"]
    code = demo("--quick", "--out", out)
    code.communicate(timeout=300)
    assert code.returncode == 0 and (out / "report.html").exists()
