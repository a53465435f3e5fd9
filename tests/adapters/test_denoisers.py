"""Denoisers and velocities of other libraries: recorded runs of theirs, ranges, ends, and what is refused."""

from __future__ import annotations

import copy
import pickle

import denoised
import numpy as np
import others
import pytest
import torch

import fastscore as fs
from fastscore.adapters import from_denoiser, from_velocity
from fastscore.adapters.curves import BEYOND, Curves

RECORDED = denoised.data()


@pytest.mark.parametrize("name", denoised.RUNS)
def test_samples_are_those_of_the_library(name):
    run = denoised.RUNS[name]
    assert denoised.error(run.ours(), RECORDED[name]) < run.tolerance


@pytest.mark.slow
@pytest.mark.nightly
@pytest.mark.parametrize("name", denoised.RUNS)
def test_the_library_still_gives_what_was_recorded(name):
    run = denoised.RUNS[name]
    assert denoised.error(run.theirs(), RECORDED[name]) < run.tolerance


def test_float32_agrees_with_the_library_to_its_rounding():
    model = from_denoiser(denoised.KDenoiser(), denoised.SHAPE)
    x = (denoised.SIGMAS[0] * denoised.X).float()
    for name, solver in (("euler", fs.Euler()), ("heun", fs.Heun()), ("dpmpp_2m", fs.DPMpp2M())):
        sampler = fs.Sampler(model, solver=solver, grid=fs.Times(tuple(denoised.SIGMAS)), start="state", batch=4)
        assert denoised.error(sampler.run(range(4), init=x).double(), RECORDED[f"k-diffusion {name}"]) < 1e-6


@pytest.mark.parametrize("model", [
    from_denoiser(denoised.KDenoiser(), denoised.SHAPE),
    from_denoiser(denoised.ImageDenoiser(), denoised.SHAPE, kind="deepinv", sigma_min=1e-3, sigma_max=80.0),
    from_denoiser(denoised.AzulaDenoiser(denoised.azula_vp), denoised.SHAPE, kind="azula"),
    from_velocity(denoised.Velocity(denoised.cosine), denoised.SHAPE, noise_at=0, path=denoised.cosine_pair),
    from_velocity(denoised.Velocity(denoised.rectified), denoised.SHAPE, noise_at=1),
], ids=["k-diffusion", "deepinv", "azula", "flow_matching", "rectified"])  # fmt: skip
@pytest.mark.slow
def test_default_grids_suit_and_all_of_it_is_copied_and_pickled(model):
    results = [fs.Sampler(model, solver=solver, batch=16).run(range(16)) for solver in ("dpmpp-2m", "heun", "dopri5")]
    for x in results[:-1]:
        assert denoised.error(x, results[-1]) < 0.1
    for copied in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert fs.Sampler(copied, solver="heun", batch=16).run(range(16)).equal(results[1])
    on_another = fs.Sampler(model, schedule=fs.VP(), solver="dopri5", batch=16).run(range(16))
    assert abs(float(on_another.std() / results[-1].std()) - 1.0) < 0.1


class Discrete(denoised.KDenoiser):
    """As k-diffusion's wrappers of networks with a table: levels are tensors."""

    sigma_min, sigma_max = torch.tensor(0.03), torch.tensor(15.0)


def test_noise_levels_are_the_denoisers_own_or_those_that_are_given():
    assert from_denoiser(Discrete(), (2,)).schedule == fs.EDM(float(torch.tensor(0.03)), 15.0)
    assert from_denoiser(Discrete(), (2,), sigma_min=0.1, sigma_max=5.0).schedule == fs.EDM(0.1, 5.0)
    with pytest.raises(ValueError, match="sigma_min: this denoiser does not say what noise it was trained on"):
        from_denoiser(lambda x, sigma: x, (2,))


def test_the_kind_is_that_of_the_library_of_the_class():
    def of(module: str, **members: object) -> object:
        return type("D", (denoised.KDenoiser,), {"__module__": module, **members})()

    azula = of("azula.denoise", schedule=staticmethod(denoised.azula_rectified))
    assert isinstance(from_denoiser(azula, (2,)).schedule, Curves)
    assert type(from_denoiser(of("deepinv.models.drunet"), (2,)).net).__name__ == "Signed"
    edm = of("training.networks", label_dim=10, sigma_data=0.5)
    assert from_denoiser(edm, (2,)).classes == 10
    with pytest.raises(ValueError, match=r"kind = 'diffusers' .*must be one of k-diffusion, edm, azula, deepinv"):
        from_denoiser(azula, (2,), kind="diffusers")
    with pytest.raises(ValueError, match="azula's denoisers have a schedule"):
        from_denoiser(azula, (2,), sigma_min=0.1)
    with pytest.raises(ValueError, match=r'say how the denoiser takes its condition: call="x, sigma, y=labels"'):
        from_denoiser(Discrete(), (2,), classes=3)


def test_curves_have_the_derivatives_and_the_ends_of_their_functions():
    t = np.linspace(0.01, 1.0, 7)
    own = Curves(denoised.cosine_pair, noise_at=0)
    quarter = 0.5 * np.pi
    assert np.allclose(own.dsigma(t), quarter * np.cos(quarter * t), rtol=1e-12, atol=1e-12)
    assert np.allclose(own.dalpha(t), -quarter * np.sin(quarter * t), rtol=1e-12, atol=1e-12)
    assert (own.t_clean, own.t_end, float(own.sigma(0.0)), float(own.alpha(1.0))) == (0.0, 1e-3, 0.0, 0.0)
    azula = Curves(denoised.azula_rectified)  # ends with noise left
    assert (azula.t_clean, azula.t_end) == (-BEYOND, 0.0)
    assert float(azula.sigma(-BEYOND)) == 0.0 and float(azula.alpha(-BEYOND)) == 1.0
    assert np.isclose(float(azula.sigma(-0.25 * BEYOND)), 0.75e-3)
    assert np.isclose(float(azula.dsigma(-0.5 * BEYOND)), 1e-3 / BEYOND)
    assert azula.prior_std == np.hypot(1e-3, 1.0)


def test_curves_are_equal_by_their_values():
    def again(t):
        return denoised.azula_vp(t)

    one, same, other = (Curves(f) for f in (denoised.azula_vp, again, denoised.azula_rectified))
    assert one == same == pickle.loads(pickle.dumps(one)) and hash(one) == hash(same) and repr(one) == repr(same)
    assert one != other and repr(one) != repr(other) and "0x" not in repr(one)


@pytest.mark.parametrize(("pair", "said"), [
    (lambda t: 1.0 / 0, "cannot be evaluated on a tensor of times: ZeroDivisionError"), (lambda t: t, "no attribute"),
    (lambda t: (torch.log(t), t), "must give finite alpha and sigma"), (lambda t: (1.0, 1.0), "must grow from the"),
    (lambda t: (1.0, (t - 0.5).abs()), "must grow from the data to the noise at t = 1$"),
])  # fmt: skip
def test_schedules_that_are_none_are_refused(pair, said):
    with pytest.raises(ValueError, match=said):
        Curves(pair)
    assert Curves(lambda t: (1.0, t)).t_clean == 0.0  # numbers will do


def test_a_time_that_runs_the_other_way_is_refused():
    with pytest.raises(ValueError, match=r"noise at t = 1|t = 1, as it does from 1 to 0: noise_at is the other one"):
        from_velocity(denoised.Velocity(denoised.cosine), (2,), noise_at=1, path=denoised.cosine_pair)
    with pytest.raises(ValueError, match="noise_at = 2 must be 1 or 0"):
        from_velocity(denoised.Velocity(denoised.cosine), (2,), noise_at=2)
    with pytest.raises(ValueError, match=r"sigma_min = 0.1 must lie in 0 .. 1, and belongs to the straight path"):
        from_velocity(denoised.Velocity(denoised.cosine), (2,), noise_at=0, path=denoised.cosine_pair, sigma_min=0.1)


@pytest.mark.parametrize("noise_at", [0, 1])
def test_noise_left_by_a_straight_path_is_in_its_schedule(noise_at):
    model = from_velocity(denoised.Velocity(denoised.straight), (2,), noise_at=noise_at, sigma_min=0.1)
    t = np.array([0.0, 0.3, 1.0])
    assert np.allclose(model.schedule.sigma(t), t + (1.0 - t) * 0.1) and np.allclose(model.schedule.alpha(t), 1.0 - t)


@pytest.mark.slow
@pytest.mark.nightly
def test_paths_are_those_that_torchcfm_trains_on():
    """x_t and the velocity of one pair of noise and data: what the schedule and the turned sign make of them."""
    cfm = others.library("torchcfm.conditional_flow_matching")
    noise, data, t = denoised.X, denoised.Z[0], torch.tensor([0.1, 0.4, 0.7, 0.95], dtype=torch.float64)
    for matcher, fields in (
        (cfm.ConditionalFlowMatcher(0.0), {}),
        (cfm.TargetConditionalFlowMatcher(0.1), {"sigma_min": 0.1}),
        (cfm.VariancePreservingConditionalFlowMatcher(0.0), {"path": denoised.cosine_pair}),
    ):
        target = isinstance(matcher, cfm.TargetConditionalFlowMatcher)
        eps = noise if target else torch.zeros_like(noise)
        x_t = matcher.sample_xt(noise, data, t, eps)
        model = from_velocity(lambda x, t: x, denoised.SHAPE, noise_at=0, **fields)
        rates = matcher.compute_conditional_flow(noise, data, t, x_t)
        own = (1.0 - t).numpy()
        a, b = (denoised.wide(torch.tensor(v), x_t) for v in model.parametrization.components(model.schedule, own))
        alpha, sigma = (denoised.wide(torch.tensor(f(own)), x_t) for f in (model.schedule.alpha, model.schedule.sigma))
        assert torch.allclose(alpha * data + sigma * noise, x_t, rtol=1e-12, atol=1e-12)
        assert torch.allclose(-(a * data + b * noise), rates, rtol=1e-9, atol=1e-12)


@pytest.mark.slow
@pytest.mark.nightly
def test_wrappers_of_k_diffusion_say_their_noise_levels():
    others.k_diffusion()
    external = others.library("k_diffusion.external")
    table = torch.cumprod(1.0 - torch.linspace(1e-4, 0.02, 1000), 0)
    D = external.DiscreteEpsDDPMDenoiser(lambda x, t: 0.1 * x * t[:, None] / 1000.0, table, quantize=False)
    model = from_denoiser(D, (3,))
    assert model.schedule == fs.EDM(float(D.sigma_min), float(D.sigma_max))
    sampling, levels = others.k_diffusion(), D.get_sigmas(8)
    x = levels[0] * denoised.X.float().reshape(4, -1)[:, :3]
    for name, solver in (("euler", fs.Euler()), ("heun", fs.Heun()), ("dpmpp_2m", fs.DPMpp2M())):
        theirs = getattr(sampling, f"sample_{name}")(D, x, levels, disable=True)
        sampler = fs.Sampler(model, solver=solver, grid=fs.Times(tuple(levels.tolist())), start="state", batch=4)
        assert denoised.error(sampler.run(range(4), init=x), theirs) < 1e-5
