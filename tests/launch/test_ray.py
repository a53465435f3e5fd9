"""A run drawn by actors of a local cluster: the same bytes, whoever is killed or hangs; errors keep their type."""

from __future__ import annotations

import os
import random
import signal
import threading
import time
from contextlib import suppress

import pytest

from fastscore.errors import NonFiniteError, SelfCheckError
from fastscore.launch.ray import draw
from fastscore.output.store.formats import encode
from fastscore.output.store.place import place_of
from fastscore.output.store.work import Stopped, present, work

pytestmark = [pytest.mark.slow, pytest.mark.nightly]
ray = pytest.importorskip("ray", reason="pip install ray: a cluster of this machine")
SHARDS = 40


def recipe():
    """Return what makes the job; nested, so that it goes to the actors as it is: they cannot import tests."""

    def make():
        import fastscore as fs
        from fastscore.model.analytic import by_name
        from fastscore.output.store.job import job_of

        sampler = fs.Sampler(by_name("mixture"), schedule=fs.VP(), steps=3, batch=10)
        return job_of(sampler, sampler.request(range(395), 3), shard=10, gathered=False)

    return make


def opener(notes, before=None):
    """Return what actors open a run with: each notes its process, and calls ``before`` before each shard."""
    make = recipe()

    def opened(run):
        import os
        from types import SimpleNamespace

        from fastscore.output.store.place import place_of

        job = make()
        (notes / f"{os.getpid()}.pid").touch()

        def drawn(number, beat):
            if before is not None:
                before(number)
            return job.draw(number, beat)

        return SimpleNamespace(manifest=job.manifest, draw=drawn), place_of(run)

    return opened


@pytest.fixture(scope="module")
def cluster():
    heard = signal.getsignal(signal.SIGTERM)
    ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False)
    yield
    ray.shutdown()
    signal.signal(signal.SIGTERM, heard)


@pytest.fixture
def notes(tmp_path):
    (tmp_path / "notes").mkdir()
    return tmp_path / "notes"


@pytest.fixture
def run(tmp_path):
    """A run with its manifest only."""
    recipe()().manifest.write(place_of(tmp_path / "run"))
    return tmp_path / "run"


def contents(run):
    return {p.relative_to(run).as_posix(): p.read_bytes() for p in run.rglob("*.npz")}


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    run = tmp_path_factory.mktemp("undisturbed") / "run"
    job = recipe()()
    work(job, place_of(run))
    assert len(contents(run)) == SHARDS == job.manifest.count
    return contents(run)


def test_two_actors_draw_what_one_process_draws(cluster, run, notes, undisturbed):
    told, totals = [], []
    draw(str(run), opener(notes), 2, total=lambda *counts: totals.append(counts), told=told.append)
    assert contents(run) == undisturbed
    assert sorted(drawn.number for drawn in told) == list(range(SHARDS))
    assert all(len(drawn.sha256) == 64 and drawn.seconds > 0 for drawn in told)
    assert len(list(notes.glob("*.pid"))) == 2  # each opened the run once
    draw(str(run), opener(notes), 2, total=lambda *counts: totals.append(counts))
    (run / "shards/0000/0000007.npz").unlink()
    draw(str(run), opener(notes), 2, total=lambda *counts: totals.append(counts), told=told.append)
    assert contents(run) == undisturbed and told[-1].number == 7 and told[-1].sha256 in [d.sha256 for d in told[:-1]]
    assert totals == [(SHARDS, 0), (SHARDS, SHARDS), (SHARDS, SHARDS - 1)]


def test_twenty_kills_change_no_byte(cluster, run, notes, undisturbed):
    def slow(number):
        import time

        time.sleep(0.5)

    place, manifest, kills, over = place_of(run), recipe()().manifest, [], threading.Event()

    def kill():
        dice = random.Random(0)
        while len(kills) < 20 and not over.is_set():
            time.sleep(dice.uniform(0.2, 1.0))
            for file in notes.glob("*.pid"):
                file.unlink()
                with suppress(ProcessLookupError):
                    os.kill(int(file.stem), signal.SIGKILL)
                    kills.append(file.stem)

    killer = threading.Thread(target=kill)
    killer.start()
    told = []
    try:
        draw(str(run), opener(notes, slow), 2, told=told.append)
    finally:
        over.set()
        killer.join()
    assert len(kills) >= 20 and len(set(kills)) == len(kills)
    assert contents(run) == undisturbed and present(place, manifest) == set(range(SHARDS))
    assert sorted(drawn.number for drawn in told) == list(range(SHARDS))
    place.tidy()
    assert {p.name for p in run.rglob("*") if p.is_file()} == {"manifest.json", *map(os.path.basename, undisturbed)}


def test_an_actor_that_hangs_is_not_waited_for(cluster, run, notes, undisturbed):
    def hang(number):
        import time
        from contextlib import suppress

        with suppress(FileExistsError):
            (notes / f"{number}.hung").touch(exist_ok=number != 3)
            if number == 3:
                time.sleep(3600)

    draw(str(run), opener(notes, hang), 2, patience=1.0)
    assert (notes / "3.hung").exists() and contents(run) == undisturbed


def test_more_actors_than_the_cluster_has_room_for(cluster, run, notes, undisturbed):
    draw(str(run), opener(notes), 7)
    assert contents(run) == undisturbed and len(list(notes.glob("*.pid"))) <= 2


@pytest.mark.parametrize("kind", [NonFiniteError, OSError, ValueError, MemoryError])
def test_errors_keep_their_type(cluster, run, notes, kind):
    def fail(number):
        if number == 5:
            raise kind("sample 51")

    with pytest.raises(kind, match="sample 51") as raised:
        draw(str(run), opener(notes, fail), 2)
    assert type(raised.value) is kind
    there = present(place_of(run), recipe()().manifest)
    assert 5 not in there and len(there) >= 4


def test_a_run_that_cannot_be_opened(cluster, run, notes):
    def opened(run):
        raise ValueError("no such model")

    with pytest.raises(ValueError, match="no such model"):
        draw(str(run), opened, 2)


def test_other_bytes_are_found(cluster, run, notes, undisturbed):
    job = recipe()()
    shard = job.draw(5, lambda count: None)
    shard.arrays["samples"][3, 1] += 1

    def race(number):  # somebody else has put shard 5 there meanwhile
        import pathlib

        if number == 5:
            file = pathlib.Path(path)
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_bytes(data)

    path, data = str(run / "shards/0000/0000005.npz"), encode(shard, "npz")
    with pytest.raises(SelfCheckError, match="shard 5 is there with other bytes"):
        draw(str(run), opener(notes, race), 2)


def test_the_last_actor_lost_is_a_stop(cluster, run, notes):
    def end(number):
        import ray

        if number == 5:
            ray.kill(ray.get_runtime_context().current_actor, no_restart=True)
            import time

            time.sleep(60)

    with pytest.raises(Stopped, match=r"lost every worker: 5 of 40 shards .* the same command goes on") as stopped:
        draw(str(run), opener(notes, end), 1)
    assert stopped.value.code == 75


def test_what_cannot_be_drawn(tmp_path):
    with pytest.raises(ValueError, match=r"holds no manifest\.json"):
        draw(str(tmp_path / "nothing"), opener(tmp_path), 1)
    with pytest.raises(ValueError, match="workers = 0"):
        draw(str(tmp_path), opener(tmp_path), 0)
