"""Predict from the machine code alone whether each kernel is bound by memory; no GPU is needed.

    python -m bench.ops.static_report            print the table and write it into kernels/README.md
    python -m bench.ops.static_report --check    fail if the README's table is out of date or a target is missed

    time of memory   = bytes of an element / peak bandwidth
    time of compute  = the slowest of: instruction issue, FP32, integer multiply, ALU, special functions, load/store

Everything overlaps perfectly in this model and nothing is measured: a ratio of compute to memory well
below one says "bound by memory", one near or above one says "ask a GPU".
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
import triton

from fastscore.kernels import abi, noise, norms, quantize, update
from fastscore.kernels.inspect import aot, sass
from fastscore.ops.noise import NoiseKey
from fastscore.ops.update import KnownRow

README = Path(__file__).parents[2] / "kernels" / "README.md"
BEGIN, END = "<!-- static report: begin -->", "<!-- static report: end -->"
LIMIT = 0.65  # of compute over memory, for the float32 noise row on A100 and H100
THREADS = 128  # of a program of every kernel in the table


@dataclass(frozen=True)
class GPU:
    """Peak figures from data sheets; cycles that a warp instruction occupies its pipe of an SM quarter."""

    name: str
    arch: str
    sms: int
    clock: float
    bandwidth: float
    fp32: int


GPUS = (
    GPU("A100", "sm_80", 108, 1.41e9, 2.039e12, fp32=2),
    GPU("H100", "sm_90", 132, 1.70e9, 3.35e12, fp32=1),
    GPU("B200", "sm_100", 148, 1.85e9, 8.0e12, fp32=1),
)
FP32 = {"FFMA", "FMUL", "FADD", "FFMA2", "FMUL2", "FADD2"}
SPECIAL = {"MUFU", "I2F", "F2I", "F2F"}
GLOBAL = {"LDG", "STG", "LDS", "STS"}
OTHER = {
    "BRA",
    "BSSY",
    "BSYNC",
    "EXIT",
    "BAR",
    "CALL",
    "S2R",
    "S2UR",
    "CS2R",
    "LDC",
    "LDCU",
    "ULDC",
    "SHFL",
    "WARPSYNC",
}


@dataclass(frozen=True)
class Variant:
    """One launch of a kernel, with the bytes it streams for an element."""

    name: str
    start: Callable[[], object]
    bytes: float
    shape: tuple[int, int] = (64, 3072)


@dataclass(frozen=True)
class Prediction:
    """What the model says about one variant on one GPU."""

    slots: float
    registers: int
    ratio: float
    limit: str


def variants() -> Iterator[Variant]:
    """Every kind of launch that a sampler makes."""

    def row(
        name: str, size: float, n: int = 64, d: int = 3072, dtype: torch.dtype = torch.float32, **use: bool
    ) -> Variant:
        x, network = torch.zeros(n, d), torch.zeros(n, d, dtype=dtype)
        images = network.view(n, 3, 32, 32).contiguous(memory_format=torch.channels_last) if use.get("last") else None
        table, idx = torch.zeros(2, abi.WIDTH), torch.zeros(1, dtype=torch.int32).expand(n)
        key = NoiseKey.of(0, range(n))
        start = partial(
            update.update_triton,
            x,
            network if images is None else images,
            torch.zeros(2 * use.get("slots", False), n, d),
            table,
            idx,
            key if use.get("noisy", True) else None,
            F2=network if use.get("mixed") else None,
            known=KnownRow(x, x > 0, table, idx, key) if use.get("known") else None,
            out_u=network if use.get("u", True) else None,
        )
        return Variant(name, start, size, (n, d))

    yield row("row, no noise", 16, noisy=False)
    yield row("row, no noise, 2 slots", 28, noisy=False, slots=True)
    yield row("noise row", 16)
    yield row("noise row, no u", 12, u=False)
    yield row("noise row, 28x28", 16, d=784)
    yield row("noise row, 2-D points", 16, n=4096, d=2)
    yield row("noise row, D odd", 16, d=3071)
    yield row("noise row, mixed", 20, mixed=True)
    yield row("noise row, mask", 21, known=True)
    yield row("noise row, bf16 I/O", 12, dtype=torch.bfloat16)
    yield row("noise row, bf16 I/O, channels last", 12, dtype=torch.bfloat16, last=True)
    yield row("noise row, fp16 I/O", 12, dtype=torch.float16)
    yield row("noise row, bf16 I/O, mixed", 14, dtype=torch.bfloat16, mixed=True)
    x, table, idx = torch.zeros(64, 3072), torch.zeros(2, abi.WIDTH), torch.zeros(1, dtype=torch.int32).expand(64)
    key, scratch, valid = NoiseKey.of(0, range(64)), torch.zeros(64, abi.WIDTH), torch.ones(64)
    for name, F, norm, size in (
        ("norms", x, "sample", 8),
        ("norms, bf16 F", x.bfloat16(), "sample", 6),
        ("norms, no z", x, "expected", 8),
    ):
        yield Variant(name, partial(norms.langevin_triton, x, F, table, idx, key, scratch, norm, valid), size)
    yield Variant("normals alone", partial(noise.normal_triton, key, 0, 3072), 4)
    for channels, side in ((1, 64), (3, 32)):
        images = torch.zeros(64, channels, side, side)
        yield Variant(
            f"quantize, {channels} channels", partial(quantize.quantize_triton, images), 5, (64, images[0].numel())
        )


def predict(variant: Variant, launch: aot.Launch, gpu: GPU) -> Prediction:
    """Apply the model to the first kernel of a variant."""
    code = sass.disassemble(launch.compile(aot.TARGETS[gpu.arch]).asm["cubin"])
    blocks = 1
    for size in launch.grid:
        blocks *= size
    n, d = variant.shape
    loops = launch.kernel is norms._norms_kernel  # its grid covers samples, its loop their elements
    path = code.likely_path(trips=d / launch.arguments["BLOCK"] if loops else 1)
    threads = blocks * THREADS / (n * d)  # threads for an element
    pipes = dict.fromkeys(("issue", "FP32", "multiply", "ALU", "special", "load/store"), 0.0)
    for instruction, times in path:
        pipes["issue"] += times
        if instruction.name in FP32:
            pipes["FP32"] += gpu.fp32 * times
        elif instruction.name == "IMAD":
            pipes["multiply"] += 2 * times
        elif instruction.name in SPECIAL:
            pipes["special"] += 8 * times
        elif instruction.name in GLOBAL:
            pipes["load/store"] += (
                4 * times * (4 if ".128" in instruction.opcode else 2 if ".64" in instruction.opcode else 1)
            )
        elif instruction.name not in OTHER and not instruction.name.startswith("U"):
            pipes["ALU"] += 2 * times
    if gpu.fp32 == 2:  # integer products share the one FP32 pipe
        pipes["FP32"] += pipes["multiply"]
    limit = max(pipes, key=pipes.__getitem__)
    compute = pipes[limit] * threads / 32 / (gpu.sms * 4 * gpu.clock)
    return Prediction(pipes["issue"] * threads, code.registers, compute / (variant.bytes / gpu.bandwidth), limit)


def report() -> tuple[str, list[str]]:
    """Return (the table in Markdown, the targets that are missed)."""
    head = ["kernel variant", "bytes", *(f"slots {g.name}" for g in GPUS), *(f"compute/memory {g.name}" for g in GPUS)]
    lines = [
        "Predictions of a model, not measurements; made by `python -m bench.ops.static_report` from the code of Triton",
        f"{triton.__version__}. Bytes and issue slots are for an element; D = 3072 unless said otherwise. "
        "Below 1: bound by memory.",
        "",
        "| " + " | ".join([*head, "limited by (H100)", "registers"]) + " |",
        "|---" * (len(head) + 2) + "|",
    ]
    missed = []
    for variant in variants():
        with aot.capture() as launches:
            variant.start()
        predictions = [predict(variant, launches[0], gpu) for gpu in GPUS]
        slots, ratios = [f"{p.slots:.1f}" for p in predictions], [f"{p.ratio:.2f}" for p in predictions]
        registers = "/".join(str(p.registers) for p in predictions)
        lines.append(
            "| "
            + " | ".join([variant.name, f"{variant.bytes:g}", *slots, *ratios, predictions[1].limit, registers])
            + " |"
        )
        if variant.name in ("noise row", "noise row, no u"):
            over = [(gpu, p) for gpu, p in zip(GPUS[:2], predictions, strict=False) if p.ratio > LIMIT]
            missed += [f"{variant.name} on {gpu.name}: {p.ratio:.3f}" for gpu, p in over]
    return "\n".join(lines), missed


def main() -> int:
    """Print the report and write or check the README."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--check", action="store_true", help="write nothing; fail if the README is out of date")
    check = parser.parse_args().check
    table, missed = report()
    print(table)
    before, after = README.read_text().split(BEGIN)
    text = f"{before}{BEGIN}\n{table}\n{END}{after.split(END)[1]}"
    for line in missed:
        print(f"over {LIMIT}: {line}", file=sys.stderr)
    stale = text != README.read_text()
    if check and stale:
        print("kernels/README.md is out of date: run python -m bench.ops.static_report", file=sys.stderr)
    elif stale:
        README.write_text(text)
    return 1 if missed or (check and stale) else 0


if __name__ == "__main__":
    sys.exit(main())
