from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from fastscore.kernels import abi
from fastscore.kernels.cpu import library
from fastscore.ops.backend import operators, resolve
from fastscore.ops.noise import NoiseKey
from fastscore.ops.norms import langevin_ref, sqrt, sum_of_squares
from fastscore.ops.quantize import quantize_ref
from fastscore.ops.update import KnownRow, update_ref


def table(**columns: float) -> torch.Tensor:
    row = torch.zeros(1, abi.WIDTH)
    row[0, abi.PUSH] = -1
    for name, value in columns.items():
        row[0, getattr(abi, name)] = value
    return row


def case(n: int, d: int, slots: int):
    key = NoiseKey.of(n * 1000 + d, range(n))
    x, out, *hist = (key.normal(100 + k, d) for k in range(2 + slots))
    return x, out, torch.stack(hist) if slots else torch.zeros(0, n, d)


@pytest.mark.parametrize(
    ("n", "d", "slots"), [(1, 1, 0), (3, 127, 1), (2, 128, 2), (5, 129, 3), (0, 7, 1), (4, 784, 4)]
)
def test_update_is_its_equation(n, d, slots, poisoned_empty):
    x, out, hist = case(n, d, slots)
    weights = [0.3, -0.2, 0.7, -1.1][:slots]
    row = table(A=0.9, B=-0.4, C=0.25, P=0.1, Q=1.7, C_IN=0.6, DRAW=3, PUSH=slots - 1)
    row[0, abi.W0 : abi.W0 + slots] = torch.tensor(weights)
    key, u, before, old = NoiseKey.of(5, range(n)), torch.full((n, d), math.nan), x.clone(), hist.clone()
    update_ref(x, out, hist, row, torch.zeros(n, dtype=torch.int32), key, out_u=u)
    f32 = np.float32
    m = f32(0.1) * before.numpy() + f32(1.7) * out.numpy()
    y = f32(0.9) * before.numpy() + f32(-0.4) * m
    for k, w in enumerate(weights):
        y = y + f32(w) * old[k].numpy()
    y = y + f32(0.25) * key.normal(3, d).numpy()
    assert np.array_equal(x.numpy(), y)
    assert np.array_equal(u.numpy(), f32(0.6) * y)
    for k in range(slots):
        assert np.array_equal(hist[k].numpy(), m if k == slots - 1 else old[k].numpy())


@pytest.mark.parametrize("name", ["reference", "cpp"])
def test_rows_of_samples_may_differ_in_everything(name):
    if name == "cpp" and not library.library_file():
        pytest.skip("the install had no compiler")
    update, (x, out, hist) = resolve(name, torch.device("cpu")).update, case(4, 9, 2)
    rows = torch.cat([
        table(A=0.9, B=-0.4, C=0.3, P=0.1, Q=1.7, C_IN=0.6, DRAW=3, PUSH=0, CLIP=0.5, W0=0.2),
        table(A=1.0, PUSH=-1),
        table(A=0.5, B=1.0, C=0.7, Q=0.9, C_IN=0.1, DRAW=8, PUSH=1),
    ])  # fmt: skip
    idx, key, u = torch.tensor([2, 0, 1, 0]), NoiseKey.of(5, range(4)), torch.zeros(4, 9)
    whole = x.clone(), hist.clone(), u.clone()
    update(whole[0], out, whole[1], rows, idx, key, out_u=whole[2])
    for k in range(4):
        own, at = (x[k : k + 1].clone(), hist[:, k : k + 1].clone(), u[k : k + 1].clone()), int(idx[k])
        alone = NoiseKey(key.seed, key.ids[k : k + 1])
        update_ref(
            own[0], out[k : k + 1], own[1], rows[at : at + 1], torch.zeros(1, dtype=torch.int64), alone, out_u=own[2]
        )
        for ours, theirs in zip((whole[0][k : k + 1], whole[1][:, k : k + 1], whole[2][k : k + 1]), own, strict=True):
            assert torch.equal(ours, theirs)
    assert torch.equal(whole[0][2], x[2])  # a row of A = 1 keeps x


def test_update_clips_m():
    x, out = torch.zeros(1, 3), torch.tensor([[-3.0, 0.5, 3.0]])
    update_ref(x, out, torch.zeros(0, 1, 3), table(B=1.0, Q=1.0, CLIP=1.0), torch.zeros(1, dtype=torch.int64), None)
    assert x.tolist() == [[-1.0, 0.5, 1.0]]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_update_keeps_a_float32_state_around_a_half_network(dtype):
    x, out, hist = case(2, 33, 0)
    low, u = out.to(dtype), torch.empty(2, 33, dtype=dtype)
    same = x.clone()
    update_ref(x, low, hist, table(A=0.5, B=2.0, Q=1.0, C_IN=1.0), torch.zeros(2, dtype=torch.int32), None, out_u=u)
    assert torch.equal(x, 0.5 * same + 2.0 * low.float())
    assert torch.equal(u, x.to(dtype))


def test_update_refuses_shapes_that_disagree():
    with pytest.raises(ValueError, match="expected"):
        update_ref(torch.zeros(2, 3), torch.zeros(2, 4), torch.zeros(0, 2, 3), table(), torch.zeros(2), None)


@pytest.mark.parametrize("d", [1, 2, 127, 1023, 1024, 1025, 3072, 5003])
def test_sum_of_squares_has_one_order(d):
    v = NoiseKey.of(d, range(3)).normal(0, d)
    ours = sum_of_squares(v)
    for n in range(3):
        lanes = np.zeros(1024, np.float32)
        square = v[n].numpy() * v[n].numpy()
        for start in range(0, d, 1024):
            part = square[start : start + 1024]
            lanes[: len(part)] += part
        while len(lanes) > 1:
            lanes = lanes[: len(lanes) // 2] + lanes[len(lanes) // 2 :]
        assert ours[n].item() == lanes[0]
        exact = float((v[n].double() ** 2).sum())
        assert ours[n].item() == pytest.approx(exact, rel=2**-24 * (10 + -(-d // 1024)))


def test_sqrt_is_correctly_rounded():
    v = torch.rand(100_000, generator=torch.Generator().manual_seed(0)) * 40
    assert np.array_equal(sqrt(v).numpy(), np.sqrt(v.numpy()))


@pytest.mark.parametrize("norm", ["sample", "expected", "batch", "tutorial"])
def test_langevin_step(norm):
    n, d = 4, 50
    x, out, _ = case(n, d, 0)
    out[0] = 0.0  # a vanishing score would ask for an infinite step
    key, scratch = NoiseKey.of(1, range(n)), torch.zeros(n, abi.WIDTH)
    valid = torch.tensor([1.0, 1.0, 1.0, 0.0])
    row = table(A=1.0, P=0.0, Q=1.0, DRAW=2, SNR=0.05, CAP=0.5)
    langevin_ref(x, out, row, torch.zeros(n, dtype=torch.int32), key, scratch, norm, valid)
    s, z = out.double().norm(dim=1), key.normal(2, d).double().norm(dim=1)
    if norm in ("batch", "tutorial"):
        s, z = s[:3].mean().expand(n), z[:3].mean().expand(n)
    if norm in ("expected", "tutorial"):
        z = torch.full((n,), d**0.5, dtype=torch.float64)
    step = (0.05 * (z / s) ** 2).clamp_max(0.5)
    assert torch.allclose(scratch[:, abi.B].double(), step, rtol=1e-5)
    assert torch.allclose(scratch[:, abi.C].double(), (2 * step).sqrt(), rtol=1e-5)
    assert (scratch[:, abi.A] == 1.0).all()


def test_quantize_rounds_as_named():
    x = torch.tensor([-1.0, -0.999, 0.0, 0.5, 1.0, 9.0, -9.0]).reshape(1, 1, 1, 7)
    assert quantize_ref(x).flatten().tolist() == [0, 0, 128, 191, 255, 255, 0]
    assert quantize_ref(x, "floor").flatten().tolist() == [0, 0, 127, 191, 255, 255, 0]
    assert quantize_ref(torch.zeros(2, 3, 4, 5)).shape == (2, 4, 5, 3)
    levels = torch.arange(256.0) / 127.5 - 1.0
    assert torch.equal(quantize_ref(levels.reshape(1, 1, 1, -1)).flatten(), torch.arange(256, dtype=torch.uint8))
    with pytest.raises(ValueError, match="rounding = 'up'"):
        quantize_ref(x, "up")


def test_seeds_of_samples_through_the_rows_and_the_operators():
    """A mixed batch is the samples of batches of one seed, to the bit, and the operators take such seeds."""
    n, d = 5, 6
    x, out, hist = case(n, d, 1)
    key = NoiseKey.of([4, 2**64 - 1, 4, 0, 2**40], [3, 3, 8, 9, 2**40])
    rows, idx = (
        table(A=0.9, B=-0.4, C=0.3, Q=1.1, C_IN=0.6, DRAW=3, SNR=0.1, CAP=1.0),
        torch.zeros(n, dtype=torch.int64),
    )
    y, mask = out.flip(0).contiguous(), out > 0
    whole, u, own = x.clone(), torch.empty(n, d), torch.empty(n, abi.WIDTH)
    update_ref(whole, out, hist, rows, idx, key, known=KnownRow(y, mask, rows, idx, key), out_u=u)
    langevin_ref(x, out, rows, idx, key, own, "sample", torch.ones(n))
    for k in range(n):
        at, lone, alone = slice(k, k + 1), x[k : k + 1].clone(), torch.empty(1, abi.WIDTH)
        one = NoiseKey.of(int(key.seed[k]) % 2**64, key.ids[at])
        update_ref(lone, out[at], hist[:, at], rows, idx[at], one, known=KnownRow(y[at], mask[at], rows, idx[at], one))
        langevin_ref(x[at], out[at], rows, idx[at], one, alone, "sample", torch.ones(1))
        assert torch.equal(lone, whole[at]) and torch.equal(alone, own[at])

    ops, again, scratch = operators("triton"), x.clone(), torch.empty(n, abi.WIDTH)
    ops.update(again, out, hist, rows, idx, key, known=KnownRow(y, mask, rows, idx, key), out_u=torch.empty(n, d))
    ops.langevin(x, out, rows, idx, key, scratch, "sample", torch.ones(n))
    assert torch.equal(again, whole) and torch.equal(scratch, own)
    quick = ("test_schema", "test_faketensor")  # the rest does not look at the seeds
    checked = (x.clone(), out, hist.clone(), rows, idx, key.seed, key.ids, u, None, y, mask, rows)
    torch.library.opcheck(torch.ops.fastscore.update.default, checked, test_utils=quick)
    checked = (x, out, rows, idx, key.seed, key.ids, scratch, "sample", torch.ones(n))
    torch.library.opcheck(torch.ops.fastscore.langevin.default, checked, test_utils=quick)
