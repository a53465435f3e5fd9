"""Launchers of fused.cpp: argument checks, one ctypes call."""

from __future__ import annotations

from collections.abc import Callable
from ctypes import byref

import torch
from torch import Tensor

from .. import abi
from ..checks import channels_last, require, require_key, require_output, require_rows
from .library import Key, Network, Normal, Norms, Quantize, Rows, Update, library, team

NORMS = ("sample", "expected", "batch", "tutorial")
OFFSET = {"nearest": 128.0, "floor": 127.5}
_TYPE = {torch.float32: 0, torch.bfloat16: 1}
_TYPES = tuple(_TYPE)
_STATE = (torch.float32,)


def _rows(table: Tensor, idx: Tensor) -> Rows:
    return Rows(table.data_ptr(), idx.data_ptr(), table.shape[0], idx.stride(0), idx.dtype is torch.int64)


def _readable(F: Tensor | None) -> Tensor | None:
    """Return a network output as the library reads it; what is neither float32 nor bfloat16 becomes float32."""
    if F is None or not F.is_floating_point():
        return F
    F = F if F.dtype in _TYPE else F.to(torch.float32)
    return F if F.is_contiguous() or channels_last(F) > 1 else F.contiguous()


def _network(op: str, x: Tensor, F: Tensor | None, F2: Tensor | None) -> Network:
    """Check network outputs for the state x [N, D]; return where the library finds them."""
    channels, channels2 = require_output(op, "F", F, x, _TYPES), require_output(op, "F2", F2, x, _TYPES)
    return Network(_pointer(F), _pointer(F2), _type(F), _type(F2), channels, channels2)


def _pointer(t: Tensor | None) -> int | None:
    return None if t is None else t.data_ptr()


def _type(t: Tensor | None) -> int:
    return 0 if t is None else _TYPE[t.dtype]


def _key(op: str, device: torch.device, n: int, noise: object) -> Key:
    """Check the key of n samples; return where the library finds it, to read it at each call."""
    if not hasattr(noise, "seed"):
        raise ValueError(f"{op}: kernels generate their noise; recorded noise needs backend='reference'")
    stride = require_key(op, device, n, noise)
    return Key(noise.ids.data_ptr(), noise.seed.data_ptr(), stride)


def _on_cpu(op: str, x: Tensor) -> torch.device:
    if x.device.type != "cpu":
        raise ValueError(f"{op}: x is on {x.device}; the cpp backend runs on the CPU")
    return x.device


def _check(op: str, error: int) -> None:
    if error:
        raise IndexError(f"{op}: idx has a row number outside its table")


def update_cpu(
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
        F, F2: network outputs, [N, D], or [N, C, ...] as the network left them; read in place if they are float32 or
            bfloat16, contiguous or with channels last, else converted first.
        hist: history slots, [S, N, D] float32, S <= abi.SLOTS.
        table: lowered plan, [rows, abi.WIDTH] float32.
        idx: row read by each sample, [N] int32 or int64 (broadcast with stride 0).
        noise: key with ``seed`` int64 [1] or [N] and ``ids`` int64 [N]; None if the row's c is 0.
        known: ``y`` [N, D] float32, ``mask`` [N, D] bool, ``table``, ``idx`` and ``noise``; None for no mask.
        out_u: next network input, [N, D]; float32 and bfloat16 are written in place, other floats copied.
        out_mean: x' without its noise term, [N, D] float32; None to leave it.

    Raises:
        ValueError: a shape, dtype, device or stride that the library does not support.
        IndexError: a row number outside its table.
    """
    device = _on_cpu("update", x)
    if x.ndim != 2:
        raise ValueError(f"update: x has shape {list(x.shape)}; expected [N, D]")
    n, d = x.shape
    slots = hist.shape[0]  # len() of a tensor is a slow Python method
    if slots > abi.SLOTS:
        raise ValueError(f"update: hist has {slots} slots; at most {abi.SLOTS}")
    if F2 is not None and F is None:
        raise ValueError("update: F2 without F")
    F, F2 = _readable(F), _readable(F2)
    u = out_u
    if u is not None and u.dtype not in _TYPE and u.is_floating_point():
        u = torch.empty_like(u, dtype=torch.float32)
    require(
        "update", device, x=(x, (n, d), _STATE), hist=(hist, (slots, n, d), _STATE), out_u=(u, (n, d), _TYPES),
        out_mean=(out_mean, (n, d), _STATE),
    )  # fmt: skip
    require_rows("update", device, n, table, idx, abi.WIDTH)
    call = Update(
        n, d, slots, 0 if u is None else _TYPE[u.dtype], x.data_ptr(), hist.data_ptr(), _pointer(out_mean),
        _pointer(u), net=_network("update", x, F, F2), rows=_rows(table, idx),
    )  # fmt: skip
    if noise is not None:
        call.key = _key("update", device, n, noise)
    if known is not None:
        require("update", device, y=(known.y, (n, d), _STATE), mask=(known.mask, (n, d), (torch.bool,)))
        require_rows("update", device, n, known.table, known.idx, abi.WIDTH)
        call.known_key = _key("update", device, n, known.noise)
        call.known, call.mask = known.y.data_ptr(), known.mask.data_ptr()
        call.known_rows = _rows(known.table, known.idx)
    if x.numel() == 0:
        return
    _check("update", library().fastscore_update(byref(call), *team(n * d)))
    if out_u is not None and u is not None and u is not out_u:
        out_u.copy_(u)


def bind_update_cpu(
    x: Tensor, hist: Tensor, table: Tensor, idx: Tensor, noise: object, out_u: Tensor
) -> Callable[[Tensor | None, Tensor | None, bool], None]:
    """Return update_cpu of tensors that stay where they are: update(F, F2, noisy).

    They are checked now, and a call checks only F and F2: for a small state the checks take as long as the row.

    Raises:
        ValueError: as update_cpu.
    """
    device = _on_cpu("update", x)
    n, d = x.shape
    if out_u.dtype not in _TYPE or not x.numel():

        def plain(F: Tensor | None, F2: Tensor | None, noisy: bool) -> None:
            update_cpu(x, F, hist, table, idx, noise if noisy else None, F2=F2, out_u=out_u)

        return plain
    slots = hist.shape[0]
    require(
        "update", device, x=(x, (n, d), _STATE), hist=(hist, (slots, n, d), _STATE),
        out_u=(out_u, (n, d), _TYPES),
    )  # fmt: skip
    require_rows("update", device, n, table, idx, abi.WIDTH)
    call = Update(
        n, d, slots, _TYPE[out_u.dtype], x.data_ptr(), hist.data_ptr(), None, out_u.data_ptr(), rows=_rows(table, idx),
    )  # fmt: skip
    run, key, silent = library().fastscore_update, _key("update", device, n, noise), Key()
    referenced = (x, hist, table, idx, noise.seed, noise.ids, out_u)  # the call knows them by address only

    def update(F: Tensor | None, F2: Tensor | None, noisy: bool, referenced: tuple[Tensor, ...] = referenced) -> None:
        F, F2 = _readable(F), _readable(F2)
        call.net = _network("update", x, F, F2)
        call.key = key if noisy else silent
        _check("update", run(byref(call), *team(n * d)))

    return update


def langevin_cpu(
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

    Args: as for update_cpu; ``norm`` is one of NORMS; ``valid`` is float32 [N].

    Raises: as update_cpu; ValueError for an unknown norm.
    """
    if norm not in NORMS:
        raise ValueError(f"norm = {norm!r} must be one of {', '.join(NORMS)}")
    device = _on_cpu("langevin", x)
    if x.ndim != 2:
        raise ValueError(f"langevin: x has shape {list(x.shape)}; expected [N, D]")
    if F is None:
        raise ValueError("langevin: F is None; a row with a Langevin step needs a network output")
    n, d = x.shape
    F, F2 = _readable(F), _readable(F2)
    require(
        "langevin", device, x=(x, (n, d), _STATE),
        scratch=(scratch, (n, abi.WIDTH), _STATE), valid=(valid, (n,), _STATE),
    )  # fmt: skip
    require_rows("langevin", device, n, table, idx, abi.WIDTH)
    key = _key("langevin", device, n, noise)
    if x.numel() == 0:
        return
    squares = torch.empty((2, n), dtype=torch.float32)
    mm = squares.data_ptr()
    call = Norms(
        n, d, x.data_ptr(), mm, mm + 4 * n, key if norm in ("sample", "batch") else Key(),
        _network("langevin", x, F, F2), _rows(table, idx),
    )  # fmt: skip
    tail = (scratch.data_ptr(), valid.data_ptr(), NORMS.index(norm), *team(n * d))
    _check("langevin", library().fastscore_langevin(byref(call), *tail))


def normal_cpu(noise: object, draw: int, d: int, out: Tensor | None = None) -> Tensor:
    """Return z of one draw, float32 [N, d], as NoiseKey.normal does and to the same bits; into ``out`` if given."""
    n, device = len(noise.ids), torch.device("cpu")
    key = _key("normal", device, n, noise)
    out = torch.empty((n, d), dtype=torch.float32) if out is None else out
    require("normal", device, out=(out, (n, d), _STATE))
    if out.numel():
        call = Normal(n, d, key, out.data_ptr(), draw)
        library().fastscore_normal(byref(call), *team(n * d))
    return out


def quantize_cpu(x: Tensor, rounding: str = "nearest") -> Tensor:
    """Return uint8 [N, H, W, C] of float32 images [N, C, H, W] in [-1, 1], as quantize_ref does.

    Raises:
        ValueError: an unknown rounding rule; a shape, dtype or stride that the library does not support.
    """
    if rounding not in OFFSET:
        raise ValueError(f"rounding = {rounding!r} must be nearest or floor")
    if x.ndim != 4:
        raise ValueError(f"quantize: x has shape {list(x.shape)}; expected [N, C, H, W]")
    n, c, h, w = x.shape
    require("quantize", _on_cpu("quantize", x), x=(x, (n, c, h, w), _STATE))
    out = torch.empty((n, h, w, c), dtype=torch.uint8)
    if out.numel():
        call = Quantize(n, c, h * w, x.data_ptr(), out.data_ptr(), OFFSET[rounding])
        library().fastscore_quantize(byref(call), *team(x.numel()))
    return out
