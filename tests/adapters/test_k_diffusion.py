"""``sample(model, x, sigmas)``: k-diffusion's samples and callbacks, seeds, dtypes, the caller's surroundings."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import denoised
import others
import pytest
import torch
from torch import Tensor

import fastscore as fs
from fastscore.adapters.k_diffusion import sample

RECORDED, D = denoised.data(), denoised.KDenoiser()
SIGMAS = torch.tensor(denoised.SIGMAS, dtype=torch.float64)
START = SIGMAS[0] * denoised.X
SOLVERS: dict[str, dict[str, Any]] = {
    "euler": {"solver": "euler"}, "heun": {"solver": "heun"}, "dpmpp_2m": {}, "dpm_2": {"solver": fs.DPMSolver(2)},
    "euler_ancestral": {"solver": "ddim", "eta": 1.0},
}  # fmt: skip


@pytest.mark.parametrize("name", SOLVERS)
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-9), (torch.float32, 1e-6)], ids=["64", "32"])
def test_samples_are_those_of_k_diffusion(name, dtype, tolerance):
    x = sample(D, START.to(dtype), SIGMAS.to(dtype), noise=denoised.Z.to(dtype), **SOLVERS[name])
    assert x.dtype == dtype
    assert denoised.error(x.double(), RECORDED[f"k-diffusion {name}"]) < tolerance


def guided(x: Tensor, sigma: Tensor, y: Tensor, w: float) -> Tensor:
    return torch.lerp(D(x, sigma), D(x, sigma, y), w)


def test_extra_arguments_reach_the_denoiser():
    arguments = {"y": denoised.LABELS, "w": denoised.WEIGHT}
    for name in ("heun", "dpmpp_2m"):
        x = sample(guided, START, SIGMAS, arguments, **SOLVERS[name])
        assert denoised.error(x, RECORDED[f"k-diffusion {name}, guided"]) < 1e-9


@pytest.mark.parametrize("name", SOLVERS)
def test_the_callback_comes_once_a_step_before_the_state_moves(name):
    told: list[dict[str, Any]] = []
    x = sample(D, START, SIGMAS, callback=told.append, noise=denoised.Z, **SOLVERS[name])
    assert [step["i"] for step in told] == list(range(len(SIGMAS) - 1))
    assert torch.stack([step["sigma"] for step in told]).equal(SIGMAS[:-1])
    assert told[0]["x"].equal(START) and denoised.error(told[-1]["denoised"], x) < 1e-9
    for step in told:
        assert step["sigma_hat"].equal(step["sigma"])
        expected = D(step["x"], step["sigma"].expand(len(x)))
        assert denoised.error(step["denoised"], expected) < 1e-9


def test_churn_shows_the_level_that_it_raised():
    told: list[dict[str, Any]] = []
    churn = fs.Churn(churn=2.0, low=0.0, high=1e9, noise=1.0)
    sample(D, START, SIGMAS, callback=told.append, solver=churn)
    assert len(told) == 7
    for step in told:
        assert float(step["sigma_hat"] / step["sigma"]) == pytest.approx(1.0 + 2.0 / 7.0)
        assert denoised.error(step["denoised"], D(step["x"], step["sigma_hat"].expand(4))) < 1e-9


def test_flow_models_have_another_state():
    """x = (1 - sigma) x_0 + sigma z, from pure noise at sigma = 1: Euler by hand."""
    sigmas = torch.tensor([1.0, 0.8, 0.55, 0.3, 0.1, 0.0], dtype=torch.float64)

    def model(x: Tensor, sigma: Tensor) -> Tensor:
        return denoised.estimate(x, 1.0 - sigma, sigma)

    x = denoised.X
    for s, e in pairwise(sigmas):
        x = x + (e - s) * (x - model(x, s.expand(4))) / s
    assert denoised.error(sample(model, denoised.X, sigmas, solver="euler", flow=True), x) < 1e-9
    flow = fs.ScoreModel(model, denoised.SHAPE, fs.Flow(), fs.Parametrization("x0", "t"))
    expected = denoised.draw(flow, fs.DPMpp2M(), sigmas.tolist())
    assert sample(model, denoised.X, sigmas, flow=True).equal(expected)


def test_noise_belongs_to_seed_and_id_whatever_else_is_in_the_batch():
    def elementwise(x: Tensor, sigma: Tensor) -> Tensor:
        return x / (1.0 + sigma.reshape(-1, 1, 1, 1) ** 2)

    x = START.float()
    together = sample(elementwise, x, SIGMAS, solver="dpmpp-2m-sde", seed=5)
    alone = sample(elementwise, x[2:3], SIGMAS, solver="dpmpp-2m-sde", seed=5, ids=[2])
    assert alone.equal(together[2:3])
    assert not sample(elementwise, x, SIGMAS, solver="dpmpp-2m-sde", seed=6).equal(together)
    named = sample(elementwise, x, SIGMAS, solver="ddim", eta=1.0, s_noise=0.0)
    assert not named.equal(sample(elementwise, x, SIGMAS, solver="ddim", eta=1.0))


def test_the_denoiser_is_called_as_its_caller_is_set():
    """Half precision stays, and so does inference mode, under which weights of other programs were made."""
    with torch.inference_mode():
        weight = torch.full((1,), 0.5, dtype=torch.float16)

        def model(x: Tensor, sigma: Tensor) -> Tensor:
            assert x.dtype == sigma.dtype == torch.float16
            weight.mul_(1.0)  # outside of inference mode this raises
            return x * weight

        x = sample(model, START.half(), SIGMAS)
    assert x.dtype == torch.float16 and x.isfinite().all()


def test_what_cannot_be_sampled_is_refused():
    with pytest.raises(ValueError, match="solver = 'dopri5' chooses its own steps"):
        sample(D, START, SIGMAS, solver="dopri5")
    with pytest.raises(ValueError, match="eta belongs to the solvers ddim, "):
        sample(D, START, SIGMAS, eta=0.5)
    with pytest.raises(ValueError, match="options belong to a solver by name"):
        sample(D, START, SIGMAS, solver=fs.Euler(), eta=0.5)
    for sigmas in ([10.0], [0.0, 0.0], [1.0, 2.0], [3.0, 3.0]):
        with pytest.raises(ValueError, match="decreasing"):
            sample(D, START, torch.tensor(sigmas))


@pytest.mark.slow
@pytest.mark.nightly
@pytest.mark.parametrize("name", ["euler", "heun", "dpmpp_2m", "dpm_2", "euler_ancestral", "dpmpp_2s_ancestral"])
def test_callbacks_are_those_of_k_diffusion(name):
    sampling, draws = others.k_diffusion(), iter(denoised.Z[1:])
    noise = {"noise_sampler": lambda *levels: next(draws)} if "ancestral" in name else {}
    theirs: list[dict[str, Any]] = []
    told: list[dict[str, Any]] = []
    a = getattr(sampling, f"sample_{name}")(D, START, SIGMAS, callback=theirs.append, disable=True, **noise)
    options = SOLVERS.get(name, {"solver": name.replace("_", "-")})
    b = sample(D, START, SIGMAS, None, told.append, True, noise=denoised.Z, **options)
    assert denoised.error(b, a) < 1e-9 and len(told) == len(theirs)
    for ours, other in zip(told, theirs, strict=True):
        assert ours["i"] == other["i"]
        for key in ("x", "denoised", "sigma", "sigma_hat"):
            assert float((ours[key] - other[key]).abs().max()) < 1e-9 * float(START.abs().max())
