"""Runs by the command line: exit codes, signals, parts, workers, and what a call goes on with."""

from __future__ import annotations

import errno
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import click
import numpy as np
import pytest
import torch
from gated import one_in

from fastscore import cli
from fastscore.cli.process import Ended
from fastscore.errors import Coded, NonFiniteError, SelfCheckError, StepSizeError
from fastscore.launch import parts
from fastscore.output.store.manifest import Manifest
from fastscore.output.store.place import place_of
from fastscore.output.store.resume import AnotherRunError, begun
from fastscore.output.store.seal import DamagedError
from fastscore.output.store.work import OutOfMemory, Stopped

POINTS = ("sample", "analytic:mixture", "-n", "50", "--steps", "3", "--batch", "10", "--network", "own", "--quiet")
SHARDED = (*POINTS, "--shard-size", "10")
README = Path(__file__).parents[2] / "fastscore/launch/README.md"


def start(*words, **environment):
    return subprocess.Popen(
        [sys.executable, "-m", "fastscore", *map(str, words)],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=os.environ | environment,
    )  # fmt: skip


def arrays(out):
    with np.load(out / "samples.npz") as saved:
        return {name: saved[name].tobytes() for name in saved}


def shards(out):
    return {path.name: path.read_bytes() for path in out.rglob("shards/*/[0-9]*")}


CODES = [
    (2, [ValueError("x"), AnotherRunError("x"), click.UsageError("x"), UserWarning("x")]),
    (3, [ImportError("x", name="obstore"), MemoryError(), torch.OutOfMemoryError("x"), RuntimeError("out of memory")]),
    (4, [NonFiniteError("x"), SelfCheckError("x"), StepSizeError("x"), FloatingPointError("x")]),
    (5, [OSError(errno.EIO, "x"), PermissionError("x"), DamagedError("x"), OSError(errno.ENOSPC, "x"), TimeoutError()]),
    (70, [RuntimeError("x"), AssertionError("x"), KeyError("x"), TypeError("x"), Coded("x")]),
    (75, [Stopped("x"), OutOfMemory("x")]),
    (129, [Ended(signal.SIGHUP)]),
    (130, [KeyboardInterrupt(), Ended(signal.SIGINT), click.Abort()]),
    (141, [BrokenPipeError()]),
    (143, [Ended(signal.SIGTERM)]),
]


def test_exit_codes_are_those_that_are_written(run, tmp_path):
    """In the text of the command line, in the launchers' table, in what launchers do, and in fact."""
    assert cli.__doc__ is not None
    text = re.search(r"Exit codes: (.*?)\.\n", cli.__doc__, re.DOTALL)
    assert text is not None
    written = {int(word) for word in re.findall(r"\b\d+\b", text[1])}
    assert written == {0, *(code for code, _ in CODES)}
    for code, errors in CODES:
        assert [cli._verdict(error)[0] for error in errors] == [code] * len(errors)
    rows = re.findall(r"^\| ([^|]*\d[^|]*) \|", README.read_text(), re.MULTILINE)
    table = {int(word) for row in rows for word in re.findall(r"\b\d+\b", row)}
    assert table == {0, 5, 137, *parts.STOPPED, *parts.HOPELESS}
    assert table - {137} <= written  # which is the kernel's
    stopped = next(row for row in rows if "resumable" in row)
    hopeless = next(row for row in rows if "fail again" in row)
    for row, codes in ((stopped, parts.STOPPED), (hopeless, parts.HOPELESS)):
        assert tuple(map(int, re.findall(r"\d+", row))) == codes
    assert all(str(code) in parts.MEANINGS for code in parts.HOPELESS)
    assert run(*POINTS, "--out", tmp_path / "out")[0] == 0
    assert run(*POINTS, "--seed", 1, "--out", tmp_path / "out")[0] == 2
    assert run("verify", tmp_path / "out", "--quiet")[0] == 0


@pytest.mark.parametrize(
    ("first", "word"), [("SIGTERM", "terminated"), ("SIGINT", "interrupted"), ("SIGHUP", "hung up")]
)
def test_a_signal_is_heard_once(tmp_path, monkeypatch, capsys, first, word):
    """The first of several ends the command; what comes while that is tidied up is not heard."""
    heard = []

    def twice(*_, **__):
        try:
            os.kill(os.getpid(), getattr(signal, first))
            time.sleep(5)
        finally:
            for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
                os.kill(os.getpid(), number)
            time.sleep(0.01)
            heard.append("tidied")

    usual = {signal.SIGINT: signal.default_int_handler, signal.SIGTERM: signal.SIG_DFL, signal.SIGHUP: signal.SIG_DFL}
    before = {k: signal.signal(k, handler) for k, handler in usual.items()}  # nohup, or a shell's &, ignores some
    monkeypatch.setattr("fastscore.output.run._work", twice)
    try:
        with pytest.raises(SystemExit) as end:
            cli.main([*SHARDED, "--out", str(tmp_path / "out")])
        assert {k: signal.getsignal(k) for k in usual} == usual
    finally:
        for k, handler in before.items():
            signal.signal(k, handler)
    assert (end.value.code, heard) == (75, ["tidied"])
    assert capsys.readouterr().err.strip() == f"fastscore: error: {word}: no shard was complete yet"
    assert not (tmp_path / "out").exists()


PAUSES = {"once": (0.0,), "twice": (0.001, 0.0), "while it ends": (0.1, 0.1, 0.1, 0.0)}


@pytest.mark.parametrize(
    ("name", "word", "pauses"),
    one_in(
        4,  # each signal and each way once
        [
            (name, word, way)
            for name, word in (("SIGTERM", "terminated"), ("SIGINT", "interrupted"), ("SIGHUP", "hung up"))
            for way in PAUSES
        ],
    ),
)
def test_a_signal_ends_a_run_that_can_be_resumed(run, tmp_path, name, word, pauses):
    out = tmp_path / "out"
    words = ("sample", "analytic:mixture", "-n", 400_000, "--steps", 100, "--batch", 1000, "--shard-size", 1000,
             "--network", "own", "--device", "cpu", "--quiet", "--out", out)  # fmt: skip

    def heard():
        for number in (signal.SIGINT, signal.SIGHUP, signal.SIGTERM):
            signal.signal(number, signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL)

    process = subprocess.Popen(
        [sys.executable, "-m", "fastscore", *map(str, words)], stderr=subprocess.PIPE, text=True, preexec_fn=heard
    )
    for _ in range(3000):
        if shards(out):
            break
        assert process.poll() is None
        time.sleep(0.02)
    for pause in PAUSES[pauses]:
        process.send_signal(getattr(signal, name))
        time.sleep(pause)
    _, error = process.communicate(timeout=60)
    assert process.returncode == 75, error
    assert re.fullmatch(rf"fastscore: error: {word}: \d+ of 400 shards are kept in .*goes on there", error.strip())
    assert shards(out) and not list(out.glob(".run/reserve"))


def test_parts_in_any_order_are_the_run(run, tmp_path, monkeypatch):
    whole, out = tmp_path / "whole", tmp_path / "out"
    assert run(*SHARDED, "--shards", "--out", whole)[0] == 0
    assert run(*SHARDED, "--shard", "2/3", "--out", out) == (0, "", "")
    monkeypatch.setenv("FASTSCORE_SHARD", "0/3")
    assert run(*SHARDED, "--out", out)[0] == 0
    monkeypatch.delenv("FASTSCORE_SHARD")
    assert 0 < len(shards(out)) < 5
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setenv("WORLD_SIZE", "3")
    code, _, error = run(*SHARDED, "--out", out)
    assert code == 0 and "this is --shard 1/3" in error
    assert shards(out) == shards(whole)
    for rank, size in (("0", "1"), ("x", "2"), ("", "2")):
        monkeypatch.setenv("RANK", rank)
        monkeypatch.setenv("WORLD_SIZE", size)
        code, _, error = run(*SHARDED, "--out", tmp_path / f"own-{rank}-{size}")
        assert code == 0 and "RANK" not in error
    monkeypatch.setenv("RANK", "2")
    code, _, error = run(*SHARDED, "--out", out)
    assert code == 2 and "part 2 of 2" in error


@pytest.mark.parametrize("flag", ["--png", "--fresh", "--trajectory"])
def test_what_belongs_to_one_command_is_not_for_parts(run, tmp_path, flag):
    code, _, error = run(*SHARDED, "--shard", "0/2", flag, "--out", tmp_path / "out")
    assert code == 2 and f"{flag} belongs to a run of one command" in error
    assert not (tmp_path / "out").exists()


def test_a_part_joins_its_own_run_alone(run, tmp_path):
    whole, begun_, out = tmp_path / "whole", tmp_path / "begun", tmp_path / "out"
    assert run(*SHARDED, "--out", whole)[0] == 0
    code, _, error = run(*SHARDED, "--shard", "0/2", "--out", whole)
    assert code == 2 and "holds a complete run" in error
    (begun_ / ".run").mkdir(parents=True)
    code, _, error = run(*SHARDED, "--shard", "0/2", "--out", begun_)
    assert code == 2 and "holds an unfinished run of one command" in error
    assert run(*SHARDED, "--shard", "0/2", "--out", out)[0] == 0
    code, _, error = run(*SHARDED, "--seed", 1, "--shard", "1/2", "--out", out)
    assert code == 2 and "seed: 0 there, 1 here" in error
    code, _, error = run(*POINTS, "--shard-size", 5, "--shard", "1/2", "--out", out)
    assert code == 2 and "shard: 10 there, 5 here" in error
    before = shards(out)
    code, _, error = run(*POINTS, "--out", out)  # one command, on what many draw
    assert code == 2 and str(out) in error
    assert shards(out) == before
    assert run(*POINTS, "--shard", "1/2", "--out", out)[0] == 0  # the size is that of the begun run
    assert len(shards(out)) == 5


def test_a_complete_run_says_so(run, tmp_path):
    words = [word for word in SHARDED if word != "--quiet"]
    assert run(*words, "--out", tmp_path)[0] == 0
    before = arrays(tmp_path), (tmp_path / "run.json").read_bytes()
    code, said, error = run(*words, "--out", tmp_path)
    assert (code, error) == (0, "")
    assert said.startswith(f"complete already, 50 samples: {tmp_path}/samples.npz")
    assert (arrays(tmp_path), (tmp_path / "run.json").read_bytes()) == before


@pytest.mark.thirds
@pytest.mark.parametrize("change", [{"wrote": None}, {"wrote": {}}, {"manifest": 7}, {"manifest": {}}, {"shards": 7}])
def test_a_record_that_was_changed_is_no_fault_of_ours(run, tmp_path, change):
    assert run(*SHARDED, "--out", tmp_path)[0] == 0
    record = tmp_path / "run.json"
    record.write_text(json.dumps(json.loads(record.read_text()) | change))
    for words in ((*SHARDED, "--out", tmp_path), ("verify", tmp_path), (*SHARDED, "--fresh", "--out", tmp_path)):
        assert run(*words)[0] in (0, 2, 5)


def test_auto_is_the_batch_of_the_run_that_is_there(run, tmp_path, monkeypatch):
    """Timed once, and not again by who goes on with it, verifies it or draws a part of it."""
    chosen = iter((7, 9, 11, 13, 15, 17))

    class Choice:
        threads = None

        def __init__(self):
            self.batch = next(chosen)

    monkeypatch.setattr("fastscore.network.timing.choose_batch", lambda *_: Choice())
    words = [word if word != "10" else "auto" for word in POINTS]
    out, many = tmp_path / "out", tmp_path / "many"
    with monkeypatch.context() as patched:
        patched.setattr("fastscore.output.run.gather", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        assert run(*words, "--out", out)[0] == 75
    manifest = begun(out)
    assert manifest is not None and manifest.numerics["batch"] == 7
    assert run(*words, "--out", out)[0] == 0
    assert run("verify", out, "--quiet") == (0, "", "")
    assert run(*words, "--shard", "0/2", "--shard-size", 10, "--out", many)[0] == 0
    assert run(*words, "--shard", "1/2", "--out", many)[0] == 0
    found = Manifest.read(place_of(many))
    assert found is not None and found.numerics["batch"] == 9
    assert run(*words, "--out", tmp_path / "new")[0] == 0


def test_what_an_empty_place_has_begun(tmp_path):
    (tmp_path / "manifest.json").write_text("{")
    (tmp_path / "file").write_text("")
    for where in (tmp_path, tmp_path / "none", tmp_path / "file", str(tmp_path)):
        assert begun(where) is None


def test_the_manifest_holds_the_words_that_draw_it_anywhere(run, tmp_path, monkeypatch):
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    shutil.copytree(README.parents[1] / "models/fashion", "mine")
    words = ("sample", "./mine", "-n", 4, "--steps", 1, "--batch", 2, "--network=own", "--quiet", "--device=cpu")
    given = ("--workers", 1, "--shard-size=2", "--fresh", "--allow-mixed-numerics", "--outdir=out")
    assert run(*words, *given)[0] == 0
    argv = json.loads(Path("out/run.json").read_text())["manifest"]["argv"]
    expected = ["sample", str(tmp_path / "here/mine"), "-n", "4", "--steps", "1", "--batch", "2", "--network=own"]
    assert argv == [*expected, "--device", "cpu"]
    monkeypatch.chdir(tmp_path)
    assert run("verify", "here/out", "--quiet") == (0, "", "")


@pytest.mark.slow
@pytest.mark.parametrize(
    "more", [pytest.param((), id="one file"), pytest.param(("--shards",), id="shards", marks=pytest.mark.nightly)]
)
def test_two_processes_draw_what_one_does(run, tmp_path, more):
    """With images beside the samples, in a folder of an awkward name."""
    words = ("sample", "fashion", "-n", 14, "--steps", 2, "--batch", 2, "--shard-size", 2, "--network", "own",
             "--device", "cpu", "--png", "--quiet", *more)  # fmt: skip
    one, two = tmp_path / "one", tmp_path / "a: b/ü 2:0:1"
    assert run(*words, "--out", one)[0] == 0
    code, _, error = run(*words, "--workers", 2, "--out", two)
    assert code == 0, error

    def contents(out):
        files = {path.relative_to(out).as_posix(): path.read_bytes() for path in out.rglob("*") if path.is_file()}
        return {name: data for name, data in files.items() if name not in ("run.json", "manifest.json")}

    assert contents(one) == contents(two)
    assert len(list(two.rglob("png/*.png"))) == 14
    assert run("verify", two, "--quiet") == (0, "", "")
    assert run(*words, "--out", two)[0] == 0  # complete already, whoever drew it


@pytest.mark.slow
def test_what_ends_a_worker_ends_the_run(run, tmp_path):
    """Samples that overflow: the worker's code and message, at once; nothing is left."""
    words = ("sample", "analytic:mixture", "-n", 8, "--schedule", "edm", "--sigma-max", "1e30", "--solver", "heun",
             "--steps", 4, "--batch", 2, "--shard-size", 2, "--network", "own", "--quiet")  # fmt: skip
    code, _, error = run(*words, "--workers", 2, "--out", tmp_path / "out")
    assert code == 4
    assert re.search(r"worker \d ended with 4: .*first id \d at row 5 \(t = ", error), error
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
def test_workers_end_with_the_command(run, tmp_path):
    out = tmp_path / "out"
    words = ("sample", "analytic:mixture", "-n", 400_000, "--steps", 100, "--batch", 1000, "--shard-size", 1000,
             "--network", "own", "--device", "cpu", "--quiet", "--workers", 2, "--out", out)  # fmt: skip
    process = start(*words)
    for _ in range(3000):
        if shards(out):
            break
        assert process.poll() is None, process.communicate()
        time.sleep(0.02)
    below = subprocess.run(["pgrep", "-P", str(process.pid)], capture_output=True, text=True).stdout.split()
    process.send_signal(signal.SIGTERM)
    _, error = process.communicate(timeout=60)
    assert process.returncode == 75, error
    assert re.search(r"terminated: \d+ of 400 shards are kept", error)
    assert len(below) == 2 and not any(Path(f"/proc/{pid}").exists() for pid in below)
