"""Autoencoders of diffusers as decoders here: scale and shift of the latents, tiles, images in micro-batches."""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from fastscore.model.decoder import Decoder

PROBE = 8  # of a side, from which the ratio of image and latent is read


class Latents(nn.Module):
    """An autoencoder between the latents that a network was trained on and images.

        image = decode(z std / scaling_factor + mean),   z = (encode(image) - mean) scaling_factor / std

    with its config's latents_mean and latents_std, or mean = shift_factor and std = 1; encode is the posterior's mode.

    Args:
        vae: the autoencoder; its weights are used where and as they are.
        tiled: decode in overlapping tiles.

    Raises:
        ValueError: tiles of an autoencoder that has none.
    """

    vae: Any

    def __init__(self, vae: nn.Module, tiled: bool = False) -> None:
        super().__init__()
        config: Any = getattr(vae, "config", {})
        if tiled and not hasattr(vae, "use_tiling"):
            raise ValueError(f"tiled: {type(vae).__name__} does not decode in tiles")
        self.vae, self.tiled = vae, tiled
        self.scale = float(config.get("scaling_factor") or 1.0)
        self.shift = float(config.get("shift_factor") or 0.0)
        self.mean, self.std = (config.get(f"latents_{name}") for name in ("mean", "std"))

    def forward(self, z: Tensor) -> Tensor:
        """Return the images of latents, in -1 .. 1 but for what the autoencoder overshoots."""
        with self._tiles():
            return self.vae.decode(self._raw(self._like(z)), return_dict=False)[0]

    def encode(self, images: Tensor) -> Tensor:
        """Return the latents of images."""
        found = self.vae.encode(self._like(images))
        raw = found.latents if hasattr(found, "latents") else found.latent_dist.mode()
        if self.mean is None or self.std is None:
            return (raw - self.shift) * self.scale
        return (raw - self._channels(self.mean, raw)) * self.scale / self._channels(self.std, raw)

    def _raw(self, z: Tensor) -> Tensor:
        if self.mean is None or self.std is None:
            return z / self.scale + self.shift
        return z * self._channels(self.std, z) / self.scale + self._channels(self.mean, z)

    def _like(self, x: Tensor) -> Tensor:
        weight = next(self.vae.parameters(), x)
        return x.to(weight.device, weight.dtype)

    @staticmethod
    def _channels(values: Any, like: Tensor) -> Tensor:
        return like.new_tensor(values).reshape(-1, *[1] * (like.ndim - 2))

    @contextmanager
    def _tiles(self) -> Generator[None]:
        """Switch the autoencoder's tiles on for one call, which are off or on as its owner has them."""
        if not self.tiled:
            yield
            return
        before = self.vae.use_tiling
        self.vae.use_tiling = True
        try:
            yield
        finally:
            self.vae.use_tiling = before


def latents_of(vae: Any, shape: tuple[int, ...], batch: int = 1, tiled: bool = False) -> Decoder:
    """Return the decoder of an autoencoder, or a Decoder as it is.

    Args:
        shape: of a latent, [C, H, W]; images are as many times larger as a small one is.

    Raises:
        ValueError: what is no autoencoder.
    """
    if isinstance(vae, Decoder):
        return vae
    if not isinstance(vae, nn.Module) or not callable(getattr(vae, "decode", None)):
        raise ValueError(f"decoder is a {type(vae).__name__}; it must be an autoencoder with decode(), or a Decoder")
    net = Latents(vae, tiled)
    sides = tuple(min(side, PROBE) for side in shape[1:]) if len(shape) == 3 else shape[1:]
    # An encoder may return any shape, so the network as one tells its own.
    channels, *found = Decoder(net, (1,), encoder=net).encode(torch.zeros(1, shape[0], *sides)).shape[1:]
    image = tuple(side * big // little for side, big, little in zip(shape[1:], found, sides, strict=True))
    return Decoder(net, (channels, *image), batch, net.encode if hasattr(vae, "encode") else None)
