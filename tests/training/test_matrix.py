"""Pairs of schedule and prediction that trained badly once: by the study of all pairs, with its bounds."""

from __future__ import annotations

import json

import numpy as np
import pytest

from bench.studies import training_matrix as study

PAIRS = [("ddpm", "eps"), ("subvp", "score"), ("ve", "score"), ("edm", "x0"), ("ddpm-cosine", "flow"), ("vp", "v")]


@pytest.mark.slow
@pytest.mark.nightly
def test_six_pairs_train_like_the_best(tmp_path, monkeypatch):
    """On one set, 150,000 examples each, by two solvers: distances within 25 % of the best, shares within 3 points."""
    monkeypatch.setattr(study, "RECORDS", tmp_path / "records.jsonl")
    rows = [study.measure("points", "four", *pair, 150_000) for pair in PAIRS]
    judged = study.verdicts(rows, "four")
    assert len(judged) == 6
    assert not {pair: verdict for pair, verdict in judged.items() if not verdict["passes"]}
    distance, _ = study.exact("four")
    for verdict in judged.values():
        assert verdict["distances"] == pytest.approx([distance] * 2, rel=0.15)


@pytest.mark.slow
@pytest.mark.nightly
def test_the_study_tells_good_from_bad(tmp_path, monkeypatch, capsys):
    """Verdicts on samples that are the data, a distance too wide, a share too small, and a run that failed."""
    draws = {"good": study.examples("four", 20_000, 7), "other": study.examples("four", 20_000, 8)}
    draws["wide"] = 2.0 * np.sign(draws["good"]) + 1.4 * (draws["good"] - 2.0 * np.sign(draws["good"]))
    draws["uneven"] = np.where(draws["good"][:, :1] > 0, draws["good"], np.roll(draws["good"], 1, 0))
    rows = []
    for name, x in draws.items():
        distance, shares = study.judge("four", x)
        drawn = {"distance": distance, "shares": shares}
        rows.append({"set": "four", "schedule": "vp", "prediction": name, "images": 1, "dpmpp-2m": drawn, "em": drawn})
    failed = {"set": "four", "schedule": "vp", "prediction": "failed", "images": 1, "em": {"error": "no"}}
    judged = study.verdicts([*rows, failed], "four")
    assert {name: v["passes"] for (_, name), v in judged.items()} == {
        "good": True, "other": True, "wide": False, "uneven": False, "failed": False,
    }  # fmt: skip
    assert judged["vp", "wide"]["ratio"] == pytest.approx(1.4, rel=0.01)
    exact, shares = study.exact("blocks")
    assert exact == pytest.approx(study.GREY, rel=0.02)  # noise of the pixels, rounding to bytes included
    assert shares == pytest.approx([0.25] * 4, abs=0.01)
    exact, _ = study.exact("four")
    assert exact == pytest.approx(0.5 * np.sqrt(2 / np.pi), rel=0.01)
    records = tmp_path / "records.jsonl"
    env = {"device": "CPU", "torch": "2"} | study.environment(__import__("torch").device("cpu"))
    records.write_text("\n".join(json.dumps({"schema": 1, "env": env} | row) for row in [*rows, failed]))
    monkeypatch.setattr(study, "RECORDS", records)
    monkeypatch.setattr(study, "publish", lambda *a: None)
    assert study.main(["--table"]) == 1
    text = capsys.readouterr().out
    assert "2 of 5 pairs pass, of 66 there are; 0 of them" in text
