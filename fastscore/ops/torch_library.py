"""The kernels as torch operators, so that they trace, compile and export.

On CUDA an operator launches its Triton kernel, on the CPU it runs the reference, on fake tensors it
only has a shape. The functions below take what the loop passes to the references.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from fastscore.errors import unknown
from fastscore.ops.noise import Noise, NoiseKey
from fastscore.ops.norms import langevin_ref
from fastscore.ops.quantize import ROUNDINGS, quantize_ref
from fastscore.ops.update import KnownRow, step_ref, update_ref

_LIBRARY = torch.library.Library("fastscore", "DEF")
_LIBRARY.define(
    "update(Tensor(a!) x, Tensor? F, Tensor(b!) hist, Tensor table, Tensor idx, Tensor? seed, Tensor? ids, "
    "Tensor(c!)? u, Tensor? F2=None, Tensor? y=None, Tensor? mask=None, Tensor? known_table=None, "
    "bool noisy=True) -> ()"
)
_LIBRARY.define(
    "langevin(Tensor x, Tensor F, Tensor table, Tensor idx, Tensor seed, Tensor ids, Tensor(a!) scratch, str norm, "
    "Tensor valid, Tensor? F2=None) -> ()"
)
_LIBRARY.define("step(Tensor(a!) row, Tensor told, Tensor(b!) now) -> ()")
_LIBRARY.define("quantize(Tensor x, str rounding) -> Tensor")


def update(
    x: Tensor,
    F: Tensor | None,
    hist: Tensor,
    table: Tensor,
    idx: Tensor,
    noise: Noise | None,
    *,
    F2: Tensor | None = None,
    known: KnownRow | None = None,
    out_u: Tensor | None = None,
) -> None:
    """Advance the state by one row; see update_ref. A known part has the row's own ``idx`` and ``noise``."""
    key = noise if known is None else known.noise
    seed, ids = (None, None) if key is None else _key(key)
    part = (None, None, None) if known is None else (known.y, known.mask, known.table)
    torch.ops.fastscore.update(x, F, hist, table, idx, seed, ids, out_u, F2, *part, noise is not None)


def langevin(
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
) -> None:
    """Write each sample's Langevin row; see langevin_ref."""
    torch.ops.fastscore.langevin(x, F, table, idx, *_key(noise), scratch, norm, valid, F2)


def step(row: Tensor, told: Tensor, now: Tensor) -> None:
    """Move the row counter on; see step_ref."""
    torch.ops.fastscore.step(row, told, now)


def quantize(x: Tensor, rounding: str = "nearest") -> Tensor:
    """Turn images into bytes; see quantize_ref."""
    if rounding not in ROUNDINGS:
        raise unknown("rounding", rounding, ROUNDINGS)
    return torch.ops.fastscore.quantize(x, rounding)


def _key(noise: Noise) -> tuple[Tensor, Tensor]:
    if not isinstance(noise, NoiseKey):
        raise ValueError("kernels generate their noise; recorded noise needs backend='reference'")
    return noise.seed, noise.ids


def _noise(seed: Tensor | None, ids: Tensor | None) -> NoiseKey | None:
    return None if seed is None or ids is None else NoiseKey(seed, ids)


def _update_on(run: Any) -> Any:
    def update(
        x: Tensor,
        F: Any,
        hist: Tensor,
        table: Tensor,
        idx: Tensor,
        seed: Any,
        ids: Any,
        u: Tensor | None,
        F2: Tensor | None = None,
        y: Any = None,
        mask: Any = None,
        known_table: Any = None,
        noisy: bool = True,
    ) -> None:
        key = _noise(seed, ids)
        known = None if y is None or key is None else KnownRow(y, mask, known_table, idx, key)
        run()(x, F, hist, table, idx, key if noisy else None, F2=F2, known=known, out_u=u)

    return update


def _langevin_on(run: Any) -> Any:
    def langevin(
        x: Tensor,
        F: Tensor,
        table: Tensor,
        idx: Tensor,
        seed: Tensor,
        ids: Tensor,
        scratch: Tensor,
        norm: str,
        valid: Tensor,
        F2: Tensor | None = None,
    ) -> None:
        run()(x, F, table, idx, NoiseKey(seed, ids), scratch, norm, valid, F2=F2)

    return langevin


_LAUNCHERS = {
    "update": "update_triton", "norms": "langevin_triton", "counter": "step_triton", "quantize": "quantize_triton",
}  # fmt: skip


def _triton(module: str) -> Any:
    """Return a call that imports a launcher, so that Triton is only imported to be used."""

    def get() -> Any:
        from importlib import import_module

        return getattr(import_module(f"fastscore.kernels.{module}"), _LAUNCHERS[module])

    return get


_LIBRARY.impl("update", _update_on(lambda: update_ref), "CPU")
_LIBRARY.impl("update", _update_on(_triton("update")), "CUDA")
_LIBRARY.impl("langevin", _langevin_on(lambda: langevin_ref), "CPU")
_LIBRARY.impl("langevin", _langevin_on(_triton("norms")), "CUDA")
_LIBRARY.impl("step", step_ref, "CPU")
_LIBRARY.impl("step", lambda row, told, now: _triton("counter")()(row, told, now), "CUDA")
_LIBRARY.impl("quantize", quantize_ref, "CPU")
_LIBRARY.impl("quantize", lambda x, rounding: _triton("quantize")()(x, rounding), "CUDA")


@torch.library.register_fake("fastscore::update")
def _(*args: Any) -> None:
    return None


@torch.library.register_fake("fastscore::langevin")
def _(*args: Any) -> None:
    return None


@torch.library.register_fake("fastscore::step")
def _(*args: Any) -> None:
    return None


@torch.library.register_fake("fastscore::quantize")
def _(x: Tensor, rounding: str) -> Tensor:
    n, c, h, w = x.shape
    return x.new_empty((n, h, w, c), dtype=torch.uint8)
