"""Kernels with one mistake each: the tests must notice every one."""

from __future__ import annotations

import shutil
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import pytest

from fastscore import kernels

from . import test_counter, test_noise, test_norms, test_quantize, test_seeds, test_update
from .cases import Case
from .conftest import load

row = partial(test_update.test_same_bits, case=Case(48, mixed=True, slots=3, known=True, mean=True, own=True))
left = partial(test_update.test_same_bits, case=Case(24, n=5, mixed=True, last=(3, 4)))
points = partial(test_update.test_same_bits, case=Case(130, n=2, slots=1, clip=0.5))
normals = partial(test_noise.test_normals, d=129)
norms = partial(test_norms.test_same_bits, case=Case(1700, n=2), norm="sample")
batch = partial(test_norms.test_same_bits, case=Case(3, n=2), norm="batch")
image = partial(test_quantize.test_same_bytes, shape=(2, 3, 4, 4), rounding="floor")
seeds = partial(test_seeds.test_row, case=Case(2, n=7, own=True))
seeds_of_norms = test_seeds.test_norms
levels = partial(test_quantize.test_every_level_and_its_edges, rounding="nearest")
undefined = partial(test_quantize.test_no_value_is_undefined, rounding="nearest")
counter = partial(test_counter.test_same_bits, width=3)


def parts(executor):
    with pytest.MonkeyPatch.context() as patch:
        test_norms.test_several_programs_a_sample(executor, Case(1028, n=2), "batch", patch)


MUTANTS = [
    # noise: a word of the counter or the key, a round, a sign
    ("noise", "(key >> 32).to(tl.uint32)", "(key & 0xFFFFFFFF).to(tl.uint32)", normals),
    ("noise", "draw.to(tl.uint32, bitcast=True),", "draw.to(tl.uint32, bitcast=True) + 1,", normals),
    ("noise", "tl.static_range(10)", "tl.static_range(9)", normals),
    ("noise", "tl.join(tl.join(v0, v2), tl.join(v1, v3))", "tl.join(tl.join(v0, v1), tl.join(v2, v3))", normals),
    ("noise", "signed(z1, w1)", "signed(z1, w0)", normals),
    ("noise", " + scale * -3.4060639508490254e-13", "", normals),
    # update: a term dropped, a wrong counter, a wrong slot, column or draw
    ("update", "y = y + column(row, abi.B, real) * m", "y = y + m", row),
    ("update", "        m = m + column(row, abi.Q2, real) * f2\n", "        m = m\n", row),
    ("update", "abi.W0 + k", "abi.W0", row),
    ("update", "push * slot + at", "0 * slot + at", row),
    ("update", "counter = (tl.program_id(1) * (BLOCK // 4)", "counter = (tl.program_id(1) * BLOCK", points),
    ("update", "draw = column(known_row, abi.DRAW, real)", "draw = column(row, abi.DRAW, real)", row),
    ("update", "mean = tl.where(is_known, center, mean)", "mean = mean", row),
    ("update", "m = tl.maximum(m, -bound, propagate_nan=tl.PropagateNan.ALL)", "m = m", points),
    ("update", "column(row, abi.C_IN, real) * y", "column(row, abi.A, real) * y", row),
    ("update", "(element - channel * pixels) * CHANNELS + channel", "element * CHANNELS", left),
    ("update", "element >= c * pixels", "element > c * pixels", left),
    ("update", "CHANNELS2=channels2", "CHANNELS2=channels", left),
    # norms: a dropped lane, a wrong counter, another order of additions, a factor
    ("norms", "(start // 4 + quad)", "quad", norms),
    ("norms", "mm += tl.where(inside, m * m, 0.0)", "mm = tl.where(inside, m * m, 0.0)", norms),
    ("norms", "[ROWS, 2, HALF]), 1, _add", "[ROWS, HALF, 2]), 2, _add", norms),
    ("norms", "tl.sqrt_rn(step * 2.0)", "tl.sqrt_rn(step)", norms),
    ("norms", "tl.div_rn(zz, mm)", "tl.div_rn(mm, zz)", norms),
    ("norms", "tl.sqrt_rn(square) * valid", "tl.sqrt_rn(square)", batch),
    ("norms", "tl.program_id(1) * GROUP + lane % GROUP", "lane % GROUP", parts),
    ("norms", "quad % (GROUP // 4)", "quad", parts),
    ("norms", "LANES if SPLIT else BLOCK", "BLOCK", parts),
    ("norms", "tl.num_programs(1) + tl.program_id(1)) * LEFT", "tl.num_programs(1)) * LEFT", parts),
    ("norms", "halve(zz, ROWS, BLOCK, LEFT)", "halve(zz, ROWS, BLOCK, LEFT) * 2.0", parts),
    # the seed of the first sample for all of them
    ("noise", "tl.load(seed_ptr + sample, mask=real)", "tl.load(seed_ptr + sample * 0, mask=real)", seeds),
    ("norms", "OWN_SEED=seeds", "OWN_SEED=0", seeds_of_norms),
    # quantize: a wrong channel, no clamp, no offset
    ("quantize", "c * pixels + pixel", "(CHANNELS - 1 - c) * pixels + pixel", image),
    ("quantize", "tl.minimum(tl.where(y > 0.0, y, 0.0), 255.0)", "y", levels),
    ("quantize", "x * 127.5 + OFFSET", "x * 127.5 + 127.5", levels),
    ("quantize", "tl.where(y > 0.0, y, 0.0)", "tl.where(y < 0.0, 0.0, tl.where(y != y, 255.0, y))", undefined),
    # counter: the line of the row before, the first line, one value for all, the same row again
    ("counter", "told_ptr + row * WIDTH", "told_ptr + (row - 1) * WIDTH", counter),
    ("counter", "told_ptr + row * WIDTH", "told_ptr + row", counter),
    ("counter", "row * WIDTH + k, mask=k < WIDTH)", "row * WIDTH + k * 0, mask=k < WIDTH)", counter),
    ("counter", "tl.store(row_ptr, row)", "tl.store(row_ptr, row - 1)", counter),
]


@pytest.mark.slow
@pytest.mark.parametrize(("module", "old", "new", "check"), MUTANTS, ids=[f"{m[0]}-{k}" for k, m in enumerate(MUTANTS)])
def test_is_caught(module, old, new, check, tmp_path):
    folder = tmp_path / "kernels"
    shutil.copytree(Path(kernels.__file__).parent, folder, ignore=shutil.ignore_patterns("__pycache__"))
    file = folder / f"{module}.py"
    source = file.read_text()
    assert source.count(old) == 1
    file.write_text(source.replace(old, new))
    mutant = SimpleNamespace(**vars(load(f"kernels_mutant_{tmp_path.name}", folder)), name="mutant", device="cpu")
    with pytest.raises(AssertionError):
        check(mutant)


@pytest.mark.slow
@pytest.mark.parametrize(
    "check", [row, left, points, normals, norms, parts, batch, seeds, seeds_of_norms, image, levels, undefined, counter]
)
def test_the_original_passes(check):
    check(SimpleNamespace(**vars(load("kernels_interpreter")), name="interpreter", device="cpu"))
