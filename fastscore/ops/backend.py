"""Backends, the code that runs a row: resolved once, by name and device, never silently."""

from __future__ import annotations

import importlib
import importlib.util
import os
import re
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache

import torch

from fastscore.errors import unknown
from fastscore.kernels.cpu import fused, library
from fastscore.ops.noise import NoiseKey
from fastscore.ops.norms import langevin_ref
from fastscore.ops.quantize import quantize_ref
from fastscore.ops.update import step_ref, update_ref

TRITON = (3, 6)  # the first that the kernels are written for; torch 2.6 to 2.9 bring older ones
BLACKWELL = (3, 7)  # the first whose ptxas leaves packed products and sums apart, as enable_fp_fusion=False says
BACKENDS = ("auto", "reference", "cpp", "triton")


def named_device(name: str) -> torch.device:
    """Return the device of a name: a network is loaded there, and samples are drawn where it lies.

    Args:
        name: "cpu", "cuda" (the current one), "cuda:N", or "auto": CUDA if there is one, else the CPU.

    Raises:
        ValueError: another kind of device, or a CUDA device that is not there.
    """
    count = torch.cuda.device_count()
    try:
        device = torch.device(("cuda" if count else "cpu") if name == "auto" else name)
    except RuntimeError:
        device = torch.device("meta")
    if device.type not in ("cpu", "cuda"):
        raise ValueError(f"device = {name[:60]!r} must be auto, cpu, cuda or cuda:N")
    if device.type == "cpu":
        return torch.device("cpu")
    if (device.index or 0) >= count:
        raise ValueError(f"device = {name!r}: this machine has {count} CUDA devices; use device auto or cpu")
    return torch.device("cuda", torch.cuda.current_device() if device.index is None else device.index)


Update = Callable[["torch.Tensor | None", "torch.Tensor | None", bool], None]


@dataclass(frozen=True)
class Ops:
    """The operations of one backend, called as their references are.

    The loop does not ask for out_mean, and the torch operators leave it out.
    """

    name: str
    update: Callable[..., None]
    langevin: Callable[..., None]
    quantize: Callable[..., torch.Tensor]
    step: Callable[..., None] = step_ref
    bind_update: Callable[..., Update] | None = None

    def bind(
        self,
        x: torch.Tensor,
        hist: torch.Tensor,
        table: torch.Tensor,
        idx: torch.Tensor,
        key: NoiseKey,
        out_u: torch.Tensor,
    ) -> Update:
        """Return update(F, F2, noisy) of tensors that stay where they are, which a backend may check once."""
        if self.bind_update is not None:
            return self.bind_update(x, hist, table, idx, key, out_u)

        def update(F: torch.Tensor | None, F2: torch.Tensor | None, noisy: bool) -> None:
            self.update(x, F, hist, table, idx, key if noisy else None, F2=F2, out_u=out_u)

        return update


REFERENCE = Ops("reference", update_ref, langevin_ref, quantize_ref)


@cache
def resolve(name: str, device: torch.device) -> Ops:
    """Return the operations for a device.

    Args:
        name: "reference" (PyTorch, anywhere), "cpp" (the CPU, where the install had a compiler),
            "triton" (CUDA devices) or "auto" (the fastest that runs there). The environment variable
            FASTSCORE_BACKEND overrides "auto".

    Raises:
        ValueError: an unknown name, or a backend that cannot run on the device.
    """
    if name == "auto":
        name = os.environ.get("FASTSCORE_BACKEND", "auto")
    if name not in BACKENDS:
        raise unknown("backend", name, BACKENDS)
    lack = triton_lack(device) if device.type == "cuda" else ""
    if name == "triton" and (device.type != "cuda" or lack):
        reason = lack or "it runs on CUDA devices"
        raise ValueError(f"backend = 'triton' cannot run on {device}: {reason}; use backend='auto'")
    if name == "cpp" and device.type != "cpu":
        raise ValueError(f"backend = 'cpp' cannot run on {device}: it runs on the CPU; use backend='auto'")
    if name == "cpp" or (name == "auto" and device.type == "cpu" and library.library_file()):
        library.library()  # raises here rather than at the first row
        return Ops("cpp", fused.update_cpu, fused.langevin_cpu, fused.quantize_cpu, bind_update=fused.bind_update_cpu)
    if name == "auto" and device.type == "cpu":
        warnings.warn(
            "fastscore was installed where there was no C++ compiler: same samples, slower noise and updates. Install "
            "g++ or clang++, then fastscore again; FASTSCORE_BACKEND=reference keeps this and says nothing",
            stacklevel=3,
        )
    if name == "reference" or device.type != "cuda":
        return REFERENCE
    if lack:
        warnings.warn(f"{lack}: using the reference backend, same samples, slower", stacklevel=3)
        return REFERENCE
    return operators("triton")


def triton_lack(device: torch.device | None = None) -> str:
    """Return why the triton that is installed cannot compile the kernels, for a CUDA device or at all; empty if it can.

    Source: the machine code of every kind of launch by every version, tests/kernels/test_aot.py.
    """
    if importlib.util.find_spec("triton") is None:
        return "triton is not installed (pip install triton)"
    try:
        version = importlib.import_module("triton").__version__
    except Exception as error:  # of another torch, half of it removed: it fails in every way there is
        return f"triton is installed but cannot be imported ({type(error).__name__}), install it again"
    release = tuple(map(int, re.findall(r"\d+", version)[:2]))
    if release < TRITON:
        return f"triton {version} cannot compile the kernels, which need {'.'.join(map(str, TRITON))} (torch 2.10)"
    packs = device is not None and not torch.version.hip and release < BLACKWELL
    if packs and torch.cuda.get_device_capability(device) >= (10, 0):
        return (
            f"triton {version} fuses products and sums on Blackwell GPUs, which changes bits; "
            f"{'.'.join(map(str, BLACKWELL))} (torch 2.12) does not"
        )
    return ""


def operators(name: str) -> Ops:
    """Return the torch operators: Triton on CUDA tensors, the reference on CPU ones, shapes on fake ones."""
    from fastscore.ops import torch_library as library

    return Ops(name, library.update, library.langevin, library.quantize, library.step)
