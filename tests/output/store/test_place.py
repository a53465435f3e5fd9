"""What every place promises, in a folder and in an object store; and what names a place."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
from cells import in_each

from fastscore.output.store.folder import Folder
from fastscore.output.store.place import place_of


@pytest.fixture(params=["folder", "bucket"])
def place(request, tmp_path):
    if request.param == "folder":
        return Folder(tmp_path / "above" / "run")
    from obstore.store import MemoryStore

    from fastscore.output.store.objects import Bucket

    return Bucket(MemoryStore(), "above/run")


def test_the_first_to_create_wins_and_nothing_changes_it_but_replace(place):
    name = "shards/0000/0000123.npz"
    assert place.create(name, b"first")
    assert not place.create(name, b"second")
    assert not place.create(name, b"first")  # the same bytes are still no second creation
    assert place.read(name) == b"first"
    place.replace(name, b"third")
    assert place.read(name) == b"third"
    assert not place.create(name, b"fourth")
    place.delete(name)
    place.delete(name)
    with pytest.raises(FileNotFoundError, match=r"0000123\.npz"):
        place.read(name)
    assert place.create(name, b"")
    assert place.read(name) == b""


def test_entries_are_those_below_a_prefix_or_the_one_of_that_name(place):
    assert list(place.entries()) == list(place.entries("shards/")) == []
    sizes = {"manifest.json": 3, "shards/0000/0000001.npz": 5, "shards/0001/0001000.npz": 0, "shardsmore/a": 1}
    for name, size in sizes.items():
        place.create(name, b"x" * size)
    assert {e.name: e.size for e in place.entries()} == sizes
    assert {e.name for e in place.entries("shards/")} == {n for n in sizes if n.startswith("shards/")}
    assert {e.name for e in place.entries("shards/0001/")} == {"shards/0001/0001000.npz"}
    assert [(e.name, e.size) for e in place.entries("manifest.json")] == [("manifest.json", 3)]
    assert list(place.entries("nothing/")) == list(place.entries("nothing")) == []
    assert all(0 <= e.age < 60 for e in place.entries())


@pytest.mark.parametrize("act", ["create", "replace", "read", "delete"])
def test_a_name_that_could_lead_elsewhere_is_refused(place, act, tmp_path):
    def refused(name):
        with pytest.raises(ValueError, match="is no name of a file in a run"):
            getattr(place, act)(name, *([b"x"] if act in ("create", "replace") else []))
        assert not list(tmp_path.iterdir())

    names = "|/|/etc/x|..|../x|a/../b|a//b|a/|./a|.hidden|a/.b|a b|a\\b|é|a\n|C:x|a\0".split("|")
    in_each(((name,) for name in (*names, "x" * 201, "a/" * 500 + "a")), refused)


def test_places_by_their_names(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert place_of(tmp_path / "a").url == place_of("a").url == f"{tmp_path}/a"
    assert place_of(f"file://{tmp_path}/a").url == place_of(f"file:{tmp_path}/a").url == f"{tmp_path}/a"
    assert place_of("a:b").url == f"{tmp_path}/a:b"  # a file system may have it
    assert not list(tmp_path.iterdir())  # none was made


def test_buckets_by_their_names(monkeypatch):
    monkeypatch.setenv("AZURE_STORAGE_ACCOUNT_NAME", "account")
    for url in ("s3://bucket/some/prefix", "gs://bucket/x", "az://container/x", "s3://bucket"):
        assert place_of(url).url == place_of(url + "/").url == url
    assert place_of("S3://bucket/x").url == "s3://bucket/x"


@pytest.mark.parametrize(
    ("where", "message"),
    [
        ("s3://", "names no bucket"),
        ("s3:///x", "names no bucket"),
        ("s3://key:secret@bucket/x", "names no bucket"),
        ("s3://bucket/../x", "no name of a file"),
        ("s3://bucket/a//b", "no name of a file"),
        ("http://host/x", "no place to write to"),
        ("memory://x", "no place to write to"),
        ("file://host/x", "another host"),
        (Path("s3://bucket/x"), "write s3://bucket/x, as text"),
        ("", "has no name"),
        ("x" * 5000, "too long"),
    ],
)
def test_what_names_no_place_says_so(where, message):
    with pytest.raises(ValueError, match=message):
        place_of(where)


def test_a_bucket_without_obstore_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "obstore", None)
    monkeypatch.setitem(sys.modules, "obstore.store", None)
    with pytest.raises(ImportError, match="s3:// needs obstore") as error:
        place_of("s3://bucket/x")
    assert error.value.name == "obstore"
    assert place_of("here").url.endswith("/here")


def test_an_azure_bucket_without_account_says_which_variable(monkeypatch):
    for name in ("AZURE_STORAGE_ACCOUNT_NAME", "AZURE_STORAGE_CONNECTION_STRING"):
        monkeypatch.delenv(name, raising=False)
    with pytest.raises(OSError, match="AZURE_STORAGE_ACCOUNT_NAME"):
        place_of("az://container/x")
