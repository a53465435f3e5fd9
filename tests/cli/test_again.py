"""The job of a run from its manifest: the same shards as the command's, and nothing else that a manifest could ask."""

from __future__ import annotations

import json

import pytest

from fastscore.cli.again import opened
from fastscore.output.store.place import place_of
from fastscore.output.store.work import work

SAMPLE = ("sample", "analytic:mixture", "-n", "25", "--steps", "3", "--batch", "10", "--seed", "7")


@pytest.fixture
def begun(run, tmp_path):
    """A run with its manifest only."""
    assert run(*SAMPLE, "--shard-size", "10", "--manifest-only", "--out", tmp_path / "run")[0] == 0
    return tmp_path / "run"


def contents(folder):
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in folder.rglob("*.npz")}


def change(folder, **values):
    file = folder / "manifest.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | values))


@pytest.mark.parametrize("more", [(), ("--format", "npy"), pytest.param(("--class", "3"), marks=pytest.mark.slow)])
def test_the_same_bytes_as_the_command(run, tmp_path, more):
    model = ("sample", "fashion", *SAMPLE[2:], "--network", "own") if more[:1] == ("--class",) else SAMPLE
    options = (*model, *more, "--shard-size", "10")
    assert run(*options, "--manifest-only", "--out", tmp_path / "a")[0] == 0
    assert run(*options, "--shard", "0/1", "--out", tmp_path / "b")[0] == 0
    job, place = opened(str(tmp_path / "a"))
    assert [p.name for p in (tmp_path / "a").iterdir()] == ["manifest.json"]
    work(job, place)
    names = {p.relative_to(tmp_path / "b"): p.read_bytes() for p in (tmp_path / "b").rglob("shards/*/*")}
    assert len(names) == 3
    assert names == {p.relative_to(tmp_path / "a"): p.read_bytes() for p in (tmp_path / "a").rglob("shards/*/*")}


def test_a_relative_folder(begun, monkeypatch):
    monkeypatch.chdir(begun.parent)
    _, place = opened("run")
    assert place.url == place_of(begun).url


def test_no_manifest(tmp_path):
    with pytest.raises(ValueError, match=r"holds no manifest\.json"):
        opened(str(tmp_path / "nothing"))
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("argv", [None, [], ["train", "x"], ["doctor"], ["launch", "ray"], ["nothing"]])
def test_a_manifest_without_a_command_that_draws(begun, argv):
    change(begun, argv=argv)
    with pytest.raises(ValueError, match="names no command that draws it"):
        opened(str(begun))


@pytest.mark.parametrize(
    "argv", [[*SAMPLE, "--worker", "0:1:0:1:1:/nowhere"], [*SAMPLE, "--shard", "0/1"], [*SAMPLE, "--workers", "3"]]
)
def test_words_that_a_command_would_obey_draw_nothing(begun, argv):
    change(begun, argv=argv)
    opened(str(begun))
    assert [p.name for p in begun.iterdir()] == ["manifest.json"]


def test_another_machine_or_setting_is_refused(begun):
    change(begun, argv=[*SAMPLE, "--seed", "8"])
    with pytest.raises(ValueError, match="seed: 7 there, 8 here"):
        opened(str(begun))
    change(begun, argv=list(SAMPLE), numerics={"torch": "1.0"})
    with pytest.raises(ValueError, match=r"numerics\.fastscore"):
        opened(str(begun))
