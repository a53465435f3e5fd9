"""A mask, matrix or kernel of each sample's own: a sample is what it is alone under its own one."""

from __future__ import annotations

import pytest
import torch

from fastscore.engine.picard import Picard
from fastscore.guidance.guides import DPS, Chain, ClassifierGuidance, EnergyGuidance, PiGDM, StaticThreshold
from fastscore.guidance.measurements import Blur, Downsample, Linear, Masked, Matrix
from fastscore.guidance.per_sample import lines_of, with_lines
from fastscore.guidance.scales import finest
from fastscore.model import analytic
from fastscore.model.conditions import Known
from fastscore.ops.noise import NoiseKey
from fastscore.process.continuous import VP
from fastscore.process.grid import Span, logsnr
from fastscore.sampler import Sampler
from fastscore.solvers import BogackiShampine, DPMAdaptive, DPMpp2M

SHAPE, N = (1, 4, 4), 7
MODEL = analytic.score_model(analytic.gaussian(0.3, 0.7, SHAPE))
MASKS = NoiseKey.of(5, range(N)).normal(0, 16, torch.float64).view(N, *SHAPE) > 0.0
MATRICES = NoiseKey.of(6, range(N)).normal(0, 48, torch.float64).view(N, 3, 16)
KERNELS = NoiseKey.of(7, range(N)).uniform(0, 6).double().view(N, 2, 3)
OPERATORS = {
    "masked": (lambda at: Masked(MASKS[at]), SHAPE),
    "matrix": (lambda at: Matrix(MATRICES[at]), (3,)),
    "blur": (lambda at: Blur(KERNELS[at]), SHAPE),
}
GUIDES = {
    "pigdm": lambda A: PiGDM(A, 0.3, 0.7),
    "dps": lambda A: DPS(A, 0.5),
    "chain": lambda A: Chain((PiGDM(A, 0.3, 0.7), StaticThreshold(1.5))),
    "chain of chains": lambda A: Chain((Chain((DPS(A, 0.5),)), StaticThreshold(1.5))),
}
ENGINES = {
    "plan": {"solver": DPMpp2M(), "grid": logsnr(4)},
    "picard": {"solver": DPMpp2M(), "grid": logsnr(4), "parallel": Picard(3, 0.0)},
    # Samples take different numbers of steps: lanes are refilled out of order.
    "lanes": {"solver": BogackiShampine(1e-2, 1e-2), "grid": Span(end=0.3)},
    "lanes in lam": {"solver": DPMAdaptive(2, 1e-1, 1e-1), "grid": Span(end=0.3)},
}


def measured(shape: tuple[int, ...], n: int = N) -> torch.Tensor:
    d = int(torch.tensor(shape).prod())
    return NoiseKey.of(1, range(n)).normal(0, d, torch.float64).view(n, *shape)


def sampler(guide, engine: str = "plan", batch: int = 3, **kw) -> Sampler:
    return Sampler(MODEL, schedule=VP(), guide=guide, dtype=torch.float64, batch=batch, **(ENGINES[engine] | kw))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("guide", "operator", "engine"),
    [
        *(("pigdm", "masked", engine) for engine in ENGINES),
        *(("chain", "matrix", engine) for engine in ("plan", "picard", "lanes")),
        *(("dps", "blur", engine) for engine in ("plan", "lanes")),
        ("chain of chains", "matrix", "plan"),
    ],
)
def test_a_sample_has_its_own_operator_in_every_engine(guide, operator, engine):
    make, shape = OPERATORS[operator]
    y = measured(shape)
    whole = sampler(GUIDES[guide](make(slice(None))), engine).run(range(N), y=y)
    for k in (0, 4, 6):
        alone = sampler(GUIDES[guide](make(k)), engine, batch=1 if engine != "plan" else 3).run([k], y=y[k : k + 1])
        assert torch.allclose(whole[k], alone[0], rtol=1e-9, atol=1e-9), k
    assert not torch.allclose(sampler(GUIDES[guide](make(0)), engine).run(range(N), y=y), whole, atol=1e-3)


@pytest.mark.thirds
@pytest.mark.parametrize("batch", [1, 3, 7, 16])
def test_it_depends_neither_on_the_micro_batch_nor_on_the_order(batch):
    """Exactly as many masks as the micro-batch holds were reused for every one of them."""
    y = measured(SHAPE)
    whole = sampler(PiGDM(Masked(MASKS), 0.3, 0.7), batch=7).run(range(N), y=y)
    assert torch.allclose(sampler(PiGDM(Masked(MASKS), 0.3, 0.7), batch=batch).run(range(N), y=y), whole, rtol=1e-12)
    order = [6, 2, 5, 0]
    some = sampler(PiGDM(Masked(MASKS[order]), 0.3, 0.7), batch=batch).run(order, y=y[order])
    assert torch.allclose(some, whole[order], rtol=1e-12)


def test_lines_are_part_of_a_request():
    """So shards, streams and retries cut them as they cut everything else."""
    y, s = measured(SHAPE), sampler(PiGDM(Masked(MASKS), 0.3, 0.7))
    request, whole = s.request(range(N), y=y), s.run(range(N), y=y)
    assert torch.equal(request.part(slice(2, 5)).guide[0], MASKS[2:5])
    assert torch.equal(s.run(request.part(slice(4, 7))), whole[4:])
    for ids, x in s.stream(range(N), y=y):
        assert torch.equal(x, whole[ids])
    with pytest.raises(ValueError, match=r"one line a sample, for 7 samples; there are 6 ids"):
        s.run(range(6), y=y[:6])
    mixed = Chain((PiGDM(Masked(MASKS), 0.3, 0.7), PiGDM(Matrix(MATRICES[0]), 0.3, 0.7)))
    assert len(lines_of(mixed, 3)) == 1
    assert with_lines(mixed, 3, ()) is mixed


def test_every_sample_may_have_a_mask_of_known_data_beside_its_operator():
    y = measured(SHAPE)
    known = Known(y, MASKS)
    whole = sampler(PiGDM(Masked(MASKS), 0.0, 0.7)).run(range(N), y=torch.where(MASKS, y, 0.0), known=known)
    assert torch.equal(whole[MASKS], y[MASKS])
    one = sampler(PiGDM(Masked(MASKS[5]), 0.0, 0.7)).run(
        [5], y=torch.where(MASKS, y, 0.0)[5:6], known=Known(y[5], MASKS[5])
    )
    assert torch.allclose(one[0], whole[5], rtol=1e-12)


def test_a_mask_of_one_line_is_for_all():
    y = measured(SHAPE)
    one = sampler(PiGDM(Masked(MASKS[:1]), 0.3, 0.7)).run(range(N), y=y)
    assert torch.equal(one, sampler(PiGDM(Masked(MASKS[0]), 0.3, 0.7)).run(range(N), y=y))


def per_micro_batch(D):
    return torch.where(MASKS[:3], D, 0.0)  # as many as the micro-batch


@pytest.mark.parametrize("guide", [
    DPS(per_micro_batch, 0.5),
    DPS(Linear(per_micro_batch, per_micro_batch), 0.5),
    PiGDM(Linear(per_micro_batch, per_micro_batch), 0.5, 0.7),
    EnergyGuidance(lambda D, y: per_micro_batch(D).square().flatten(1).sum(1)),
    ClassifierGuidance(lambda x, alpha, sigma, y: -per_micro_batch(x).square().flatten(1).sum(1)),
], ids=lambda g: type(g).__name__)  # fmt: skip
def test_a_function_that_holds_tensors_of_several_samples_is_refused(guide):
    for engine in ("plan", "lanes"):
        with pytest.raises(ValueError, match="holds tensors of several samples itself"):
            sampler(guide, engine).run(range(6), y=measured(SHAPE, 6))


def test_the_finest_scale_is_that_of_the_steepest_operator():
    for make in (lambda at: Matrix(MATRICES[at]), lambda at: Blur(KERNELS[at])):
        alone = [finest(PiGDM(make(k), 0.3), SHAPE) for k in range(N)]
        assert finest(Chain((PiGDM(make(slice(None)), 0.3),)), SHAPE) == pytest.approx(min(alone), rel=1e-6)
    assert finest(DPS(Masked(MASKS), 0.3), SHAPE) == pytest.approx(0.3)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (
            lambda: PiGDM(Masked(MASKS), torch.full((N,), 0.1)),
            r"PiGDM: noise = .* must be a number, not a Tensor, one for all samples",
        ),
        (lambda: PiGDM(Masked(MASKS), 0.1, torch.ones(N)), "PiGDM: data_std"),
        (lambda: DPS(Masked(MASKS), torch.full((N,), 0.1)), "DPS: noise"),
        (lambda: DPS(Masked(MASKS), 0.1, torch.ones(N)), "DPS: scale"),
        (lambda: EnergyGuidance(lambda D, y: D, torch.ones(N)), "EnergyGuidance: scale"),
        (lambda: ClassifierGuidance(lambda *a: a[0], torch.ones(N)), "ClassifierGuidance: scale"),
        (lambda: Masked(MASKS.float()), "mask is torch.float32; it must be bool.*mask > 0"),
        (lambda: Masked(0.5), "mask = 0.5 must be a Tensor, not a float"),
        (lambda: Matrix([[1.0]]), "A = .* must be a Tensor, not a list"),
        (lambda: Blur(torch.ones(3)), r"expected \[h, w\]"),
        (lambda: Downsample(2.0), "whole number"),
        (lambda: Downsample(torch.tensor([2, 4])), "whole number"),
    ],
)
def test_bad_calls_are_named(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_what_is_singular_up_to_rounding_is_solved_by_the_pseudoinverse():
    """Rows that repeat, in float32 and turned, and frequencies that a blur removes: noise 0 leaves no 1 / 1e-9."""
    v = measured((3,), 2)
    A = MATRICES[0].clone()
    A[2] = A[0] + A[1]
    turn = torch.linalg.qr(measured((3, 3), 1)[0])[0]
    exact = turn @ A
    for given in (exact, exact.float(), MATRICES.float() @ MATRICES.float().mT @ MATRICES.float()):
        op = Matrix(given)
        rank = torch.linalg.matrix_rank(given.double(), rtol=1e-5)
        values = op._spectrum[0]
        assert torch.equal((values > 0).sum(-1), rank)
    one = torch.ones(2, 1, dtype=torch.float64)
    wanted = v @ torch.linalg.pinv(exact @ exact.T, rtol=1e-10).T
    assert torch.allclose(Matrix(exact).solve(v, one, 0.0), wanted, rtol=1e-8)
    assert torch.allclose(
        Matrix(exact.float()).solve(v, one, 0.0), wanted, rtol=1e-3, atol=1e-4 * float(wanted.abs().max())
    )
    two = Blur(torch.tensor([[0.5, 0.5]]))  # removes the highest frequency
    for dtype in (torch.float32, torch.float64):
        x = measured((1, 5, 6), 2).to(dtype)
        solved = two.solve(x, torch.ones(2, 1, 1, 1, dtype=dtype), 0.0)
        assert float(solved.abs().max()) < 100.0 * float(x.abs().max())
        again = two(two.adjoint(solved))
        assert torch.allclose(two.solve(again, torch.ones(2, 1, 1, 1, dtype=dtype), 0.0), solved, rtol=1e-3, atol=1e-3)
