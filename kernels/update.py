"""The fused row on the GPU: one pass over the state for one plan row."""

import torch
import triton
import triton.language as tl
from torch import Tensor

from . import abi
from .checks import FLOATS, require, require_key, require_output, require_rows
from .launch import TILE, block, launch, vector
from .noise import normals, seed_of


# Grid: (samples / ROWS, elements / BLOCK).
# Bytes per element: x 8 (read, written), F and F2 their size each, 4 a slot read, 4 pushed, u its size,
#   mean 4, known 5 (y and mask). z costs none.
# Deterministic: every element is one expression in the order of fastscore/ops/update.py.
# Aliasing: x and hist are updated in place, each element by the thread that read it; F, F2, y, mask,
#   u and mean may alias nothing.
@triton.jit(do_not_specialize=["n", "units", "idx_stride", "known_idx_stride"])
def _update_kernel(
    x_ptr,
    f_ptr,
    f2_ptr,
    hist_ptr,
    u_ptr,
    mean_ptr,
    table_ptr,
    idx_ptr,
    seed_ptr,
    ids_ptr,
    known_ptr,
    mask_ptr,
    known_table_ptr,
    known_idx_ptr,
    n,
    units,
    idx_stride,
    known_idx_stride,
    HAS_F: tl.constexpr,
    HAS_F2: tl.constexpr,
    CHANNELS: tl.constexpr,
    CHANNELS2: tl.constexpr,
    SLOTS: tl.constexpr,
    HAS_NOISE: tl.constexpr,
    HAS_KNOWN: tl.constexpr,
    OWN_SEED: tl.constexpr,
    HAS_U: tl.constexpr,
    HAS_MEAN: tl.constexpr,
    EVEN: tl.constexpr,
    VECTOR: tl.constexpr,
    ROWS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    d = units * VECTOR  # tells the compiler how wide its accesses may be
    sample = tl.program_id(0) * ROWS + tl.arange(0, ROWS)[:, None]
    element = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)[None, :]
    real = (sample < n) | EVEN  # EVEN: the tiles cover x exactly, and a constant mask costs nothing
    inside = (real & (element < d)) | EVEN
    at = sample.to(tl.int64) * d + element
    row = table_ptr + row_of(idx_ptr, sample, idx_stride, real) * abi.WIDTH
    if HAS_NOISE or HAS_KNOWN:
        sample_id = tl.load(ids_ptr + sample, mask=real)
        seed = seed_of(seed_ptr, sample, real, OWN_SEED)
        counter = (tl.program_id(1) * (BLOCK // 4) + tl.arange(0, BLOCK // 4)[None, :]).to(tl.uint32)
    # Normals come first: Philox needs most registers, and nothing else is alive yet.
    if HAS_NOISE:
        draw = column(row, abi.DRAW, real).to(tl.int32)
        z = normals(seed, sample_id, draw, counter, ROWS, BLOCK)
    if HAS_KNOWN:
        known_row = known_table_ptr + row_of(known_idx_ptr, sample, known_idx_stride, real) * abi.WIDTH
        draw = column(known_row, abi.DRAW, real).to(tl.int32)
        z_known = normals(seed, sample_id, draw, counter, ROWS, BLOCK)

    x = tl.load(x_ptr + at, mask=inside)
    y = column(row, abi.A, real) * x
    if HAS_F:
        m = network_value(row, x, f_ptr, f2_ptr, at, element, d, inside, real, HAS_F2, CHANNELS, CHANNELS2)
        bound = column(row, abi.CLIP, real)
        bound = tl.where(bound > 0.0, bound, float("inf"))
        m = tl.minimum(m, bound, propagate_nan=tl.PropagateNan.ALL)
        m = tl.maximum(m, -bound, propagate_nan=tl.PropagateNan.ALL)
        y = y + column(row, abi.B, real) * m
    slot = tl.full([1, 1], n, tl.int64) * d  # elements of a history slot
    for k in tl.static_range(SLOTS):
        h = tl.load(hist_ptr + (k * slot + at), mask=inside)
        y = y + column(row, abi.W0 + k, real) * h
    mean = y
    if HAS_NOISE:
        y = y + column(row, abi.C, real) * z
    if HAS_KNOWN:
        center = column(known_row, abi.A, real) * tl.load(known_ptr + at, mask=inside)
        is_known = tl.load(mask_ptr + at, mask=inside) != 0
        y = tl.where(is_known, center + column(known_row, abi.C, real) * z_known, y)
        mean = tl.where(is_known, center, mean)

    tl.store(x_ptr + at, y, mask=inside)
    if HAS_F and SLOTS > 0:
        push = column(row, abi.PUSH, real).to(tl.int32)
        stored = inside & (push >= 0) & (push < SLOTS)
        tl.store(hist_ptr + (push * slot + at), m, mask=stored)
    if HAS_U:
        u = column(row, abi.C_IN, real) * y
        tl.store(u_ptr + at, u.to(u_ptr.dtype.element_ty), mask=inside)
    if HAS_MEAN:
        tl.store(mean_ptr + at, mean, mask=inside)


@triton.jit
def row_of(idx_ptr, sample, stride, real):
    """Row number of each sample, int64; a stride of 0 gives all samples the same one."""
    return tl.load(idx_ptr + sample.to(tl.int64) * stride, mask=real).to(tl.int64)


@triton.jit
def column(row, COLUMN: tl.constexpr, real):
    """One column of each sample's row, [ROWS, 1]; 0 past the last sample."""
    return tl.load(row + COLUMN, mask=real)


@triton.jit
def place(at, element, d, CHANNELS: tl.constexpr):
    """Where the elements of a sample lie in an output of which so many channels lie last."""
    if CHANNELS == 1:
        return at
    pixels = d // CHANNELS
    channel = element * 0
    for c in tl.static_range(1, CHANNELS):  # channels are few, and a division takes ten times as long
        channel = tl.where(element >= c * pixels, c, channel)
    return at - element + (element - channel * pixels) * CHANNELS + channel


@triton.jit
def network_value(
    row,
    x,
    f_ptr,
    f2_ptr,
    at,
    element,
    d,
    inside,
    real,
    HAS_F2: tl.constexpr,
    CHANNELS: tl.constexpr,
    CHANNELS2: tl.constexpr,
):
    """m = p x + q F + q2 F2, [ROWS, BLOCK]."""
    f = tl.load(f_ptr + place(at, element, d, CHANNELS), mask=inside).to(tl.float32)
    m = column(row, abi.P, real) * x + column(row, abi.Q, real) * f
    if HAS_F2:
        f2 = tl.load(f2_ptr + place(at, element, d, CHANNELS2), mask=inside).to(tl.float32)
        m = m + column(row, abi.Q2, real) * f2
    return m


def update_triton(
    x: Tensor,
    F: Tensor | None,
    hist: Tensor,
    table: Tensor,
    idx: Tensor,
    noise: object | None,
    *,
    F2: Tensor | None = None,
    known: object | None = None,
    out_u: Tensor | None = None,
    out_mean: Tensor | None = None,
) -> None:
    r"""Advance the state by one plan row, as update_ref does and to the same bits.

    Args:
        x: state, [N, D] float32; updated in place.
        F, F2: network outputs, [N, D] float32, bfloat16 or float16; None if the row has none. As the network left
            them, [N, C, H, W] or [N, C, L, H, W], their channels may lie last, at most abi.CHANNELS of them.
        hist: history slots, [S, N, D] float32, S <= abi.SLOTS.
        table: lowered plan, [rows, abi.WIDTH] float32.
        idx: row read by each sample, [N] int32 or int64 (broadcast with stride 0).
        noise: key with ``seed`` int64 [1] or [N] and ``ids`` int64 [N]; None if the row's c is 0.
        known: ``y`` [N, D] float32, ``mask`` [N, D] bool, ``table``, ``idx`` and ``noise``; None for no mask.
        out_u: next network input, [N, D] float32, bfloat16 or float16; None to leave it.
        out_mean: x' without its noise term, [N, D] float32; None to leave it.

    Raises:
        ValueError: a shape, dtype, device or stride that the kernel does not support.
    """
    if x.ndim != 2:
        raise ValueError(f"update: x has shape {list(x.shape)}; expected [N, D]")
    n, d = x.shape
    slots = len(hist)
    if slots > abi.SLOTS:
        raise ValueError(f"update: hist has {slots} slots; at most {abi.SLOTS}")
    if F2 is not None and F is None:
        raise ValueError("update: F2 without F")
    state, network = (torch.float32,), FLOATS
    require(
        "update", x.device, x=(x, (n, d), state), hist=(hist, (slots, n, d), state), out_u=(out_u, (n, d), network),
        out_mean=(out_mean, (n, d), state),
    )  # fmt: skip
    channels, channels2 = (require_output("update", *v, x, network, abi.CHANNELS) for v in (("F", F), ("F2", F2)))
    require_rows("update", x.device, n, table, idx, abi.WIDTH)
    key = noise
    if known is not None:
        if noise is not None and known.noise is not noise:
            raise ValueError("update: known.noise must be the row's own noise")
        key = known.noise
        require("update", x.device, y=(known.y, (n, d), state), mask=(known.mask, (n, d), (torch.bool,)))
        require_rows("update", x.device, n, known.table, known.idx, abi.WIDTH)
    seeds = 0 if key is None else require_key("update", x.device, n, key)

    unit, size = vector(d), block(d)
    rows = TILE // size
    absent = x  # stands for every tensor that the kernel does not touch
    launch(
        _update_kernel,
        (triton.cdiv(n, rows), triton.cdiv(d, size)),
        x,
        x,
        absent if F is None else F,
        absent if F2 is None else F2,
        hist if slots else absent,
        absent if out_u is None else out_u,
        absent if out_mean is None else out_mean,
        table,
        idx,
        absent if key is None else key.seed,
        absent if key is None else key.ids,
        absent if known is None else known.y,
        absent if known is None else known.mask,
        absent if known is None else known.table,
        absent if known is None else known.idx,
        n,
        d // unit,
        idx.stride(0),
        0 if known is None else known.idx.stride(0),
        HAS_F=F is not None,
        HAS_F2=F2 is not None,
        CHANNELS=channels,
        CHANNELS2=channels2,
        SLOTS=slots,
        HAS_NOISE=noise is not None,
        HAS_KNOWN=known is not None,
        OWN_SEED=seeds,
        HAS_U=out_u is not None,
        HAS_MEAN=out_mean is not None,
        EVEN=n % rows == 0 and d % size == 0,
        VECTOR=unit,
        ROWS=rows,
        BLOCK=size,
    )
