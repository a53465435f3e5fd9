"""The fused row of kernels/update.py against update_ref, to the bit."""

from __future__ import annotations

import pytest
import torch

from fastscore.kernels import abi
from fastscore.ops.update import update_ref

from .cases import Case, as_left, clone, differing, inputs

BF16, F16 = torch.bfloat16, torch.float16
# Shapes: one element, 2-D points, ragged blocks, images, a prime, no samples; then every pair of options.
CASES = [
    Case(1),
    Case(2, n=7),
    Case(3, slots=1, own=True),
    Case(127, network=BF16, u=BF16),
    Case(128, mixed=True, clip=1.0),
    Case(129, slots=2, u=None),
    Case(784, slots=3, mixed=True, noisy=False),
    Case(784, network=BF16, u=BF16),
    Case(3072, own=True, clip=0.5),
    Case(1009, n=2, slots=4, mean=True, own=True, clip=1.0),
    Case(128, n=0),
    Case(128, network=None, u=F16),
    Case(48, network=F16, u=F16, known=True, mixed=True),
    Case(48, network=F16, known=True, mean=True, noisy=False, slots=2, clip=0.5),
    Case(1024, n=2, known=True, mean=True, own=True, slots=1, u=BF16),
    Case(16, n=7, network=None, mean=True, slots=1, u=None),
    # channels last: of both outputs or one, of many pixels and few, in tiles of one channel, of several and of samples
    Case(3072, n=2, network=BF16, u=BF16, last=(3, 1)),
    Case(1029, n=2, mixed=True, slots=1, last=(3, 7)),
    Case(24, n=7, network=F16, mixed=True, noisy=False, last=(1, 8)),
    Case(6, n=5, own=True, clip=0.5, last=(2, 1)),
]


@pytest.mark.thirds
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.id)
def test_same_bits(executor, case):
    arguments = inputs(case, executor.device)
    expected = clone(arguments)
    update_ref(*expected[0], **expected[1])
    before = clone(arguments)
    executor.update.update_triton(*arguments[0], **arguments[1])

    outputs = {
        "x": (0, arguments[0]),
        "hist": (2, arguments[0]),
        "u": ("out_u", arguments[1]),
        "mean": ("out_mean", arguments[1]),
    }
    for name, (key, got) in outputs.items():
        want = expected[0 if isinstance(key, int) else 1][key]
        if want is not None:
            assert differing(got[key], want) == 0, name
            assert torch.isfinite(want).all(), name
    if case.n:
        assert not torch.equal(expected[0][0], before[0][0])
    inputs_only = [(arguments[0][k], before[0][k]) for k in (1, 3, 4)] + [(arguments[1]["F2"], before[1]["F2"])]
    assert all(a is None or torch.equal(a, b) for a, b in inputs_only)


@pytest.mark.parametrize("row", range(6))
def test_pushes_one_slot(executor, row):
    case = Case(64, n=2, slots=3, noisy=False, u=None)
    arguments, options = inputs(case, executor.device, row=row)
    before = arguments[2].clone()
    executor.update.update_triton(*arguments, **options)
    changed = (arguments[2] != before).flatten(1).any(1)
    push = int(arguments[3][row, abi.PUSH])
    assert changed.tolist() == [k == push for k in range(3)]


def test_nan_survives_the_clip(executor):
    arguments, options = inputs(Case(8, n=2, clip=1.0), executor.device)
    arguments[1][1, 3] = torch.nan
    executor.update.update_triton(*arguments, **options)
    assert torch.isnan(arguments[0]).nonzero().tolist() == [[1, 3]]


def test_a_sample_does_not_see_its_batch(executor):
    case = Case(129, n=7, slots=2, network=BF16)
    whole, options = inputs(case, executor.device)
    part = [whole[0][3:5].clone(), whole[1][3:5], whole[2][:, 3:5].clone(), whole[3], whole[4][3:5]]
    noise = type(whole[5])(whole[5].seed, whole[5].ids[3:5])
    u = options["out_u"][3:5].clone()
    executor.update.update_triton(*whole, **options)
    executor.update.update_triton(*part, noise, out_u=u)
    assert differing(whole[0][3:5], part[0]) == 0
    assert differing(options["out_u"][3:5], u) == 0


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({0: lambda x: x.double()}, r"x is float64 \[3, 8\]"),
        ({0: lambda x: x.flatten()}, r"expected \[N, D\]"),
        ({1: lambda F: F[:, :7]}, r"F is float32 \[3, 7\]"),
        ({1: lambda F: F.T.contiguous().T}, "F has strides"),
        ({1: lambda F: F.view(3, 2, 2, 2)[:2]}, r"F is float32 \[2, 2, 2, 2\]"),
        ({1: lambda F: F.view(3, 2, 2, 2).transpose(2, 3)}, "F has strides"),
        ({1: lambda F: F.view(3, 2, 4).mT.contiguous().mT}, r"F is float32 \[3, 2, 4\]"),
        ({"F2": lambda F: as_left(torch.zeros(3, 18), 9)}, "F2 has 9 channels that lie last; at most 8"),
        ({2: lambda h: h.new_zeros(5, 3, 8)}, "hist has 5 slots"),
        ({3: lambda t: t[:, :15]}, "table is"),
        ({4: lambda i: i.float()}, "idx is torch.float32"),
        ({1: lambda F: None, "F2": lambda F: F}, "F2 without F"),
    ],
    ids=lambda v: v if isinstance(v, str) else None,
)
def test_refuses(executor, change, message):
    arguments, options = inputs(Case(8, mixed=True), executor.device)
    for key, act in change.items():
        target = arguments if isinstance(key, int) else options
        target[key] = act(target[key])
    with pytest.raises(ValueError, match=message):
        executor.update.update_triton(*arguments, **options)
