"""What the sampler promises: a sample is a function of (settings, seed, id) and of nothing else."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from networks import elementwise, elementwise_model

from fastscore.errors import NonFiniteError
from fastscore.model import analytic
from fastscore.model.nets import build
from fastscore.model.score import ScoreModel
from fastscore.process.continuous import EDM, VE, VP, SubVP
from fastscore.process.grid import karras, uniform
from fastscore.process.parametrization import Parametrization
from fastscore.sampler import Sampler
from fastscore.solvers import (
    DDIM,
    AnnealedLangevin,
    DPMpp2M,
    EulerMaruyama,
    Heun,
    Langevin,
    PredictorCorrector,
    ReverseDiffusion,
)

SHAPE = (1, 6, 6)
SOLVERS = {
    "dpmpp-2m": DPMpp2M(),
    "heun": Heun(),
    "ddim-eta1": DDIM(eta=1.0),
    "pc-langevin": PredictorCorrector(ReverseDiffusion(), Langevin()),
    "2m-ald": PredictorCorrector(DPMpp2M(), AnnealedLangevin()),
}


def model(classes: int = 0) -> ScoreModel:
    return elementwise_model(SHAPE, classes=classes, null=classes or None)


def sampler(name: str = "dpmpp-2m", batch: int = 8, **kw) -> Sampler:
    return Sampler(model(kw.pop("classes", 0)), solver=SOLVERS[name], grid=karras(6), batch=batch, **kw)


@pytest.mark.thirds
@pytest.mark.parametrize("name", SOLVERS)
def test_samples_do_not_depend_on_batch_order_or_company(name):
    whole = sampler(name).run(range(16), seed=5)
    assert whole.isfinite().all()
    assert whole.std() > 0.01
    for batch in (1, 7, 16):
        assert torch.equal(sampler(name, batch).run(range(16), seed=5), whole)
    for n in (1, 7):
        assert torch.equal(sampler(name).run(range(n), seed=5), whole[:n])
    order = [9, 15, 0, 3]
    assert torch.equal(sampler(name).run(order, seed=5), whole[order])
    again = sampler(name)
    assert torch.equal(again.run(range(16), seed=5), whole)
    assert torch.equal(again.run(range(16), seed=5), whole)  # nothing is left over in the buffers
    assert not torch.equal(again.run(range(64), seed=6), whole)


def test_a_real_network_at_one_micro_batch_gives_the_same_bits():
    torch.manual_seed(0)
    spec = {"name": "UNet", "channels": 1, "size": 8, "width": 16, "mult": [1, 2], "blocks": [1, 1], "classes": 3}
    net = build(spec)
    for p in net.parameters():
        torch.nn.init.normal_(p, std=0.1)
    m = ScoreModel(net, (1, 8, 8), EDM(), Parametrization("edm", "log_sigma/4"), classes=3, null=3)

    def run(ids, batch=16):
        return Sampler(m, grid=karras(4), batch=batch).run(ids, labels="random")

    whole = run(range(20))
    assert torch.equal(run(range(1)), whole[:1])
    assert torch.equal(run([13, 2, 17]), whole[[13, 2, 17]])
    other = run(range(20), batch=5)  # kernels differ by batch size: close, not equal
    assert torch.allclose(other, whole, rtol=1e-4, atol=1e-4)


def test_batch_norm_mode_ignores_padding_and_couples_samples():
    solver = PredictorCorrector(ReverseDiffusion(), Langevin(norm="batch"))

    def make(batch):
        return Sampler(model(), solver=solver, grid=karras(4), batch=batch)

    assert torch.equal(make(16).run(range(5)), make(8).run(range(5)))
    assert not torch.equal(make(16).run(range(5)), make(16).run(range(6))[:5])
    again = make(4)
    assert torch.equal(again.run(range(5)), again.run(range(5)))  # a whole micro-batch after one with padding


def test_labels():
    s = sampler(classes=4)
    ids = range(40)
    drawn = s.request(ids, 3, labels="random").cond
    assert set(drawn.tolist()) == {0, 1, 2, 3}
    assert torch.equal(s.run(ids, 3, labels="random"), s.run(ids, 3, labels=drawn))
    assert torch.equal(s.run([7], 3, labels="random")[0], s.run(ids, 3, labels="random")[7])
    assert torch.equal(s.run(ids, 3, labels=2), s.run(ids, 3, labels=[2] * 40))
    assert torch.equal(s.run(ids, 3, labels=None), s.run(ids, 3, labels=4))  # 4: the null class
    assert s.request(ids, 3).cond.tolist() == [4] * 40


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: sampler().run([0], labels=1), "unconditional"),
        (lambda: sampler(classes=4).run([0], labels=5), "must lie in 0 .. 3"),
        (lambda: sampler(classes=4).run([0, 1], labels=[1]), "1 labels for 2 ids|\\(1,\\) labels for 2"),
        (lambda: sampler(classes=4).run([0], labels="all"), "'all'"),
        (lambda: sampler().run([-1]), "id -1"),
        (lambda: sampler().run([0], seed=2**64), "seed = "),
        (lambda: sampler().run([0], noise=torch.zeros(1, 2, 36)), "must be a tensor \\[draws, 1, 1, 6, 6\\]"),
        (lambda: sampler("ddim-eta1").run([0], noise=torch.zeros(2, 1, 36)), "has 2 draws; this plan needs"),
        (lambda: sampler().run([0], noise=torch.zeros(1, 1, 6, 6, 1)), "must be a tensor"),
        (lambda: sampler().run([], noise=torch.zeros(0)), "must be a tensor"),
        (lambda: sampler(classes=4).run([0, 1], labels=[1.9, 2.7]), "must be integers"),
        (lambda: sampler(classes=4).run([0], labels=["a"]), "must be integers"),
        (lambda: sampler(batch=0), "batch = 0"),
        (lambda: sampler(dtype=torch.float16), "float16"),
        (lambda: sampler(clip=-1.0), "clip = -1"),
    ],
)
def test_bad_calls_are_named(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_nothing_is_drawn_for_no_ids():
    x = sampler().run([])
    assert x.shape == (0, *SHAPE)


def test_recorded_noise_replaces_the_generated():
    s = sampler("ddim-eta1")
    from fastscore.ops.noise import NoiseKey

    key = NoiseKey.of(9, range(5))
    z = torch.stack([key.normal(k, 36) for k in range(s.plan.draws)])
    assert torch.equal(s.run(range(5), noise=z), s.run(range(5), seed=9))


def test_callback_sees_every_row_and_the_estimate():
    target = analytic.gaussian(0.5, 0.5, SHAPE)
    s = Sampler(
        analytic.score_model(target), schedule=VP(), solver=Heun(), grid=karras(5), batch=4, dtype=torch.float64
    )
    seen = []
    x = s.run(range(6), callback=seen.append)
    assert [step.row for step in seen] == list(range(len(s.plan.rows))) * 2
    assert [len(step.ids) for step in seen[:1] + seen[-1:]] == [4, 2]
    assert torch.equal(seen[-1].x, x[4:])
    assert seen[0].x0 is None
    before, step = seen[0], seen[1]
    t = torch.atan2(*(torch.as_tensor(v(step.t)) for v in (VP().sigma, VP().alpha)))
    length = (VP().alpha(step.t) ** 2 + VP().sigma(step.t) ** 2) ** 0.5
    assert torch.allclose(step.x0, target(before.x / length, t.expand(4)), rtol=1e-10)


def test_non_finite_samples_are_named():
    def broken(x, t, cond):
        bad = (x.flatten(1).mean(1) > 0.25) & (t < -0.5)
        return torch.where(bad.reshape(-1, 1, 1, 1), float("nan"), elementwise(x, t, None))

    m = replace(model(), net=broken)
    s = Sampler(m, grid=karras(6), batch=8)
    with pytest.raises(NonFiniteError, match=r"samples are NaN or Inf, first id \d+ at row \d+ \(t = "):
        s.run(range(100, 164))


@pytest.mark.thirds
@pytest.mark.parametrize("schedule", [VP(), SubVP(), VE()], ids=lambda s: type(s).__name__)
@pytest.mark.parametrize("steps", [1, 2, 10])
@pytest.mark.parametrize("solver", [EulerMaruyama(), DPMpp2M(), SOLVERS["pc-langevin"]], ids=["em", "2m", "pc"])
def test_few_steps_on_any_schedule_stay_finite(schedule, steps, solver):
    m = analytic.score_model(analytic.gaussian(0.3, 0.4, (4, 8)))
    for grid in (uniform(steps), uniform(steps, clean=True)):
        assert Sampler(m, schedule=schedule, solver=solver, grid=grid, batch=16).run(range(16)).isfinite().all()


def test_one_step_to_the_data_is_the_mean():
    m = analytic.score_model(analytic.gaussian(0.3, 0.4, (8,)))
    x = Sampler(m, schedule=EDM(), grid=karras(1)).run(range(4))
    assert torch.allclose(x, torch.full((4, 8), 0.3), atol=0.05)


def test_another_schedule_starts_where_the_network_does():
    s = Sampler(model(), schedule=VP(), grid=karras(8))
    ratio = VP().sigma(s.plan.rows[0].t) / VP().alpha(s.plan.rows[0].t)
    assert ratio == pytest.approx(80.0, rel=1e-6)
    with pytest.raises(ValueError, match="noisier than EDM gets"):
        Sampler(model(), schedule=VP(), grid=karras(8, start=1.0))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_a_half_precision_network_keeps_a_float32_state(dtype):
    torch.manual_seed(0)
    net = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(36, 36), torch.nn.Unflatten(1, SHAPE))
    seen = []

    class Net(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body = net

        def forward(self, u, t, cond):
            seen.append((u.dtype, t.dtype))
            return self.body(u)

    m = replace(model(), net=Net())
    full = Sampler(m, grid=karras(5), batch=4).run(range(4))
    half = Sampler(replace(m, net=Net().to(dtype)), grid=karras(5), batch=4).run(range(4))
    assert set(seen) == {(torch.float32, torch.float32), (dtype, torch.float32)}
    assert half.dtype == torch.float32
    assert 0 < (half - full).abs().max() < 0.1
    with pytest.raises(ValueError, match=r"convert it with net\.to"):
        Sampler(m, dtype=torch.float64)


def test_per_sample_norms_in_few_dimensions_are_warned_about():
    solver = PredictorCorrector(ReverseDiffusion(), Langevin())
    with pytest.warns(UserWarning, match="biased in 2 dimensions"):
        Sampler(analytic.by_name("mixture"), schedule=VP(), solver=solver, grid=uniform(3))


def test_a_network_may_work_in_place_on_its_input():
    m, solver = model(), DDIM(keep_eps=True)
    plain = Sampler(replace(m, net=lambda u, t, cond: torch.relu(u)), solver=solver, grid=karras(6), batch=4)
    reused = Sampler(replace(m, net=lambda u, t, cond: torch.relu_(u)), solver=solver, grid=karras(6), batch=4)
    assert torch.equal(plain.run(range(4)), reused.run(range(4)))


def test_a_network_of_another_shape_is_named():
    turned = replace(model(), shape=(1, 6, 4), net=lambda u, t, cond: u.transpose(2, 3))
    with pytest.raises(ValueError, match=r"returned .* for an input of"):
        Sampler(turned, grid=karras(3), batch=2).run([0])


def test_one_run_at_a_time():
    s = sampler()
    with pytest.raises(RuntimeError, match="in the middle of a run"):
        s.run([0], callback=lambda step: s.run([1]))
    assert s.run([0]).isfinite().all()


def test_the_estimate_in_a_callback_is_clipped():
    steps = []
    sampler("ddim-eta1", clip=0.05).run([0, 1], callback=steps.append)
    assert max(float(step.x0.abs().max()) for step in steps if step.x0 is not None) < 0.05001
