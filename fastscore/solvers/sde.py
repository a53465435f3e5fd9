"""Predictors of the reverse SDE: one noise draw a step and, but for StochasticHeun, one network evaluation.

Names follow the papers; t is where a step starts, s < t where it ends. A step to the clean end
(sigma_s = 0) returns the denoised estimate E[x_0 | x_t] and draws no noise.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from itertools import pairwise

import numpy as np

from fastscore.errors import typed
from fastscore.plan.rows import Row
from fastscore.process.schedule import Array, Schedule, f, g2, transition
from fastscore.solvers.eta import checked_eta, eta_of
from fastscore.solvers.variants import published, published_repr


@dataclass(frozen=True)
@typed
class EulerMaruyama:
    r"""Euler-Maruyama on the family of reverse SDEs with the marginals of the forward SDE.

        x_s = x_t - [f x_t - (1 + eta^2)/2 g^2 score] h + eta g sqrt(h) z,   h = t - s

    Args:
        eta: 1 is Anderson's reverse SDE, 0 the probability-flow ODE; one number, or one a step (see eta.py).
        final: what a step to sigma = 0 returns. "tweedie" is E[x_0 | x_t]; "mean" is the step above without its
            noise, h as long as in the step before: the tutorials' last line, after linspace(T, t_end, n) with
            uniform(n, clean=True). On a grid that ends at sigma > 0, "mean" drops the last step's noise.

    The diffusion does not depend on x, so Milstein's scheme is the same (its term g g'(x) vanishes) and the strong
    order is 1. Where f is infinite, at pure noise, the first step is DDIM's.
    "mean" is less than an estimate of the data: on a Gaussian of std 0.1, Song's dx = 25^t dw and 500
    steps it has std 0.090, "tweedie" 0.100, and x at t_end 0.110.

    Raises:
        ValueError: a value out of range; "mean" with one step to a clean end at -inf, which has no length.

    Source: Song et al. 2021, eq. 6 and appendix D; the family: Huang et al. 2021; "mean": their tutorial.
    """

    eta: float | Callable[[float, float], float] = 1.0
    final: str = published("tweedie")
    order = 1
    __repr__ = published_repr

    def __post_init__(self) -> None:
        checked_eta("EulerMaruyama", self.eta)
        if self.final not in ("tweedie", "mean"):
            raise ValueError(f"EulerMaruyama: final = {self.final!r} must be tweedie or mean")

    def steps(self, schedule: Schedule, t: Array) -> list[list[Row]]:
        groups = [self._rows(schedule, t, s) for t, s in pairwise(t)]
        if self.final == "mean":
            end = t[-1] if t[-1] != schedule.t_clean or len(t) == 2 else t[-2] - (t[-3] - t[-2])
            if not math.isfinite(end):
                raise ValueError(
                    f"EulerMaruyama: final = 'mean' needs a step before the one to t = {end}; use two steps"
                )
            groups[-1] = [replace(self.row(schedule, t[-2], end), s=float(t[-1]), c=0.0)]
        return groups

    def _rows(self, schedule: Schedule, t: np.float64, s: np.float64) -> list[Row]:
        if s == schedule.t_clean:
            return [denoise(t, s)]
        eta = eta_of("EulerMaruyama", self.eta, schedule, t, s)
        return leave_pure_noise(schedule, t, s, eta) or [self.row(schedule, t, s)]

    def row(self, schedule: Schedule, t: float, s: float) -> Row:
        """Return the step from ``t`` to ``s``."""
        diffusion, h, eta = g2(schedule, t), t - s, eta_of("EulerMaruyama", self.eta, schedule, t, s)
        return Row(
            float(t),
            float(s),
            a=float(1.0 - f(schedule, t) * h),
            b=float(0.5 * (1.0 + eta**2) * diffusion * h),
            c=float(eta * np.sqrt(diffusion * h)),
            m="score",
        )


Milstein = EulerMaruyama  # the same scheme where the diffusion does not depend on x, as here


@dataclass(frozen=True)
@typed
class ReverseDiffusion:
    r"""Reverse-diffusion sampling: the exact forward transition, run backwards.

    With x_t = r x_s + sqrt(v) z the forward step (see schedule.transition),

        x_s = (2 - r) x_t + v score + sqrt(v) z

    ``probability_flow`` halves the score term and draws no noise.

    Source: Song et al. 2021, appendix E; with the exact transition it holds for any schedule.
    """

    probability_flow: bool = False
    order = 1

    def steps(self, schedule: Schedule, t: Array) -> list[list[Row]]:
        return [[self._row(schedule, t, s)] for t, s in pairwise(t)]

    def _row(self, schedule: Schedule, t: np.float64, s: np.float64) -> Row:
        if s == schedule.t_clean:
            return denoise(t, s)
        r, v = transition(schedule, s, t)
        score, noise = (0.5, 0.0) if self.probability_flow else (1.0, 1.0)
        return Row(float(t), float(s), a=float(2.0 - r), b=float(score * v), c=float(noise * np.sqrt(v)), m="score")


@dataclass(frozen=True)
@typed
class Ancestral:
    r"""Ancestral sampling: the mean of the posterior q(x_s | x_t, x_0) at x_0 = D, plus noise.

        x_s = (r sigma_s^2 / sigma_t^2) x_t + (alpha_s v / sigma_t^2) D + c z

    ``variance`` "small" is the posterior's own, c^2 = v sigma_s^2 / sigma_t^2; "large" is c^2 = v
    (beta_i on a DDPM table, and what Song's code uses on VP). ``denoise=False`` also adds the large
    variance in a step to sigma = 0, as diffusers does.

    Source: Ho et al. 2020, eq. 7 and section 3.2; Song et al. 2021, eq. 4 and appendix F.
    """

    variance: str = "small"
    denoise: bool = True
    order = 1

    def __post_init__(self) -> None:
        if self.variance not in ("small", "large"):
            raise ValueError(f"variance = {self.variance!r} must be small or large")

    def steps(self, schedule: Schedule, t: Array) -> list[list[Row]]:
        return [[self._row(schedule, t, s)] for t, s in pairwise(t)]

    def _row(self, schedule: Schedule, t: np.float64, s: np.float64) -> Row:
        if s == schedule.t_clean and self.denoise:
            return denoise(t, s)
        r, v = transition(schedule, s, t)
        ratio = (schedule.sigma(s) / schedule.sigma(t)) ** 2
        c = np.sqrt(v * ratio if self.variance == "small" else v)
        b = schedule.alpha(s) * v / schedule.sigma(t) ** 2
        return Row(float(t), float(s), a=float(r * ratio), b=float(b), c=float(c))


DDPM = Ancestral  # Ho et al. 2020 call it sampling; on a DDPM table it is their algorithm 2


@dataclass(frozen=True)
@typed
class DDIM:
    r"""DDIM and everything between it and ancestral sampling.

        x_s = alpha_s D + sqrt(sigma_s^2 - c^2) eps + c z,   c = eta sigma_s / sigma_t sqrt(v)

    Args:
        eta: 0 is deterministic, 1 is Ancestral(variance="small"); one number, or one a step (see eta.py).
        keep_eps: only D is clipped when the plan clips or a guide bounds it, and eps follows from the clipped D; with
            this it stays the network's own, as in diffusers.
        fixed_stride: on a table of N levels and a grid of n steps, each step ends N // n indices below its start,
            as in diffusers' DDIM, wherever the next one starts. Where the two differ (a linspace grid, or a
            trailing one with n no divisor of N) x is taken for one with another level than it has.
        set_alpha_to_one: where a fixed stride leaves the table: to the data, or to index 0; diffusers' option.
        inverse: from data to noise, as diffusers' DDIMInverseScheduler: the steps of a fixed stride upwards, each
            with the eps of the index where it ends at the x where it starts. ``init`` of a sampler with
            start="state" is the data. ProbabilityFlow.encode solves the same ODE without that shift of labels.

    Raises:
        ValueError: eta out of range; fixed_stride on a schedule without indices; options that need one another.

    Source: Song et al. 2020 (DDIM), eq. 12 and 16, for any (alpha, sigma).
    """

    eta: float | Callable[[float, float], float] = 0.0
    keep_eps: bool = False
    fixed_stride: bool = published(False)
    set_alpha_to_one: bool = published(True)
    inverse: bool = published(False)
    order = 1
    __repr__ = published_repr

    def __post_init__(self) -> None:
        checked_eta("DDIM", self.eta, most=1.0)
        if not (self.set_alpha_to_one or self.fixed_stride):
            raise ValueError(
                "DDIM: set_alpha_to_one=False goes with fixed_stride=True; end the grid at index 0 instead"
            )
        if self.inverse and (not self.fixed_stride or self.eta or self.keep_eps):
            raise ValueError("DDIM: inverse=True goes with fixed_stride=True, eta=0 and keep_eps=False")

    def steps(self, schedule: Schedule, t: Array) -> list[list[Row]]:
        ends = self._strides(schedule, t) if self.fixed_stride else t[1:]
        if self.inverse:
            return [_inverse(schedule, start, end) for end, start in zip(t[-2::-1], ends[::-1], strict=True)]
        return [self._rows(schedule, start, end) for start, end in zip(t[:-1], ends, strict=True)]

    def _strides(self, schedule: Schedule, t: Array) -> Array:
        if schedule.t_clean != -1.0:
            raise ValueError(f"DDIM: fixed_stride counts indices of a table; {type(schedule).__name__} has none")
        ends = t[:-1] - (int(schedule.T) + 1) // (len(t) - 1)
        return np.where(ends < 0.0, schedule.t_clean if self.set_alpha_to_one else 0.0, ends)

    def _rows(self, schedule: Schedule, t: np.float64, s: np.float64) -> list[Row]:
        if s == schedule.t_clean:
            return [denoise(t, s)]
        _, v = transition(schedule, s, t)
        c = eta_of("DDIM", self.eta, schedule, t, s, most=1.0) * schedule.sigma(s) / schedule.sigma(t) * np.sqrt(v)
        direction = np.sqrt(np.maximum(schedule.sigma(s) ** 2 - c**2, 0.0))
        alpha = float(schedule.alpha(s))
        if self.keep_eps:
            keep = Row(float(t), float(t), a=1.0, b=0.0, m="eps", push=0, own=True)
            return [keep, Row(float(t), float(s), 0.0, alpha, float(c), w=(float(direction),), evaluate=False)]
        a = direction / schedule.sigma(t)
        return [Row(float(t), float(s), a=float(a), b=float(alpha - schedule.alpha(t) * a), c=float(c))]


def _inverse(schedule: Schedule, t: np.float64, s: np.float64) -> list[Row]:
    """Return a step of DDIM from t up to s, with the eps that belongs to s."""
    a = schedule.alpha(s) / schedule.alpha(t)
    return [Row(float(s), float(s), float(a), float(schedule.sigma(s) - a * schedule.sigma(t)), m="eps")]


@dataclass(frozen=True)
@typed
class StochasticHeun:
    r"""Heun's method for the reverse SDEs, the same noise in both stages.

        x_p = x_t + h a(x_t, t) + G z,   x_s = x_t + h/2 [a(x_t, t) + a(x_p, s)] + G z,   h = t - s

    with a = -f x + (1 + eta^2)/2 g^2 score and G^2 = eta^2 h (g^2(t) + g^2(s))/2. Strong order 1; weak order 2,
    since the noise is additive. Where f is infinite, at pure noise, the first step is DDIM's.

    Args:
        eta: see EulerMaruyama.
        weights: how g counts. "rms" is as above. "stages" is the stochastic Runge-Kutta scheme as it is written
            down, x_s = x_t + (K1 + K2)/2 with K = h a + eta g sqrt(h) z at (x_t, t) and (x_t + K1, s): noise g(t)
            in x_p and (g(t) + g(s))/2 at the end, a little less than the rms.

    Raises:
        ValueError: a value out of range.

    Source: Ruemelin 1982; Karras et al. 2022, appendix B, for the family of SDEs.
    """

    eta: float | Callable[[float, float], float] = 1.0
    weights: str = published("rms")
    order = 2
    __repr__ = published_repr

    def __post_init__(self) -> None:
        checked_eta("StochasticHeun", self.eta)
        if self.weights not in ("rms", "stages"):
            raise ValueError(f"StochasticHeun: weights = {self.weights!r} must be rms or stages")

    def steps(self, schedule: Schedule, t: Array) -> list[list[Row]]:
        return [self._rows(schedule, t, s) for t, s in pairwise(t)]

    def _rows(self, schedule: Schedule, t: np.float64, s: np.float64) -> list[Row]:
        if s == schedule.t_clean:
            return [denoise(t, s)]
        eta = eta_of("StochasticHeun", self.eta, schedule, t, s)
        if first := leave_pure_noise(schedule, t, s, eta):
            return first
        h, ends = float(t - s), np.array([t, s])
        (drift, drift_s), diffusion = f(schedule, ends).tolist(), g2(schedule, ends)
        pull, pull_s = (0.5 * (1.0 + eta**2) * diffusion).tolist()  # of the score
        # h a(x_t, t) in terms of D and eps, which two slots keep: x_p has noise that x_t has not.
        alpha, sigma = float(schedule.alpha(t)), float(schedule.sigma(t))
        in_x0, in_eps = -h * drift * alpha, -h * drift * sigma - h * pull / sigma
        noise, share = float(eta * np.sqrt(0.5 * h * diffusion.sum())), 1.0
        if self.weights == "stages":  # z returns as x_p - x_t - h a(x_t, t), times the share of the noise that stays
            noise = float(eta * np.sqrt(h * diffusion[0]))
            share = 0.5 + 0.5 * float(np.sqrt(diffusion[1] / diffusion[0]))
        keep = Row(float(t), float(t), 1.0, 0.0, m="x0", push=0)
        predict = Row(float(t), float(s), 1.0 - h * drift, -h * pull / sigma, noise, m="eps", push=1, evaluate=False)
        x, rate = 1.0 - share, 0.5 - share  # weights of x_t and of h a(x_t, t)
        w = (rate * in_x0 + x * alpha, rate * in_eps + x * sigma)
        return [keep, predict, Row(float(s), float(s), share - 0.5 * h * drift_s, 0.5 * h * pull_s, w=w, m="score")]


def leave_pure_noise(schedule: Schedule, t: np.float64, s: np.float64, eta: float) -> list[Row]:
    """Return DDIM's step if there is no signal at ``t``, else nothing: x_s depends on x_t by its noise alone."""
    return DDIM(min(eta, 1.0)).steps(schedule, np.array([t, s]))[0] if schedule.alpha(t) == 0.0 else []


def denoise(t: float, s: float) -> Row:
    """Return the last step to sigma = 0: x_s = D, Tweedie's estimate of the data."""
    return Row(float(t), float(s), a=0.0, b=1.0)
