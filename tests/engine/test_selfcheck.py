from __future__ import annotations

import json
from dataclasses import replace

import pytest
import torch

from fastscore.engine import selfcheck
from fastscore.ops import backend

CPU = torch.device("cpu")


def test_this_machine_passes():
    names = list(selfcheck.checks(CPU, backend.resolve("auto", CPU)))
    assert len(names) == 12
    assert names[0] == "noise v1 equals its known values"


def test_one_wrong_bit_is_refused(monkeypatch):
    def off_by_an_ulp(x, *args, **kwargs):
        backend.REFERENCE.update(x, *args, **kwargs)
        x[0, 0] = torch.nextafter(x[0, 0], torch.tensor(9.0))

    bent = replace(backend.REFERENCE, name="bent", update=off_by_an_ulp)
    with pytest.raises(selfcheck.SelfCheckError, match=r"DPMpp2M.* on 3x7x11: backend bent differs"):
        list(selfcheck.checks(CPU, bent))
    monkeypatch.setattr(selfcheck, "NOISE_SHA256", "0")
    with pytest.raises(selfcheck.SelfCheckError, match="noise v1 differs"):
        list(selfcheck.checks(CPU, backend.REFERENCE))


def test_a_pass_is_remembered_until_something_changes(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    calls = []
    monkeypatch.setattr(selfcheck, "checks", lambda device, ops, replay: calls.append(ops) or iter(()))
    selfcheck.ensure(CPU, backend.REFERENCE)
    selfcheck.ensure(CPU, backend.REFERENCE)
    assert len(calls) == 1
    assert json.loads(selfcheck.cache_file().read_text()) == [f"{selfcheck.fingerprint(CPU)} | reference"]
    monkeypatch.setattr(selfcheck, "__version__", "9")
    selfcheck.ensure(CPU, backend.REFERENCE)
    assert len(calls) == 2
    selfcheck.cache_file().write_text("{")
    selfcheck.ensure(CPU, backend.REFERENCE)
    assert len(calls) == 3


def test_a_cache_that_cannot_be_written_is_no_error(monkeypatch, tmp_path):
    blocked = tmp_path / "file"
    blocked.write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(blocked))
    monkeypatch.setattr(selfcheck, "checks", lambda device, ops, replay: iter(()))
    selfcheck.ensure(CPU, backend.REFERENCE)
