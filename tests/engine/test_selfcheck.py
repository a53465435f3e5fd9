from __future__ import annotations

import json
from dataclasses import replace

import pytest
import torch
from fake_cuda import FakeCuda

import fastscore as fs
from fastscore.engine import selfcheck
from fastscore.model.analytic import mixture, score_model
from fastscore.ops import backend

CPU = torch.device("cpu")


def test_this_machine_passes():
    names = list(selfcheck.checks(CPU, backend.resolve("auto", CPU)))
    assert len(names) == 14
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


@pytest.mark.slow
def test_what_only_some_rows_show_is_refused():
    """Mistakes that the rows of two solvers in float32 do not show."""

    def update(wrong):
        def run(x, F, hist, table, idx, noise, *, F2=None, known=None, out_u=None, **rest):
            backend.REFERENCE.update(x, F, hist, table, idx, noise, F2=F2, known=known, out_u=out_u, **rest)
            wrong(x, F, hist, idx, F2, known, out_u)

        return replace(backend.REFERENCE, name="bent", update=run)

    def nudge(x, when):
        if when:
            x[-1, -1] = torch.nextafter(x[-1, -1], torch.tensor(9.0))

    mistakes = [
        lambda x, F, hist, idx, F2, known, u: nudge(x, F2 is not None),
        lambda x, F, hist, idx, F2, known, u: nudge(x, known is not None),
        lambda x, F, hist, idx, F2, known, u: nudge(x, F is not None and F.dtype == torch.bfloat16),
        lambda x, F, hist, idx, F2, known, u: nudge(x, idx.dtype == torch.int32),
        lambda x, F, hist, idx, F2, known, u: nudge(x, x.shape[1] > 1024),
        lambda x, F, hist, idx, F2, known, u: nudge(x, x.shape[1] == 2),
        lambda x, F, hist, idx, F2, known, u: nudge(x, x.shape[1] == 1),
        lambda x, F, hist, idx, F2, known, u: len(hist) > 3 and nudge(hist[3], True),
        lambda x, F, hist, idx, F2, known, u: u is not None and u.dtype == torch.bfloat16 and u.mul_(2.0),
    ]
    for wrong in mistakes:
        with pytest.raises(selfcheck.SelfCheckError, match="a guided row of"):
            list(selfcheck.checks(CPU, update(wrong), replay=False))

    def quantize(x, rounding):
        return backend.REFERENCE.quantize(x, rounding) + (x.shape[3] % 4 == 0)

    with pytest.raises(selfcheck.SelfCheckError, match="quantize 2x3x8x8 to nearest"):
        list(selfcheck.checks(CPU, replace(backend.REFERENCE, name="bent", quantize=quantize), replay=False))


@pytest.mark.slow
def test_the_checks_of_a_card_run_on_one_that_is_not_there(monkeypatch, tmp_path):
    """Captures too, each by a recorder of its own; a pass is of the kernels' sources and of the driver."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    with FakeCuda(1) as fake:
        device = torch.device("cuda:0")
        selfcheck.ensure(device, backend.operators("triton"))
        assert sum(c.kind == "capture_begin" for c in fake.calls) > 8
        [key] = json.loads(selfcheck.cache_file().read_text())
        before = len(fake.calls)
        selfcheck.ensure(device, backend.operators("triton"))
        assert len(fake.calls) == before
        for name, value in (("driver", lambda: "999.1"), ("_sources", lambda: "other")):
            with monkeypatch.context() as patch:
                patch.setattr(selfcheck, name, value)
                assert selfcheck.fingerprint(device) != key.removesuffix(" | triton")
        stale = selfcheck.Graphed.run
        with monkeypatch.context() as patch:
            patch.setattr(selfcheck.Graphed, "run", lambda graphed: stale(graphed) * (len(graphed.loop.kinds) != 5))
            with pytest.raises(selfcheck.SelfCheckError):
                list(selfcheck.checks(device, backend.operators("triton")))


def test_a_backend_that_cannot_run_at_all_gives_way_to_the_reference(monkeypatch):
    """With one warning that names the reason; wrong bits are raised, and a backend that was asked for is kept to."""

    def lacks(error):
        def ensure(device, ops):
            raise error

        monkeypatch.setattr(selfcheck, "ensure", ensure)
        selfcheck._unusable.cache_clear()

    model = score_model(mixture())
    expected = fs.Sampler(model, steps=3, batch=4).run(range(4))
    with FakeCuda(1):
        for error, words in (
            (RuntimeError("Failed to find C compiler. Please specify via CC"), "RuntimeError, .*C compiler"),
            (FileNotFoundError("Python.h"), r"FileNotFoundError, .*Python\.h"),
            (type("CompilationError", (Exception,), {})("at 3:1"), "CompilationError, .*at 3:1"),
        ):
            lacks(error)
            with pytest.warns(UserWarning, match=f"backend triton: {words}.*using the reference backend"):
                s = fs.Sampler(model, steps=3, batch=4, device="cuda:0")
            assert s.ops is backend.REFERENCE
            assert torch.equal(s.run(range(4)).cpu(), expected)
            assert s.engine.mode == "step"
            with pytest.raises(type(error)):
                fs.Sampler(model, steps=3, batch=4, device="cuda:0", backend="triton")
        lacks(selfcheck.SelfCheckError("a bit"))
        with pytest.raises(selfcheck.SelfCheckError):
            fs.Sampler(model, steps=3, batch=4, device="cuda:0")
    selfcheck._unusable.cache_clear()
