"""What CUDA makes of float32, and whatever else of a device and of torch's settings its bits depend on.

torch has two sets of names for TF32, the older of which it refuses to read where the newer one (2.9) was used. Both are
set for a run and given back as they were, each in the form in which it had been said.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

State = tuple[Any, ...]  # precision of matrix products and cuDNN's flag, None where unreadable; then the newer names'


def read() -> State:
    """Return how torch has been told to multiply float32."""
    older = (_told(torch.get_float32_matmul_precision), _told(lambda: torch.backends.cudnn.allow_tf32))
    return (*older, *(place.fp32_precision for place in _newer()))


def write(state: State | bool) -> None:
    """Multiply float32 as a state says that ``read`` returned; or in TF32 (True) or not (False) on CUDA."""
    if isinstance(state, bool):
        precision, cudnn, *newer = read()
        if precision is not None:
            torch.backends.cuda.matmul.allow_tf32 = state
        if cudnn is not None:
            torch.backends.cudnn.allow_tf32 = state
        newer = [*["tf32" if state else "ieee"] * (len(newer) - 1), *newer[-1:]]
    else:
        precision, cudnn, *newer = state
        if precision is not None:
            torch.set_float32_matmul_precision(precision)
        if cudnn is not None:
            torch.backends.cudnn.allow_tf32 = cudnn
    for place, value in zip(_newer(), newer, strict=True):
        place.fp32_precision = value


def tf32() -> str:
    """Return which float32 products CUDA would round to TF32 now: "off", "matmul", "convolutions" or "both"."""
    if newer := _newer():
        matmul, conv = (place.fp32_precision == "tf32" for place in newer[:2])
    else:
        matmul, conv = torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32
    return "both" if matmul and conv else "matmul" if matmul else "convolutions" if conv else "off"


def accelerator(place: torch.device) -> list[str]:
    """Return what compiled code depends on there: the GPU, its architecture, CUDA and Triton."""
    properties = torch.cuda.get_device_properties(place)
    return [
        properties.name,
        f"sm_{properties.major}{properties.minor}",
        f"CUDA {torch.version.cuda}",
        f"triton {_triton()}",
    ]


def described(place: torch.device) -> dict[str, Any]:
    """Return what bits on a CUDA device depend on beside torch, a run's own settings and its network's arithmetic."""
    name, architecture, *_ = accelerator(place)
    sdpa = {"flash": "flash_sdp", "efficient": "mem_efficient_sdp", "math": "math_sdp", "cudnn": "cudnn_sdp"}
    enabled = {k: getattr(torch.backends.cuda, f"{v}_enabled", lambda: False)() for k, v in sdpa.items()}
    return {
        "gpu": name,
        "architecture": architecture,
        "driver": _driver(),
        "cuda": torch.version.cuda,
        "cudnn": torch.backends.cudnn.version(),
        "triton": _triton(),
        "cudnn_benchmark": torch.backends.cudnn.benchmark,
        "cudnn_deterministic": torch.backends.cudnn.deterministic,
        "deterministic_algorithms": torch.are_deterministic_algorithms_enabled(),
        "cublas_workspace": os.environ.get("CUBLAS_WORKSPACE_CONFIG"),
        "attention": [k for k, on in enabled.items() if on],
    }


def _newer() -> list[Any]:
    """Return what has an ``fp32_precision``: CUDA's products, convolutions, recurrent layers; last the CPU's products.

    The older names set that of the CPU, too, which is no business of a run.
    """
    if not hasattr(torch.backends.cuda.matmul, "fp32_precision"):
        return []
    cudnn: Any = torch.backends.cudnn
    return [torch.backends.cuda.matmul, cudnn.conv, cudnn.rnn, torch.backends.mkldnn.matmul]  # pyright: ignore


def _told(read: Callable[[], Any]) -> Any:
    try:
        return read()
    except RuntimeError:  # both sets of names were used, and disagree
        return None


def _triton() -> str | None:
    try:
        import triton
    except Exception:  # absent, or broken
        return None
    return triton.__version__


def _driver() -> str | None:
    """Return the version of the driver, or of CUDA that it knows."""
    try:
        return Path("/sys/module/nvidia/version").read_text().strip()
    except OSError:
        number = getattr(torch._C, "_cuda_getDriverVersion", lambda: 0)()
        return f"CUDA {number // 1000}.{number % 1000 // 10}" if number else None
