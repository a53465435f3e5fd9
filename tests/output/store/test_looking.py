"""What a worker asks of the place to find work: little, however much others have done, and less and less in vain."""

from __future__ import annotations

from collections import Counter
from types import SimpleNamespace

import numpy as np
import pytest

from fastscore.output.store import work as module
from fastscore.output.store.formats import Shard
from fastscore.output.store.lease import Leases
from fastscore.output.store.manifest import Manifest
from fastscore.output.store.place import place_of
from fastscore.output.store.work import keep, present, work


class Counting:
    """A place that counts what is asked of it, and the prefixes that are listed."""

    def __init__(self, place):
        self.place, self.url, self.asked, self.listed = place, place.url, Counter(), []

    def __getattr__(self, name):
        def ask(*arguments):
            self.asked[name] += 1
            self.listed += arguments if name == "entries" else ()
            return getattr(self.place, name)(*arguments)

        return ask


@pytest.fixture
def run(tmp_path):
    """A run of n samples, one a shard, and what draws them."""

    def make(n, before=lambda number: None):
        manifest = Manifest(n, f"0-{n - 1}", 1, gathered=False)

        def shard(number, beat=None):
            before(number)
            return Shard(number, manifest.hash, {"samples": np.zeros((1, 2), np.float32), "ids": np.array([number])})

        return SimpleNamespace(manifest=manifest, draw=shard, source=None), Counting(place_of(tmp_path / "run"))

    return make


def test_what_others_have_done_meanwhile_is_asked_for_at_once(run):
    others = []

    def first(number):
        if not others:
            others.extend(k for k in range(1200) if k != number)
            for k in others:
                name = place.place._path(job.manifest.name(k))
                name.parent.mkdir(parents=True, exist_ok=True)
                name.touch()
            place.asked.clear()

    job, place = run(1200, first)
    assert work(job, place, leases=Leases(place, "late")).drawn == 1
    assert place.asked["create"] <= 4 and place.asked["entries"] <= 6  # two folders, and not 1,199 shards


def test_a_look_in_vain_is_followed_by_a_longer_wait(run, monkeypatch):
    job, place = run(1500)
    for k in range(1500):
        if k != 1234:
            name = place.place._path(job.manifest.name(k))
            name.parent.mkdir(parents=True, exist_ok=True)
            name.touch()
    other, slept = Leases(place.place, "other", patience=1000.0), []
    assert other.take(1234)

    def sleep(seconds):
        slept.append(seconds)
        if len(slept) == 7:
            keep(place.place, job.manifest, job.draw(1234))

    monkeypatch.setattr(module.time, "sleep", sleep)
    place.listed.clear()
    assert work(job, place, leases=Leases(place, "idle", patience=1000.0)).drawn == 0
    assert slept == [0.5, 1.0, 2.0, 4.0, 8.0, 8.0, 8.0]
    looks = [prefix for prefix in place.listed if not prefix.startswith("leases")]
    assert looks[0] == "shards/" and set(looks[1:]) == {"shards/0001/"}


def test_looking_near_some_shards(run):
    job, place = run(2500)
    for k in (3, 999, 1000, 2499):
        keep(place, job.manifest, job.draw(k))
    assert present(place, job.manifest) == {3, 999, 1000, 2499}
    assert present(place, job.manifest, []) == set()
    assert present(place, job.manifest, [0]) == {3, 999}
    assert present(place, job.manifest, [1999, 2000, 5]) == {3, 999, 1000, 2499}
