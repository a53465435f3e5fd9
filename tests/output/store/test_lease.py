"""Leases: one worker a shard, until it dies or hangs; whatever goes wrong with them costs work and nothing else."""

from __future__ import annotations

import json
import os
import signal
import time

import pytest

from fastscore.files import PROCESS, here
from fastscore.output.store.folder import Folder
from fastscore.output.store.lease import Leases
from fastscore.output.store.place import Entry

FILE = "leases/0000003"


class Memory:
    """A place whose time is that of the ``clock`` of these tests."""

    def __init__(self):
        self.url, self.files = "memory", {}

    def create(self, name, data):
        if name in self.files:
            return False
        self.replace(name, data)
        return True

    def replace(self, name, data):
        self.files[name] = data, time.monotonic()

    def read(self, name):
        if name not in self.files:
            raise FileNotFoundError
        return self.files[name][0]

    def entries(self, prefix=""):
        for name, (data, written) in sorted(self.files.items()):
            if name == prefix or name.startswith(prefix):
                yield Entry(name, len(data), max(0.0, time.monotonic() - written))

    def delete(self, name):
        self.files.pop(name, None)

    def tidy(self):
        return 0


@pytest.fixture
def place():
    return Memory()


@pytest.fixture(params=["folder", "bucket"])
def real(request, tmp_path):
    if request.param == "folder":
        return Folder(tmp_path)
    from obstore.store import MemoryStore

    from fastscore.output.store.objects import Bucket

    return Bucket(MemoryStore(), "run")


@pytest.fixture
def clock(monkeypatch):
    """A hand to move the seconds by."""
    now = [0.0]

    def move(seconds):
        now[0] += seconds

    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    return move


def plant(place, **holder):
    """Write the lease of a worker that lives on another host."""
    text = {"owner": "b", "host": "elsewhere", "pid": 17, "process": "0a0a0a0a", "renewed": 1} | holder
    place.replace(FILE, json.dumps(text).encode())


def test_a_shard_is_leased_to_one_until_it_is_given_back(real):
    place = real
    a, b = Leases(place, "a"), Leases(place, "b")
    assert a.take(3) and a.take(3) and b.take(4)
    assert not b.take(3) and not b.take(3)
    assert json.loads(place.read(FILE))["owner"] == "a"
    b.release(3)  # not its own
    assert not b.take(3)
    a.release(3)
    assert b.take(3)
    a.release(3)
    assert json.loads(place.read(FILE))["owner"] == "b"
    b.release(3)
    b.release(4)
    assert not list(place.entries())
    assert a.take(12_345_678) and [e.name for e in place.entries()] == ["leases/12345678"]


def test_the_lease_of_a_worker_that_hangs_is_taken_over_after_patience(place, clock):
    hung, other, third = Leases(place, "hung"), Leases(place, "other"), Leases(place, "third")
    assert hung.take(3)
    clock(59)
    assert not other.take(3)
    clock(2)
    assert other.take(3)
    assert not third.take(3)
    hung.release(3)  # once it is done with the shard all the same
    assert third.take(3)  # at worst computed again


def test_a_lease_that_is_renewed_is_kept(place, clock):
    a, b = Leases(place, "a"), Leases(place, "b")
    assert a.take(3)
    for _ in range(20):
        clock(15)
        a.renew(3)
        assert not b.take(3)
    clock(61)
    assert b.take(3)


def test_to_renew_is_cheap(place, clock, monkeypatch):
    a, written = Leases(place, "a", patience=60), []
    a.take(3)
    monkeypatch.setattr(type(place), "replace", lambda self, name, data: written.append(data))
    for _ in range(1000):
        clock(0.1)
        a.renew(3)
        a.renew(4)  # is not held
    assert 8 <= len(written) <= 10 and len(set(written)) == len(written)


def test_the_lease_of_a_dead_process_of_this_host_is_free_at_once(tmp_path):
    place = Folder(tmp_path)
    pid = os.fork()
    if pid == 0:
        Leases(place, "killed").take(3)
        os.kill(os.getpid(), signal.SIGKILL)
    os.waitpid(pid, 0)
    assert json.loads(place.read(FILE))["pid"] == pid
    assert Leases(place, "b").take(3)


@pytest.mark.parametrize(
    ("holder", "free"),
    [
        ({"pid": 2**22 + 1, "host": here()}, True),  # no such process
        ({"pid": 1, "host": here()}, False),
        ({"pid": 2**22 + 1}, False),  # of another host nothing is known
        ({"pid": os.getpid(), "host": here()}, True),  # this process's number, before it was this one's
        ({"pid": os.getpid(), "host": here(), "process": PROCESS}, False),  # another worker of this process
    ],
)
def test_who_is_dead(place, holder, free):
    plant(place, **holder)
    assert Leases(place, "a").tidy() == free
    plant(place, **holder)
    assert Leases(place, "a").take(3) == free


@pytest.mark.parametrize(
    "text", [b"", b"\xff\xfe", b"{", b"[]", b"3", b'{"pid": 1}', b"[" * 100_000, b'{"pid": Infinity}', b"x" * 10_000]
    + [b'{"pid": %s, "host": "h", "process": 1}' % pid for pid in (b"Infinity", b"NaN", b"null", b'"x"', b"9" * 5000)],
)  # fmt: skip
def test_a_damaged_lease_is_free_after_patience(place, clock, text):
    place.replace(FILE, text)
    a = Leases(place, "a")
    assert not a.take(3) and a.tidy() == 0
    clock(61)
    assert a.tidy() == 1 or a.take(3)
    assert a.take(3) and json.loads(place.read(FILE))["owner"] == "a"


@pytest.mark.parametrize("days", [-1, 1])
def test_a_lease_of_a_jumping_clock_costs_work_and_no_more(place, clock, monkeypatch, days):
    """Of a host whose clock is a day off, on a store that believes it: from the future it is waited for."""
    a = Leases(place, "a")
    plant(place)
    entries = Memory.entries
    monkeypatch.setattr(
        Memory,
        "entries",
        lambda *args: (Entry(e.name, e.size, max(0.0, e.age - days * 86_400)) for e in entries(*args)),
    )
    if days < 0:
        assert a.take(3)
        return
    for _ in range(3):
        assert not a.take(3)
        clock(25)
    plant(place, renewed=2)  # it lives
    assert not a.take(3)
    clock(59)
    assert not a.take(3)
    clock(2)
    assert a.take(3)


def test_a_worker_that_hangs_is_given_up_in_real_seconds(real):
    hung, other = Leases(real, "hung", patience=0.2), Leases(real, "other", patience=0.2)
    assert hung.take(3)
    assert not other.take(3)
    began = time.monotonic()
    while not other.take(3):
        assert time.monotonic() - began < 30
        time.sleep(0.02)
    assert json.loads(real.read(FILE))["owner"] == "other"
    assert real.create("shards/0000/0000003.npz", b"x") and not real.create("shards/0000/0000003.npz", b"x")


def test_storage_that_fails_breaks_no_work_that_goes_on(place, clock, monkeypatch):
    def fail(*_):
        raise OSError("no storage")

    a = Leases(place, "a")
    a.take(3)
    clock(30)
    for name in ("create", "replace", "delete"):
        monkeypatch.setattr(type(place), name, fail)
    a.renew(3)
    a.release(3)
    with pytest.raises(OSError, match="no storage"):
        a.take(4)


@pytest.mark.parametrize("missing", ["read", "entries"])
def test_a_lease_that_is_given_back_at_that_moment_is_left_alone(place, monkeypatch, missing):
    plant(place)

    def gone(*_):
        raise FileNotFoundError

    monkeypatch.setattr(type(place), missing, gone if missing == "read" else lambda *_: iter(()))
    assert not Leases(place, "a").take(3)


def test_tidy_removes_what_is_stale(place, clock):
    a, b = Leases(place, "a"), Leases(place, "b")
    for number in (1, 2):
        a.take(number)
    clock(40)
    b.take(7)
    place.create("leases/notes", b"")
    place.create("shards/0000/0000001.npz", b"")
    clock(30)
    assert b.tidy() == 2
    assert {e.name for e in place.entries()} == {"leases/0000007", "leases/notes", "shards/0000/0000001.npz"}


def test_clear_removes_those_of_shards_that_are_there(real):
    a, b = Leases(real, "a"), Leases(real, "b")
    assert a.take(1) and b.take(2) and a.take(3)
    real.create("leases/notes", b"")
    b.clear({1, 2, 4})
    assert {e.name for e in real.entries()} == {"leases/0000003", "leases/notes"}
    a.release(1)


@pytest.mark.parametrize("patience", [0, -1, float("nan"), float("inf")])
def test_patience_is_above_zero(tmp_path, patience):
    with pytest.raises(ValueError, match="patience"):
        Leases(Folder(tmp_path), "a", patience)
    with pytest.raises(ValueError, match="shard -1"):
        Leases(Folder(tmp_path), "a").take(-1)
