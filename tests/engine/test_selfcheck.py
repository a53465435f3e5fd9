from __future__ import annotations

import json
from dataclasses import replace

import pytest
import torch

from fastscore import backend
from fastscore.engine import selfcheck

CPU = torch.device("cpu")


def test_this_machine_passes():
    names = list(selfcheck.checks(CPU))
    assert len(names) == (5 if backend.resolve("auto", CPU) is backend.REFERENCE else 7)
    assert names[0] == "noise v1 equals its known values"


def test_one_wrong_bit_is_refused(monkeypatch):
    def off_by_an_ulp(x, *args, **kwargs):
        backend.REFERENCE.update(x, *args, **kwargs)
        x[0, 0] = torch.nextafter(x[0, 0], torch.tensor(9.0))

    bent = replace(backend.REFERENCE, name="bent", update=off_by_an_ulp)
    monkeypatch.setattr(selfcheck, "resolve", lambda name, device: bent)
    with pytest.raises(selfcheck.SelfCheckError, match=r"DPM-Solver\+\+\(2M\): backend bent differs"):
        list(selfcheck.checks(CPU))
    monkeypatch.setattr(selfcheck, "NOISE_SHA256", "0")
    with pytest.raises(selfcheck.SelfCheckError, match="noise v1 differs"):
        list(selfcheck.checks(CPU))


def test_a_pass_is_remembered_until_something_changes(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    calls = []
    monkeypatch.setattr(selfcheck, "checks", lambda device: calls.append(device) or iter(()))
    selfcheck.ensure(CPU)
    selfcheck.ensure(CPU)
    assert len(calls) == 1
    assert json.loads(selfcheck.cache_file().read_text()) == [selfcheck.fingerprint(CPU)]
    monkeypatch.setattr(selfcheck, "__version__", "9")
    selfcheck.ensure(CPU)
    assert len(calls) == 2
    selfcheck.cache_file().write_text("{")
    selfcheck.ensure(CPU)
    assert len(calls) == 3


def test_a_cache_that_cannot_be_written_is_no_error(monkeypatch, tmp_path):
    blocked = tmp_path / "file"
    blocked.write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(blocked))
    monkeypatch.setattr(selfcheck, "checks", lambda device: iter(()))
    selfcheck.ensure(CPU)
