"""Shards as files: every format gives back what it was given, and no byte of it changes unseen."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import replace
from importlib.util import find_spec

import numpy as np
import pytest
from cells import in_each

from fastscore.output.store.formats import FORMATS, Shard, decode, encode
from fastscore.output.store.seal import LARGEST, MARK, DamagedError, note

RUN = "0123456789abcdef" * 4


def images(n: int = 3, shape: tuple[int, ...] = (4, 5, 3), **more: np.ndarray) -> Shard:
    rng = np.random.default_rng(n)
    samples = rng.integers(0, 256, (n, *shape), np.uint8)
    return Shard(7, RUN, {"samples": samples, "ids": np.arange(n) * 3 + 990, **more})


def points(n: int = 3, shape: tuple[int, ...] = (2,), **more: np.ndarray) -> Shard:
    samples = np.random.default_rng(n).standard_normal((n, *shape)).astype(np.float32)
    return Shard(0, RUN, {"samples": samples, "ids": np.arange(n), **more})


SHARDS = {
    "images": images(),
    "grey": images(shape=(2, 2, 1)),
    "grey with alpha": images(shape=(2, 3, 2)),
    "colours with alpha": images(shape=(3, 2, 4)),
    "images of 5 channels": images(shape=(2, 2, 5)),
    "images of no rows": images(shape=(0, 2, 3)),
    "labelled": images(labels=np.array([9, 0, -1])),
    "seeds": images(seeds=np.array([0, 2**64 - 1, 7], np.uint64), labels=np.array([1, 2, 3])),
    "told": images(cond=np.arange(12, dtype=np.float32).reshape(3, 2, 2), log_density=np.arange(3.0)),
    "flags": points(mask=np.array([True, False, True])),
    "points": points(),
    "numbers": points(shape=()),
    "one axis of none": points(shape=(0,)),
    "volumes": points(shape=(2, 1, 2, 3)),
    "not finite": Shard(1, RUN, {"samples": np.array([np.nan, -0.0, np.inf], np.float32), "ids": np.arange(3)}),
    "none": images(0, labels=np.empty(0, np.int64)),
    "no points": points(0, seeds=np.empty(0, np.uint64), cond=np.empty((0, 3))),
    "far ids": Shard(10**9, RUN, {"samples": np.ones((2, 1), np.float32), "ids": np.array([2**63 - 1, -5])}),
}
CASES = [
    (name, format)
    for name, shard in SHARDS.items()
    for format in FORMATS
    if not (format == "adm-npz" and shard.arrays["samples"].dtype != np.uint8)
    and not (format == "parquet" and min(shard.arrays["samples"].shape[1:], default=1) == 0)
]


def test_every_format_gives_back_what_it_was_given():
    in_each(CASES, comes_back)


def comes_back(name, format):
    shard = SHARDS[name]
    back = decode(encode(shard, format), format)
    assert (back.number, back.run, back.sha256, len(back)) == (shard.number, shard.run, shard.sha256, len(shard))
    assert list(back.arrays) == list(shard.arrays)
    for name, x in shard.arrays.items():
        assert (back.arrays[name].dtype, back.arrays[name].shape) == (x.dtype, x.shape)
        assert back.arrays[name].tobytes() == x.tobytes()
        assert back.arrays[name].flags.c_contiguous and back.arrays[name].flags.aligned


@pytest.mark.thirds
@pytest.mark.parametrize("format", FORMATS)
def test_every_changed_byte_and_every_truncation_is_found(format):
    data = encode(images(1, (1, 2, 3), labels=np.array([4])), format)
    for at in range(len(data)):
        for flip in (1, 32, 255):  # 32 makes capitals of hex digits
            with pytest.raises(DamagedError):
                decode(data[:at] + bytes([data[at] ^ flip]) + data[at + 1 :], format)
        with pytest.raises(DamagedError):
            decode(data[:at], format)
    for wrong in (data + b"\0", b"\0" + data, data + data, b""):
        with pytest.raises(DamagedError):
            decode(wrong, format)
    assert decode(data, format).number == 7


CODE = """
import os, sys, time
os.umask(int(sys.argv[1])); time.time = lambda: float(sys.argv[2]); os.getuid = lambda: int(sys.argv[1])
import hashlib
import numpy as np
from fastscore.output.store.formats import Shard, encode
order = ("labels", "samples", "ids") if sys.argv[1] == "0" else ("ids", "labels", "samples")
arrays = {"samples": np.arange(24, dtype=np.uint8).reshape(2, 2, 2, 3), "ids": np.arange(2), "labels": np.arange(2)}
if sys.argv[1] == "0":
    arrays["samples"] = np.asfortranarray(arrays["samples"])
    arrays["ids"] = arrays["ids"].astype(">i8")
for format in sys.argv[3:]:
    data = encode(Shard(1, "run", {name: arrays[name] for name in order}), format)
    print(format, hashlib.sha256(data).hexdigest())
"""


def test_bytes_depend_on_the_shard_alone(tmp_path):
    formats = [f for f in FORMATS if f != "parquet" or find_spec("pyarrow")]
    """Nor on the versions of NumPy, zlib and Python: the hashes are recorded."""
    outputs = []
    for k, env in enumerate(({"TZ": "UTC", "LANG": "C"}, {"TZ": "Asia/Tokyo", "SOURCE_DATE_EPOCH": "1", "USER": "x"})):
        env = {**os.environ, **env, "PYTHONHASHSEED": str(k)}
        command = [sys.executable, "-c", CODE, str(63 * k), str(1e9 + 1e8 * k), *formats]
        outputs.append(subprocess.run(command, env=env, capture_output=True, text=True, check=True).stdout)
    assert outputs[0] == outputs[1]
    found = dict(line.split() for line in outputs[0].splitlines())
    assert {format: found[format] for format in GOLDEN} == GOLDEN


GOLDEN = {
    "npz": "fab1853ae3da332d1cefc42546dedf6bebbfbc4a6bbf344596764e6a41af315c",
    "adm-npz": "76adab9147963451cc32a6d7d5b93bb23841cf3d0a11aa573d66c9caee403f44",
    "npy": "9adb7543bd4b13165c08c01e8abf94506afa9496c32d748325bf0ffea07a86c4",
    "tar": "1ab806782b7fd04bfccb69d9777f548437c04ed4e841d975c685189d68838e62",
}


def test_the_hash_is_that_of_names_types_shapes_and_bytes():
    shard = points(4, (2,))
    x, ids = shard.arrays["samples"], shard.arrays["ids"]
    others = [
        {"samples": x.reshape(4, 2, 1), "ids": ids},
        {"samples": x, "ids": ids, "labels": ids},
        {"samples": x, "ids": ids, "other": ids},
        {"samples": x, "ids": ids + 1},
        {"samples": -x, "ids": ids},
        {"samples": x, "ids": ids, "other": ids.view(np.uint64)},
    ]
    assert len({shard.sha256, *(Shard(0, RUN, arrays).sha256 for arrays in others)}) == 7
    assert replace(shard, number=5, run="other").sha256 == shard.sha256


IDS = np.arange(2)


@pytest.mark.parametrize(
    ("arrays", "words"),
    [
        ({"samples": np.zeros((2, 1), np.float32)}, "samples and ids"),
        ({"samples": np.zeros((3, 1), np.float32), "ids": IDS}, "samples must hold 2 entries"),
        ({"samples": np.zeros((2, 1)), "ids": IDS}, r"samples must be uint8 \[n, H, W, C\] or float32"),
        ({"samples": np.zeros((2, 1), np.uint8), "ids": IDS}, "samples must be uint8"),
        ({"samples": np.zeros((2, 1), np.float32), "ids": IDS.astype(np.int32)}, r"ids must be int64 \[2\]"),
        ({"samples": np.zeros((2, 1), np.float32), "ids": IDS, "labels": np.zeros(2)}, "labels must be int64"),
        ({"samples": np.zeros((2, 1), np.float32), "ids": IDS, "seeds": IDS}, "seeds must be uint64"),
        ({"samples": np.zeros((2, 1), np.float32), "ids": IDS, "cond": np.array([None, 1])}, "of numbers"),
        ({"samples": np.zeros((2, 1), np.float32), "ids": IDS, "cond": np.array(["a", "b"])}, "of numbers"),
        ({"samples": np.zeros((2, 1), np.float32), "ids": IDS, "x": np.zeros(2, np.longdouble)}, "of numbers"),
        ({"samples": np.zeros((2, 1), np.float32), "ids": IDS, "../x": IDS}, "array name"),
    ],
)
def test_what_is_no_shard_is_refused(arrays, words):
    with pytest.raises(ValueError, match=words):
        Shard(0, RUN, arrays)


@pytest.mark.parametrize(("number", "run", "words"), [(-1, RUN, "number -1"), (0, "", "hash"), (0, 'a"', "hash")])
def test_a_shard_has_a_number_and_a_run(number, run, words):
    with pytest.raises(ValueError, match=words):
        Shard(number, run, images().arrays)


def test_what_a_format_cannot_hold_is_refused():
    with pytest.raises(ValueError, match="adm-npz holds uint8 images"):
        encode(points(), "adm-npz")
    with pytest.raises(ValueError, match="arr_0"):
        encode(images(arr_0=np.arange(3)), "adm-npz")
    with pytest.raises(ValueError, match="an id comes twice"):
        encode(Shard(0, RUN, {"samples": np.zeros((2, 1), np.float32), "ids": np.array([5, 5])}), "tar")
    with pytest.raises(ValueError, match=r"format = 'zip' .*must be one of npz, adm-npz"):
        encode(images(), "zip")
    with pytest.raises(ValueError, match=r"format = 'zip' .*must be one of"):
        decode(b"", "zip")
    many = {f"a{k:031d}": np.arange(3) for k in range(1500)}
    with pytest.raises(ValueError, match="take fewer arrays"):
        encode(Shard(0, RUN, {**images().arrays, **many}), "npy")


def test_parquet_has_no_entries_without_values():
    for name in ("images of no rows", "one axis of none"):
        with pytest.raises(ValueError, match="take npz"):
            encode(SHARDS[name], "parquet")


def test_a_format_is_not_taken_for_another():
    with pytest.raises(DamagedError, match="'npz', not npy"):
        decode(encode(points(), "npz"), "npy")


def test_the_mark_of_a_seal_in_the_samples_misleads_nobody():
    text = note(format="npz", number=0)
    x = np.frombuffer(text + MARK, np.uint8).reshape(1, 1, -1, 1)
    shard = Shard(1, RUN, {"samples": x, "ids": np.arange(1)})
    for format in ("npz", "adm-npz", "npy", "tar"):
        assert decode(encode(shard, format), format).sha256 == shard.sha256
    assert len(text) < LARGEST
