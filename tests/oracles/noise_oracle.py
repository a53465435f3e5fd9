"""Noise v1 once more, in NumPy, straight from its definition; shares no code with fastscore."""

from __future__ import annotations

import numpy as np

U32, F32 = np.uint32, np.float32


def philox(counter: tuple, key: tuple) -> list[np.ndarray]:
    """Philox4x32-10 with 64-bit products."""
    c = [np.asarray(v, np.uint64) for v in counter]
    k = [int(v) for v in key]
    for _ in range(10):
        p, q = c[0] * np.uint64(0xD2511F53), c[2] * np.uint64(0xCD9E8D57)
        high, low = np.uint64(32), np.uint64(0xFFFFFFFF)
        c = [(q >> high) ^ c[1] ^ np.uint64(k[0]), q & low, (p >> high) ^ c[3] ^ np.uint64(k[1]), p & low]
        k = [(k[0] + 0x9E3779B9) % 2**32, (k[1] + 0xBB67AE85) % 2**32]
    return [v.astype(U32) for v in c]


def words(seed: int, ids: list[int], draw: int, d: int) -> np.ndarray:
    """Words [N, blocks, 4]."""
    block = np.arange((d + 3) // 4, dtype=np.uint64)
    rows = []
    for k in ids:
        counter = (block, np.full_like(block, draw), np.full_like(block, k % 2**32), np.full_like(block, k >> 32))
        rows.append(np.stack(philox(counter, (seed % 2**32, seed >> 32)), -1))
    return np.stack(rows)


def normals(seed: int, ids: list[int], draw: int, d: int) -> np.ndarray:
    """Float32 normals [N, d]."""
    w = words(seed, ids, draw, d)
    z = np.stack([*box_muller(w[..., 0], w[..., 1]), *box_muller(w[..., 2], w[..., 3])], -1)
    return z.reshape(len(ids), -1)[:, :d]


def box_muller(w0: np.ndarray, w1: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    total = minus_two_log(w0)
    across = total * sin_squared(w1)
    along, across = np.sqrt(total - across), np.sqrt(across)
    swap = ((w1 + U32(1 << 29)) & U32(1 << 30)) != 0
    z0, z1 = np.where(swap, across, along), np.where(swap, along, across)
    left, below = (w1 + U32(1 << 30)) >= U32(1 << 31), w1 >= U32(1 << 31)
    return np.where(left, -z0, z0), np.where(below, -z1, z1)


def minus_two_log(w: np.ndarray) -> np.ndarray:
    bits = (w.astype(F32) + F32(0.5)).view(np.int32)
    exponent = (bits - np.int32(0x4F3504F3)) & np.int32(-(1 << 23))
    g = F32(2) - (bits - exponent - np.int32(0x0F800000)).view(F32)
    high = "0x1.6f01acp-12 0x1.2a57cap-10 0x1.31f4f4p-9 0x1.5274b6p-8"
    low = "0x1.98b1f2p-7 0x1.000b14p-5 0x1.555794p-4 0x1.ffffdcp-3"
    a = [F32(float.fromhex(v)) for v in f"{high} {low}".split()]
    y = g * a[0] + a[1]
    for c in a[2:]:
        y = y * g + c
    scale = exponent.astype(F32)
    y = y * (g * g) + scale * F32(float.fromhex("-0x1.7f7d1cp-42"))
    return (y + g) + scale * F32(float.fromhex("-0x1.62e4p-23"))


def sin_squared(w: np.ndarray) -> np.ndarray:
    x = (w << U32(2)).view(np.int32).astype(F32) * F32(2.0**-31)
    z = x * x
    b = [
        F32(float.fromhex(v))
        for v in "0x1.8320cep-17 -0x1.e04582p-12 0x1.55cb42p-7 -0x1.03c1cep-3 0x1.3bd3ccp-1".split()
    ]
    y = z * b[0] + b[1]
    for c in b[2:]:
        y = y * z + c
    return y * z


def exact(w0: np.ndarray, w1: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Box-Muller in float64 at the float32 u: what the normals approximate."""
    u = ((w0.astype(F32) + F32(0.5)) * F32(2.0**-32)).astype(np.float64)
    r, angle = np.sqrt(-2.0 * np.log(u)), 2.0 * np.pi * w1.astype(np.float64) / 2.0**32
    return r * np.cos(angle), r * np.sin(angle)
