"""kernels/cpu/fused.cpp against the references, to the bit."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from dataclasses import replace
from itertools import product
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from cells import in_each

import fastscore as fs
from fastscore import plan as plans
from fastscore.engine.loop import Loop
from fastscore.engine.request import Request
from fastscore.execution import Execution
from fastscore.guidance.mixture import BoundPlan
from fastscore.kernels import abi
from fastscore.kernels.cpu import fused, library
from fastscore.model.score import ScoreModel
from fastscore.ops.backend import REFERENCE, resolve
from fastscore.ops.noise import LABEL_DRAW, NoiseKey, RecordedNoise
from fastscore.ops.norms import langevin_ref
from fastscore.ops.quantize import quantize_ref
from fastscore.ops.update import KnownRow, update_ref
from fastscore.process.parametrization import Parametrization

ROOT = Path(__file__).parents[2]
CPU = torch.device("cpu")
SHAPES = [(1, 1), (3, 2), (5, 127), (2, 128), (4, 129), (64, 784), (2, 3072), (7, 5003), (0, 5), (2000, 2), (600, 3)]
BF16, F16, F32, F64 = torch.bfloat16, torch.float16, torch.float32, torch.float64
SEED, ROWS = 0x9234567890ABCDEF, 8

needs_library = pytest.mark.skipif(
    library.library_file() is None, reason="fused.cpp was not built: install fastscore where there is a C++ compiler"
)


@pytest.fixture(params=range(len(library.ISAS)), ids=library.ISAS)
def isa(request):
    """Every instruction set that this CPU has."""
    loaded = library.library()
    best = loaded.fastscore_isa(len(library.ISAS) - 1)
    if loaded.fastscore_isa(request.param) != request.param:
        pytest.skip(f"this CPU has no {library.ISAS[request.param]}")
    yield
    loaded.fastscore_isa(best)


def normal(*shape: int, seed: int) -> torch.Tensor:
    return torch.empty(shape).normal_(generator=torch.Generator().manual_seed(seed))


def key(n: int) -> NoiseKey:
    extremes = [0, 5, 1 << 40, (1 << 63) - 1, (1 << 32) - 1, 1 << 32]
    return NoiseKey.of(SEED, [*extremes[:n], *range(100, 100 + n - len(extremes))])


def rows(clip: float = 0.0) -> torch.Tensor:
    table = normal(ROWS, abi.WIDTH, seed=1)
    table[:, abi.PUSH] = torch.tensor([0.0, 1, 2, 3, -1, 0, 1, 2])
    table[:, abi.DRAW] = torch.tensor([0.0, 1, 2, 3, (1 << 24) - 1, 5, 6, 7])
    table[:, abi.CLIP] = clip
    table[:, abi.SNR], table[:, abi.CAP] = 0.16, torch.inf
    return table


def same(a: torch.Tensor | None, b: torch.Tensor | None) -> bool:
    if a is None or b is None:
        return a is b
    size = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}[a.element_size()]
    return a.shape == b.shape and torch.equal(a.contiguous().view(size), b.contiguous().view(size))


def inputs(
    n,
    d,
    slots=0,
    F=F32,
    F2=None,
    u=F32,
    noisy=True,
    own=False,
    known=False,
    mean=False,
    clip=0.0,
    wide=True,
    last=False,
):
    whole = torch.int64 if wide else torch.int32
    each = (torch.arange(n) % ROWS).to(whole)
    idx = each if own else torch.tensor([2], dtype=whole).expand(n)
    noise, poison = key(n), torch.full((n, d), torch.nan)
    inside = KnownRow(normal(n, d, seed=5), normal(n, d, seed=6) > 0, rows(), each.flip(0) if own else idx, noise)
    left = normal(n, d, seed=3)
    if last:  # as a network of images leaves it, with channels last: as many as divide d, up to a thousand
        channels = max(c for c in range(1, min(d, 1000) + 1) if d % c == 0)
        left = left.view(n, channels, 1, d // channels).contiguous(memory_format=torch.channels_last)
    return [
        normal(n, d, seed=2), None if F is None else left.to(F), normal(slots, n, d, seed=7),
        rows(clip), idx, noise if noisy else None,
    ], {
        "F2": None if F2 is None else normal(n, d, seed=4).to(F2),
        "known": inside if known else None,
        "out_u": None if u is None else poison.to(u),
        "out_mean": poison.clone() if mean else None,
    }  # fmt: skip


def copied(arguments):
    def copy(v):
        return v.clone() if isinstance(v, torch.Tensor) and 0 not in v.stride() else v

    return [copy(v) for v in arguments[0]], {k: copy(v) for k, v in arguments[1].items()}


def agrees(arguments) -> bool:
    expected = copied(arguments)
    update_ref(*expected[0], **expected[1])
    fused.update_cpu(*arguments[0], **arguments[1])
    positional = all(same(arguments[0][k], expected[0][k]) for k in (0, 1, 2, 3))
    return positional and all(same(arguments[1][k], expected[1][k]) for k in ("F2", "out_u", "out_mean"))


OPTIONS = [
    {},
    {"slots": 1, "F": BF16, "u": BF16, "own": True},
    {"slots": 2, "F2": F32, "clip": 0.5, "u": None, "wide": False},
    {"slots": 3, "F": BF16, "F2": BF16, "noisy": False, "mean": True},
    {"slots": 4, "known": True, "mean": True, "own": True, "wide": False, "clip": 1.0},
    {"F": None, "known": True, "noisy": False},
    {"F": F16, "u": F16, "F2": BF16, "known": True, "mean": True},
    {"F": F64, "slots": 1, "own": True, "clip": 0.3},
    {"F": BF16, "F2": F32, "slots": 1, "last": True},
    {"F": F16, "own": True, "noisy": False, "last": True},
]


@pytest.mark.thirds
@needs_library
@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_update_has_the_bits_of_the_reference(options, isa):
    def check(n, d):
        assert agrees(inputs(n, d, **options))

    in_each(SHAPES, check)


@needs_library
def test_what_is_not_contiguous_is_copied():
    arguments = inputs(4, 6)
    arguments[0][1] = normal(6, 4, seed=9).T
    assert agrees(arguments)
    arguments[0][1] = normal(4, 1, seed=9).expand(4, 6)
    assert agrees(arguments)


@needs_library
@pytest.mark.parametrize("dtype", [F32, BF16], ids=["float32", "bfloat16"])
def test_a_network_may_return_its_own_input(dtype):
    both = [inputs(5, 3000, slots=1, F=dtype, u=dtype) for _ in range(2)]
    for act, (arguments, options) in zip((update_ref, fused.update_cpu), both, strict=True):
        options["out_u"] = arguments[1]
        act(*arguments, **options)
    assert all(same(a, b) for a, b in zip(both[0][0][:3], both[1][0][:3], strict=True))


@needs_library
def test_nan_survives_the_clip_and_bfloat16():
    arguments, options = inputs(2, 8, clip=1.0, u=BF16)
    arguments[1][1, 3] = torch.nan
    fused.update_cpu(*arguments, **options)
    assert torch.isnan(arguments[0]).nonzero().tolist() == [[1, 3]]
    assert torch.isnan(options["out_u"]).nonzero().tolist() == [[1, 3]]


@needs_library
@pytest.mark.parametrize(("n", "d"), [(1, 1), (300, 2), (9, 7), (3, 1025), (2, 4096)])
def test_normals_have_the_bits_of_the_specification(n, d, isa):
    def check(seed, draw):
        noise = NoiseKey(NoiseKey.of(seed, []).seed, key(n).ids)
        assert same(fused.normal_cpu(noise, draw, d), noise.normal(draw, d))

    in_each(product([0, 1, (1 << 64) - 1], [0, 1, 77, (1 << 24) - 1, LABEL_DRAW]), check)


@needs_library
def test_a_million_normals(isa):
    noise = NoiseKey.of(3, range(64))
    assert same(fused.normal_cpu(noise, 9, 15_625), noise.normal(9, 15_625))


@pytest.mark.thirds
@needs_library
@pytest.mark.parametrize("norm", fused.NORMS)
def test_langevin_has_the_bits_of_the_reference(norm, isa):
    def check(n, d, options):
        (x, F, _, table, idx, noise), named = inputs(n, d, **options)
        valid = torch.ones(n)
        valid[max(1, n - 2) :] = 0.0  # padding
        table[:, abi.CAP] = 0.3
        expected, got = torch.full((2, n, abi.WIDTH), torch.nan)
        langevin_ref(x, F, table, idx, noise, expected, norm, valid, F2=named["F2"])
        fused.langevin_cpu(x, F, table, idx, noise, got, norm, valid, F2=named["F2"])
        assert same(got, expected)

    shapes = [shape for shape in SHAPES if shape[0]]
    options = (
        {},
        {"F": BF16, "F2": BF16, "own": True},
        {"F": F64, "F2": F16, "own": True, "wide": False},
        {"F": BF16, "last": True},
    )
    in_each(((*shape, o) for shape, o in product(shapes, options)), check)


@needs_library
@pytest.mark.parametrize("shape", [(1, 1, 1, 1), (3, 1, 28, 28), (2, 3, 33, 17), (2, 4, 5, 7), (0, 3, 4, 4)])
@pytest.mark.parametrize("rounding", ["nearest", "floor"])
def test_bytes_are_those_of_the_reference(shape, rounding, isa):
    x = normal(*shape, seed=1)
    assert torch.equal(fused.quantize_cpu(x, rounding), quantize_ref(x, rounding))
    levels = (torch.arange(256.0) / 127.5 - 1.0).reshape(1, 1, 16, 16)
    edges = torch.cat([levels, levels.nextafter(torch.tensor(9.0)), levels.nextafter(torch.tensor(-9.0)), 3 * levels])
    assert torch.equal(fused.quantize_cpu(edges, rounding), quantize_ref(edges, rounding))
    undefined = torch.tensor([torch.nan, -torch.nan, torch.inf, -torch.inf, 3e38, -3e38, -0.0, 1.0]).view(1, 1, 2, 4)
    assert fused.quantize_cpu(undefined, rounding).flatten().tolist()[:6] == [0, 0, 255, 0, 255, 0]
    assert torch.equal(fused.quantize_cpu(undefined, rounding), quantize_ref(undefined, rounding))


@needs_library
@pytest.mark.parametrize(("n", "d"), [(64, 784), (1, 20_000), (9000, 2), (3, 4099)])
def test_threads_change_no_bit(n, d):
    threads, results = torch.get_num_threads(), []
    try:
        for count in (1, 2, 3):
            torch.set_num_threads(count)
            arguments, options = inputs(n, d, slots=2, known=True, mean=True, own=True, u=BF16)
            fused.update_cpu(*arguments, **options)
            own = torch.empty(n, abi.WIDTH)
            fused.langevin_cpu(*arguments[:2], *arguments[3:], own, "batch", torch.ones(n))
            z = fused.normal_cpu(arguments[5], 9, d)
            results.append([arguments[0], arguments[2], options["out_u"], options["out_mean"], own, z])
    finally:
        torch.set_num_threads(threads)
    assert all(same(a, b) for other in results[1:] for a, b in zip(results[0], other, strict=True))


@needs_library
def test_a_sample_does_not_see_its_batch():
    arguments, options = inputs(700, 3, slots=2)
    part = [v[..., 300:305, :].clone() for v in arguments[:3]]
    noise = NoiseKey(arguments[5].seed, arguments[5].ids[300:305])
    fused.update_cpu(*part, arguments[3], arguments[4][300:305], noise)
    fused.update_cpu(*arguments, **options)
    assert same(part[0], arguments[0][300:305])


def seeded(n: int, d: int, **options):
    """Inputs whose samples have seeds of their own; some neighbours share one, so do whole tiles."""
    arguments, named = inputs(n, d, **options)
    seeds = [(SEED, 0, (1 << 64) - 1, 1 << 32)[k // 3 % 4] if k < n // 2 else 6 for k in range(n)]
    noise = NoiseKey.of(seeds, key(n).ids)
    arguments[5] = noise if arguments[5] else None
    named["known"] = named["known"] and replace(named["known"], noise=noise)
    return arguments, named


@needs_library
@pytest.mark.parametrize(("n", "d"), [(2000, 2), (600, 3), (50, 129), (3, 2051), (1, 4)])
def test_samples_may_have_seeds_of_their_own(n, d, isa):
    assert agrees(seeded(n, d, known=True, mean=True, own=True, slots=1))
    assert agrees(seeded(n, d, known=True, noisy=False, F=None))
    (x, F, _, table, idx, noise), _ = seeded(n, d, own=True)
    assert same(fused.normal_cpu(noise, 9, d), noise.normal(9, d))
    for norm in ("sample", "batch"):
        expected, got = torch.full((2, n, abi.WIDTH), torch.nan)
        langevin_ref(x, F, table, idx, noise, expected, norm, torch.ones(n))
        fused.langevin_cpu(x, F, table, idx, noise, got, norm, torch.ones(n))
        assert same(got, expected)


@needs_library
def test_a_mixed_batch_is_its_samples_alone():
    (x, F, hist, table, idx, noise), options = seeded(40, 5)
    u, before = options["out_u"], x.clone()
    fused.update_cpu(x, F, hist, table, idx, noise, out_u=u)
    for k in range(40):
        alone, own = slice(k, k + 1), before[k : k + 1].clone()
        one = NoiseKey.of(int(noise.seed[k]) % (1 << 64), noise.ids[alone])
        fused.update_cpu(own, F[alone], hist[:, alone], table, idx[alone], one)
        assert same(own, x[alone])


@needs_library
@pytest.mark.parametrize("shared", [True, False], ids=["one", "each"])
def test_a_bound_row_reads_the_seeds_at_each_call(shared):
    """Seeds and ids of the loop's key are overwritten between batches; other tensors of it do not matter."""
    n, d = 9, 6
    (x, F, hist, table, idx, noise), _ = inputs(n, d)
    buffer, u = NoiseKey(torch.zeros(1 if shared else n, dtype=torch.int64), noise.ids.clone()), torch.empty(n, d)
    run, start = fused.bind_update_cpu(x, hist, table, idx, buffer, u), x.clone()
    for first in (3, 1 << 63):
        seeds = NoiseKey.of(first if shared else [first + k // 2 for k in range(n)], noise.ids)
        buffer.seed.copy_(seeds.seed)
        for noisy in (True, False, True):
            want, now = start.clone(), torch.empty(n, d)
            update_ref(want, F, hist, table, idx, seeds if noisy else None, out_u=now)
            x.copy_(start)
            run(F, None, noisy)
            assert same(x, want) and same(u, now)


@needs_library
def test_one_seed_may_be_broadcast():
    noise = key(8)
    wide = NoiseKey(noise.seed.expand(8), noise.ids)
    assert same(fused.normal_cpu(wide, 1, 5), noise.normal(1, 5))
    with pytest.raises(ValueError, match="seed has strides"):
        fused.normal_cpu(SimpleNamespace(seed=torch.arange(16)[::2], ids=noise.ids), 1, 5)
    with pytest.raises(ValueError, match=r"seed is int64 \[7\] on cpu; expected int64 \[8\]"):
        fused.normal_cpu(SimpleNamespace(seed=torch.arange(7), ids=noise.ids), 1, 5)


@pytest.mark.thirds
@needs_library
@pytest.mark.parametrize("network", [F32, BF16], ids=["float32", "bfloat16"])
@pytest.mark.parametrize("schedule", [fs.VP(), fs.VE()], ids=["VP", "VE"])
@pytest.mark.parametrize(
    "solver",
    [
        fs.DPMpp2M(),
        fs.Heun(),
        *(fs.PredictorCorrector(fs.ReverseDiffusion(), fs.Langevin(norm=norm)) for norm in fused.NORMS),
    ],
    ids=["DPM++2M", "Heun", *fused.NORMS],
)
def test_whole_trajectories_are_equal(solver, schedule, network):
    parametrization = Parametrization("eps")
    model = ScoreModel(lambda u, t, cond: (u / (1.0 + u * u)).to(network), (3, 7, 11), schedule, parametrization)
    plan = plans.make_plan(solver, schedule, fs.karras(9)(schedule))
    plan = plans.clip(plan, 1.0) if isinstance(solver, fs.DPMpp2M) else plan
    bound, key, ends = BoundPlan(plan, model), NoiseKey.of(11, [0, 1, 1 << 33, 5]), []
    for ops in (REFERENCE, resolve("cpp", CPU)):
        loop = Loop(bound, model, Execution(CPU, 6), ops, network)
        loop.load(Request(key).padded(6))
        ends.append(loop.run())
    assert same(*ends)
    assert torch.isfinite(ends[0]).all()


@needs_library
@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({0: lambda x: x.double()}, r"x is float64 \[3, 8\]"),
        ({0: lambda x: x.flatten()}, r"expected \[N, D\]"),
        ({0: lambda x: x.T.contiguous().T}, "x has strides"),
        ({0: lambda x: x.to("meta")}, "x is on meta"),
        ({1: lambda F: F[:, :7]}, r"F is float32 \[3, 7\]"),
        ({1: lambda F: F.long()}, "F is int64"),
        ({1: lambda F: F.to("meta")}, r"F is float32 \[3, 8\] on meta"),
        ({2: lambda h: h.new_zeros(5, 3, 8)}, "hist has 5 slots"),
        ({2: lambda h: h.new_zeros(1, 3, 9)}, "hist is"),
        ({3: lambda t: t[:, :15]}, "table is"),
        ({3: lambda t: t.double()}, "table is float64"),
        ({4: lambda i: i.float()}, "idx is torch.float32"),
        ({5: lambda k: RecordedNoise(torch.zeros(1, 3, 8))}, "recorded noise needs backend='reference'"),
        ({5: lambda k: NoiseKey(k.seed, k.ids[:2])}, r"ids is int64 \[2\]"),
        ({1: lambda F: None, "F2": lambda F: F}, "F2 without F"),
        ({"out_u": lambda u: u[:2]}, "out_u is"),
    ],
    ids=lambda v: v if isinstance(v, str) else None,
)
def test_refuses(change, message):
    arguments, options = inputs(3, 8, F2=F32)
    for k, act in change.items():
        target = arguments if isinstance(k, int) else options
        target[k] = act(target[k])
    with pytest.raises(ValueError, match=message):
        fused.update_cpu(*arguments, **options)


@needs_library
@pytest.mark.parametrize("row", [-1, ROWS])
def test_a_row_outside_the_table_is_no_crash(row):
    arguments, _ = inputs(3, 8)
    before = arguments[0].clone()
    arguments[4] = torch.tensor([0, 1, row])
    with pytest.raises(IndexError, match="outside its table"):
        fused.update_cpu(*arguments)
    assert torch.equal(arguments[0], before)


@needs_library
def test_other_operations_refuse_too():
    (x, F, _, table, idx, noise), _ = inputs(3, 8)
    own = torch.empty(3, abi.WIDTH)
    with pytest.raises(ValueError, match="F is None"):
        fused.langevin_cpu(x, None, table, idx, noise, own, "sample", torch.ones(3))
    with pytest.raises(ValueError, match="norm = 'l1'"):
        fused.langevin_cpu(x, F, table, idx, noise, own, "l1", torch.ones(3))
    with pytest.raises(ValueError, match="scratch is"):
        fused.langevin_cpu(x, F, table, idx, noise, own[:2], "batch", torch.ones(3))
    with pytest.raises(ValueError, match="rounding = 'up'"):
        fused.quantize_cpu(torch.zeros(1, 1, 2, 2), "up")
    with pytest.raises(ValueError, match="x has strides"):
        fused.quantize_cpu(torch.zeros(1, 2, 2, 3).permute(0, 3, 1, 2))


@needs_library
def test_auto_takes_the_library(monkeypatch):
    monkeypatch.delenv("FASTSCORE_BACKEND", raising=False)
    resolve.cache_clear()
    assert resolve("auto", CPU).name == "cpp"
    with pytest.raises(ValueError, match="it runs on the CPU"):
        resolve("cpp", torch.device("cuda"))


def test_without_the_library_auto_is_the_reference(monkeypatch):
    monkeypatch.delenv("FASTSCORE_BACKEND", raising=False)
    monkeypatch.setattr(library, "library_file", lambda: None)
    library.library.cache_clear()
    resolve.cache_clear()
    try:
        assert resolve("auto", CPU) is REFERENCE
        with pytest.raises(ValueError, match="not built: install g\\+\\+ or clang\\+\\+"):
            resolve("cpp", CPU)
    finally:
        resolve.cache_clear()


@needs_library
def test_a_library_of_other_sources_is_refused(monkeypatch, tmp_path):
    monkeypatch.setattr(library, "_ABI", library._ABI + 1)
    library.library.cache_clear()
    try:
        with pytest.raises(ValueError, match="built from other sources: install fastscore again"):
            library.library()
        broken = tmp_path / "fused.so"
        broken.write_text("no library")
        monkeypatch.setattr(library, "library_file", lambda: broken)
        with pytest.raises(ValueError, match="cannot be loaded"):
            library.library()
    finally:
        library.library.cache_clear()


@pytest.mark.slow
@pytest.mark.parametrize("compiler", ["missing", "present"])
def test_the_build_needs_no_compiler(tmp_path, compiler):
    pytest.importorskip("setuptools", reason="builds the C++ library, which needs setuptools")
    shutil.copy(ROOT / "setup.py", tmp_path)
    shutil.copytree(ROOT / "kernels", tmp_path / "kernels", ignore=shutil.ignore_patterns("*.so"))
    environment = dict(os.environ)
    if compiler == "missing":
        environment |= {"CC": "/nonexistent/cc", "CXX": "/nonexistent/cxx"}
    elif not any(map(shutil.which, ("g++", "clang++"))):
        pytest.skip("builds the C++ library with g++ or clang++, and there is neither")
    done = subprocess.run(
        [sys.executable, "setup.py", "-q", "build_ext"], cwd=tmp_path, env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    built = [file.suffix for file in tmp_path.glob("build/lib*/fastscore/kernels/cpu/_fused*")]
    assert built == ([".so"] if compiler == "present" else [])
    assert done.stderr.count("noise and updates on the CPU are slower") == (compiler == "missing")
