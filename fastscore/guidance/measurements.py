r"""Linear measurements y = A x + noise, for inverse problems: images filled in, deblurred, enlarged, or any matrix.

An operator acts on each sample alone. ``solve`` applies (r2 A A^T + s2 I)^-1, the inverse covariance of y given an
estimate of x_0 with variance r2 and measurement noise of variance s2, which PiGDM needs.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Protocol

import torch
from torch import Tensor


class Operator(Protocol):
    """A linear map of samples [N, *shape] to measurements [N, ...], differentiable."""

    def __call__(self, x: Tensor) -> Tensor:
        """Return A x."""
        ...

    def adjoint(self, y: Tensor) -> Tensor:
        """Return A^T y."""
        ...

    def solve(self, v: Tensor, r2: Tensor, s2: float) -> Tensor:
        """Return (r2 A A^T + s2 I)^-1 v; r2 > 0 is of each sample, [N, 1, ..], s2 >= 0."""
        ...


@dataclass(frozen=True)
class Matrix:
    """Any matrix A [M, D] on the flattened sample: y = A x, [N, M]."""

    A: Tensor

    def __post_init__(self) -> None:
        if self.A.ndim != 2:
            raise ValueError(f"Matrix: A has shape {tuple(self.A.shape)}; expected [M, D]")

    def __call__(self, x: Tensor) -> Tensor:
        return x.flatten(1) @ self.A.to(x).T

    def adjoint(self, y: Tensor) -> Tensor:
        """Return A^T y, [N, D]."""
        return y @ self.A.to(y)

    @cached_property
    def _spectrum(self) -> tuple[Tensor, Tensor]:
        values, vectors = torch.linalg.eigh(self.A.double() @ self.A.double().T)
        return values.clamp_min(0.0), vectors

    def solve(self, v: Tensor, r2: Tensor, s2: float) -> Tensor:
        """Solve in the eigenvectors of A A^T, once computed in float64."""
        values, vectors = (t.to(v) for t in self._spectrum)
        total = r2.reshape(-1, 1) * values + s2
        return torch.where(total > 0.0, (v @ vectors) / total, 0.0) @ vectors.T


@dataclass(frozen=True)
class Masked:
    """Some elements: y = mask x, zero elsewhere; ``mask`` is bool and broadcasts to a sample."""

    mask: Tensor

    def __call__(self, x: Tensor) -> Tensor:
        return torch.where(self.mask.to(x.device), x, 0.0)

    def adjoint(self, y: Tensor) -> Tensor:
        """Return A^T y, which is A y."""
        return self(y)

    def solve(self, v: Tensor, r2: Tensor, s2: float) -> Tensor:
        """Divide: A A^T is 1 inside the mask, and v is 0 outside."""
        return self(v) / (r2 + s2)


@dataclass(frozen=True)
class Downsample:
    """Means of ``factor`` x ``factor`` pixels: [N, C, H, W] to [N, C, H/factor, W/factor]."""

    factor: int

    def __call__(self, x: Tensor) -> Tensor:
        if x.ndim != 4 or x.shape[2] % self.factor or x.shape[3] % self.factor:
            raise ValueError(f"Downsample: {tuple(x.shape)} does not divide into squares of {self.factor} pixels")
        return torch.nn.functional.avg_pool2d(x, self.factor)

    def adjoint(self, y: Tensor) -> Tensor:
        """Return A^T y: each value spread over its pixels."""
        k = self.factor
        return y.repeat_interleave(k, 2).repeat_interleave(k, 3) / k**2

    def solve(self, v: Tensor, r2: Tensor, s2: float) -> Tensor:
        """Divide: A A^T = I / factor^2."""
        return v / (r2 / self.factor**2 + s2)


@dataclass(frozen=True)
class Blur:
    """Circular convolution of every channel with a kernel [h, w], whose middle stays in place."""

    kernel: Tensor

    def _transfer(self, x: Tensor) -> Tensor:
        h, w = self.kernel.shape
        if x.ndim != 4 or h > x.shape[2] or w > x.shape[3]:
            raise ValueError(f"Blur: the kernel [{h}, {w}] does not fit into images of shape {tuple(x.shape)}")
        padded = torch.nn.functional.pad(self.kernel.to(x), (0, x.shape[3] - w, 0, x.shape[2] - h))
        return torch.fft.rfft2(padded.roll((-(h // 2), -(w // 2)), (0, 1)))

    def _filtered(self, x: Tensor, response: Tensor) -> Tensor:
        return torch.fft.irfft2(torch.fft.rfft2(x) * response, s=x.shape[2:])

    def __call__(self, x: Tensor) -> Tensor:
        return self._filtered(x, self._transfer(x))

    def adjoint(self, y: Tensor) -> Tensor:
        """Return A^T y: the mirrored kernel."""
        return self._filtered(y, self._transfer(y).conj())

    def solve(self, v: Tensor, r2: Tensor, s2: float) -> Tensor:
        """Divide in Fourier space, where A A^T is |transfer|^2."""
        total = r2 * self._transfer(v).abs().square() + s2
        return self._filtered(v, torch.where(total > 0.0, 1.0 / total, 0.0))


@dataclass(frozen=True)
class Linear:
    """Any pair of functions A and A^T; ``solve`` takes ``iterations`` steps of conjugate gradients.

    A and A^T must treat samples alone. The steps are exact after as many as A A^T has distinct eigenvalues.
    """

    forward: Callable[[Tensor], Tensor]
    transpose: Callable[[Tensor], Tensor]
    iterations: int = 20

    def __call__(self, x: Tensor) -> Tensor:
        return self.forward(x)

    def adjoint(self, y: Tensor) -> Tensor:
        """Return A^T y."""
        return self.transpose(y)

    def solve(self, v: Tensor, r2: Tensor, s2: float) -> Tensor:
        """Run conjugate gradients from zero, each sample with steps of its own."""
        column = [-1] + [1] * (v.ndim - 1)
        r2 = r2.reshape(column)
        w, residual, direction = torch.zeros_like(v), v, v
        square = v.flatten(1).square().sum(1).reshape(column)
        for _ in range(self.iterations):
            image = r2 * self.forward(self.transpose(direction)) + s2 * direction
            curvature = (direction * image).flatten(1).sum(1).reshape(column)
            step = torch.where(curvature > 0.0, square / curvature, 0.0)
            w, residual = w + step * direction, residual - step * image
            last, square = square, residual.flatten(1).square().sum(1).reshape(column)
            direction = residual + torch.where(last > 0.0, square / last, 0.0) * direction
        return w
