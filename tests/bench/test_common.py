"""Clock, gate and record, without measuring anything that matters; no test looks at a real clock."""

from __future__ import annotations

import json
import math

import pytest
import torch

from bench import clocks, common, records


class Ticks:
    """A clock that only work moves, by its cost times the load of the machine."""

    def __init__(self):
        self.now, self.load = 0.0, 1.0

    def work(self, seconds: float):
        def run() -> None:
            self.now += seconds * self.load

        return run


def case(check=lambda: [], **changes) -> common.Case:
    variants = {common.OURS: lambda: None, common.EAGER: lambda: None}
    fields = {
        "bench": "noise",
        "name": "tiny",
        "variants": variants,
        "pairs": [(common.OURS, common.EAGER)],
        "check": check,
    }
    return common.Case(**{**fields, "items": (4, "element"), "moved": 16, "facts": {"backend": "reference"}, **changes})


def test_drift_cancels_in_paired_ratios():
    ticks = Ticks()

    def slow(seconds: float):
        def run() -> None:
            ticks.load *= 1.01  # the machine gets slower all the time
            ticks.now += seconds * ticks.load

        return run

    seconds = common.paired({"a": slow(1.0), "b": slow(3.0)}, common.HostClock(lambda: ticks.now), 4, 0.0)
    assert seconds["a"][-1] > 1.05 * seconds["a"][0]
    ratios = common.spread([b / a for a, b in zip(seconds["a"], seconds["b"], strict=True)])
    assert ratios["p50"] == pytest.approx(3.0, rel=0.02)


def test_rounds_alternate_and_short_work_is_called_often():
    ticks, order = Ticks(), []
    short, long = ticks.work(0.001), ticks.work(0.1)
    variants = {"short": lambda: (order.append("s"), short()), "long": lambda: (order.append("l"), long())}
    seconds = common.paired(variants, common.HostClock(lambda: ticks.now), 3, 0.01)
    assert seconds["short"] == pytest.approx([0.001] * 3) and seconds["long"] == pytest.approx([0.1] * 3)
    assert "".join(order[4:]) in ("s" * 10 + "ll" + "s" * 20 + "l", "s" * 11 + "ll" + "s" * 22 + "l")


def test_no_round_begins_that_would_outlast_the_time_left():
    for left, rounds in ((10.0, 15), (0.55, 5), (0.0, clocks.FEWEST)):
        ticks = Ticks()
        clock, end = common.HostClock(lambda ticks=ticks: ticks.now), left + 0.2
        work = {"a": ticks.work(0.05), "b": ticks.work(0.05)}  # a round is 0.1 s, the two single calls of each 0.2 s
        seconds = common.paired(work, clock, 15, 0.0, lambda ticks=ticks, end=end: end - ticks.now)
        assert {name: len(values) for name, values in seconds.items()} == {"a": rounds, "b": rounds}


def test_events_time_the_device_and_flush_before_each_call(monkeypatch):
    order = []

    class Event:
        def record(self):
            order.append("event")

        def elapsed_time(self, end):
            return 250.0

    monkeypatch.setattr(torch.cuda, "synchronize", lambda device: order.append("wait"))
    clock = common.CudaClock(torch.device("cuda"), flush=False, event=Event)
    assert clock(lambda: order.append("work"), 3) == 0.25
    assert order == ["event", "work", "event"] * 3 + ["wait"]


def test_what_can_be_replayed_is_and_what_cannot_says_so(monkeypatch, quick):
    monkeypatch.setattr(common.Setting, "graphs", True)
    x, calls = torch.zeros(3), []

    def reads() -> None:
        raise RuntimeError("operation not permitted when stream is capturing")

    def adds() -> None:
        calls.append(1)
        x.add_(1.0)

    tried = case(recorded=("adds", "reads"), variants={"adds": adds, "reads": reads, "run": adds})
    variants = dict(tried.variants)
    common.replay(tried, variants, quick)
    assert isinstance(variants["adds"], clocks.Recorded) and variants["run"] is adds and variants["reads"] is reads
    before = len(calls)
    made = x.clone()
    variants["adds"]()
    assert len(calls) == before and torch.equal(x, made + 1.0)  # replayed, not called
    assert list(tried.skipped) == ["graph of reads"] and "not permitted" in tried.skipped["graph of reads"]


def test_tf32_is_set_for_a_while_and_loosens_the_gate(quick):
    before = clocks.torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32
    for use in (True, False):
        with clocks.tf32(use):
            assert torch.backends.cudnn.allow_tf32 == torch.backends.cuda.matmul.allow_tf32 == use
            cuda = common.Setting(torch.device("cuda"))
            assert cuda.tolerance(1e-4) == (common.TF32_TOLERANCE if use else 1e-4) and cuda.tolerance(0.5) == 0.5
            assert quick.tolerance(1e-4) == 1e-4
    assert before == (torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32)


def test_spread_is_three_percentiles():
    assert common.spread([5.0, 1.0, 2.0, 3.0, 4.0, 0.0]) == pytest.approx({"p20": 1.0, "p50": 2.5, "p80": 4.0})


@pytest.mark.parametrize("error", [0.2, math.nan])
def test_a_wrong_result_is_not_timed(error, quick):
    called = []
    wrong = case(lambda: [common.Check("sum", error, 0.1)], variants={common.OURS: lambda: called.append(1)}, pairs=[])
    with pytest.raises(common.RedGate, match="noise tiny: no figures, the result is wrong"):
        common.measure(wrong, quick)
    assert not called


def test_records_go_round(tmp_path, quick, monkeypatch):
    file, env = tmp_path / "deep" / "r.jsonl", records.environment(quick.device)
    made = {"schema": records.SCHEMA, **common.measure(case(), quick), "env": env}
    records.append(file, made)
    records.append(file, {**made, "schema": records.SCHEMA + 1})
    assert records.load(file) == [json.loads(json.dumps(made))]
    assert set(made["seconds"]) == {common.OURS, common.EAGER, common.COPY}
    assert made["repeats"] >= 5
    assert {
        "device",
        "threads",
        "torch",
        "triton",
        "numpy",
        "git",
        "dirty",
        "tf32",
        "date",
        "cudnn_benchmark",
        "sdpa",
        "gpu",
    } <= set(env)
    monkeypatch.setenv("FASTSCORE_COMMIT", "abc123")
    assert records.environment(quick.device)["git"] == "abc123"  # of a copy that came without git
    assert records.results_file({"device": "NVIDIA H100 80GB"}).name == "nvidia-h100-80gb.jsonl"
    cost = made["cost"][common.OURS]
    assert all((f["value"] is None) == bool(f["reason"]) for f in cost.values())
    assert cost["power"]["reason"] == "no NVIDIA GPU in this run"
