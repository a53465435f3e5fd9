"""Per-sample norms and the Langevin step they set, in PyTorch."""

from __future__ import annotations

import torch
from torch import Tensor

from fastscore.kernels import abi
from fastscore.ops.noise import Noise
from fastscore.ops.update import network_value


def langevin_ref(
    x: Tensor,
    F: Tensor,
    table: Tensor,
    idx: Tensor,
    noise: Noise,
    scratch: Tensor,
    norm: str,
    valid: Tensor,
    *,
    F2: Tensor | None = None,
    dimensions: Tensor | None = None,
) -> None:
    r"""Write each sample's own row, with the step that the norms of its score and noise set.

        step = min(snr |z|^2 / |m|^2, cap),   b = step,   c = sqrt(2 step),   m = p x + q F + q2 F2

    Args:
        x, F, table, idx, noise, F2: as for update_ref.
        scratch: receives the rows, [N, abi.WIDTH]; update_ref then reads them.
        norm: "sample"; "expected" takes |z|^2 = D; "batch" replaces both norms by their mean over
            the valid samples; "tutorial" takes |z|^2 = D and that mean of |m|.
        valid: 1 for samples that count in a batch mean, 0 for padding, [N] like x.
        dimensions: of the subspace that each sample lies in, in place of D, [N] like x; m and z lie there too.

    Source: Song et al. 2021, algorithms 4 and 5.
    """
    row = table.index_select(0, idx)
    m = network_value(row, x, F.flatten(1), None if F2 is None else F2.flatten(1))
    z = noise.normal(row[:, abi.DRAW], x.shape[1], x.dtype)
    mm, zz = sum_of_squares(m), sum_of_squares(z)
    if norm in ("batch", "tutorial"):
        count = ordered_sum(valid[None])
        mm = (ordered_sum((sqrt(mm) * valid)[None]) / count).square().expand_as(mm)
        zz = (ordered_sum((sqrt(zz) * valid)[None]) / count).square().expand_as(zz)
    if norm in ("expected", "tutorial"):
        zz = torch.full_like(zz, float(x.shape[1])) if dimensions is None else dimensions
    step = torch.minimum(row[:, abi.SNR] * (zz / mm), row[:, abi.CAP])
    scratch.copy_(row)
    scratch[:, abi.B] = step
    scratch[:, abi.C] = sqrt(step * 2.0)


def sum_of_squares(v: Tensor) -> Tensor:
    """Return |v|^2 of each sample, [N], in one fixed order of float32 additions."""
    return ordered_sum(v * v)


def dot(v: Tensor, w: Tensor) -> Tensor:
    """Return v . w of each sample, [N], in the same order."""
    return ordered_sum(v * w)


def ordered_sum(v: Tensor) -> Tensor:
    """Return the sum of each line of v, [N]: zeros at its end change no bit of it.

    Lane j of 1024 adds elements j, j + 1024, j + 2048, ... one after the other; then the upper half
    of the lanes is added to the lower half until one is left. Zeros pad the last lanes; terms are not
    negative, so lanes that hold nothing but zeros may be left out.
    """
    count = min(abi.LANES, 1 << max(v.shape[1] - 1, 0).bit_length())
    terms = torch.nn.functional.pad(v, (0, max(count - v.shape[1], -v.shape[1] % count))).unflatten(1, (-1, count))
    lanes = terms[:, 0]
    for k in range(1, terms.shape[1]):
        lanes = lanes + terms[:, k]
    while lanes.shape[1] > 1:
        half = lanes.shape[1] // 2
        lanes = lanes[:, :half] + lanes[:, half:]
    return lanes[:, 0]


def sqrt(v: Tensor) -> Tensor:
    """Return the correctly rounded square root; torch.sqrt of a float32 CPU tensor is not."""
    return v.to(torch.float64).sqrt().to(v.dtype)
