r"""Linear measurements y = A x + noise, for inverse problems: images filled in, deblurred, enlarged, or any matrix.

An operator acts on each sample alone, by one tensor for all or by one line an id (a mask, matrix or kernel of each
sample's own; see per_sample.py). ``solve`` applies (r2 A A^T + s2 I)^-1, the inverse covariance of y given an
estimate of x_0 with variance r2 and measurement noise of variance s2, which PiGDM needs.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Protocol

import torch
from torch import Tensor

from fastscore.errors import typed
from fastscore.model.conditions import constant

ROUNDING = torch.finfo(torch.float64).eps


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
@typed
class Matrix:
    """Any matrix A on the flattened sample: y = A x, [N, M].

    Attributes:
        A: [M, D], or one an id, [n, M, D].
    """

    A: Tensor

    def __post_init__(self) -> None:
        if _axes("Matrix: A", self.A) not in (2, 3):
            raise ValueError(f"Matrix: A has shape {tuple(self.A.shape)}; expected [M, D], or [n, M, D]")

    def per_sample(self, axes: int) -> tuple[str, ...]:
        """Return the fields with one line a sample."""
        return ("A",) if self.A.ndim == 3 else ()

    def __call__(self, x: Tensor) -> Tensor:
        return _times(x.flatten(1), self.A.to(x).mT)

    def adjoint(self, y: Tensor) -> Tensor:
        """Return A^T y, [N, D]."""
        return _times(y, self.A.to(y))

    @cached_property
    def _spectrum(self) -> tuple[Tensor, Tensor]:
        """Eigenvalues and eigenvectors of A A^T; 0 where they are no more than rounding of A, or of the product."""
        A = self.A.double()
        values, vectors = torch.linalg.eigh(A @ A.mT)
        size = max(A.shape[-2:])
        eps = torch.finfo(self.A.dtype).eps if self.A.is_floating_point() else ROUNDING
        rounding = max((size * eps) ** 2, size * ROUNDING) * values[..., -1:]
        return torch.where(values > rounding, values, 0.0), vectors

    def solve(self, v: Tensor, r2: Tensor, s2: float) -> Tensor:
        """Solve in the eigenvectors of A A^T, once computed in float64; by the pseudoinverse where that is singular."""
        values, vectors = (t.to(v) for t in self._spectrum)
        total = r2.reshape(-1, 1) * values + s2
        return _times(torch.where(total > 0.0, _times(v, vectors) / total, 0.0), vectors.mT)


@dataclass(frozen=True)
@typed
class Masked:
    """Some elements: y = mask x, zero elsewhere.

    Attributes:
        mask: bool, True where x is measured; broadcasts to a sample, or one an id, [n, ..] with all axes of a sample.
    """

    mask: Tensor

    def __post_init__(self) -> None:
        _axes("Masked: mask", self.mask)
        if self.mask.dtype != torch.bool:
            raise ValueError(
                f"Masked: mask is {self.mask.dtype}; it must be bool, True where x is measured: mask > 0, say"
            )

    def per_sample(self, axes: int) -> tuple[str, ...]:
        """Return the fields with one line a sample."""
        return ("mask",) if self.mask.ndim > axes and len(self.mask) > 1 else ()

    def __call__(self, x: Tensor) -> Tensor:
        return torch.where(self.mask.to(x.device), x, 0.0)

    def adjoint(self, y: Tensor) -> Tensor:
        """Return A^T y, which is A y."""
        return self(y)

    def solve(self, v: Tensor, r2: Tensor, s2: float) -> Tensor:
        """Divide: A A^T is 1 inside the mask, and v is 0 outside."""
        return self(v) / (r2 + s2)


@dataclass(frozen=True)
@typed
class Downsample:
    """Means of ``factor`` x ``factor`` pixels: [N, C, H, W] to [N, C, H/factor, W/factor]."""

    factor: int

    def __post_init__(self) -> None:
        if not isinstance(self.factor, int) or self.factor < 1:  # pyright: ignore[reportUnnecessaryIsInstance]
            raise ValueError(f"Downsample: factor = {self.factor} must be a whole number, at least 1, the same for all")

    def per_sample(self, axes: int) -> tuple[str, ...]:
        """Return the fields with one line a sample."""
        return ()

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
@typed
class Blur:
    """Circular convolution of every channel with a kernel, whose middle stays in place.

    Attributes:
        kernel: [h, w], or one an id, [n, h, w].
    """

    kernel: Tensor

    def __post_init__(self) -> None:
        if _axes("Blur: kernel", self.kernel) not in (2, 3):
            raise ValueError(f"Blur: kernel has shape {tuple(self.kernel.shape)}; expected [h, w], or [n, h, w]")

    def per_sample(self, axes: int) -> tuple[str, ...]:
        """Return the fields with one line a sample."""
        return ("kernel",) if self.kernel.ndim == 3 else ()

    def _transfer(self, x: Tensor) -> Tensor:
        h, w = self.kernel.shape[-2:]
        if x.ndim != 4 or h > x.shape[2] or w > x.shape[3]:
            raise ValueError(f"Blur: the kernel [{h}, {w}] does not fit into images of shape {tuple(x.shape)}")
        padded = torch.nn.functional.pad(self.kernel.to(x), (0, x.shape[3] - w, 0, x.shape[2] - h))
        transfer = torch.fft.rfft2(padded.roll((-(h // 2), -(w // 2)), (-2, -1)))
        return transfer[:, None] if transfer.ndim == 3 else transfer

    def _filtered(self, x: Tensor, response: Tensor) -> Tensor:
        return torch.fft.irfft2(torch.fft.rfft2(x) * response, s=x.shape[2:])

    def __call__(self, x: Tensor) -> Tensor:
        return self._filtered(x, self._transfer(x))

    def adjoint(self, y: Tensor) -> Tensor:
        """Return A^T y: the mirrored kernel."""
        return self._filtered(y, self._transfer(y).conj())

    def solve(self, v: Tensor, r2: Tensor, s2: float) -> Tensor:
        """Divide in Fourier space, where A A^T is |transfer|^2: 0 where that is no more than rounding."""
        size = self._transfer(v).abs()
        rounding = 8 * torch.finfo(v.dtype).eps * self.kernel.to(v).abs().sum((-2, -1))
        size = torch.where(size > rounding.reshape(-1, 1, 1, 1), size, 0.0)
        total = r2 * size.square() + s2
        return self._filtered(v, torch.where(total > 0.0, 1.0 / total, 0.0))


@dataclass(frozen=True)
@typed
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


def _axes(name: str, tensor: object) -> int:
    if not isinstance(tensor, Tensor):
        raise ValueError(f"{name} is a {type(tensor).__name__}; it must be a tensor")
    constant(**{name: tensor})
    return tensor.ndim


def _times(v: Tensor, A: Tensor) -> Tensor:
    """Return v A of vectors [N, K] with one matrix [K, M], or with one each [N, K, M]."""
    return v @ A if A.ndim == 2 else torch.bmm(v[:, None], A)[:, 0]
