"""The file for Prometheus: its text, how often it is written, and that it ends no run."""

from __future__ import annotations

import json
import re
import warnings

import pytest

from fastscore.output.metrics import Metrics, escaped
from fastscore.output.progress import Progress

LINE = re.compile(r'(fastscore_\w+)\{run="((?:[^"\\\n]|\\["\\n])*)",part="(\d+/\d+)"\} (\S+)')


def read(text):
    """Read a file as Prometheus does: values by name, and the labels that all have."""
    values, labels, about = {}, set(), {}
    assert text.endswith("\n")
    for line in text.splitlines():
        if match := re.fullmatch(r"# (HELP|TYPE) (\w+) (.+)", line):
            about.setdefault(match[2], {})[match[1]] = match[3]
            continue
        match = LINE.fullmatch(line)
        assert match, line
        assert about[match[1]].keys() == {"HELP", "TYPE"} and about[match[1]]["TYPE"] == "gauge"
        values[match[1].removeprefix("fastscore_")] = float(match[4])
        labels.add((re.sub(r"\\(.)", lambda m: {"n": "\n"}.get(m[1], m[1]), match[2]), match[3]))
    assert values.keys() == about_names(about)
    (one,) = labels
    return values, one


def about_names(about):
    return {name.removeprefix("fastscore_") for name in about}


def test_it_is_written_at_the_start_each_five_seconds_and_at_the_end(tmp_path, clock):
    file = tmp_path / "metrics.prom"
    with Progress(False, watch=Metrics(file, "s3://bucket/run", (2, 8))).begin(1000, 200, 10, 2) as progress:
        start = {"samples": 1000, "samples_done": 200, "shards": 10, "shards_done": 2, "samples_per_second": 0}
        assert read(file.read_text()) == (start | {"seconds": 0}, ("s3://bucket/run", "2/8"))
        clock.now += 4.9
        progress.advance(100.5, 1)
        assert read(file.read_text())[0]["samples_done"] == 200
        clock.now += 0.1
        progress.advance(0.25)
        half = {"samples_done": 300, "shards_done": 3, "samples_per_second": 20.15, "seconds": 5}
        assert read(file.read_text())[0] == start | half
        clock.now += 1.0
        progress.advance(699.25, 7)
    assert read(file.read_text())[0]["samples_done"] == 1000
    assert read(file.read_text())[0]["shards_done"] == 10
    assert [path.name for path in tmp_path.iterdir()] == ["metrics.prom"]


@pytest.mark.parametrize("run", ["plain", 'a "quoted" one', "back\\slash\\n", "two\nlines", "é", "\udcff"])
def test_any_path_is_a_label(tmp_path, clock, run):
    file = tmp_path / "m"
    with Progress(False, watch=Metrics(file, run)).begin(1):
        pass
    said = read(file.read_text(encoding="utf-8"))[1][0]
    assert said == ("\\udcff" if run == "\udcff" else run)
    assert "\n" not in escaped(run)


def test_what_cannot_be_written_is_one_warning(tmp_path, clock):
    watch = Metrics(tmp_path / "nowhere" / "m", "run")
    with pytest.warns(UserWarning, match=r"metrics: .*nowhere.* cannot be written.*; the run goes on") as caught:
        with Progress(False, watch=watch).begin(10) as progress:
            clock.now += 6.0
            progress.advance(1)
            (tmp_path / "nowhere").mkdir()
            clock.now += 6.0
            progress.advance(1)
            assert read((tmp_path / "nowhere" / "m").read_text())[0]["samples_done"] == 2  # and it is tried again
    assert len(caught) == 1


SAMPLE = ("sample", "analytic:mixture", "-n", "25", "--steps", "3", "--batch", "10", "--shard-size", "10")


def test_the_command_writes_it_and_it_is_no_setting(run, tmp_path):
    file = tmp_path / "m"
    assert run(*SAMPLE, "--out", tmp_path / "a", "--metrics", file)[0] == 0
    values, labels = read(file.read_text())
    assert labels == (str(tmp_path / "a"), "0/1")
    assert (values["samples"], values["samples_done"], values["shards"], values["shards_done"]) == (25, 25, 3, 3)
    record = json.loads((tmp_path / "a" / "run.json").read_text())
    assert "metrics" not in record["settings"] and "--metrics" not in record["manifest"]["argv"]
    assert run(*SAMPLE, "--out", tmp_path / "a")[0] == 0  # the same run


def test_a_part_of_a_run_has_its_own(run, tmp_path):
    assert run(*SAMPLE, "--shard", "1/2", "--out", tmp_path / "a", f"--metrics={tmp_path / 'm'}")[0] == 0
    values, labels = read((tmp_path / "m").read_text())
    assert labels == (str(tmp_path / "a"), "1/2")
    assert (values["samples"], values["samples_done"], values["shards"], values["shards_done"]) == (15, 15, 2, 2)
    assert "--metrics" not in "".join(json.loads((tmp_path / "a" / "manifest.json").read_text())["argv"])


def test_a_run_whose_metrics_cannot_be_written_is_drawn(run, tmp_path):
    with warnings.catch_warnings():
        code, _, error = run(*SAMPLE, "--out", tmp_path / "a", "--metrics", tmp_path / "no" / "m")
    assert code == 0 and error.count("cannot be written") == 1 and error.startswith("fastscore: metrics: ")
    assert (tmp_path / "a" / "samples.npz").exists()


def test_a_bucket_is_no_place_for_it(run, tmp_path):
    code, _, error = run(*SAMPLE, "--out", tmp_path / "a", "--metrics", "s3://bucket/m")
    assert code == 2 and "is in a bucket" in error
