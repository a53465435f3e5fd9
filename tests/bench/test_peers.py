"""The comparison with other samplers; a peer that is not installed is skipped."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from bench import common, peers
from bench.peers import cases, models, tables
from fastscore.model.analytic import mixture, score_model


def entries(adapter: str, steps: int) -> list[peers.Entry]:
    loaded = peers.load_entries(adapter, steps)
    if isinstance(loaded, str):
        pytest.skip(loaded)  # names the extra
    return loaded


@pytest.mark.parametrize("adapter", peers.LIBRARIES)
def test_a_peer_and_fastscore_draw_the_same_samples(adapter, quick):
    """On the exact score of a mixture, from the same normals, within rounding."""
    for entry in entries(adapter, 8):
        n = 32
        ours = cases.sampler(score_model(mixture()), entry, quick.execution(n)).run(range(n), models.SEED)
        model, like = models.mixture_model(entry.predicts), torch.empty(n, 2)
        check = cases.same_samples(entry.name, ours, entry, model, like)
        assert check.ok, check
        assert not cases.same_samples(entry.name, ours * (1.0 + 1e-3), entry, model, like).ok


@pytest.mark.parametrize("adapter", peers.LIBRARIES)
def test_the_gate_is_red_where_the_solvers_differ(adapter, quick):
    for entry in entries(adapter, 8):
        spoiled = replace(entry, run=lambda model, z, draw, run=entry.run: 1.01 * run(model, z, draw))
        case = cases.outside(quick, spoiled, (1, 4, 4))
        with pytest.raises(common.RedGate):
            common.measure(case, quick)


def test_a_missing_peer_names_the_extra(monkeypatch, quick):
    monkeypatch.setattr(peers.importlib.util, "find_spec", lambda name: None)
    assert peers.load_entries("azula", 4) == "azula, einops not installed: pip install 'fastscore[peers]'"
    monkeypatch.setattr(cases, "LIBRARIES", {"azula": peers.LIBRARIES["azula"]})
    (case,) = cases.cases(quick)
    record = common.measure(case, quick)
    assert "azula: azula, einops not installed" in tables.tables([record], "here")


@pytest.mark.parametrize("error", [RuntimeError("operator torchvision::nms does not exist"), OSError("bad\nsymbol")])
def test_a_peer_that_is_installed_but_broken_is_said(monkeypatch, quick, error):
    """As a torchvision that was built for another torch."""

    def fails(name):
        raise error

    monkeypatch.setattr(peers.importlib.util, "find_spec", lambda name: object())
    monkeypatch.setattr(peers, "import_module", fails)
    reason = peers.load_entries("azula", 4)
    assert reason == (
        f"azula, einops installed, but cannot be used here ({type(error).__name__}: {' '.join(str(error).split())})"
    )
    monkeypatch.setattr(cases, "LIBRARIES", {"azula": peers.LIBRARIES["azula"]})
    (case,) = cases.cases(quick)
    assert "cannot be used here" in tables.tables([common.measure(case, quick)], "here")


def test_k_diffusion_is_installed_without_what_it_requires(monkeypatch):
    monkeypatch.setattr(peers.importlib.util, "find_spec", lambda name: None)
    assert peers.load_entries("k_diffusion", 4).endswith("&& pip install --no-deps k-diffusion")


def test_cases_and_tables_of_the_loop_that_is_always_there(quick):
    (entry,) = peers.load_entries("score_sde", 4)
    setting = replace(quick, points=100)
    made = [common.measure(make, setting) for make in (
        cases.outside(setting, entry, (1, 4, 4)), cases.points(setting, entry),
    )]  # fmt: skip
    text = tables.tables(made, "here")
    assert "Outside the network" in text and "two-dimensional mixture" in text
    assert text.count("| score_sde (ours) | PC, Langevin |") == 2
    assert tables.summary(made, "here") == ""  # it is about a network
    red = {"bench": "peers", "case": "one", "red": "peers one: no figures, the result is wrong (x: error 2, bound 1)"}
    assert "Not measured: one: (x: error 2, bound 1)." in tables.tables([*made, red], "here")


def test_match_chooses_cases(monkeypatch, quick):
    monkeypatch.setattr(cases, "LIBRARIES", {"score_sde": peers.LIBRARIES["score_sde"]})
    chosen = cases.cases(replace(quick, match="outside: score_sde"))
    assert [case.bench for case in chosen] == ["outside"]
