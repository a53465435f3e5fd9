"""Networks of diffusers sampled here, against their schedulers' own loops on the same normals."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import diffusers_runs as runs
import numpy as np
import pytest
import torch
from diffusers_nets import N, diffusers, dit, flux, given, normals, same, scheduler, sd3, unet, unet_condition, weighted
from torch import Tensor

import fastscore as fs
from fastscore.adapters import from_diffusers
from fastscore.adapters.diffusers.samplers import repeated

pytestmark = [
    pytest.mark.slow,
    pytest.mark.nightly,
    pytest.mark.filterwarnings("ignore::UserWarning", "ignore::FutureWarning"),
]
STEPS = 7
SHAPES = {"image": (3, 8, 8), "latent": (4, 8, 8)}


def check(
    net: Any, their: Any, call: Callable[[Tensor, Tensor], Tensor], size: tuple[int, ...], dtype: torch.dtype,
    told: dict[str, Any] | None = None, timing: dict[str, Any] | None = None, **more: Any,
) -> None:  # fmt: skip
    """Check that three lines of code equal the source's loop around ``call``, its network."""
    z, timing = normals(size, dtype), timing or {}
    steps = None if "sigmas" in timing else STEPS
    there = runs.loop(their, call, z, steps, timing)
    model, settings = from_diffusers(net, their, steps=steps, **timing, **more)
    sampler = fs.Sampler(model, batch=N, dtype=dtype, **settings)
    here = sampler.run(range(N), noise=z, **(told or {}))
    same(there, here, 1e-9 if dtype == torch.float64 else 1e-5)


def guided(w: float, net: Callable[[Tensor], Tensor], u: Tensor) -> Tensor:
    """Return what pipelines make of the doubled batch, [unconditional, conditional]."""
    none, told = net(torch.cat([u, u])).chunk(2)
    return none + w * (told - none)


@pytest.mark.parametrize("name, kind, config", list(runs.cases(runs.CONFIGS)))
def test_scheduler_live(name, kind, config):
    own, steps, timing, eta = runs.asked(config)
    live = runs.made(kind, own)
    there = runs.loop(live, runs.network, runs.noise(), steps, timing, eta)
    same(there, runs.ours(repeated(live, steps, eta, **timing), runs.noise()), 1e-5)
    same(there, torch.tensor(runs.recorded()["runs"][name]["end"], dtype=there.dtype).view_as(there), 1e-6)


@pytest.mark.parametrize("name, kind, config", list(runs.cases(runs.REFUSED)))
def test_refused_by_name(name, kind, config):
    settings, word = config
    own, steps, timing, eta = runs.asked(settings)
    with pytest.raises(ValueError, match=word) as refused:
        repeated(scheduler(kind.removesuffix("Scheduler"), **own), steps, eta, **timing)
    assert kind in str(refused.value) and any(w in str(refused.value) for w in ("nearest", "solver="))


@pytest.mark.parametrize("name", ["DDPM", "DDIM", "PNDM"])
def test_unet_in_float64(name):
    net, more = unet().double(), {"skip_prk_steps": True} if name == "PNDM" else {}
    their = runs.made(f"{name}Scheduler", more)
    check(net, their, lambda u, t: net(u, t).sample, SHAPES["image"], torch.float64)


@pytest.mark.parametrize("name", ["DDIM", "HeunDiscrete", "UniPCMultistep"])
def test_unet_with_labels(name):
    net, labels = unet(num_class_embeds=5), torch.tensor([0, 3, 4])
    check(
        net,
        scheduler(name),
        lambda u, t: net(u, t, class_labels=labels).sample,
        SHAPES["image"],
        torch.float32,
        {"labels": labels},
    )


def test_learned_variance_is_left_out():
    net = unet(out_channels=6)
    their = scheduler("DDIM", clip_sample=False)
    check(net, their, lambda u, t: net(u, t).sample[:, :3], SHAPES["image"], torch.float32)


@pytest.mark.parametrize(
    "their",
    [
        ("PNDM", {"skip_prk_steps": True, "steps_offset": 1, **runs.SD}),
        ("EulerAncestralDiscrete", {"timestep_spacing": "leading", **runs.SD}),
        ("DPMSolverMultistep", {"use_karras_sigmas": True, "algorithm_type": "sde-dpmsolver++", **runs.SD}),
        ("EulerDiscrete", runs.ZERO_SNR),
    ],
)
def test_stable_diffusion_with_guidance(their):
    net, told = unet_condition(), given()
    text = torch.cat([told["no_text"].expand(N, -1, -1), told["text"]])

    def call(u: Tensor, t: Tensor) -> Tensor:
        return guided(4.0, lambda uu: net(uu, t[0], text).sample, u)

    cond, null = {"encoder_hidden_states": told["text"]}, {"encoder_hidden_states": told["no_text"]}
    check(
        net, scheduler(their[0], **their[1]), call, SHAPES["latent"], torch.float32, {"cond": cond},
        guidance_scale=4.0, null=null,
    )  # fmt: skip


@pytest.mark.parametrize("name", ["EulerDiscrete", "DPMSolverMultistep", "UniPCMultistep"])
def test_sdxl_with_guidance(name):
    ids = {"addition_time_embed_dim": 4, "projection_class_embeddings_input_dim": 6 * 4 + 10}
    net, told = unet_condition(addition_embed_type="text_time", **ids), given()
    sizes = torch.tensor([64.0, 64.0, 0.0, 0.0, 64.0, 64.0])
    text = torch.cat([told["no_text"].expand(N, -1, -1), told["text"]])
    added = {"text_embeds": torch.cat([told["no_pooled"].expand(N, -1), told["pooled"]])}
    added["time_ids"] = sizes.expand(2 * N, -1)

    def call(u: Tensor, t: Tensor) -> Tensor:
        return guided(3.0, lambda uu: net(uu, t[0], text, added_cond_kwargs=added).sample, u)

    cond = {"encoder_hidden_states": told["text"], "text_embeds": told["pooled"], "time_ids": sizes}
    null = {"encoder_hidden_states": told["no_text"], "text_embeds": told["no_pooled"]}  # the sizes stay
    check(
        net, scheduler(name, **runs.SD), call, SHAPES["latent"], torch.float32, {"cond": cond},
        guidance_scale=3.0, null=null,
    )  # fmt: skip


@pytest.mark.parametrize("name", ["DDPM", "DDIM", "DPMSolverMultistep", "EulerDiscrete"])
def test_dit_with_guidance(name):
    net, labels = dit(), torch.tensor([1, 2, 9])
    both = torch.cat([torch.full((N,), 10), labels])

    def call(u: Tensor, t: Tensor) -> Tensor:
        return guided(3.0, lambda uu: net(uu, timestep=t[:1].expand(2 * N), class_labels=both).sample[:, :4], u)

    more = {"clip_sample": False} if name == "DDIM" else {}
    their = scheduler(name, **more)
    check(net, their, call, SHAPES["latent"], torch.float32, {"labels": labels}, guidance_scale=3.0)


@pytest.mark.parametrize(
    "their",
    [
        ("FlowMatchEulerDiscrete", {"shift": 3.0}),
        ("FlowMatchHeunDiscrete", {"shift": 3.0}),
        ("UniPCMultistep", runs.FLOW),
        ("DPMSolverMultistep", runs.FLOW),
    ],
)
def test_sd3_with_guidance(their):
    net, told = sd3(), given()
    text = torch.cat([told["no_text"].expand(N, -1, -1), told["text"]])
    pooled = torch.cat([told["no_pooled"].expand(N, -1), told["pooled"]])

    def call(u: Tensor, t: Tensor) -> Tensor:
        return guided(3.0, lambda uu: net(uu, text, pooled, t[:1].expand(2 * N)).sample, u)

    cond = {"encoder_hidden_states": told["text"], "pooled_projections": told["pooled"]}
    null = {"encoder_hidden_states": told["no_text"], "pooled_projections": told["no_pooled"]}
    check(
        net, scheduler(their[0], **their[1]), call, SHAPES["latent"], torch.float32, {"cond": cond},
        guidance_scale=3.0, null=null,
    )  # fmt: skip


@pytest.mark.parametrize("guidance", [True, False])
@pytest.mark.parametrize("name", ["FlowMatchEulerDiscrete", "FlowMatchHeunDiscrete", "UniPCMultistep"])
def test_flux(guidance, name):
    """Tokens of 2 x 2 latents, places beside, labels in 0 .. 1, and the guidance as a number: one evaluation."""
    from diffusers.pipelines.flux.pipeline_flux import FluxPipeline

    net, told = flux(guidance), given()
    places = FluxPipeline._prepare_latent_image_ids(N, 4, 4, "cpu", torch.float32)

    def call(u: Tensor, t: Tensor) -> Tensor:
        out = net(
            FluxPipeline._pack_latents(u, N, 4, 8, 8), told["text"], told["pooled"], t / 1000, places,
            torch.zeros(7, 3), guidance=torch.full((N,), 2.5) if guidance else None,
        ).sample  # fmt: skip
        return FluxPipeline._unpack_latents(out, 64, 64, 8)

    dynamic = name == "FlowMatchEulerDiscrete"
    config = runs.FLOW if name == "UniPCMultistep" else {"use_dynamic_shifting": True} if dynamic else {}
    timing = {"sigmas": np.linspace(1.0, 1.0 / STEPS, STEPS), "mu": 0.7} if dynamic else {}
    cond = {"encoder_hidden_states": told["text"], "pooled_projections": told["pooled"]}
    more = {"guidance_scale": 2.5} if guidance else {}
    check(
        net, scheduler(name, **config), call, SHAPES["latent"], torch.float32, {"cond": cond},
        shape=SHAPES["latent"], timing=timing, **more,
    )  # fmt: skip


def test_networks_that_take_labels_as_they_are():
    sizes = {"num_attention_heads": 2, "attention_head_dim": 12, "text_dim": 8, "freq_dim": 8, "ffn_dim": 16}
    wan = weighted(diffusers.WanTransformer3DModel(in_channels=4, out_channels=4, num_layers=1, **sizes))
    text, video = given()["text"], (4, 3, 8, 8)
    check(
        wan, scheduler("UniPCMultistep", **runs.FLOW), lambda u, t: wan(u, t, text).sample, video, torch.float32,
        {"cond": {"encoder_hidden_states": text}}, shape=video, conditions={"encoder_hidden_states": (None, 8)},
    )  # fmt: skip
    blocks = {"down_block_types": ("DownBlock1D",) * 2, "up_block_types": ("UpBlock1D",) * 2}
    line = diffusers.UNet1DModel(sample_size=32, in_channels=3, out_channels=3, block_out_channels=(32, 32), **blocks)
    line = weighted(line)
    check(line, scheduler("DDIM"), lambda u, t: line(u, t).sample, (3, 32), torch.float32)


def test_any_transformer_by_its_signature():
    class Custom(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear = torch.nn.Linear(4, 4)

        def forward(self, hidden_states, timestep, caption, return_dict=True):
            out = hidden_states * caption.mean((1, 2))[:, None, None, None] + timestep[:, None, None, None] / 1000
            return (out,)

    net, text = Custom(), given()["text"]
    their = scheduler("FlowMatchEulerDiscrete")
    with pytest.raises(ValueError, match="needs caption"):
        from_diffusers(net, their, shape=SHAPES["latent"])
    check(
        net, their, lambda u, t: net(u, t, text)[0], SHAPES["latent"], torch.float32, {"cond": {"caption": text}},
        shape=SHAPES["latent"], conditions={"caption": (None, 8)},
    )  # fmt: skip
