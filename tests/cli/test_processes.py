"""The command line as a process: streams that are closed, full or broken, signals, and surroundings of every kind."""

from __future__ import annotations

import os
import random
import shutil
import signal
import subprocess
import sys
import time

import pytest
from gated import at_night

from tests.hostile.generated import CODES

RUN = [sys.executable, "-m", "fastscore"]
SAMPLE = ["sample", "analytic:gaussian", "-n", "4", "--steps", "2", "--out", "out"]
FILES = ["grid.png", "run.json", "samples.npz"]


def shell(words: str, folder, **env: str | None) -> subprocess.CompletedProcess[str]:
    """Run a line of bash in which $F is the command line; None leaves a variable out."""
    values = {k: v for k, v in {**os.environ, "F": " ".join(RUN), **env}.items() if v is not None}
    line = ["bash", "-c", f"set -o pipefail; {words}"]
    return subprocess.run(line, cwd=folder, env=values, capture_output=True, text=True, errors="replace", timeout=120)


def test_the_last_except_says_where_and_how_to_see_more(run, monkeypatch):
    monkeypatch.setattr("fastscore.plan.make_plan", lambda *_: {}["x"])
    code, _, error = run("plan")
    assert code == 70
    assert error.startswith("fastscore: error: KeyError, test_processes.py:") and len(error.splitlines()) == 1
    assert "FASTSCORE_TRACEBACK=1" in error
    monkeypatch.setenv("FASTSCORE_TRACEBACK", "1")
    code, _, error = run("plan")
    assert code == 70 and "Traceback (most recent call last)" in error


def test_an_end_of_file_is_no_interruption(run, monkeypatch):
    def early(*_):
        raise EOFError("Compressed file ended before the end-of-stream marker was reached")

    monkeypatch.setattr("fastscore.plan.make_plan", early)
    code, _, error = run("plan")
    assert code == 5 and "ends too early: Compressed file" in error


@pytest.mark.parametrize("text, code", [("CUDA out of memory. Tried", 3), ("unsupported memory format option", 70)])
def test_only_a_lack_of_memory_is_one(run, monkeypatch, text, code):
    def fail(*_):
        raise RuntimeError(text)

    monkeypatch.setattr("fastscore.plan.make_plan", fail)
    assert run("plan")[0] == code


@pytest.mark.parametrize("words", [["--out", ""], ["--out="], ["--outdir", ""]])
def test_an_empty_folder_is_not_the_current_one(run, tmp_path, monkeypatch, words):
    monkeypatch.chdir(tmp_path)
    code, _, error = run("sample", "analytic:gaussian", *words)
    assert code == 2 and f"{words[0].rstrip('=')} is empty; the current folder is '.'" in error
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("words", [["sample", "", "--out", "o"], ["train", "moons", "--out", ""], ["evaluate", ""]])
def test_no_argument_may_be_empty(run, words):
    code, _, error = run(*words)
    assert code == 2 and "is empty" in error


@pytest.mark.parametrize("command", ["sample analytic:gaussian", "train moons", "langevin analytic:gaussian"])
def test_endless_paths_are_refused(run, tmp_path, monkeypatch, command):
    monkeypatch.chdir(tmp_path)
    code, _, error = run(*command.split(), "--out", "/".join(["d"] * 1501))
    assert code == 2 and "has 1500 levels; a path has at most 250" in error
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
@pytest.mark.parametrize(
    "line, code, files",
    [
        ("$F plan --steps 0 2>&-", 2, []),
        ("$F plan --steps 2 >&- 2>&- <&-", 0, []),
        pytest.param(f"$F {' '.join(SAMPLE)} 2>&-", 0, FILES, marks=pytest.mark.nightly),
        (f"$F {' '.join(SAMPLE)} >&- 2>&- <&-", 0, FILES),
        ("$F plan --steps 2 > /dev/full", 5, []),
        ("$F plan --steps 0 2> /dev/full", 2, []),
        ("$F plan --steps 3000 | head -1", 141, []),
    ],
)
def test_closed_full_and_broken_streams(tmp_path, line, code, files):
    done = shell(line, tmp_path)
    assert done.returncode == code, done
    assert "Traceback" not in done.stderr and "Exception ignored" not in done.stderr
    assert sorted(os.listdir(tmp_path / "out") if files else []) == files


@pytest.mark.parametrize("name", at_night(("SIGTERM", "SIGHUP", "SIGINT"), "SIGTERM"))
def test_a_signal_ends_it_in_order(tmp_path, tmp_path_factory, name):
    begun = tmp_path_factory.mktemp("metrics") / "file"
    words = ["sample", "analytic:gaussian", "-n", "1M", "--steps", "1000", "--out", "out", "--metrics", str(begun)]

    def heard() -> None:  # whatever started these tests may ignore signals, as nohup does, and its children then do
        for each in (signal.SIGINT, signal.SIGHUP, signal.SIGTERM):
            signal.signal(each, signal.SIG_DFL)

    process = subprocess.Popen([*RUN, *words], cwd=tmp_path, stderr=subprocess.PIPE, text=True, preexec_fn=heard)
    try:
        while not begun.exists() and process.poll() is None:
            time.sleep(0.01)
        process.send_signal(getattr(signal, name))
        said = process.communicate(timeout=60)[1]
    finally:
        process.kill()
    assert process.returncode == 75
    assert "Traceback" not in said and said.strip().splitlines()[-1].startswith("fastscore: error: ")
    assert not [p for p in tmp_path.rglob("*") if p.is_file()]


SURROUNDINGS = {
    "C": {"LANG": "C", "LC_ALL": "C"},
    "ascii": {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"},
    "turkish": {"LC_ALL": "tr_TR.UTF-8"},
    "narrow": {"COLUMNS": "1"},
    "no columns": {"COLUMNS": "0", "LINES": "0", "TERM": "dumb"},
    "no home": {"HOME": None, "XDG_CACHE_HOME": None},
    "another home": {"HOME": "/nonexistent", "XDG_CACHE_HOME": None},
    "a cache that is a file": {"XDG_CACHE_HOME": "/dev/null"},
    "optimised": {"PYTHONOPTIMIZE": "2"},
    "no site": {"PYTHONDONTWRITEBYTECODE": "1", "PYTHONNOUSERSITE": "1"},
}


@pytest.mark.parametrize("name", at_night(SURROUNDINGS, "ascii", "narrow", "no home", "optimised"))
def test_surroundings_change_nothing(tmp_path, name):
    folder = tmp_path / "a folder é"
    folder.mkdir()
    done = shell(
        f"$F {' '.join(SAMPLE)} && $F sample --help >/dev/null && $F plan --steps 0", folder, **SURROUNDINGS[name]
    )
    assert done.returncode == 2, done.stderr
    assert "Traceback" not in done.stderr and "0 is outside 1 .. 1000000" in done.stderr
    assert sorted(os.listdir(folder / "out")) == FILES


@pytest.mark.slow
@pytest.mark.skipif(
    os.name != "posix" or os.geteuid() != 0 or not shutil.which("setpriv"),
    reason="only root may become another user, by setpriv",
)
def test_a_user_without_name_or_home(tmp_path):
    os.chmod(tmp_path, 0o777)
    for parent in list(tmp_path.parents)[:3]:
        os.chmod(parent, os.stat(parent).st_mode | 0o055)
    other = "setpriv --reuid 54321 --regid 54321 --clear-groups env -u HOME -u XDG_CACHE_HOME -u USER -u LOGNAME"
    if shell(f"{other} $F --version", tmp_path).returncode == 126:
        pytest.skip(f"the folders above {sys.executable} are closed to another user, who cannot run it")
    done = shell(f"{other} $F {' '.join(SAMPLE)}", tmp_path)
    assert done.returncode == 0 and "Traceback" not in done.stderr, done.stderr
    assert sorted(os.listdir(tmp_path / "out")) == FILES


@pytest.mark.slow
@pytest.mark.nightly
def test_no_process_escapes(tmp_path):
    """300 processes of command lines as above: the real thing, from the start of Python to its end."""
    from tests.hostile.test_command_lines import HEAVY, JUNK

    random_ = random.Random(int(os.environ.get("SEED", "0")))
    flags = "--steps --solver --grid --seed --ids -n --schedule --eta --rtol --clip --guidance --class --device".split()
    plausible = ["1", "3", "heun", "vp", "ve", "karras", "0.5", "cpu", "dopri5", "analytic:gaussian", "moons"]
    for _ in range(int(os.environ.get("PROCESSES", "300"))):
        words = [random_.choice([*HEAVY, *HEAVY, "evaluate", "models", "-h"]), random_.choice(plausible[-2:] + JUNK)]
        for _ in range(random_.randint(0, 3)):
            words += [random_.choice(flags), random_.choice(plausible + JUNK)]
        words = [w.replace("\x00", "").encode("utf-8", "replace").decode() for w in words]  # what an argv can hold
        words += ["--limit", "3"] if words[0] == "likelihood" else []
        before = sorted(tmp_path.rglob("*"))
        done = subprocess.run([*RUN, *words], cwd=tmp_path, capture_output=True, encoding="utf-8", errors="replace")
        assert done.returncode in CODES, (words, done.stderr)
        assert "Traceback" not in done.stderr and done.stderr.count("\n") <= 5, (words, done.stderr)
        assert sorted(tmp_path.rglob("*")) == before, words


def test_an_error_on_the_way_out_of_an_interrupt_does_not_hide_it(run, monkeypatch):
    """NumPy's savez raises ValueError where an interrupt leaves a ZIP file open."""

    def interrupted(*_: object) -> None:
        try:
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(1.0)
        finally:
            raise ValueError("Can't close the ZIP file while there is an open writing handle on it")

    monkeypatch.setattr("fastscore.plan.make_plan", interrupted)
    assert run("plan")[0] == 143
