r"""Rules of guidance that are no mixture: guides that make an estimate of both, D_1 and D_2, and of the weight w.

    Sampler(model, guidance=Guidance(4.0), guide=APG(norm=2.5))

``Guidance`` says what is evaluated, where, and w; the rule replaces D = D_2 + w (D_1 - D_2). p and u are D_1 and D_2
in a ``space``, by default that of the paper: "x0", "eps", "flow" or "v" (spaces.py). A code that feeds a rule what its
network predicts has that prediction for a space. Where nothing is mixed, at weight 1 or outside the interval, the
estimate stays D_1. Norms and products are over all elements of a sample.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from fastscore.errors import typed
from fastscore.guidance.denoiser import Denoiser
from fastscore.guidance.spaces import Space, check_space
from fastscore.ops.norms import dot, sum_of_squares
from fastscore.solvers.variants import published, published_repr


@dataclass(frozen=True)
@typed
class APG:
    r"""Adaptive projected guidance: what of the difference only lengthens p, and oversaturates, counts eta times.

        d = p - u + momentum d_before,   d <- d min(1, norm / |d|),   d <- d - (1 - eta) (d.p / p.p) p
        p + (w - 1) d

    Args:
        eta: share of the part along p that stays; 1 without the rest is the plain mixture.
        norm: bound on |d|; None for none.
        momentum: of the differences of earlier evaluations of a run, in the plan's order; negative in the paper.
        space: that of p and u.
        form: "paper" as above; "diffusers" u + w d, which is the mixture only at eta = 1 without bound and momentum;
            "comfyui" p + w d, the paper's with a weight of w + 1, and norms over a sample's last three axes.

    Raises:
        ValueError: a value out of range.

    Source: Sadat et al. 2024 (2410.02416), algorithm 1.
    """

    eta: float = 0.0
    norm: float | None = None
    momentum: float = 0.0
    space: str = "x0"
    form: str = published("paper")
    __repr__ = published_repr
    on_pairs = True

    def __post_init__(self) -> None:
        check_space("APG", self.space)
        if not (-math.inf < self.eta < math.inf and -1.0 < self.momentum < 1.0):
            raise ValueError(f"APG: eta = {self.eta} must be finite, momentum = {self.momentum} between -1 and 1")
        if self.norm is not None and not 0.0 < self.norm < math.inf:
            raise ValueError(f"APG: norm = {self.norm} must be positive, or None for no bound")
        if self.form not in ("paper", "diffusers", "comfyui"):
            raise ValueError(f"APG: form = {self.form!r} must be paper, diffusers or comfyui")

    @property
    def remembers(self) -> bool:
        """Whether it needs the evaluations before."""
        return self.momentum != 0.0

    def __call__(self, denoise: Denoiser, x: Tensor, alpha: Tensor, sigma: Tensor, y: Tensor | None) -> Tensor:
        axes = min(3, x.ndim - 1) if self.form == "comfyui" else x.ndim - 1

        def rule(p: Tensor, u: Tensor, w: Tensor) -> Tensor:
            d = p - u
            if self.remembers:
                before = denoise.memory.get("APG")
                d = d if before is None else d + self.momentum * before
                denoise.memory["APG"] = d
            if self.norm is not None:
                d = d * (self.norm / _square(d, axes).sqrt()).clamp_max(1.0)
            along = _inner(d, p, axes) / _square(p, axes).clamp_min(torch.finfo(p.dtype).tiny)
            d = d - (1.0 - self.eta) * along * p
            return {"paper": p + (w - 1.0) * d, "diffusers": u + w * d, "comfyui": p + w * d}[self.form]

        return _ruled(denoise, x, Space.at(self.space, x, alpha, sigma), rule)


@dataclass(frozen=True)
@typed
class CFGZeroStar:
    r"""CFG-Zero*: the scale of u that brings it closest to p, and no motion in the first steps.

        s u + w (p - s u),   s = p.u / (u.u + 1e-8);   0 in the first ``zero_steps`` steps, whatever the weight

    Args:
        zero_steps: of the grid. Velocity 0 leaves x / (alpha + sigma) where it is, in "eps" x / alpha.
        space: that of p and u; the paper's is the velocity of flow matching, whatever the schedule of the sampler.
        form: "paper" as above; "comfyui" s of x - D_1 and x - D_2, applied to D_2: it scales the image in place of the
            velocity.

    Raises:
        ValueError: a value out of range.

    Source: Fan et al. 2025 (2503.18886), algorithm 1.
    """

    zero_steps: int = 1
    space: str = "flow"
    form: str = published("paper")
    __repr__ = published_repr
    on_pairs = True

    def __post_init__(self) -> None:
        check_space("CFGZeroStar", self.space)
        if self.zero_steps < 0:
            raise ValueError(f"CFGZeroStar: zero_steps = {self.zero_steps} must be at least 0")
        if self.form not in ("paper", "comfyui"):
            raise ValueError(f"CFGZeroStar: form = {self.form!r} must be paper or comfyui")
        if self.form == "comfyui" and self.space not in ("eps", "flow"):
            raise ValueError(f"CFGZeroStar: form = 'comfyui' goes with space 'eps' or 'flow', not {self.space!r}")

    def __call__(self, denoise: Denoiser, x: Tensor, alpha: Tensor, sigma: Tensor, y: Tensor | None) -> Tensor:
        space, axes, image = Space.at(self.space, x, alpha, sigma), x.ndim - 1, self.form == "comfyui"
        pair = denoise.pair(x)
        D, u = pair.first, pair.second
        if u is not None:
            p, u = space.of(pair.first), space.of(u)
            unit = sigma / (alpha if self.space == "eps" else alpha + sigma) if image else 1.0  # of x - D
            s = _inner(unit * p, unit * u, axes) / (_square(unit * u, axes) + 1e-8)
            p, u = (p, u) if not image else (pair.first, space.estimate(u))
            G = s * u + pair.weight * (p - s * u)
            D = torch.where(pair.weight == 1.0, pair.first, G if image else space.estimate(G))
        if not self.zero_steps:
            return D
        return torch.where(pair.step < self.zero_steps, space.estimate(torch.zeros_like(x)), D)


@dataclass(frozen=True)
@typed
class TCFG:
    r"""Tangential damping: of u only what lies along the first singular direction of p and u counts.

        u' = (u.v) v,   u' + w (p - u'),   v = cos(a) p + sin(a) u to length 1,   tan 2a = 2 p.u / (p.p - u.u)

    which are the sines of a 2 x 2 problem: u' = sin(a) (cos(a) p + sin(a) u).

    Args:
        space: that of p and u, the scores in the paper: "eps", or of a flow model that begins at pure noise "flow".

    Source: Kwon et al. 2025 (2503.18137), eq. 7-9; the singular value decomposition in closed form.
    """

    space: str = "eps"
    on_pairs = True

    def __post_init__(self) -> None:
        check_space("TCFG", self.space)

    def __call__(self, denoise: Denoiser, x: Tensor, alpha: Tensor, sigma: Tensor, y: Tensor | None) -> Tensor:
        axes = x.ndim - 1

        def rule(p: Tensor, u: Tensor, w: Tensor) -> Tensor:
            angle = 0.5 * torch.atan2(2.0 * _inner(p, u, axes), _square(p, axes) - _square(u, axes))
            damped = angle.sin() * (angle.cos() * p + angle.sin() * u)
            return damped + w * (p - damped)

        return _ruled(denoise, x, Space.at(self.space, x, alpha, sigma), rule)


@dataclass(frozen=True)
@typed
class CFGNorm:
    """The mixture, nowhere longer than p: g min(1, |p| / (|g| + 1e-8)) strength, g = u + w (p - u).

    Args:
        strength: of the result.
        axis: of a sample, which the norms are over: 0 the channels of an image [C, H, W], -1 those of tokens [L, C].
        space: that of p and u.

    Raises:
        ValueError: a strength that is not positive.

    Source: ComfyUI's CFGNorm, of HiDream-E1; there is no paper.
    """

    strength: float = 1.0
    axis: int = 0
    space: str = "x0"
    on_pairs = True

    def __post_init__(self) -> None:
        check_space("CFGNorm", self.space)
        if not 0.0 < self.strength < math.inf:
            raise ValueError(f"CFGNorm: strength = {self.strength} must be positive")

    def __call__(self, denoise: Denoiser, x: Tensor, alpha: Tensor, sigma: Tensor, y: Tensor | None) -> Tensor:
        if not -x.ndim < self.axis < x.ndim - 1:
            raise ValueError(f"CFGNorm: axis = {self.axis} is none of a sample {tuple(x.shape[1:])}")
        axis = self.axis + 1 if self.axis >= 0 else self.axis

        def rule(p: Tensor, u: Tensor, w: Tensor) -> Tensor:
            g = u + w * (p - u)
            longest, length = (_square(v.movedim(axis, -1), 1).sqrt().movedim(-1, axis) for v in (p, g))
            return self.strength * g * (longest / (length + 1e-8)).clamp_max(1.0)

        return _ruled(denoise, x, Space.at(self.space, x, alpha, sigma), rule)


@dataclass(frozen=True)
@typed
class MAMBOG:
    """Magnitude-aware guidance: the weight falls where the difference is long, as it is early in a run.

        u + w' (p - u),   w' = 1 + (w - 1) exp(-damping |p - u| / |u|)

    Args:
        damping: the paper's alpha.
        space: that of p and u; the paper's is the velocity of flow matching.

    Raises:
        ValueError: a negative damping.

    Source: MAMBO-G, 2025 (2508.03442), eq. 8 and 9.
    """

    damping: float = 8.0
    space: str = "flow"
    on_pairs = True

    def __post_init__(self) -> None:
        check_space("MAMBOG", self.space)
        if not 0.0 <= self.damping < math.inf:
            raise ValueError(f"MAMBOG: damping = {self.damping} must be at least 0")

    def __call__(self, denoise: Denoiser, x: Tensor, alpha: Tensor, sigma: Tensor, y: Tensor | None) -> Tensor:
        axes = x.ndim - 1

        def rule(p: Tensor, u: Tensor, w: Tensor) -> Tensor:
            ratio = (_square(p - u, axes) / _square(u, axes).clamp_min(torch.finfo(u.dtype).tiny)).sqrt()
            return p + (w - 1.0) * torch.exp(-self.damping * ratio) * (p - u)

        return _ruled(denoise, x, Space.at(self.space, x, alpha, sigma), rule)


@dataclass(frozen=True)
@typed
class CFGRescale:
    """Bring the spread of a mixed estimate back to that of its conditional one, p.

        g (phi std(p) / std(g) + 1 - phi)

    std is over the elements of a sample, and g what a rule before it in a Chain made, or the mixture.

    Args:
        phi: share of the rescaled estimate.
        space: that of p and g. diffusers has what the network predicts, ComfyUI's RescaleCFG "v" whatever that is.

    Raises:
        ValueError: phi out of range.

    Source: Lin et al. 2024, eq. 14-16.
    """

    phi: float = 0.7
    space: str = published("x0")
    __repr__ = published_repr

    def __post_init__(self) -> None:
        check_space("CFGRescale", self.space)
        if not 0.0 <= self.phi <= 1.0:
            raise ValueError(f"CFGRescale: phi = {self.phi} must lie in 0 .. 1")

    def __call__(self, denoise: Denoiser, x: Tensor, alpha: Tensor, sigma: Tensor, y: Tensor | None) -> Tensor:
        space = Space.at(self.space, x, alpha, sigma)
        D, conditional = (space.of(v) for v in denoise.both(x))
        spread, target = (v.flatten(1).std(1).clamp_min(torch.finfo(v.dtype).tiny) for v in (D, conditional))
        share = (self.phi * (target / spread) + (1.0 - self.phi)).reshape(-1, *[1] * (x.ndim - 1))
        return space.estimate(D * share)


def _ruled(denoise: Denoiser, x: Tensor, space: Space, rule: Callable[[Tensor, Tensor, Tensor], Tensor]) -> Tensor:
    """Return what a rule (p, u, w) makes of both estimates; the first where nothing is mixed."""
    pair = denoise.pair(x)
    if pair.second is None:
        return pair.first
    D = space.estimate(rule(space.of(pair.first), space.of(pair.second), pair.weight))
    return torch.where(pair.weight == 1.0, pair.first, D)


def _inner(v: Tensor, w: Tensor, axes: int) -> Tensor:
    """Return v . w over the last ``axes`` axes, with those of length 1, in an order that sees no batch."""
    lead = v.shape[: v.ndim - axes]
    return dot(v.flatten(-axes).flatten(0, -2), w.flatten(-axes).flatten(0, -2)).reshape(*lead, *[1] * axes)


def _square(v: Tensor, axes: int) -> Tensor:
    lead = v.shape[: v.ndim - axes]
    return sum_of_squares(v.flatten(-axes).flatten(0, -2)).reshape(*lead, *[1] * axes)
