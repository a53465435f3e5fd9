"""The Langevin step that each sample's score and noise set, against the same in PyTorch.

Claim: two norms a sample without storing the noise: x and F are read once and sixteen numbers a sample
are written. The baseline draws its noise with torch.randn_like, as published code does.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor

from bench.common import OURS, Case, Check, Setting, op_case
from bench.ops.inputs import Inputs, dtypes, row, short, sizes
from fastscore.kernels import abi

P, Q, SNR = 0.0, -1.3, 2 * 0.16**2


def cases(setting: Setting) -> Iterator[Case]:
    """Yield one case a shape and network dtype."""
    for name, n, d in sizes(setting):
        for dtype in dtypes(setting):
            lanes = n * abi.LANES * 4 * 2
            if setting.ops.name == "reference" and lanes > 2**31:
                reason = f"the reference pads each sample to {abi.LANES} lanes, {lanes / 2**30:.0f} GiB here"
                yield Case("norms", name, {}, [], lambda: [], (n * d, "element"), skipped={OURS: reason})
            else:
                yield case(setting, f"{name} {short(dtype)}", n, d, dtype)


def case(setting: Setting, name: str, n: int, d: int, dtype: torch.dtype) -> Case:
    """Return the case of [n, d]; x and F are read."""
    inputs, table = Inputs.of(setting, n, d, dtype, 0), row(setting, A=1.0, P=P, Q=Q, SNR=SNR, CAP=1e9)
    scratch, valid = torch.zeros(n, abi.WIDTH, device=setting.device), torch.ones(n, device=setting.device)

    def ours() -> None:
        setting.ops.langevin(inputs.x, inputs.F, table, inputs.idx, inputs.key, scratch, "sample", valid)

    def check() -> list[Check]:
        ours()
        m, z = P * inputs.numpy(inputs.x) + Q * inputs.numpy(inputs.F), inputs.normal()
        step = SNR * (z**2).sum(1) / (m**2).sum(1)
        rounds = d / abi.LANES + 20  # roundings on the way to a sum, and after it
        return [
            relative("step against float64", inputs.numpy(scratch)[:, abi.B], step, 2 * rounds),
            relative("noise weight against float64", inputs.numpy(scratch)[:, abi.C], (2 * step) ** 0.5, 2 * rounds),
        ]

    return op_case(
        setting, "norms", name, ours, langevin, (inputs.x, inputs.F), check, n * d, 4 + inputs.F.element_size()
    )


def langevin(x: Tensor, F: Tensor) -> tuple[Tensor, Tensor]:
    """Return step and noise weight of each sample, as one writes it in PyTorch."""
    score, z = P * x + Q * F.float(), torch.randn_like(x)
    step = SNR * (z.norm(dim=1) / score.norm(dim=1)) ** 2
    return step, (2 * step).sqrt()


def relative(name: str, ours: np.ndarray, expected: np.ndarray, roundings: float) -> Check:
    """Compare relative to the expected values, in units of float32 rounding."""
    return Check(name, float((abs(ours - expected) / expected).max()) * 2.0**24, roundings)
