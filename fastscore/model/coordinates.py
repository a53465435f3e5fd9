r"""A constant matrix in front of the noise, dx = f x dt + g A dW, by a change of variables.

    x_t = alpha x_0 + sigma A z   <=>   y_t = alpha y_0 + sigma z,   y = A^-1 x

so every schedule, solver and likelihood of y is one of x:

    A = LowRank(U, V)
    x = A(Sampler(whitened(model, A), solver=...).run(ids))

A acts on the flattened sample. Samples go through it in blocks of one size, so that x of an id does not
depend on how many are mapped.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Protocol

import torch
from torch import Tensor, nn

from fastscore.errors import typed
from fastscore.model.condition_shapes import Condition, plain
from fastscore.model.conditions import constant
from fastscore.model.score import ScoreModel

NOISES = ("colored", "white")
_BLOCK = 64
_LARGEST = 2048  # size of a matrix whose singular values are computed


class Invertible(Protocol):
    """An invertible D x D matrix that acts on samples [N, *shape] with D elements, and returns the same shape."""

    size: int

    def __call__(self, x: Tensor) -> Tensor: ...
    def inverse(self, x: Tensor) -> Tensor:
        """Return A^-1 x."""
        ...

    def transpose(self, x: Tensor) -> Tensor:
        """Return A^T x."""
        ...


class Diagonal(nn.Module):
    """A = diag(d) with d [D], or of the shape of a sample; no entry may be 0."""

    d: Tensor

    def __init__(self, d: Tensor) -> None:
        super().__init__()
        d = _checked(d.reshape(-1), 1, "d")
        if not (d != 0.0).all():
            raise ValueError("Diagonal: an entry of d is 0; A must be invertible")
        self.size = len(d)
        self.register_buffer("d", d)

    def forward(self, x: Tensor) -> Tensor:
        return _in_blocks(x, self.size, lambda v: v * self.d.to(v))

    def inverse(self, x: Tensor) -> Tensor:
        """Return A^-1 x."""
        return _in_blocks(x, self.size, lambda v: v / self.d.to(v))

    def transpose(self, x: Tensor) -> Tensor:
        """Return A^T x."""
        return self(x)


class LowRank(nn.Module):
    """A = I + U V^T with U and V [D, r]; V = U if left out. The inverse is Woodbury's, I - U (I + V^T U)^-1 V^T."""

    u: Tensor
    v: Tensor
    core: Tensor

    def __init__(self, u: Tensor, v: Tensor | None = None) -> None:
        super().__init__()
        eps = _eps(u, *() if v is None else (v,))
        u = _checked(u, 2, "U")
        v = u if v is None else _checked(v, 2, "V")
        if u.shape != v.shape:
            raise ValueError(f"LowRank: U {tuple(u.shape)} and V {tuple(v.shape)} must have one shape [D, r]")
        one = torch.eye(u.shape[1], dtype=u.dtype, device=u.device)
        self.size = len(u)
        self.register_buffer("u", u)
        self.register_buffer("v", v)
        size, norm = one + v.T.abs() @ u.abs(), 1.0 + _norm(u) * _norm(v)
        core = _inverse(one + v.T @ u, size, norm, eps * len(u), "LowRank: I + V^T U")
        self.register_buffer("core", core)

    def forward(self, x: Tensor) -> Tensor:
        return _in_blocks(x, self.size, lambda a: a + (a @ self.v.to(a)) @ self.u.to(a).T)

    def inverse(self, x: Tensor) -> Tensor:
        """Return A^-1 x."""
        return _in_blocks(x, self.size, lambda a: a - (a @ self.v.to(a)) @ self.core.to(a).T @ self.u.to(a).T)

    def transpose(self, x: Tensor) -> Tensor:
        """Return A^T x."""
        return _in_blocks(x, self.size, lambda a: a + (a @ self.u.to(a)) @ self.v.to(a).T)


class Dense(nn.Module):
    """Any A [D, D] that is invertible in its own precision; its inverse is computed once, in float64."""

    a: Tensor
    inverse_of_a: Tensor

    def __init__(self, a: Tensor) -> None:
        super().__init__()
        eps = _eps(a)
        a = _checked(a, 2, "A")
        if a.shape[0] != a.shape[1]:
            raise ValueError(f"Dense: A {tuple(a.shape)} must be square")
        self.size = len(a)
        self.register_buffer("a", a)
        self.register_buffer("inverse_of_a", _inverse(a, a.abs(), _norm(a), eps * len(a), "Dense: A"))

    def forward(self, x: Tensor) -> Tensor:
        return _in_blocks(x, self.size, lambda v: v @ self.a.to(v).T)

    def inverse(self, x: Tensor) -> Tensor:
        """Return A^-1 x."""
        return _in_blocks(x, self.size, lambda v: v @ self.inverse_of_a.to(v).T)

    def transpose(self, x: Tensor) -> Tensor:
        """Return A^T x."""
        return _in_blocks(x, self.size, lambda v: v @ self.a.to(v))


@typed
def whitened(model: ScoreModel, matrix: Invertible, noise: str = "colored") -> ScoreModel:
    r"""Return the score model of y = A^-1 x, given one of x whose noise is sigma A z.

    What a network of x predicts becomes a prediction of y:

        score   grad_y ln p(y) = A^T grad_x ln p(x)
        others  D_y = A^-1 D_x and eps = A^-1 (A z), hence v, flow and edm likewise

    Args:
        model: its net takes x_t and says something about x; the result's net takes y_t.
        matrix: A, with as many columns as a sample has elements.
        noise: what "eps" means: "colored", the noise that was added, E[A z | x] = (x - alpha D) / sigma; or
            "white", E[z | x] itself, if the network was trained to predict z.

    Raises:
        ValueError: sizes that disagree, or "white" for another prediction than "eps".
    """
    _plain(model, "whitened")
    size = 1
    for k in model.shape:
        size *= k
    if matrix.size != size:
        raise ValueError(f"whitened: A is {matrix.size} x {matrix.size}, a sample has {size} elements")
    prediction = model.parametrization.prediction
    if noise not in NOISES or (noise == "white" and prediction != "eps"):
        raise ValueError(f"noise = {noise!r} must be colored, or white for the prediction eps (here {prediction!r})")
    out = matrix.transpose if prediction == "score" else matrix.inverse
    net = _Whitened(model.net, matrix, (lambda F: F) if noise == "white" else out)
    return replace(model, net=net, scales=_scales_of_y(model, matrix))


def _scales_of_y(model: ScoreModel, matrix: Invertible) -> tuple[float, float] | None:
    """Return the scales of y = A^-1 x from those of x, sigma_data if they are unknown, and A's singular values."""
    if matrix.size > _LARGEST:
        return None
    low, high = model.scales or (model.parametrization.sigma_data,) * 2
    stretch = torch.linalg.svdvals(
        matrix(torch.eye(matrix.size, dtype=torch.float64).reshape(-1, *model.shape)).flatten(1)
    )
    return low / float(stretch[0]), high / float(stretch[-1])


class _Whitened(nn.Module):
    def __init__(self, net: Callable[..., Tensor], matrix: Invertible, out: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.net, self.matrix, self.out = net, matrix, out  # modules among them move with this one

    def forward(self, u: Tensor, c_noise: Tensor, cond: Condition = None) -> Tensor:
        return self.out(self.net(self.matrix(u), c_noise, cond))


def _in_blocks(x: Tensor, size: int, linear: Callable[[Tensor], Tensor]) -> Tensor:
    """Map samples a fixed number at a time, in float32 at least: a product's rounding depends on its shape."""
    if x[:1].numel() not in (0, size):
        raise ValueError(f"A is {size} x {size}; samples of shape {tuple(x.shape[1:])} do not fit")
    wide = x.flatten(1).to(torch.promote_types(x.dtype, torch.float32))
    padded = nn.functional.pad(wide, (0, 0, 0, -len(x) % _BLOCK))
    y = torch.cat([linear(part) for part in padded.split(_BLOCK)]) if len(x) else wide
    return y[: len(x)].to(x.dtype).reshape(x.shape)


def _checked(a: Tensor, ndim: int, name: str) -> Tensor:
    constant(**{name: plain(name, a)})
    if a.ndim != ndim or not a.numel() or not torch.isfinite(a).all():
        raise ValueError(f"{name} {tuple(a.shape)} must be finite numbers in {ndim} dimensions")
    return a.detach().to(torch.float64).clone()


def _eps(*tensors: Tensor) -> float:
    """Return the rounding of the coarsest of some tensors; integers are as exact as float64."""
    return max(torch.finfo(t.dtype if t.is_floating_point() else torch.float64).eps for t in tensors)


def _norm(a: Tensor) -> float:
    return float(torch.linalg.matrix_norm(a, 2))


def _inverse(a: Tensor, size: Tensor, norm: float, rounding: float, name: str) -> Tensor:
    """Return A^-1, float64, of a matrix that its own precision can tell from a singular one.

    It can where norm |A^-1| is below 1 / rounding, the rule of a numerical rank; or, whatever the scales of rows and
    columns, where no matrix with |A' - A| <= rounding ``size`` (elementwise) is singular: where the spectral radius of
    |A^-1| size, bounded from above by Collatz and Wielandt's quotients, is below 1 / rounding (Beeck 1975).

    Args:
        size, norm: of what A was computed from, element by element and as a whole.
    """
    condition = float(torch.linalg.cond(a))
    if not condition < 1e12:
        raise ValueError(f"{name} has condition number {condition:.3g}; A must be invertible, below 1e12")
    inverse = torch.linalg.inv(a)
    x, radius = torch.ones_like(a[:, :1]), math.inf
    for _ in range(10):
        x, last = inverse.abs() @ (size @ x), x
        radius = min(radius, float((x / last).max()))
        x = x / x.max()
    condition = norm * _norm(inverse)
    if not rounding * min(condition, radius) < 1.0:
        raise ValueError(
            f"{name} is singular up to the rounding of its entries: its condition number is {condition:.3g}, and its "
            f"precision tells no more than {1.0 / rounding:.3g} from infinity; give it in float64 if it is known so "
            "exactly, or leave out the directions that have no noise"
        )
    return inverse


def grey_basis(channels: int = 3) -> Tensor:
    """Return the Helmert matrix, orthonormal [C, C] float64, whose first row is 1 / sqrt(C): sqrt(C) times the mean."""
    M = torch.ones(channels, channels, dtype=torch.float64).tril()
    for k in range(1, channels):
        M[k, k] = -k
        M[k, k + 1 :] = 0.0
    M[0] = 1.0
    return M / M.norm(dim=1, keepdim=True)


def change_basis(x: Tensor, M: Tensor) -> Tensor:
    """Return M x: the channels of images [C, H, W] or [N, C, H, W] mixed by M [C, C]."""
    return torch.einsum("kc,...chw->...khw", M.to(x), x)


class _Turned(nn.Module):
    def __init__(self, net: nn.Module, M: Tensor) -> None:
        super().__init__()
        self.net = net
        self.M: Tensor
        self.register_buffer("M", M)

    def forward(self, u: Tensor, c_noise: Tensor, cond: Condition) -> Tensor:
        return change_basis(self.net(change_basis(u, self.M.T), c_noise, cond), self.M)


def in_basis(model: ScoreModel, M: Tensor) -> ScoreModel:
    """Return the model of x~ = M x; a ``clip`` of its sampler bounds x~ and not x.

    Raises:
        ValueError: the samples are no images, or M is not orthonormal [C, C].
    """
    _plain(model, "in_basis")
    c = model.shape[0]
    if len(model.shape) != 3 or M.shape != (c, c):
        raise ValueError(f"in_basis: M has shape {tuple(M.shape)}, samples {model.shape}; expected [C, C] and images")
    if not torch.allclose(M.double() @ M.double().T, torch.eye(c, dtype=torch.float64, device=M.device), atol=1e-6):
        raise ValueError("in_basis: M must be orthonormal")
    net = model.net if isinstance(model.net, nn.Module) else _Function(model.net)
    return replace(model, net=_Turned(net, M))


def _plain(model: ScoreModel, what: str) -> None:
    """Raise ValueError for a model with units or a subspace of its own: another change would go around them."""
    for name, own in (("transform", model.transform), ("base", model.base)):
        if own is not None:
            raise ValueError(f"{what}: this model has a {name} already; put its shift and scale into your own change")
    if model.projection is not None:
        raise ValueError(f"{what}: this model's projection is orthogonal in x, and would not be in y")


class _Function(nn.Module):
    def __init__(self, function: object) -> None:
        super().__init__()
        self.function = function

    def forward(self, *args: Tensor | None) -> Tensor:
        return self.function(*args)  # pyright: ignore[reportCallIssue]
