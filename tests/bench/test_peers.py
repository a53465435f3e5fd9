"""The comparison with other samplers, and the scaling bench; a peer that is not installed is skipped."""

from __future__ import annotations

import json
from dataclasses import replace

import bench_peers
import common
import equal_quality
import peers
import pytest
import scaling
import torch
from peers import tables

from fastscore.model.analytic import mixture, score_model

CPU = torch.device("cpu")
QUICK = common.Setting(CPU, quick=True)
ENV = {
    "device": "CPU", "type": "cpu", "threads": 1, "torch": "2", "git": None, "dirty": None, "load": None,
    "date": "2026-01-02",
}  # fmt: skip


def entries(adapter: str, steps: int) -> list[peers.Entry]:
    found = peers.found(adapter, steps)
    if isinstance(found, str):
        pytest.skip(found)  # names the extra
    return found


@pytest.mark.parametrize("adapter", peers.LIBRARIES)
def test_a_peer_and_fastscore_draw_the_same_samples(adapter):
    """On the exact score of a mixture, from the same normals, within rounding."""
    for entry in entries(adapter, 8):
        n = 32
        ours = bench_peers.sampler(score_model(mixture()), entry, n, CPU).run(range(n), bench_peers.SEED)
        model, like = bench_peers.mixture_model(entry.predicts), torch.empty(n, 2)
        check = bench_peers.same(entry.name, ours, entry, model, like)
        assert check.ok, check
        assert not bench_peers.same(entry.name, ours * (1.0 + 1e-3), entry, model, like).ok


@pytest.mark.parametrize("adapter", peers.LIBRARIES)
def test_the_gate_is_red_where_the_solvers_differ(adapter):
    for entry in entries(adapter, 8):
        spoiled = replace(entry, run=lambda model, z, draw, run=entry.run: 1.01 * run(model, z, draw))
        case = bench_peers.outside(QUICK, spoiled, (1, 4, 4))
        with pytest.raises(common.RedGate):
            common.measure(case, QUICK)


def test_a_missing_peer_names_the_extra(monkeypatch):
    monkeypatch.setattr(peers.importlib.util, "find_spec", lambda name: None)
    assert peers.found("azula", 4) == "azula, einops not installed: pip install 'fastscore[peers]'"
    monkeypatch.setattr(bench_peers, "LIBRARIES", {"azula": peers.LIBRARIES["azula"]})
    (case,) = bench_peers.cases(QUICK)
    record = common.measure(case, QUICK)
    assert "azula: azula, einops not installed" in tables.tables([record], "here")


def test_cases_and_tables_of_the_loop_that_is_always_there():
    (entry,) = peers.found("score_sde", 4)
    setting = replace(QUICK, points=100)
    made = [common.measure(make, setting) for make in (
        bench_peers.outside(setting, entry, (1, 4, 4)), bench_peers.points(setting, entry),
    )]  # fmt: skip
    text = tables.tables(made, "here")
    assert "Outside the network" in text and "two-dimensional mixture" in text
    assert text.count("| score_sde (ours) | PC, Langevin |") == 2
    assert tables.summary(made, "here") == ""  # it is about a network
    red = {"bench": "peers", "case": "one", "red": "peers one: no figures, the result is wrong (x: error 2, bound 1)"}
    assert "Not measured: one: (x: error 2, bound 1)." in tables.tables([*made, red], "here")


def test_match_chooses_cases(monkeypatch):
    monkeypatch.setattr(bench_peers, "LIBRARIES", {"score_sde": peers.LIBRARIES["score_sde"]})
    found = list(bench_peers.cases(replace(QUICK, match="outside: score_sde")))
    assert [case.bench for case in found] == ["outside"]


def test_equal_quality_compares_at_the_error_of_pc():
    exact = equal_quality.target(2000, 1)
    assert equal_quality.sliced(exact, exact.flip(0)) == 0.0
    shift = torch.tensor([1.0, 0.0])  # seen at an angle a it is cos a, whose mean square is 1/2
    assert equal_quality.sliced(exact, exact + shift) == pytest.approx(0.5**0.5, rel=1e-4)
    run = equal_quality.study(200, 4)
    assert run["errors"][run["nfe"]] <= run["bound"]
    assert f"| fastscore, DPM-Solver++(2M) | {run['nfe']} |" in equal_quality.table({**run, "env": ENV})


def test_scaling_measures_a_point_and_draws_it(tmp_path):
    asked = scaling.settings("ids", 100)
    drawn = scaling.point(asked)
    assert drawn["seconds"] > 0.0 and (drawn["mib"] is None or drawn["mib"] < 100.0)
    skipped = {"value": (3, 8, 8), "skipped": "longer than 1 s"}
    run = {"env": ENV, "axes": {"ids": [{"value": 100, **asked, **drawn}], "dimension": [skipped]}}
    text = scaling.table(json.loads(json.dumps(run)))
    assert "| ids | 100 |" in text and "| dimension | 3x8x8 | skipped: longer than 1 s |" in text
