"""How a run stands, from anywhere: complete, shared, ended early, being replaced, being committed; and how to go on."""

from __future__ import annotations

import json
import os
import shlex
import shutil
import subprocess
import sys

import pytest

from fastscore.output.lock import locked
from fastscore.output.store import status as module
from fastscore.output.store import work as work_module
from fastscore.output.store.folder import Folder
from fastscore.output.store.lease import Leases
from fastscore.output.store.manifest import Manifest
from fastscore.output.store.place import Entry
from fastscore.output.store.status import status

SAMPLE = ("sample", "analytic:mixture", "-n", "25", "--steps", "3", "--batch", "10", "--shard-size", "10")


def cut(run, monkeypatch, *argv):
    """Run a command that is interrupted when it keeps its second shard."""
    keep, kept = work_module.keep, []

    def interrupted(place, manifest, shard):
        if kept:
            raise KeyboardInterrupt
        kept.append(shard.number)
        keep(place, manifest, shard)

    with monkeypatch.context() as patch:
        patch.setattr(work_module, "keep", interrupted)
        assert run(*argv)[0] == 75


def files(folder):
    return {path.relative_to(folder): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def go_on(run, found):
    """Run the command that a status gives."""
    words = shlex.split(found["command"])
    assert words[0] == "fastscore"
    assert run(*words[1:])[0] == 0


def test_a_complete_run(run, tmp_path):
    assert run(*SAMPLE, "--seed", "7", "--out", tmp_path)[0] == 0
    before = files(tmp_path)
    code, said, error = run("status", tmp_path)
    assert (code, error) == (0, "")
    lines = said.splitlines()
    assert lines[:2] == [f"{tmp_path}: complete", "  25 of 25 samples, 3 of 3 shards"]
    assert lines[2].startswith("  model analytic:mixture, seed 7, solver DPMpp2M(), schedule VP(")
    assert len(lines) == 3
    found = json.loads(run("status", tmp_path, "--json")[1])
    assert found["complete"] and found["command"] is None and found["samples"] == {"there": 25, "of": 25, "ids": "0-24"}
    assert files(tmp_path) == before


def test_a_shared_run_and_its_command(run, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    where = "a run's folder"
    assert run(*SAMPLE, "--shard", "1/2", "--out", where)[0] == 0
    code, said, _ = run("status", where)
    assert code == 75
    command = "fastscore sample analytic:mixture -n 25 --steps 3 --batch 10 --shard 0/1 --out 'a run'\"'\"'s folder'"
    assert (
        said.splitlines()[1] == "  15 of 25 samples, 2 of 3 shards"
        and said.splitlines()[-1] == f"  go on with: {command}"
    )
    found = json.loads(run("status", where, "--json")[1])
    assert (found["state"], found["shards"]) == ("shared", {"there": 2, "of": 3, "samples": 10})
    go_on(run, found)
    assert run("status", where)[0] == 0


def test_the_last_shard_counts_what_it_has(run, tmp_path):
    assert run(*SAMPLE, "--shard", "2/3", "--out", tmp_path)[0] == 0
    assert (status(tmp_path).samples, status(tmp_path).shards) == (5, 1)


@pytest.mark.parametrize("more", [(), ("--shards",)])
def test_an_unfinished_run_and_its_command(run, tmp_path, monkeypatch, more):
    out = tmp_path / "run"
    cut(run, monkeypatch, *SAMPLE, *more, "--out", out)
    found = json.loads(run("status", out, "--json")[1])
    assert (found["state"], found["complete"], found["shards"]["there"]) == ("unfinished", False, 1)
    assert found["process"] is None
    go_on(run, found)
    assert run("status", out)[0] == 0


@pytest.mark.parametrize("more", [(), ("--shards",)])
def test_a_run_that_replaces_another(run, tmp_path, monkeypatch, more):
    assert run(*SAMPLE, *more, "--out", tmp_path)[0] == 0
    cut(run, monkeypatch, *SAMPLE, *more, "--seed", "1", "--fresh", "--out", tmp_path)
    code, said, _ = run("status", tmp_path)
    assert code == 0 and "and, to replace it, an unfinished run:" in said and "--fresh" in said
    found = json.loads(run("status", tmp_path, "--json")[1])
    assert (found["complete"], found["seed"], found["unfinished"]["seed"]) == (True, 0, 1)
    go_on(run, found["unfinished"])
    found = json.loads(run("status", tmp_path, "--json")[1])
    assert found["seed"] == 1 and "unfinished" not in found


def test_who_is_at_it(run, tmp_path, monkeypatch):
    out = tmp_path / "run"
    cut(run, monkeypatch, *SAMPLE, "--out", out)
    with locked(out / ".run-lock", out):
        code, said, _ = run("status", out)
        assert code == 75 and f"process {os.getpid()} on " in said and "go on with" not in said
    (out / ".run-lock").write_text("999999999 " + os.uname().nodename)  # of one that is dead
    assert status(out).process is None


def test_leases_and_conflicts(run, tmp_path):
    assert run(*SAMPLE, "--shard", "0/3", "--out", tmp_path)[0] == 0
    leases = Leases(Folder(tmp_path), "worker 3 of 4")
    assert leases.take(0) and leases.take(1)  # 0 is there: nobody is at it
    (tmp_path / "leases" / "0000002").write_text("damaged")
    (tmp_path / "leases" / "notes.txt").write_text("somebody's")
    place = Folder(tmp_path)
    place.create("conflicts/0000000-0123456789ab.npz", b"")
    found = status(tmp_path)
    held = {lease.shard: lease for lease in found.leases}
    assert held.keys() == {1, 2}
    assert (held[1].owner, held[1].pid) == ("worker 3 of 4", os.getpid()) and 0 <= held[1].age < 100
    assert held[2].owner == "?"
    assert found.conflicts == ("conflicts/0000000-0123456789ab.npz",)
    said = run("status", tmp_path)[1]
    assert "  shard 1: worker 3 of 4 on " in said and "conflict: conflicts/0000000-0123456789ab.npz" in said
    assert json.loads(run("status", tmp_path, "--json")[1])["leases"][0]["age"] >= 0


def test_a_run_between_its_commit_and_its_end(run, tmp_path):
    out = tmp_path / "run"
    assert run(*SAMPLE, "--out", out)[0] == 0
    (out / ".run-committed" / "new").mkdir(parents=True)
    for name in ("samples.npz", "run.json"):
        os.replace(out / name, out / ".run-committed" / "new" / name)
    (out / ".run-committed" / "order.json").write_text('{"record": "run.json", "remove": []}')
    found = json.loads(run("status", out, "--json")[1])
    assert (found["state"], found["complete"], found["samples"]["there"]) == ("committed", False, 25)
    assert (out / ".run-committed").exists()  # it only reads
    go_on(run, found)
    assert run("status", out)[0] == 0


def test_a_complete_run_that_lost_files(run, tmp_path):
    assert run(*SAMPLE, "--out", tmp_path / "a")[0] == 0
    assert run(*SAMPLE, "--shards", "--out", tmp_path / "b")[0] == 0
    (tmp_path / "a" / "samples.npz").unlink()
    shutil.rmtree(tmp_path / "b" / "shards")
    for name in "ab":
        code, said, _ = run("status", tmp_path / name)
        assert code == 75 and said.splitlines()[-1] == f"  go on with: fastscore verify {tmp_path / name} --repair"


def test_a_run_from_python_has_no_command(run, tmp_path):
    assert run(*SAMPLE, "--shard", "0/3", "--out", tmp_path)[0] == 0
    values = json.loads((tmp_path / "manifest.json").read_text())
    (tmp_path / "manifest.json").write_text(json.dumps(values | {"argv": None}))
    assert status(tmp_path).command is None
    assert "begun in Python" in run("status", tmp_path)[1]


def test_no_run_is_bad_input(run, tmp_path):
    for where, word in ((tmp_path, "holds no run"), (tmp_path / "none", "holds no run"), ("ftp://host/x", "no place")):
        code, said, error = run("status", where)
        assert (code, said) == (2, "") and word in error
    (tmp_path / "run.json").write_text('{"settings": {}, "versions": {}}')
    assert "without a manifest" in run("status", tmp_path)[2]
    (tmp_path / "manifest.json").write_text("[")
    code, _, error = run("status", tmp_path)
    assert code == 2 and "cannot be read" in error


def test_a_bucket(run, tmp_path, monkeypatch):
    from obstore.store import MemoryStore

    from fastscore.output.store.objects import Bucket

    assert run(*SAMPLE, "--shard", "0/2", "--out", tmp_path)[0] == 0
    bucket = Bucket(MemoryStore(), "run", "s3://bucket/run")
    for entry in Folder(tmp_path).entries():
        bucket.create(entry.name, Folder(tmp_path).read(entry.name))
    Leases(bucket, "worker 1").take(1)
    monkeypatch.setattr(module, "place_of", lambda where: bucket)
    found = status("s3://bucket/run")
    assert (found.shards, found.samples, found.complete, found.leases[0].owner) == (1, 10, False, "worker 1")
    assert found.command is not None and found.command.endswith("--shard 0/1 --out s3://bucket/run")


def test_many_shards_cost_one_listing():
    class Listed:
        url, listings = "listed", 0

        def entries(self, prefix=""):
            self.listings += 1
            if prefix == "shards/":
                yield from (Entry(manifest.name(number), 1, 0.0) for number in range(1000, 21_000))

    manifest, place = Manifest(10**9, "0-999999999", 1000), Listed()
    found = module._of("listed", place, manifest, "shared")
    assert (found.shards, found.samples, place.listings) == (20_000, 20_000_000, 3)


def test_it_costs_no_torch(run, tmp_path):
    assert run(*SAMPLE, "--shard", "0/2", "--out", tmp_path)[0] == 0
    code = (
        "import sys; from fastscore.cli import main\n"
        f"try: main(['status', {str(tmp_path)!r}])\nexcept SystemExit as end: print(end.code, 'torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "75 False"
