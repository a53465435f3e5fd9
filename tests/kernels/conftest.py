"""Where the kernels run: Triton's interpreter, their PTX in an emulator, or a GPU; the tests are the same."""

from __future__ import annotations

import importlib
import importlib.util
import re
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from types import SimpleNamespace
from unittest import mock

import numpy as np
import pytest
import torch
import triton
import triton.runtime.interpreter
from triton.backends.compiler import GPUTarget

from fastscore import kernels

from .ptx_emulator import run
from .ptx_parser import Program, parse

MODULES = ("noise", "update", "norms", "quantize", "counter", "inspect.aot")
EXECUTORS = (
    "interpreter",
    "sm_90",
    pytest.param("sm_80", marks=pytest.mark.slow),
    pytest.param("sm_100", marks=pytest.mark.slow),
    pytest.param("cuda", marks=pytest.mark.gpu),
)


@cache
def load(name: str, folder: Path = Path(kernels.__file__).parent) -> SimpleNamespace:
    """Import the kernels under a name of their own: Triton decides at decoration whether to interpret."""
    spec = importlib.util.spec_from_file_location(
        name, folder / "__init__.py", submodule_search_locations=[str(folder)]
    )
    sys.modules[name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(sys.modules[name])
    with mock.patch.dict("os.environ", TRITON_INTERPRET="0" if name == "kernels_compiled" else "1"):
        return SimpleNamespace(
            **{module.split(".")[-1]: importlib.import_module(f"{name}.{module}") for module in MODULES}
        )


@pytest.fixture(params=EXECUTORS, scope="module")
def executor(request: pytest.FixtureRequest) -> Iterator[SimpleNamespace]:
    """The kernel modules, their launches going to the executor, with its ``name`` and ``device``."""
    name = request.param
    if name == "interpreter":
        with mock.patch.object(triton.runtime.interpreter, "_convert_float", to_nearest_bf16):
            yield SimpleNamespace(**vars(load("kernels_interpreter")), name=name, device="cpu")
    elif name == "cuda":
        if not torch.cuda.is_available():
            pytest.skip("runs the kernels on a CUDA device; there is none")
        yield SimpleNamespace(**vars(load("kernels_compiled")), name=name, device="cuda")
    else:
        modules = load("kernels_compiled")
        target = modules.aot.TARGETS[name]
        with modules.aot.capture(lambda launch: emulate(launch, target)):
            yield SimpleNamespace(**vars(modules), name=name, device="cpu")


def emulate(launch: object, target: GPUTarget) -> None:
    """Compile a launch and execute its PTX on the memory of its tensors."""
    arguments = [memory(a) if isinstance(a, torch.Tensor) else a for a in launch.pointers_and_numbers]
    ptx = launch.compile(target).asm["ptx"]
    assert not re.search(r"\bfma\.|\.ftz|\.approx", ptx)  # what changes bits, whichever Triton compiled it
    run(program(ptx), launch.grid, arguments)


@cache
def program(ptx: str) -> Program:
    return parse(ptx)


def memory(tensor: torch.Tensor) -> np.ndarray:
    """The elements that a tensor reaches, as a flat array of raw bytes."""
    reach = 1 + sum((size - 1) * stride for size, stride in zip(tensor.shape, tensor.stride(), strict=True))
    return tensor.as_strided((reach,), (1,)).view(torch.uint8).numpy()


_convert = triton.runtime.interpreter._convert_float


def to_nearest_bf16(v: np.ndarray, source: object, target: object, rounding: object) -> np.ndarray:
    """Round float32 to bfloat16 as hardware does; the interpreter cuts the lower half off."""
    if str(target) != "bf16":
        return _convert(v, source, target, rounding)
    return torch.from_numpy(np.ascontiguousarray(v)).to(torch.bfloat16).view(torch.int16).numpy().view(np.uint16)
