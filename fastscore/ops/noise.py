r"""Noise v1: a normal is a pure function of (seed, sample id, draw, element).

Philox4x32-10 (Salmon et al. 2011) turns a 64-bit key and a 128-bit counter into four 32-bit words:

    key = seed,   counter = (element // 4, draw, id low, id high)

so one block of four words serves four consecutive elements of one sample; the samples of a batch have
one seed, or each its own. Box-Muller turns the words (w0, w1) into two normals, (w2, w3) into two more.
With u = (w0 + 1/2) 2^-32 in float32,

    L = -2 ln u,   S = sin^2 of the angle 2 pi w1 2^-32 reduced to the nearest axis,
    |z0|, |z1| = sqrt(L - L S), sqrt(L S), swapped where that axis is vertical; signs from w1.

The logarithm and sin^2 are minimax polynomials of our own, evaluated in IEEE float32 in the order
written below; each multiply and add rounds on its own (no fused multiply-add) and both square roots
are correctly rounded. So the normals, not only the words, are equal to the bit on every backend.

Against the same formula in exact arithmetic the error of z is 3.5e-8 rms. The largest seen in 3e9 pairs
of words is 3.2e-7 where |z| < 2 and 6.7e-7 in the tail, which ends at |z| = 6.76; a bound over all words
is 9.4e-7. This file is the specification; any change of a value is a new version.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from operator import index
from typing import Any, Protocol

import torch
from torch import Tensor

from fastscore.errors import short

VERSION = 1
LABEL_DRAW = 0xFFFFFFFF  # class labels; plans number their draws upwards from 0
LEVEL_DRAW = 0xFFFFFFFE  # where a sample lies between two levels of its data
WINDOW_DRAW = 0xFFFFFFFD  # where a window of steps begins
PROBE_DRAW = 0xFF000000  # the first of the probes of a divergence
_MASK = 0xFFFFFFFF
_CACHED_BLOCKS = 1 << 16


class Noise(Protocol):
    """The source of a plan's normals: one [N, D] tensor for each draw."""

    def normal(self, draw: Tensor, d: int, dtype: torch.dtype) -> Tensor:
        """Return the normals of every sample; ``draw`` is integer, [N] or [1]."""
        ...


@dataclass(frozen=True)
class NoiseKey:
    """The generated noise of a batch.

    Attributes:
        seed: int64 [1], or [N] where samples have seeds of their own; the 64 bits of the key.
        ids: int64 [N]; the sample ids.

    Raises:
        ValueError: neither one seed nor one a sample.
    """

    seed: Tensor
    ids: Tensor

    def __post_init__(self) -> None:
        if self.seed.shape != (1,) and self.seed.shape != self.ids.shape:
            raise ValueError(f"seed is {list(self.seed.shape)} for ids {list(self.ids.shape)}; expected [1] or [N]")

    @classmethod
    def of(
        cls, seed: int | Sequence[int] | Tensor, ids: Sequence[int] | Tensor, device: torch.device | str = "cpu"
    ) -> NoiseKey:
        """Build a key from Python integers: one seed for all samples, or a sequence of one a sample.

        Raises:
            ValueError: a seed outside 0 .. 2^64-1, an id outside 0 .. 2^63-1, not an integer, or
                another number of seeds than of ids.
        """
        seeds = _seeds(seed)
        try:
            listed = (
                ids
                if isinstance(ids, range)
                else [index(k) for k in (ids.tolist() if isinstance(ids, Tensor) else ids)]
            )
        except (TypeError, RuntimeError):
            raise ValueError(f"ids = {short(ids)} must be a sequence of integers") from None
        ends = (listed[0], listed[-1]) if isinstance(listed, range) and len(listed) else listed
        outside = next((k for k in ends if not 0 <= k < 1 << 63), None)
        if outside is not None:
            raise ValueError(f"id {outside} must lie in 0 .. 2^63-1")
        if isinstance(seeds, list) and len(seeds) != len(listed):
            raise ValueError(
                f"seed is a sequence of {len(seeds)} for {len(listed)} ids; expected an int or one a sample"
            )
        signed = [k - (1 << 64) if k >> 63 else k for k in (seeds if isinstance(seeds, list) else [seeds])]
        if isinstance(listed, range):
            numbers = torch.arange(len(listed), device=device)  # in place: a million ids are 8 MB, once
            numbers.mul_(listed.step).add_(listed.start if len(listed) else 0)
        else:
            numbers = torch.tensor(listed, dtype=torch.int64, device=device)
        return cls(torch.tensor(signed, dtype=torch.int64, device=device), numbers)

    def part(self, at: slice | Tensor) -> NoiseKey:
        """Return the key of some of the samples."""
        return NoiseKey(self.seed if self.seed.shape[0] == 1 else self.seed[at], self.ids[at])

    def words(self, draw: Tensor | int, blocks: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Return the four Philox words of ``blocks`` blocks of each sample, int64 [N, blocks] each."""
        ids = self.ids[:, None]
        block = torch.arange(blocks, device=ids.device)[None, :]
        if isinstance(draw, Tensor):
            draw = draw.to(torch.int64)[:, None]
        zero = torch.zeros((len(ids), blocks), dtype=torch.int64, device=ids.device)
        counter = (zero + block, (zero + draw) & _MASK, zero + (ids & _MASK), zero + ((ids >> 32) & _MASK))
        seed = self.seed[:, None]
        return philox(counter, (seed & _MASK, (seed >> 32) & _MASK))

    def normal(self, draw: Tensor | int, d: int, dtype: torch.dtype = torch.float32) -> Tensor:
        """Return z ~ N(0, 1), [N, d]; float64 widens the float32 normals."""
        blocks, n = (d + 3) // 4, len(self.ids)
        count = max(1, _CACHED_BLOCKS // blocks) if self.ids.device.type == "cpu" else n
        if n > count:  # a few samples at a time, so that what lies between words and normals stays in cache
            split = draw.split(count) if isinstance(draw, Tensor) and len(draw) > 1 else None
            draws = split or [draw] * -(-n // count)
            parts = (self.part(slice(k * count, (k + 1) * count)) for k in range(len(draws)))
            return torch.cat([part.normal(k, d, dtype) for part, k in zip(parts, draws, strict=True)])
        w0, w1, w2, w3 = self.words(draw, blocks)
        z = torch.stack([*_box_muller(w0, w1), *_box_muller(w2, w3)], dim=-1)
        return z.flatten(1)[:, :d].to(dtype)

    def uniform(self, draw: Tensor | int, d: int) -> Tensor:
        """Return u = (w + 1/2) 2^-32 in float32, in (0, 1], [N, d]."""
        words = torch.stack(self.words(draw, (d + 3) // 4), dim=-1)
        return ((words.to(torch.float32) + 0.5) * 2.0**-32).flatten(1)[:, :d]

    def sign(self, draw: Tensor | int, d: int, dtype: torch.dtype = torch.float32) -> Tensor:
        """Return -1 or 1 with equal odds, [N, d]: the top bit of a word each."""
        words = torch.stack(self.words(draw, (d + 3) // 4), dim=-1).flatten(1)[:, :d]
        return 1.0 - 2.0 * (words >> 31).to(dtype)

    def integer(self, draw: Tensor | int, n: int) -> Tensor:
        """Return one integer of 0 .. n-1 for each sample, int64 [N]: floor(w n / 2^32)."""
        return (self.words(draw, 1)[0][:, 0] * n) >> 32


@dataclass(frozen=True)
class RecordedNoise:
    """Normals that were recorded elsewhere, in place of generated ones.

    Attributes:
        z: [draws, N, D]; row k is what a plan's draw k receives.
    """

    z: Tensor

    def normal(self, draw: Tensor, d: int, dtype: torch.dtype) -> Tensor:
        """Return the recorded normals of one draw, [N, d]."""
        return self.z.index_select(0, draw.reshape(-1)[:1].to(torch.int64))[0].to(dtype)


def _seeds(seed: Any) -> int | list[int]:
    """Return one seed, or the list of one a sample, as Python integers in 0 .. 2^64-1."""
    value = seed.tolist() if isinstance(seed, Tensor) and not seed.is_meta and not seed.is_sparse else seed
    if isinstance(value, Tensor | bool):
        raise ValueError(f"seed = {short(seed)} must be an integer")
    if isinstance(value, Iterable) and not isinstance(value, str) and getattr(value, "ndim", 1):
        return [_seed(k, f"seed[{place}]") for place, k in enumerate(value)]
    return _seed(value, "seed")


def _seed(value: Any, name: str) -> int:
    try:
        number = index(value)
    except TypeError:
        raise ValueError(f"{name} = {short(value)} must be an integer") from None
    if not 0 <= number < 1 << 64:
        raise ValueError(f"{name} = {number} must lie in 0 .. 2^64-1")
    return number


def philox(counter: tuple[Tensor, ...], key: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Ten rounds of Philox4x32 on 32-bit words held in int64. Source: Salmon et al. 2011."""
    c0, c1, c2, c3 = counter
    k0, k1 = key
    for _ in range(10):
        # The product wraps in int64; masking removes the sign extension, so the words are exact.
        p0, p1 = c0 * 0xD2511F53, c2 * 0xCD9E8D57
        c0, c1 = ((p1 >> 32) & _MASK) ^ c1 ^ k0, p1 & _MASK
        c2, c3 = ((p0 >> 32) & _MASK) ^ c3 ^ k1, p0 & _MASK
        k0, k1 = (k0 + 0x9E3779B9) & _MASK, (k1 + 0xBB67AE85) & _MASK
    return c0, c1, c2, c3


def _box_muller(w0: Tensor, w1: Tensor) -> tuple[Tensor, Tensor]:
    total = _minus_two_log(w0)
    across = total * _sin_squared(w1)
    along = _sqrt(total - across)
    across = _sqrt(across)
    odd = ((w1 + 0x20000000) & 0x40000000) != 0
    z0, z1 = torch.where(odd, across, along), torch.where(odd, along, across)
    return _signed(z0, w1 + 0x40000000), _signed(z1, w1)


def _minus_two_log(w: Tensor) -> Tensor:
    """-2 ln((w + 1/2) 2^-32) >= 0: exponent split at sqrt(1/2), then a series in g = 2 - 2 mantissa."""
    bits = (w.to(torch.float32) + 0.5).view(torch.int32)
    exponent = (bits - 0x4F3504F3) & -0x800000
    g = 2.0 - (bits - exponent - 0x0F800000).view(torch.float32)
    y = g * _LOG[0] + _LOG[1]
    for coefficient in _LOG[2:]:
        y = y * g + coefficient
    y = y * (g * g)
    scale = exponent.to(torch.float32)
    return y + scale * _LOG_LOW + g + scale * _LOG_HIGH  # scale * _LOG_HIGH is exact


def _sin_squared(w: Tensor) -> Tensor:
    """sin^2 of the angle 2 pi w 2^-32 measured from the nearest axis, in 0 .. 1/2."""
    quarter = (w << 2) & _MASK  # two top bits gone; what is left is signed
    x = torch.where(quarter >= 1 << 31, quarter - (1 << 32), quarter).to(torch.float32) * 2.0**-31
    z = x * x
    y = z * _SIN[0] + _SIN[1]
    for coefficient in _SIN[2:]:
        y = y * z + coefficient
    return y * z


def _sqrt(v: Tensor) -> Tensor:
    # torch.sqrt of a float32 CPU tensor is not correctly rounded; through float64 it is.
    return v.to(torch.float64).sqrt().to(torch.float32)


def _signed(v: Tensor, w: Tensor) -> Tensor:
    """Give v >= 0 the sign of bit 31 of w."""
    return torch.where((w & 0x80000000) != 0, -v, v)


# Minimax coefficients, highest power first; each is a float32.
_LOG = (
    0.0003500047023408115,
    0.0011380879441276193,
    0.0023342655040323734,
    0.00516442721709609,
    0.012472384609282017,
    0.03125528246164322,
    0.08333547413349152,
    0.2499997317790985,
)
_LOG_HIGH, _LOG_LOW = -1.6525882529094815e-07, -3.4060639508490254e-13  # -2 ln(2) 2^-23, split
_SIN = (
    1.153731773229083e-05,
    -0.00045802260865457356,
    0.010430724360048771,
    -0.12683449685573578,
    0.6168502569198608,
)
