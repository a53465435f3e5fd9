"""Manifests: which samples are in which shard, what two runs differ in, and whatever stands in one on a disk."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as some

from fastscore.output.store.folder import Folder
from fastscore.output.store.manifest import Manifest
from fastscore.output.store.work import present

BASE = Manifest(
    100, "0-99", 16, "npz", True, {"seed": 0, "clip": None, "guide": {"scale": 1.0}}, {"batch": 8}, ("sample", "x")
)
sizes = some.integers(0, 10**6)


@given(sizes, some.integers(1, 10**5), some.integers(1, 40))
@settings(max_examples=60, deadline=None)
def test_spans_and_parts_cover_a_run_once_in_order(n, shard, of):
    manifest = Manifest(n, "", shard)
    numbers = [number for i in range(of) for number in manifest.part(i, of)]
    assert numbers == list(range(manifest.count))
    lengths = [len(manifest.part(i, of)) for i in range(of)]
    assert max(lengths) - min(lengths) <= 1
    few = {*numbers[:3], *numbers[-3:]}
    spans = {number: manifest.span(number) for number in few}
    assert all(first == number * shard and 0 < last - first <= shard for number, (first, last) in spans.items())
    assert all(last - first == shard for number, (first, last) in spans.items() if number + 1 < manifest.count)
    assert not numbers or spans[numbers[-1]][1] == n


@pytest.mark.parametrize("number", [-1, 7, 10**20])
def test_there_is_no_other_shard_or_part(number):
    with pytest.raises(ValueError, match=rf"shard {number} must be in 0 .. 6"):
        BASE.span(number)
    with pytest.raises(ValueError, match=rf"part {number} of 7 must be in 0 .. 6"):
        BASE.part(number, 7)


@pytest.mark.parametrize("format", ["npz", "adm-npz", "npy", "tar", "parquet"])
@pytest.mark.parametrize("number", [0, 1, 999, 1000, 9_999_999, 10_000_000, 10**10])
def test_a_name_is_that_of_one_shard(number, format):
    manifest = Manifest(10**11, "", 1, format)
    name = manifest.name(number)
    assert manifest.number(name) == number
    folder, file = name.split("/")[1:]
    assert (int(folder), int(file.split(".")[0])) == (number // 1000, number)
    for other in (
        name + ".tmp", name.replace("shards", "shard"), "/" + name, name.split("/", 1)[1], f"shards/{file}",
        f"shards/0{folder}/{file}", f"shards/{folder}/0{file}", f"shards/{folder}/x{file}", f"shards/9{folder}/{file}",
        f"shards/{folder}/{file.split('.')[0]}", f"shards/{folder}/{10**18}.npz", name.replace(file[0], "\u0661"), "",
    ):  # fmt: skip
        assert manifest.number(other) is None, other
    assert Manifest(number, "", 1, format).number(name) is None  # the one after the last


def test_present_knows_shards_from_other_files(tmp_path):
    place, manifest = Folder(tmp_path), Manifest(2500, "0-2499", 1)
    for name in ("shards/0000/0000003.npz", "shards/0002/0002400.npz", "shards/0002/0002500.npz", "shards/a.npz",
                 "shards/0001/0000007.npz", "shards/0000/0000004.tar", "0000005.npz"):  # fmt: skip
        place.create(name, b"x")
    assert present(place, manifest) == {3, 2400}
    assert present(place, manifest, [2000, 2001]) == {2400}
    assert present(place, manifest, []) == set()


CHANGES = {
    "n": {"n": 99},
    "ids": {"ids": "1-100"},
    "shard": {"shard": 15},
    "format": {"format": "npy"},
    "gathered": {"gathered": False},
    "seed": {"what": {**BASE.what, "seed": 1}},
    "guide.scale": {"what": {**BASE.what, "guide": {"scale": 2.0}}},
    "guide.norm": {"what": {**BASE.what, "guide": {"scale": 1.0, "norm": 1}}},
    "new": {"what": {**BASE.what, "new": "x"}},
    "numerics.batch": {"numerics": {"batch": 9}},
}


@pytest.mark.parametrize("key", CHANGES)
def test_a_difference_is_named_by_its_key(key):
    other = replace(BASE, **CHANGES[key])
    assert other.hash != BASE.hash
    assert [text.split(":")[0] for text in other.differences(BASE)] == [key]
    assert [text.split(":")[0] for text in BASE.differences(other)] == [key]
    assert bool(other.differences(BASE, mixed=True)) == (key != "numerics.batch")


def test_there_and_here():
    assert replace(BASE, n=7).differences(BASE) == ["n: 100 there, 7 here"]
    assert replace(BASE, what={**BASE.what, "solver": "x" * 500}).differences(BASE)[0].endswith("... here")


def test_who_draws_it_is_no_difference():
    other = replace(BASE, argv=None)
    assert other.hash == BASE.hash and not other.differences(BASE)


def test_it_comes_back_from_a_place_and_is_written_once(tmp_path):
    place = Folder(tmp_path)
    assert Manifest.read(place) is None
    BASE.write(place)
    assert Manifest.read(place) == BASE
    replace(BASE, n=7).write(place)
    assert Manifest.read(place) == BASE


def deep(levels):
    value = {}
    for _ in range(levels):
        value = {"a": value}
    return value


HOSTILE = [
    b"", b"\xff\xfe", b"null", b"[]", b"7", b'"x"', b"{}", b"{", b"[" * 100_000, b"1" * 5000, b'{"manifest": 1}',
    *(
        json.dumps(BASE.to_dict() | change).encode()
        for change in (
            {"manifest": 2}, {"manifest": "1"}, {"n": -1}, {"n": True}, {"n": 1.0}, {"n": "1"}, {"n": None},
            {"shard": 0}, {"shard": -1}, {"shard": [1]}, {"format": "exe"}, {"format": None}, {"gathered": 1},
            {"ids": 5}, {"what": []}, {"what": None}, {"numerics": "x"}, {"argv": "sample x"}, {"argv": [1]},
            {"argv": {}}, {"n": 1 << 63}, {"what": deep(300)},
        )
    ),
]  # fmt: skip


@pytest.mark.parametrize("data", HOSTILE, ids=lambda data: repr(data[:25]) + str(len(data)))
def test_whatever_stands_in_one_is_an_error_that_names_it(tmp_path, data):
    (tmp_path / "manifest.json").write_bytes(data)
    with pytest.raises(ValueError, match="manifest"):
        Manifest.read(Folder(tmp_path))


@pytest.mark.parametrize("change", [{"what": {"a": float("nan"), "\ud800": "\ud800"}}, {"what": deep(30)}, {"more": 1}])
def test_odd_values_are_compared_all_the_same(tmp_path, change):
    (tmp_path / "manifest.json").write_text(json.dumps(BASE.to_dict() | change))
    found = Manifest.read(Folder(tmp_path))
    assert found is not None and len(found.hash) == 64
    assert bool(found.differences(BASE)) == (change != {"more": 1})
