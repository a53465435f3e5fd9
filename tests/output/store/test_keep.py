"""Shards given to a place by many: one file each, what differs is an error and kept, what is damaged is found."""

from __future__ import annotations

import multiprocessing
import os
import random

import numpy as np
import pytest

from fastscore.errors import SelfCheckError
from fastscore.output.store.folder import Folder
from fastscore.output.store.formats import Shard, decode
from fastscore.output.store.gather import read_shard
from fastscore.output.store.manifest import Manifest
from fastscore.output.store.seal import DamagedError
from fastscore.output.store.work import keep

FORMATS = ["npz", *(pytest.param(name, marks=pytest.mark.slow) for name in ("adm-npz", "npy", "tar", "parquet"))]


@pytest.fixture(autouse=True)
def no_power_fails(monkeypatch):
    """What is synced is not in question here, and takes its time."""
    monkeypatch.setattr(os, "fsync", lambda _: None)


def manifest_of(count, format="npz"):
    return Manifest(n=count * 4, ids=f"0-{count * 4 - 1}", shard=4, format=format, what={"seed": 0})


def shard_of(manifest, number, change=0):
    first, last = manifest.span(number)
    samples = np.random.default_rng(number).integers(0, 256, (last - first, 8, 8, 3), np.uint8)
    samples[0, 0, 0, 0] ^= change
    return Shard(number, manifest.hash, {"samples": samples, "ids": np.arange(first, last)})


def race(folder, manifest, different):
    """Let 8 processes keep each shard at the same moment; return how often each was told that others differ."""
    context = multiprocessing.get_context("fork")
    barrier = context.Barrier(8)

    def one(worker):
        place, refused = Folder(folder / "run"), []
        for number in range(manifest.count):
            barrier.wait(30)
            try:
                keep(place, manifest, shard_of(manifest, number, worker if different else 0))
                refused.append(0)
            except SelfCheckError:
                refused.append(1)
        (folder / str(worker)).write_bytes(bytes(refused))

    racers = [context.Process(target=one, args=(worker,)) for worker in range(8)]
    for racer in racers:
        racer.start()
    for racer in racers:
        racer.join()
    return [sum(told) for told in zip(*((folder / str(worker)).read_bytes() for worker in range(8)), strict=True)]


@pytest.mark.slow
def test_eight_workers_on_one_shard_make_one_file(tmp_path):
    manifest = manifest_of(200)
    assert race(tmp_path, manifest, different=False) == [0] * 200
    place = Folder(tmp_path / "run")
    assert {entry.name for entry in place.entries()} == {manifest.name(number) for number in range(200)}
    for number in range(200):
        assert read_shard(place, manifest, number).sha256 == shard_of(manifest, number).sha256


@pytest.mark.slow
def test_workers_that_do_not_agree_are_told_and_all_is_kept(tmp_path):
    """Each of the eight draws other bytes: seven are told so, of each of 200 shards."""
    manifest = manifest_of(200)
    assert race(tmp_path, manifest, different=True) == [7] * 200
    place, drawn = Folder(tmp_path / "run"), {number: set() for number in range(200)}
    for entry in place.entries():
        shard = decode(place.read(entry.name), "npz")
        drawn[shard.number].add(shard.sha256)
    for number in range(200):
        assert drawn[number] == {shard_of(manifest, number, change).sha256 for change in range(8)}
    assert sum(1 for _ in place.entries("shards/")) == 200


@pytest.mark.parametrize("format", FORMATS)
def test_every_byte_flipped_and_every_end_cut_off_is_found(tmp_path, format):
    """In each of 100 shards a byte, and ten ends."""
    place, manifest, chance = Folder(tmp_path), manifest_of(100, format), random.Random(0)
    for number in range(100):
        keep(place, manifest, shard_of(manifest, number))
        name = manifest.name(number)
        whole = place.read(name)
        at = chance.randrange(len(whole))
        damaged = [whole[:at] + bytes([whole[at] ^ 1 << chance.randrange(8)]) + whole[at + 1 :]]
        damaged += [whole[: chance.randrange(len(whole))] for _ in range(10)]
        for data in damaged:
            place.replace(name, data)
            with pytest.raises(DamagedError, match=r"--repair"):
                read_shard(place, manifest, number)
        place.replace(name, whole)
        assert read_shard(place, manifest, number).sha256 == shard_of(manifest, number).sha256


def test_a_whole_shard_in_the_place_of_another_is_found(tmp_path):
    place, manifest = Folder(tmp_path), manifest_of(2)
    for number in range(2):
        keep(place, manifest, shard_of(manifest, number))
    other = manifest_of(3)
    keep(Folder(tmp_path / "other"), other, shard_of(other, 0))
    place.replace(manifest.name(0), place.read(manifest.name(1)))
    place.replace(manifest.name(1), Folder(tmp_path / "other").read(other.name(0)))
    for number in range(2):
        with pytest.raises(DamagedError, match="a shard of another run"):
            read_shard(place, manifest, number)
