"""Compile what a launcher would launch, for any target, with no GPU at hand.

with capture() as launches:
    update_triton(x, F, hist, table, idx, noise)     # CPU tensors; nothing runs
kernel = launches[0].compile(GPUTarget("cuda", 90, 32))
"""

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from unittest import mock

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource, CompiledKernel

TARGETS = {
    "sm_80": GPUTarget("cuda", 80, 32),
    "sm_90": GPUTarget("cuda", 90, 32),
    "sm_100": GPUTarget("cuda", 100, 32),
    "gfx942": GPUTarget("hip", "gfx942", 64),
}
_OPTIONS = {"num_warps", "enable_fp_fusion"}
_TYPES = {
    torch.float32: "*fp32", torch.bfloat16: "*bf16", torch.float16: "*fp16", torch.uint8: "*u8",
    torch.bool: "*i1", torch.int32: "*i32", torch.int64: "*i64",
}  # fmt: skip


@dataclass(frozen=True)
class Launch:
    """One recorded launch: the kernel, its grid, all arguments by name, and compiler options."""

    kernel: triton.JITFunction
    grid: tuple[int, ...]
    arguments: dict[str, object]
    options: dict[str, object]

    @property
    def pointers_and_numbers(self) -> list[object]:
        """The arguments that remain after compilation, in order."""
        _, constants, _ = self.specialization()
        return [v for k, v in self.arguments.items() if k not in constants]

    def specialization(self) -> tuple[dict[str, str], dict[str, object], dict[str, object]]:
        """Return (signature, constants, attributes) that Triton derives from the arguments.

        Pointers and integers that are multiples of 16 are known to be; an integer 1 is a constant.
        """
        signature, constants, attributes = {}, {}, {}
        for k, parameter in enumerate(self.kernel.params):
            value = self.arguments[parameter.name]
            if parameter.is_constexpr:
                signature[parameter.name], constants[parameter.name] = "constexpr", value
                continue
            free = parameter.do_not_specialize
            if isinstance(value, torch.Tensor):
                signature[parameter.name], multiple = _TYPES[value.dtype], value.data_ptr() % 16 == 0
            elif value == 1 and not free:
                signature[parameter.name], constants[parameter.name] = "constexpr", 1
                continue
            else:
                wide = not -(2**31) <= value < 2**31
                signature[parameter.name], multiple = "i64" if wide else "i32", value % 16 == 0 and not free
            if multiple:
                attributes[(k,)] = [["tt.divisibility", 16]]
        return signature, constants, attributes

    def compile(self, target: GPUTarget) -> CompiledKernel:
        """Compile for a target; ``asm`` of the result holds "ptx" and "cubin", or "amdgcn" and "hsaco"."""
        signature, constants, attributes = self.specialization()
        source = ASTSource(fn=self.kernel, signature=signature, constexprs=constants, attrs=attributes)
        return triton.compile(source, target=target, options=self.options)


@contextlib.contextmanager
def capture(act: Callable[[Launch], None] | None = None) -> Iterator[list[Launch]]:
    """Record launches instead of launching; ``act`` is called with each."""
    launches: list[Launch] = []

    def record(
        kernel: triton.JITFunction, *args: object, grid: tuple[int, ...], warmup: bool, **kwargs: object
    ) -> None:
        options = {k: kwargs.pop(k) for k in list(kwargs) if k in _OPTIONS}
        arguments = dict(zip((p.name for p in kernel.params), args, strict=False)) | kwargs
        launches.append(Launch(kernel, grid, {p.name: arguments[p.name] for p in kernel.params}, options))
        if act is not None:
            act(launches[-1])

    with mock.patch.object(triton.JITFunction, "run", record):
        yield launches
