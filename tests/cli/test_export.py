"""fastscore export and merge as a user meets them."""

from __future__ import annotations

import json
import os
import tarfile

import numpy as np
import pytest

from fastscore.cli.export import FORMS
from fastscore.output.store.export import FILES, FOLDERS

POINTS = ("sample", "analytic:gaussian", "-n", "20", "--steps", "5", "--batch", "4", "--quiet")
IMAGES = ("sample", "fashion", "-n", "4", "--batch", "2", "--steps", "1", "--network", "own", "--quiet")


def test_the_command_knows_all_forms():
    assert FORMS == (*FILES, *FOLDERS)


@pytest.mark.parametrize("kept", [(), ("--shards",), ("--format", "npy"), ("--format", "tar")])
def test_a_run_is_exported_however_it_lies(run, tmp_path, kept):
    assert run(*POINTS, "--out", tmp_path / "whole") == (0, "", "")
    assert run(*POINTS, "--shard-size", "8", *kept, "--out", tmp_path / "run") == (0, "", "")
    code, said, error = run("export", tmp_path / "run", "--format", "npz", "--out", tmp_path / "all.npz")
    assert (code, said, error) == (0, f"20 samples: {tmp_path}/all.npz\n", "")
    with np.load(tmp_path / "all.npz") as found, np.load(tmp_path / "whole" / "samples.npz") as whole:
        assert set(found) == set(whole)
        assert all((found[name] == whole[name]).all() for name in whole)
    assert run("export", tmp_path / "run", "--format", "zarr", "--out", tmp_path / "z", "--quiet") == (0, "", "")
    chunks = json.loads((tmp_path / "z" / "samples" / ".zarray").read_text())["chunks"]
    assert chunks == [8, 2]


def test_images_are_exported_as_images(run, tmp_path):
    assert run(*IMAGES, "--shards", "--shard-size", "2", "--out", tmp_path / "run")[0] == 0
    assert run("export", tmp_path / "run", "--format", "png", "--out", tmp_path / "png")[0] == 0
    assert sorted(os.listdir(tmp_path / "png" / "000000")) == [f"00000{k}.png" for k in range(4)]
    assert run("export", tmp_path / "run", "--format", "tar", "--out", tmp_path / "tar")[0] == 0
    with tarfile.open(tmp_path / "tar" / "000001.tar") as archive:
        assert archive.getnames() == ["000002.png", "000002.cls", "000003.png", "000003.cls"]
    assert run("export", tmp_path / "run", "--format", "adm-npz", "--out", tmp_path / "adm.npz")[0] == 0
    with np.load(tmp_path / "adm.npz") as found:
        assert found["arr_0"].shape == (4, 28, 28, 1)


def test_parts_become_one_run(run, tmp_path):
    assert run(*POINTS, "--out", tmp_path / "whole")[0] == 0
    parts = [tmp_path / "0", tmp_path / "1"]
    for k, part in enumerate(parts):
        assert run(*POINTS, "--shard-size", "8", "--shard", f"{k}/2", "--out", part) == (0, "", "")
    code, _, error = run("export", parts[0], "--format", "npy", "--out", tmp_path / "no.npy")
    assert code == 2
    assert "holds 1 of 3 shards" in error
    code, said, _ = run("merge", parts[0], "--out", tmp_path / "both")
    assert (code, said) == (0, f"1 of 3 shards are in {tmp_path}/both; it lacks 1, 2\n")
    for _ in range(2):  # the second finds all of them there
        code, said, _ = run("merge", *parts, "--out", tmp_path / "both")
        assert (code, said) == (0, f"3 of 3 shards are in {tmp_path}/both\n")
    assert run("export", tmp_path / "both", "--format", "npy", "--out", tmp_path / "all.npy", "--quiet") == (0, "", "")
    with np.load(tmp_path / "whole" / "samples.npz") as whole:
        assert (np.load(tmp_path / "all.npy") == whole["samples"]).all()


def test_only_parts_of_one_run_are_merged(run, tmp_path):
    one, other, old = tmp_path / "one", tmp_path / "other", tmp_path / "old"
    assert run(*POINTS, "--shard-size", "8", "--shard", "0/2", "--out", one)[0] == 0
    assert run(*POINTS, "--seed", "1", "--shard-size", "8", "--shard", "1/2", "--out", other)[0] == 0
    old.mkdir()
    for runs, words in (((one, other), "seed: 1 there, 0 here"), ((one, old), "holds no run"), ((old,), "no run")):
        code, _, error = run("merge", *runs, "--out", tmp_path / "out")
        assert code == 2
        assert words in error
        assert not (tmp_path / "out").exists()
    code, _, error = run("merge", one, "--out", other)
    assert code == 2
    assert "seed" in error


def test_the_same_shard_with_other_bytes_is_told(run, tmp_path):
    from fastscore.output.store.formats import Shard, decode, encode

    one, other = tmp_path / "one", tmp_path / "other"
    for part in (one, other):
        assert run(*POINTS, "--shard-size", "8", "--shard", "0/3", "--out", part)[0] == 0
    file = other / "shards" / "0000" / "0000000.npz"
    shard = decode(file.read_bytes(), "npz")
    arrays = {**shard.arrays, "samples": -shard.arrays["samples"]}
    file.write_bytes(encode(Shard(0, shard.run, arrays), "npz"))
    code, _, error = run("merge", one, other, "--out", tmp_path / "out")
    assert code == 4
    assert "shard 0 is there with other bytes" in error
    file.write_bytes(file.read_bytes()[:-1])
    code, _, error = run("merge", one, other, "--out", tmp_path / "out")
    assert code == 5
    assert str(file) in error


def test_what_is_no_complete_run_is_not_exported(run, tmp_path):
    unfinished = tmp_path / "unfinished"
    (unfinished / ".run").mkdir(parents=True)
    cases = ((tmp_path, "holds no run"), (unfinished, "is not complete"), (tmp_path / "none", "holds no run"))
    for where, words in cases:
        code, _, error = run("export", where, "--format", "npz", "--out", tmp_path / "out.npz")
        assert code == 2
        assert words in error
    assert run("export", tmp_path, "--format", "zip", "--out", tmp_path / "out")[0] == 2
    assert run("export", tmp_path, "--format", "npz", "--out", "s3://bucket/out")[0] == 2
    assert os.listdir(tmp_path) == ["unfinished"]


def test_a_run_that_was_committed_and_no_more_is_put_in_place_first(run, tmp_path):
    """What a kill right after the commit leaves: the next command on the folder finishes it."""
    out, new = tmp_path / "run", tmp_path / "run" / ".run-committed" / "new"
    assert run(*POINTS, "--out", out)[0] == 0
    files = [path for path in out.iterdir() if path.is_file()]
    new.mkdir(parents=True)
    for path in files:
        path.rename(new / path.name)
    (new.parent / "order.json").write_text('{"record": "run.json", "remove": []}')
    assert run("export", out, "--format", "npy", "--out", tmp_path / "all.npy")[0] == 0
    assert len(np.load(tmp_path / "all.npy")) == 20


def test_a_damaged_shard_is_named(run, tmp_path):
    assert run(*POINTS, "--shard-size", "8", "--shards", "--out", tmp_path / "run")[0] == 0
    file = tmp_path / "run" / "shards" / "0000" / "0000001.npz"
    data = bytearray(file.read_bytes())
    data[100] ^= 1
    file.write_bytes(data)
    code, _, error = run("export", tmp_path / "run", "--format", "npz", "--out", tmp_path / "out.npz")
    assert code == 5
    assert "0000001.npz" in error
    assert os.listdir(tmp_path) == ["run"]
