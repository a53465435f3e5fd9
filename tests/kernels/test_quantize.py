"""Bytes of kernels/quantize.py against quantize_ref."""

from __future__ import annotations

import pytest
import torch

from fastscore.ops.quantize import quantize_ref

from .cases import normal

SHAPES = [(3, 1, 28, 28), (2, 3, 32, 32), (2, 3, 5, 5), (1, 4, 2, 2), (2, 2, 3, 6), (1, 1, 1, 1), (0, 3, 4, 4)]


@pytest.mark.thirds
@pytest.mark.parametrize("rounding", ["nearest", "floor"])
@pytest.mark.parametrize("shape", SHAPES, ids=lambda s: "x".join(map(str, s)))
def test_same_bytes(executor, shape, rounding):
    x = normal(*shape, seed=0, device=executor.device)
    got = executor.quantize.quantize_triton(x, rounding)
    assert got.is_contiguous() and torch.equal(got, quantize_ref(x, rounding))


@pytest.mark.parametrize("rounding", ["nearest", "floor"])
def test_every_level_and_its_edges(executor, rounding):
    levels = (torch.arange(-2.0, 514.0) / 2 - 127.5) / 127.5
    x = torch.cat([levels, levels.nextafter(torch.tensor(9.0)), levels.nextafter(torch.tensor(-9.0))])
    x = x.reshape(1, 3, 6, 86).to(executor.device)
    got = executor.quantize.quantize_triton(x, rounding)
    assert torch.equal(got, quantize_ref(x, rounding))
    assert len(got.unique()) == 256


@pytest.mark.parametrize("rounding", ["nearest", "floor"])
def test_no_value_is_undefined(executor, rounding):
    values = torch.tensor([torch.nan, -torch.nan, torch.inf, -torch.inf, 1e30, -1e30, 0.0, -0.0]).view(1, 1, 2, 4)
    expected = torch.tensor([0, 0, 255, 0, 255, 0, 128 - (rounding == "floor"), 128 - (rounding == "floor")])
    for x in (values, values[..., :3].expand(1, 3, 2, 3).contiguous()):  # whole words, and single bytes
        want = expected.view(1, 2, 4, 1)[:, :, : x.shape[3]].expand(1, 2, x.shape[3], x.shape[1])
        assert torch.equal(quantize_ref(x, rounding), want.to(torch.uint8))
        assert torch.equal(executor.quantize.quantize_triton(x.to(executor.device), rounding).cpu(), want)


def test_refuses(executor):
    with pytest.raises(ValueError, match="rounding = 'up' must be"):
        executor.quantize.quantize_triton(torch.zeros(1, 1, 2, 2, device=executor.device), "up")
    with pytest.raises(ValueError, match=r"expected \[N, C, H, W\]"):
        executor.quantize.quantize_triton(torch.zeros(4, 4, device=executor.device))
    with pytest.raises(ValueError, match="x is float64"):
        executor.quantize.quantize_triton(torch.zeros(1, 1, 2, 2, device=executor.device, dtype=torch.float64))
