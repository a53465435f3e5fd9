"""The nodes for ComfyUI under a stand-in of its modules: k-diffusion's samples, callbacks, grids, flow models."""

from __future__ import annotations

import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import denoised
import numpy as np
import pytest
import torch
from torch import Tensor

import fastscore as fs
from fastscore.adapters import comfyui

RECORDED = denoised.data()


class CONST:
    """The mark of flow models, whose table of noise levels ends at 1."""


class Ksampler:
    """ComfyUI's KSAMPLER: the function of a SAMPLER with its options."""

    def __init__(self, sampler_function: Any, extra_options: Any = None, inpaint_options: Any = None) -> None:
        self.sampler_function, self.extra_options = sampler_function, extra_options or {}

    def sample(self, model: Any, x: Tensor, sigmas: Tensor, seed: int, callback: Any = None) -> Tensor:
        extra_args = {"seed": seed, "model_options": {}}
        return self.sampler_function(model, x, sigmas, extra_args, callback, True, **self.extra_options)


@pytest.fixture(autouse=True)
def comfy(monkeypatch):
    modules = {name: ModuleType(name) for name in ("comfy", "comfy.samplers", "comfy.model_sampling")}
    modules["comfy.samplers"].KSAMPLER = Ksampler
    modules["comfy.model_sampling"].CONST = CONST
    for name, module in modules.items():
        monkeypatch.setitem(sys.modules, name, module)


def model_sampling(flow: bool = False, n: int = 12, shift: float = 3.0) -> Any:
    t = torch.arange(1, n + 1) / n
    sigmas = shift * t / (1.0 + (shift - 1.0) * t) if flow else torch.logspace(-1.5, 1.0, n)
    sampling = CONST() if flow else SimpleNamespace()
    vars(sampling).update(sigmas=sigmas, sigma_min=sigmas[0], sigma_max=sigmas[-1])
    return sampling


class Model:
    """What KSAMPLER hands a sampler: called with extra arguments, and around models of models."""

    def __init__(self, flow: bool = False) -> None:
        self.inner_model = SimpleNamespace(inner_model=SimpleNamespace(model_sampling=model_sampling(flow)))
        self.flow, self.seen = flow, []

    def __call__(self, x: Tensor, sigma: Tensor, *, seed: int, model_options: Any) -> Tensor:
        self.seen.append(sigma)
        return denoised.estimate(x, 1.0 - sigma if self.flow else torch.ones_like(sigma), sigma)


def sampler(solver: str, eta: float = -1.0, s_noise: float = -1.0) -> Ksampler:
    return comfyui.FastscoreSampler().get_sampler(solver, eta, s_noise)[0]


@pytest.mark.parametrize(("solver", "name"), [("euler", "euler"), ("heun", "heun"), ("dpmpp-2m", "dpmpp_2m")])
def test_samples_and_callbacks_are_those_of_k_diffusion(solver, name):
    x, sigmas, told = (denoised.SIGMAS[0] * denoised.X).float(), torch.tensor(denoised.SIGMAS), []
    samples = sampler(solver).sample(Model(), x, sigmas, 0, told.append)
    assert denoised.error(samples.double(), RECORDED[f"k-diffusion {name}"]) < 1e-6
    assert [step["i"] for step in told] == list(range(len(sigmas) - 1))
    assert {"x", "i", "sigma", "sigma_hat", "denoised"} <= set(told[0])


def test_a_flow_model_has_its_own_state():
    model, sigmas = Model(flow=True), torch.tensor([1.0, 0.7, 0.3, 0.0])

    def D(u: Tensor, t: Tensor, cond: None) -> Tensor:
        return denoised.estimate(u, 1.0 - t, t)

    flow = fs.ScoreModel(D, denoised.SHAPE, fs.Flow(), fs.Parametrization("x0", "t"))
    for name, solver in (("euler", fs.Euler()), ("dpmpp-2m", fs.DPMpp2M())):
        expected = denoised.draw(flow, solver, sigmas.double().tolist())
        x = sampler(name).sample(model, denoised.X.float(), sigmas, 0)
        assert denoised.error(x.double(), expected) < 1e-6


def test_noise_is_of_the_seed_and_the_position_in_the_batch():
    x, sigmas = (denoised.SIGMAS[0] * denoised.X).float(), torch.tensor(denoised.SIGMAS)
    first, again, other = (sampler("dpmpp-2m-sde").sample(Model(), x, sigmas, seed) for seed in (3, 3, 4))
    alone = sampler("dpmpp-2m-sde").sample(Model(), x[:1], sigmas, 3)
    assert first.equal(again) and not first.equal(other) and denoised.error(alone, first[:1]) < 1e-5


def test_options_are_the_solvers_own_or_refused():
    x, sigmas = denoised.X.float(), torch.tensor([5.0, 1.0, 0.0])
    ancestral = sampler("ddim", eta=1.0).sample(Model(), x, sigmas, 0)
    assert not ancestral.equal(sampler("ddim").sample(Model(), x, sigmas, 0))
    assert sampler("ddim", eta=1.0, s_noise=0.0).sample(Model(), x, sigmas, 0).isfinite().all()
    with pytest.raises(ValueError, match="eta belongs to the solvers ddim and em"):
        sampler("heun", eta=1.0).sample(Model(), x, sigmas, 0)


def test_lists_too_short_to_step_return_the_state():
    for sigmas in (torch.zeros(0), torch.ones(1)):
        assert sampler("euler").sample(Model(), denoised.X, sigmas, 0) is denoised.X


def sigmas_of(spacing: str, steps: int, denoise: float = 1.0, flow: bool = False) -> Tensor:
    model = SimpleNamespace(get_model_object=lambda name: {"model_sampling": model_sampling(flow)}[name])
    return comfyui.FastscoreSigmas().get_sigmas(model, spacing, steps, denoise)[0]


@pytest.mark.parametrize("spacing", comfyui.SPACINGS)
@pytest.mark.parametrize("flow", [False, True])
def test_noise_levels_go_from_the_models_most_noise_to_none(spacing, flow):
    if flow and spacing in ("karras", "logsnr"):
        with pytest.raises(ValueError, match="lam is infinite"):
            sigmas_of(spacing, 6, flow=flow)
        return
    sigmas, table = sigmas_of(spacing, 6, flow=flow), model_sampling(flow).sigmas
    assert sigmas.dtype == torch.float32 and sigmas.shape == (7,) and bool((sigmas.diff() < 0.0).all())
    assert float(sigmas[0]) == pytest.approx(float(table[-1])) and float(sigmas[-1]) == 0.0
    if spacing == "even":  # ComfyUI's "simple", where the table divides
        assert torch.allclose(sigmas[:-1], table.flip(0)[::2])
    if spacing == "karras":
        low, high = float(table[0]), float(table[-1])
        ramp = (high ** (1 / 7) + np.linspace(0.0, 1.0, 6) * (low ** (1 / 7) - high ** (1 / 7))) ** 7
        assert np.allclose(sigmas[:-1].numpy(), ramp, rtol=1e-5)


def test_denoise_takes_the_end_of_a_longer_list():
    assert sigmas_of("karras", 6, denoise=0.5).equal(sigmas_of("karras", 12)[-7:])
    assert len(sigmas_of("karras", 6, denoise=0.0)) == 0


def test_every_solver_of_the_list_runs_and_the_pack_is_what_comfyui_reads():
    assert set(comfyui.NODE_CLASS_MAPPINGS) == set(comfyui.NODE_DISPLAY_NAME_MAPPINGS)
    for node in comfyui.NODE_CLASS_MAPPINGS.values():
        inputs = node.INPUT_TYPES()["required"]
        assert callable(getattr(node(), node.FUNCTION)) and isinstance(node.RETURN_TYPES, tuple) and node.CATEGORY
        assert all(isinstance(kind, tuple) for kind in inputs.values())
    assert comfyui.FastscoreSampler.INPUT_TYPES()["required"]["solver"][1]["default"] in comfyui.NAMES
    x, sigmas = (10.0 * denoised.X).float(), sigmas_of("karras", 5)
    for name in comfyui.NAMES:
        assert sampler(name).sample(Model(), x, sigmas, 0).isfinite().all(), name
    assert len(Path(comfyui.__file__).read_text().splitlines()) < 150
    assert fs.DPMpp2M() == fs.solvers.names.named(comfyui.DEFAULT)
