"""What bits depend on: the bytes of tensors, and the processor."""

from __future__ import annotations

import hashlib
import platform
from functools import cache
from pathlib import Path

import torch


def raw(tensor: torch.Tensor) -> memoryview:
    """Return the bytes of a tensor, in the order of its elements."""
    flat = tensor.detach().cpu().resolve_conj().resolve_neg().flatten()
    flat = (
        flat if flat.stride() == (1,) else flat.clone(memory_format=torch.contiguous_format)
    )  # one element of an expanded tensor has stride 0
    return flat.view(torch.uint8).numpy().data


@cache
def processor() -> str:
    """Return what compiled code depends on: architecture, vector width, the kernel's list of features."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = [platform.processor()]
    features = {line for line in lines if line.startswith(("model name", "flags", "Features"))} or set(lines)
    about = f"{platform.system()} {platform.machine()} {torch.backends.cpu.get_cpu_capability()}"
    return about + hashlib.sha256("\n".join(sorted(features)).encode()).hexdigest()[:16]
