"""Langevin rows of kernels/norms.py against langevin_ref, to the bit."""

from __future__ import annotations

import pytest
import torch

from fastscore.kernels import abi
from fastscore.ops.noise import NoiseKey
from fastscore.ops.norms import langevin_ref

from .cases import ROWS, SEED, Case, differing, inputs, normal, table

BF16, F16 = torch.bfloat16, torch.float16


def slow(*case: object) -> object:
    return pytest.param(*case, marks=pytest.mark.slow)


CASES = [
    (Case(1), "sample"),
    (Case(2, n=2), "batch"),
    slow(Case(2, n=7), "batch"),
    (Case(3, mixed=True), "expected"),
    (Case(1, n=2), "expected"),
    (Case(127, network=BF16), "sample"),
    (Case(128, n=0), "sample"),
    (Case(129, n=2, own=True, mixed=True), "batch"),
    slow(Case(784, network=F16), "expected"),
    (Case(12, n=3), "tutorial"),
    slow(Case(1009, n=2, network=BF16), "batch"),
    (Case(2048, n=2, network=F16, mixed=True), "sample"),
    slow(Case(3072, own=True), "sample"),
    (Case(48, n=7, network=BF16, mixed=True, last=(3, 4)), "sample"),
    # Long enough for several programs a sample: a multiple of the lanes, and not.
    slow(Case(8192, n=1), "sample"),
    slow(Case(9001, n=2, own=True, mixed=True), "batch"),
]


@pytest.mark.thirds
@pytest.mark.parametrize(("case", "norm"), CASES, ids=lambda v: v.id if isinstance(v, Case) else v)
def test_same_bits(executor, case, norm):
    (x, F, _, table, idx, noise), options = inputs(case, executor.device)
    valid = torch.ones(case.n, device=executor.device)
    valid[1:2] = 0.0
    want, got = (torch.full((case.n, abi.WIDTH), torch.nan, device=executor.device) for _ in range(2))
    langevin_ref(x, F, table, idx, noise, want, norm, valid, F2=options["F2"])
    executor.norms.langevin_triton(x, F, table, idx, noise, got, norm, valid, F2=options["F2"])
    assert differing(got, want) == 0
    assert (want[:, abi.B] > 0).all() and torch.isfinite(want[:, : abi.CAP]).all()
    if norm in ("batch", "tutorial"):
        assert len(want[:, abi.B].unique()) == 1


def test_cap(executor):
    (x, F, _, table, idx, noise), _ = inputs(Case(16), executor.device)
    table[:, abi.CAP] = 1e-3
    scratch = torch.full((3, abi.WIDTH), torch.nan, device=executor.device)
    executor.norms.langevin_triton(x, F, table, idx, noise, scratch, "sample", torch.ones(3, device=executor.device))
    assert (scratch[:, abi.B] == torch.tensor(1e-3)).all()


def test_refuses(executor):
    (x, F, _, table, idx, noise), _ = inputs(Case(16), executor.device)
    scratch, valid = table[:3].clone(), torch.ones(3, device=executor.device)
    with pytest.raises(ValueError, match="norm = 'max' must be one of"):
        executor.norms.langevin_triton(x, F, table, idx, noise, scratch, "max", valid)
    with pytest.raises(ValueError, match=r"scratch is float32 \[3, 12\]"):
        executor.norms.langevin_triton(x, F, table, idx, noise, scratch[:, :12], "sample", valid)


@pytest.mark.parametrize(
    ("case", "norm"),
    [
        (Case(1025, n=2, network=BF16), "batch"),
        slow(Case(2052, n=3, mixed=True, last=(3, 1)), "sample"),
        slow(Case(2048, n=3, network=F16, own=True, last=(4, 1)), "tutorial"),
        slow(Case(3000, n=1), "expected"),
    ],
    ids=lambda v: v.id if isinstance(v, Case) else v,
)
def test_several_programs_a_sample(executor, case, norm, monkeypatch):
    """Of samples that are shorter than those that have them."""
    monkeypatch.setattr(executor.norms, "LONG", case.d)
    test_same_bits(executor, case, norm)


def test_programs_walk_over_more_samples_than_they_hold(executor, monkeypatch):
    monkeypatch.setattr(executor.norms, "PROGRAMS", 2)
    n = 2 * 64 + 3 if executor.name == "interpreter" else 64 + 65
    device, key = executor.device, NoiseKey.of(SEED, range(n), executor.device)
    x, F = (normal(n, 2, seed=k, device=device) for k in (2, 3))
    idx, valid = torch.arange(n, device=device) % ROWS, torch.ones(n, device=device)
    for norm in ("sample", "batch"):
        want, got = (torch.full((n, abi.WIDTH), torch.nan, device=device) for _ in range(2))
        langevin_ref(x, F, table(device=device), idx, key, want, norm, valid)
        executor.norms.langevin_triton(x, F, table(device=device), idx, key, got, norm, valid)
        assert differing(got, want) == 0
