"""fastscore verify: what is missing, damaged or different is found, and repaired to the same bytes."""

from __future__ import annotations

import json
import re
import shutil
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from fastscore.output.store.formats import Shard, decode, encode
from fastscore.output.store.manifest import Manifest
from fastscore.output.store.place import place_of
from fastscore.output.store.verify import Verdict, recompute

DRAW = (
    "sample",
    "analytic:mixture",
    "-n",
    "50",
    "--steps",
    "3",
    "--batch",
    "10",
    "--network",
    "own",
    "--device",
    "cpu",
)
SHARDED = (*DRAW, "--shard-size", "10", "--shards", "--quiet")


@pytest.fixture(scope="module")
def drawn(tmp_path_factory):
    """A run in shards and one in a file, drawn once."""
    from fastscore import cli

    top = tmp_path_factory.mktemp("drawn")
    for name, words in (("shards", SHARDED), ("file", (*DRAW, "--shard-size", "10", "--quiet"))):
        with pytest.raises(SystemExit) as end:
            cli.main([*words, "--out", str(top / name)])
        assert end.value.code == 0
    return top


@pytest.fixture
def sharded(drawn, tmp_path):
    return shutil.copytree(drawn / "shards", tmp_path / "run")


@pytest.fixture
def gathered(drawn, tmp_path):
    return shutil.copytree(drawn / "file", tmp_path / "gathered")


def file(run, number):
    return run / f"shards/0000/{number:07d}.npz"


def contents(run):
    return {path.relative_to(run).as_posix(): path.read_bytes() for path in run.rglob("*") if path.is_file()}


def flip(path, at=200):
    data = bytearray(path.read_bytes())
    data[at] ^= 1
    path.write_bytes(data)


def test_a_good_run(run, sharded, gathered):
    for where, options in ((sharded, ()), (gathered, ()), (sharded, ("--repair",)), (sharded, ("--samples", 7))):
        before = contents(where)
        code, said, error = run("verify", where, *options)
        count = options[1] if len(options) == 2 else 4
        assert (code, said) == (0, f"5 of 5 shards are whole; {count} samples drawn again, 0 differ\n"), error
        assert contents(where) == before
    assert run("verify", sharded, "--samples", 0)[:2] == (0, "5 of 5 shards are whole\n")
    assert run("verify", sharded, "--quiet") == (0, "", "")
    assert "; 50 samples drawn again, 0 differ" in run("verify", sharded, "--samples", 500)[1]


DAMAGES = {
    "missing": (lambda run: file(run, 1).unlink(), 75, "1 of 5 shards are missing"),
    "flipped": (lambda run: flip(file(run, 1)), 5, "shard 1: .*0000001.npz"),
    "cut": (lambda run: file(run, 1).write_bytes(file(run, 1).read_bytes()[:-1]), 5, "shard 1: "),
    "empty": (lambda run: file(run, 1).write_bytes(b""), 5, "shard 1: "),
    "another of this run": (lambda run: shutil.copy(file(run, 2), file(run, 1)), 5, "is a shard of another run"),
    "of another run": (lambda run: foreign(run, 1), 5, "is a shard of another run"),
    "too short": (lambda run: short(run, 1), 5, "shard 1 holds 9 samples, not 10"),
    "all": (lambda run: [flip(file(run, k)) for k in range(5)], 5, "shard 4: "),
    "several": (lambda run: [file(run, 0).unlink(), flip(file(run, 4))], 5, "1 of 5 shards are missing"),
}


def foreign(run, number):
    shard = decode(file(run, number).read_bytes(), "npz")
    file(run, number).write_bytes(encode(Shard(number, "another", shard.arrays), "npz"))


def short(run, number):
    shard = decode(file(run, number).read_bytes(), "npz")
    arrays = {name: x[:9] for name, x in shard.arrays.items()}
    file(run, number).write_bytes(encode(Shard(number, shard.run, arrays), "npz"))


@pytest.mark.parametrize("name", DAMAGES)
def test_damage_is_found_and_repaired_to_the_same_bytes(run, sharded, name):
    damage, expected, words = DAMAGES[name]
    before = contents(sharded)
    damage(sharded)
    damaged = contents(sharded)
    code, said, error = run("verify", sharded, "--samples", 0)
    assert code == expected and re.search(words, error), error
    assert contents(sharded) == damaged  # without --repair nothing is written
    assert run("verify", sharded, "--quiet", "--samples", 0) == (expected, "", "")
    code, said, error = run("verify", sharded, "--repair")
    assert (code, said) == (0, "5 of 5 shards are whole; 4 samples drawn again, 0 differ\n"), error
    assert contents(sharded) == before


def test_samples_that_differ_in_a_bit_are_found(run, sharded):
    """In shards that are whole by their seals, as of a machine that computes otherwise."""
    for number in range(5):
        shard = decode(file(sharded, number).read_bytes(), "npz")
        x = shard.arrays["samples"].copy()
        x[3].view(np.uint32)[0] ^= 1
        file(sharded, number).write_bytes(encode(Shard(number, shard.run, {**shard.arrays, "samples": x}), "npz"))
    for options in ((), ("--repair",)):  # whole shards are not touched
        code, said, error = run("verify", sharded, "--samples", 50, *options)
        assert (code, said) == (4, "5 of 5 shards are whole; 50 samples drawn again, 5 differ\n")
        assert "error: drawn again, 5 samples differ: ids 3, 13, 23, 33, 43" in error


def test_zero_and_minus_zero_are_two_samples():
    manifest = Manifest(4, "0-3", 2)
    new = {"samples": np.zeros((4, 1), np.float32), "ids": np.arange(4)}
    job: Any = SimpleNamespace(manifest=manifest, arrays=lambda at: {name: x[list(at)] for name, x in new.items()})
    kept = [
        Shard(k, "x", {"samples": np.full((2, 1), -0.0, np.float32), "ids": np.arange(2 * k, 2 * k + 2)})
        for k in (0, 1)
    ]
    ids, different = recompute(job, [0, 1], kept.__getitem__, 3)
    assert len(ids) == 3 and different == ids
    assert recompute(job, [], kept.__getitem__, 3) == recompute(job, [0], kept.__getitem__, 0) == ([], [])


def test_the_worst_decides_the_code():
    found = {"missing": [1], "damaged": {2: "x"}, "different": [3]}
    cases = {("missing", "damaged", "different"): 4, ("missing", "damaged"): 5, ("missing",): 75, (): 0}
    for names, code in cases.items():
        verdict = Verdict(**{name: found[name] for name in names})
        assert verdict.code == code
        assert verdict.lost == [1, 2][: ("missing" in names) + ("damaged" in names)]


def rewrite(run, change):
    with np.load(run / "samples.npz") as saved:
        arrays = dict(saved)
    change(arrays)
    np.savez(run / "samples.npz", **arrays)


def grow(arrays):
    for name in arrays:
        arrays[name] = np.concatenate([arrays[name], arrays[name][:1]])


GATHERED = {
    "missing": lambda run: (run / "samples.npz").unlink(),
    "cut": lambda run: (run / "samples.npz").write_bytes((run / "samples.npz").read_bytes()[:-200]),
    "flipped": lambda run: flip(run / "samples.npz"),
    "a sample": lambda run: rewrite(run, lambda arrays: arrays["samples"][17].fill(0)),
    "an id": lambda run: rewrite(run, lambda arrays: arrays["ids"][17:18].fill(0)),
    "no ids": lambda run: rewrite(run, lambda arrays: arrays.pop("ids")),
    "one more": lambda run: rewrite(run, grow),
    "one less": lambda run: rewrite(run, lambda arrays: arrays.update(samples=arrays["samples"][:-1])),
}


@pytest.mark.thirds
@pytest.mark.parametrize("name", GATHERED)
def test_damage_of_a_run_in_one_file_is_found_and_repaired(run, gathered, name):
    before = (gathered / "samples.npz").read_bytes()
    GATHERED[name](gathered)
    code, _, error = run("verify", gathered, "--samples", 0)
    assert code == 5, error
    if name in ("a sample", "an id"):
        assert "shard 1: its samples have another sha256" in error and "shard 2" not in error
    assert run("verify", gathered, "--repair", "--quiet") == (0, "", "")
    assert (gathered / "samples.npz").read_bytes() == before
    assert run("verify", gathered)[0] == 0


def changed(where, **change):
    """Give a run another manifest, as another machine or version would have written it."""
    if (where / "manifest.json").exists():
        values = json.loads((where / "manifest.json").read_text())
        (where / "manifest.json").write_text(json.dumps(values | change))
    else:
        values = json.loads((where / "run.json").read_text())
        values["manifest"] |= change
        (where / "run.json").write_text(json.dumps(values))


@pytest.mark.parametrize("kind", ["sharded", "gathered"])
def test_what_this_machine_would_draw_otherwise_is_not_repaired(run, request, kind):
    where = request.getfixturevalue(kind)
    manifest = json.loads((where / "run.json").read_text())["manifest"]
    changed(where, numerics=manifest["numerics"] | {"torch": "1.0"})
    (file(where, 0) if kind == "sharded" else where / "samples.npz").unlink()
    before = contents(where)
    code, _, error = run("verify", where, "--repair")
    assert code == 2 and "numerics.torch: '1.0' there" in error
    assert contents(where) == before


@pytest.mark.parametrize("kind", ["sharded", "gathered"])
def test_a_run_from_python_is_looked_at_and_cannot_be_drawn_again(run, request, kind):
    where = request.getfixturevalue(kind)
    changed(where, argv=None)
    assert run("verify", where, "--samples", 0)[0] == 0
    code, _, error = run("verify", where)
    assert code == 2 and "names no command that draws it" in error


def test_where_there_is_no_run(run, sharded, tmp_path):
    (tmp_path / "empty").mkdir()
    for where in (tmp_path / "empty", tmp_path / "none"):
        code, _, error = run("verify", where)
        assert code == 2 and "holds no run" in error
    (tmp_path / "begun/.run").mkdir(parents=True)
    code, _, error = run("verify", tmp_path / "begun")
    assert code == 2 and "the command that began it goes on with it" in error
    (sharded / "manifest.json").write_text("{")
    (sharded / "run.json").unlink()
    code, _, error = run("verify", sharded)
    assert code == 2 and "manifest.json cannot be read" in error


def test_a_run_of_no_samples_is_whole(run, tmp_path):
    for k, words in enumerate((DRAW, SHARDED)):
        words = ["0" if word == "50" else word for word in words]
        assert run(*words, "--quiet", "--out", tmp_path / str(k))[0] == 0
        assert run("verify", tmp_path / str(k))[:2] == (0, "0 of 0 shards are whole\n")


@pytest.mark.slow
@pytest.mark.parametrize("more", [(), ("--shards",)], ids=["one file", "shards"])
def test_images_survive_the_repair_of_their_samples(run, tmp_path, more):
    words = ("sample", "fashion", "-n", 6, "--steps", 2, "--batch", 2, "--network", "own", "--device", "cpu", "--png")
    assert run(*words, *more, "--shard-size", 2, "--quiet", "--out", tmp_path)[0] == 0
    before = contents(tmp_path)
    flip(file(tmp_path, 1) if more else tmp_path / "samples.npz")
    assert run("verify", tmp_path, "--samples", 0, "--quiet")[0] == 5
    assert run("verify", tmp_path, "--repair", "--quiet") == (0, "", "")
    after = contents(tmp_path)
    assert {k: v for k, v in after.items() if k != "run.json"} == {k: v for k, v in before.items() if k != "run.json"}
    assert sum(name.startswith("png/") for name in after) == 6


def test_a_place_and_its_manifest_agree(sharded):
    manifest = Manifest.read(place_of(sharded))
    assert manifest is not None and manifest.argv is not None
    assert manifest.argv[-2:] == ("--device", "cpu") and "--out" not in manifest.argv
