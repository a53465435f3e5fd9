"""Processes of this machine on one run: none outlives the one that started them."""

from __future__ import annotations

import subprocess
import sys
from types import SimpleNamespace
from typing import Any

import pytest

from fastscore.launch import local
from fastscore.output.store.manifest import Manifest
from fastscore.output.store.place import place_of

JOB: Any = SimpleNamespace(manifest=Manifest(40, "0-39", 10, gathered=False))


@pytest.fixture
def started(monkeypatch):
    """Processes that are started in place of workers: what each does is put in ``programs``."""
    processes, programs, real = [], [], subprocess.Popen

    def start(words, **settings):
        if len(processes) == len(programs):
            raise OSError("no more processes")
        program = programs[len(processes)]
        processes.append(real([sys.executable, "-c", program], stderr=settings["stderr"]))
        return processes[-1]

    monkeypatch.setattr(local.subprocess, "Popen", start)
    monkeypatch.setattr(local, "LOOK", 0.02)
    return SimpleNamespace(processes=processes, programs=programs)


SLEEP = "import time; time.sleep(60)"


def draw(where, workers):
    return local.crew(["sample"], workers, None)(JOB, place_of(where), lambda samples, shards: None)


def test_those_that_were_started_end_if_another_cannot_be(tmp_path, started):
    started.programs[:] = [SLEEP]
    with pytest.raises(OSError, match="no more processes"):
        draw(tmp_path, 2)
    assert [process.poll() for process in started.processes] == [-15]


def test_an_error_of_a_worker_is_that_of_the_run(tmp_path, started):
    started.programs[:] = [SLEEP, "import sys; sys.exit('a line\\nfastscore: error: id 7 is NaN')"]
    with pytest.raises(local.WorkerError, match=r"^worker 1 ended with 1: id 7 is NaN$") as error:
        draw(tmp_path, 2)
    assert error.value.code == 1
    assert all(process.poll() is not None for process in started.processes)


def test_one_that_is_killed_is_started_again_but_not_for_ever(tmp_path, started):
    started.programs[:] = ["import os; os.kill(os.getpid(), 9)"] * 20
    with pytest.raises(local.WorkerError, match="ended with signal 9: it said nothing") as error:
        draw(tmp_path, 1)
    assert error.value.code == 75
    assert len(started.processes) == 1 + local.RESTARTS


def test_workers_that_end_too_early_leave_a_run_that_goes_on(tmp_path, started):
    started.programs[:] = ["", ""]
    with pytest.raises(local.WorkerError, match="the workers ended, and shards are missing") as error:
        draw(tmp_path, 2)
    assert error.value.code == 75


def test_where_all_is_there_nothing_is_started(tmp_path, started):
    for number in range(4):
        place_of(tmp_path).create(JOB.manifest.name(number), b"x")
    assert draw(tmp_path, 3).found == 4
    assert not started.processes
