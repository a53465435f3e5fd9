"""The machine code of every kind of launch, compiled for GPUs that are not here."""

from __future__ import annotations

import re
from dataclasses import replace
from functools import cache

import pytest
import torch
import triton
from gated import one_in

from fastscore.kernels.inspect import sass
from fastscore.ops.backend import triton_lack

from .cases import Case, inputs
from .conftest import load

BF16, F16 = torch.bfloat16, torch.float16
ROWS = {
    case.id: case
    for case in (
        Case(3072),
        Case(3072, network=BF16, u=BF16),
        Case(3072, slots=2, noisy=False),
        Case(3072, network=F16, u=F16, mixed=True),
        Case(3072, slots=4, mixed=True, mean=True, own=True),
        Case(3072, known=True, mean=True),
        Case(3072, network=None),
        Case(3072, network=BF16, u=BF16, last=(3, 1)),
        Case(784),
        Case(784, network=BF16, u=BF16, slots=1),
        Case(1009, n=2),
        Case(2, n=7),
    )
}
LONG = Case(12288, network=BF16, mixed=True, last=(3, 1))  # whose norms several programs share
NORMS = {
    f"{norm}-{case.id}": (case, norm)
    for norm in ("sample", "batch", "expected", "tutorial")
    for case in (Case(3072, network=BF16), LONG)
    if case != LONG or norm in ("sample", "batch")
}
IMAGES = {"x".join(map(str, shape)): shape for shape in ((2, 1, 32, 32), (2, 3, 32, 32), (2, 3, 5, 5))}
NAMES = [*ROWS, *NORMS, *IMAGES]
QUICK = {next(iter(ROWS)), next(iter(NORMS)), *list(ROWS)[1:3], "2x3x32x32"}
CUDA = [
    pytest.param(
        name, target, id=f"{target}-{name}", marks=() if target == "sm_90" and name in QUICK else pytest.mark.slow
    )
    for target in ("sm_80", "sm_90", "sm_100")
    for name in NAMES
]
HIP = one_in(3, [pytest.param(name, id=f"gfx942-{name}", marks=pytest.mark.slow) for name in NAMES])


disassemble = cache(sass.disassemble)


@cache
def launches(name: str) -> list:
    modules = load("kernels_compiled")
    with modules.aot.capture() as recorded:
        if name in IMAGES:
            modules.quantize.quantize_triton(torch.zeros(IMAGES[name]))
        elif name in NORMS:
            case, norm = NORMS[name]
            (x, F, _, table, idx, noise), _ = inputs(case, "cpu")
            modules.norms.langevin_triton(x, F, table, idx, noise, table[: case.n].clone(), norm, torch.ones(case.n))
        else:
            arguments, options = inputs(ROWS[name], "cpu")
            modules.update.update_triton(*arguments, **options)
    return recorded


def compiled(name: str, target: str, capfd: pytest.CaptureFixture) -> list:
    kernels = [launch.compile(load("kernels_compiled").aot.TARGETS[target]) for launch in launches(name)]
    errors = capfd.readouterr().err
    assert "error:" not in errors, errors
    return kernels


def wide_accesses(case: Case) -> tuple[int, int]:
    """128-bit loads and stores of a thread that owns eight elements of each streamed tensor."""
    network = 0 if case.network is None else case.network.itemsize
    # An output whose channels lie last is read element by element.
    outputs = sum(channels == 1 for channels in case.last[: 1 + case.mixed])
    loads = 8 * (4 + network * outputs + 4 * case.slots + 4 * case.known)
    stores = 8 * (4 + (case.u.itemsize if case.u else 0) + 4 * (case.slots > 0 and network > 0) + 4 * case.mean)
    return loads // 16, stores // 16


def apart(kernel: triton.compiler.CompiledKernel) -> bool:
    """Whether products and sums round on their own: all that is fused belongs to exact roots and quotients.

    A correctly rounded root takes 2 fused operations, a quotient 5; Triton 3.6 makes a root of its reciprocal on AMD,
    with 5. Counted and not bounded: a bound over the roots of a row with noise hides a dozen others.
    """
    if "amdgcn" in kernel.asm:
        text = kernel.asm["amdgcn"]
        fused = re.findall(r"\bv_(?:pk_|dual_)?(?:fmac?|mad|mac)\w*_f32", text)
        roots, reciprocals, quotients = (text.count(f"v_{i}_f32") for i in ("sqrt", "rsq", "div_fixup"))
        return sum(1 + ("_pk_" in i) for i in fused) == 2 * roots + 5 * (reciprocals + quotients)
    path = [i for i, _ in disassemble(kernel.asm["cubin"]).likely_path()]
    fused, roots, quotients = (sum(i.opcode.startswith(o) for i in path) for o in ("FFMA", "MUFU.RSQ", "MUFU.RCP"))
    return not re.search(r"\bfma\.|\.approx|\.ftz", kernel.asm["ptx"]) and fused == 2 * roots + 5 * quotients


def in_registers(kernel: triton.compiler.CompiledKernel) -> bool:
    """Whether no thread has memory of its own, for spilled registers or for anything else."""
    if "amdgcn" in kernel.asm:
        sizes = re.findall(r"\.(?:[sv]gpr_spill_count|private_segment_fixed_size):\s*(\d+)", kernel.asm["amdgcn"])
        return sizes == ["0"] * 3
    code = disassemble(kernel.asm["cubin"])
    return code.stack == 0 and code.count("LDL", "STL") == 0


# Two in every run: each is a compilation for a card; a third with the gate, so that each kernel is compiled for one.
@pytest.mark.parametrize(
    ("name", "target"),
    [*CUDA[:2], *one_in(3, (pytest.param(*c.values, id=c.id, marks=pytest.mark.slow) for c in CUDA[2:]))],
)
def test_machine_code(name, target, capfd):
    for kernel in compiled(name, target, capfd):
        code = disassemble(kernel.asm["cubin"])
        assert apart(kernel) and in_registers(kernel)
        # Half of the 2048 threads of an SM share 65536 registers; of few long samples each SM has a program at most.
        assert code.registers <= 64 or name.endswith(LONG.id)
        if name in ROWS and ROWS[name].d % 8 == 0:
            wide = [
                sum(i.opcode.startswith(f"{op}.E") and ".128" in i.opcode for i in code.instructions)
                for op in ("LDG", "STG")
            ]
            assert tuple(wide) == wide_accesses(ROWS[name])
            assert code.count("STG") == wide[1]


@pytest.mark.slow
@pytest.mark.parametrize("name", HIP)
def test_amd(name, capfd, monkeypatch):
    monkeypatch.setattr(triton.knobs.compilation, "always_compile", True)  # errors are printed, not raised
    for kernel in compiled(name, "gfx942", capfd):
        text = kernel.asm["amdgcn"]
        assert apart(kernel) and in_registers(kernel)
        assert int(re.search(r"\.vgpr_count:\s*(\d+)", text)[1]) <= 128
        if name in ROWS and ROWS[name].d % 8 == 0:
            assert "global_load_dwordx4" in text and "global_store_dwordx4" in text


@pytest.mark.slow
@pytest.mark.parametrize("target", ["sm_90", "gfx942"])
def test_what_a_compiler_fuses_is_seen(target, tmp_path, monkeypatch):
    """In a row with noise, among the fused operations of its roots; and in one that has no root."""
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))  # what is wrong on purpose is in nobody's cache
    for name in list(ROWS)[:3:2]:
        (launch,) = launches(name)
        launch = replace(launch, options={**launch.options, "enable_fp_fusion": True})
        assert not apart(launch.compile(load("kernels_compiled").aot.TARGETS[target]))


@pytest.mark.slow
@pytest.mark.nightly
@pytest.mark.parametrize("target", ["sm_80", "sm_90", "sm_100", "gfx942"])
def test_ladder(target, capfd, monkeypatch):
    """All launches, by whichever Triton is imported: it is refused for a GPU if, and only if, it fuses something there.

    ``test_versions.py`` runs this under other versions than the one that the other tests speak of.
    """
    gpu = load("kernels_compiled").aot.TARGETS[target]
    monkeypatch.setattr(torch.version, "hip", "7.0" if gpu.backend == "hip" else None)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: divmod(gpu.arch, 10))
    monkeypatch.setattr(triton.knobs.compilation, "always_compile", True)
    kernels = {name: compiled(name, target, capfd) for name in NAMES}
    fusing = [name for name, found in kernels.items() if not all(map(apart, found))]
    refused = triton_lack(torch.device("cuda", 0))
    assert bool(fusing) == bool(refused), (fusing, refused)
    if not refused:
        assert all(in_registers(kernel) for found in kernels.values() for kernel in found)


def test_bytes_of_images_leave_as_words(capfd):
    (kernel,) = compiled("2x3x32x32", "sm_90", capfd)
    code = disassemble(kernel.asm["cubin"])
    assert all(".128" in i.opcode for i in code.instructions if i.name == "LDG")
    assert not [i for i in code.instructions if i.name == "STG" and (".U8" in i.opcode or ".U16" in i.opcode)]


def test_specialization_is_triton_s_own():
    """What ``aot`` derives from arguments, against Triton's binder."""
    from triton.compiler import make_backend
    from triton.runtime.jit import create_function_from_signature

    modules = load("kernels_compiled")
    for launch in [*launches(NAMES[0]), *launches(next(iter(NORMS))), *launches("2x3x5x5")]:
        backend = make_backend(modules.aot.TARGETS["sm_90"])
        binder = create_function_from_signature(launch.kernel.signature, launch.kernel.params, backend)
        _, derived, _ = binder(**launch.arguments)
        signature, constants, attributes = launch.specialization()
        for k, (name, (kind, special)) in enumerate(zip(signature, derived, strict=True)):
            assert signature[name] == kind, name
            if name in constants:
                continue
            assert ((k,) in attributes) == (special == "D"), name


def test_whole_numbers_of_a_launch_make_no_further_compilation():
    """A name that is not specialised must be a parameter's: Triton ignores others, and makes 1 a constant."""
    found = [
        kernel
        for name in ("noise", "update", "norms", "quantize", "counter")
        for kernel in vars(getattr(load("kernels_compiled"), name)).values()
        if isinstance(kernel, triton.JITFunction) and kernel.__name__.endswith("_kernel")
    ]
    assert len(found) == 6
    for kernel in found:
        numbers = {p.name for p in kernel.params if not p.is_constexpr and not p.name.endswith("_ptr")}
        assert {p.name for p in kernel.params if p.do_not_specialize} == numbers, kernel.__name__
        assert set(kernel.do_not_specialize) == numbers, kernel.__name__
