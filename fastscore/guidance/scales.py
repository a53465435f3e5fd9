"""The finest scale that a guide asks for, which a grid must resolve."""

from __future__ import annotations

import math

import torch

from fastscore.guidance.chain import Chain
from fastscore.guidance.denoiser import Guide
from fastscore.guidance.guides import DPS, PiGDM
from fastscore.guidance.per_sample import lines_of, of_each
from fastscore.ops.noise import NoiseKey


def finest(guide: Guide | None, shape: tuple[int, ...], unit: float = 1.0) -> float | None:
    """Return the smallest standard deviation of the posterior that a guide asks for, or None if it names no noise.

    A measurement y = A x_0 + noise leaves noise / |A| along the direction that A stretches most; |A| by 16 steps of
    the power method, the largest of those where each sample has an A of its own. Where A has no adjoint it is taken
    for 1.

    Args:
        guide, shape: of a sampler and of its samples.
        unit: the largest scale of a model's transform, in which the standard deviation is counted.
    """
    if isinstance(guide, Chain):
        return min((std for g in guide.guides if (std := finest(g, shape, unit)) is not None), default=None)
    if not isinstance(guide, PiGDM | DPS) or not guide.noise:
        return None
    operator, largest = guide.operator, 1.0
    if hasattr(operator, "adjoint"):
        lines = lines_of(operator, len(shape))
        n = len(lines[0]) if lines else 1
        x = NoiseKey.of(0, [0]).normal(0, math.prod(shape)).reshape(1, *shape).double().expand(n, *shape)
        for _ in range(16):
            x = x / _norms(x).clamp_min(torch.finfo(x.dtype).tiny)
            image = of_each(operator(x), n, "the operator")
            x, largest = operator.adjoint(image).reshape(x.shape).to(x), float(_norms(image).max())  # pyright: ignore
    return guide.noise / (largest * unit) if largest > 0.0 else None


def _norms(x: torch.Tensor) -> torch.Tensor:
    return x.flatten(1).norm(dim=1).reshape(-1, *[1] * (x.ndim - 1))
