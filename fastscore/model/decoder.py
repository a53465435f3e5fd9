"""A decoder: from the samples of a latent model to the images that they stand for."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from fastscore.errors import NonFiniteError, short, typed
from fastscore.model.condition_shapes import sizes


@dataclass(frozen=True)
@typed
class Decoder:
    """Turns samples [N, *latent] into images [N, *shape] in -1 .. 1, always ``batch`` of them at a time.

    A latent model is sampled as it is; what it decodes to is written in place of its samples (``fs.draw``, ``fastscore
    sample``), a micro-batch after the other, so that memory does not grow with their number. The last micro-batch is
    filled up, since layers round differently at another size: an image depends on its own sample alone.

    Attributes:
        net: the decoder's network, samples [batch, *latent] -> images [batch, *shape].
        shape: of an image, without the batch axis.
        batch: of the network.
        encoder: the way back, images [batch, *shape] -> samples [batch, *latent], if there is one.

    Raises:
        ValueError: a shape or a batch that cannot be.
    """

    net: Callable[[Tensor], Tensor]
    shape: tuple[int, ...]
    batch: int = 1
    encoder: Callable[[Tensor], Tensor] | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "shape", sizes("decoder: shape", self.shape))
        if not callable(self.net):
            raise ValueError(f"decoder: net = {short(self.net)} must be a network, samples -> images")
        if self.batch < 1:
            raise ValueError(f"decoder: batch = {self.batch} must be at least 1")

    def __call__(self, samples: Tensor) -> Tensor:
        """Return the images of samples, [N, *shape], in the dtype and on the device of the samples.

        Raises:
            ValueError: the network returns another shape.
            NonFiniteError: an image has NaN or Inf.
        """
        return self._joined(samples, (part for _, part in self.parts(samples)), self.shape)

    def encode(self, images: Tensor) -> Tensor:
        """Return the samples of images in -1 .. 1, [N, *latent], to train a latent model on; a micro-batch at a time.

        Raises:
            ValueError: a decoder without an encoder.
        """
        if self.encoder is None:
            raise ValueError("this decoder has no encoder: Decoder(.., encoder=)")
        return self._joined(images, (part for _, part in self._batches(self.encoder, images)), ())

    def parts(self, samples: Tensor, ids: Tensor | None = None) -> Iterator[tuple[slice, Tensor]]:
        """Yield the images of samples a micro-batch at a time, with where they belong; errors as of a call.

        Args:
            ids: of the samples, [N], for errors; their positions if left out.
        """
        for at, images in self._batches(self.net, samples):
            if images.shape[1:] != self.shape:
                raise ValueError(f"the decoder returned {tuple(images.shape[1:])} a sample; its shape is {self.shape}")
            if not bool((finite := images.isfinite().flatten(1).all(1)).all()):
                first = at.start + int((~finite).int().argmax())
                number = first if ids is None else int(ids[first])
                raise NonFiniteError(f"the decoder made NaN or Inf of sample {number}; in float16 it may: use float32")
            yield at, images

    def _batches(self, net: Callable[[Tensor], Tensor], x: Tensor) -> Iterator[tuple[slice, Tensor]]:
        for first in range(0, len(x), self.batch):
            part = x[first : first + self.batch]
            count = len(part)
            filled = torch.cat([part, part[-1:].expand(self.batch - count, *part.shape[1:])])
            with _evaluating(net):
                out = net(filled)
            yield slice(first, first + count), out[:count].to(x.device, x.dtype).contiguous()

    @staticmethod
    def _joined(x: Tensor, parts: Iterator[Tensor], shape: tuple[int, ...]) -> Tensor:
        found = list(parts)
        return torch.cat(found) if found else x.new_empty((0, *shape))


@contextmanager
def _evaluating(net: object) -> Generator[None]:
    """Run a network in eval mode, without gradients and autocast; leave each submodule in the mode that it had."""
    training = [m for m in net.modules() if m.training] if isinstance(net, nn.Module) else []
    for m in training:
        m.training = False
    try:
        with torch.no_grad(), torch.autocast("cpu", enabled=False), torch.autocast("cuda", enabled=False):
            yield
    finally:
        for m in training:
            m.training = True
