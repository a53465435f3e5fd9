"""Solvers of this engine in the pipelines of diffusers: the same states as our own loop makes of the same network."""

from __future__ import annotations

import copy
import inspect
import json
import pickle
import subprocess
import sys
from importlib.metadata import EntryPoint
from pathlib import Path
from typing import Any

import numpy as np
import others
import pytest
import tiny_pipelines as tiny
import torch
from torch import Tensor

from fastscore import Sampler, ScoreModel
from fastscore.adapters import from_diffusers
from fastscore.process.grid import Times

diffusers = tiny.diffusers
pytestmark = [pytest.mark.slow, pytest.mark.nightly, pytest.mark.filterwarnings("ignore")]
SOLVERS = ("dpmpp-2m", "dpmpp-2m-sde", "dpmpp-2s-ancestral", "heun", "unipc")


def scheduler_class() -> Any:
    import fastscore

    return fastscore.Scheduler


def generators(n: int) -> list[torch.Generator]:
    return [torch.Generator().manual_seed(40 + k) for k in range(n)]


def ours(case: tiny.Case, x: Tensor, seeds: Any, ids: Any, begin: int = 0) -> Tensor:
    """Return what our own loop makes of a start, with the settings of the pipeline's scheduler."""
    s = case.pipe.scheduler
    model = ScoreModel(case.net, tuple(x.shape[1:]), s.schedule, s.parametrization)
    knots = Times(s.knots[begin:])
    sampler = Sampler(model, solver=s.solver, grid=knots, guide=s.guide, start="state", batch=len(x))
    return sampler.run(ids, seeds, init=x)


@pytest.mark.parametrize("solver", SOLVERS)
@pytest.mark.parametrize("name", tiny.CASES)
def test_pipeline_equals_our_loop(name: str, solver: str) -> None:
    case = tiny.CASES[name]()
    case.pipe.scheduler = scheduler_class().from_config(case.pipe.scheduler.config, solver=solver, seed=[40, 41])
    assert type(case.pipe.scheduler).__name__ == "Scheduler"
    got, start = case.run(generators(2)), case.start(generators(2), 2)
    assert case.pipe.scheduler.seeds == [40, 41]
    expected = ours(case, start, [40, 41], [0, 0])
    assert float((got - start).abs().max()) > 0.1
    assert float((got - expected).norm() / expected.norm()) < 1e-5


class Elementwise(diffusers.ModelMixin, diffusers.ConfigMixin):
    """A network whose every output is a function of one input."""

    config_name = "config.json"

    @tiny.register_to_config
    def __init__(self, sample_size: int = 4, in_channels: int = 3) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.tensor(0.3))

    def forward(self, x: Tensor, t: Any) -> Any:
        return diffusers.utils.BaseOutput(sample=torch.tanh(self.weight * x + 1e-3 * t))


@pytest.mark.parametrize("solver", SOLVERS)
def test_image_of_a_batch_is_the_image_alone(solver: str) -> None:
    pipe = tiny.quiet(diffusers.DDPMPipeline(Elementwise(), scheduler_class()(solver, prediction_type="v_prediction")))

    def run(generator: Any, n: int) -> Tensor:
        kept = tiny.Kept(pipe.scheduler)
        pipe(batch_size=n, generator=generator, num_inference_steps=5, output_type="np")
        del pipe.scheduler.step
        return kept.last

    together = run(generators(8), 8)
    for k in range(8):
        alone = torch.Generator().manual_seed(40 + k)
        assert torch.equal(run(alone if k % 2 else [alone], 1)[0], together[k])
    run(torch.Generator().manual_seed(40), 3)
    assert (pipe.scheduler.seeds, pipe.scheduler.ids) == (40, [0, 1, 2])


def test_a_saved_pipeline_loads_in_another_process(tmp_path: Path) -> None:
    scheduler = scheduler_class()("ddim", {"eta": 0.5}, beta_schedule="scaled_linear", timestep_spacing="trailing")
    tiny.quiet(diffusers.DDPMPipeline(tiny.unet2d(), scheduler)).save_pretrained(tmp_path)
    assert json.loads((tmp_path / "model_index.json").read_text())["scheduler"] == ["fastscore", "Scheduler"]
    oracles = Path(others.__file__).parent
    code = (
        f"import sys, json; sys.path += {[str(oracles), str(oracles.parents[1])]}; import others; "
        "diffusers = others.library('diffusers'); import fastscore; "
        "s = diffusers.DDPMPipeline.from_pretrained(sys.argv[1]).scheduler; "
        "s.set_timesteps(4); print(json.dumps([repr(s), dict(s.config), s.timesteps.tolist(), repr(s.solver)]))"
    )
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path)], capture_output=True, text=True, check=True)
    shown, config, *rest = json.loads(done.stdout.splitlines()[-1])
    scheduler.set_timesteps(4)
    assert shown == repr(scheduler) and rest == [scheduler.timesteps.tolist(), repr(scheduler.solver)]
    assert config == scheduler_class().from_pretrained(tmp_path, subfolder="scheduler").config


def by_hand(scheduler: Any, x: Tensor, begin: int = 0) -> Tensor:
    for t in scheduler.timesteps[begin:]:
        x = scheduler.step(torch.tanh(x), t, x, return_dict=False)[0]
    return x


@pytest.mark.parametrize("solver", SOLVERS)
def test_interleaved_copies(solver: str) -> None:
    one, start = scheduler_class()(solver, seed=3), tiny.normals(2, 3, 4)
    one.set_timesteps(5)
    two, third = copy.deepcopy(one), copy.deepcopy(one)
    expected = by_hand(third, start), by_hand(pickle.loads(pickle.dumps(two)), 2.0 * start)
    x, y = start, 2.0 * start
    for k, t in enumerate(one.timesteps):
        two = copy.deepcopy(two) if k == 2 else two
        x, y = one.step(torch.tanh(x), t, x).prev_sample, two.step(torch.tanh(y), t, y).prev_sample
    assert torch.equal(x, expected[0]) and torch.equal(y, expected[1])


def first_state(case: tiny.Case, **more: Any) -> tuple[Tensor, Tensor]:
    """Return the state of the first step of a run and the last one."""
    seen: list[Tensor] = []
    step = case.pipe.scheduler.step
    case.pipe.scheduler.step = lambda F, t, x, *rest, **kw: (seen.append(x.clone()), step(F, t, x, *rest, **kw))[1]
    case.pipe.scheduler.step.__signature__ = inspect.signature(step)
    last = case.run(generators(2), steps=6, **more)
    del case.pipe.scheduler.step
    return seen[0], last


@pytest.mark.parametrize("solver", ["dpmpp-2m", "heun", "dpmpp-2m-sde"])
def test_img2img_starts_where_ddim_does(solver: str) -> None:
    case = tiny.sd15("StableDiffusionImg2ImgPipeline")
    config = case.pipe.scheduler.config
    image = {"image": tiny.normals(2, 4, 8, 8, seed=5), "strength": 0.5}
    case.pipe.scheduler = diffusers.DDIMScheduler.from_config(config)
    expected, _ = first_state(case, **image)
    case.pipe.scheduler = scheduler_class().from_config(config, solver=solver)
    start, last = first_state(case, **image)
    assert torch.equal(start, expected)
    assert float((last - ours(case, start, [40, 41], [0, 0], 3)).abs().max()) < 1e-5


def test_inpainting_noises_what_is_known_to_the_next_stage() -> None:
    case = tiny.sd15("StableDiffusionInpaintPipeline")
    scheduler = scheduler_class().from_config(case.pipe.scheduler.config, solver="heun")
    case.pipe.scheduler, add, times = scheduler, scheduler.add_noise, []

    def add_noise(x: Tensor, z: Tensor, t: Tensor) -> Tensor:
        out, schedule = add(x, z, t), scheduler.schedule
        times.append(float(t[0]))
        expected = float(schedule.alpha(times[-1])) * x + float(schedule.sigma(times[-1])) * z
        assert torch.allclose(out, expected, atol=1e-6)
        return out

    scheduler.add_noise = add_noise
    image, mask = tiny.normals(2, 3, 8, 8, seed=5).clamp(-1, 1), torch.zeros(2, 1, 8, 8)
    mask[..., :4] = 1.0
    case.run(generators(2), steps=4, image=image, mask_image=mask, strength=0.5, height=8, width=8)
    assert times == scheduler.timesteps[4:].tolist()  # the first of them before the first step


def test_noise_goes_to_the_stage_that_a_run_is_at() -> None:
    scheduler, x, z = scheduler_class()("heun"), tiny.normals(2, 3, 4), tiny.normals(2, 3, 4, seed=1)
    scheduler.set_timesteps(4)

    def at(t: Any) -> Tensor:
        return float(scheduler.schedule.alpha(t)) * x + float(scheduler.schedule.sigma(t)) * z

    by_time = scheduler.add_noise(x, z, torch.tensor([500, 20]))  # as in training: any time, one a sample
    assert torch.allclose(by_time, torch.stack([at(500)[0], at(20)[1]]))
    scheduler.set_begin_index(2)
    assert torch.allclose(scheduler.add_noise(x, z, scheduler.timesteps[:1]), at(float(scheduler.timesteps[2])))
    scheduler.set_begin_index(0)
    for k, t in enumerate(scheduler.timesteps):
        scheduler.step(x, t, x)
        after = float(scheduler.timesteps[k + 1]) if k + 1 < len(scheduler.timesteps) else -1.0
        assert torch.allclose(scheduler.add_noise(x, z, t[None]), at(after), atol=1e-6)
        assert torch.equal(scheduler.scale_noise(x, t[None], z), scheduler.add_noise(x, z, t[None]))


def test_sdxl_stops_early_and_goes_on() -> None:
    case = tiny.sdxl()
    config = case.pipe.scheduler.config
    case.pipe.scheduler = scheduler_class().from_config(config, solver="ddim")
    whole, half = case.run(generators(2), steps=6), case.run(generators(2), steps=6, denoising_end=0.5)
    parts = {k: v for k, v in case.pipe.components.items() if k not in ("image_encoder", "feature_extractor")}
    refine = tiny.quiet(diffusers.StableDiffusionXLImg2ImgPipeline(**parts))
    given = {"image": half, "denoising_start": 0.5, "original_size": (8, 8), "target_size": (8, 8)}
    rest = refine(
        prompt_embeds=tiny.normals(1, 5, 8).expand(2, -1, -1), pooled_prompt_embeds=tiny.normals(1, 8).expand(2, -1),
        num_inference_steps=6, guidance_scale=1.0, output_type="latent", generator=generators(2), **given,
    ).images  # fmt: skip
    assert float((half - whole).abs().max()) > 0.1
    assert float((rest - whole).abs().max()) < 1e-5


def test_a_pipeline_of_ours_is_a_model_and_its_settings(tmp_path: Path) -> None:
    case = tiny.ddpm()
    case.pipe.scheduler = scheduler_class()("heun", beta_schedule="squaredcos_cap_v2", clip_sample=True)
    case.pipe.save_pretrained(tmp_path)
    expected, start = case.run(generators(2)), case.start(generators(2), 2)
    for source in (case.pipe, tmp_path):
        model, settings = from_diffusers(source, steps=tiny.STEPS)
        got = Sampler(model, **settings, start="state", batch=2).run(range(2), init=start)
        assert float((got - expected).norm() / expected.norm()) < 1e-5


FLOWS = {
    "plain": {}, "shift": {"shift": 3.0}, "dynamic": {"use_dynamic_shifting": True},
    "terminal": {"use_dynamic_shifting": True, "shift_terminal": 0.1},
    "linear": {"use_dynamic_shifting": True, "time_shift_type": "linear"},
    "karras": {"shift": 3.0, "use_karras_sigmas": True}, "exponential": {"use_exponential_sigmas": True},
}  # fmt: skip


@pytest.mark.parametrize("name", FLOWS)
def test_flow_grid_and_euler_are_theirs(name: str) -> None:
    theirs = diffusers.FlowMatchEulerDiscreteScheduler(**FLOWS[name])
    mine = scheduler_class().from_config(theirs.config, solver="euler")
    mu = {"mu": 0.7} if theirs.config.use_dynamic_shifting else {}
    even = np.linspace(1.0, 1.0 / 5, 5)
    for arguments in ({"num_inference_steps": 5}, {"sigmas": even}):
        for scheduler in (theirs, mine):
            scheduler.set_timesteps(**arguments, **mu)
        assert torch.allclose(mine.sigmas, theirs.sigmas, atol=1e-6)
        assert torch.allclose(mine.timesteps, theirs.timesteps, rtol=1e-6)
        x = tiny.normals(2, 3, 4)
        assert torch.allclose(by_hand(mine, x), by_hand(theirs, x), atol=1e-5)
    fed_back = mine.sigmas.tolist()
    mine.set_timesteps(sigmas=fed_back[:-1], **mu)  # shifted already, so taken as they are
    assert mine.sigmas.tolist() == pytest.approx(fed_back, abs=1e-6) or name in ("plain", "exponential")


def test_levels_and_what_the_network_is_told_of_them() -> None:  # as CogView4 passes both
    theirs = diffusers.FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True)
    mine = scheduler_class().from_config(theirs.config, solver="euler")
    told = np.linspace(1000.0, 1.0, 7).astype(np.int64).astype(np.float32)
    for scheduler in (theirs, mine):
        scheduler.set_timesteps(timesteps=told, sigmas=told / 1000.0, mu=0.6)
    assert torch.equal(mine.timesteps, theirs.timesteps) and torch.allclose(mine.sigmas, theirs.sigmas, atol=1e-6)
    x = tiny.normals(2, 3, 4)
    assert torch.allclose(by_hand(mine, x), by_hand(theirs, x), atol=1e-5)
    heun = scheduler_class().from_config(theirs.config, solver="heun")
    with pytest.raises(ValueError, match="7 timesteps for the 13 network calls"):
        heun.set_timesteps(timesteps=told, sigmas=told / 1000.0, mu=0.6)


def test_published_lists() -> None:
    lists: Any = diffusers.schedulers.AysSchedules
    scheduler = scheduler_class()(beta_schedule="scaled_linear", beta_start=0.00085, beta_end=0.012)
    scheduler.set_timesteps(timesteps=lists["StableDiffusionTimesteps"])
    assert scheduler.timesteps.tolist() == lists["StableDiffusionTimesteps"]
    scheduler.set_timesteps(sigmas=lists["StableDiffusionXLSigmas"])
    assert scheduler.sigmas.tolist() == pytest.approx(lists["StableDiffusionXLSigmas"], rel=1e-4)


def test_flow_grid_of_unipc() -> None:  # as Wan has it
    flow = {"prediction_type": "flow_prediction", "use_flow_sigmas": True, "flow_shift": 3.0}
    theirs = diffusers.UniPCMultistepScheduler(**flow)
    mine = scheduler_class().from_config(theirs.config)
    for scheduler in (theirs, mine):
        scheduler.set_timesteps(6)
    assert torch.allclose(mine.sigmas, theirs.sigmas, atol=1e-5)


@pytest.mark.parametrize("spacing", ["leading", "trailing"])
def test_ddim_is_theirs(spacing: str) -> None:
    case = tiny.sd15()
    config = case.pipe.scheduler.config
    case.pipe.scheduler = diffusers.DDIMScheduler.from_config(config, timestep_spacing=spacing, clip_sample=False)
    expected, timesteps = case.run(generators(2), steps=5), case.pipe.scheduler.timesteps
    case.pipe.scheduler = scheduler_class().from_config(config, timestep_spacing=spacing, solver="ddim")
    assert float((case.run(generators(2), steps=5) - expected).abs().max()) < 1e-4
    assert torch.equal(case.pipe.scheduler.timesteps, timesteps)


def test_configs_come_with_the_defaults_of_their_class() -> None:
    cls = scheduler_class()
    theirs = diffusers.DDIMScheduler(beta_start=0.001)
    mine = cls.from_config(theirs.config, solver="heun")
    assert (mine.config.beta_end, mine.config.clip_sample) == (0.02, True)
    sparse = {"_class_name": "DPMSolverMultistepScheduler", "beta_schedule": "scaled_linear"}
    assert cls.from_config(sparse).config.timestep_spacing == "linspace"
    back = diffusers.DDIMScheduler.from_config(cls(steps_offset=1).config)  # whose default is a clip, as ours is not
    assert (back.config.clip_sample, back.config.steps_offset) == (False, 1)
    again = cls.from_config(cls.from_config(sparse | {"solver_order": 3}, solver="ddim").config)
    assert (again.config.solver, again.config.solver_order) == ("ddim", 3)
    assert diffusers.DDIMScheduler in mine.compatibles
    beta = diffusers.EulerDiscreteScheduler(use_beta_sigmas=True, timestep_spacing="trailing").config
    assert cls.from_config(beta, use_beta_sigmas=False).config.timestep_spacing == "trailing"
    mine = cls("ddim", clip_sample=True)
    tiny.sd15().pipe.__class__(**tiny.none_but(scheduler=mine))  # which turns the clip off, and the offset to 1
    mine.set_timesteps(2)
    assert (mine.guide, mine.timesteps.tolist()) == (None, [501, 1])
    for refused, match in (
        (diffusers.EDMEulerScheduler().config | {"_class_name": "EDMEulerScheduler"}, "EDMEulerScheduler"),
        (diffusers.EulerDiscreteScheduler(use_beta_sigmas=True).config, "use_beta_sigmas = True"),
        (diffusers.CogVideoXDDIMScheduler().config, "snr_shift_scale"),
        (diffusers.IPNDMScheduler().config, "which noise was the network trained on"),
        (diffusers.EDMEulerScheduler().config, "sigma_min"),
    ):
        with pytest.raises(ValueError, match=match):
            cls.from_config(refused)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_states_keep_their_dtype(dtype: torch.dtype) -> None:
    scheduler = scheduler_class()("dpmpp-2m-sde", seed=0)
    scheduler.set_timesteps(5)
    x = by_hand(scheduler, tiny.normals(2, 3, 4).to(dtype))
    assert x.dtype == dtype
    scheduler.set_timesteps(5)
    wide, error = by_hand(scheduler, tiny.normals(2, 3, 4)), 1e-5 if dtype == torch.float64 else 0.02
    assert float((x - wide).norm() / wide.norm()) < error


def test_without_a_generator_torch_s_own_seed_counts() -> None:
    scheduler, runs, seeds = scheduler_class()("dpmpp-2m-sde"), [], []
    for seed in (0, 0, 1):
        torch.manual_seed(seed)
        scheduler.set_timesteps(4)
        runs.append(by_hand(scheduler, tiny.normals(2, 3, 4)))
        seeds.append(scheduler.seeds)
    assert torch.equal(runs[0], runs[1]) and not torch.equal(runs[0], runs[2])
    scheduler.set_seed(seeds[2])
    scheduler.set_timesteps(4)
    assert torch.equal(by_hand(scheduler, tiny.normals(2, 3, 4)), runs[2])


def test_clips_and_thresholds_are_those_of_the_config() -> None:
    F, x = 3.0 * tiny.normals(2, 3, 4), 3.0 * tiny.normals(2, 3, 4, seed=1)
    for entries in (
        {"clip_sample": True, "clip_sample_range": 0.7},
        {"thresholding": True, "dynamic_thresholding_ratio": 0.8, "sample_max_value": 1.5},
        {"thresholding": True},
    ):
        theirs = diffusers.DDIMScheduler(prediction_type="sample", **{"clip_sample": False, **entries})
        mine = scheduler_class().from_config(theirs.config, solver="ddim")
        for scheduler in (theirs, mine):
            scheduler.set_timesteps(4)
        t = mine.timesteps[0]
        expected = theirs.step(F, t, x, use_clipped_model_output=True).prev_sample
        assert torch.allclose(mine.step(F, t, x).prev_sample, expected, atol=1e-5)


@pytest.mark.parametrize("mode", [torch.inference_mode, torch.no_grad, torch.enable_grad])
def test_modes_of_the_caller(mode: Any) -> None:
    scheduler, x = scheduler_class()("dpmpp-2m-sde", seed=0), tiny.normals(2, 3, 4)
    scheduler.set_timesteps(4)
    expected = by_hand(scheduler, x)
    with mode(), torch.autocast("cpu", dtype=torch.bfloat16):
        copied = copy.deepcopy(scheduler)
        copied.set_timesteps(4)
        x = x.clone().requires_grad_(torch.is_grad_enabled())
        for t in copied.timesteps:
            with torch.autocast("cpu", enabled=False):
                F = torch.tanh(x)
            x = copied.step(F, t, x, return_dict=False)[0]
    assert torch.equal(x, expected) and not x.requires_grad
    copied.set_timesteps(4)
    assert torch.equal(by_hand(copied, tiny.normals(2, 3, 4)), expected)


def test_learned_variances_are_dropped() -> None:
    one, two = (scheduler_class()("ddim", variance_type=kind) for kind in ("fixed_small", "learned_range"))
    x, F = tiny.normals(2, 3, 4, 4), tiny.normals(2, 6, 4, 4, seed=1)
    for scheduler in (one, two):
        scheduler.set_timesteps(4)
    assert torch.equal(one.step(F[:, :3], 750, x)[0], two.step(F, 750, x)[0])
    with pytest.raises(ValueError, match=r"returned \(2, 6, 4, 4\)"):
        one.step(F, 500, x)


def test_what_is_refused() -> None:
    cls, x = scheduler_class(), tiny.normals(2, 3, 4)
    for solver in ("dopri5", "ggf", "Dopri5"):
        with pytest.raises(ValueError, match=f"'{solver}' chooses its steps"):
            cls(solver)
    scheduler = cls("heun")
    scheduler.set_timesteps(4)
    with pytest.raises(ValueError, match="eta"):
        scheduler.step(x, 750, x, eta=0.5)
    scheduler.step(x, 750, x)
    with pytest.raises(ValueError, match="next step is 1, at 500"):
        scheduler.step(x, 250, x)
    scheduler.set_timesteps(4)
    scheduler.set_begin_index(1)
    with pytest.raises(ValueError, match="steps begin at 0, 2, 4"):
        scheduler.step(x, 500, x)
    churn = cls("edm-churn")
    churn.set_timesteps(4)
    with pytest.raises(ValueError, match="adds noise before"):
        churn.step(x, churn.timesteps[0], x)


def test_vllm_omni_s_registry_builds_it(tmp_path: Path) -> None:
    """As its registry does: an entry point, from_pretrained of the model's folder, a copy a request."""
    diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0).save_pretrained(tmp_path / "scheduler")
    line = next(v for v in Path("pyproject.toml").read_text().splitlines() if v.startswith('fastscore = "fastscore.ad'))
    name, value = (part.strip().strip('"') for part in line.split("="))
    cls = EntryPoint(name, value, "vllm_omni.schedulers").load()
    built = cls.from_pretrained(tmp_path, subfolder="scheduler", local_files_only=True, revision=None, solver="heun")
    assert set(inspect.signature(built.set_timesteps).parameters) >= {"sigmas", "timesteps"}
    for generator in (None, torch.Generator().manual_seed(1)):
        request, x = copy.deepcopy(built), tiny.normals(1, 3, 4)
        request.set_timesteps(4, device="cpu")
        request.set_begin_index(0)
        for t in request.timesteps:
            kwargs = {} if generator is None else {"generator": generator}
            (x,) = request.step(torch.tanh(x), t, x, return_dict=False, **kwargs)
        assert bool(x.isfinite().all()) and built.step_index is None
    assert (built.config.num_train_timesteps, built.config.shift) == (1000, 3.0)
