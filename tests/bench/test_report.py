"""Tables from records."""

from __future__ import annotations

import json

from bench import common, records, report
from bench.engine import network, scaling
from bench.studies import equal_quality, quality


def op_record(env: dict, **changes) -> dict:
    seconds = {w: common.spread([s]) for w, s in ((common.OURS, 2e-3), (common.EAGER, 1e-3), (common.COPY, 1e-4))}
    return {
        "schema": 1, "bench": "update", "case": "64x1x28x28", "quick": False, "env": env, "seconds": seconds,
        "ratios": [{"of": common.OURS, "over": common.EAGER, "p20": 0.4, "p50": 0.5, "p80": 0.6}],
        "skipped": {common.COMPILED: "no C++ compiler"}, "facts": {"backend": "reference"}, "derived": {}, "cost": {},
        "bandwidth": {"bytes": 1, "gb_per_s": 1.25, "copy_gb_per_s": 25.0, "percent_of_copy": 5.0}, **changes,
    }  # fmt: skip


def test_tables_say_where_fastscore_loses(env):
    text = report.tables([op_record(env), op_record(env, case="red one", red="wrong")])
    assert "| update | 64x1x28x28 | reference | 2 ms | 1 ms |  | 100 us | 0.50 |  | 1.2 | 5 % |" in text
    assert "**wrong result, not timed**" in text
    assert "CPU figures: they say nothing about a GPU" in text
    assert "commit abc with uncommitted changes" in text and "2026-01-02" in text
    assert "0.50 (0.40 .. 0.60) times the speed of eager: SLOWER" in report.text(op_record(env))


def test_the_latest_record_counts_and_quick_ones_do_not(env):
    old, new, quick = op_record(env), op_record(env, facts={"backend": "cpp"}), op_record(env, quick=True)
    assert report.latest([old, new, quick]) == [new]
    assert "mean nothing" in report.tables([quick])


def test_sampler_table(env):
    seconds = {"fastscore, eager": 2.0, "published, eager": 3.0}
    made = op_record(
        env, bench="sampler", case="PC", seconds={w: common.spread([s]) for w, s in seconds.items()},
        ratios=[{"of": "fastscore, eager", "over": "published, eager", "p20": 1.4, "p50": 1.5, "p80": 1.6}],
        items={"count": 64, "name": "sample"}, skipped={"loop graph": "needs a CUDA device"},
        facts={"backend": "reference", "prepare": {"eager": {"first_s": 1.0, "capture_s": 0.5}}},
        derived={
            "rates": {w: {"samples_per_s": 64 / s, "nfe_per_s": 20 / s} for w, s in seconds.items()},
            "shares": {"eager": {"net": 0.9, "update": 0.2, "gap": -0.1}},
            "outside_ms_per_step": {"fastscore, eager": 0.25, "published": 0.5},
        },
    )  # fmt: skip
    text = report.tables([made], ops=False)
    assert "| fastscore, eager | 32 | 32 .. 32 | 1.50 |  | 90% | 20% | -10% | 0.250 | 1.5 s |  |" in text
    assert "| published, eager | 21.33 | 21.33 .. 21.33 |  |  |  |  |  | 0.500 |  |  |" in text
    assert "skipped: needs a CUDA device" in text


def test_published_tables_are_what_the_records_say():
    """What an edit by hand, or a generator that was changed and not run, would break."""

    def last(name: str) -> dict:
        return json.loads((records.RESULTS / f"{name}.jsonl").read_text().splitlines()[-1])

    texts = {
        "ops": report.tables(report.recorded()),
        "peers": report.against_peers(report.recorded()),
        "network": network.table(last("network")),
        "scaling": scaling.table(last("scaling")),
        "quality": quality.table(last("quality")),
        "equal-quality": equal_quality.table(last("equal-quality")),
    }
    for name, text in texts.items():
        assert (records.RESULTS / f"{name}.md").read_text().partition("\n\n")[2] == f"{text}\n", name


def test_only_what_stands_between_markers_changes():
    assert records.between("a <!-- bench -->old<!-- /bench --> b", "bench", "new").split() == [
        "a", "<!--", "bench", "-->", "new", "<!--", "/bench", "-->", "b",
    ]  # fmt: skip
    assert records.between("nothing here", "bench", "new") == "nothing here"
