"""The loop of a worker: the same bytes however a run is cut, ordered or shared out, and whatever goes wrong in it."""

from __future__ import annotations

import functools
import multiprocessing
import random
from dataclasses import replace

import numpy as np
import pytest
import torch
from drawn import FAULTS, by_id, image, point, request, sampler, shards_below, shards_of
from gated import one_in

from fastscore.cli import _verdict
from fastscore.errors import NonFiniteError, SelfCheckError
from fastscore.output.run import draw
from fastscore.output.store.folder import Folder
from fastscore.output.store.job import Asked, job_of
from fastscore.output.store.lease import Leases
from fastscore.output.store.seal import DamagedError
from fastscore.output.store.work import OutOfMemory, Tally, keep, present, work
from fastscore.solvers import Dopri5

pytestmark = pytest.mark.usefixtures("no_faults")


def begun(source, ids, where, shard, **settings):
    """Return a job, and its place with the manifest."""
    job = job_of(source, request(source, ids), shard=shard, gathered=False, **settings).ready()
    place = Folder(where)
    job.manifest.write(place)
    return job, place


def all_of(place, manifest):
    """Return the sha256 of each sample at a place."""
    found = {}
    for shard in shards_of(place, manifest).values():
        new = by_id(shard.arrays)
        assert not found.keys() & new.keys()
        found |= new
    return found


@functools.cache
def expected(n):
    """Return the bytes of n images, as one run without shards has them."""
    source = sampler(image)
    x = source.ops.quantize(source.run(request(source, range(n)))).numpy()
    return by_id({"samples": x, "ids": np.arange(n)})


def crew_of_two(job, place):
    """Draw a run by two processes that know of each other by leases alone."""
    context = multiprocessing.get_context("fork")
    both = [
        context.Process(
            target=lambda k=k: work(job, place, leases=Leases(place, str(k)), start=k * job.manifest.count // 2)
        )
        for k in range(2)
    ]
    for one in both:
        one.start()
    for one in both:
        one.join()
    assert [one.exitcode for one in both] == [0, 0]


def in_order(job, place):
    work(job, place)


def in_parts(job, place):
    """Draw the parts of a run one after the other, the last first."""
    for i in reversed(range(3)):
        work(job, place, part=(i, 3))


def in_any_order(job, place):
    """Draw shard by shard, shuffled; each of them by a job of its own."""
    numbers = list(range(job.manifest.count))
    random.Random(1).shuffle(numbers)
    for number in numbers:
        keep(place, job.manifest, job.draw(number, lambda count: None))


WAYS = [in_order, in_parts, in_any_order, crew_of_two]


CUTS = [(n, shard, way) for way in WAYS for shard in (16, 64, 256) for n in (1, 7, 64, 1000)]
QUICK = [(64, 16, way) for way in WAYS] + [(n, 64, in_parts) for n in (1, 7, 64)] + [(64, 256, in_any_order)]


@pytest.mark.thirds
@pytest.mark.parametrize(
    ("n", "shard", "way"),
    one_in(
        3,
        [
            pytest.param(
                *cut, id=f"{cut[0]}-{cut[1]}-{cut[2].__name__}", marks=[] if cut in QUICK else pytest.mark.slow
            )
            for cut in CUTS
        ],
    ),
)
def test_the_same_bytes_however_a_run_is_drawn(tmp_path, n, shard, way):
    job, place = begun(sampler(image), range(n), tmp_path / "run", shard)
    way(job, place)
    assert present(place, job.manifest) == set(range(job.manifest.count))
    assert all_of(place, job.manifest) == expected(n)


def unpadded(x):
    """Return images drawn by Euler steps that run the network at however many there are."""
    for sigma, lower in ((80.0, 10.0), (10.0, 1.0), (1.0, 0.1)):
        x = x + (lower - sigma) / sigma * (x - image(x / (1 + sigma**2) ** 0.5, None))
    return x


def test_without_padding_samples_depend_on_their_company():
    """The control, which fails where what the tests above compare could not differ anyhow."""
    x = torch.from_numpy(np.random.default_rng(0).normal(0.0, 80.0, (64, 1, 8, 8))).float()
    whole = unpadded(x)
    differ = [size for size in range(1, 33) if not torch.equal(unpadded(x[:size]), whole[:size])]
    if not differ:
        pytest.skip("on this machine these convolutions round alike at every size, so that padding changes nothing")
    assert differ


@pytest.mark.parametrize("solver", [Dopri5(rtol=0.01, atol=0.01), "heun"], ids=["adaptive", "plan"])
def test_two_samples_of_one_id_and_two_seeds_are_two_samples(tmp_path, solver):
    source = sampler(solver=solver, batch=4)
    ids, seeds = [5, 3, 5, 3, 5, 9], [1, 1, 2, 1, 3, 4]
    job = job_of(source, request(source, ids, seeds), shard=4, gathered=False)
    found = job.arrays(range(6))
    assert np.array_equal(found["samples"], source.run(request(source, ids, seeds)).numpy())
    assert (found["ids"].tolist(), found["seeds"].tolist()) == (ids, seeds)
    assert len(np.unique(found["samples"], axis=0)) == 5  # of 3 and seed 1 there are two, and equal
    assert np.array_equal(job.arrays([4, 0])["samples"], found["samples"][[4, 0]])


def test_where_files_are_named_by_ids_each_comes_once(tmp_path):
    source = sampler(image)
    with pytest.raises(ValueError, match="an id comes twice, which png files, named by ids, have no room for"):
        draw(source, request(source, [1, 2, 1], [0, 0, 1]), tmp_path / "out", png=True)
    with pytest.raises(ValueError, match="an id comes twice, which a trajectory has no room"):
        draw(source, request(source, [1, 1], [0, 1]), tmp_path / "out", further=lambda folder: None)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("ids", "text"),
    [
        (range(0), ""), (range(1), "0"), (range(2), "0-1"), (range(5, 9), "5-8"), (range(0, 10, 3), "0,3,6,9"),
        (range(5, 2, -1), "5,4,3"), ([7, 8, 3], "7-8,3"), (np.array([1, 2, 9]), "1-2,9"),
        (range(10**12), "0-999999999999"),
    ],
)  # fmt: skip
def test_ids_as_text(ids, text):
    assert Asked(ids, lambda positions: None, "", 0).text == text  # pyright: ignore[reportArgumentType]


def test_the_tally_counts_what_was_drawn_and_found(tmp_path):
    job, place = begun(sampler(), range(20), tmp_path / "run", 4)
    counts = []
    tally = work(job, place, part=(0, 2), beat=lambda *count: counts.append(count))
    assert replace(tally, first=None) == Tally(2, 0, 8)
    assert np.sum(counts, axis=0).tolist() == [8, 2]
    keeps = []
    tally = work(job, place, start=3, kept=lambda shard: keeps.append(shard.number))
    assert (tally.drawn, tally.found, tally.samples, keeps) == (3, 2, 12, [3, 4, 2])
    assert tally.first is not None and tally.first > 0
    assert work(job, place) == Tally(0, 5, 0)


def test_a_shard_is_there_only_after_what_belongs_to_it(tmp_path):
    job, place = begun(sampler(), range(8), tmp_path / "run", 4)
    there = []
    work(job, place, kept=lambda shard: there.append(present(place, job.manifest)))
    assert there == [set(), {0}]
    job, place = begun(sampler(), range(8), tmp_path / "other", 4)
    with pytest.raises(OSError, match="no room"):
        work(job, place, kept=lambda shard: (_ for _ in ()).throw(OSError("no room")))
    assert not present(place, job.manifest)


def test_a_shard_with_other_bytes_is_refused_and_both_stay(tmp_path):
    job, place = begun(sampler(), range(4), tmp_path / "run", 4)
    work(job, place)
    shard = job.draw(0, lambda count: None)
    keep(place, job.manifest, shard)  # the same is an audit passed
    other = replace(shard, arrays={**shard.arrays, "samples": shard.arrays["samples"] + 1})
    with pytest.raises(SelfCheckError, match="shard 0 is there with other bytes") as error:
        keep(place, job.manifest, other)
    assert _verdict(error.value)[0] == 4
    assert sorted(entry.name for entry in place.entries("conflicts/")) == [f"conflicts/0000000-{other.sha256[:12]}.npz"]
    assert shards_of(place, job.manifest)[0].sha256 == shard.sha256


@pytest.mark.parametrize("damage", ["flipped", "cut", "empty", "foreign"])
def test_a_damaged_shard_in_the_way_names_itself_and_the_remedy(tmp_path, damage):
    job, place = begun(sampler(), range(4), tmp_path / "run", 4)
    work(job, place)
    file, shard = tmp_path / "run/shards/0000/0000000.npz", job.draw(0, lambda count: None)
    data = file.read_bytes()
    other, elsewhere = begun(sampler(steps=5), range(4), tmp_path / "other", 4)
    work(other, elsewhere)
    foreign = (tmp_path / "other/shards/0000/0000000.npz").read_bytes()
    file.write_bytes(
        {"flipped": data[:300] + b"?" + data[301:], "cut": data[:-1], "empty": b"", "foreign": foreign}[damage]
    )
    with pytest.raises(DamagedError, match=r"run/shards/0000/0000000.npz.*; fastscore verify --repair") as error:
        keep(place, job.manifest, shard)
    assert _verdict(error.value)[0] == 5


# Faults of the network, in a run as `draw` makes it: 6 shards of 8 samples, 2 micro-batches each.


def whole(where, source, n=48, **settings):
    """Draw a run and return its samples by id."""
    draw(source, request(source, range(n)), where, shard=8, **settings)
    with np.load(where / "samples.npz") as saved:
        return by_id(dict(saved))


def levels(source):
    """Return the noise levels at which the network is evaluated, in order."""
    seen = []
    FAULTS.append(lambda x0, c_noise, cond: seen.append(float(c_noise[0])) or x0)
    source.run(request(source, [0]))
    FAULTS.clear()
    return seen


PLACES = [(k * 37 % 48, k * 11 % 7) for k in range(100)]  # each of 48 ids and 7 evaluations comes


@pytest.mark.parametrize("places", [PLACES[:2], pytest.param(PLACES[2:], marks=pytest.mark.slow)], ids=["2", "98"])
def test_nan_anywhere_is_named_and_costs_its_shard(tmp_path, places):
    source = sampler(batch=4)
    at, expected = levels(source), whole(tmp_path / "whole", source)
    assert {k for k, _ in PLACES} == set(range(48)) and {row for _, row in PLACES} == set(range(len(at)))
    for number, (k, row) in enumerate(places):
        out = tmp_path / str(number)

        def fault(x0, c_noise, cond, k=k, level=at[row]):
            hit = (cond[:, 0] == k) & (c_noise.float() == level)
            return torch.where(hit[:, None], torch.nan, x0)

        FAULTS.append(fault)
        with pytest.raises(
            NonFiniteError, match=rf"first id {k} at row {at.index(at[row]) + 1} \(t = .*float32"
        ) as error:
            whole(out, source)
        code, said = _verdict(error.value)
        assert code == 4
        kept = shards_below(out)
        assert sorted(kept) == list(range(k // 8))
        assert not kept or f"{k // 8} of 6 shards are kept in {out}" in said
        FAULTS.clear()
        assert whole(out, source) == expected
        assert sorted(path.name for path in out.iterdir()) == ["grid.png", "run.json", "samples.npz"]


MEMORY = [
    MemoryError(), MemoryError("cannot"), torch.OutOfMemoryError("no"), torch.OutOfMemoryError("CUDA out of memory."),
    RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 8 bytes."),
    RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
]  # fmt: skip
CALLS = [k * 17 % 84 for k in range(50)]  # of 6 shards of 2 micro-batches of 7 evaluations


@pytest.mark.slow
@pytest.mark.parametrize("calls", [CALLS[:3], pytest.param(CALLS[3:], marks=pytest.mark.nightly)], ids=["3", "47"])
def test_memory_that_runs_out_anywhere_makes_nothing_smaller(tmp_path, calls):
    source = sampler(batch=4)
    expected, sizes, count = whole(tmp_path / "whole", source), set(), 0

    def fault(x0, c_noise, cond, error=None, call=0):
        nonlocal count
        sizes.add(len(x0))
        count += 1
        if error is not None and count > call:  # as of something else that takes it
            raise error
        return x0

    for number, call in enumerate(calls):
        out, count, error = tmp_path / str(number), 0, MEMORY[number % len(MEMORY)]
        FAULTS.append(lambda *about, error=error, call=call: fault(*about, error, call))
        with pytest.raises((MemoryError, RuntimeError)) as raised:
            whole(out, source)
        assert count == call + 2  # once again, and not a third time
        code, said = _verdict(raised.value)
        assert code == (75 if call >= 14 else 3), (call, said)
        assert isinstance(raised.value, OutOfMemory) == (call >= 14)
        assert "out of memory" in said and "--batch" in said
        assert sorted(shards_below(out)) == list(range(call // 14))
        FAULTS.clear()
        assert whole(out, source) == expected
    assert sizes == {4}


def test_memory_that_is_short_once_costs_nothing(tmp_path):
    source, calls = sampler(batch=4), []
    expected = whole(tmp_path / "whole", source)

    def fault(x0, c_noise, cond):
        calls.append(1)
        if len(calls) in (3, 40):
            raise torch.OutOfMemoryError("CUDA out of memory.")
        return x0

    FAULTS.append(fault)
    assert whole(tmp_path / "out", source) == expected


def test_other_errors_are_no_lack_of_memory(tmp_path):
    source, calls = sampler(batch=4), []

    def fault(x0, c_noise, cond):
        calls.append(1)
        raise RuntimeError("shapes do not fit")

    FAULTS.append(fault)
    with pytest.raises(RuntimeError, match="shapes do not fit") as raised:
        whole(tmp_path / "out", source)
    assert len(calls) == 1 and _verdict(raised.value)[0] == 70
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("net", [point, image])
def test_labels_seeds_and_conditions_lie_in_their_shards(tmp_path, net):
    source = sampler(net, classes=4, null=4)
    asked = source.request(range(20), list(range(20)), labels="random")
    job = job_of(source, asked, shard=6, gathered=False)
    whole = job.arrays(range(20))
    assert whole["labels"].tolist() == asked.cond.tolist() and whole["seeds"].tolist() == list(range(20))
    for number in range(job.manifest.count):
        first, last = job.manifest.span(number)
        shard = job.draw(number, lambda count: None)
        assert all(np.array_equal(shard.arrays[name], whole[name][first:last]) for name in whole)


@pytest.mark.slow
def test_memory_does_not_grow_with_the_number_of_samples(tmp_path):
    """Of a source that costs nothing: what is held is shards and their numbers."""
    import tracemalloc

    class Cheap:
        def __init__(self):
            self.inner = sampler(batch=1000)
            self.model, self.prepared, self.ops, self.sampler = self.inner.model, None, self.inner.ops, self.inner

        def stream(self, request, *, progress):
            yield request.ids, torch.zeros(len(request.ids), 3)

        def record(self):
            return {"nfe": 0}

    source, peaks = Cheap(), []

    def lines(positions):
        return source.inner.request(positions, cond=torch.zeros(len(positions), 1))

    for n in (1000, 20_000, 200_000):  # the first loads what a run needs
        tracemalloc.start()
        draw(source, Asked(range(n), lines, "", 0), tmp_path / str(n), shard=2000, gathered=False)
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert peaks[2] < 1.2 * peaks[1] + 50_000, peaks
