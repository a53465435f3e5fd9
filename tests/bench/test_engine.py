"""The sampler against published loops, the tables of the network path, and scaling."""

from __future__ import annotations

import json

import pytest
import torch

from bench import common
from bench.engine import network, sampler, scaling


def test_the_published_loops_agree_with_the_sampler(monkeypatch, quick):
    spec = {**sampler.SPEC, "size": 8, "width": 8, "patch": 1}
    monkeypatch.setattr(sampler, "SPEC", spec)
    monkeypatch.setattr(sampler.fs, "bundled", list, raising=False)
    for case in sampler.cases(quick):
        facts = json.loads(json.dumps(case.facts))
        assert facts["samplers"]["eager"]["execution"] == quick.execution(4, graph="off").to_dict()
        checks = case.check()
        assert [check for check in checks if not check.ok] == []
        assert {"eager equals the published loop", "stub, eager equals the published loop"} == {c.name for c in checks}
        seconds = {name: 1.0 + k for k, name in enumerate(case.variants)}
        shares = case.derive(seconds)["shares"]["eager"]
        assert sum(shares.values()) == pytest.approx(1.0)
        assert case.pairs == [
            ("fastscore, eager", "published, eager"), ("stub: fastscore, eager", "stub: published"),
        ]  # fmt: skip
    for loop in ("dpmpp_2m", "predictor_corrector"):
        exact = getattr(sampler.baselines, loop)
        monkeypatch.setattr(sampler.baselines, loop, lambda *a, exact=exact: exact(*a) * 1.001)
    for case in sampler.cases(quick):
        with pytest.raises(common.RedGate, match="eager equals the published loop"):
            common.measure(case, quick)


def test_on_a_gpu_shares_are_parts_of_the_whole(monkeypatch, quick):
    """As on a GPU, with tapes for graphs: the network and the rows are the device's, whatever the host takes."""
    monkeypatch.setattr(sampler, "SPEC", {**sampler.SPEC, "size": 8, "width": 8, "patch": 1})
    monkeypatch.setattr(sampler.fs, "bundled", list, raising=False)
    monkeypatch.setattr(common.Setting, "graphs", True)
    monkeypatch.setattr(common.Setting, "no_compile", None)
    compiled = []
    monkeypatch.setattr(torch, "compile", lambda net, **options: compiled.append(options.get("mode")) or net)
    case = next(sampler.cases(quick))
    assert {"network alone, eager", "network alone, compiled", "rows alone"} == set(case.recorded)
    assert "reduce-overhead" in compiled and "published, reduce-overhead" in case.variants
    seconds = dict.fromkeys(case.variants, 1.0) | dict.fromkeys(case.recorded, 0.4)
    for share in case.derive(seconds)["shares"].values():
        assert share == pytest.approx({"net": 0.4, "update": 0.4, "gap": 0.2})
    case.skipped["graph of rows alone"] = "it cannot be captured"
    assert case.derive(seconds)["shares"] == {}


def test_the_network_tables_show_every_numerics():
    spread = {"p20": 1.9, "p50": 2.0, "p80": 2.1}
    rate = {"images_per_s": 100.0, "over_own": spread, "gflop_per_s": 30.0, "share_of_product": spread}
    row = {
        "network": "n",
        "alpha_over_sigma": [0.0, 1.0, 500.0],
        "score_error": {"fp32": [1e-6, 2e-6, 3e-6], "bf16": [1e-3, 5e-3, 2e-3]},
        "rates": dict.fromkeys(("own", "fp32", "bf16"), rate),
    }
    judged = {
        "num": 9,
        "steps": 20,
        "classifier-FID": {"own": 0.05, "bf16": 0.06},
        "mean_pixel_difference": {"bf16": 0.4},
    }
    head = {"hardware": "h", "threads": 1, "clock": "CPU time", "torch": "2", "date": "d"}
    text = network.table({**head, "networks": [row], "quality": judged})
    assert "| n | package, bf16 | 100 | 2.00 (1.90 to 2.10) | 30 | 200% | 5.0e-03 |" in text
    assert "| n | inf | 1.0e-06 | 1.0e-03 |" in text
    assert "eager float32 0.0500, bf16 0.0600" in text


def test_scaling_measures_a_point_and_draws_it(tmp_path, env):
    settings = scaling.settings("ids", 100)
    drawn = scaling.point(settings)
    assert drawn["seconds"] > 0.0 and (drawn["mib"] is None or drawn["mib"] < 100.0)
    skipped = {"value": (3, 8, 8), "skipped": "longer than 1 s"}
    run = {"env": env, "axes": {"ids": [{"value": 100, **settings, **drawn}], "dimension": [skipped]}}
    text = scaling.table(json.loads(json.dumps(run)))
    assert "| ids | 100 |" in text and "| dimension | 3x8x8 | skipped: longer than 1 s |" in text
