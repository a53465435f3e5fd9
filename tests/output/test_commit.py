"""begin and commit: old or new wherever a process ends, and nothing of anybody else's is touched."""

from __future__ import annotations

import errno
import itertools
import json
import os
import signal
import sys

import numpy as np
import pytest
from forks import fork

from fastscore.files import atomic, here
from fastscore.output import commit, disk
from fastscore.output.commit import COMMITTED, LOCK, begin, claim, new_file
from fastscore.output.lock import BusyError, alive, locked
from fastscore.output.record import FILES, Written, image_name, ranges, written

EVENTS = {"open", "os.rename", "os.remove", "os.rmdir", "os.mkdir", "os.truncate", "os.chmod", "shutil.rmtree"}


def write_run(folder, seed, ids, *, overwrite=False, subdirs=False, files=FILES, end=lambda stage: stage.commit()):
    """Write a run whose every file holds its seed, as ``draw`` does."""
    planned = Written.of(FILES, np.array(ids, np.int64), subdirs)
    with begin(folder, overwrite=overwrite, planned=planned) as stage:
        wrote = Written(tuple(files), planned.first, planned.last, subdirs).entry()
        for name in [*files, *(image_name(k, subdirs) for k in ids)]:
            path = stage.new / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(json.dumps({"seed": seed, "wrote": wrote}))
        end(stage)


def contents(folder):
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def at_event(number, act):
    """Call ``act`` at the n-th change of a file that Python makes from now on."""
    counter = itertools.count(1)
    sys.addaudithook(lambda event, _: act() if event in EVENTS and next(counter) == number else None)


def stop():
    raise KeyboardInterrupt


@pytest.mark.parametrize(
    ("end", "stride"), [("kill", 3), *(pytest.param(end, 1, marks=pytest.mark.slow) for end in ("kill", "interrupt"))]
)
def test_wherever_a_process_ends_the_folder_holds_the_old_run_or_the_new(tmp_path, end, stride, monkeypatch):
    """At each change of a file in turn, or every third; a mix is never beside a record, and the next leaves none."""
    act = stop if end == "interrupt" else lambda: os.kill(os.getpid(), signal.SIGKILL)
    monkeypatch.setattr(os, "fsync", lambda _: None)  # which a kill does not need
    states, codes, number = set(), [], 0
    old_ids, new_ids = [0, 1, 999_999], [1, 2]
    write_run(tmp_path / "whole", 1, new_ids, files=("samples.npz", "run.json"))
    while not codes or codes[-1] != 0:
        number += stride
        out = tmp_path / str(number)
        write_run(out, 0, old_ids, files=FILES)
        (out / "png/holiday").mkdir()
        (out / "png/holiday/photo.png").write_text("mine")
        (out / "notes.txt").write_text("mine")
        old = contents(out)
        mine = {k: v for k, v in old.items() if v == b"mine"}
        new = contents(tmp_path / "whole") | mine

        def child(number=number, out=out):
            at_event(number, act)
            write_run(out, 1, new_ids, files=("samples.npz", "run.json"), overwrite=True)

        codes.append(fork(child))
        seen = {k: v for k, v in contents(out).items() if not k.startswith(".")}
        if seen not in (old, new):
            assert "run.json" not in seen and (out / COMMITTED).is_dir()
            assert end == "kill"
        with claim(out, FILES):
            after = contents(out)
            after.pop(LOCK)
        assert after in (old, new)
        assert mine.items() <= after.items()
        assert not [p.name for p in out.iterdir() if p.name.startswith(".")]
        states.add("old" if after == old else "new")
    assert states == {"old", "new"} and len(codes) > 20 // stride
    assert set(codes[:-1]) <= {-signal.SIGKILL} if end == "kill" else {0, 1}


def test_files_are_on_the_disk_before_they_are_renamed_and_names_afterwards(tmp_path, monkeypatch):
    """So that a power failure, which may reorder what was not synced, finds what a kill finds."""
    calls = []
    place = {}

    def fsync(handle):
        calls.append(("sync", os.readlink(f"/proc/self/fd/{handle}")))

    rename, replace = os.rename, os.replace
    monkeypatch.setattr(os, "fsync", fsync)
    monkeypatch.setattr(os, "rename", lambda a, b: (calls.append(("rename", str(b))), rename(a, b)))
    monkeypatch.setattr(os, "replace", lambda a, b: (calls.append(("move", str(b))), replace(a, b)))
    out = tmp_path / "out"
    write_run(out, 0, [], files=("samples.npz", "run.json"), end=lambda s: (place.update(work=str(s.work)), s.commit()))
    moved = calls.index(("rename", str(out / COMMITTED)))
    before = {name for what, name in calls[:moved] if what == "sync"}
    work = place["work"]
    files = ("/order.json", "/new/samples.npz", "/new/run.json", "/new", "")
    assert before >= {work + name for name in files}
    assert calls[moved + 1] == ("sync", str(out))  # the decision, before anything is done
    assert calls[moved + 2 : moved + 4] == [("move", str(out / "samples.npz")), ("move", str(out / "run.json"))]
    ended = next(k for k, (what, name) in enumerate(calls) if k > moved and what == "rename")
    assert calls[ended - 1] == ("sync", str(out))  # and the result, before the decision is forgotten


def test_only_what_the_record_lists_is_replaced(tmp_path):
    write_run(tmp_path, 0, [5])
    for name in ("png/000007.png", "png/holiday.png", "trajectory.csv"):
        (tmp_path / name).write_text("mine")
    with pytest.raises(ValueError, match=r"already holds png/000007.png, which no run here is known to have written"):
        write_run(tmp_path, 1, [7], overwrite=True)
    write_run(tmp_path, 1, [6], overwrite=True)
    assert sorted(contents(tmp_path)) == sorted(
        [*FILES, "png/000006.png", "png/000007.png", "png/holiday.png", "trajectory.csv"]
    )
    (tmp_path / "run.json").unlink()
    with pytest.raises(ValueError, match=r"already holds samples\.npz, which no run here is known to have written"):
        write_run(tmp_path, 2, [6], overwrite=True)


def test_what_appears_during_a_run_is_not_replaced(tmp_path):
    def end(stage):
        (tmp_path / "grid.png").write_text("mine")
        stage.commit()

    with pytest.raises(ValueError, match=r"already holds grid.png, which no run here is known to have written"):
        write_run(tmp_path, 0, [], end=end)
    assert contents(tmp_path) == {"grid.png": b"mine"}


@pytest.mark.parametrize(
    "wrote",
    [
        {"files": ["../mine.txt", "samples.npz", "notes.txt"], "png": "../1"},
        {"files": ["samples.npz"], "png": "0-9999999999999999999999"},
        {"files": 3},
        [],
        {"files": ["samples.npz"], "png": "0-99999999999", "subdirs": "x"},
    ],
)
def test_a_record_cannot_name_what_no_run_writes(tmp_path, wrote):
    out = tmp_path / "out"
    write_run(out, 0, [])
    (tmp_path / "mine.txt").write_text("mine")
    (out / "notes.txt").write_text("mine")
    (out / "run.json").write_text(json.dumps({"wrote": wrote}))
    assert set(written(out).found(out)) <= {"samples.npz"}
    with pytest.raises(ValueError, match="no run here is known"):
        write_run(out, 1, [], overwrite=True)
    assert (tmp_path / "mine.txt").exists() and (out / "notes.txt").exists()


def test_a_planted_commit_is_not_carried_out(tmp_path):
    out = tmp_path / "out"
    (out / COMMITTED / "new").mkdir(parents=True)
    (tmp_path / "mine.txt").write_text("mine")
    for order in ({"record": "run.json", "remove": ["../mine.txt"]}, {"record": "x"}, 3):
        (out / COMMITTED / "order.json").write_text(json.dumps(order))
        with pytest.raises(ValueError, match="is not what a run leaves there; move it away"):
            write_run(out, 0, [])
    assert (tmp_path / "mine.txt").exists()


@pytest.mark.parametrize("what", ["out", "png", "png/000000", "samples.npz", "dangling", "pipe", "folder"])
def test_nothing_goes_through_a_link_or_in_place_of_what_is_no_file(tmp_path, what):
    out, other = tmp_path / "out", tmp_path / "other"
    write_run(other, 0, [3], subdirs=True)
    write_run(out, 0, [3], subdirs=True)
    before = contents(other)
    if what == "out":
        out = tmp_path / "link"
        out.symlink_to(other)
    elif what in ("pipe", "folder"):
        (out / "grid.png").unlink()
        os.mkfifo(out / "grid.png") if what == "pipe" else (out / "grid.png").mkdir()
    else:
        name = "samples.npz" if what == "dangling" else what
        os.rename(out / name, tmp_path / "moved")
        (out / name).symlink_to(tmp_path / "nowhere" if what == "dangling" else other / name)
    with pytest.raises(ValueError, match=r"symbolic link|in the way|no regular file"):
        write_run(out, 1, [3, 4], overwrite=True, subdirs=True)
    assert contents(other) == before


def test_a_folder_is_held_by_one_process_and_a_dead_one_holds_nothing(tmp_path):
    with begin(tmp_path / "a", planned=Written(FILES)):
        with pytest.raises(
            BusyError, match=rf"another process \(process {os.getpid()} on .*\) is writing to .*/a; wait"
        ):
            write_run(tmp_path / "a", 0, [])
        write_run(tmp_path / "b", 0, [])
    assert not (tmp_path / "a").exists()  # nothing was written

    def child():
        with begin(tmp_path / "a", planned=Written(FILES)) as stage:
            (stage.new / "samples.npz").write_text("half")
            (tmp_path / "a/.samples.npz.1.tmp").write_text("that of a live one")
            (tmp_path / f"a/.samples.npz.{os.getpid()}.tmp").write_text("ours, as an earlier version named it")
            with atomic(tmp_path / "a/run.json"):
                os.kill(os.getpid(), signal.SIGKILL)

    assert fork(child) == -signal.SIGKILL
    assert len(list((tmp_path / "a").iterdir())) == 5
    write_run(tmp_path / "a", 0, [])
    assert sorted(contents(tmp_path / "a")) == sorted([".samples.npz.1.tmp", *FILES])


def test_where_there_are_no_locks_the_process_that_a_file_names_holds_it(tmp_path, monkeypatch):
    def unsupported(*_):
        raise OSError(errno.ENOLCK, "no locks available")

    monkeypatch.setattr("fastscore.output.lock.fcntl.flock", unsupported)
    file = tmp_path / "lock"
    with locked(file, "x"), pytest.raises(BusyError), locked(file, "x"):
        pass
    dead = os.fork()
    if dead == 0:
        os._exit(0)
    os.waitpid(dead, 0)
    for holder, free in ((f"{dead} {here()}", True), (f"{dead} elsewhere", False), (f"1 {here()}", False), ("", False)):
        file.write_text(holder)
        try:
            with locked(file, "x"):
                taken = True
        except BusyError:
            taken = False
        assert taken == free, holder
    assert alive(os.getpid()) and alive(1) and not alive(dead) and not alive(0) and alive(dead, "elsewhere")


def test_a_full_disk_is_said_before_anything_is_done(tmp_path, monkeypatch):
    monkeypatch.setattr(disk, "free_bytes", lambda _: 5_000_000)
    with pytest.raises(
        OSError, match=r"out needs 8.0 MB of disk \(samples 3.0 MB, images 5.0 MB\) and has 5.0 MB free; "
    ) as e:
        with begin(tmp_path / "out", planned=Written(FILES)) as stage:
            stage.reserve(samples=3_000_000, images=5_000_000, nothing=0)
    assert e.value.errno == errno.ENOSPC
    assert not (tmp_path / "out").exists()


def test_the_room_of_a_run_is_taken_and_given_back_as_it_is_used(tmp_path):
    with begin(tmp_path / "out", planned=Written(FILES)) as stage:
        stage.reserve(samples=3_000_000, images=5_000_000)
        file = stage.work / "reserve"
        assert file.stat().st_blocks * 512 >= 8_000_000
        stage.spend(6_000_000)
        assert file.stat().st_size == 2_000_000 and file.stat().st_blocks * 512 < 3_000_000
        stage.spend(9_000_000)
        assert file.stat().st_size == 0
        (stage.new / "run.json").write_text("{}")
        stage.commit()
    assert os.listdir(tmp_path / "out") == ["run.json"]


def test_one_file_is_replaced_only_when_asked(tmp_path):
    file = tmp_path / "x.npz"
    with new_file(file) as write:
        with pytest.raises(BusyError), new_file(file):
            pass
        write(np.savez, a=np.arange(3))
    before = contents(tmp_path)
    with pytest.raises(ValueError, match=r"x.npz is already there; choose another name, or overwrite"), new_file(file):
        pass
    with pytest.raises(RuntimeError), new_file(file, overwrite=True) as write:
        raise RuntimeError
    assert contents(tmp_path) == before
    with new_file(file, overwrite=True) as write:
        write(np.savez, a=np.arange(4))
    with np.load(file) as saved:
        assert len(saved["a"]) == 4
    assert os.listdir(tmp_path) == ["x.npz"]
    for odd in ("/dev/null", tmp_path, tmp_path / "no/x.npz", ""):
        with pytest.raises(ValueError), new_file(type(tmp_path)(odd), overwrite=True):
            pass
    os.symlink(file, tmp_path / "link")
    with pytest.raises(ValueError, match="no regular file"), new_file(tmp_path / "link", overwrite=True):
        pass


@pytest.mark.slow
def test_long_names_and_deep_folders_are_written_or_refused(tmp_path):
    with new_file(tmp_path / ("x" * 240)) as write:
        write(np.save, np.arange(3))
    assert len(os.listdir(tmp_path)) == 1
    deep = tmp_path.joinpath(*["a"] * 1500)
    write_run(deep, 0, [])
    assert written(deep).files == FILES
    for _ in range(1499):  # shutil.rmtree, and so pytest, cannot remove what is that deep
        (tmp_path / "a" / "a").rename(tmp_path / "b")
        (tmp_path / "a").rmdir()
        (tmp_path / "b").rename(tmp_path / "a")
    for folder in (tmp_path / ("y" * 300), "", "  ", __file__):
        with pytest.raises(ValueError, match=r"too long|no name|a file and no folder"):
            write_run(folder, 0, [])


def test_a_record_lists_images_as_ranges():
    ids = [7, 3, 4, 5, 1000, 10**12]
    assert ranges(ids) == "7,3-5,1000,1000000000000"
    listed = Written.of(FILES, np.array(ids), True)
    assert listed.entry() == {"files": list(FILES), "png": "3-5,7,1000,1000000000000", "subdirs": True}
    assert listed.image("png/001000/001000.png") and listed.image("png/1000000000000/1000000000000.png")
    wrong = (
        "png/001000/001001.png",
        "png/001000.png",
        "png/000000/001000.png",
        "png/000000/0000003.png",
        "png/a/b/c.png",
    )
    assert not any(listed.image(name) for name in wrong)


def test_a_run_of_an_earlier_version_is_known_by_its_settings(tmp_path):
    write_run(tmp_path, 0, [4, 5])
    np.savez(tmp_path / "samples.npz", ids=np.array([4]))
    (tmp_path / "run.json").write_text(json.dumps({"settings": {"png": True}, "versions": {}}))
    assert written(tmp_path).found(tmp_path) == [*FILES, "png/000004.png"]
    (tmp_path / "run.json").write_text(json.dumps({"settings": {}, "mine": 1}))
    assert written(tmp_path).found(tmp_path) == []


def test_a_run_without_room_at_the_end_is_kept(tmp_path):
    def end(stage):
        (stage.work / "samples.npy").write_text("all of it")
        stage.keep(lambda place: str(place / "samples.npy"))
        raise OSError(errno.ENOSPC, "No space left on device")

    write_run(tmp_path, 0, [])
    before = contents(tmp_path)
    for k in (1, 2):
        with pytest.raises(
            OSError, match=rf"No space left.*; everything was sampled and is kept: .*unsaved-{k}/samples"
        ) as e:
            write_run(tmp_path, 1, [], overwrite=True, end=end)
        assert e.value.errno == errno.ENOSPC
    assert contents(tmp_path) == before | {f"unsaved-{k}/samples.npy": b"all of it" for k in (1, 2)}
    write_run(tmp_path, 1, [], overwrite=True)
    assert (tmp_path / "unsaved-1/samples.npy").exists()


def test_commit_is_what_the_module_says():
    assert COMMITTED in commit.__doc__ and commit._STAGE.fullmatch(COMMITTED) is None


def test_what_killed_workers_have_left_in_a_stage_is_no_part_of_the_run(tmp_path):
    """Neither their temporary files nor their leases stand in the way of the commit, or come along with it."""

    def end(stage):
        for name in ("shards/0000/.0000001.npz.0a0a0a0a-1.17@elsewhere.tmp", "leases/0000001"):
            (stage.new / name).parent.mkdir(parents=True, exist_ok=True)
            (stage.new / name).write_text("")
        stage.commit()

    write_run(tmp_path / "out", 0, [], files=("samples.npz", "run.json"), end=end)
    assert set(contents(tmp_path / "out")) == {"samples.npz", "run.json"}
