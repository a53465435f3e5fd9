"""Standard normals: the row that every sampler starts with, x <- c z, against torch.randn.

Claim: reproducible, addressable noise costs no more than a generator's. The normals are drawn as the
engine draws them, by the fused row with a = 0, so that every backend is measured on the same call.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator

import torch
from torch import Tensor

from bench.common import Case, Check, Setting, op_case
from bench.ops.inputs import DRAW, Inputs, row, sizes
from fastscore.engine.selfcheck import NOISE_SHA256
from fastscore.ops.noise import NoiseKey


def cases(setting: Setting) -> Iterator[Case]:
    """Yield one case a shape."""
    for name, n, d in sizes(setting):
        yield case(setting, name, n, d)


def case(setting: Setting, name: str, n: int, d: int) -> Case:
    """Return the case of [n, d] normals; they must at least be written, 4 bytes each."""
    inputs, table = Inputs.of(setting, n, d, torch.float32, 0), row(setting, C=1.0)

    def ours() -> None:
        setting.ops.update(inputs.x, None, inputs.hist, table, inputs.idx, inputs.key)

    def eager(x: Tensor) -> Tensor:
        return torch.randn_like(x)

    def check() -> list[Check]:
        ours()
        error = abs(inputs.numpy(inputs.x) - inputs.normal(DRAW)).max()
        return [Check("equals the known values of noise v1", float(not gives_known_values(setting)), 0.0),
                Check("equals the reference to the bit", float(error), 0.0)]  # fmt: skip

    return op_case(setting, "noise", name, ours, eager, (inputs.x,), check, n * d, 4)


def gives_known_values(setting: Setting) -> bool:
    """Draw the golden normals through the backend's row and compare their digest."""
    key = NoiseKey.of(2**63 + 5, range(7), setting.device)
    x = torch.zeros(7, 777, device=setting.device)
    idx = torch.zeros(7, dtype=torch.int64, device=setting.device)
    setting.ops.update(x, None, x.new_zeros(0, 7, 777), row(setting, C=1.0), idx, key)
    return hashlib.sha256(x.cpu().numpy().tobytes()).hexdigest() == NOISE_SHA256
