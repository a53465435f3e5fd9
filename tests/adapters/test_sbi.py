"""Posteriors with sbi's interface: its own runs are repeated, its base is started from, its support is kept to."""

from __future__ import annotations

import itertools
import sys
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import science
import torch
from torch import Tensor

from fastscore import Dopri5, EulerMaruyama, Guidance, Sampler, Span, uniform
from fastscore.adapters import from_sbi
from fastscore.adapters.sbi import NoisyFlow, predictor, sample
from fastscore.adapters.sbi.predictor import _class

RECORDED = np.load(science.FILE)
KEEP: dict[str, Any] = {"reject_outside_prior": False}


def box(low: float, high: float) -> torch.distributions.Distribution:
    """The uniform law of a first parameter in low .. high, and of any second."""
    uniform = torch.distributions.Uniform(torch.tensor([low, -99.0]), torch.tensor([high, 99.0]))
    return torch.distributions.Independent(uniform, 1)


def posterior(kind: str, **fields: Any) -> Any:
    return science.posterior(science.ESTIMATORS[kind](), **fields)


@pytest.mark.parametrize("kind", science.LEVELS)
@pytest.mark.parametrize("eta", [1.0, 0.5])
def test_euler_maruyama_repeats_sbi(kind: str, eta: float) -> None:
    post, noise = posterior(kind), science.normals(science.KNOTS, science.DRAWS, 2).float()
    theirs = torch.tensor(RECORDED[f"sbi/{kind}/{eta}"])
    grid = uniform(science.KNOTS - 1, end=post.vector_field_estimator.t_min)
    for model, given in ((from_sbi(post), {"cond": science.X}), (from_sbi(post, science.X), {})):
        ours = Sampler(model, solver=EulerMaruyama(eta), grid=grid, batch=5).run(range(8), noise=noise, **given)
        assert torch.allclose(ours, theirs, rtol=1e-5, atol=1e-5 * float(theirs.abs().max()))


def test_flow_repeats_sbis_ode() -> None:
    model, z = from_sbi(posterior("flow"), science.X), science.normals(science.DRAWS, 2).float()
    solver = Dopri5(rtol=1e-6, atol=1e-6)
    ours = Sampler(model, solver=solver, grid=Span(end=0.0, clean=False), batch=8).run(range(8), noise=z[None])
    assert torch.allclose(ours, torch.tensor(RECORDED["sbi/flow/ode"]), atol=2e-4)
    assert model.base is None and model.schedule.prior_std == 1.0


def test_noisy_flow_is_its_networks_interpolation() -> None:
    schedule, t = NoisyFlow(0.01), np.linspace(0.0, 1.0, 5)
    assert np.allclose(schedule.alpha(t), 1.0 - t) and np.allclose(schedule.sigma(t), t + 0.01)
    assert schedule.alpha(schedule.t_clean) == 1.0 and schedule.sigma(schedule.t_clean) == 0.0
    with pytest.raises(ValueError, match=r"noise = 0\.0 must be positive"):
        NoisyFlow(0.0)
    model = from_sbi(posterior("flow"))
    seen: list[Tensor] = []
    Sampler(model, steps=4, batch=2).run(range(2), cond=science.X, callback=lambda s: seen.append(torch.tensor(s.t)))
    assert float(torch.stack(seen).min()) >= 0.0  # never a time that the network was not trained on


@pytest.mark.parametrize("kind", ["vp", "flow"])
def test_conditions_draws_and_samples_do_not_depend_on_others(kind: str) -> None:
    post, x = posterior(kind), torch.tensor([[0.3, -0.7], [2.0, 1.0], [-1.0, 0.0]])
    sampler = Sampler(from_sbi(post), steps=6, batch=4)
    every = sampler.run(range(3), cond=x)
    assert sampler.run([1], cond=x[1]).equal(every[1:2])
    one = sample(post, (5,), x[1], steps=6, batch=4, reject_outside_prior=False)
    assert torch.allclose(one[1], Sampler(from_sbi(post, x[1]), solver="sa", steps=6, batch=4).run([1])[0])
    many = sample(post, (2, 3), x, steps=6, batch=4, reject_outside_prior=False)
    assert many.shape == (2, 3, 3, 2)
    assert torch.allclose(many[:, :, 0].reshape(-1, 2), sample(post, (6,), x[0], steps=6, batch=4, **KEEP), atol=1e-5)
    Sampler(from_sbi(post), steps=3, guidance=Guidance(1.5, null=torch.zeros(2))).run(range(2), cond=x[0])


KEEP: dict[str, Any] = {"reject_outside_prior": False}


def test_samples_are_inside_the_priors_support() -> None:
    post = posterior("vp", prior=box(2.0, 99.0), x=science.X)
    every = sample(post, (200,), steps=8, batch=50, reject_outside_prior=False)
    inside = every[:, 0] >= 2.0
    assert 0.1 < float(inside.double().mean()) < 0.9
    kept = sample(post, (100,), steps=8, batch=50)
    n = int(inside.sum())
    assert kept[: min(n, 100)].equal(every[inside][:100])  # the first that are inside, in their order
    assert sample(post, (30,), steps=8, batch=50).equal(kept[:30])
    post.prior = box(98.0, 99.0)
    with pytest.raises(ValueError, match=r"0 of [\d,]+ draws lie inside the prior's support"):
        sample(post, (3,), steps=1, batch=5000)


def test_support_by_density_where_the_prior_has_none() -> None:
    class Prior:
        def log_prob(self, theta: Tensor) -> Tensor:
            return torch.where(theta[:, 0] > -5.0, 0.0, -torch.inf)

    kept = sample(posterior("ve", prior=Prior()), (40,), science.X, steps=8, batch=50)
    assert kept.shape == (40, 2) and bool((kept[:, 0] > -5.0).all())


def test_several_observations_go_to_sbis_own_composition() -> None:
    post, x = posterior("vp"), torch.tensor([[0.3, -0.7], [2.0, 1.0]])
    model = from_sbi(post, x, iid="gauss", iid_params={"scale_from_prior_precision": 3.0})
    assert post.potential_fn.x_o is None  # the caller's is left alone
    inner: Any = model.net
    assert inner.potential.settings["iid_method"] == "gauss"
    assert inner.potential.settings["iid_params"] == {"scale_from_prior_precision": 3.0}
    before = torch.random.get_rng_state()
    u, t = science.normals(3, 2).float(), torch.full((3,), 0.4)
    estimator = post.vector_field_estimator
    assert torch.allclose(inner(u, t), estimator.score(u, x[0], t) + estimator.score(u, x[1], t))
    assert torch.random.get_rng_state().equal(before)
    with pytest.raises(ValueError, match="one time for all samples, and an adaptive solver"):
        inner(u, torch.tensor([0.4, 0.4, 0.5]))
    narrower = from_sbi(post, x, iid="fnpe").base
    wide = from_sbi(post, x, iid="gauss").base
    assert narrower is not None and wide is not None and wide == from_sbi(post).base
    assert np.allclose(np.array(narrower.scale) * 2**0.5, wide.scale)
    guided: Any = from_sbi(post, x[0], guidance="interval", guidance_params={"a": 1}).net
    assert guided.potential.settings["guidance_params"] == {"a": 1}


def test_parameters_standardised_at_the_boundary() -> None:
    estimator = science.VPScoreEstimator(torch.zeros(2), torch.ones(2))
    estimator.compose_enabled = True
    estimator.register_buffer("_theta_shift", torch.tensor([[50.0, -3.0]]))
    estimator.register_buffer("_theta_scale", torch.tensor([[10.0, 0.1]]))
    model = from_sbi(science.posterior(estimator))
    assert model.transform is not None and model.transform.shift == (50.0, -3.0)
    bare = from_sbi(science.posterior(science.VPScoreEstimator(torch.zeros(2), torch.ones(2))))
    a, b = (Sampler(m, steps=5, batch=4).run(range(4), cond=science.X) for m in (model, bare))
    assert torch.allclose(a, model.transform(b), rtol=1e-5)
    with pytest.raises(ValueError, match="sbi has none with compose_standardization"):
        from_sbi(science.posterior(estimator), science.X, guidance="interval")


@pytest.mark.parametrize(
    ("change", "arguments", "match"),
    [
        ({}, {"iid": "auto_gauss"}, "belong to the posterior of given observations"),
        ({}, {"x": torch.zeros(3, 2)}, r"x holds 3 observations: of the same parameters\?"),
        ({}, {"x": torch.zeros(2, 2), "iid": "sum"}, "iid = 'sum' must be one of fnpe"),
        ({}, {"x": torch.zeros(2, 2), "iid": "gauss", "guidance": "interval"}, "composes scores without guidance"),
        ({}, {"x": torch.zeros(3)}, r"x is \(3,\); observations of this posterior are \(2,\)"),
        ({"beta_max": 9.0}, {}, None),
        ({"mean_t_fn": lambda t: t[..., None]}, {}, "noise levels of this VPScoreEstimator are not those"),
    ],
)
def test_what_is_refused(change: dict[str, Any], arguments: dict[str, Any], match: str | None) -> None:
    post = posterior("vp")
    for name, value in change.items():
        setattr(post.vector_field_estimator, name, value)
    if match is None:  # a rate of its own, which its marginals have, too
        assert from_sbi(post, **arguments).schedule.beta.beta_max == 9.0  # pyright: ignore
        return
    with pytest.raises(ValueError, match=match):
        from_sbi(post, **arguments)


class BasePredictor:
    """sbi's, as far as its subclasses see."""

    def __init__(self, potential_fn: Any) -> None:
        self.potential_fn, self.device = potential_fn, potential_fn.device


@pytest.fixture
def stand_in(monkeypatch: pytest.MonkeyPatch) -> Any:
    """The module that sbi has its predictors in."""
    module = ModuleType("sbi.samplers.score.predictors")
    module.Predictor = BasePredictor  # pyright: ignore[reportAttributeAccessIssue]
    for name in ("sbi", "sbi.samplers", "sbi.samplers.score"):
        monkeypatch.setitem(sys.modules, name, ModuleType(name))
    monkeypatch.setitem(sys.modules, module.__name__, module)
    _class.cache_clear()
    yield
    _class.cache_clear()


def run_by(predictor: Any, ts: Tensor, start: Tensor) -> Tensor:
    """The loop of sbi's Diffuser."""
    for t1, t0 in itertools.pairwise(ts):
        start = predictor.predict(start, t1, t0)
    return start


@pytest.mark.usefixtures("stand_in")
@pytest.mark.parametrize("kind", science.ESTIMATORS)
@pytest.mark.parametrize("solver", ["sa", "heun", "dpmpp-2m-sde"])
def test_their_loop_with_our_solver_is_our_loop(kind: str, solver: str) -> None:
    post, x = posterior(kind), torch.stack([science.X, -science.X])
    estimator, potential = post.vector_field_estimator, post.potential_fn
    start = estimator.mean_base + estimator.std_base * science.normals(2, 4, 2, 2).float()
    made = predictor(post, solver=solver, steps=6, seed=8)
    potential.set_x(x)
    potential.gradient = lambda theta, time: estimator.score(theta, potential.x_o, time)
    sampler = Sampler(from_sbi(post), solver=solver, steps=6, batch=8, start="state")
    for run in range(2):  # draw j of observation b has the id 2^32 b + j, and j goes on
        ids = [(b << 32) + 4 * run + j for j in range(4) for b in range(2)]
        ours = sampler.run(ids, seed=8, init=start[run].reshape(8, 2), cond=x.repeat(4, 1))
        theirs = run_by(made["predictor"], made["ts"], start[run])
        assert torch.allclose(theirs.reshape(8, 2), ours, rtol=1e-5, atol=1e-5)
    if kind == "flow":
        potential.guidance_method = "interval"
        with pytest.raises(ValueError, match="scores of a flow say nothing at pure noise"):
            run_by(made["predictor"], made["ts"], start[0])
    with pytest.raises(ValueError, match="is none of this solver's, whose times are"):
        made["predictor"].predict(start[0], torch.tensor(0.77), torch.tensor(0.5))


def test_predictor_names_the_library_it_needs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "sbi.samplers.score.predictors", None)
    monkeypatch.setitem(sys.modules, "sbi", ModuleType("sbi"))
    _class.cache_clear()
    with pytest.raises(ImportError, match="pip install sbi") as missing:
        predictor(posterior("vp"))
    assert missing.value.name == "sbi"


def test_other_posteriors_are_refused_by_name() -> None:
    with pytest.raises(ValueError, match="a DirectPosterior is no VectorFieldPosterior of sbi, made by NPSE or FMPE"):
        from_sbi(type("DirectPosterior", (), {})())
    with pytest.raises(ValueError, match=r"EnsemblePosterior is no .* give one of its posteriors"):
        from_sbi(type("EnsemblePosterior", (), {"posteriors": []})())
    with pytest.raises(ValueError, match="fnpe' of a flow starts at pure noise"):
        from_sbi(posterior("flow"), torch.zeros(2, 2), iid="fnpe")
    with pytest.raises(ValueError, match="x is missing"):
        sample(posterior("vp"), (3,))
