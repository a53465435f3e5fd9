"""The library of fused.cpp: its structures, loading it, the threads that it runs on.

It runs on the threads of PyTorch's own OpenMP runtime, as many as torch.get_num_threads(); where that runtime cannot be
reached (macOS) it runs on one. The bits are the same on any number.
"""

from __future__ import annotations

import ctypes
import zlib
from ctypes import POINTER, Structure, c_float, c_int, c_int64, c_uint32, c_void_p
from functools import cache
from importlib.machinery import EXTENSION_SUFFIXES
from pathlib import Path

import torch

ISAS = ("baseline", "avx2", "avx512")
_ABI = 4  # of the structures below; fused.cpp has the same number


class Network(Structure):
    """What the networks gave: F and F2, their types, and how many of their channels lie last."""

    _fields_ = [
        ("f", c_void_p), ("f2", c_void_p), ("type", c_int64), ("type2", c_int64), ("channels", c_int64),
        ("channels2", c_int64),
    ]  # fmt: skip


class Rows(Structure):
    """A table and the row number of each sample."""

    _fields_ = [("table", c_void_p), ("idx", c_void_p), ("count", c_int64), ("stride", c_int64), ("wide", c_int64)]


class Key(Structure):
    """The key of the noise: ids, and one seed or one a sample."""

    _fields_ = [("ids", c_void_p), ("seeds", c_void_p), ("stride", c_int64)]


class Update(Structure):
    """A call of fastscore_update."""

    _fields_ = [
        ("n", c_int64), ("d", c_int64), ("slots", c_int64), ("u_type", c_int64), ("x", c_void_p), ("hist", c_void_p),
        ("mean", c_void_p), ("u", c_void_p), ("key", Key), ("known_key", Key), ("known", c_void_p),
        ("mask", c_void_p), ("net", Network), ("rows", Rows), ("known_rows", Rows),
    ]  # fmt: skip


class Norms(Structure):
    """A call of fastscore_langevin."""

    _fields_ = [
        ("n", c_int64), ("d", c_int64), ("x", c_void_p), ("mm", c_void_p), ("zz", c_void_p), ("key", Key),
        ("net", Network), ("rows", Rows),
    ]  # fmt: skip


class Normal(Structure):
    """A call of fastscore_normal."""

    _fields_ = [("n", c_int64), ("d", c_int64), ("key", Key), ("out", c_void_p), ("draw", c_uint32)]


class Quantize(Structure):
    """A call of fastscore_quantize."""

    _fields_ = [
        ("n", c_int64), ("channels", c_int64), ("pixels", c_int64), ("x", c_void_p), ("out", c_void_p),
        ("offset", c_float),
    ]  # fmt: skip


def library_file() -> Path | None:
    """Return the compiled library beside this file; None if the install had no compiler."""
    files = (Path(__file__).with_name(f"_fused{suffix}") for suffix in EXTENSION_SUFFIXES)
    return next((file for file in files if file.exists()), None)


@cache
def library() -> ctypes.CDLL:
    """Load the library and choose the best instruction set of this CPU.

    Raises:
        ValueError: there is none, or it does not belong to this file.
    """
    file = library_file()
    if file is None:
        raise ValueError("the library of the cpp backend was not built: install g++ or clang++, then fastscore again")
    try:
        lib = ctypes.CDLL(str(file))
        matches = lib.fastscore_abi() == _ABI
    except (OSError, AttributeError) as error:
        raise ValueError(
            f"the library of the cpp backend cannot be loaded ({error}): install fastscore again"
        ) from None
    if not matches:
        raise ValueError("the library of the cpp backend was built from other sources: install fastscore again")
    lib.fastscore_isa.argtypes = [c_int]
    lib.fastscore_update.argtypes = [POINTER(Update), c_void_p, c_int64]
    lib.fastscore_langevin.argtypes = [POINTER(Norms), c_void_p, c_void_p, c_int64, c_void_p, c_int64]
    lib.fastscore_normal.argtypes = [POINTER(Normal), c_void_p, c_int64]
    lib.fastscore_quantize.argtypes = [POINTER(Quantize), c_void_p, c_int64]
    lib.fastscore_isa(len(ISAS) - 1)
    return lib


def describe() -> str:
    """Return what identifies the library: instruction set and a checksum of the file."""
    isa = ISAS[library().fastscore_isa(len(ISAS) - 1)]
    file = library_file()
    return f"{isa} {zlib.crc32(file.read_bytes()):08x}" if file else isa


@cache
def _fork() -> int | None:
    """Return the address of GOMP_parallel in the OpenMP runtime that PyTorch is linked with."""
    for name in ("libtorch_cpu.so", "libtorch_cpu.dylib"):
        try:
            runtime = ctypes.CDLL(str(Path(torch.__file__).parent / "lib" / name))
            return ctypes.cast(runtime.GOMP_parallel, c_void_p).value
        except (OSError, AttributeError):  # another platform, another layout, another OpenMP
            continue
    return None


def team(elements: int) -> tuple[int | None, int]:
    """Return what starts threads and how many; waking them costs more than a small state."""
    return (_fork(), torch.get_num_threads()) if elements >= 8192 else (None, 1)
