"""Small networks of diffusers with random weights, and what they are told."""

from __future__ import annotations

from typing import Any

import numpy as np
import others
import torch
from torch import Tensor

diffusers: Any = others.library("diffusers")
N = 3


def weighted(net: Any) -> Any:
    """Return a network in eval mode, all its weights random: some are made as zeros, which would hide a mistake."""
    rng = np.random.default_rng(1)
    for p in net.parameters():
        p.data = torch.from_numpy(0.2 * rng.standard_normal(p.shape)).to(p.dtype)
    return net.eval()


def unet(**more: Any) -> Any:
    blocks = {"down_block_types": ("DownBlock2D", "AttnDownBlock2D"), "up_block_types": ("AttnUpBlock2D", "UpBlock2D")}
    sizes = {"sample_size": 8, "layers_per_block": 1, "block_out_channels": (8, 16), "norm_num_groups": 4}
    return weighted(diffusers.UNet2DModel(**{**sizes, **blocks, "attention_head_dim": 4, **more}))


def unet_condition(**more: Any) -> Any:
    blocks = {"down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D")}
    blocks["up_block_types"] = ("CrossAttnUpBlock2D", "UpBlock2D")
    sizes = {"sample_size": 8, "layers_per_block": 1, "block_out_channels": (8, 16), "norm_num_groups": 4}
    return weighted(
        diffusers.UNet2DConditionModel(**{**sizes, **blocks, "attention_head_dim": 4, "cross_attention_dim": 8, **more})
    )


def dit() -> Any:
    sizes = {"num_attention_heads": 2, "attention_head_dim": 4, "num_layers": 1, "sample_size": 8}
    return weighted(
        diffusers.DiTTransformer2DModel(
            in_channels=4, out_channels=8, num_embeds_ada_norm=10, norm_num_groups=4, **sizes
        )
    )


def sd3() -> Any:
    sizes = {"num_attention_heads": 2, "attention_head_dim": 4, "num_layers": 1, "sample_size": 8, "patch_size": 2}
    widths = {"joint_attention_dim": 8, "caption_projection_dim": 8, "pooled_projection_dim": 10}
    net = diffusers.SD3Transformer2DModel(in_channels=4, out_channels=4, pos_embed_max_size=8, **sizes, **widths)
    return weighted(net)


def flux(guidance: bool) -> Any:
    sizes = {"num_attention_heads": 2, "attention_head_dim": 16, "num_layers": 1, "num_single_layers": 1}
    widths = {"joint_attention_dim": 8, "pooled_projection_dim": 10, "axes_dims_rope": (4, 4, 8)}
    net = diffusers.FluxTransformer2DModel(patch_size=1, in_channels=16, guidance_embeds=guidance, **sizes, **widths)
    return weighted(net)


def vae(**more: Any) -> Any:
    blocks = {"down_block_types": ("DownEncoderBlock2D",) * 2, "up_block_types": ("UpDecoderBlock2D",) * 2}
    sizes = {"block_out_channels": (4, 8), "latent_channels": 4, "norm_num_groups": 2, "sample_size": 16}
    torch.manual_seed(0)
    return diffusers.AutoencoderKL(in_channels=3, out_channels=3, **{**sizes, **blocks, **more}).eval()


def scheduler(name: str, **config: Any) -> Any:
    return getattr(diffusers, f"{name}Scheduler")(**config)


def normals(shape: tuple[int, ...], dtype: torch.dtype = torch.float32, draws: int = 40) -> Tensor:
    z = np.random.default_rng(3).standard_normal((draws, N, *shape))
    return torch.from_numpy(z).to(dtype)


def given() -> dict[str, Tensor]:
    """Return embeddings as a text encoder makes them, [N, ..], and those of an empty prompt under ``no_``."""
    rng = np.random.default_rng(5)

    def normal(*shape: int) -> Tensor:
        return torch.from_numpy(rng.standard_normal(shape)).float()

    return {"text": normal(N, 7, 8), "no_text": normal(7, 8), "pooled": normal(N, 10), "no_pooled": normal(10)}


def same(there: Tensor, here: Tensor, tolerance: float = 1e-5) -> None:
    assert there.isfinite().all() and float(there.std()) > 0.0
    error = float((there - here).abs().max() / there.abs().max())
    assert error < tolerance, f"{error:.1e}"
