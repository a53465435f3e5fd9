"""Per-sample norms and the Langevin step they set, on the device from end to end."""

import torch
import triton
import triton.language as tl
from torch import Tensor

from . import abi
from .checks import FLOATS, require, require_key, require_rows
from .launch import TILE, launch, vector
from .noise import normals, seed_of
from .update import column, network_value, row_of

NORMS = ("sample", "batch", "expected", "tutorial")
LANES: tl.constexpr = tl.constexpr(abi.LANES)
PROGRAMS = 128  # that write Langevin rows: about as many as a card has processors


@triton.jit
def _add(a, b):
    return a + b


@triton.jit
def halve(lanes, ROWS: tl.constexpr, COUNT: tl.constexpr):
    """Add the upper half of the lanes to the lower half until one is left, [ROWS, COUNT] -> [ROWS]."""
    HALF: tl.constexpr = COUNT // 2
    if HALF == 0:
        return tl.reshape(lanes, [ROWS])
    else:
        # A reduction over two is one addition: its order is not the compiler's to choose.
        return halve(tl.reduce(tl.reshape(lanes, [ROWS, 2, HALF]), 1, _add), ROWS, HALF)


# Grid: (samples / ROWS,); a program walks over its samples' elements in steps of BLOCK.
# Bytes per element: 4 (x) and the size of F (and F2) read; 4 or 8 bytes a sample written. z costs none.
# Deterministic: lane j adds elements j, j + 1024, ... in turn, then the lanes fold in halves; below 1024
#   elements the missing lanes are zeros, which change no sum of squares.
# Aliasing: none.
@triton.jit(do_not_specialize=["n", "units", "idx_stride"])
def _norms_kernel(
    mm_ptr,
    zz_ptr,
    x_ptr,
    f_ptr,
    f2_ptr,
    table_ptr,
    idx_ptr,
    seed_ptr,
    ids_ptr,
    n,
    units,
    idx_stride,
    HAS_F2: tl.constexpr,
    HAS_Z: tl.constexpr,
    OWN_SEED: tl.constexpr,
    VECTOR: tl.constexpr,
    ROWS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    d = units * VECTOR
    sample = tl.program_id(0) * ROWS + tl.arange(0, ROWS)[:, None]
    real = sample < n
    row = table_ptr + row_of(idx_ptr, sample, idx_stride, real) * abi.WIDTH
    sample_id = tl.load(ids_ptr + sample, mask=real)
    seed = seed_of(seed_ptr, sample, real, OWN_SEED)
    draw = column(row, abi.DRAW, real).to(tl.int32)
    mm = tl.full([ROWS, BLOCK], 0.0, tl.float32)
    zz = tl.full([ROWS, BLOCK], 0.0, tl.float32)
    for start in range(0, d, BLOCK):
        element = start + tl.arange(0, BLOCK)[None, :]
        inside = real & (element < d)
        at = sample.to(tl.int64) * d + element
        x = tl.load(x_ptr + at, mask=inside)
        m = network_value(row, x, f_ptr, f2_ptr, at, inside, real, HAS_F2)
        mm += tl.where(inside, m * m, 0.0)
        if HAS_Z:
            counter = (start // 4 + tl.arange(0, BLOCK // 4)[None, :]).to(tl.uint32)
            z = normals(seed, sample_id, draw, counter, ROWS, BLOCK)
            zz += tl.where(inside, z * z, 0.0)
    one = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    tl.store(mm_ptr + one, halve(mm, ROWS, BLOCK), mask=one < n)
    if HAS_Z:
        tl.store(zz_ptr + one, halve(zz, ROWS, BLOCK), mask=one < n)


# Grid: (programs,), at most PROGRAMS of them; each walks over its samples in steps of ROWS.
# Bytes per sample: 64 read, 64 written, 8 of norms; for a mean over the batch each program reads all norms first, so
#   the number of programs is bounded and the whole linear in the batch.
# Deterministic: a batch mean adds in the order of a per-sample norm, in every program alike.
# Aliasing: scratch may alias nothing.
@triton.jit(do_not_specialize=["n", "d", "idx_stride"])
def _langevin_kernel(
    scratch_ptr,
    mm_ptr,
    zz_ptr,
    valid_ptr,
    table_ptr,
    idx_ptr,
    n,
    d,
    idx_stride,
    NORM: tl.constexpr,
    WIDTH: tl.constexpr,
    ROWS: tl.constexpr,
):
    if NORM == "batch" or NORM == "tutorial":
        mean_mm = square_of_mean(mm_ptr, valid_ptr, n)[:, None]
    if NORM == "batch":
        mean_zz = square_of_mean(zz_ptr, valid_ptr, n)[:, None]
    k = tl.arange(0, WIDTH)[None, :]
    for start in range(tl.program_id(0) * ROWS, n, tl.num_programs(0) * ROWS):
        sample = start + tl.arange(0, ROWS)[:, None]
        real = sample < n
        if NORM == "batch" or NORM == "tutorial":
            mm = mean_mm
        else:
            mm = tl.load(mm_ptr + sample, mask=real, other=1.0)
        if NORM == "batch":
            zz = mean_zz
        elif NORM == "sample":
            zz = tl.load(zz_ptr + sample, mask=real, other=1.0)
        else:
            zz = tl.full([1, 1], d, tl.float32)
        row = table_ptr + row_of(idx_ptr, sample, idx_stride, real) * WIDTH
        step = column(row, abi.SNR, real) * tl.div_rn(zz, mm)
        step = tl.minimum(step, column(row, abi.CAP, real), propagate_nan=tl.PropagateNan.ALL)
        value = tl.load(row + k, mask=real)
        value = tl.where(k == abi.B, step, value)
        value = tl.where(k == abi.C, tl.sqrt_rn(step * 2.0), value)
        tl.store(scratch_ptr + sample.to(tl.int64) * WIDTH + k, value, mask=real)


@triton.jit
def square_of_mean(squares_ptr, valid_ptr, n):
    """(sum of sqrt(squares) over the valid samples / their number)^2."""
    total = tl.full([1, LANES], 0.0, tl.float32)
    count = tl.full([1, LANES], 0.0, tl.float32)
    for start in range(0, n, LANES):
        at = start + tl.arange(0, LANES)[None, :]
        valid = tl.load(valid_ptr + at, mask=at < n, other=0.0)
        total += tl.sqrt_rn(tl.load(squares_ptr + at, mask=at < n, other=0.0)) * valid
        count += valid
    mean = tl.div_rn(halve(total, 1, LANES), halve(count, 1, LANES))
    return mean * mean


def langevin_triton(
    x: Tensor,
    F: Tensor,
    table: Tensor,
    idx: Tensor,
    noise: object,
    scratch: Tensor,
    norm: str,
    valid: Tensor,
    *,
    F2: Tensor | None = None,
) -> None:
    r"""Write each sample's own row into scratch [N, abi.WIDTH], as langevin_ref does and to the same bits.

    Args: as for update_triton; ``norm`` is one of NORMS; ``valid`` is float32 [N].

    Raises:
        ValueError: an unknown norm; a shape, dtype, device or stride that the kernels do not support.
    """
    if norm not in NORMS:
        raise ValueError(f"norm = {norm!r} must be one of {', '.join(NORMS)}")
    if x.ndim != 2:
        raise ValueError(f"langevin: x has shape {list(x.shape)}; expected [N, D]")
    n, d = x.shape
    state = (torch.float32,)
    require(
        "langevin", x.device, x=(x, (n, d), state), F=(F, (n, d), FLOATS), F2=(F2, (n, d), FLOATS),
        scratch=(scratch, (n, abi.WIDTH), state), valid=(valid, (n,), state),
    )  # fmt: skip
    require_rows("langevin", x.device, n, table, idx, abi.WIDTH)
    seeds = require_key("langevin", x.device, n, noise)

    mm, zz = torch.empty((2, n), dtype=torch.float32, device=x.device)
    unit = vector(d)
    size = min(max(4, triton.next_power_of_2(d)), abi.LANES)
    rows = TILE // size
    launch(
        _norms_kernel, (triton.cdiv(n, rows),), x, mm, zz, x, F, x if F2 is None else F2, table, idx,
        noise.seed, noise.ids, n, d // unit, idx.stride(0),
        HAS_F2=F2 is not None, HAS_Z=norm in ("sample", "batch"), OWN_SEED=seeds, VECTOR=unit, ROWS=rows, BLOCK=size,
    )  # fmt: skip
    rows = TILE // abi.WIDTH
    launch(
        _langevin_kernel, (min(triton.cdiv(n, rows), PROGRAMS),), x, scratch, mm, zz, valid, table, idx, n, d,
        idx.stride(0), NORM=norm, WIDTH=abi.WIDTH, ROWS=rows, num_warps=8 if norm in ("batch", "tutorial") else 4,
    )  # fmt: skip
