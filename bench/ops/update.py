"""The fused row: everything between two network evaluations, against the same arithmetic in PyTorch.

Claim: one pass over memory instead of one an operation. Two rows: "2m", DPM-Solver++(2M)'s, which reads
and writes a history slot and draws nothing, and "sde", a predictor's, which draws fresh noise.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor

from bench.common import Case, Check, Setting, op_case
from bench.ops.inputs import Inputs, dtypes, row, short, sizes

A, B, C, P, Q, C_IN, W = 0.9, -0.2, 0.3, 0.1, 0.7, 0.5, 0.25  # a contraction: the state stays finite however often
UNIT = 2.0**-24


def cases(setting: Setting) -> Iterator[Case]:
    """Yield both rows for each shape and network dtype."""
    for name, n, d in sizes(setting):
        for dtype in dtypes(setting):
            yield case(setting, f"2m {name} {short(dtype)}", n, d, dtype, noisy=False)
            yield case(setting, f"sde {name} {short(dtype)}", n, d, dtype, noisy=True)


def case(setting: Setting, name: str, n: int, d: int, dtype: torch.dtype, noisy: bool) -> Case:
    """Return the case of one row on [n, d]."""
    inputs = Inputs.of(setting, n, d, dtype, 0 if noisy else 1)
    u, noise = torch.empty_like(inputs.F), inputs.key if noisy else None
    kind = {"C": C} if noisy else {"W0": W, "PUSH": 0}
    table = row(setting, A=A, B=B, P=P, Q=Q, C_IN=C_IN, **kind)

    def ours() -> None:
        setting.ops.update(inputs.x, inputs.F, inputs.hist, table, inputs.idx, noise, out_u=u)

    def check() -> list[Check]:
        x, F = inputs.numpy(inputs.x), inputs.numpy(inputs.F)
        m = P * x + Q * F
        last = C * inputs.normal() if noisy else W * inputs.numpy(inputs.hist[0])
        # Each product and sum is rounded, the table's coefficients too: at most 4 roundings a term.
        bound = 4.0 * UNIT * (abs(A * x) + abs(B) * (abs(P * x) + abs(Q * F)) + abs(last))
        ours()
        checks = [within("x against float64", inputs.numpy(inputs.x), A * x + B * m + last, bound)]
        rounding = UNIT if dtype == torch.float32 else 2.0**-8
        expected = C_IN * inputs.numpy(inputs.x)
        checks.append(within("u against float64", inputs.numpy(u), expected, rounding * abs(expected)))
        if not noisy:
            size = 4.0 * UNIT * (abs(P * x) + abs(Q * F))
            checks.append(within("history against float64", inputs.numpy(inputs.hist[0]), m, size))
        return checks

    eager, arguments = (sde, (inputs.x, inputs.F)) if noisy else (two_m, (inputs.x, inputs.F, inputs.hist[0]))
    network, state = inputs.F.element_size(), 4
    moved = 2 * network + (2 if noisy else 4) * state  # F, u; x twice; the slot twice
    return op_case(setting, "update", name, ours, eager, arguments, check, n * d, moved)


def sde(x: Tensor, F: Tensor) -> tuple[Tensor, Tensor]:
    """Return the next state and network input, as one writes it in PyTorch."""
    x = A * x + B * (P * x + Q * F.float()) + C * torch.randn_like(x)
    return x, (C_IN * x).to(F.dtype)


def two_m(x: Tensor, F: Tensor, old: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return the next state, what to remember and the network input, as one writes it in PyTorch."""
    m = P * x + Q * F.float()
    x = A * x + B * m + W * old
    return x, m, (C_IN * x).to(F.dtype)


def within(name: str, ours: np.ndarray, expected: np.ndarray, bound: np.ndarray) -> Check:
    """Compare elementwise with a forward error bound; the check's error is in units of it."""
    return Check(name, float((abs(ours - expected) / np.maximum(bound, 1e-30)).max()), 1.0)
