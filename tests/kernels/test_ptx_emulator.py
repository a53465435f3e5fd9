"""Every class of instruction that the emulator executes, against values worked out by hand or by NumPy."""

from __future__ import annotations

import numpy as np
import pytest

from .ptx_emulator import run
from .ptx_parser import Fault, parse


def execute(body: str, *arrays: np.ndarray, threads: int = 32, blocks: int = 1) -> None:
    """Run a body in which %rd1, %rd2 ... point at this thread's 4 bytes of each array, and %r0 is the thread."""
    names = range(1, 1 + len(arrays))
    parameters = ",\n".join(f"\t.param .u64 .ptr .global .align 1 p{k}" for k in names)
    prelude = "mov.u32 %r0, %tid.x;\nmul.wide.u32 %rd0, %r0, 4;\n"
    prelude += "".join(f"ld.param.b64 %rd{k}, [p{k}];\nadd.s64 %rd{k}, %rd{k}, %rd0;\n" for k in names)
    head = f".visible .entry kernel(\n{parameters}\n)\n.reqntid {threads}\n"
    text = f"{head}{{\n.reg .b32 %r<9>;\n{prelude}{body}\nret;\n}}\n"
    run(parse(text), (blocks,), list(arrays))


def compute(instruction: str, *inputs: object, kind: type = np.int32) -> list:
    """Apply an instruction to columns of 32-bit inputs %r1, %r2, %r3; return the column %r9."""
    columns = [np.array(v, kind if isinstance(kind, type) else None).reshape(-1) for v in inputs]
    count = len(columns[0])
    loads = "".join(f"ld.global.b32 %r{k}, [%rd{k + 1}];\n" for k in range(1, 1 + len(columns)))
    out = np.full(count, 0x55555555, np.uint32)
    execute(f"{loads}{instruction}\nst.global.b32 [%rd1], %r9;", out, *columns, threads=count)
    return out


def bits(values: list) -> np.ndarray:
    return np.array([v & 0xFFFFFFFF for v in values], np.uint32)


INTEGERS = {
    "add wraps": ("add.s32 %r9, %r1, %r2;", [2**31 - 1, -5], [1, 3], [-(2**31), -2]),
    "sub": ("sub.s32 %r9, %r1, %r2;", [0, 7], [1, -1], [-1, 8]),
    "mul.lo": ("mul.lo.s32 %r9, %r1, %r2;", [65536, -3], [65537, 5], [65536, -15]),
    "mul.hi.s32": ("mul.hi.s32 %r9, %r1, %r2;", [-1, 2**30], [2, 4], [-1, 1]),
    "mul.hi.u32": ("mul.hi.u32 %r9, %r1, %r2;", [-1, 2**30], [2, 4], [1, 1]),
    "mad.lo": ("mad.lo.s32 %r9, %r1, %r2, 7;", [3, -3], [5, 5], [22, -8]),
    "neg": ("neg.s32 %r9, %r1;", [5, -(2**31)], [0, 0], [-5, -(2**31)]),
    "and": ("and.b32 %r9, %r1, %r2;", [12, -1], [10, 6], [8, 6]),
    "or": ("or.b32 %r9, %r1, %r2;", [12, 1], [10, 6], [14, 7]),
    "xor": ("xor.b32 %r9, %r1, %r2;", [12, -1], [10, 6], [6, ~6]),
    "not": ("not.b32 %r9, %r1;", [0, 5], [0, 0], [-1, ~5]),
    "min signed": ("min.s32 %r9, %r1, %r2;", [-1, 4], [1, 3], [-1, 3]),
    "max unsigned": ("max.u32 %r9, %r1, %r2;", [-1, 4], [1, 3], [-1, 4]),
    "shl": ("shl.b32 %r9, %r1, %r2;", [1, 3, 1, 1], [4, 31, 32, 100], [16, -(2**31), 0, 0]),
    "shr.u32": ("shr.u32 %r9, %r1, %r2;", [-1, 16, -1, -1], [28, 2, 32, 200], [15, 4, 0, 0]),
    "shr.s32": ("shr.s32 %r9, %r1, %r2;", [-16, 16, -1, 7], [2, 2, 32, 99], [-4, 4, -1, 0]),
    "bfe.u32": ("bfe.u32 %r9, %r1, %r2, 4;", [0xABCD, -1, -1], [4, 28, 30], [0xC, 15, 3]),
    "bfe.s32": ("bfe.s32 %r9, %r1, %r2, 4;", [0xABCD, 0x70, -(2**31)], [4, 4, 30], [-4, 7, -2]),
    "bfe.s32 of no bits": ("bfe.s32 %r9, %r1, %r2, 0;", [-1, 5], [3, 0], [0, 0]),
    "bfe.s32 one bit": ("bfe.s32 %r9, %r1, %r2, 1;", [4, 4], [2, 1], [-1, 0]),
    "prmt": ("prmt.b32 %r9, %r1, %r2, 0x5410;", [0x44332211, 1], [0x88776655 - 2**32, 2], [0x66552211, 0x00020001]),
    "lop3 a ^ b ^ c": ("lop3.b32 %r9, %r1, %r2, 3, 0x96;", [12, 0], [10, 5], [5, 6]),
    "selp": ("setp.lt.s32 %p1, %r1, %r2;\nselp.b32 %r9, 7, 8, %p1;", [-1, 2], [1, 2], [7, 8]),
    "setp.lo is unsigned": ("setp.lo.u32 %p1, %r1, %r2;\nselp.b32 %r9, 7, 8, %p1;", [-1, 1], [1, 2], [8, 7]),
    "logic of predicates": (
        "setp.gt.s32 %p1, %r1, 0;\nsetp.gt.s32 %p2, %r2, 0;\nand.pred %p3, %p1, %p2;\nnot.pred %p4, %p3;\n"
        "selp.b32 %r9, 1, 2, %p4;",
        [1, 1, -1], [1, -1, -1], [2, 1, 1],
    ),
    "immediates": ("add.s32 %r8, %r1, -3;\nadd.s32 %r9, %r8, 0x1FFU;", [1, 2], [0, 0], [509, 510]),
}  # fmt: skip


@pytest.mark.parametrize(("instruction", "a", "b", "want"), INTEGERS.values(), ids=INTEGERS)
def test_integer(instruction, a, b, want):
    np.testing.assert_array_equal(compute(instruction, bits(a).view(np.int32), bits(b).view(np.int32)), bits(want))


TINY, HUGE = np.float32(1e-45), np.float32(3e38)
FLOATS = {
    "add": ("add.rn.f32 %r9, %r1, %r2;", [1.0, HUGE, 0.1], [2**-24, HUGE, 0.2], np.add),
    "sub": ("sub.rn.f32 %r9, %r1, %r2;", [1.0, -0.0, TINY], [2**-25, 0.0, TINY], np.subtract),
    "mul keeps subnormals": ("mul.rn.f32 %r9, %r1, %r2;", [1.1, 1e-30, -0.0], [1.3, 1e-12, 2.0], np.multiply),
    "div": ("div.rn.f32 %r9, %r1, %r2;", [1.0, 0.0, 5.0, 1.0], [3.0, 0.0, 0.0, 49.0], np.divide),
    "sqrt": ("sqrt.rn.f32 %r9, %r1;", [2.0, -0.0, -1.0, 1e-42], [0, 0, 0, 0], lambda a, b: np.sqrt(a)),
    "neg": ("neg.f32 %r9, %r1;", [0.0, -3.0], [0, 0], lambda a, b: -a),
    "min drops NaN": ("min.f32 %r9, %r1, %r2;", [1.0, np.nan], [2.0, 2.0], np.fmin),
    "min.NaN": ("min.NaN.f32 %r9, %r1, %r2;", [1.0, np.nan], [2.0, 2.0], np.minimum),
    "max.NaN": ("max.NaN.f32 %r9, %r1, %r2;", [1.0, 3.0], [2.0, np.nan], np.maximum),
    "immediate": ("mul.rn.f32 %r9, %r1, 0f3F000000;", [3.0, 5.0], [0, 0], lambda a, b: a * np.float32(0.5)),
    "setp with NaN": (
        "setp.gt.f32 %p1, %r1, %r2;\nsetp.gtu.f32 %p2, %r1, %r2;\nselp.f32 %r3, 0f3F800000, 0f00000000, %p1;\n"
        "selp.f32 %r9, 0f40000000, %r3, %p2;",
        [2.0, 1.0, np.nan], [1.0, 2.0, 1.0], lambda a, b: np.array([2, 0, 2], np.float32),
    ),
}  # fmt: skip


@pytest.mark.parametrize(("instruction", "a", "b", "want"), FLOATS.values(), ids=FLOATS)
@pytest.mark.filterwarnings("ignore::RuntimeWarning")
def test_float(instruction, a, b, want):
    a, b = np.array(a, np.float32), np.array(b, np.float32)
    np.testing.assert_array_equal(compute(instruction, a, b, kind=np.float32).view(np.float32), want(a, b))


def test_division_and_square_root_are_correctly_rounded():
    rng = np.random.default_rng(0)
    a, b = np.exp(rng.normal(0, 8, (2, 4096))).astype(np.float32)
    quotient = compute("div.rn.f32 %r9, %r1, %r2;", a, b, kind=np.float32).view(np.float32)
    # A quotient or root of float32 numbers is never near enough to a tie for the float64 rounding to matter.
    np.testing.assert_array_equal(quotient, (a.astype(np.float64) / b).astype(np.float32))
    root = compute("sqrt.rn.f32 %r9, %r1;", a, b, kind=np.float32).view(np.float32)
    np.testing.assert_array_equal(root, np.sqrt(a.astype(np.float64)).astype(np.float32))


CONVERSIONS = {
    "f32 of u32": (
        "cvt.rn.f32.u32 %r9, %r1;",
        bits([0xFFFFFFFF, 0x1000001, 7]),
        np.float32([2.0**32, 2.0**24, 7]).view(np.uint32),
    ),
    "f32 of s32": ("cvt.rn.f32.s32 %r9, %r1;", bits([-1, 0x1000003]), np.float32([-1, 0x1000004]).view(np.uint32)),
    "s32 to zero": (
        "cvt.rzi.s32.f32 %r9, %r1;",
        np.float32([-2.7, 2.7, 3e9, np.nan]).view(np.uint32),
        bits([-2, 2, 2**31 - 1, 0]),
    ),
    "s32 to even": ("cvt.rni.s32.f32 %r9, %r1;", np.float32([2.5, 3.5, -0.5]).view(np.uint32), bits([2, 4, 0])),
    "u32 saturates": ("cvt.rzi.u32.f32 %r9, %r1;", np.float32([-1.0, 5e9]).view(np.uint32), bits([0, 2**32 - 1])),
    "bf16 to even": (
        "cvt.rn.bf16x2.f32 %r9, %r1, %r1;",
        bits([0x3F808000, 0x3F818000, 0x3F808001, 0x7F7FFFFF]),
        bits([0x3F803F80, 0x3F823F82, 0x3F813F81, 0x7F807F80]),
    ),
    "f16 to even": (
        "cvt.rn.f16x2.f32 %r9, %r1, %r1;",
        np.float32([1 + 2**-11, 1e5]).view(np.uint32),
        bits([0x3C003C00, 0x7C007C00]),
    ),
    "upper half first": (
        "cvt.rn.bf16x2.f32 %r9, %r1, 0f3F800000;",
        np.float32([2.0]).view(np.uint32),
        bits([0x40003F80]),
    ),
    "f32 of bf16": ("mov.b32 {%rs1, %rs2}, %r1;\ncvt.f32.bf16 %r9, %rs2;", bits([0x3F80BEEF]), bits([0x3F800000])),
    "f32 of f16": (
        "mov.b32 {%rs1, %rs2}, %r1;\ncvt.f32.f16 %r9, %rs1;",
        bits([0x00003C00, 0x00000001]),
        np.float32([1, 2**-24]).view(np.uint32),
    ),
    "packed pair": (
        "mov.b64 %rd9, {%r1, %r1};\nadd.rn.f32x2 %rd9, %rd9, %rd9;\nmov.b64 {%r8, %r9}, %rd9;",
        np.float32([1.5]).view(np.uint32),
        np.float32([3]).view(np.uint32),
    ),
    "64-bit product": (
        "mul.wide.u32 %rd9, %r1, 0xD2511F53;\nshr.u64 %rd9, %rd9, 32;\ncvt.u32.u64 %r9, %rd9;",
        bits([-1]),
        bits([0xD2511F52]),
    ),
    "signed 64-bit product": (
        "mul.wide.s32 %rd9, %r1, 3;\nshr.s64 %rd9, %rd9, 1;\ncvt.u32.u64 %r9, %rd9;",
        bits([-1]),
        bits([-2]),
    ),
    "wide sum": ("mov.b64 %rd8, 5;\nmad.wide.s32 %rd9, %r1, -2, %rd8;\ncvt.u32.u64 %r9, %rd9;", bits([3]), bits([-1])),
    "sign extension": (
        "cvt.s64.s32 %rd9, %r1;\nshr.s64 %rd9, %rd9, 32;\ncvt.u32.u64 %r9, %rd9;",
        bits([-5, 5]),
        bits([-1, 0]),
    ),
}


@pytest.mark.parametrize(("instruction", "source", "want"), CONVERSIONS.values(), ids=CONVERSIONS)
@pytest.mark.filterwarnings("ignore::RuntimeWarning")
def test_conversion(instruction, source, want):
    np.testing.assert_array_equal(compute(instruction, source.view(np.int32)), want)


PROGRAMS = {
    "predicates guard moves, loads and stores": (
        "mov.b32 %r1, 1;\nsetp.gt.u32 %p1, %r0, 1;\n@%p1 mov.b32 %r1, 9;\n@!%p1 ld.global.b32 %r1, [%rd1];\n"
        "add.s32 %r1, %r1, 1;\nsetp.eq.s32 %p2, %r0, 3;\n@!%p2 st.global.b32 [%rd1], %r1;",
        [1, 1, 10, 0],
    ),
    "a loop runs as often as each thread asks": (
        "mov.b32 %r1, 0;\nmov.b32 %r2, 0;\n$L1:\nadd.s32 %r2, %r2, %r1;\nadd.s32 %r1, %r1, 1;\n"
        "setp.le.u32 %p1, %r1, %r0;\n@%p1 bra $L1;\nst.global.b32 [%rd1], %r2;",
        [0, 1, 3, 6],
    ),
}


@pytest.mark.parametrize(("program", "expected"), PROGRAMS.values(), ids=PROGRAMS)
def test_program_of_four_threads(program, expected):
    out = np.zeros(4, np.int32)
    execute(program, out, threads=4)
    assert out.tolist() == expected


def test_vector_accesses_and_offsets():
    source, out = np.arange(12, dtype=np.int32), np.zeros(4, np.int32)
    execute(
        "sub.s64 %rd8, %rd1, %rd0;\nld.global.v4.b32 {%r1, %r2, %r3, %r4}, [%rd8+16];\nsub.s64 %rd9, %rd2, %rd0;\n"
        "st.global.v2.b32 [%rd9], {%r4, %r4};\nst.global.v2.b32 [%rd9+8], {%r1, %r2};",
        source, out, threads=1,
    )  # fmt: skip
    assert out.tolist() == [7, 7, 4, 5]


@pytest.mark.parametrize(
    ("mode", "want"), [("bfly", lambda t: t ^ 4), ("down", lambda t: t + 4 if t < 28 else t), ("idx", lambda t: 4)]
)
def test_shuffle(mode, want):
    out = np.zeros(64, np.int32)
    execute(f"shfl.sync.{mode}.b32 %r1, %r0, 4, 31, -1;\nst.global.b32 [%rd1], %r1;", out, threads=64)
    assert out.tolist() == [want(t % 32) + t // 32 * 32 for t in range(64)]


REVERSE = (
    "shl.b32 %r1, %r0, 2;\nst.shared.b32 [%r1], %r0;\n{barrier}sub.s32 %r2, 252, %r1;\n"
    "ld.shared.b32 %r3, [%r2];\nst.global.b32 [%rd1], %r3;"
)  # fmt: skip


def test_shared_memory_belongs_to_a_block():
    out = np.zeros(64, np.int32)
    execute(REVERSE.format(barrier="bar.sync 0;\n"), out, threads=64, blocks=2)
    assert out.tolist() == list(range(63, -1, -1))


def test_matrices():
    """Lane t of a matrix load receives the items 2 t and 2 t + 1 of an 8x8 matrix stored row by row."""
    out = np.zeros(32, np.int32)
    execute(
        "shl.b32 %r1, %r0, 2;\nst.shared.b32 [%r1], %r0;\nbar.sync 0;\nand.b32 %r2, %r0, 7;\nshl.b32 %r2, %r2, 4;\n"
        "ldmatrix.sync.aligned.m8n8.x1.shared.b16 {%r3}, [%r2];\nbar.sync 0;\n"
        "stmatrix.sync.aligned.m8n8.x1.shared.b16 [%r2], {%r3};\nbar.sync 0;\n"
        "ld.shared.b32 %r4, [%r1];\nadd.s32 %r4, %r4, %r3;\nst.global.b32 [%rd1], %r4;",
        out,
    )  # fmt: skip
    assert out.tolist() == list(range(0, 64, 2))


def test_transposed_matrices():
    """Lane t receives two neighbours of a column, and puts them back where they were."""
    got, back = np.zeros(32, np.int32), np.zeros(32, np.int32)
    execute(
        "shl.b32 %r1, %r0, 2;\nmul.lo.s32 %r5, %r0, 65537;\nadd.s32 %r5, %r5, 1048576;\nst.shared.b32 [%r1], %r5;\n"
        "bar.sync 0;\nand.b32 %r2, %r0, 7;\nshl.b32 %r2, %r2, 4;\n"
        "ldmatrix.sync.aligned.m8n8.x1.trans.shared.b16 {%r3}, [%r2];\nbar.sync 0;\nst.shared.b32 [%r1], %r0;\n"
        "bar.sync 0;\nstmatrix.sync.aligned.m8n8.x1.trans.shared.b16 [%r2], {%r3};\nbar.sync 0;\n"
        "ld.shared.b32 %r4, [%r1];\nst.global.b32 [%rd1], %r3;\nst.global.b32 [%rd2], %r4;",
        got, back,
    )  # fmt: skip
    words = np.arange(32, dtype=np.int32) * 65537 + 1048576
    items = words.view(np.uint16).reshape(8, 8)  # row by row
    assert np.array_equal(got, np.ascontiguousarray(items.T).view(np.int32).ravel())
    assert np.array_equal(back, words)


FAULTS = {
    "out of bounds": ("ld.global.b32 %r1, [%rd1+128];", 32),
    "out of bounds, below": ("ld.global.b32 %r1, [%rd1+-4];", 32),
    "misaligned 4-byte": ("ld.global.b32 %r1, [%rd1+2];", 32),
    "misaligned 16-byte": ("ld.global.v4.b32 {%r1, %r2, %r3, %r4}, [%rd1];", 2),
    "read before it is written": ("ld.shared.b32 %r1, [%r0];", 1),
    "without a barrier": (REVERSE.format(barrier=""), 64),
    "part of a block": ("setp.eq.s32 %p1, %r0, 0;\n@%p1 bra $L1;\nbar.sync 0;\n$L1:", 32),
    "different values to one address": ("sub.s64 %rd9, %rd1, %rd0;\nst.global.b32 [%rd9], %r0;", 2),
    "read before it is set": ("add.s32 %r1, %r7, 1;", 1),
    "inactive thread": ("setp.eq.s32 %p1, %r0, 0;\n@%p1 shfl.sync.bfly.b32 %r1, %r0, 1, 31, -1;", 32),
    "not an instruction of this emulator": ("fma.rn.f32 %r1, %r0, %r0, %r0;", 1),
    "not an instruction of this emulator, approx": ("sqrt.approx.f32 %r1, %r0;", 1),
    "cannot parse": ("%r1 = 4;", 1),
}


@pytest.mark.parametrize(("message", "body", "threads"), [(k, *v) for k, v in FAULTS.items()], ids=FAULTS)
def test_fault(message, body, threads):
    with pytest.raises(Fault, match=message.split(",")[0]):
        execute(body, np.zeros(threads, np.int32), threads=threads)


def test_offset_of_a_buffer_is_kept():
    whole = np.zeros(64, np.uint8)
    start = -whole.__array_interface__["data"][0] % 16
    with pytest.raises(Fault, match="misaligned"):
        execute("ld.global.v2.b32 {%r1, %r2}, [%rd1];", whole[start + 4 : start + 36].view(np.int32), threads=1)
