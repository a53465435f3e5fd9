"""A folder as a place: whole or absent wherever a process is killed, one winner of a race, storage that fails."""

from __future__ import annotations

import errno
import itertools
import multiprocessing
import os
import signal
import subprocess
import sys
import time
import tracemalloc
from contextlib import contextmanager

import pytest
from forks import fork

from fastscore.files import here, temporary
from fastscore.output.store import claim, folder
from fastscore.output.store.folder import Folder

NAME = "shards/0000/0000001.npz"
DEAD = 2**22 + 1  # above every process number of Linux


def hidden(path):
    return sorted(p.name for p in path.rglob("*") if p.name.startswith("."))


def no_links(monkeypatch, number=errno.EPERM):
    def link(*_):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, "link", link)


def die():
    os.kill(os.getpid(), signal.SIGKILL)


@pytest.mark.parametrize("links", [True, False])
@pytest.mark.parametrize("point", ["written", "synced", "linked"])
def test_a_kill_at_each_point_leaves_the_file_whole_or_absent(tmp_path, monkeypatch, point, links):
    if not links:
        no_links(monkeypatch)
    monkeypatch.setattr(folder, "_at", lambda reached: die() if reached == point else None)
    assert fork(lambda: Folder(tmp_path).create(NAME, b"whole")) == -signal.SIGKILL
    monkeypatch.undo()
    if not links:
        no_links(monkeypatch)
    there = [entry.name for entry in Folder(tmp_path).entries()]
    assert there == ([NAME] if point == "linked" else [])
    left = len(hidden(tmp_path))
    assert left == (0 if point == "linked" and not links else 1)
    assert Folder(tmp_path).tidy() == left and not hidden(tmp_path)
    assert Folder(tmp_path).create(NAME, b"whole") == (point != "linked")
    assert Folder(tmp_path).read(NAME) == b"whole" and not hidden(tmp_path)


@pytest.mark.thirds
@pytest.mark.parametrize("how", ["create", "create without links", "replace"])
def test_a_kill_at_any_change_of_a_file_leaves_it_whole_or_absent(tmp_path, monkeypatch, how):
    """At each that Python tells of, in turn, until one run comes to its end."""
    monkeypatch.setattr(os, "fsync", lambda _: None)  # which a kill does not need
    monkeypatch.setattr(claim, "PATIENCE", 0.01)  # a claim that does not name its process yet
    if how == "create without links":
        no_links(monkeypatch)
    act = "replace" if how == "replace" else "create"
    events = {"open", "os.link", "os.rename", "os.remove", "os.mkdir"}
    codes, states, number = [], set(), 0
    while not codes or codes[-1] != 0:
        number += 1
        place = Folder(tmp_path / str(number))

        def child(place=place, number=number):
            counter = itertools.count(1)
            sys.addaudithook(lambda event, _: die() if event in events and next(counter) == number else None)
            getattr(place, act)(NAME, b"whole")

        codes.append(fork(child))
        there = {entry.name: place.read(entry.name) for entry in place.entries()}
        assert there in ({}, {NAME: b"whole"})
        place.tidy()
        if act == "create":
            assert place.create(NAME, b"whole") == (not there)
        else:
            place.replace(NAME, b"whole")
        place.tidy()
        assert place.read(NAME) == b"whole" and not hidden(place.path)
        states.add(bool(there))
    assert set(codes[:-1]) == {-signal.SIGKILL} and len(codes) > 5
    assert states == {True, False}


def test_bytes_are_on_the_disk_before_the_name_and_names_before_the_return(tmp_path, monkeypatch):
    calls, link = [], os.link
    monkeypatch.setattr(os, "fsync", lambda handle: calls.append(os.readlink(f"/proc/self/fd/{handle}")))
    monkeypatch.setattr(os, "link", lambda a, b: (calls.append("link"), link(a, b)))
    place = Folder(tmp_path / "above" / "run")
    assert place.create(NAME, b"x")
    linked = calls.index("link")
    above = [tmp_path, tmp_path / "above", place.path, place.path / "shards"]
    assert calls[:linked][:-1] == [str(path) for path in above]  # each folder that was made has its name
    assert calls[linked - 1].endswith(".tmp")
    assert calls[linked + 1 :] == [str(place.path / "shards/0000")]
    calls.clear()
    assert Folder(place.path).create("shards/0000/0000002.npz", b"x")
    assert str(place.path / "shards") in calls  # whoever has made it may not have come to this


@pytest.mark.parametrize(
    "links", ["links", pytest.param("no links", marks=pytest.mark.slow), "no links, and dead claims"]
)
def test_of_eight_processes_that_race_for_a_name_one_creates_it(tmp_path, monkeypatch, links):
    monkeypatch.setattr(os, "fsync", lambda _: None)
    if links != "links":
        no_links(monkeypatch)
    names = [f"shards/0000/{number:07d}.npz" for number in range(200)]
    (tmp_path / "run/shards/0000").mkdir(parents=True)
    if links == "no links, and dead claims":
        for name in names:
            path = tmp_path / "run" / name
            path.with_name(f".{path.name}.0.claim").write_text(f"{DEAD} {here()}\n")
    context = multiprocessing.get_context("fork")
    barrier = context.Barrier(8)

    def race(worker):
        place, won = Folder(tmp_path / "run"), []
        for name in names:
            barrier.wait(30)
            won.append(place.create(name, b"%d" % worker))
        (tmp_path / str(worker)).write_bytes(bytes(won))

    racers = [context.Process(target=race, args=(worker,)) for worker in range(8)]
    for racer in racers:
        racer.start()
    for racer in racers:
        racer.join()
    won = [(tmp_path / str(worker)).read_bytes() for worker in range(8)]
    for k, name in enumerate(names):
        winners = [worker for worker in range(8) if won[worker][k]]
        assert len(winners) == 1
        assert (tmp_path / "run" / name).read_bytes() == b"%d" % winners[0]
    assert not hidden(tmp_path)


@pytest.mark.parametrize("number", sorted(claim.NO_LINKS))
def test_without_hard_links_a_file_is_created_all_the_same(tmp_path, monkeypatch, number):
    no_links(monkeypatch, number)
    place = Folder(tmp_path)
    assert place.create(NAME, b"x")
    assert not place.create(NAME, b"y")
    assert place.read(NAME) == b"x" and not hidden(tmp_path)


@pytest.mark.slow
def test_a_claim_of_another_host_counts_for_a_while_only(tmp_path, monkeypatch):
    no_links(monkeypatch)
    monkeypatch.setattr(claim, "PATIENCE", 0.05)
    for text in ("17 elsewhere\n", "", "?", f"{'9' * 5000} {here()}"):
        path = tmp_path / str(len(text))
        path.mkdir()
        (path / ".a.0.claim").write_text(text)
        (path / ".a.1.claim").write_text(text)
        assert Folder(path).tidy() == 0  # as long as the name is free
        assert Folder(path).create("a", b"x")
        assert not hidden(path)


def test_a_claim_that_is_left_beside_its_file_is_removed(tmp_path):
    place = Folder(tmp_path)
    place.create("a", b"x")
    (tmp_path / ".a.0.claim").write_text(f"{DEAD} {here()}\n")
    (tmp_path / ".a.1.claim").write_text(f"{os.getpid()} {here()}\n")
    (tmp_path / ".b.0.claim").write_text(f"{DEAD} {here()}\n")  # without it two could make the next one
    assert place.tidy() == 1 and hidden(tmp_path) == [".a.1.claim", ".b.0.claim"]


def test_a_lost_answer_of_nfs_is_no_other_file(tmp_path, monkeypatch):
    link = os.link

    def repeated(*paths):
        link(*paths)
        link(*paths)

    monkeypatch.setattr(os, "link", repeated)
    assert Folder(tmp_path).create(NAME, b"x")


def test_a_temporary_file_that_another_host_has_swept_is_written_again(tmp_path, monkeypatch):
    swept = []

    def sweep(point):
        if point == "synced" and len(swept) < 2:
            swept.extend(tmp_path.rglob("*.tmp"))
            swept[-1].unlink()

    monkeypatch.setattr(folder, "_at", sweep)
    assert Folder(tmp_path).create(NAME, b"x")
    assert len(swept) == 2 and Folder(tmp_path).read(NAME) == b"x"


def test_tidy_takes_what_the_dead_have_left_and_nothing_else(tmp_path):
    place = Folder(tmp_path)
    place.create(NAME, b"x")
    below = tmp_path / "shards/0000"
    mine = temporary(below / "a")  # of a thread of this process
    old, other, other_old = (below / f".a.0a0a0a0a-{k}.17@{host}.tmp" for k, host in enumerate([here(), "pc", "pc"]))
    reborn = below / f".a.0a0a0a0a-0.{os.getpid()}@{here()}.tmp"  # of a process that had this one's number
    dead, dead_atomic = below / f".a.0a0a0a0a-0.{DEAD}@{here()}.tmp", tmp_path / f".b.{DEAD}@{here()}.tmp"
    users = below / ".notes.tmp"
    for path in (mine, old, other, other_old, reborn, dead, dead_atomic, users):
        path.write_text("")
    ago = time.time() - 3700
    for path in (old, other_old, users):
        os.utime(path, (ago, ago))
    os.utime(other, (ago + 200, ago + 200))
    (below / "link").symlink_to(dead)
    assert place.tidy() == 5
    assert hidden(tmp_path) == sorted(p.name for p in (mine, other, users))
    assert [entry.name for entry in place.entries()] == [NAME]
    assert place.tidy() == 0


@pytest.mark.parametrize("days", [-1, 1])
def test_a_clock_that_jumps_ages_nothing(tmp_path, monkeypatch, days):
    """The clock that counts is the one that dates files."""
    clock = time.time
    monkeypatch.setattr(time, "time", lambda: clock() + days * 86_400)
    place = Folder(tmp_path)
    live = tmp_path / ".a.0a0a0a0a-0.17@elsewhere.tmp"
    live.write_text("")
    assert place.tidy() == 0 and live.exists()
    place.create(NAME, b"x")
    ago = clock() - 1000
    os.utime(tmp_path / NAME, (ago, ago))
    assert [round(entry.age, -2) for entry in place.entries()] == [1000]


def test_no_symbolic_link_is_gone_through(tmp_path):
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "link").symlink_to("elsewhere")
    with pytest.raises(ValueError, match="symbolic link"):
        Folder(tmp_path / "link")
    place = Folder(tmp_path / "run")
    place.create("a", b"x")
    (tmp_path / "elsewhere/0000").mkdir()
    (tmp_path / "elsewhere/secret").write_text("secret")
    (place.path / "shards").symlink_to(tmp_path / "elsewhere")
    (place.path / "b").symlink_to(tmp_path / "elsewhere/secret")
    for act in (
        lambda: place.create(NAME, b"x"),
        lambda: place.replace(NAME, b"x"),
        lambda: place.read("shards/secret"),
        lambda: place.delete("shards/secret"),
        lambda: list(place.entries("shards/")),
        lambda: place.read("b"),
        lambda: place.replace("b", b"x"),
    ):
        with pytest.raises(ValueError, match="is a symbolic link, and no run goes through one"):
            act()
    assert [entry.name for entry in place.entries()] == ["a"]
    assert (tmp_path / "elsewhere/secret").read_text() == "secret" and not list((tmp_path / "elsewhere/0000").iterdir())
    place.path.rename(tmp_path / "moved")
    place.path.symlink_to("moved")
    with pytest.raises(ValueError, match="is a symbolic link"):  # the folder itself, since
        place.create("c", b"x")


@pytest.mark.parametrize("at", ["fsync", "link", "mkdir", "open"])
@pytest.mark.parametrize("number", [errno.EIO, errno.EROFS, errno.EACCES, errno.EDQUOT])
def test_storage_that_fails_names_the_file_and_leaves_nothing(tmp_path, monkeypatch, at, number):
    def fail(*_, **__):
        raise OSError(number, os.strerror(number))

    place = Folder(tmp_path / "run")
    with monkeypatch.context() as patch:
        patch.setattr("pathlib.Path.open" if at == "open" else f"os.{at}", fail)
        for act in (place.create, place.replace) if at != "link" else (place.create,):
            with pytest.raises(OSError, match=str(tmp_path)) as error:
                act(NAME, b"x")
            assert error.value.errno == number
    assert not list(place.entries()) and not hidden(tmp_path)
    assert place.create(NAME, b"x")


def test_a_path_that_is_too_long_says_so(tmp_path):
    deep = tmp_path / "/".join(["x" * 200] * 19)
    with pytest.raises(ValueError, match="too long a path"):
        Folder(deep / ("x" * 150)).create("a/" * 20 + "x" * 199, b"x")
    place = Folder(tmp_path)
    assert place.create("x" * 200, b"x") and place.read("x" * 200) == b"x"  # its temporary name is not longer


def test_a_file_where_a_folder_should_be_is_an_error_of_the_storage(tmp_path):
    (tmp_path / "shards").write_text("mine")
    with pytest.raises(OSError, match="shards"):
        Folder(tmp_path).create(NAME, b"x")
    assert (tmp_path / "shards").read_text() == "mine"


@contextmanager
def mounted(path, *options):
    path.mkdir()
    done = subprocess.run(["mount", "-t", "tmpfs", *options, "none", str(path)], capture_output=True, text=True)
    if done.returncode:
        pytest.skip(f"nothing can be mounted here: {done.stderr.strip()}")
    try:
        yield
    finally:
        subprocess.run(["umount", str(path)], check=True)


@pytest.mark.slow
def test_a_full_disk_is_an_error_with_the_remedy_and_loses_nothing(tmp_path):
    with mounted(tmp_path / "disk", "-o", "size=1m"):
        place, made = Folder(tmp_path / "disk" / "run"), []
        with pytest.raises(OSError, match=r"needs 100\.0 kB of disk .* and has .* free .*free some") as error:
            for k in range(20):
                place.create(f"shards/0000/{k:07d}.npz", b"x" * 100_000)
                made.append(k)
        assert error.value.errno == errno.ENOSPC and 5 < len(made) < 11
        assert [entry.size for entry in place.entries()] == [100_000] * len(made) and not hidden(place.path)
        with pytest.raises(OSError, match="needs"):
            place.replace("shards/0000/0000000.npz", b"y" * 200_000)
        assert place.read("shards/0000/0000000.npz") == b"x" * 100_000
        place.delete("shards/0000/0000000.npz")
        assert place.create("shards/0000/0000019.npz", b"x" * 100_000)


@pytest.mark.slow
def test_a_folder_that_can_only_be_read_is_read(tmp_path):
    with mounted(tmp_path / "disk"):
        place = Folder(tmp_path / "disk")
        place.create(NAME, b"x")
        subprocess.run(["mount", "-o", "remount,ro", str(tmp_path / "disk")], check=True)
        place = Folder(tmp_path / "disk")
        assert [entry.name for entry in place.entries()] == [NAME] and place.read(NAME) == b"x"
        assert place.tidy() == 0 and not place.create(NAME, b"y")
        for act in (place.create, place.replace):
            with pytest.raises(OSError, match="Read-only") as error:
                act("shards/0000/0000002.npz", b"x")
            assert error.value.errno == errno.EROFS
        with pytest.raises(OSError, match="Read-only"):
            place.delete(NAME)


@pytest.mark.slow
@pytest.mark.nightly
def test_a_million_files_are_listed_in_flat_memory(tmp_path, capsys):
    for number in range(1000):
        below = tmp_path / f"shards/{number:04d}"
        below.mkdir(parents=True)
        for k in range(1000):
            os.close(os.open(below / f"{number * 1000 + k:07d}.npz", os.O_CREAT | os.O_WRONLY))
    place, began, busy = Folder(tmp_path), time.monotonic(), time.process_time()
    assert sum(1 for _ in place.entries("shards/")) == 1_000_000
    took, busy = time.monotonic() - began, time.process_time() - busy
    tracemalloc.start()
    try:
        for _ in itertools.islice(place.entries("shards/"), 50_000):
            pass
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 2_000_000
    with capsys.disabled():
        print(f"\n1,000,000 files listed in {took:.1f} s, {busy:.1f} s of them of this process")


def test_hosts_are_told_apart_by_the_ends_of_their_names(monkeypatch):
    """As those of Kubernetes' pods, of one length and beginning."""
    names = {"node", "x" * 32, "fastscore-imagenet-guided-7f9c-abcde", "fastscore-imagenet-guided-7f9c-abcdf", "", "ü"}
    found = set()
    for name in names:
        monkeypatch.setattr("socket.gethostname", lambda name=name: name)
        found.add(here())
        assert folder.TEMPORARY.fullmatch(temporary(folder.Path("x")).name)["host"] == here()
    assert len(found) == len(names) and max(map(len, found)) == 32
