"""Samples in an array by threads: each where its id stands, none lost, few waiting."""

from __future__ import annotations

import threading

import numpy as np
import pytest
import torch
from PIL import Image

from fastscore.output.images import THREADS
from fastscore.output.pictures import beside
from fastscore.output.store.formats import Shard
from fastscore.output.writer import Writer


def test_a_writer_puts_samples_where_their_ids_stand():
    ids, x = [7, 3, 1007, 9], torch.arange(16, dtype=torch.uint8).reshape(4, 2, 2, 1)
    samples = np.zeros((4, 2, 2, 1), np.uint8)
    with Writer(samples, ids) as writer:
        for part in ([2, 0], [3], [1]):
            writer.put(torch.tensor([ids[k] for k in part]), x[part])
        writer.finish()
    assert np.array_equal(samples, x.numpy())


def test_images_are_files_by_their_ids(tmp_path):
    x = np.arange(12, dtype=np.uint8).reshape(3, 2, 2, 1)
    beside(tmp_path, png=True, subdirs=True)(Shard(0, "run", {"samples": x, "ids": np.array([7, 1007, 9])}))
    names = sorted(str(p.relative_to(tmp_path)) for p in tmp_path.rglob("*") if p.is_file())
    assert names == ["png/000000/000007.png", "png/000000/000009.png", "png/001000/001007.png"]
    with Image.open(tmp_path / "png/001000/001007.png") as read:
        assert np.array_equal(np.asarray(read), x[1, :, :, 0])


def test_an_error_of_a_thread_is_raised():
    def convert(x):
        raise OSError("no such device")

    with pytest.raises(OSError, match="no such device"), Writer(np.zeros((1000, 1)), range(1000), convert) as writer:
        for k in range(1000):
            writer.put(torch.tensor([k]), torch.zeros(1, 1))
    assert k < 1000 - 1


def test_few_batches_wait_for_a_thread():
    """The sampler is held up rather than memory filled."""
    gate, samples = threading.Event(), np.full((10 * THREADS, 1), -1.0, np.float32)

    def convert(x):
        gate.wait()
        return x

    def fill(writer):
        for k in range(10 * THREADS):
            writer.put(torch.tensor([k]), torch.full((1, 1), float(k)))

    with Writer(samples, range(10 * THREADS), convert) as writer:
        filler = threading.Thread(target=fill, args=(writer,))
        filler.start()
        filler.join(0.3)
        held = filler.is_alive()
        gate.set()
        filler.join()
        writer.finish()
    assert held and np.array_equal(samples[:, 0], np.arange(10 * THREADS))
