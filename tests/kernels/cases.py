"""Inputs of the kernel tests."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from fastscore.kernels import abi
from fastscore.ops.noise import NoiseKey
from fastscore.ops.update import KnownRow

IDS = (0, 5, 1 << 40, (1 << 63) - 1, 77, 78, 3)
SEED = 0x9234567890ABCDEF
ROWS = 8


@dataclass(frozen=True)
class Case:
    """A row to run; its ``id`` names it in test reports."""

    d: int
    n: int = 3
    network: torch.dtype | None = torch.float32
    mixed: bool = False
    slots: int = 0
    noisy: bool = True
    known: bool = False
    mean: bool = False
    u: torch.dtype | None = torch.float32
    clip: float = 0.0
    own: bool = False  # every sample reads its own row
    last: tuple[int, int] = (1, 1)  # channels of F and F2 that lie last

    @property
    def id(self) -> str:
        name = {torch.float32: "f32", torch.bfloat16: "bf16", torch.float16: "f16", None: "none"}
        flags = [flag for flag in ("mixed", "noisy", "known", "mean", "own") if getattr(self, flag)]
        clip = [f"clip{self.clip:g}"] if self.clip else []
        clip += ["last{}:{}".format(*self.last)] if self.last != (1, 1) else []
        return "-".join(
            [f"{self.n}x{self.d}", f"F:{name[self.network]}", f"u:{name[self.u]}", f"h{self.slots}", *flags, *clip]
        )


def normal(*shape: int, seed: int, device: str = "cpu") -> Tensor:
    # Generated on the CPU: the same inputs whatever executes.
    return torch.empty(shape).normal_(generator=torch.Generator().manual_seed(seed)).to(device)


def table(clip: float = 0.0, device: str = "cpu") -> Tensor:
    """Rows with coefficients of all sizes; the pushed slot varies, draws are numbered."""
    rows = normal(ROWS, abi.WIDTH, seed=1)
    rows[:, abi.PUSH] = torch.tensor([0.0, 1, 2, 3, -1, 0, 1, 2])
    rows[:, abi.DRAW] = torch.arange(ROWS)
    rows[:, abi.CLIP] = clip
    rows[:, abi.SNR], rows[:, abi.CAP] = 0.16, torch.inf
    return rows.to(device)


def inputs(case: Case, device: str, *, row: int = 2) -> tuple[list, dict]:
    """Return (positional, keyword) arguments of update_ref; outputs are poisoned with NaN."""
    n, d = case.n, case.d
    noise = NoiseKey.of(SEED, IDS[:n], device)
    rows = table(case.clip, device)
    idx = torch.tensor([row], dtype=torch.int32, device=device).expand(n)
    if case.own:
        idx = torch.arange(n, device=device) % ROWS
    F, F2 = (None if case.network is None else normal(n, d, seed=k, device=device).to(case.network) for k in (3, 4))
    F, F2 = (as_left(v, channels) for v, channels in zip((F, F2), case.last, strict=True))
    known = None
    if case.known:
        mask = normal(n, d, seed=6, device=device) > 0
        known = KnownRow(normal(n, d, seed=5, device=device), mask, table(0.0, device), idx.flip(0).contiguous(), noise)
    poison = torch.full((n, d), torch.nan, device=device)
    return [
        normal(n, d, seed=2, device=device), F, normal(case.slots, n, d, seed=7, device=device), rows, idx,
        noise if case.noisy else None,
    ], {
        "F2": F2 if case.mixed else None,
        "known": known,
        "out_u": None if case.u is None else poison.to(case.u),
        "out_mean": poison.clone() if case.mean else None,
    }  # fmt: skip


def as_left(F: Tensor | None, channels: int) -> Tensor | None:
    """Return an output [N, D] as a network leaves it whose so many channels lie last, [N, C, 1, pixels]."""
    if F is None or channels == 1:
        return F
    return F.view(len(F), channels, 1, F.shape[1] // channels).contiguous(memory_format=torch.channels_last)


def clone(arguments: tuple[list, dict]) -> tuple[list, dict]:
    def copy(v: object) -> object:
        return v.clone() if isinstance(v, Tensor) and 0 not in v.stride() else v

    return [copy(v) for v in arguments[0]], {k: copy(v) for k, v in arguments[1].items()}


def differing(a: Tensor, b: Tensor) -> int:
    """Number of elements whose bits differ."""
    size = {1: torch.uint8, 2: torch.int16, 4: torch.int32}[a.element_size()]
    return int((a.contiguous().view(size) != b.contiguous().view(size)).sum())
