"""A bucket as a place: a create is conditional, also when its answer is lost; errors are OSErrors of one line."""

from __future__ import annotations

import multiprocessing
import threading
import time

import obstore
import pytest
from obstore.exceptions import AlreadyExistsError, GenericError, PermissionDeniedError
from obstore.store import MemoryStore

from fastscore.output.store import objects
from fastscore.output.store.objects import Bucket
from fastscore.output.store.place import place_of

NAME = "shards/0000/0000001.npz"
put = obstore.put


@pytest.fixture
def place(monkeypatch):
    monkeypatch.setattr(time, "sleep", lambda _: None)
    place = Bucket(MemoryStore(), "run", "s3://bucket/run")
    place.create("first", b"")
    return place


def losing(monkeypatch, *answers):
    """Let the next puts that make an object do their work if told so, and raise."""
    left = list(answers)

    def lossy(store, key, data, **options):
        if options.get("mode") != "create" or not left:
            return put(store, key, data, **options)
        done, error = left.pop(0)
        if done:
            put(store, key, done if isinstance(done, bytes) else data, **options | done_by(done))
        raise error

    monkeypatch.setattr(obstore, "put", lossy)
    return left


def done_by(done):
    """Return the attributes of somebody else's object."""
    return {"attributes": {"writer": "other"}} if isinstance(done, bytes) else {}


GENERIC, THERE = GenericError("connection closed"), AlreadyExistsError("412")


@pytest.mark.parametrize(
    ("answers", "made"),
    [
        ([(True, GENERIC)], True),  # done, and the answer lost
        ([(True, THERE)], True),  # done, and repeated by obstore
        ([(False, GENERIC)], True),  # not done: tried again
        ([(False, THERE)], True),  # S3's 409 while a delete goes on
        ([(False, GENERIC), (True, GENERIC)], True),
        ([(b"theirs", GENERIC)], False),
        ([(b"theirs", THERE)], False),
        ([(b"mine", THERE)], False),  # the same bytes, and not by this writer
        ([(False, THERE), (b"theirs", THERE)], False),
    ],
)
def test_a_lost_answer_is_no_other_writer(place, monkeypatch, answers, made):
    left = losing(monkeypatch, *answers)
    assert place.create(NAME, b"mine") == made and not left
    theirs = [done for done, _ in answers if isinstance(done, bytes)]
    assert place.read(NAME) == (b"mine" if made else theirs[0])


def test_a_store_that_fails_is_given_up(place, monkeypatch):
    left = losing(monkeypatch, *[(False, GENERIC)] * 10)
    with pytest.raises(OSError, match=f"s3://bucket/run/{NAME}: connection closed"):
        place.create(NAME, b"x")
    assert len(left) == 10 - objects.TRIES


def test_a_store_that_denies_is_asked_once_and_says_which_variables(place, monkeypatch):
    left = losing(monkeypatch, *[(False, PermissionDeniedError("403\n\nDebug source:\nmuch"))] * 2)
    with pytest.raises(OSError, match="AWS_ACCESS_KEY_ID") as error:
        place.create(NAME, b"x")
    assert len(left) == 1 and "\n" not in str(error.value)


def test_a_store_without_conditional_writes_is_refused(monkeypatch):
    def unconditional(store, key, data, *, mode="overwrite", **options):
        return put(store, key, data, **options)

    monkeypatch.setattr(obstore, "put", unconditional)
    place = Bucket(MemoryStore(), "run")
    with pytest.raises(OSError, match="overwrites an object"):
        place.create(NAME, b"x")
    assert not list(obstore.list(place._store).collect())


def test_of_eight_writers_that_race_for_a_name_one_creates_it():
    store, names = MemoryStore(), [f"shards/0000/{k:07d}.npz" for k in range(200)]
    barrier, won = threading.Barrier(8), {}

    def race(worker):
        place = Bucket(store, "run")
        for name in names:
            barrier.wait(30)
            won[worker, name] = place.create(name, b"the same")

    racers = [threading.Thread(target=race, args=(worker,)) for worker in range(8)]
    for racer in racers:
        racer.start()
    for racer in racers:
        racer.join()
    assert all(sum(won[worker, name] for worker in range(8)) == 1 for name in names)
    assert {entry.name for entry in Bucket(store, "run").entries()} == set(names)


def test_runs_whose_prefixes_begin_alike_are_apart(place):
    store = MemoryStore()
    a, b, whole = Bucket(store, "run"), Bucket(store, "run2"), Bucket(store)
    a.create("x", b"")
    b.create("y", b"")
    assert [e.name for e in a.entries()] == ["x"] and [e.name for e in b.entries()] == ["y"]
    assert {e.name for e in whole.entries()} == {"run/x", "run2/y"}


def test_tidy_removes_the_probes_of_the_dead(place, monkeypatch):
    for name in (".probe-0a", ".other", "probe"):
        put(place._store, f"run/{name}", b"")
    assert [entry.name for entry in place.entries()] == ["first", "probe"] and place.tidy() == 0
    monkeypatch.setattr(objects, "HOUR", -1.0)
    assert place.tidy() == 1
    assert {found["path"] for found in obstore.list(place._store).collect()} == {"run/.other", "run/first", "run/probe"}
    whole = Bucket(place._store)
    put(place._store, ".probe-0b", b"")
    assert whole.tidy() == 1 and whole.tidy() == 0


@pytest.mark.parametrize("act", ["create", "replace", "read", "delete", "entries"])
def test_plain_http_is_refused_unless_the_environment_allows_it(monkeypatch, act):
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "key")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "secret")
    monkeypatch.delenv("AWS_ALLOW_HTTP", raising=False)
    place = place_of("s3://bucket/run")
    with pytest.raises(OSError, match="s3://bucket/run/") as error:
        list(getattr(place, act)(NAME, *([b"x"] if act in ("create", "replace") else [])) or ())
    assert "\n" not in str(error.value) and "http" in str(error.value).lower()


@pytest.fixture(scope="module")
def s3():
    pytest.importorskip("moto.server", reason="pip install 'moto[server]': a local S3")
    from s3 import server

    with server() as port:
        yield port


@pytest.fixture
def line(s3, monkeypatch):
    from s3 import Line, environment

    with Line(s3) as line:
        for name, value in environment(line.server_address[1]).items():
            monkeypatch.setenv(name, value)
        yield line
        line.shutdown()


@pytest.mark.slow
@pytest.mark.nightly
def test_a_server_of_s3(line):
    place = place_of("s3://bucket/all/run")
    assert place.create(NAME, b"x" * 20_000_000) and not place.create(NAME, b"y")
    assert place.read(NAME) == b"x" * 20_000_000
    place.replace("a", b"1")
    place.replace("a", b"2")
    assert place.read("a") == b"2"
    for k in range(1200):  # more than one page
        place.replace(f"pages/{k}", b"")
    assert sum(1 for _ in place.entries("pages/")) == 1200
    assert [(e.name, e.size) for e in place.entries("a")] == [("a", 1)]
    assert all(e.age < 600 for e in place.entries())
    place.delete("a")
    place.delete("a")
    with pytest.raises(FileNotFoundError, match="no such object"):
        place.read("a")
    with pytest.raises(FileNotFoundError, match="or bucket"):
        place_of("s3://another-bucket/run").create("a", b"")


@pytest.mark.slow
@pytest.mark.nightly
@pytest.mark.parametrize("losses", [["answer"], ["500"], ["request"], ["500", "answer"], ["request", "answer", "500"]])
def test_answers_that_a_server_of_s3_did_give_and_the_line_has_lost(line, losses):
    """The real retries of obstore: of an error by itself, of a lost connection by the place."""
    place = place_of(f"s3://bucket/lost/{'-'.join(losses)}")
    place.create("first", b"")
    line.losses[:] = losses
    assert place.create("x", b"mine") and not line.losses
    assert place.read("x") == b"mine"
    line.losses[:] = ["500"]
    assert not place.create("x", b"theirs")
    assert place.read("x") == b"mine"


@pytest.mark.slow
@pytest.mark.nightly
def test_of_eight_processes_that_race_on_a_server_of_s3_one_creates(line, tmp_path):
    from s3 import race

    context = multiprocessing.get_context("spawn")  # obstore's threads do not survive a fork
    barrier = context.Barrier(8)
    racers = [context.Process(target=race, args=(barrier, tmp_path / str(worker))) for worker in range(8)]
    for racer in racers:
        racer.start()
    for racer in racers:
        racer.join()
    won = [(tmp_path / str(worker)).read_bytes() for worker in range(8)]
    assert [sum(one[k] for one in won) for k in range(200)] == [1] * 200
