"""Others' names of solvers: every one of them is a solver here, or says why not and what is nearest."""

from __future__ import annotations

from dataclasses import replace

import golden2
import pytest
import solver_names
import torch
from golden import rerun

import fastscore as fs
from fastscore.model.analytic import GaussianMixture, gaussian, score_model
from fastscore.solvers import aliases
from fastscore.solvers.adaptive import Adaptive
from fastscore.solvers.names import SOLVERS, grid_of, named

COMFYUI = """euler euler_cfg_pp euler_ancestral euler_ancestral_cfg_pp heun heunpp2 exp_heun_2_x0 exp_heun_2_x0_sde
    dpm_2 dpm_2_ancestral lms dpm_fast dpm_adaptive dpmpp_2s_ancestral dpmpp_2s_ancestral_cfg_pp dpmpp_sde dpmpp_sde_gpu
    dpmpp_2m dpmpp_2m_cfg_pp dpmpp_2m_sde dpmpp_2m_sde_gpu dpmpp_2m_sde_heun dpmpp_2m_sde_heun_gpu dpmpp_3m_sde
    dpmpp_3m_sde_gpu ddpm lcm ipndm ipndm_v deis res_multistep res_multistep_cfg_pp res_multistep_ancestral
    res_multistep_ancestral_cfg_pp gradient_estimation gradient_estimation_cfg_pp er_sde seeds_2 seeds_3 sa_solver
    sa_solver_pece ddim uni_pc uni_pc_bh2 cfgpp_ud10_ab""".split()
EVERY = [(owner, name) for owner, table in aliases.OWNERS.items() for name in table]


def test_all_of_comfyui_are_there():
    assert len(COMFYUI) == 45
    assert sorted(aliases.COMFYUI) == sorted(COMFYUI)
    assert not [name for name, alias in aliases.COMFYUI.items() if alias.solver is None]


def test_every_name_is_a_solver_or_says_why_not():
    for owner, name in EVERY:
        alias = aliases.OWNERS[owner][name]
        for text in (f"{owner}:{name}", f"{owner}:{name.upper()}", f"{owner}:{name.replace('_', ' ')}"):
            if alias.solver is None:
                with pytest.raises(ValueError, match=r"cannot be had: .*nearest is "):
                    named(text)
            else:
                expected = named(alias.solver) if isinstance(alias.solver, str) else alias.solver()
                assert named(text) == expected
                assert grid_of(text) is None


def test_the_page_is_that_of_the_names():
    assert solver_names.PAGE.read_text() == solver_names.page()


def test_without_an_owner_a_name_is_ours_or_that_of_its_spelling():
    assert fs.solver("DPM++ 2M Karras") == named("dpmpp-2m")
    assert named("euler") == fs.Euler() != named("sample_euler") == named("EulerDiscreteScheduler") == fs.DDIM()
    assert named("dpmpp_sde") == fs.DPMSolver(2, "x0", 1.0) != named("DPM++ SDE") == named("sample_dpmpp_sde")
    assert named("DDIM") == named("ddim") == fs.DDIM() != named("DDIMScheduler")
    assert named("deis") == fs.DEIS() != named("comfyui:deis") == fs.DEIS(3, "tab", points=10000)
    assert named("unipc") == fs.UniPC() != named("uni_pc") == fs.UniPC(3, "bh1", lower_order_final=True)


@pytest.mark.thirds
@pytest.mark.parametrize(
    ("name", "solver", "grid"),
    [
        ("DPM++ 2M Karras", "dpmpp-2m", "karras"),
        ("dpm++ 2m sde exponential", "dpmpp-2m-sde", "exponential"),
        ("Euler a SGM Uniform", "euler-ancestral", "sgm-uniform"),
        ("heun-karras", "heun", "karras"),
        ("DPM++ 2M Automatic", "dpmpp-2m", None),
        ("a1111:DPM2 a Align Your Steps", "dpm-2-ancestral", "ays-sd15-a1111"),
    ],
)
def test_a_name_may_say_its_grid(name, solver, grid):
    assert (named(name), grid_of(name)) == (named(solver), grid)
    model = score_model(gaussian(shape=(2,)))
    plan = fs.Sampler(model, schedule=fs.EDM(0.02, 20.0), solver=name, steps=6).plan
    assert plan.hash == fs.Sampler(model, schedule=fs.EDM(0.02, 20.0), solver=solver, grid=grid, steps=6).plan.hash
    own = fs.Sampler(model, schedule=fs.EDM(0.02, 20.0), solver=name, grid=fs.logsnr(6)).plan
    assert own.hash == fs.Sampler(model, schedule=fs.EDM(0.02, 20.0), solver=solver, grid=fs.logsnr(6)).plan.hash


def test_options_are_those_of_the_solver():
    assert named("euler_ancestral", eta=0.5) == fs.AncestralSplit(fs.DDIM(), 0.5)
    assert named("sample_dpmpp_3m_sde", eta=0.5) == fs.DPMMultistep(3, "x0", "k-diffusion", 0.5)
    assert named("comfyui:er_sde", s_noise=1.1) == fs.ScaledNoise(named("comfyui:er_sde"), 1.1)
    for name, option in (("comfyui:deis", {"s_noise": 1.1}), ("uni_pc", {"eta": 0.5}), ("sample_heun", {"eta": 1.0})):
        with pytest.raises(ValueError, match=r"belongs to .*leave it out with solver"):
            named(name, **option)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("dpmpp_9m", r"nobody's name \(nearest: dpmpp-[23]m, dpmpp-[23]m"),
        ("comfyui:res_multi", r"nearest: res-multistep"),
        ("comfy:euler", r"must be one of comfyui, k-diffusion, a1111, diffusers"),
        ("", r"must be one of dpmpp-2m"),
        ("comfyui:", r"must be one of dpmpp-2m"),
        ("HeliosScheduler", r"cannot be had: a run goes through images of several sizes; nearest is"),
    ],
)
def test_no_name_of_anybodys_is_refused_with_the_nearest(name, message):
    with pytest.raises(ValueError, match=message):
        named(name)


RECORDED = [
    name
    for name, s in golden2.recorded()[0].items()
    if golden2.reason(name) is None and s["kind"] == "comfy" and not s["settings"] and not s["flow"] and "cfg" not in s
]


@pytest.mark.thirds
@pytest.mark.parametrize("name", RECORDED)
def test_comfyuis_names_are_its_samplers(name):
    """The solver of the name alone repeats the recorded run."""
    settings, arrays = golden2.recorded()
    target = GaussianMixture(*(torch.from_numpy(arrays[f"target__{k}"]).double() for k in ("w", "mu", "s")))
    case = golden2.run(name)[2]
    solver = named("comfyui:" + settings[name]["fn"].removeprefix("sample_").replace("unipc", "uni_pc"))
    ours, recorded, _ = rerun(name, replace(case, solver=solver), target, arrays)
    assert float((ours - recorded).abs().max() / recorded.abs().max()) < case.tolerance


@pytest.mark.slow
def test_every_name_samples():
    """Each solver on a schedule that it is for: of a Gaussian, what spread comes out of 24 steps."""
    model = score_model(gaussian(shape=(4,), std=0.5))
    solvers = {
        repr(s): s for owner, name in EVERY if aliases.OWNERS[owner][name].solver for s in [named(f"{owner}:{name}")]
    }
    for solver in solvers.values():
        if isinstance(solver, Adaptive | fs.RePaint | fs.ScoreSDE) or getattr(solver, "fixed_stride", False):
            continue
        table = fs.discrete_vp()
        schedule = table if getattr(solver, "boundary", 0.0) else fs.EDM(0.002, 80.0)
        x = fs.Sampler(model, schedule=schedule, solver=solver, steps=24, batch=512).run(range(512))
        low = 0.0 if isinstance(solver, fs.Renoise) else 0.42
        assert low < float(x.std()) < 0.58, solver


def test_all_of_ours_resolve():
    for name in SOLVERS:
        if name != "none":
            assert named(name.upper().replace("-", "_")) == named(name)
