"""Pipelines of diffusers with tiny random networks, and for each the network that its loop makes of them.

Each case is (pipe, run, net, shape): ``run(**changes)`` returns the latents of a run that starts from ``start``, and
``net(u, c_noise, cond)`` is what the pipeline evaluates at a state u, guidance included.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from typing import Any

import others
import torch
from torch import Tensor

diffusers: Any = others.library("diffusers")

register_to_config = import_module("diffusers.configuration_utils").register_to_config
STEPS, BATCH = 4, 2
SIZE = {"output_type": "latent", "height": 8, "width": 8}


@dataclass
class Case:
    """A pipeline, how it is run, and what it evaluates.

    Attributes:
        pipe: its scheduler is to be replaced.
        run: (generators, steps) -> final state, [N, *shape].
        net: (u, c_noise, cond) -> what the pipeline hands to step.
        start: the state that a run with these generators starts from.
        copies: how many states a step has for an image.
    """

    pipe: Any
    run: Callable[..., Tensor]
    net: Callable[[Tensor, Tensor, None], Tensor]
    start: Callable[[Any, int], Tensor]
    copies: int = 1


def normals(*shape: int, seed: int = 0) -> Tensor:
    return torch.empty(shape).normal_(generator=torch.Generator().manual_seed(seed))


def drawn(shape: tuple[int, ...]) -> Callable[[Any, int], Tensor]:
    """Return the function that draws starting states of a shape as pipelines do."""
    utils: Any = import_module("diffusers.utils.torch_utils")
    return lambda generator, n: utils.randn_tensor((n, *shape), generator=generator)


def quiet(pipe: Any) -> Any:
    pipe.set_progress_bar_config(disable=True)
    return pipe


def unet2d() -> Any:
    torch.manual_seed(0)
    return diffusers.UNet2DModel(
        sample_size=8, in_channels=3, out_channels=3, layers_per_block=1, block_out_channels=(8, 16), norm_num_groups=4,
        down_block_types=("DownBlock2D", "AttnDownBlock2D"), up_block_types=("AttnUpBlock2D", "UpBlock2D"),
        attention_head_dim=8,
    ).eval()  # fmt: skip


class Kept:
    """A scheduler's step that keeps the last state, of pipelines that return images only."""

    def __init__(self, scheduler: Any) -> None:
        self.step, scheduler.step = scheduler.step, self
        self.last = torch.empty(0)

    def __call__(self, model_output: Tensor, t: Any, sample: Tensor, generator: Any = None, **rest: Any) -> Any:
        out = self.step(model_output, t, sample, generator=generator, **rest)
        self.last = out.prev_sample
        return out


def ddpm(kind: str = "DDPM") -> Case:
    net = unet2d()
    scheduler = getattr(diffusers, f"{kind}Scheduler")(beta_schedule="squaredcos_cap_v2", clip_sample=False)
    pipe = quiet(getattr(diffusers, f"{kind}Pipeline")(net, scheduler))

    def run(generator: Any, n: int = BATCH, steps: int = STEPS) -> Tensor:
        kept = Kept(pipe.scheduler)
        pipe(batch_size=n, generator=generator, num_inference_steps=steps, output_type="np")
        del pipe.scheduler.step
        return kept.last

    return Case(pipe, run, lambda u, t, cond: net(u, t).sample, drawn((3, 8, 8)))


def ddim() -> Case:
    return ddpm("DDIM")


def dit() -> Case:
    torch.manual_seed(0)
    net = diffusers.DiTTransformer2DModel(
        num_attention_heads=2, attention_head_dim=4, in_channels=4, out_channels=8, num_layers=1, norm_num_groups=4,
        sample_size=8, patch_size=2, num_embeds_ada_norm=1000,
    ).eval()  # fmt: skip
    vae = diffusers.AutoencoderKL(block_out_channels=(4,), norm_num_groups=2, latent_channels=4).eval()
    pipe = quiet(diffusers.DiTPipeline(net, vae, diffusers.DDIMScheduler(clip_sample=False)))
    labels, scale = [3, 7], 2.0

    def run(generator: Any, n: int = BATCH, steps: int = STEPS) -> Tensor:
        kept = Kept(pipe.scheduler)
        pipe(class_labels=labels[:n], generator=generator, num_inference_steps=steps, guidance_scale=scale)
        del pipe.scheduler.step
        return kept.last[:n]

    def network(u: Tensor, t: Tensor, cond: None) -> Tensor:
        given = torch.tensor(labels[: len(u)]), torch.full((len(u),), 1000)
        F, F0 = (net(u, timestep=t, class_labels=c).sample[:, :4] for c in given)
        return F0 + scale * (F - F0)

    return Case(pipe, run, network, drawn((4, 8, 8)), copies=2)


def unet_condition(**more: Any) -> Any:
    torch.manual_seed(0)
    return diffusers.UNet2DConditionModel(
        sample_size=8, in_channels=4, out_channels=4, layers_per_block=1, block_out_channels=(8, 16), norm_num_groups=4,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"), up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        attention_head_dim=2, cross_attention_dim=8, **more,
    ).eval()  # fmt: skip


def none_but(**parts: Any) -> dict[str, Any]:
    """Return the parts of a Stable Diffusion pipeline, most of them None."""
    names = ("vae", "text_encoder", "tokenizer", "unet", "scheduler", "safety_checker", "feature_extractor")
    return dict.fromkeys(names) | {"requires_safety_checker": False} | parts


def sd15(pipeline: str = "StableDiffusionPipeline", **more: Any) -> Case:
    net, scale = unet_condition(), 3.0
    scheduler = diffusers.PNDMScheduler(
        beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", steps_offset=1, set_alpha_to_one=False,
        skip_prk_steps=True,
    )  # fmt: skip
    torch.manual_seed(1)
    vae = diffusers.AutoencoderKL(block_out_channels=(4,), norm_num_groups=2, latent_channels=4).eval()
    parts = none_but(vae=vae, unet=net, scheduler=scheduler)
    pipe = quiet(getattr(diffusers, pipeline)(**parts))
    prompt, null = normals(1, 5, 8), normals(1, 5, 8, seed=1)

    def run(generator: Any, n: int = BATCH, steps: int = STEPS, **more: Any) -> Tensor:
        arguments = {"prompt_embeds": prompt.expand(n, -1, -1), "negative_prompt_embeds": null.expand(n, -1, -1)}
        settings = {"num_inference_steps": steps, "guidance_scale": scale, "output_type": "latent"}
        size = {} if "image" in more else {"height": 8, "width": 8}
        return pipe(**arguments, **settings, generator=generator, **size, **more).images

    def network(u: Tensor, t: Tensor, cond: None) -> Tensor:
        F, F0 = (net(u, t, e.expand(len(u), -1, -1)).sample for e in (prompt, null))
        return F0 + scale * (F - F0)

    return Case(pipe, run, network, drawn((4, 8, 8)))


def prompted(pipe: Any, prompt: Tensor, pooled: Tensor, generator: Any, n: int, steps: int, **more: Any) -> Tensor:
    """Return latents of a pipeline that takes embeddings of a prompt, one for all images, without guidance."""
    arguments = {"prompt_embeds": prompt.expand(n, -1, -1), "pooled_prompt_embeds": pooled.expand(n, -1)}
    settings = {"num_inference_steps": steps, "guidance_scale": 1.0, **SIZE, **more}
    return pipe(**arguments, **settings, generator=generator).images


def sdxl() -> Case:
    net = unet_condition(
        addition_embed_type="text_time", addition_time_embed_dim=4, projection_class_embeddings_input_dim=32
    )
    scheduler = diffusers.EulerDiscreteScheduler(
        beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", steps_offset=1, timestep_spacing="leading"
    )
    vae = diffusers.AutoencoderKL(block_out_channels=(4,), norm_num_groups=2, latent_channels=4).eval()
    none = dict.fromkeys(("text_encoder", "text_encoder_2", "tokenizer", "tokenizer_2"))
    pipe = quiet(diffusers.StableDiffusionXLPipeline(vae=vae, unet=net, scheduler=scheduler, **none))
    prompt, pooled = normals(1, 5, 8), normals(1, 8)

    def run(generator: Any, n: int = BATCH, steps: int = STEPS, **more: Any) -> Tensor:
        return prompted(pipe, prompt, pooled, generator, n, steps, **more)

    def network(u: Tensor, t: Tensor, cond: None) -> Tensor:
        ids = torch.tensor([[8.0, 8.0, 0.0, 0.0, 8.0, 8.0]]).expand(len(u), -1)
        added = {"text_embeds": pooled.expand(len(u), -1), "time_ids": ids}
        return net(u, t, prompt.expand(len(u), -1, -1), added_cond_kwargs=added).sample

    return Case(pipe, run, network, drawn((4, 8, 8)))


def sd3() -> Case:
    torch.manual_seed(0)
    net = diffusers.SD3Transformer2DModel(
        sample_size=8, patch_size=2, in_channels=4, num_layers=1, attention_head_dim=8, num_attention_heads=2,
        joint_attention_dim=8, caption_projection_dim=16, pooled_projection_dim=8, out_channels=4,
        pos_embed_max_size=8,
    ).eval()  # fmt: skip
    vae = diffusers.AutoencoderKL(block_out_channels=(4,), norm_num_groups=2, latent_channels=4).eval()
    scheduler = diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0)
    none = {f"{part}{n}": None for part in ("text_encoder", "tokenizer") for n in ("", "_2", "_3")}
    pipe = quiet(diffusers.StableDiffusion3Pipeline(transformer=net, vae=vae, scheduler=scheduler, **none))
    prompt, pooled = normals(1, 5, 8), normals(1, 8)

    def run(generator: Any, n: int = BATCH, steps: int = STEPS, **more: Any) -> Tensor:
        return prompted(pipe, prompt, pooled, generator, n, steps, **more)

    def network(u: Tensor, t: Tensor, cond: None) -> Tensor:
        embeds = {
            "encoder_hidden_states": prompt.expand(len(u), -1, -1),
            "pooled_projections": pooled.expand(len(u), -1),
        }
        return net(hidden_states=u, timestep=1000.0 * t, **embeds).sample

    return Case(pipe, run, network, drawn((4, 8, 8)))


def flux() -> Case:
    torch.manual_seed(0)
    net = diffusers.FluxTransformer2DModel(
        patch_size=1, in_channels=16, num_layers=1, num_single_layers=1, attention_head_dim=8, num_attention_heads=2,
        joint_attention_dim=8, pooled_projection_dim=8, axes_dims_rope=(2, 2, 4), guidance_embeds=True,
    ).eval()  # fmt: skip
    vae = diffusers.AutoencoderKL(block_out_channels=(4,), norm_num_groups=2, latent_channels=4).eval()
    scheduler = diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0, use_dynamic_shifting=True)
    none = dict.fromkeys(("text_encoder", "text_encoder_2", "tokenizer", "tokenizer_2"))
    pipe = quiet(diffusers.FluxPipeline(transformer=net, vae=vae, scheduler=scheduler, **none))
    prompt, pooled = normals(1, 5, 8), normals(1, 8)
    images = pipe._prepare_latent_image_ids(1, 4, 4, "cpu", torch.float32)

    def run(generator: Any, n: int = BATCH, steps: int = STEPS, **more: Any) -> Tensor:
        return prompted(pipe, prompt, pooled, generator, n, steps, **{"guidance_scale": 3.5, **more})

    def network(u: Tensor, t: Tensor, cond: None) -> Tensor:
        embeds = {
            "encoder_hidden_states": prompt.expand(len(u), -1, -1),
            "pooled_projections": pooled.expand(len(u), -1),
        }
        tokens = {"txt_ids": torch.zeros(5, 3), "img_ids": images, "guidance": torch.full((len(u),), 3.5)}
        return net(hidden_states=u, timestep=t, **embeds, **tokens).sample

    def start(generator: Any, n: int) -> Tensor:
        return pipe._pack_latents(drawn((4, 8, 8))(generator, n), n, 4, 8, 8)

    return Case(pipe, run, network, start)


def ltx() -> Case:
    torch.manual_seed(0)
    net = diffusers.LTXVideoTransformer3DModel(
        in_channels=8, out_channels=8, patch_size=1, patch_size_t=1, num_attention_heads=2, attention_head_dim=8,
        cross_attention_dim=16, num_layers=1, caption_channels=8,
    ).eval()  # fmt: skip
    scheduler = diffusers.FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True, shift_terminal=0.1)
    none = dict.fromkeys(("vae", "text_encoder", "tokenizer"))
    pipe = quiet(diffusers.LTXPipeline(scheduler=scheduler, transformer=net, **none))
    prompt, mask, start = normals(1, 4, 8), torch.ones(1, 4, dtype=torch.int64), drawn((4, 8))

    def run(generator: Any, n: int = BATCH, steps: int = STEPS) -> Tensor:
        text = {"prompt_embeds": prompt.expand(n, -1, -1), "prompt_attention_mask": mask.expand(n, -1)}
        text |= {f"negative_{name}": value for name, value in text.items()}
        size = {"height": 64, "width": 64, "num_frames": 1, "latents": start(generator, n), "output_type": "latent"}
        return pipe(**text, **size, guidance_scale=1.0, num_inference_steps=steps).frames

    def network(u: Tensor, t: Tensor, cond: None) -> Tensor:
        text = {
            "encoder_hidden_states": prompt.expand(len(u), -1, -1),
            "encoder_attention_mask": mask.expand(len(u), -1),
        }
        size = {"num_frames": 1, "height": 2, "width": 2, "rope_interpolation_scale": (8 / 25, 32, 32)}
        return net(hidden_states=u, timestep=1000.0 * t, **text, **size).sample

    return Case(pipe, run, network, start)


def wan() -> Case:
    torch.manual_seed(0)
    net = diffusers.WanTransformer3DModel(
        patch_size=(1, 2, 2), num_attention_heads=2, attention_head_dim=12, in_channels=4, out_channels=4, text_dim=8,
        freq_dim=16, ffn_dim=16, num_layers=1, cross_attn_norm=True, qk_norm="rms_norm_across_heads",
        rope_max_seq_len=32,
    ).eval()  # fmt: skip
    scheduler = diffusers.UniPCMultistepScheduler(
        prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=3.0
    )
    none = dict.fromkeys(("vae", "text_encoder", "tokenizer"))
    pipe = quiet(diffusers.WanPipeline(scheduler=scheduler, transformer=net, **none))
    prompt, null, scale = normals(1, 4, 8), normals(1, 4, 8, seed=1), 3.0

    def run(generator: Any, n: int = BATCH, steps: int = STEPS) -> Tensor:
        text = {"prompt_embeds": prompt.expand(n, -1, -1), "negative_prompt_embeds": null.expand(n, -1, -1)}
        size = {"height": 64, "width": 64, "num_frames": 1, "output_type": "latent"}
        return pipe(**text, **size, generator=generator, guidance_scale=scale, num_inference_steps=steps).frames

    def network(u: Tensor, t: Tensor, cond: None) -> Tensor:
        texts = (e.expand(len(u), -1, -1) for e in (prompt, null))
        F, F0 = (net(hidden_states=u, timestep=1000.0 * t, encoder_hidden_states=e).sample for e in texts)
        return F0 + scale * (F - F0)

    return Case(pipe, run, network, drawn((4, 1, 8, 8)))


CASES = {
    "ddpm": ddpm,
    "ddim": ddim,
    "dit": dit,
    "sd15": sd15,
    "sdxl": sdxl,
    "sd3": sd3,
    "flux": flux,
    "ltx": ltx,
    "wan": wan,
}
