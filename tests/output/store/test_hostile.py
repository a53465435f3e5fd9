"""Shards that somebody else has sealed: whatever they hold, they are refused as damaged and take nothing."""

from __future__ import annotations

import pickle
import sys
import tarfile
import zipfile
from io import BytesIO
from typing import Any

import numpy as np
import pytest
from cells import in_each

from fastscore.output.store.formats import FORMATS, Shard, decode, encode, versions
from fastscore.output.store.seal import DamagedError, note, seal

SHARD = Shard(0, "run", {"samples": np.zeros((2, 2, 2, 1), np.uint8), "ids": np.arange(2)})
ARRAYS = {name: [x.dtype.str, *x.shape] for name, x in SHARD.arrays.items()}


def text(format: str, **changed: Any) -> bytes:
    fields = {"format": format, "number": 0, "run": "run", "sha256": SHARD.sha256, "arrays": ARRAYS}
    return note(**{**fields, **changed})


def forged(format: str, **changed: Any) -> bytes:
    file = BytesIO()
    FORMATS[format].write(file, SHARD.arrays, text(format, **changed))
    return seal(file)


NOTES = {
    "no number": {"number": None},
    "half a number": {"number": 0.5},
    "a flag": {"number": True},
    "a huge number": {"number": 10**40},
    "another run's kind": {"run": ["run"]},
    "a path": {"run": "../../etc"},
    "another hash": {"sha256": "0" * 64},
    "no hash": {"sha256": None},
    "no arrays": {"arrays": {}},
    "arrays as a list": {"arrays": [["samples", "|u1", 2]]},
    "arrays as a number": {"arrays": 7},
    "no shape": {"arrays": {**ARRAYS, "ids": ["<i8"]}},
    "no dtype": {"arrays": {**ARRAYS, "ids": []}},
    "a shape too large": {"arrays": {**ARRAYS, "samples": ["|u1", 2, 500, 500, 500]}},
    "a shape larger than any": {"arrays": {**ARRAYS, "samples": ["|u1", 2, 10**30, 10**30, 1]}},
    "a shape of nothing, often": {"arrays": {**ARRAYS, "samples": ["|u1", 10**12, 2, 0, 1]}},
    "a negative shape": {"arrays": {**ARRAYS, "samples": ["|u1", -2, -2, 2, 1]}},
    "half a shape": {"arrays": {**ARRAYS, "samples": ["|u1", 2, 2, 2.0, 1]}},
    "a shape of strings": {"arrays": {**ARRAYS, "samples": ["|u1", "2", "2", "2", "1"]}},
    "a hundred axes": {"arrays": {**ARRAYS, "samples": ["|u1", 2, 2, 2, *[1] * 100]}},
    "objects": {"arrays": {**ARRAYS, "ids": ["|O", 2]}},
    "objects in a record": {"arrays": {**ARRAYS, "ids": [[["a", "|O"]], 2]}},
    "a dtype of nothing": {"arrays": {**ARRAYS, "ids": ["|V0", 2]}},
    "strings": {"arrays": {**ARRAYS, "ids": ["<U2", 2]}},
    "a dtype to run": {"arrays": {**ARRAYS, "ids": ["__import__('os').abort()", 2]}},
    "another dtype": {"arrays": {**ARRAYS, "ids": ["<u8", 2]}},
    "another order": {"arrays": dict(reversed(ARRAYS.items()))},
    "one more": {"arrays": {**ARRAYS, "labels": ["<i8", 2]}},
}


@pytest.mark.parametrize("format", FORMATS)
def test_a_forged_note_is_refused(format):
    def refused(name):
        with pytest.raises(DamagedError):
            decode(forged(format, **NOTES[name]), format)

    assert decode(forged(format), format).sha256 == SHARD.sha256
    in_each(((name,) for name in NOTES), refused)


def test_a_note_without_its_fields_is_refused():
    for fields in ({}, {"format": "npz"}, {"format": ["npz"]}, {"format": "npz", "arrays": ARRAYS}):
        with pytest.raises(DamagedError):
            decode(seal(BytesIO(b"." + note(**fields))), "npz")
    for broken in (b"[" * 60_000, b'"a', b"9" * 50_000 + b"}"):
        with pytest.raises(DamagedError, match="its note is not JSON"):
            decode(seal(BytesIO(note(a=1)[:-2] + broken)), "npz")
    with pytest.raises(DamagedError, match="it has no seal"):
        decode(b"PK" + bytes(1000), "npz")


def test_a_note_may_not_promise_more_than_the_file_holds():
    for name in ("a shape too large", "a shape of nothing, often"):
        with pytest.raises(DamagedError, match="more than the"):
            decode(forged("npz", **NOTES[name]), "npz")


def test_other_headers_than_the_note_are_refused():
    """What other readers find is what is decoded here, down to the names and types of arrays."""
    other = {"samples": SHARD.arrays["samples"], "ids": SHARD.arrays["ids"].view(np.uint64)}
    for format in ("npz", "adm-npz", "npy"):
        FORMATS[format].write(file := BytesIO(), other, text(format))
        with pytest.raises(DamagedError, match="no array int64"):
            decode(seal(file), format)
    other = {"samples": SHARD.arrays["samples"], "labels": SHARD.arrays["ids"]}
    FORMATS["npz"].write(file := BytesIO(), other, text("npz"))
    with pytest.raises(DamagedError, match="it has the members"):
        decode(seal(file), "npz")


class Canary:
    def __reduce__(self):
        return (pytest.fail, ("a pickle of a file was run",))


def test_no_pickle_is_run():
    objects = np.empty(2, object)
    objects[:] = [Canary(), Canary()]
    for arrays in ({"samples": SHARD.arrays["samples"], "ids": objects}, {"samples": objects, "ids": objects}):
        file = BytesIO()
        np.savez(file, allow_pickle=True, **arrays)
        with zipfile.ZipFile(file, "a") as archive:
            archive.comment = text("npz")
        with pytest.raises(DamagedError):
            decode(seal(file), "npz")
    with pytest.raises(DamagedError):
        decode(seal(BytesIO(pickle.dumps(Canary()) + text("npy"))), "npy")


def test_nothing_is_unpacked():
    """A note may promise only what the file holds, so a member that is packed can be none of a shard."""
    file = BytesIO()
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("samples.npy", bytes(10_000_000))
        archive.writestr("ids.npy", bytes(1000))
        archive.comment = text("npz", arrays={"samples": ["|u1", 10_000_000, 1, 1, 1], "ids": ["<i8", 10_000_000]})
    with pytest.raises(DamagedError, match="more than the"):
        decode(seal(file), "npz")
    packed = BytesIO()
    with tarfile.open(fileobj=packed, mode="w:gz") as archive:
        archive.addfile(tarfile.TarInfo("000000.png"))
    with pytest.raises(DamagedError):
        decode(seal(BytesIO(packed.getvalue() + text("tar"))), "tar")


def test_packed_columns_are_refused():
    import pyarrow as arrow
    from pyarrow import parquet

    from fastscore.output.store.parquet import table_of

    n = 100_000
    nulls = arrow.table({"samples": arrow.nulls(n, arrow.float32()), "ids": arrow.nulls(n, arrow.int64())})
    images = table_of({"samples": np.zeros((500, 50, 60, 3), np.uint8), "ids": np.arange(500)})
    image = table_of({"samples": np.zeros((1, 1000, 1000, 3), np.uint8), "ids": np.arange(1)})
    once: dict[str, Any] = {"compression": "none", "use_dictionary": True}
    cases: list[tuple[Any, Any, dict[str, Any]]] = [  # the values of few bytes are many, or long, or both
        (nulls, {"samples": ["<f4", n], "ids": ["<i8", n]}, {"compression": "none"}),
        (images, {"samples": ["|u1", 500, 50, 60, 3], "ids": ["<i8", 500]}, once),
        (image, {"samples": ["|u1", 1, 1000, 1000, 3], "ids": ["<i8", 1]}, {"compression": "gzip"}),
    ]
    for table, arrays, packing in cases:
        for about, words in ((text("parquet", arrays=arrays), "more than the"), (text("parquet"), "packed")):
            file = BytesIO()
            with parquet.ParquetWriter(file, table.schema, **{"use_dictionary": False, **packing}) as writer:
                writer.write_table(table)
                writer.add_key_value_metadata({"fastscore": about.decode()})
            with pytest.raises(DamagedError, match=words):
                decode(seal(file), "parquet")
    assert versions("parquet") == {"pyarrow": arrow.__version__}
    assert versions("tar") == {}


@pytest.mark.parametrize(
    "name", ["../000000.png", "/etc/0.png", "000000.npy", "x.png", "0.png", "0_0.png", "000000.png/"]
)
def test_a_tar_of_other_members_is_refused(name):
    whole = encode(SHARD, "tar")
    other = tarfile.TarInfo(name)
    other.size = tarfile.TarInfo.frombuf(whole[:512], "utf-8", "strict").size
    data = other.tobuf(tarfile.USTAR_FORMAT) + whole[512:]
    with pytest.raises(DamagedError):
        decode(seal(BytesIO(data)), "tar")


@pytest.mark.parametrize("kind", [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.DIRTYPE, tarfile.GNUTYPE_SPARSE])
def test_a_tar_of_other_things_is_refused(kind):
    whole = encode(SHARD, "tar")
    other = tarfile.TarInfo.frombuf(whole[:512], "utf-8", "strict")
    other.type, other.linkname = kind, "/etc/passwd"
    with pytest.raises(DamagedError):
        decode(seal(BytesIO(other.tobuf(tarfile.USTAR_FORMAT) + whole[512:])), "tar")


def test_a_missing_package_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    for call in (lambda: encode(SHARD, "parquet"), lambda: versions("parquet")):
        with pytest.raises(ImportError, match="parquet needs pyarrow") as caught:
            call()
        assert caught.value.name == "pyarrow"
