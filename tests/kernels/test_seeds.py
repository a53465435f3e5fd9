"""Samples with seeds of their own through every kernel that makes noise, to the bits of the reference."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from fastscore.kernels import abi
from fastscore.kernels.inspect import sass
from fastscore.ops.noise import NoiseKey
from fastscore.ops.norms import langevin_ref
from fastscore.ops.update import update_ref

from .cases import IDS, Case, clone, differing, inputs
from .conftest import load
from .test_aot import wide_accesses

SEEDS = (0, (1 << 64) - 1, 1 << 32, 0x9234567890ABCDEF, 5, 5, 1)


def mixed(case: Case, device: str) -> tuple[list, dict]:
    """Return the arguments of update_ref with a seed for each sample."""
    arguments, options = inputs(case, device)
    key = NoiseKey.of(SEEDS[: case.n], IDS[: case.n], device)
    arguments[5] = key if case.noisy else None
    options["known"] = options["known"] and replace(options["known"], noise=key)
    return arguments, options


def test_normals(executor):
    key = NoiseKey.of(SEEDS, IDS, executor.device)
    for d in (2, 129):
        z = executor.noise.normal_triton(key, 3, d)
        assert differing(z, key.normal(3, d)) == 0


@pytest.mark.parametrize(
    "case",
    [Case(2, n=7, known=True, mean=True, own=True, slots=1), Case(48, n=5, known=True, noisy=False)],
    ids=lambda case: case.id,
)
def test_row(executor, case):
    (got, options), (want, expected) = mixed(case, executor.device), mixed(case, executor.device)
    update_ref(*want, **expected)
    executor.update.update_triton(*got, **options)
    assert differing(got[0], want[0]) == 0
    assert differing(options["out_u"], expected["out_u"]) == 0
    assert options["out_mean"] is None or differing(options["out_mean"], expected["out_mean"]) == 0


def test_norms(executor):
    (x, F, _, table, idx, noise), _ = mixed(Case(129, n=7, own=True), executor.device)
    want, got = torch.full((2, 7, abi.WIDTH), torch.nan, device=executor.device)
    valid = torch.ones(7, device=executor.device)
    langevin_ref(x, F, table, idx, noise, want, "sample", valid)
    executor.norms.langevin_triton(x, F, table, idx, noise, got, "sample", valid)
    assert differing(got, want) == 0


def test_one_seed_for_each_or_for_all_is_the_same(executor):
    """The seeds of a batch may be equal, and may be one number that is broadcast."""
    one, _ = inputs(Case(16, n=3), executor.device)
    key = one[5]
    found = []
    for seed in (key.seed, key.seed.repeat(3), key.seed.expand(3)):
        arguments, _ = clone((one, {}))
        executor.update.update_triton(*arguments[:5], NoiseKey(seed, key.ids))
        found.append(arguments[0])
    assert differing(found[0], found[1]) == 0 and differing(found[0], found[2]) == 0


def test_refuses(executor):
    arguments, _ = inputs(Case(8), executor.device)
    key = NoiseKey.of(range(6), range(6), executor.device)
    arguments[5] = NoiseKey(key.seed[::2], key.ids[:3])
    with pytest.raises(ValueError, match="seed has strides"):
        executor.update.update_triton(*arguments)
    arguments[5] = key
    with pytest.raises(ValueError, match=r"seed is int64 \[6\] .* expected int64 \[3\]"):
        executor.update.update_triton(*arguments)


ROWS = {case.id: case for case in (Case(3072), Case(784, network=torch.bfloat16, u=torch.bfloat16), Case(2, n=7))}


@pytest.mark.parametrize(
    ("target", "case"),
    [
        pytest.param(
            target,
            case,
            id=f"{target}-{case.id}",
            marks=() if target == "sm_90" and case.d == 784 else pytest.mark.slow,
        )
        for target in ("sm_80", "sm_90", "sm_100")
        for case in ROWS.values()
    ],
)
def test_machine_code(target, case):
    """A seed for each sample spills nothing, fuses nothing and leaves the streamed accesses as wide."""
    modules = load("kernels_compiled")
    with modules.aot.capture() as launches:
        arguments, options = mixed(case, "cpu")
        modules.update.update_triton(*arguments, **options)
        if case.d == 3072:
            modules.norms.langevin_triton(
                *arguments[:2], *arguments[3:6], arguments[3][: case.n].clone(), "sample", torch.ones(case.n)
            )
    codes = []
    for launch in launches:
        kernel = launch.compile(modules.aot.TARGETS[target])
        codes.append(code := sass.disassemble(kernel.asm["cubin"]))
        assert code.stack == 0 and code.count("LDL", "STL") == 0 and code.registers <= 64
        assert "fma" not in kernel.asm["ptx"] and "approx" not in kernel.asm["ptx"]
    if case.d % 8 == 0:
        wide = [
            sum(i.opcode.startswith(f"{op}.E") and ".128" in i.opcode for i in codes[0].instructions)
            for op in ("LDG", "STG")
        ]
        assert tuple(wide) == wide_accesses(case)
