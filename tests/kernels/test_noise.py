"""Words, uniforms and normals of kernels/noise.py against fastscore/ops/noise.py, to the bit."""

from __future__ import annotations

import pytest
import torch

from fastscore.ops.noise import LABEL_DRAW, NoiseKey

from .cases import IDS, SEED, differing

SHAPES = [1, 2, 3, 127, 128, 129, 1009, 2048, *(pytest.param(d, marks=pytest.mark.slow) for d in (784, 3072))]


def words_of(key: NoiseKey, draw: int, d: int) -> torch.Tensor:
    words = torch.stack(key.words(draw, (d + 3) // 4), dim=-1).flatten(1)[:, :d]
    return torch.where(words >= 1 << 31, words - (1 << 32), words).to(torch.int32)


@pytest.mark.thirds
@pytest.mark.parametrize("d", SHAPES)
def test_normals(executor, d):
    key = NoiseKey.of(SEED, IDS, executor.device)
    z = executor.noise.normal_triton(key, 3, d)
    assert differing(z, key.normal(3, d)) == 0
    assert len(z.unique()) > 0.999 * z.numel()


@pytest.mark.thirds
@pytest.mark.parametrize("draw", [0, 1, (1 << 24) - 1, LABEL_DRAW])
def test_words(executor, draw):
    key = NoiseKey.of(SEED, IDS, executor.device)
    assert torch.equal(executor.noise.words_triton(key, draw, 37), words_of(key, draw, 37))


def test_uniforms(executor):
    key = NoiseKey.of(1, range(40), executor.device)
    u = executor.noise.uniform_triton(key, 2, 50)
    assert differing(u, key.uniform(2, 50)) == 0
    assert 0 < u.min() < 0.01 and 0.99 < u.max() <= 1


def test_known_answer(executor):
    # Random123: counter and key of zeros.
    words = executor.noise.words_triton(NoiseKey.of(0, [0], executor.device), 0, 4)
    assert [int(w) & 0xFFFFFFFF for w in words[0]] == [0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8]


def test_no_samples(executor):
    assert executor.noise.normal_triton(NoiseKey.of(1, [], executor.device), 0, 5).shape == (0, 5)
