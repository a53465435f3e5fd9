"""Requests: cut, padded and served, no line of them changes."""

from __future__ import annotations

import pytest
import torch

import fastscore as fs
from fastscore.engine.capture import Graphed, Tape
from fastscore.engine.request import Request, micro_batches
from fastscore.engine.turn import Turn
from fastscore.errors import NonFiniteError
from fastscore.guidance.measurements import Blur, Matrix
from fastscore.model.coordinates import Dense, Diagonal, LowRank
from fastscore.ops.noise import NoiseKey

SHAPE, CPU = (2, 3), torch.device("cpu")
MODEL = fs.ScoreModel(lambda u, t, cond: u, SHAPE, fs.VP(), classes=4, null=4)


def full(n: int = 5) -> Request:
    mask = torch.zeros(SHAPE, dtype=torch.bool)
    mask[0] = True
    return Request.of(
        MODEL,
        CPU,
        range(10, 10 + n),
        list(range(n)),
        labels=[k % 4 for k in range(n)],
        init=torch.arange(6.0 * n).reshape(n, *SHAPE),
        known=fs.Known(torch.ones(SHAPE), mask),
        y=torch.arange(float(n))[:, None],
        noise=torch.arange(2.0 * n * 6).reshape(2, n, *SHAPE),
        prior_ids=range(20, 20 + n),
    )


def lines(request: Request) -> list[torch.Tensor]:
    r = request
    return [r.ids, r.key.seed, r.cond, r.init, r.known, r.mask, r.y, r.noise.transpose(0, 1), r.prior_ids]


def test_a_part_has_the_lines_of_its_samples():
    whole = full()
    for at in (slice(0, 2), slice(3, 5), slice(1, 1)):
        part = whole.part(at)
        assert part.valid == len(part) == len(range(5)[at])
        assert all(torch.equal(a, b[at]) for a, b in zip(lines(part), lines(whole), strict=True))
    again = whole.part(slice(1, 5)).part(slice(1, 3))
    assert all(torch.equal(a, b[2:4]) for a, b in zip(lines(again), lines(whole), strict=True))


def test_padding_repeats_the_last_line_and_counts_for_nothing():
    whole = full(3)
    padded = whole.padded(5)
    assert (len(padded), padded.valid) == (5, 3)
    for long, short in zip(lines(padded), lines(whole), strict=True):
        assert torch.equal(long[:3], short)
        assert torch.equal(long[3:], short[2:].expand(2, *short.shape[1:]))
    assert whole.padded(3) is whole


def test_one_seed_for_all_stays_one():
    request = Request.of(MODEL, CPU, range(5), 7)
    assert [len(r.key.seed) for r in (request, request.part(slice(0, 2)), request.padded(8))] == [1, 1, 1]


def test_labels_are_resolved_once():
    request = Request.of(MODEL, CPU, range(50), 3, labels="random")
    assert set(request.cond.tolist()) == {0, 1, 2, 3}
    sampler = fs.Sampler(MODEL, grid=fs.uniform(3), batch=8)
    assert torch.equal(sampler.run(request), sampler.run(range(50), 3, labels=request.cond))


def test_a_request_cut_anywhere_gives_the_same_samples():
    sampler = fs.Sampler(MODEL, solver=fs.DDIM(1.0), grid=fs.uniform(3), batch=4)
    request = sampler.request(range(9), list(range(9)), labels=2)
    whole = sampler.run(request)
    for cut in (1, 4, 8):
        parts = [sampler.run(request.part(at)) for at in (slice(0, cut), slice(cut, 9))]
        assert torch.equal(torch.cat(parts), whole)


def test_micro_batches_are_padded_checked_and_cut():
    sizes, turn = [], Turn()

    def compute(at, part):
        sizes.append((at, len(part), part.valid, turn.busy, torch.is_grad_enabled()))
        return part.init.clone()

    def not_finite(at, part, x):
        raise NonFiniteError(f"{at.start}")

    request = full()
    served = list(micro_batches(request, 2, turn, compute, not_finite))
    assert torch.equal(torch.cat([x for _, x in served]), request.init)
    assert sizes == [(slice(a, b), 2, b - a, True, False) for a, b in ((0, 2), (2, 4), (4, 5))]
    assert not turn.busy
    request.init[3] = torch.nan
    stream = micro_batches(request, 2, turn, compute, not_finite)
    next(stream)
    assert not turn.busy  # while the caller holds the samples
    with pytest.raises(NonFiniteError, match="2"):
        next(stream)
    assert not turn.busy
    request.init[:] = 1e38  # finite, but its sum is not
    assert len(list(micro_batches(request, 2, turn, compute, not_finite))) == 3


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"labels": 5}, "must lie in 0 .. 3"),
        ({"cond": torch.zeros(2)}, "no conditioning tensor"),
        ({"init": torch.zeros(3)}, r"init is \(3,\); it must be a tensor \(2, 3\)"),
        ({"y": torch.zeros(())}, "its first axis must be the 2 ids"),
        ({"noise": torch.zeros(1, 3, 6)}, r"recorded noise is \(1, 3, 6\)"),
        ({"noise": [1.0]}, "recorded noise is list"),
        ({"known": fs.Known(torch.zeros(SHAPE), torch.zeros(SHAPE))}, "must be bool"),
    ],
)
def test_what_does_not_fit_is_named(fields, message):
    with pytest.raises(ValueError, match=message):
        Request.of(MODEL, CPU, [1, 2], **fields)


def test_parts_of_a_joint_model_are_given_by_name():
    parts = {"a": fs.Part((2,), fs.VP()), "b": fs.Part((3,), fs.VE())}
    joint = fs.JointModel(lambda u, c_noise: u, parts)
    request = Request.of(joint, CPU, [1, 2], init={"a": torch.ones(2), "b": torch.zeros(2, 3)})
    assert request.init.tolist() == [[1.0, 1.0, 0.0, 0.0, 0.0]] * 2
    assert request.columns(slice(2, 5)).init.shape == (2, 3)
    with pytest.raises(ValueError, match="init lacks b"):
        Request.of(joint, CPU, [1, 2], init={"a": torch.ones(2)})
    with pytest.raises(ValueError, match="dict by part, with keys among a, b"):
        Request.of(joint, CPU, [1, 2], init={"c": torch.ones(2)})


def test_a_request_that_does_not_fit_a_sampler_is_refused():
    """Also one that another sampler made."""
    start = fs.Sampler(MODEL, grid=fs.uniform(3), start="data")
    plain, parts = fs.Sampler(MODEL, grid=fs.uniform(3)), {"a": fs.Part((2,), fs.VP())}
    without, within = plain.request([0]), start.request([0], init=torch.zeros(SHAPE))
    for sampler, request, message in (
        (start, without, "init = None does not go with start = 'data'"),
        (plain, within, "init = a tensor does not go with start = 'prior'"),
        (plain, Request.of(MODEL, CPU, [0], y=torch.zeros(1)), "this sampler has none"),
        (plain, Request.of(MODEL, CPU, [0], noise=torch.zeros(0, 1, 6)), "has 0 draws; this plan needs 1"),
        (fs.JointSampler(fs.JointModel(lambda u, c: u, parts), start="data"), without, "does not go with start"),
    ):
        with pytest.raises(ValueError, match=message):
            sampler.run(request)
        with pytest.raises(ValueError, match=message):
            list(sampler.stream(request))


def test_a_second_model_of_another_kind_is_named():
    joint = fs.JointModel(lambda u, c: u, {"a": fs.Part(SHAPE, fs.VP())})
    with pytest.raises(ValueError, match="the second model is a JointModel; a Sampler takes a ScoreModel"):
        fs.Sampler(MODEL, guidance=fs.Guidance(2.0, model=joint))
    with pytest.raises(ValueError, match="the second model is a ScoreModel; parts need a JointModel"):
        fs.JointSampler(joint, guidance=fs.Guidance(2.0, model=MODEL))


def grad(*shape: int) -> torch.Tensor:
    return torch.zeros(shape, requires_grad=True)


MASK = torch.ones(SHAPE, dtype=torch.bool)
CONDITIONED = fs.ScoreModel(lambda u, t, cond: u, SHAPE, fs.VP(), cond_shape=(2,))
JOINT = fs.JointModel(lambda u, c: u, {"a": fs.Part((2,), fs.VP())})


@pytest.mark.parametrize(
    ("call", "name"),
    [
        (lambda: fs.Sampler(MODEL, start="data").run([0], init=grad(*SHAPE)), "init"),
        (lambda: fs.Sampler(MODEL, start="state").stream([0], init=grad(*SHAPE)), "init"),
        (lambda: fs.Sampler(MODEL, start="state", solver="dopri5").run([0], init=grad(*SHAPE)), "init"),
        (lambda: fs.Sampler(MODEL).run([0], known=fs.Known(grad(*SHAPE), MASK)), "known.y"),
        (lambda: fs.Sampler(MODEL).run([0], noise=grad(30, 1, *SHAPE)), "noise"),
        (lambda: fs.Sampler(CONDITIONED).run([0], cond=grad(2)), "cond"),
        (lambda: fs.Sampler(CONDITIONED).request([0], cond=grad(2)), "cond"),
        (lambda: fs.Sampler(MODEL, guide=fs.StaticThreshold(1.0)).run([0], y=grad(1, 1)), "y"),
        (lambda: fs.JointSampler(JOINT, start="state").run([0], init={"a": grad(2)}), r"init\['a'\]"),
        (lambda: fs.JointSampler(JOINT).run([0], noise=grad(30, 1, 2)), "noise"),
        (lambda: fs.ProbabilityFlow(CONDITIONED).log_likelihood(torch.zeros(1, *SHAPE), cond=grad(2)), "cond"),
        (lambda: fs.ProbabilityFlow(CONDITIONED).encode(torch.zeros(1, *SHAPE), cond=grad(2)), "cond"),
        (lambda: fs.Guidance(2.0, null=grad(2)), "null"),
        (lambda: Matrix(grad(2, 6)), "A"),
        (lambda: Blur(grad(2, 2)), "kernel"),
        (lambda: Dense(torch.eye(2).requires_grad_()), "A"),
        (lambda: Diagonal(torch.ones(2, requires_grad=True)), "d"),
        (lambda: LowRank(grad(2, 1)), "U"),
    ],
)
def test_a_gradient_that_nobody_passes_on_is_refused(call, name):
    with pytest.raises(ValueError, match=rf"{name} requires a gradient, and would get none.*\.detach\(\)"):
        call()
    with torch.no_grad():
        call()  # as was asked for


PRIORS = {
    "plan": {"solver": "ddim"},
    "captured": {"solver": "ddim", "backend": "reference"},
    "base": {"solver": "ddim", "base": True},
    "adaptive": {"solver": fs.Dopri5(rtol=1e-2, atol=1e-2)},
    "adaptive SDE": {"solver": fs.GottaGoFast(rtol=0.1, atol=0.1)},
    "picard": {"solver": "ddim", "parallel": fs.Picard(2)},
    "reference": {"solver": "ddim", "backend": "reference"},
}


@pytest.mark.thirds
@pytest.mark.parametrize("name", PRIORS)
def test_samples_start_from_the_noise_of_their_prior_ids(name):
    """Of a deterministic solver the prior is all that there is; noise on the way stays the samples' own."""
    settings = dict(PRIORS[name])
    base = fs.data.affine.Affine((0.5, 0.0, 1.0), (1.1, 1.0, 1.2)) if settings.pop("base", False) else None
    model = fs.ScoreModel(lambda u, t, cond: 0.5 * u, SHAPE, fs.VP(), base=base)
    sampler = fs.Sampler(model, **settings, **({} if "ad" in name else {"steps": 3}), batch=2)
    if name == "captured":
        loop = sampler.engine.loop
        loop.load(sampler.request([1, 2], 3, prior_ids=[8, 8]))
        x = Graphed(loop, Tape(), "step").run()
        assert x.equal(sampler.run([8, 8], 3))
        return
    if name == "adaptive SDE":
        x = sampler.run([1, 2, 1, 8], 3, prior_ids=[8, 8, 1, 8])
        plain = sampler.run([1, 8], 3)
        assert x[2:].equal(plain) and not x[0].equal(x[1]) and not x[0].equal(plain[0])
        return
    assert sampler.run([1, 2, 3], 3, prior_ids=[8, 8, 3]).equal(sampler.run([8, 8, 3], 3))
    seeds = [3, 4, 3]
    assert sampler.run([1, 2, 3], seeds, prior_ids=[8, 8, 3]).equal(sampler.run([8, 8, 3], seeds))


@pytest.mark.parametrize("solver", ["ddpm", fs.PredictorCorrector(fs.ReverseDiffusion(), fs.Langevin())])
def test_noise_on_the_way_is_the_samples_own(solver):
    """The prior draw of sample 8, and then draws of samples 1 and 2, as if they had been recorded."""
    model = fs.ScoreModel(lambda u, t, cond: 0.5 * u, SHAPE, fs.VP())
    sampler = fs.Sampler(model, solver=solver, steps=3, batch=2)
    prior, own = NoiseKey.of(3, [8, 8]), NoiseKey.of(3, [1, 2])
    noise = torch.stack([(own if k else prior).normal(k, 6) for k in range(sampler.plan.draws)])
    assert sampler.run([1, 2], 3, prior_ids=[8, 8]).equal(sampler.run([1, 2], 3, noise=noise))


def test_prior_ids_that_cannot_be():
    model = fs.ScoreModel(lambda u, t, cond: 0.5 * u, SHAPE, fs.VP())
    for given, message in (([1], "prior_ids: 1 for 2 ids"), ([-1, 0], "id -1 must lie"), ("x", "must be a sequence")):
        with pytest.raises(ValueError, match=message):
            fs.Sampler(model, steps=3).run([0, 1], prior_ids=given)
    with pytest.raises(ValueError, match="starts without noise"):
        fs.Sampler(model, steps=3, start="state").run([0, 1], prior_ids=[0, 0], init=torch.zeros(SHAPE))


def test_around_known_data_the_first_state_is_that_of_the_prior_ids():
    model = fs.ScoreModel(lambda u, t, cond: 0.5 * u, SHAPE, fs.VP())
    mask = torch.tensor([[True, False, True], [False, False, True]])
    sampler = fs.Sampler(model, solver="ddim", steps=3, batch=2)

    def states(ids, prior_ids=None):
        seen = []
        sampler.run(
            ids, known=fs.Known(torch.ones(SHAPE), mask), prior_ids=prior_ids, callback=lambda s: seen.append(s.x)
        )
        return seen

    shared, own = states([1, 2], [8, 8]), states([8, 8])
    assert shared[0].equal(own[0]) and not shared[1].equal(own[1])
