"""Noise v1 on the GPU: counter -> Philox4x32-10 words -> uniforms and normals.

The device functions mirror fastscore/ops/noise.py, the specification, operation by operation: each
multiply and add rounds on its own (kernels are compiled with enable_fp_fusion=False), square roots
are correctly rounded. One Philox call serves four consecutive elements; no word is wasted.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from .checks import require_key
from .launch import TILE, block, launch, vector

# Bits of ``uint32`` words wrap on purpose; Triton's debug mode must not take that for an overflow.
WORDS: tl.constexpr = tl.constexpr(0)
UNIFORM: tl.constexpr = tl.constexpr(1)
NORMAL: tl.constexpr = tl.constexpr(2)


@triton.jit
def philox(c0, c1, c2, c3, k0, k1):
    """Ten rounds of Philox4x32 on uint32. One 32x32->64 product a multiplier, not mul.hi and mul.lo."""
    M0: tl.constexpr = 0xD2511F53
    M1: tl.constexpr = 0xCD9E8D57
    for _ in tl.static_range(10):
        p0 = tl.mul(c0.to(tl.uint64), M0, sanitize_overflow=False)
        p1 = tl.mul(c2.to(tl.uint64), M1, sanitize_overflow=False)
        c0 = (p1 >> 32).to(tl.uint32) ^ c1 ^ k0
        c2 = (p0 >> 32).to(tl.uint32) ^ c3 ^ k1
        c1 = p1.to(tl.uint32)
        c3 = p0.to(tl.uint32)
        k0 = tl.add(k0, 0x9E3779B9, sanitize_overflow=False)
        k1 = tl.add(k1, 0xBB67AE85, sanitize_overflow=False)
    return c0, c1, c2, c3


@triton.jit
def seed_of(seed_ptr, sample, real, OWN_SEED: tl.constexpr):
    """Seed of each sample, int64 [ROWS, 1]; a number where one serves all, so that its key is scheduled once."""
    if OWN_SEED:
        return tl.load(seed_ptr + sample, mask=real)
    else:
        return tl.load(seed_ptr)


@triton.jit
def words(seed, sample_id, draw, counter):
    """Four words of each element block ``counter`` (uint32) of the samples ``sample_id`` (int64), draw int32."""
    seed = seed.to(tl.uint64, bitcast=True)
    key = sample_id.to(tl.uint64, bitcast=True)
    return philox(
        counter,
        draw.to(tl.uint32, bitcast=True),
        (key & 0xFFFFFFFF).to(tl.uint32),
        (key >> 32).to(tl.uint32),
        (seed & 0xFFFFFFFF).to(tl.uint32),
        (seed >> 32).to(tl.uint32),
    )


@triton.jit
def normals(seed, sample_id, draw, counter, ROWS: tl.constexpr, BLOCK: tl.constexpr):
    """Normals of a tile, [ROWS, BLOCK]; seed, sample_id and draw are [ROWS, 1], counter is [1, BLOCK // 4]."""
    w0, w1, w2, w3 = words(seed, sample_id, draw, counter)
    z0, z1 = box_muller(w0, w1)
    z2, z3 = box_muller(w2, w3)
    return interleave(z0, z1, z2, z3, ROWS, BLOCK)


@triton.jit
def interleave(v0, v1, v2, v3, ROWS: tl.constexpr, BLOCK: tl.constexpr):
    """[ROWS, BLOCK // 4] four times -> [ROWS, BLOCK] with v0 v1 v2 v3 side by side; stays in registers."""
    return tl.reshape(tl.join(tl.join(v0, v2), tl.join(v1, v3)), [ROWS, BLOCK])


@triton.jit
def box_muller(w0, w1):
    """Two normals of two words."""
    total = minus_two_log(w0)
    across = total * sin_squared(w1)
    along = tl.sqrt_rn(total - across)
    across = tl.sqrt_rn(across)
    odd = (tl.add(w1, 0x20000000, sanitize_overflow=False) & 0x40000000) != 0
    z0 = tl.where(odd, across, along)
    z1 = tl.where(odd, along, across)
    return signed(z0, tl.add(w1, 0x40000000, sanitize_overflow=False)), signed(z1, w1)


@triton.jit
def minus_two_log(w):
    """-2 ln((w + 1/2) 2^-32) >= 0."""
    bits = uniform_scaled(w).to(tl.int32, bitcast=True)
    exponent = (bits - 0x4F3504F3) & -0x800000
    g = 2.0 - (bits - exponent - 0x0F800000).to(tl.float32, bitcast=True)
    y = g * 0.0003500047023408115 + 0.0011380879441276193
    y = y * g + 0.0023342655040323734
    y = y * g + 0.00516442721709609
    y = y * g + 0.012472384609282017
    y = y * g + 0.03125528246164322
    y = y * g + 0.08333547413349152
    y = y * g + 0.2499997317790985
    y = y * (g * g)
    scale = exponent.to(tl.float32)
    return y + scale * -3.4060639508490254e-13 + g + scale * -1.6525882529094815e-07


@triton.jit
def sin_squared(w):
    """sin^2 of the angle 2 pi w 2^-32 measured from the nearest axis, in 0 .. 1/2."""
    x = (w << 2).to(tl.int32, bitcast=True).to(tl.float32) * 4.656612873077393e-10  # 2^-31
    z = x * x
    y = z * 1.153731773229083e-05 + -0.00045802260865457356
    y = y * z + 0.010430724360048771
    y = y * z + -0.12683449685573578
    y = y * z + 0.6168502569198608
    return y * z


@triton.jit
def uniform_scaled(w):
    """(w + 1/2) in float32; times 2^-32 it is the uniform number in (0, 1]."""
    return w.to(tl.float32) + 0.5


@triton.jit
def signed(v, w):
    """Give v >= 0 the sign of bit 31 of w."""
    return (v.to(tl.uint32, bitcast=True) | (w & 0x80000000)).to(tl.float32, bitcast=True)


# Grid: (samples / ROWS, elements / BLOCK).
# Bytes per element: 4 written; nothing is read but one seed, or one a sample, and one id a sample.
# Deterministic: a pure function of (seed, id, draw, element), whatever the tile.
# Aliasing: none.
@triton.jit(do_not_specialize=["n", "units", "draw"])
def _noise_kernel(
    out_ptr,
    seed_ptr,
    ids_ptr,
    draw,
    n,
    units,
    OWN_SEED: tl.constexpr,
    KIND: tl.constexpr,
    VECTOR: tl.constexpr,
    ROWS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    d = units * VECTOR
    sample = tl.program_id(0) * ROWS + tl.arange(0, ROWS)[:, None]
    element = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)[None, :]
    counter = tl.program_id(1) * (BLOCK // 4) + tl.arange(0, BLOCK // 4)[None, :]
    sample_id = tl.load(ids_ptr + sample, mask=sample < n)
    seed = seed_of(seed_ptr, sample, sample < n, OWN_SEED)
    number = tl.full([1, 1], 0, tl.int32) + draw
    if KIND == NORMAL:
        value = normals(seed, sample_id, number, counter.to(tl.uint32), ROWS, BLOCK)
    else:
        w0, w1, w2, w3 = words(seed, sample_id, number, counter.to(tl.uint32))
        value = interleave(w0, w1, w2, w3, ROWS, BLOCK)
        if KIND == UNIFORM:
            value = uniform_scaled(value) * 2.3283064365386963e-10  # 2^-32
        else:
            value = value.to(tl.int32, bitcast=True)
    tl.store(out_ptr + sample.to(tl.int64) * d + element, value, mask=(sample < n) & (element < d))


def normal_triton(noise: object, draw: int, d: int) -> Tensor:
    """Return the float32 normals of one draw, [N, d], as NoiseKey.normal does."""
    return _noise(noise, draw, d, NORMAL, torch.float32)


def uniform_triton(noise: object, draw: int, d: int) -> Tensor:
    """Return the float32 uniforms of one draw in (0, 1], [N, d], as NoiseKey.uniform does."""
    return _noise(noise, draw, d, UNIFORM, torch.float32)


def words_triton(noise: object, draw: int, d: int) -> Tensor:
    """Return the Philox words behind d elements, int32 [N, d] (the bits of uint32)."""
    return _noise(noise, draw, d, WORDS, torch.int32)


def _noise(noise: object, draw: int, d: int, kind: tl.constexpr, dtype: torch.dtype) -> Tensor:
    ids, seed = noise.ids, noise.seed
    seeds = require_key("noise", ids.device, len(ids), noise)
    out = torch.empty((len(ids), d), dtype=dtype, device=ids.device)
    size = block(d)
    rows = TILE // size
    grid = (triton.cdiv(len(ids), rows), triton.cdiv(d, size))
    signed = draw - (1 << 32) if draw >> 31 else draw
    unit = vector(d)
    launch(_noise_kernel, grid, out, out, seed, ids, signed, len(ids), d // unit,
           OWN_SEED=seeds, KIND=kind, VECTOR=unit, ROWS=rows, BLOCK=size)  # fmt: skip
    return out
