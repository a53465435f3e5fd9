"""The nodes for ComfyUI under a stand-in of its modules: k-diffusion's samples, callbacks, grids, flow models."""

from __future__ import annotations

import sys
from itertools import pairwise
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import denoised
import golden2_grids
import numpy as np
import pytest
import torch
from torch import Tensor

import fastscore as fs
from fastscore.adapters import comfyui
from fastscore.process.continuous import Flow
from fastscore.process.schedule import lam

RECORDED = denoised.data()


class CONST:
    """The mark of flow models, whose table of noise levels ends at 1."""


def after_guidance(model_options: dict, function: Any, disable_cfg1_optimization: bool = False) -> dict:
    """comfy.model_patcher's: the options with one more function that sees what guidance made of which estimates."""
    functions = [*model_options.get("sampler_post_cfg_function", []), function]
    return {
        **model_options,
        "sampler_post_cfg_function": functions,
        "disable_cfg1_optimization": disable_cfg1_optimization,
    }


class Ksampler:
    """ComfyUI's KSAMPLER: the function of a SAMPLER with its options."""

    def __init__(self, sampler_function: Any, extra_options: Any = None, inpaint_options: Any = None) -> None:
        self.sampler_function, self.extra_options = sampler_function, extra_options or {}

    def sample(self, model: Any, x: Tensor, sigmas: Tensor, seed: int, callback: Any = None) -> Tensor:
        extra_args = {"seed": seed, "model_options": {}}
        return self.sampler_function(model, x, sigmas, extra_args, callback, True, **self.extra_options)


@pytest.fixture(autouse=True)
def comfy(monkeypatch):
    names = ("comfy", "comfy.samplers", "comfy.model_sampling", "comfy.model_patcher")
    modules = {name: ModuleType(name) for name in names}
    modules["comfy.samplers"].KSAMPLER = Ksampler
    modules["comfy.model_sampling"].CONST = CONST
    modules["comfy.model_patcher"].set_model_options_post_cfg_function = after_guidance
    for name, module in modules.items():
        monkeypatch.setitem(sys.modules, name, module)


def model_sampling(flow: bool = False, n: int = 12, shift: float = 3.0) -> Any:
    t = torch.arange(1, n + 1) / n
    sigmas = shift * t / (1.0 + (shift - 1.0) * t) if flow else torch.logspace(-1.5, 1.0, n)
    sampling = CONST() if flow else SimpleNamespace()
    vars(sampling).update(sigmas=sigmas, sigma_min=sigmas[0], sigma_max=sigmas[-1])
    return sampling


class Guider:
    """ComfyUI's CFG: a model that mixes two estimates, the second only where it counts, and tells them if asked."""

    def __init__(self, cfg: float, flow: bool = False) -> None:
        self.inner_model = SimpleNamespace(inner_model=SimpleNamespace(model_sampling=model_sampling(flow)))
        self.cfg, self.flow, self.calls = cfg, flow, 0

    def __call__(self, x: Tensor, sigma: Tensor, *, seed: int, model_options: Any) -> Tensor:
        self.calls += 1
        alpha = 1.0 - sigma if self.flow else torch.ones_like(sigma)
        cond, uncond = denoised.estimate(x, alpha, sigma), None
        mixed = cond
        if self.cfg != 1.0 or model_options.get("disable_cfg1_optimization"):
            uncond = unguided(x, alpha, sigma)
            mixed = uncond + self.cfg * (cond - uncond)
        for function in model_options.get("sampler_post_cfg_function", []):
            mixed = function({"denoised": mixed, "uncond_denoised": uncond, "cond_denoised": cond, "sigma": sigma})
        return mixed


def unguided(x: Tensor, alpha: Tensor, sigma: Tensor) -> Tensor:
    alpha, sigma = (v.reshape(-1, *[1] * (x.ndim - 1)) for v in (alpha, sigma))
    return alpha * x / (alpha**2 + sigma**2)


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
    with pytest.raises(ValueError, match="eta belongs to the solvers ddim, "):
        sampler("heun", eta=1.0).sample(Model(), x, sigmas, 0)


@pytest.mark.parametrize("cfg", [0.6, 1.0, 3.0])
@pytest.mark.parametrize("flow", [False, True])
def test_cfg_plus_plus_reads_the_unguided_estimate_behind_the_guider(cfg, flow):
    """By a name of ComfyUI's, and by the rule with any solver; a stage that is unguided asks the host once."""
    sigmas = torch.tensor([1.0, 0.7, 0.3, 0.0] if flow else denoised.SIGMAS)
    x = (sigmas[0] * denoised.X).float()

    def estimates(y: Tensor, s: Tensor) -> tuple[Tensor, Tensor]:
        alpha = 1.0 - s if flow else torch.ones_like(s)
        u = unguided(y, alpha, s)
        return u + cfg * (denoised.estimate(y, alpha, s) - u), u

    y = x
    for s, e in pairwise(sigmas):
        D, u = estimates(y, s.expand(len(y)))
        a, b = (1.0 - s, 1.0 - e) if flow else (1.0, 1.0)
        y = b * D + e * (y - a * u) / s
    for name, rule in (("euler-cfg-pp", "cfg"), ("ddim", "cfg++"), ("euler", "cfg++")):
        model, told = Guider(cfg, flow), []
        ours = (
            comfyui.FastscoreSampler().get_sampler(name, -1.0, -1.0, rule)[0].sample(model, x, sigmas, 0, told.append)
        )
        assert denoised.error(ours, y) < 1e-5 and model.calls == len(sigmas) - 1
        assert [step["i"] for step in told] == list(range(len(sigmas) - 1))
        assert denoised.error(told[0]["denoised"], estimates(x, sigmas[:1].expand(len(x)))[0]) < 1e-5
    model, y = Guider(cfg, flow), x
    for s, e in pairwise(sigmas):
        D, u = estimates(y, s.expand(len(y)))
        d = (y - u) / s
        z = y + (e - s) * d
        if e > 0.0:
            z = y + 0.5 * (e - s) * (d + (z - estimates(z, e.expand(len(z)))[1]) / e)
        y = z + ((1.0 - e) if flow else 1.0) * (D - u)
    ours = comfyui.FastscoreSampler().get_sampler("heun", -1.0, -1.0, "cfg++")[0].sample(model, x, sigmas, 0)
    assert denoised.error(ours, y) < 1e-4 and model.calls == 2 * (len(sigmas) - 1) - 1


def test_lists_too_short_to_step_return_the_state():
    for sigmas in (torch.zeros(0), torch.ones(1)):
        assert sampler("euler").sample(Model(), denoised.X, sigmas, 0) is denoised.X


def sigmas_of(spacing: str, steps: int, denoise: float = 1.0, flow: bool = False) -> Tensor:
    model = SimpleNamespace(get_model_object=lambda name: {"model_sampling": model_sampling(flow)}[name])
    return comfyui.FastscoreSigmas().get_sigmas(model, spacing, steps, denoise)[0]


@pytest.mark.parametrize("flow", [False, True])
def test_noise_levels_go_from_the_models_most_noise_to_none(flow):
    table, made = model_sampling(flow).sigmas, []
    for spacing in comfyui.SPACINGS:
        try:
            sigmas = sigmas_of(spacing, 6, flow=flow)
        except ValueError:  # a list of levels of its own, or one that this noise does not have
            continue
        made.append(spacing)
        assert sigmas.dtype == torch.float32 and bool((sigmas.diff() < 0.0).all()) and float(sigmas[-1]) == 0.0
        if spacing in ("karras", "arctan", "logsnr", "even", "simple", "normal", "sgm-uniform", "beta", "kl-optimal"):
            assert float(sigmas[0]) == pytest.approx(float(table[-1])) and len(sigmas) == 7
        if spacing in ("even", "simple"):
            assert torch.allclose(sigmas[:-1], table.flip(0)[::2])
        if spacing == "karras":
            low, high = float(table[0]), float(table[-1])
            ramp = (high ** (1 / 7) + np.linspace(0.0, 1.0, 6) * (low ** (1 / 7) - high ** (1 / 7))) ** 7
            assert np.allclose(sigmas[:-1].numpy(), ramp, rtol=1e-5)
    assert {"arctan", "even", "sgm-uniform", "beta", "kl-optimal", "exponential"} < {*made}
    assert ("karras" in made) is not flow
    with pytest.raises(ValueError, match="begins at sigma / alpha = 700"):
        sigmas_of("ays-svd", 6)


def test_noise_levels_are_those_of_the_host():
    """Its lists on the table of its own model, which hands over nothing but float32 levels."""
    sd15 = np.exp(-lam(golden2_grids.SD15, np.arange(1000.0)))
    flow3 = Flow(shift=3.0).sigma(np.arange(1, 1001) / 1000)
    for name, recorded in golden2_grids.recorded().items():
        if "model" in recorded:
            sampling = CONST() if recorded["model"] == "flow3" else SimpleNamespace()
            sampling.sigmas = torch.tensor(flow3 if recorded["model"] == "flow3" else sd15, dtype=torch.float32)
            spacing = name.removeprefix("grid/").partition("_" + recorded["model"])[0].replace("_", "-")
            sigmas = comfyui.noise_levels(sampling, spacing, recorded["n"])
            assert np.allclose(sigmas, recorded["sigmas"], rtol=0.0, atol=2e-6 * recorded["sigmas"][0]), name
    with pytest.raises(ValueError, match="not those of even times after one shift"):
        comfyui.noise_levels(bent(), "simple", 4)


def bent() -> CONST:
    sampling = CONST()
    sampling.sigmas = torch.linspace(0.001, 1.0, 1000) ** 2
    return sampling


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
        assert sampler(name).sample(Guider(0.5), x, sigmas, 0).isfinite().all(), name
    assert len(Path(comfyui.__file__).read_text().splitlines()) < 150
    assert fs.DPMpp2M() == fs.solvers.names.named(comfyui.DEFAULT)
