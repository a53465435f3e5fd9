"""Rollouts against recorded ones, torch.distributions and finite differences; replays against rollouts, to the bit."""

import gc
import math
import pickle
from dataclasses import replace

import golden_rollout
import pytest
import torch
from torch import Tensor, nn
from torch.distributions import Normal

import fastscore as fs
from fastscore.errors import NonFiniteError
from fastscore.model.projection import Centred

F32, F64 = torch.float32, torch.float64
N, BATCH = 10, 4


class Net(nn.Module):
    """A small network with what runs must leave alone: dropout, and a training mode."""

    def __init__(self, dtype=F32):
        super().__init__()
        self.first, self.last, self.dropout = nn.Linear(6 + 1 + 4, 16), nn.Linear(16, 6), nn.Dropout(0.5)
        generator = torch.Generator().manual_seed(5)
        for p in self.parameters():
            p.data = torch.empty(p.shape, dtype=F64).uniform_(-0.4, 0.4, generator=generator).to(dtype)

    def forward(self, u: Tensor, t: Tensor, cond: Tensor) -> Tensor:
        label = nn.functional.one_hot(cond, 4).to(u.dtype)
        h = torch.cat([u.flatten(1), t.to(u.dtype)[:, None], label], 1)
        return self.last(self.dropout(torch.tanh(self.first(h)))).view_as(u)


def sampler(solver="ddpm", dtype=F32, schedule=None, steps=5, net=None, **settings):
    parts = fs.Parametrization("v", "t")
    model = fs.ScoreModel(net or Net(dtype), (2, 3), schedule or fs.VP(), parts, classes=4, null=3)
    return fs.Sampler(model, solver=solver, steps=steps, batch=BATCH, dtype=dtype, **settings)


NETS = {
    "flow-sde": {"solver": "flow-sde", "schedule": fs.Flow()},
    "flow-sde-window": {"solver": "flow-sde", "schedule": fs.Flow(), "window": (1, 3)},
    "cps": {"solver": "cps", "schedule": fs.Flow()},
    "dance-ve": {"solver": "dance", "schedule": fs.VE()},
    "ddpo-clipped": {"solver": fs.DDIM(1.0, keep_eps=True), "clip": 0.7},
    "ddpm-set": {"solver": "ddpm", "window": {0, 2}},
    "guided": {"solver": fs.DDIM(0.5), "guidance": fs.Guidance(3.0)},
    "autoguided": {"solver": fs.DDIM(0.5), "autoguided": True},
    "interval": {"solver": "em", "guidance": fs.Guidance(2.0, (0.1, 1.0))},
    "multistep": {"solver": "dpmpp-3m-sde"},
    "multistep-window": {"solver": "dpmpp-2m-sde", "window": {1, 3}},
    "two-draws-a-step": {"solver": "dpmpp-sde"},
    "noise-before-steps": {"solver": "edm-churn", "schedule": fs.EDM()},
    "noise-within-steps": {"solver": "heun-sde"},
    "predictor-corrector": {"solver": fs.PredictorCorrector(fs.ReverseDiffusion(), fs.AnnealedLangevin(0.2))},
    "sa": {"solver": "sa"},
}

ALWAYS = ("flow-sde-window", "ddpm-set", "autoguided", "multistep-window", "two-draws-a-step", "noise-before-steps")


def some(names, always=ALWAYS):
    """Parameters of which a few run at every run, the others with the slow tests."""
    return [pytest.param(name, marks=[] if name in always else [pytest.mark.slow]) for name in names]


def made(name, dtype=F32):
    """Return a sampler of NETS, its window, and what a plain run with that window is drawn by."""
    options = dict(NETS[name])
    window = options.pop("window", None)
    if options.pop("autoguided", False):
        second = fs.ScoreModel(Net(dtype), (2, 3), fs.VP(), fs.Parametrization("v", "t"), classes=4, null=3)
        second.net.last.weight.data *= 0.5
        options["guidance"] = fs.Guidance(2.0, model=second)
    own = sampler(dtype=dtype, **options)
    if window is None:
        return own, None, own
    within = {**own.settings, "solver": fs.Window(own.solver, window), "steps": None, "grid": own.grid}
    return own, window, fs.Sampler(own.model, **within)


def labels(n=N):
    return [k % 3 for k in range(n)]


@pytest.mark.thirds
@pytest.mark.parametrize("name", golden_rollout.recorded())
def test_recorded_rollouts(name):
    """States, log-probabilities and replays of six code bases in float32, and of their formulas in float64."""
    run = golden_rollout.recorded()[name]
    for dtype, tolerance in ((F32, 1e-5), (F64, 1e-5)):
        own = run.sampler(dtype)
        rollout = own.rollout(range(own.execution.batch), noise=run.noise(dtype), reduction="mean", form=run.form)
        assert len(rollout) == len(run.arrays["z"])
        near(rollout.actions, run.tensor("prev", dtype), tolerance)
        near(rollout.log_probs, run.tensor("log_prob", F64), tolerance)
        if "v_replay" not in run.arrays:
            continue
        exact = 1e-12 if dtype == F64 else 1e-5
        near(rollout.log_probs, run.tensor("own_log_prob", F64), exact)
        recorded = replace(rollout, path=torch.cat([run.tensor("x", dtype)[:1], run.tensor("prev", dtype)]))
        z = run.tensor("z", dtype)
        again = own.replay_means(recorded) + rollout.stds.to(dtype).view(-1, *[1] * (z.ndim - 1)) * z
        near(again, run.tensor("own_prev", dtype), exact)
        replayed = run.sampler(dtype, "v_replay").replay(recorded)
        near(replayed, run.tensor("log_prob_replay", F64), 5e-5)
        near(replayed, run.tensor("own_log_prob_replay", F64), exact)


def near(ours, theirs, tolerance):
    assert ours.shape == theirs.shape
    worst = float((ours - theirs).abs().max() / theirs.abs().max().clamp(min=1.0))
    assert worst <= tolerance, worst


@pytest.mark.thirds
@pytest.mark.parametrize("name", some(NETS))
def test_a_rollout_is_the_run_and_a_replay_the_rollout(name):
    """Samples of a run, densities of torch.distributions, and replays to the bit, of all and of parts."""
    own, window, plain = made(name)
    net = own.model.net.train()
    rollout = own.rollout(range(N), 7, labels=labels(), window=window)
    assert rollout.x.equal(plain.run(range(N), 7, labels=labels()))
    K, c = len(rollout), rollout.stds.view(-1, 1, 1, 1)
    assert rollout.states.shape == rollout.actions.shape == rollout.means.shape == (K, N, 2, 3)
    density = Normal(rollout.means.double(), c).log_prob(rollout.actions.double()).flatten(2).sum(2)
    torch.testing.assert_close(rollout.replayed, density, rtol=1e-5, atol=1e-5)
    z = torch.stack([rollout.noise(k) for k in range(K)])
    torch.testing.assert_close(rollout.means + c.float() * z, rollout.actions, rtol=0, atol=1e-5)
    exact = Normal(0.0, c).log_prob(c * z.double()).flatten(2).sum(2)
    torch.testing.assert_close(rollout.log_probs, exact, rtol=1e-6, atol=1e-6)

    replayed = own.replay(rollout)
    assert replayed.equal(rollout.replayed) and replayed.requires_grad and net.training
    for k in range(K):
        assert own.replay(rollout, steps=[k]).equal(replayed[k : k + 1])
    few = rollout.at([8, 0, 3])
    assert own.replay(few).equal(replayed[:, [8, 0, 3]]) and few.ids.tolist() == [8, 0, 3]
    assert few.x.equal(rollout.x[[8, 0, 3]]) and few.cond.tolist() == [2, 0, 0]
    with torch.no_grad():
        assert not own.replay(rollout).requires_grad


@pytest.mark.parametrize(
    "name",
    some(["flow-sde", "guided", "multistep", "noise-before-steps", "noise-within-steps"], ("guided", "multistep")),
)
def test_gradients_are_those_of_finite_differences(name):
    """Through every evaluation that a mean holds, in float64; states and actions stay."""
    own, window, _ = made(name, F64)
    net = own.model.net
    rollout = own.rollout(range(3), labels=labels(3), window=window)
    weights = torch.linspace(0.5, 1.5, len(rollout) * 3, dtype=F64).view(-1, 3)
    (weights * own.replay(rollout)).sum().backward()
    for p, at in ((net.first.weight, (3, 2)), (net.first.weight, (5, 6)), (net.last.bias, (4,))):
        values, h = [], 1e-5
        for sign in (1.0, -1.0):
            with torch.no_grad():
                p[at] += sign * h
                values.append(float((weights * own.replay(rollout)).sum()))
                p[at] -= sign * h
        assert float(p.grad[at]) == pytest.approx((values[0] - values[1]) / (2.0 * h), rel=1e-6), at
    assert float(net.first.weight.grad.abs().sum()) > 0.0


def test_forms_and_reductions():
    own = sampler("cps", schedule=fs.Flow())
    found = {
        (form, reduction): own.rollout(range(N), labels=0, form=form, reduction=reduction)
        for form in ("gaussian", "exponent", "square")
        for reduction in ("sum", "mean")
    }
    z = torch.stack([found["square", "sum"].noise(k) for k in range(4)]).double().flatten(2)
    c, q = found["square", "sum"].stds[:, None], z.square().sum(2)
    expected = {
        "gaussian": -0.5 * q - 6 * (c * math.sqrt(2.0 * math.pi)).log(),
        "exponent": -0.5 * q,
        "square": -q * c**2,
    }
    for (form, reduction), rollout in found.items():
        total = expected[form] / (6 if reduction == "mean" else 1)
        torch.testing.assert_close(rollout.log_probs, total, rtol=1e-6, atol=1e-9)
        torch.testing.assert_close(own.replay(rollout).detach(), total, rtol=2e-4, atol=2e-4)


def test_what_a_rollout_says_of_itself():
    own = sampler("flow-sde", schedule=fs.Flow(), steps=6)
    rollout = own.rollout(range(3, 9), seed=list(range(6)), window=(1, 4), labels=1)
    knots = own.grid(own.schedule)
    assert rollout.steps.tolist() == [1, 2, 3] and rollout.rows.tolist() == [2, 3, 4]
    assert rollout.times.tolist() == [[knots[k], knots[k + 1]] for k in (1, 2, 3)]
    assert rollout.ids.tolist() == list(range(3, 9)) and rollout.seeds.tolist() == list(range(6))
    g = 0.7 * (torch.tensor(knots[1:4]) / (1.0 - torch.tensor(knots[1:4]))).sqrt()
    torch.testing.assert_close(rollout.diffusion, g)
    assert rollout.states[1:].equal(rollout.actions[:-1])
    assert rollout.states.data_ptr() == rollout.path.data_ptr()  # one run of steps: no copies
    assert rollout.plan == fs.Sampler(own.model, solver=fs.Window(own.solver, (1, 4)), grid=own.grid).plan.hash
    apart = own.rollout(range(3), labels=1, window={0, 2})  # step 1 adds no noise: the second state is its end
    assert [k.opens for k in apart.transitions] == [True, True] and len(apart.path) == 4
    plain = fs.Sampler(own.model, solver=fs.Window(own.solver, {0, 2}), grid=own.grid, batch=BATCH)
    path = fs.trajectory(plain, range(3), labels=1)
    assert apart.states.equal(path.states[[0, 2]]) and apart.actions.equal(path.states[[1, 3]])
    again = pickle.loads(pickle.dumps(rollout))
    assert own.replay(again).equal(own.replay(rollout))


def test_batches_ranks_and_order_change_nothing():
    """A member is (seed, id), whoever draws it: two ranks, a shuffle, alone."""
    own, ids = sampler("flow-sde", schedule=fs.Flow()), list(range(12))
    prior = [k // 4 for k in ids]
    one = own.rollout(ids, 3, labels=labels(12), prior_ids=prior)
    for part in (ids[:6], ids[6:], [11, 2, 5], [7]):
        other = sampler("flow-sde", schedule=fs.Flow()).rollout(
            part, 3, labels=[labels(12)[k] for k in part], prior_ids=[prior[k] for k in part]
        )
        assert other.x.equal(one.x[part])
        for name in ("states", "actions", "means", "log_probs", "replayed"):
            assert getattr(other, name).equal(getattr(one, name)[:, part]), name
        assert own.replay(other).equal(own.replay(one.at(part)))


def test_groups_share_a_prior_and_no_step():
    own = sampler("flow-sde", schedule=fs.Flow())
    rollout = own.rollout(range(8), labels=0, prior_ids=[0] * 4 + [100] * 4)
    start, noise = rollout.states[0], torch.stack([rollout.noise(k) for k in range(len(rollout))])
    assert all(start[k].equal(start[0]) for k in range(4)) and all(start[k].equal(start[4]) for k in range(4, 8))
    assert start[0].equal(own.rollout([0], labels=0).states[0, 0])  # a prior id names what the id would start from
    assert start[4].equal(own.rollout([100], labels=0).states[0, 0]) and not start[0].equal(start[4])
    assert rollout.x.equal(own.run(range(8), labels=0, prior_ids=[0] * 4 + [100] * 4))
    c = rollout.stds.float().view(-1, 1, 1, 1)
    torch.testing.assert_close(rollout.means + c * noise, rollout.actions, rtol=0, atol=1e-5)
    flat = noise.flatten(2).flatten(0, 1)
    assert len(flat.unique(dim=0)) == len(flat)
    alone = own.rollout(range(8), labels=0)  # each its own prior: the same noise in every step
    assert len(alone.states[0].flatten(1).unique(dim=0)) == 8
    assert noise.equal(torch.stack([alone.noise(k) for k in range(len(alone))]))


def test_a_reference_network_takes_the_place_of_the_first():
    own, other = sampler("flow-sde", schedule=fs.Flow()), Net()
    other.last.bias.data += 0.1
    rollout, reference = own.rollout(range(N), labels=labels()), replace(own.model, net=other)
    theirs = own.replay_means(rollout, reference)
    assert theirs.equal(sampler("flow-sde", schedule=fs.Flow(), net=other).replay_means(rollout))
    kl = ((rollout.means - theirs).square().flatten(2).sum(2) / (2.0 * rollout.stds[:, None] ** 2)).detach()
    p, q = (Normal(m.detach().double(), rollout.stds.view(-1, 1, 1, 1)) for m in (rollout.means, theirs))
    torch.testing.assert_close(kl, torch.distributions.kl_divergence(p, q).flatten(2).sum(2), rtol=1e-4, atol=1e-6)
    own.replay(rollout, reference).sum().backward()
    assert other.last.bias.grad is not None and own.model.net.last.bias.grad is None
    own.model.net.last.bias.data += 0.1  # trained: it counts from now on
    assert own.replay_means(rollout).equal(theirs)


def test_micro_batches_of_a_replay_and_the_callers_settings():
    own = sampler("flow-sde", schedule=fs.Flow())
    rollout = own.rollout(range(N), labels=labels())
    torch.testing.assert_close(own.replay(rollout, batch=N), own.replay(rollout), rtol=1e-5, atol=1e-5)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert own.replay(rollout).equal(rollout.replayed)
        assert own.rollout(range(N), labels=labels()).replayed.equal(rollout.replayed)
    with torch.inference_mode():
        assert own.replay(rollout).equal(rollout.replayed)
    assert len(own.rollout([], labels=0)) == 4 and own.replay(own.rollout([], labels=0)).shape == (4, 0)


def test_windows_of_one_sampler_and_a_network_in_bfloat16():
    own = sampler("flow-sde", schedule=fs.Flow(), net=Net(torch.bfloat16))
    kept = {window: own.rollout(range(N), labels=labels(), window=window) for window in ((1, 3), None, (2, 4))}
    assert {window: len(rollout) for window, rollout in kept.items()} == {(1, 3): 2, None: 4, (2, 4): 2}
    for rollout in kept.values():
        assert rollout.path.dtype == F32 and own.replay(rollout).equal(rollout.replayed)
    other = sampler("flow-sde", schedule=fs.Flow())
    rollout = other.rollout(range(N), labels=labels())
    other.model.net.bfloat16()  # cast since: the sampler keeps up with its network
    torch.testing.assert_close(other.replay(rollout), rollout.replayed, rtol=0.05, atol=0.5)


def test_units_of_the_network_and_start_from_data():
    affine = fs.data.affine.Affine((1.0, -2.0, 0.5), (0.5, 2.0, 1.0))
    model = replace(sampler().model, transform=affine)
    own = fs.Sampler(model, solver="ddpm", steps=4, batch=BATCH)
    rollout = own.rollout(range(N), labels=0)
    assert rollout.x.equal(own.run(range(N), labels=0)) and own.replay(rollout).equal(rollout.replayed)
    data = fs.Sampler(sampler().model, solver="ddpm", steps=4, batch=BATCH, start="data")
    rollout = data.rollout(range(N), labels=0, init=torch.ones(2, 3))
    assert rollout.x.equal(data.run(range(N), labels=0, init=torch.ones(2, 3)))
    assert data.replay(rollout).equal(rollout.replayed)


def test_memory_is_that_of_the_window():
    """What a rollout leaves alive does not grow with the steps outside its window."""

    def alive(steps):
        own = sampler("flow-sde", schedule=fs.Flow(), steps=steps)
        rollout = own.rollout(range(64), labels=0, window=(2, 4))
        gc.collect()
        held = {
            rollout.x,
            rollout.path,
            rollout.means,
            rollout.log_probs,
            *(v for h in rollout.history for v in h.values()),
        }
        assert rollout.path.shape[0] == 3
        total = sum(t.numel() for t in gc.get_objects() if isinstance(t, Tensor) and t.shape[1:2] == (64,))
        return sum(v.numel() for v in held), total

    assert alive(6) == alive(24)


def test_random_windows():
    """A function of seed and id: alone, packed, anywhere; every start is as likely."""
    found = [fs.random_window(2, (1, 6), seed=3, id=k) for k in range(200)]
    assert found[7] == fs.random_window(2, (1, 6), 3, 7) != fs.random_window(2, (1, 6), 4, 7)
    starts = torch.tensor([start for start, _ in found]).bincount(minlength=5)
    assert starts[0] == 0 and len(starts) == 5 and {stop - start for start, stop in found} == {2}
    assert float((starts[1:] - 50.0).abs().max()) < 3.0 * math.sqrt(200 * 0.25 * 0.75)
    assert fs.random_window(5, (1, 6), 0) == (1, 6)
    with pytest.raises(ValueError, match=r"size = 6 must lie in 1 \.\. 5"):
        fs.random_window(6, (1, 6), 0)


def test_progress_and_release():
    own, told = sampler(), []
    own.rollout(range(N), labels=0, progress=told.append)
    assert told[-1] == N and told == sorted(told)
    assert "actor" in vars(own)
    own.release()
    assert "actor" not in vars(own)


@pytest.mark.thirds
@pytest.mark.parametrize(
    ("make", "run", "message"),
    [
        ({"solver": "heun"}, {}, "no step of this plan adds noise"),
        ({"solver": fs.FlowSDE(0.0), "schedule": fs.Flow()}, {}, "no step of this plan adds noise"),
        ({"solver": "cps", "schedule": fs.Flow()}, {"window": {4}}, "no step of this plan adds noise"),
        ({"solver": fs.CPS(1e-40), "schedule": fs.Flow()}, {}, "in row 1 is lost in the state"),
        ({"solver": "ddpm"}, {"window": (0, 9)}, "has step 8"),
        ({"solver": "ddpm"}, {"window": "all"}, "must be .start, stop."),
        ({"solver": "heun"}, {"window": (0, 2)}, "no noise level that could be 0"),
        ({"solver": fs.PredictorCorrector(fs.DDPM(), fs.Langevin(norm="expected"))}, {}, "no Gaussian density"),
        ({"solver": "ddpm", "parallel": fs.Picard(2)}, {}, "sweeps over many steps"),
        ({"solver": "ddpm", "guide": fs.StaticThreshold(1.0)}, {}, "passes no gradient"),
        ({"solver": "ddpm", "network": "fp32"}, {}, "has no gradient; use network='own'"),
        ({"solver": "ddpm"}, {"reduction": "max"}, "reduction = 'max' .*must be one of sum, mean"),
        ({"solver": "ddpm"}, {"form": "no_const"}, "form = 'no_const' must be one of gaussian"),
        ({"solver": "ddpm"}, {"known": fs.Known(torch.zeros(2, 3), torch.ones(2, 3) > 0)}, "known data replace"),
        ({"solver": "ddpm"}, {"prior_ids": [1]}, "prior_ids: 1 for 10 ids"),
    ],
)
def test_what_has_no_density_is_refused(make, run, message):
    with pytest.raises(ValueError, match=message):
        sampler(**make).rollout(range(N), labels=0, **run)


def test_other_refusals():
    own = sampler("ddpm")
    rollout = own.rollout(range(N), labels=0)
    for call, message in (
        (lambda: sampler("ddpm", steps=6).replay(rollout), "the rollout is of another plan"),
        (lambda: sampler("ddpm", F64).replay(rollout), "another plan|is torch.float32 on cpu"),
        (lambda: own.replay(rollout, steps=[4]), "steps = .4. must be whole numbers in 0 .. 3"),
        (lambda: own.replay(rollout, steps=[1, 0]), "rising"),
        (lambda: own.replay(rollout, steps="x"), "must be whole numbers"),
        (lambda: rollout.at([10]), "positions = .10. must be whole numbers in 0 .. 9"),
        (lambda: own.replay(rollout, batch=0), "batch = 0 must be at least 1"),
        (lambda: own.replay(3), "replay: rollout = 3 must be a Rollout"),
        (lambda: own.replay(rollout, own.model.net), "must be a ScoreModel or None"),
        (lambda: fs.Sampler(own.model, solver=fs.Dopri5()).rollout([0], labels=0), "chooses its steps"),
    ):
        with pytest.raises(ValueError, match=message):
            call()
    centred = fs.Sampler(fs.ScoreModel(lambda u, t: u, (2, 3), fs.VP(), projection=Centred()), solver="ddpm", steps=3)
    with pytest.raises(ValueError, match="densities on a subspace"):
        centred.rollout([0])
    with pytest.raises(NonFiniteError, match="at row 1"):
        fs.Sampler(fs.ScoreModel(lambda u, t: u * math.nan, (2, 3), fs.VP()), solver="ddpm", steps=3).rollout([0])
