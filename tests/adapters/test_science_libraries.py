"""The adapters around sbi and PhysicsNeMo themselves: their samplers are repeated, ours run in theirs."""

from __future__ import annotations

import math
from statistics import fmean
from typing import Any

import foreign
import others
import pytest
import science
import torch
from torch import Tensor

from bench.studies import sbi as study
from fastscore import EDM, Churn, Dopri5, Euler, EulerMaruyama, Heun, Sampler, Span, uniform
from fastscore.adapters import from_physicsnemo, from_sbi
from fastscore.adapters.physicsnemo import LastEuler, Solver, times
from fastscore.adapters.sbi import predictor, sample

pytestmark = [pytest.mark.slow, pytest.mark.nightly]


@pytest.fixture(scope="module")
def needs_sbi() -> None:
    others.library("sbi")


@pytest.fixture(scope="module")
def needs_physicsnemo() -> None:
    foreign.physicsnemo("samplers")


@pytest.mark.usefixtures("needs_sbi")
@pytest.mark.parametrize("kind", science.LEVELS)
@pytest.mark.parametrize("eta", [1.0, 0.5])
def test_euler_maruyama_is_sbis_in_499_steps(kind: str, eta: float) -> None:
    post, noise = foreign.sbi_posterior(kind), science.normals(500, 32, 1, 2).float()
    with foreign.recorded_normals(noise):
        theirs = post.sample(
            (32,), x=science.X, predictor_params={"eta": eta}, reject_outside_prior=False, show_progress_bars=False
        )
    grid = uniform(499, end=post.vector_field_estimator.t_min)
    ours = Sampler(from_sbi(post), solver=EulerMaruyama(eta), grid=grid, batch=32)
    x = ours.run(range(32), cond=science.X, noise=noise[:, :, 0])
    assert float((x - theirs).abs().max()) <= 1e-5 * float(theirs.abs().max())


@pytest.mark.usefixtures("needs_sbi")
@pytest.mark.parametrize("kind", [*science.LEVELS, "flow"])
def test_the_ode_is_sbis(kind: str) -> None:
    post, z = foreign.sbi_posterior(kind), science.normals(32, 2).float()
    estimator = post.vector_field_estimator
    post.potential_fn.set_x(science.X[None])
    start = (estimator.mean_base + estimator.std_base * z).detach()
    theirs = post.potential_fn.neural_ode(science.X[None]).transform.inv(start).detach()
    span = Span(end=estimator.t_min, clean=False)
    sampler = Sampler(from_sbi(post, science.X), solver=Dopri5(rtol=1e-6, atol=1e-6), grid=span, batch=32)
    assert float((sampler.run(range(32), noise=z[None]) - theirs).abs().max()) < 1e-3


@pytest.mark.usefixtures("needs_sbi")
@pytest.mark.parametrize("kind", [*science.LEVELS, "flow"])
@pytest.mark.parametrize("solver", ["sa", "dpmpp-2m", "heun", "ddim", "dpmpp-2m-sde", "edm-churn"])
def test_sbis_loop_with_our_solver_is_our_loop(kind: str, solver: str) -> None:
    post = foreign.sbi_posterior(kind, sample_with="sde")
    estimator, z = post.vector_field_estimator, science.normals(2, 16, 1, 2).float()
    arguments = predictor(post, solver=solver, steps=9, seed=4)
    ours = Sampler(from_sbi(post, science.X), solver=solver, steps=9, batch=16, start="state")
    for run in range(2):  # ids go on, so that no draw of a second batch repeats one of the first
        with foreign.recorded_normals(z[run : run + 1]):
            theirs = post.sample((16,), x=science.X, reject_outside_prior=False, show_progress_bars=False, **arguments)
        start = (estimator.mean_base + estimator.std_base * z[run])[:, 0].detach()
        assert torch.equal(theirs, ours.run(range(16 * run, 16 * run + 16), seed=4, init=start))
    with pytest.raises(ValueError, match="give the host these times"):
        post.sample((4,), x=science.X, predictor=arguments["predictor"], steps=5, show_progress_bars=False)


@pytest.mark.usefixtures("needs_sbi")
def test_many_observations_and_iid_in_sbis_loop() -> None:
    post, x = foreign.sbi_posterior("vp"), torch.stack([science.X, -science.X])
    z, one = science.normals(1, 8, 2, 2).float(), predictor(post, solver="ddim", steps=9)
    with foreign.recorded_normals(z):
        theirs = post.sample_batched((8,), x=x, reject_outside_prior=False, show_progress_bars=False, **one)
    ours = Sampler(from_sbi(post), solver="ddim", steps=9, batch=16).run(
        range(16), noise=z.reshape(1, 16, 2), cond=x.repeat(8, 1)
    )
    assert torch.allclose(theirs.reshape(16, 2), ours, atol=1e-5)
    with foreign.recorded_normals(z[:, :, :1]):
        composed = post.sample(
            (8,), x=x, iid_method="gauss", reject_outside_prior=False, show_progress_bars=False,
            **predictor(post, solver="ddim", steps=9),
        )  # fmt: skip
    ours = Sampler(from_sbi(post, x, iid="gauss"), solver="ddim", steps=9, batch=8).run(range(8), noise=z[:, :, 0])
    assert torch.allclose(composed, ours, atol=1e-5)
    guided = from_sbi(post, science.X, guidance="affine_classifier_free", guidance_params={"likelihood_scale": 2.0})
    assert not torch.allclose(Sampler(guided, steps=5, batch=8).run(range(8)), ours)


@pytest.mark.usefixtures("needs_sbi")
@pytest.mark.parametrize("method", ["gauss", "jac_gauss"])
def test_iid_posteriors_are_exact(method: str) -> None:
    mean, std = study.composed(method)
    assert mean < 3.0 and std < 3.0


@pytest.mark.usefixtures("needs_sbi")
def test_auto_gauss_is_a_function_of_the_network_and_the_data() -> None:
    post, x = study.exact_posterior(study.TASKS["linear Gaussian"]), torch.tensor([[6.0, -0.7], [5.0, -1.0]])
    runs = []
    for seed in (0, 1):
        torch.manual_seed(seed)
        runs.append(Sampler(from_sbi(post, x, iid="auto_gauss"), solver="sa", steps=5, batch=4).run(range(4)))
    assert torch.equal(*runs)


@pytest.mark.usefixtures("needs_sbi")
@pytest.mark.parametrize("kind", study.KINDS)
@pytest.mark.parametrize("task", list(study.TASKS))
def test_25_evaluations_are_as_good_as_500(task: str, kind: str) -> None:
    posterior = study.trained(study.TASKS[task], kind)
    result = study.compared(study.TASKS[task], posterior)
    assert result.worse <= 0.01, result
    assert fmean(result.each_other) < 0.6


@pytest.mark.usefixtures("needs_sbi")
def test_a_hundred_thousand_draws() -> None:
    task = study.TASKS["two moons"]
    posterior = study.trained(task, "ve", 500, 2)
    theta = sample(posterior, (100_000,), task.x, steps=4)
    assert theta.shape == (100_000, 2) and bool((theta.abs() <= 1.0).all())


class Unit(torch.nn.Module):
    """The network inside a preconditioner: of each element alone."""

    def forward(self, x: Tensor, t: Tensor, condition: Any = None, class_labels: Any = None, **k: Any) -> Tensor:
        added = 0.0 if condition is None else condition if isinstance(condition, Tensor) else condition["a"]
        return torch.tanh(x[:, :2] + 0.1 * t.reshape(-1, 1, 1, 1) + added)


@pytest.mark.usefixtures("needs_physicsnemo")
@pytest.mark.parametrize("name", ["EDM", "EDMLogUniform", "IDDPM", "VP", "VE"])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_their_loop_is_our_loop(name: str, dtype: torch.dtype) -> None:
    samplers, schedulers = foreign.physicsnemo("samplers"), foreign.physicsnemo("noise_schedulers")
    scheduler = getattr(schedulers, f"{name}NoiseScheduler")()
    z = science.normals(1, 3, *science.SHAPE).to(dtype)
    exact, grid = science.Exact(scheduler), times(scheduler, 12)
    model = from_physicsnemo(exact, scheduler, science.SHAPE)
    rhs = scheduler.get_denoiser(x0_predictor=exact)
    for solver, ours in (("euler", Euler()), ("heun", Heun())):
        theirs = samplers.sample(rhs, model.schedule.prior_std * z[0], scheduler, 12, solver=solver)
        x = Sampler(model, solver=LastEuler(ours), grid=grid, batch=3, dtype=dtype).run(range(3), noise=z)
        bound = 1e-9 if dtype == torch.float64 else 1e-5
        assert float((x - theirs).abs().max()) <= bound * float(theirs.abs().max())
    if isinstance(model.schedule, EDM):
        noise = science.normals(13, 3, *science.SHAPE).to(dtype)
        options = {"S_churn": 3.0, "S_noise": 1.003, "num_steps": 12}
        for solver, inner in (("edm_stochastic_euler", Euler()), ("edm_stochastic_heun", Heun())):
            with foreign.recorded_normals(noise[1:]):
                theirs = samplers.sample(rhs, 80.0 * noise[0], scheduler, 12, solver=solver, solver_options=options)
            churn = Churn(inner, churn=3.0, low=0.0, high=math.inf, noise=1.003, beyond=True)
            x = Sampler(model, solver=churn, grid=grid, batch=3, dtype=dtype).run(range(3), noise=noise)
            assert torch.allclose(x, theirs, rtol=1e-6, atol=1e-6 if dtype == torch.float64 else 1e-5)


@pytest.mark.usefixtures("needs_physicsnemo")
@pytest.mark.parametrize("solver", ["sa", "dpmpp-2m", "heun", "dpmpp-2m-sde", "edm-churn", "unipc"])
def test_our_solver_in_their_sample(solver: str) -> None:
    samplers, schedulers = foreign.physicsnemo("samplers"), foreign.physicsnemo("noise_schedulers")
    scheduler, ids = schedulers.EDMNoiseScheduler(), [3, 1, 2]
    one = Solver(science.Exact(scheduler), scheduler, solver=solver, grid=times(scheduler, 10), seed=2)
    assert isinstance(one, samplers.Solver)
    model = from_physicsnemo(science.Exact(scheduler), scheduler, science.SHAPE)
    ours = Sampler(model, solver=solver, grid=times(scheduler, 10), batch=3).run(ids, seed=2)
    for steps, given in ((10, None), (0, one.time_steps)):
        start = one.init_latents(science.SHAPE, ids)
        x = samplers.sample(None, start, scheduler, steps, solver=one, time_steps=given)
        assert torch.equal(x, ours)


@pytest.mark.usefixtures("needs_physicsnemo")
def test_networks_old_and_new() -> None:
    preconditioners = foreign.physicsnemo("preconditioners")
    samplers, schedulers = foreign.physicsnemo("samplers"), foreign.physicsnemo("noise_schedulers")
    scheduler, image = schedulers.EDMNoiseScheduler(), science.normals(1, 2, 2, 2).float()
    z, grid = science.normals(1, 3, *science.SHAPE).float(), times(scheduler, 6)
    new = preconditioners.EDMPreconditioner(Unit())
    tensor_dict = others.library("tensordict").TensorDict
    for shape, cond, given in (
        ((2, 2, 2), image[0], image.expand(3, 2, 2, 2)),
        ({"a": (2, 2, 2)}, {"a": image[0]}, tensor_dict({"a": image.expand(3, 2, 2, 2)}, batch_size=[3])),
    ):
        rhs = scheduler.get_denoiser(x0_predictor=lambda x, t, c=given: new(x, t, condition=c))
        theirs = samplers.sample(rhs, 80.0 * z[0], scheduler, 6, solver="heun").detach()
        model = from_physicsnemo(new, scheduler, science.SHAPE, cond_shape=shape)
        ours = Sampler(model, solver="heun", grid=grid, batch=3).run(range(3), cond=cond, noise=z)
        assert torch.allclose(ours, theirs, rtol=1e-4, atol=1e-5)
    old = preconditioners.EDMPrecondSuperResolution(
        img_resolution=8, img_in_channels=1, img_out_channels=2, model_type="SongUNet", model_channels=8,
        channel_mult=[1], num_blocks=1, attn_resolutions=[],
    ).eval()  # fmt: skip
    low = science.normals(1, 1, 8, 8).float()
    z = science.normals(1, 2, 2, 8, 8).float()
    rhs = scheduler.get_denoiser(x0_predictor=lambda x, t: old(x, low.expand(2, 1, 8, 8), t))
    with torch.no_grad():
        theirs = samplers.sample(rhs, 80.0 * z[0], scheduler, 6, solver="heun")
    model = from_physicsnemo(old, scheduler, (2, 8, 8), cond_shape=(1, 8, 8))
    ours = Sampler(model, solver="heun", grid=grid, batch=2).run(range(2), cond=low[0], noise=z)
    assert torch.allclose(ours, theirs, rtol=1e-4, atol=1e-4)
