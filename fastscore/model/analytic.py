r"""Exact score models: targets whose denoiser is known in closed form.

Each is a function of a state x = alpha x_0 + sigma z with alpha = cos t, sigma = sin t (the Trig
schedule, which has every noise level), so that any solver runs on any schedule without weights.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, fields
from typing import Any

import torch
from torch import Tensor

from fastscore.data.toys import GAUSSIANS, TOYS, toy
from fastscore.errors import typed, unknown
from fastscore.model.condition_shapes import plain, sizes
from fastscore.model.score import ScoreModel
from fastscore.process.continuous import Trig
from fastscore.process.parametrization import Parametrization

NAMES = ("gaussian", "mixture", *TOYS)


@dataclass(frozen=True)
@typed
class GaussianMixture:
    r"""sum_k w_k N(mu_k, s_k^2 I); one component is a Gaussian.

        E[x_0 | x] = sum_k r_k(x) [mu_k + alpha s_k^2 / (alpha^2 s_k^2 + sigma^2) (x - alpha mu_k)]

    with r_k the posterior weight of component k under N(alpha mu_k, (alpha^2 s_k^2 + sigma^2) I).

    Attributes:
        weights: [K], positive, summing to 1.
        means: [K, *shape].
        stds: [K], positive.
    """

    weights: Tensor
    means: Tensor
    stds: Tensor

    def __post_init__(self) -> None:
        for name, v in (("weights", self.weights), ("means", self.means), ("stds", self.stds)):
            plain(f"mixture: {name}", v)
        k = len(self.means) if self.means.ndim > 1 else 0
        if self.weights.shape != (k,) or self.stds.shape != (k,) or k == 0:
            raise ValueError(
                f"mixture: means {tuple(self.means.shape)} must be [K, *shape], weights {tuple(self.weights.shape)} "
                f"and stds {tuple(self.stds.shape)} [K], K > 0: they must agree"
            )
        if not all(v.is_floating_point() and bool(v.isfinite().all()) for v in (self.weights, self.means, self.stds)):
            raise ValueError("mixture: weights, means and stds must be finite numbers of a floating-point dtype")
        if not (self.weights > 0).all() or not (self.stds > 0).all() or abs(float(self.weights.sum()) - 1.0) > 1e-6:
            raise ValueError("mixture: weights must be positive and sum to 1, stds must be positive")

    def __getstate__(self) -> dict[str, Any]:
        return {field.name: getattr(self, field.name) for field in fields(self)}

    @property
    def scales(self) -> tuple[float, float]:
        """The narrowest component's standard deviation, and that of the mixture along its widest direction."""
        mu, w = self.means.flatten(1).double(), self.weights.double()
        spread = torch.linalg.matrix_norm((mu - w @ mu) * w.sqrt()[:, None], 2)
        return float(self.stds.min()), math.hypot(float(self.stds.max()), float(spread))

    def __call__(self, x: Tensor, t: Tensor, cond: Tensor | None = None) -> Tensor:
        """Return the denoiser D(x) = E[x_0 | x_t = x] at alpha = cos t, sigma = sin t."""
        mu, s, alpha, offset, variance, log = self._components(x, t)
        r = torch.softmax(log, dim=1)
        gain = alpha[:, None] * s**2 / variance
        return torch.einsum("nk,nkd->nd", r, mu + gain[:, :, None] * offset).reshape(x.shape)

    def log_density(self, x: Tensor, t: Tensor | None = None) -> Tensor:
        """Return ln p_t(x), [N]; of the target itself if the times t [N] are left out."""
        *_, log = self._components(x, x.new_zeros(len(x)) if t is None else t)
        return torch.logsumexp(log, dim=1) - 0.5 * math.log(2.0 * math.pi) * x[0].numel()

    def score(self, x: Tensor, t: Tensor | None = None) -> Tensor:
        """Return the gradient of ``log_density`` in x, like x."""
        *_, offset, variance, log = self._components(x, x.new_zeros(len(x)) if t is None else t)
        pull = torch.softmax(log, dim=1) / variance
        return -torch.einsum("nk,nkd->nd", pull, offset).reshape(x.shape)

    def _components(self, x: Tensor, t: Tensor) -> tuple[Tensor, ...]:
        """Return mu [K, D], s [K], alpha [N], and for each sample and component x - alpha mu, its variance, ln(w N)."""
        y = x.flatten(1)
        means, w, s = _placed(self, y, self.means, self.weights, self.stds)
        mu = means.flatten(1)
        alpha, sigma = _pair(t.to(y))
        variance = alpha[:, None] ** 2 * s**2 + sigma[:, None] ** 2  # [N, K]
        # Differences, not expanded squares: exact to the last bits where components are far apart.
        offset = y[:, None, :] - alpha[:, None, None] * mu
        log = w.log() - 0.5 * offset.square().sum(-1) / variance - 0.5 * y.shape[1] * variance.log()
        return mu, s, alpha, offset, variance, log

    def sample(self, z: Tensor, u: Tensor) -> Tensor:
        """Draw from the target, given normals z [N, *shape] and uniforms u [N]."""
        edges = self.weights.cumsum(0).to(u)
        k = torch.bucketize(u * edges[-1], edges).clamp_max(len(edges) - 1)
        column = [-1] + [1] * (z.ndim - 1)
        return self.means.to(z)[k] + self.stds.to(z)[k].reshape(column) * z


@dataclass(frozen=True)
@typed
class Empirical:
    r"""The exact denoiser of a noised finite data set: a softmax-weighted mean of its points.

        E[x_0 | x] = sum_i softmax_i(-|x - alpha y_i|^2 / (2 sigma^2)) y_i

    Attributes:
        points: y, [M, *shape].
        chunk: points handled at once, which bounds the memory at N x chunk.
    """

    points: Tensor
    chunk: int = 8192

    def __post_init__(self) -> None:
        points = plain("points", self.points)
        if points.ndim < 2 or not points.numel() or not points.is_floating_point() or not points.isfinite().all():
            raise ValueError(f"Empirical: points {tuple(points.shape)} must be [M, *shape], M > 0, and finite floats")
        if self.chunk < 1:
            raise ValueError(f"Empirical: chunk = {self.chunk} must be at least 1")

    def __getstate__(self) -> dict[str, Any]:
        return {field.name: getattr(self, field.name) for field in fields(self)}

    def __call__(self, x: Tensor, t: Tensor, cond: Tensor | None = None) -> Tensor:
        """Return the denoiser D(x) = E[x_0 | x_t = x] at alpha = cos t, sigma = sin t."""
        y, points = x.flatten(1), _placed(self, x, self.points)[0].flatten(1)
        alpha, sigma = _pair(t.to(y))
        alpha = alpha.clamp_min(torch.finfo(y.dtype).eps)  # at pure noise the weights are even anyway
        best = torch.full((len(y), 1), -math.inf, dtype=y.dtype, device=y.device)
        mass, mean = torch.zeros_like(best), torch.zeros_like(y)
        for part in points.split(self.chunk):  # softmax over chunks, with a running maximum
            distance = torch.cdist(y / alpha[:, None], part, compute_mode="donot_use_mm_for_euclid_dist")
            log = -0.5 * (distance * (alpha / sigma)[:, None]).square()
            top = torch.maximum(best, log.amax(1, keepdim=True))
            weight, keep = torch.exp(log - top), torch.exp(best - top)
            mass = mass * keep + weight.sum(1, keepdim=True)
            mean = mean * keep + weight @ part
            best = top
        return (mean / mass).reshape(x.shape)


@typed
def score_model(target: GaussianMixture | Empirical) -> ScoreModel:
    """Wrap an exact denoiser as a score model; that of a mixture knows the scales of its data."""
    mixture = isinstance(target, GaussianMixture)
    shape = tuple((target.means if mixture else target.points).shape[1:])
    scales = target.scales if mixture else None
    return ScoreModel(target, shape, Trig(), Parametrization("x0", "t", exact=True), scales=scales)


@typed
def gaussian(mean: float = 0.5, std: float = 0.5, shape: tuple[int, ...] = (2,)) -> GaussianMixture:
    """Return the isotropic Gaussian N(mean, std^2 I)."""
    shape = sizes("gaussian: shape", shape)
    if math.prod(shape) > 1 << 28:
        raise ValueError(f"gaussian: shape = {shape} has more than {1 << 28} numbers")
    one = torch.ones(1, dtype=torch.float64)
    return GaussianMixture(one, torch.full((1, *shape), mean, dtype=torch.float64), one * std)


@typed
def mixture(components: int = 8, radius: float = 1.0, std: float = 0.1) -> GaussianMixture:
    """Return equal Gaussians on a circle in the plane."""
    if not 1 <= components <= 1 << 20:
        raise ValueError(f"mixture: components = {components} must be at least 1 and at most {1 << 20}")
    angle = 2.0 * math.pi * torch.arange(components, dtype=torch.float64) / components
    means = radius * torch.stack([angle.cos(), angle.sin()], 1)
    weights = torch.full((components,), 1.0 / components, dtype=torch.float64)
    return GaussianMixture(weights, means, torch.full((components,), std, dtype=torch.float64))


def gaussians(name: str) -> GaussianMixture:
    """Return equal Gaussians by the name of their toy set, as "four-gaussians"; see data/toys.py."""
    means, std = GAUSSIANS[name]
    mu = torch.tensor(means, dtype=torch.float64)
    weights = torch.full((len(mu),), 1.0 / len(mu), dtype=torch.float64)
    return GaussianMixture(weights, mu, torch.full_like(weights, std))


@typed
def target_by_name(name: str) -> GaussianMixture | Empirical:
    """Return the law of an analytic model: gaussian, mixture, or a toy set, empirical where it is no mixture.

    Raises:
        ValueError: an unknown name.
    """
    name = name.replace("_", "-").lower()
    if name not in NAMES:
        raise unknown("analytic model", name, NAMES)
    if name in GAUSSIANS:
        return gaussians(name)
    if name in TOYS:
        return Empirical(torch.from_numpy(toy(name, 2000)))
    return gaussian() if name == "gaussian" else mixture()


def by_name(name: str) -> ScoreModel:
    """Return the analytic model of ``target_by_name``."""
    return score_model(target_by_name(name))


def _placed(target: GaussianMixture | Empirical, like: Tensor, *constants: Tensor) -> tuple[Tensor, ...]:
    """Return constants where ``like`` is and of its dtype.

    From another device they come once, not with each evaluation: the host would wait, and no graph can hold a copy from
    it. They are copied again when they have been changed in place.
    """
    if all(v.device == like.device for v in constants):
        return tuple(v.to(like) for v in constants)
    placed: dict[Any, tuple[list[int], tuple[Tensor, ...]]] = vars(target).setdefault("_placed", {})
    key, now = (like.device, like.dtype), [-1 if v.is_inference() else v._version for v in constants]
    if key not in placed or placed[key][0] != now:
        placed[key] = now, tuple(v.to(like) for v in constants)
    return placed[key][1]


def _pair(t: Tensor) -> tuple[Tensor, Tensor]:
    return torch.sin(0.5 * math.pi - t), torch.sin(t)
