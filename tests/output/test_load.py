"""How busy the machine is: as the system says, in run.json and by the doctor."""

from __future__ import annotations

import json
import os

import pytest

from fastscore.output.load import cores, load


@pytest.mark.parametrize(("average", "busy"), [(0.0, False), (1e3, True)])
def test_it_is_busy_above_the_cores(monkeypatch, average, busy):
    monkeypatch.setattr(os, "getloadavg", lambda: (average, 0.0, 0.0))
    assert load() == {"average": average, "cores": cores(), "busy": busy}
    monkeypatch.setattr(os, "getloadavg", lambda: (float(cores()), 1e3, 1e3))
    assert not load()["busy"]


def test_cores_are_those_of_this_process(monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {3, 5, 7}, raising=False)
    assert cores() == 3


def test_a_system_without_an_average(monkeypatch):
    def unknown():
        raise OSError

    monkeypatch.setattr(os, "getloadavg", unknown)
    assert load() == {"average": None, "cores": cores(), "busy": False}
    monkeypatch.delattr(os, "getloadavg")
    assert load()["average"] is None


def test_run_json_and_the_doctor_say_it(monkeypatch, capsys, tmp_path):
    from fastscore import cli

    monkeypatch.setattr(os, "getloadavg", lambda: (1234.5, 0.0, 0.0))
    monkeypatch.setattr("fastscore.engine.selfcheck.checks", lambda *_: [])
    for words in (["sample", "analytic:mixture", "-n", "4", "--steps", "2", "--out", str(tmp_path)], ["doctor"]):
        with pytest.raises(SystemExit) as end:
            cli.main(words)
        assert not end.value.code
    assert json.loads((tmp_path / "run.json").read_text())["load"] == {
        "average": 1234.5,
        "cores": cores(),
        "busy": True,
    }
    line = f"faster with: fewer other processes: the load is 1234.5 on {cores()} cores"
    assert line in capsys.readouterr().out
    monkeypatch.setattr(os, "getloadavg", lambda: (0.0, 0.0, 0.0))
    with pytest.raises(SystemExit):
        cli.main(["doctor"])
    assert "load" not in capsys.readouterr().out
