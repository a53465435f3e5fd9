"""kill -9 at any moment: nothing lost, nothing doubled, nothing left, and little computed again."""

from __future__ import annotations

import hashlib
import os
import random
import signal
import sys
import time
from contextlib import suppress
from pathlib import Path

import killed
import pytest
from forks import begin
from killed import POINTS, command

from fastscore.output.store import folder
from fastscore.output.store.folder import Folder
from fastscore.output.store.lease import Leases
from fastscore.output.store.place import place_of


def name(number):
    return f"shards/{number // 1000:04d}/{number:07d}.npz"


def content(number):
    """The bytes of a shard: a function of its number, as those of a run are."""
    return b"".join(hashlib.sha256(b"%d %d" % (number, k)).digest() for k in range(100))


def work(run: Path, count: int, point: str) -> None:
    """Make the shards that are missing, each noted in a file once it is computed; die at a point if one is given."""
    place, leases = Folder(run), Leases(Folder(run), "worker")
    makes, dies = "lease", random.Random(os.getpid()).choice((("lease", "shard"), ("shard",), ("shard",)))

    def at(reached):
        if reached == point and makes in dies:
            os.kill(os.getpid(), signal.SIGKILL)

    folder._at = at
    place.tidy()
    notes = os.open(run.parent / "computed", os.O_CREAT | os.O_WRONLY | os.O_APPEND)
    while missing := sorted(set(map(name, range(count))) - {entry.name for entry in place.entries("shards/")}):
        for shard in missing:
            number, makes = int(shard[-11:-4]), "lease"
            if not leases.take(number):
                continue
            if not list(place.entries(shard)):  # since it was listed
                time.sleep(0.002)
                data = content(number)
                os.write(notes, b"%d\n" % number)
                makes = "shard"
                place.create(shard, data)
            leases.release(number)


@pytest.mark.slow
def test_a_hundred_kills_of_two_workers(tmp_path):
    """At the points between write, fsync, link and unlink, or at random before; none makes more than one shard."""
    run, count, kills, ended, chance = tmp_path / "run", 100, 0, 0, random.Random(0)
    workers = set()
    while ended < 2:
        while len(workers) + ended < 2:
            point = chance.choice(POINTS) if kills < 100 else ""
            workers.add(begin(lambda point=point: work(run, count, point)))
        if kills < 100 and chance.random() < 0.5:
            time.sleep(chance.uniform(0, 0.02))
            os.kill(chance.choice(sorted(workers)), signal.SIGKILL)
        pid, status = os.wait()
        workers.remove(pid)
        code = os.waitstatus_to_exitcode(status)
        assert code in (0, -signal.SIGKILL)
        kills, ended = kills + (code != 0), ended + (code == 0)
    place = Folder(run)
    place.tidy()
    Leases(place, "end").tidy()
    whole = {name(number): content(number) for number in range(count)}
    assert {entry.name: place.read(entry.name) for entry in place.entries()} == whole
    assert not list(run.rglob(".*"))
    assert kills >= 100
    computed = len((tmp_path / "computed").read_text().split())
    assert count < computed <= count + kills, f"{computed} shards were computed"


def sample(out):
    """The words of a command that draws 10,000 samples in 100 shards, with any others on the same run."""
    settings = ["--shard-size", "100", "--batch", "100", "--steps", "20", "--seed", "7", "--network", "own"]
    return ["sample", "analytic:mixture", "-n", "10000", *settings, "--shard", "0/1", "--out", str(out), "--quiet"]


def forked(notes, point, kind, words):
    """Run a command in a copy of this process, which has loaded all that it needs."""
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            command(str(notes), point, kind, words)
        except SystemExit as error:
            code = error.code if isinstance(error.code, int) else 1
        except BaseException:
            sys.excepthook(*sys.exc_info())
        finally:
            os._exit(code)
    return pid


def spawned(notes, point, kind, words):
    """Run a command in a process of its own."""
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(word for word in sys.path if word)}
    return os.posix_spawn(
        sys.executable, [sys.executable, killed.__file__, str(notes), point, kind, *words], environment
    )


def killed_often(start, words, notes, kills, late, seed=0):
    """Keep two commands running, kill one after the other until there were so many kills, and let the last two end.

    Args:
        start: of a command, returns its process.
        late: seconds of a command's life until which it may be killed; if it comes so far, it ends at a point.

    Returns:
        how many were killed.
    """
    chance, workers, ended, count = random.Random(seed), set(), 0, 0
    while ended < 2:
        while len(workers) + ended < 2:
            point = chance.choice(POINTS) if count < kills else ""
            workers.add(start(notes, point, chance.choice(("leases/", "shards/", "shards/")), words))
        if count < kills and chance.random() < 0.3:
            time.sleep(chance.uniform(0, late))
            os.kill(chance.choice(sorted(workers)), signal.SIGKILL)
        pid, status = os.wait()
        if pid in workers:
            workers.remove(pid)
            code = os.waitstatus_to_exitcode(status)
            assert code in (0, -signal.SIGKILL)
            count, ended = count + (code != 0), ended + (code == 0)
    return count


def check(where, whole, notes, kills, least):
    """See that a run is as the undisturbed one, byte for byte, without a file more, and how much was drawn again."""
    place, expected = place_of(where), place_of(whole)
    there = {entry.name: hashlib.sha256(place.read(entry.name)).hexdigest() for entry in place.entries()}
    assert there == {entry.name: hashlib.sha256(expected.read(entry.name)).hexdigest() for entry in expected.entries()}
    assert len(there) == 101  # with manifest.json
    drawn = [int(line) for line in notes.read_text().split()]
    assert kills >= least and set(drawn) == set(range(100))
    assert len(drawn) <= 100 + kills
    return f"{kills} kills, {len(drawn) - 100} shards drawn again"


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """The same run undisturbed, in a process of its own; the seconds that it took."""
    out = tmp_path_factory.mktemp("whole")
    began = time.monotonic()
    pid = spawned(out / "notes", "", "-", sample(out / "run"))
    assert os.waitpid(pid, 0)[1] == 0
    return out / "run", time.monotonic() - began


@pytest.mark.slow
@pytest.mark.parametrize("kills", [30, pytest.param(100, marks=pytest.mark.nightly)])
def test_kills_of_the_command(tmp_path, whole, kills):
    """Of two that draw one run together."""
    run, notes = tmp_path / "run", tmp_path / "notes"
    done = killed_often(forked, sample(run), notes, kills, late=0.2)
    check(run, whole[0], notes, done, kills)
    assert not list(run.rglob(".*"))


@pytest.mark.slow
def test_a_worker_that_hangs_loses_its_shard_to_another_and_may_come_back(tmp_path, whole, monkeypatch):
    """It stops in the middle of writing a shard; the other draws that too, and all others."""
    monkeypatch.setattr(killed, "SIGNAL", signal.SIGSTOP)
    monkeypatch.setattr(Leases.__init__, "__defaults__", (1.0,))  # seconds of patience
    run, notes = tmp_path / "run", tmp_path / "notes"
    hung = forked(notes, "written", "shards/", sample(run))
    assert os.WIFSTOPPED(os.waitpid(hung, os.WUNTRACED)[1])
    other = forked(notes, "", "-", sample(run))
    assert os.waitpid(other, 0)[1] == 0
    assert len(list(place_of(run).entries("shards/"))) == 100
    os.kill(hung, signal.SIGCONT)
    assert os.waitpid(hung, 0)[1] == 0
    check(run, whole[0], notes, kills=2, least=0)  # one shard that it wrote and one that it drew, at most
    assert not list(run.rglob(".*"))


@pytest.mark.slow
@pytest.mark.nightly
def test_a_hundred_kills_of_processes(tmp_path, whole, capsys):
    """From their start on, Python's own included; says what it took."""
    run, notes = tmp_path / "run", tmp_path / "notes"
    began = time.monotonic()
    assert os.waitpid(spawned(notes, "", "-", [*sample(tmp_path / "none"), "--manifest-only"]), 0)[1] == 0
    start, began = time.monotonic() - began, time.monotonic()
    kills = killed_often(spawned, sample(run), notes, 100, late=3.0)
    took = time.monotonic() - began
    told = check(run, whole[0], notes, kills, 100)
    assert not list(run.rglob(".*"))
    bound = f"{whole[1]:.1f} s undisturbed + {kills} starts of {start:.1f} s"
    with capsys.disabled():
        print(f"\n{told}: {took:.0f} s, {took / (whole[1] + kills * start):.2f} times {bound}")


@pytest.mark.slow
@pytest.mark.nightly
def test_kills_of_the_client_of_a_server_of_s3(tmp_path, whole, monkeypatch, capsys):
    pytest.importorskip("moto.server", reason="pip install 'moto[server]': a local S3")
    from s3 import environment, server

    with server() as port:
        for name, value in environment(port).items():
            monkeypatch.setenv(name, value)
        notes = tmp_path / "notes"
        kills = killed_often(spawned, sample("s3://bucket/run"), notes, 20, late=3.0)
        told = check("s3://bucket/run", whole[0], notes, kills, 20)
        place = place_of("s3://bucket/run")
        monkeypatch.setattr("fastscore.output.store.objects.HOUR", -1.0)
        probes = place.tidy()
        with capsys.disabled():
            print(f"\n{told}; {probes} probes were left")


def children(parent):
    """Return the processes that a process has started."""
    found = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with suppress(OSError):
            pid, rest = int(stat.parent.name), stat.read_text().rsplit(")", 1)[1].split()
            if int(rest[1]) == parent and rest[0] != "Z":
                found.append(pid)
    return found


@pytest.mark.slow
@pytest.mark.nightly
def test_kills_of_a_command_and_of_its_workers(tmp_path, whole, capsys):
    """One command with two workers, and a folder of its own: a worker that is killed is started again."""
    out, chance, kills = tmp_path / "out", random.Random(0), {"workers": 0, "commands": 0}
    words = [word for word in sample(out) if word not in ("--shard", "0/1")] + ["--shards", "--workers", "2"]
    code, count, in_a_row = None, 0, 0
    while code is None:
        command = spawned(tmp_path / "notes", "", "-", words)
        ended = 0
        while not ended:
            time.sleep(chance.uniform(0, 3))
            ended, status = os.waitpid(command, os.WNOHANG)
            workers, before = children(command), count
            count = len(list(out.rglob("[0-9]*.npz")))
            in_a_row = in_a_row if count == before else 0
            if ended or sum(kills.values()) >= 20 or in_a_row > 4:  # at six without a shard a command gives up
                continue
            if chance.random() < 0.2:
                os.kill(command, signal.SIGKILL)
                kills["commands"] += 1
                ended, status = os.waitpid(command, 0)
            elif workers:
                with suppress(ProcessLookupError):
                    os.kill(chance.choice(workers), signal.SIGKILL)
                    kills["workers"], in_a_row = kills["workers"] + 1, in_a_row + 1
        code = os.waitstatus_to_exitcode(status) if os.WIFEXITED(status) else None
    assert code == 0
    place, expected = place_of(out), place_of(whole[0])
    assert {e.name: place.read(e.name) for e in place.entries("shards/")} == {
        e.name: expected.read(e.name) for e in expected.entries("shards/")
    }
    assert sorted(path.name for path in out.iterdir()) == ["manifest.json", "run.json", "shards"]
    assert not list(out.rglob(".*"))
    with capsys.disabled():
        print(f"\n{kills['workers']} kills of workers, {kills['commands']} of commands")
