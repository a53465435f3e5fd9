"""P1: each variant of each kernel against the CPU's reference, to the bit, and what its machine code holds."""

from __future__ import annotations

import hashlib
import os
import re
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, fields, is_dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from bench.card.card import Card, Facts
from fastscore.engine.selfcheck import NOISE_SHA256
from fastscore.kernels import abi
from fastscore.ops.backend import REFERENCE, Ops, resolve
from fastscore.ops.noise import NoiseKey
from fastscore.ops.quantize import ROUNDINGS
from fastscore.ops.update import KnownRow
from fastscore.plan.rows import NORMS

F32, BF16, F16 = torch.float32, torch.bfloat16, torch.float16
IDS = (0, 5, 1 << 40, (1 << 63) - 1, 77, 78, 3)
SEED = 0x9234567890ABCDEF
# What the contract forbids in a kernel's machine code: contraction, and subnormals flushed to zero.
KERNELS = ("_update_kernel", "_norms_kernel", "_langevin_kernel", "_noise_kernel", "_quantize_kernel")
FORBIDDEN = {"fma": re.compile(r"\bfma\.\S*f32"), "ftz": re.compile(r"\.ftz\b")}


@dataclass(frozen=True)
class Variant:
    """One launch: the operation, and its arguments on the CPU, made by ``inputs``."""

    name: str
    op: str
    inputs: Callable[[], tuple[list[Any], dict[str, Any]]]


def variants() -> Iterator[Variant]:
    """Yield every kind of launch that a sampler makes, on shapes with whole and with ragged blocks."""

    def row(name: str, n: int = 7, d: int = 784, **use: Any) -> Variant:
        return Variant(f"update {name} {n}x{d}", "update", lambda: update_inputs(n, d, **use))

    yield row("SDE")
    yield row("SDE", d=3072)
    yield row("SDE", d=2)
    yield row("SDE", d=1)
    yield row("SDE", d=1009)
    yield row("ODE", noisy=False, slots=1)
    yield row("ODE, 3 slots, clipped", noisy=False, slots=3, clip=0.5)
    yield row("CFG", mixed=True)
    yield row("known", known=True)
    yield row("known, CFG, own rows", d=3072, known=True, mixed=True, own=True, slots=2)
    yield row("bf16", network=BF16)
    yield row("bf16, CFG, D odd", d=129, network=BF16, mixed=True)
    yield row("fp16", d=3072, network=F16)
    yield row("prior, no network", network=None)
    yield row("int32 rows", d=48, wide=False, slots=1)
    for norm in NORMS:
        yield langevin(norm, 7, 3072)
        yield langevin(norm, 7, 1009, network=BF16)
    yield langevin("sample", 7, 2, mixed=True)
    yield langevin("expected", 7, 1)
    for shape in ((2, 3, 5, 7), (4, 3, 8, 8), (4, 1, 28, 28), (2, 4, 6, 6)):
        for rounding in ROUNDINGS:
            yield images(shape, rounding)


def normal(*shape: int, seed: int) -> Tensor:
    """Return the same normals whatever executes."""
    return torch.empty(shape).normal_(generator=torch.Generator().manual_seed(seed))


def rows(clip: float = 0.0) -> Tensor:
    """Return a table of rows with coefficients of all sizes; draws are numbered and pushed slots vary."""
    table = normal(8, abi.WIDTH, seed=1)
    table[:, abi.PUSH] = torch.tensor([0.0, 1, 2, 3, -1, 0, 1, 2])
    table[:, abi.DRAW], table[:, abi.CLIP] = torch.arange(8), clip
    table[:, abi.SNR], table[:, abi.CAP] = 0.16, torch.inf
    return table


def update_inputs(
    n: int,
    d: int,
    network: torch.dtype | None = F32,
    noisy: bool = True,
    slots: int = 0,
    mixed: bool = False,
    known: bool = False,
    own: bool = False,
    clip: float = 0.0,
    wide: bool = True,
) -> tuple[list[Any], dict[str, Any]]:
    """Return (positional, keyword) arguments of a row."""
    key = NoiseKey.of(SEED, IDS[:n])
    idx = torch.arange(n) % 8 if own else torch.tensor([2]).expand(n)
    idx = idx if wide else idx.to(torch.int32)
    F, F2 = (None if network is None else normal(n, d, seed=k).to(network) for k in (3, 4))
    x, hist = normal(n, d, seed=2), normal(slots, n, d, seed=7)
    given = KnownRow(normal(n, d, seed=5), normal(n, d, seed=6) > 0, rows(), idx, key) if known else None
    u = torch.full((n, d), torch.nan, dtype=network or F32)
    return [x, F, hist, rows(clip), idx, key if noisy else None], {
        "F2": F2 if mixed else None, "known": given, "out_u": u,
    }  # fmt: skip


def langevin(norm: str, n: int, d: int, network: torch.dtype = F32, mixed: bool = False) -> Variant:
    """Return a Langevin step's launch."""

    def inputs() -> tuple[list[Any], dict[str, Any]]:
        (x, F, _, table, idx, key), more = update_inputs(n, d, network, mixed=mixed)
        scratch, valid = torch.full((n, abi.WIDTH), torch.nan), torch.ones(n)
        valid[1] = 0.0
        return [x, F, table, idx, key, scratch, norm, valid], {"F2": more["F2"]}

    mix = ", CFG" if mixed else ""
    return Variant(f"langevin {norm}{mix} {str(network).removeprefix('torch.')} {n}x{d}", "langevin", inputs)


def images(shape: tuple[int, ...], rounding: str) -> Variant:
    """Return the launch that makes bytes."""
    name = f"quantize {'x'.join(map(str, shape))} {rounding}"
    return Variant(name, "quantize", lambda: ([1.2 * normal(*shape, seed=8), rounding], {}))


def moved(value: Any, device: torch.device) -> Any:
    """Return arguments with every tensor copied to a device; dtypes and broadcast axes stay."""
    if isinstance(value, Tensor):
        if value.stride() == (0,):  # one row for all
            return value[:1].clone().to(device).expand(value.shape)
        return value.clone().to(device)
    if is_dataclass(value) and not isinstance(value, type):
        return type(value)(*(moved(getattr(value, f.name), device) for f in fields(value)))
    if isinstance(value, list | tuple):
        return type(value)(moved(v, device) for v in value)
    return {k: moved(v, device) for k, v in value.items()} if isinstance(value, dict) else value


def tensors(value: Any) -> list[Tensor]:
    """Return the tensors among arguments, in order."""
    if isinstance(value, Tensor):
        return [value]
    if is_dataclass(value) and not isinstance(value, type):
        value = [getattr(value, f.name) for f in fields(value)]
    items = value.values() if isinstance(value, dict) else value if isinstance(value, list | tuple) else ()
    return [t for item in items for t in tensors(item)]


def differing(a: Tensor, b: Tensor) -> int:
    """Return the number of elements whose bits differ."""
    size = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}[a.element_size()]
    return int((a.cpu().contiguous().view(size) != b.contiguous().view(size)).sum())


def compare(variant: Variant, ops: Ops, device: torch.device) -> Facts:
    """Launch a variant on the device and on the CPU; every tensor that either can reach must have the same bits."""
    positional, keyword = variant.inputs()
    there = moved((positional, keyword), device)
    start = time.perf_counter()
    got = getattr(ops, variant.op)(*there[0], **there[1])
    first = time.perf_counter() - start
    want = getattr(REFERENCE, variant.op)(*positional, **keyword)
    pairs = zip(tensors([there, got]), tensors([(positional, keyword), want]), strict=True)
    wrong = sum(differing(a, b) for a, b in pairs)
    return {"ok": wrong == 0, "differing": wrong, "first_call_s": first}


def noise(device: torch.device) -> Facts:
    """Compare the noise with its known values."""
    z = NoiseKey.of(2**63 + 5, range(7), device).normal(3, 777)
    digest = hashlib.sha256(z.cpu().numpy().tobytes()).hexdigest()
    return {"ok": digest == NOISE_SHA256, "sha256": digest[:16]}


def machine_code(card: Card) -> Facts:
    """Look through the code that Triton kept: how many compilations, and whether any holds what is forbidden."""
    if card.dry:
        compile_one()
    folder = Path(os.environ.get("TRITON_CACHE_DIR", Path.home() / ".triton" / "cache"))
    files = [file for name in KERNELS for file in folder.rglob(f"{name}.ptx")]  # torch keeps its own there too
    found = {}
    for what, pattern in FORBIDDEN.items():
        hits = [f"{file.stem}: {match[0]}" for file in files if (match := pattern.search(file.read_text()))]
        found[what] = sorted(set(hits))[:8]
    return {"ok": bool(files) and not any(found.values()), "compilations": len(files), **found}


def compile_one() -> None:
    """Compile a kernel without a device, so that a dry run has code to look through."""
    from fastscore.kernels import noise as kernels
    from fastscore.kernels.inspect import aot

    with aot.capture() as launches:
        kernels.normal_triton(NoiseKey.of(0, range(2)), 0, 8)
    launches[0].compile(aot.TARGETS["sm_90"])


def run(card: Card) -> None:
    """Compare all of them."""
    ops = REFERENCE if card.dry else resolve("triton", card.device)
    card.do("noise v1", lambda: noise(card.device))
    card.do_all({v.name: lambda v=v: compare(v, ops, card.device) for v in list(variants())[: card.pick(None, 18)]})
    card.do("machine code", lambda: machine_code(card))
