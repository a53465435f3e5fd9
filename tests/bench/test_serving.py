"""The study of serving: its gate can be red, and its table says what was measured."""

from __future__ import annotations

import pytest
import torch

import fastscore as fs
from bench import common
from bench.studies import serving


@pytest.fixture
def small(monkeypatch):
    def net(u, c, cond):
        return u / (1.0 + u * u) + 0.1 * cond.to(u)[:, None]

    model = fs.ScoreModel(net, (4,), fs.EDM(), fs.Parametrization("eps"), classes=10, null=0)
    monkeypatch.setattr(fs, "load_model", lambda name: model)


@pytest.mark.filterwarnings("ignore")
def test_serving_counts_evaluations_and_stands_behind_its_gate(small, env, monkeypatch):
    case = serving.study(8, 4, 1, guided=4)
    assert 8 * 8 <= case["evaluations"] <= 2 * 8 * 50 and case["ticks"] * 4 >= case["evaluations"]
    run = {"env": env, "cases": [case]}
    assert f"| 4 | 1 of 4 | {case['evaluations']} | {case['ticks']} |" in serving.table(run)
    monkeypatch.setattr(serving, "served", lambda engine, requests: torch.zeros(len(requests), 4))
    with pytest.raises(common.RedGate, match="differ"):
        serving.study(8, 4, 1)
