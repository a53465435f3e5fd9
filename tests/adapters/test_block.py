"""The loop of a modular pipeline as one run of a Sampler: the states of its own loop, step by step."""

from __future__ import annotations

from importlib import import_module
from typing import Any

import pytest
import tiny_pipelines as tiny
import torch
from torch import Tensor

from fastscore.adapters.diffusers.block import whole_loop

pytestmark = [pytest.mark.slow, pytest.mark.nightly, pytest.mark.filterwarnings("ignore")]
modular: Any = import_module("diffusers.modular_pipelines")


def flux(solver: str) -> tuple[Any, Any, dict[str, Any]]:
    """Return a pipeline of a denoising loop alone, the loop, and what the steps before it would give it."""
    case = tiny.flux()
    steps: Any = import_module("diffusers.modular_pipelines.flux.denoise")
    scheduler = import_module("fastscore").Scheduler.from_config(case.pipe.scheduler.config, solver=solver)
    scheduler.set_timesteps(4, mu=0.5)
    given = {
        "latents": case.start(torch.Generator().manual_seed(3), 2), "timesteps": scheduler.timesteps,
        "num_inference_steps": 4, "guidance": torch.full((2,), 3.5), "prompt_embeds": tiny.normals(2, 5, 8),
        "pooled_prompt_embeds": tiny.normals(2, 8), "txt_ids": torch.zeros(5, 3),
        "img_ids": case.pipe._prepare_latent_image_ids(1, 4, 4, "cpu", torch.float32),
    }  # fmt: skip
    return (case.pipe.transformer, scheduler), steps.FluxDenoiseStep(), given


def sdxl(solver: str) -> tuple[Any, Any, dict[str, Any]]:
    case = tiny.sdxl()
    steps: Any = import_module("diffusers.modular_pipelines.stable_diffusion_xl.denoise")
    scheduler = import_module("fastscore").Scheduler.from_config(case.pipe.scheduler.config, solver=solver)
    scheduler.set_timesteps(4)
    ids = torch.tensor([[8.0, 8.0, 0.0, 0.0, 8.0, 8.0]]).expand(2, -1)
    given = {
        "latents": tiny.normals(2, 4, 8, 8), "timesteps": scheduler.timesteps, "num_inference_steps": 4,
        "generator": [torch.Generator().manual_seed(k) for k in (1, 2)],
    }  # fmt: skip
    fields = {
        "prompt_embeds": tiny.normals(2, 5, 8), "negative_prompt_embeds": tiny.normals(2, 5, 8, seed=1),
        "pooled_prompt_embeds": tiny.normals(2, 8), "negative_pooled_prompt_embeds": tiny.normals(2, 8, seed=1),
        "add_time_ids": ids, "negative_add_time_ids": ids,
    }  # fmt: skip
    given["denoiser_input_fields"] = fields
    return (case.pipe.unet, scheduler), steps.StableDiffusionXLDenoiseStep(), given


def run(block: Any, parts: Any, given: dict[str, Any]) -> Tensor:
    network, scheduler = parts
    blocks = modular.SequentialPipelineBlocks.from_blocks_dict({"denoise": block})
    pipe = blocks.init_pipeline()
    pipe.update_components(scheduler=scheduler, **{"unet" if hasattr(pipe, "unet") else "transformer": network})
    return pipe(**given, output="latents")


def again(scheduler: Any, make: Any) -> None:
    scheduler.set_timesteps(4, **({"mu": 0.5} if make is flux else {}))


@pytest.mark.parametrize("make", [flux, sdxl])
@pytest.mark.parametrize("solver", ["dpmpp-2m", "dpmpp-2m-sde", "heun"])
def test_whole_loop_equals_the_loop_of_steps(make: Any, solver: str) -> None:
    (network, scheduler), block, given = make(solver)
    scheduler.set_seed([1, 2])
    expected = run(block, (network, scheduler), given)
    again(scheduler, make)
    whole = whole_loop(block)
    scheduler.step = None  # nobody calls it
    got = run(whole, (network, scheduler), given)
    assert float((got - given["latents"]).abs().max()) > 0.1
    assert float((got - expected).norm() / expected.norm()) < 1e-5


def test_a_second_call_has_the_sampler_of_the_first() -> None:
    parts, block, given = sdxl("dpmpp-2m")
    whole, fields = whole_loop(block), given["denoiser_input_fields"]
    blocks = modular.SequentialPipelineBlocks.from_blocks_dict({"denoise": whole})
    pipe = blocks.init_pipeline()
    pipe.update_components(scheduler=parts[1], unet=parts[0])
    loop, samplers, results = pipe._blocks.sub_blocks["denoise"], [], []
    other = given | {"denoiser_input_fields": fields | {"prompt_embeds": tiny.normals(2, 5, 8, seed=9)}}
    for inputs in (given, other, given):
        again(parts[1], sdxl)
        results.append(pipe(**inputs))
        samplers.append(loop._sampler)
    embeds = [state.get("prompt_embeds") for state in results]
    assert not torch.equal(embeds[0], embeds[1])  # nor is what a caller gets overwritten by the next call
    results = [state.get("latents") for state in results]
    assert samplers[0] is samplers[1] is samplers[2]
    assert torch.equal(results[0], results[2]) and not torch.equal(results[0], results[1])
    assert torch.equal(other["denoiser_input_fields"]["prompt_embeds"], tiny.normals(2, 5, 8, seed=9))
    again(parts[1], sdxl)
    assert torch.allclose(results[1], run(block, parts, other), atol=1e-5)
    again(parts[1], sdxl)
    pipe(**given | {"num_inference_steps": 5}, output="latents")  # a guider counts them
    assert loop._sampler is not samplers[0]


def test_what_is_refused() -> None:
    steps: Any = import_module("diffusers.modular_pipelines.stable_diffusion_xl.denoise")
    with pytest.raises(ValueError, match="image_latents"):
        whole_loop(steps.StableDiffusionXLInpaintDenoiseStep())
    parts, block, given = flux("heun")
    with pytest.raises(ValueError, match="graph = 'auto'"):
        whole_loop(block, graph="auto")
    theirs = tiny.diffusers.FlowMatchEulerDiscreteScheduler()
    with pytest.raises(ValueError, match="FlowMatchEulerDiscreteScheduler; give it one of fastscore"):
        run(whole_loop(block), (parts[0], theirs), given)
