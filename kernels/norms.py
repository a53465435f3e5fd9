"""Per-sample norms and the Langevin step they set, on the device from end to end."""

import torch
import triton
import triton.language as tl
from torch import Tensor

from . import abi
from .checks import FLOATS, require, require_key, require_output, require_rows
from .launch import TILE, launch, vector
from .noise import normals, seed_of
from .update import column, network_value, row_of

NORMS = ("sample", "batch", "expected", "tutorial")
LANES: tl.constexpr = tl.constexpr(abi.LANES)
PROGRAMS = 128  # that write Langevin rows: about as many as a card has processors
# Few long samples: so many programs share one, each with every eighth group of eight lanes, which leave FOLD sums.
PARTS: tl.constexpr = tl.constexpr(8)
FOLD: tl.constexpr = tl.constexpr(64)
FEW, LONG = 64, 8 * abi.LANES  # at most so many samples, of at least so many elements


@triton.jit
def _add(a, b):
    return a + b


@triton.jit
def halve(lanes, ROWS: tl.constexpr, COUNT: tl.constexpr, LEFT: tl.constexpr = 1):
    """Add the upper half of the lanes to the lower half until LEFT are left, [ROWS, COUNT] -> [ROWS, LEFT]."""
    if COUNT == LEFT:
        return lanes
    else:
        HALF: tl.constexpr = COUNT // 2
        # A reduction over two is one addition: its order is not the compiler's to choose.
        return halve(tl.reduce(tl.reshape(lanes, [ROWS, 2, HALF]), 1, _add), ROWS, HALF, LEFT)


# Grid: (samples / ROWS, 1), or (samples, PARTS) where they are few and long; a program walks over its samples'
#   elements in steps of LANES, and has BLOCK lanes of them.
# Bytes per element: 4 (x) and the size of F (and F2) read; 4 or 8 bytes a sum written. z costs none.
# Deterministic: lane j adds elements j, j + 1024, ... in turn, then the lanes fold in halves; below 1024
#   elements the missing lanes are zeros, which change no sum of squares. A part has lanes that fold among themselves
#   until LEFT are left.
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
    CHANNELS: tl.constexpr,
    CHANNELS2: tl.constexpr,
    HAS_Z: tl.constexpr,
    OWN_SEED: tl.constexpr,
    VECTOR: tl.constexpr,
    SPLIT: tl.constexpr,
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
    lane = tl.arange(0, BLOCK)[None, :]
    quad = tl.arange(0, BLOCK // 4)[None, :]
    if SPLIT:
        GROUP: tl.constexpr = FOLD // PARTS
        lane = lane // GROUP * FOLD + tl.program_id(1) * GROUP + lane % GROUP
        quad = quad // (GROUP // 4) * (FOLD // 4) + tl.program_id(1) * (GROUP // 4) + quad % (GROUP // 4)
    # One warp has a part: several steps at once are what hides its loads.
    for start in tl.range(0, d, LANES if SPLIT else BLOCK, loop_unroll_factor=4 if SPLIT else 1):
        element = start + lane
        inside = real & (element < d)
        at = sample.to(tl.int64) * d + element
        x = tl.load(x_ptr + at, mask=inside)
        m = network_value(row, x, f_ptr, f2_ptr, at, element, d, inside, real, HAS_F2, CHANNELS, CHANNELS2)
        mm += tl.where(inside, m * m, 0.0)
        if HAS_Z:
            z = normals(seed, sample_id, draw, (start // 4 + quad).to(tl.uint32), ROWS, BLOCK)
            zz += tl.where(inside, z * z, 0.0)
    LEFT: tl.constexpr = FOLD // PARTS if SPLIT else 1
    one = (sample * tl.num_programs(1) + tl.program_id(1)) * LEFT + tl.arange(0, LEFT)[None, :]
    tl.store(mm_ptr + one, halve(mm, ROWS, BLOCK, LEFT), mask=real)
    if HAS_Z:
        tl.store(zz_ptr + one, halve(zz, ROWS, BLOCK, LEFT), mask=real)


# Grid: (programs,), at most PROGRAMS of them; each walks over its samples in steps of ROWS.
# Bytes per sample: 64 read, 64 written, 8 of norms, or 512 of parts; for a mean over the batch each program reads all
#   norms first, so the number of programs is bounded and the whole linear in the batch.
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
    SUMS: tl.constexpr,
    WIDTH: tl.constexpr,
    ROWS: tl.constexpr,
):
    if NORM == "batch" or NORM == "tutorial":
        mean_mm = square_of_mean(mm_ptr, valid_ptr, n, SUMS)
    if NORM == "batch":
        mean_zz = square_of_mean(zz_ptr, valid_ptr, n, SUMS)
    k = tl.arange(0, WIDTH)[None, :]
    for start in range(tl.program_id(0) * ROWS, n, tl.num_programs(0) * ROWS):
        sample = start + tl.arange(0, ROWS)[:, None]
        real = sample < n
        if NORM == "batch" or NORM == "tutorial":
            mm = mean_mm
        else:
            mm = square_of(mm_ptr, sample, real, ROWS, SUMS)
        if NORM == "batch":
            zz = mean_zz
        elif NORM == "sample":
            zz = square_of(zz_ptr, sample, real, ROWS, SUMS)
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
def square_of(sums_ptr, sample, real, ROWS: tl.constexpr, SUMS: tl.constexpr):
    """The square of each sample's norm, [ROWS, 1], from so many sums of lanes; not 0 past the last sample."""
    at = sample * SUMS + tl.arange(0, SUMS)[None, :]
    return halve(tl.load(sums_ptr + at, mask=real, other=1.0), ROWS, SUMS)


@triton.jit
def square_of_mean(sums_ptr, valid_ptr, n, SUMS: tl.constexpr):
    """(sum of the norms of the valid samples / their number)^2, [1, 1]."""
    COUNT: tl.constexpr = LANES if SUMS == 1 else FOLD  # a power of two that samples of several sums do not exceed
    total = tl.full([1, COUNT], 0.0, tl.float32)
    count = tl.full([1, COUNT], 0.0, tl.float32)
    for start in range(0, n, COUNT):
        at = start + tl.arange(0, COUNT)[None, :]
        valid = tl.load(valid_ptr + at, mask=at < n, other=0.0)
        if SUMS == 1:
            square = tl.load(sums_ptr + at, mask=at < n, other=1.0)
        else:
            sample = start + tl.arange(0, COUNT)[:, None]
            square = tl.trans(square_of(sums_ptr, sample, sample < n, COUNT, SUMS))
        total += tl.sqrt_rn(square) * valid
        count += valid
    mean = tl.div_rn(halve(total, 1, COUNT), halve(count, 1, COUNT))
    return tl.reshape(mean * mean, [1])[:, None]  # in the layout of rows: converting it there takes registers


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
        "langevin", x.device, x=(x, (n, d), state), scratch=(scratch, (n, abi.WIDTH), state),
        valid=(valid, (n,), state),
    )  # fmt: skip
    channels, channels2 = (require_output("langevin", *v, x, FLOATS, abi.CHANNELS) for v in (("F", F), ("F2", F2)))
    require_rows("langevin", x.device, n, table, idx, abi.WIDTH)
    seeds = require_key("langevin", x.device, n, noise)

    split = n <= FEW and d >= LONG
    parts, sums = (PARTS.value, FOLD.value) if split else (1, 1)
    mm, zz = torch.empty((2, n * sums), dtype=torch.float32, device=x.device)
    unit = vector(d)
    size = min(max(4, triton.next_power_of_2(d)), abi.LANES)
    rows = TILE // size
    launch(
        _norms_kernel, (triton.cdiv(n, rows), parts), x, mm, zz, x, F, x if F2 is None else F2, table, idx,
        noise.seed, noise.ids, n, d // unit, idx.stride(0), HAS_F2=F2 is not None, CHANNELS=channels,
        CHANNELS2=channels2, HAS_Z=norm in ("sample", "batch"), OWN_SEED=seeds, VECTOR=unit, SPLIT=split, ROWS=rows,
        BLOCK=size // parts, num_warps=1 if split else 4,
    )  # fmt: skip
    rows = TILE // abi.WIDTH
    launch(
        _langevin_kernel, (min(triton.cdiv(n, rows), PROGRAMS),), x, scratch, mm, zz, valid, table, idx, n, d,
        idx.stride(0), NORM=norm, SUMS=sums, WIDTH=abi.WIDTH, ROWS=rows,
        num_warps=8 if norm in ("batch", "tutorial") else 4,
    )  # fmt: skip
