r"""Posteriors of sbi, NPSE and FMPE, on this engine.

    p(theta_t | theta_0) = N(alpha_t theta_0, sigma_t^2),   t from t_min (data) to t_max (noise)

    estimator                 alpha                                  sigma                     network gives
    VPScoreEstimator          exp(-t^2 (b1 - b0) / 4 - t b0 / 2)     sqrt(1 - alpha^2)         score
    SubVPScoreEstimator       the same                               1 - alpha^2               score
    VEScoreEstimator          1                                      s0 (s1 / s0)^t            score
    FlowMatchingEstimator     1 - t                                  t + noise_scale           d theta / dt

Samples start from sbi's own base, the training parameters' moments carried to t_max. What sbi makes of several
observations, or of a guidance, is its own ``potential.gradient``, called and not written again.

Source: sbi 0.27, neural_nets/estimators and inference/potentials.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike
from torch import Tensor, nn

from fastscore.data.affine import Affine
from fastscore.errors import typed, unknown
from fastscore.model.score import ScoreModel
from fastscore.process.beta import LinearBeta
from fastscore.process.continuous import VE, VP, Flow, SubVP
from fastscore.process.parametrization import Parametrization
from fastscore.process.schedule import Array, Schedule

IID = ("fnpe", "gauss", "auto_gauss", "jac_gauss")


@dataclass(frozen=True)
@typed
class NoisyFlow:
    """Flow matching that leaves noise in the data: alpha = 1 - t, sigma = t + noise; from t = 0 on alpha stays 1.

    The network is trained on t in 0 .. 1. A clean end is the estimate of x_0 at t = 0, which takes off the last noise.
    """

    noise: float = 1e-3
    t_end = 0.0
    T = 1.0
    prior_std = 1.0

    def __post_init__(self) -> None:
        if not 0.0 < self.noise < math.inf:
            raise ValueError(f"NoisyFlow: noise = {self.noise} must be positive; without noise it is Flow()")

    @property
    def t_clean(self) -> float:
        return -self.noise

    def alpha(self, t: ArrayLike) -> Array:
        return 1.0 - np.maximum(np.asarray(t, np.float64), 0.0)

    def sigma(self, t: ArrayLike) -> Array:
        return np.asarray(t, np.float64) + self.noise

    def dalpha(self, t: ArrayLike) -> Array:
        return -(np.asarray(t, np.float64) >= 0.0).astype(np.float64)

    def dsigma(self, t: ArrayLike) -> Array:
        return np.ones_like(np.asarray(t, np.float64))


@typed
def from_sbi(
    posterior: Any,
    x: Tensor | None = None,
    *,
    iid: str | None = None,
    iid_params: Mapping[str, Any] | None = None,
    guidance: str | None = None,
    guidance_params: Mapping[str, Any] | None = None,
) -> ScoreModel:
    r"""Return the score model of a ``VectorFieldPosterior`` of sbi, which is not changed by it.

        model = from_sbi(posterior)
        theta = Sampler(model, steps=25, batch=1000).run(range(n), cond=x)  # [*x_shape] for all, or one a sample

    Samples are not held to the prior's support; ``sample`` does that.

    Args:
        posterior: of NPSE (VP, sub-VP, VE) or FMPE; its weights are read as they are at each run.
        x: an observation, [*x_shape]: the model is then that of this one posterior, without a condition, and an
            embedding network sees x once an evaluation. With ``iid``, [n, *x_shape].
        iid: how sbi composes the scores of n observations of the same parameters, one of IID. One time for all: a
            solver with a grid. "auto_gauss" draws from each posterior first, by a seed of its own.
        iid_params: of that method. guidance, guidance_params: as of sbi's ``sample``.

    Raises:
        ValueError: what is no such posterior; noise levels that are none of the above; several observations that are
            not said to be iid; what sbi refuses together; fnpe of a flow, whose score says nothing at pure noise.
    """
    estimator = estimator_of(posterior)
    schedule, flow = _schedule(estimator), _is(estimator, "FlowMatchingEstimator")
    observed = None if x is None else observations(estimator, x)
    gradient = iid is not None or guidance is not None
    _check(estimator, observed, iid, guidance, flow)
    shape = tuple(estimator.input_shape)
    composed = bool(getattr(estimator, "compose_enabled", False))
    if gradient:
        potential = copy.copy(posterior.potential_fn)
        several = {"x_is_iid": iid is not None, "iid_method": iid, "iid_params": _plain(iid_params)}
        potential.set_x(observed, **several, guidance_method=guidance, guidance_params=_plain(guidance_params))
        net: nn.Module = Gradient(estimator, potential)
    else:
        net = Estimator(estimator, flow, observed)
    fewer = math.sqrt(len(observed)) if observed is not None and iid == "fnpe" else 1.0
    base = Affine(_columns(estimator.mean_base, shape), _columns(estimator.std_base / fewer, shape))
    plain = Affine((0.0,) * shape[-1], (schedule.prior_std,) * shape[-1])
    return ScoreModel(
        net,
        shape,
        schedule,
        Parametrization("flow" if flow and not gradient else "score", "t"),
        cond_shape=tuple(estimator.condition_shape) if observed is None else None,
        transform=Affine(_columns(estimator._theta_shift, shape), _columns(estimator._theta_scale, shape))
        if composed
        else None,
        base=None if base == plain else base,
    )


class Estimator(nn.Module):
    """An estimator of sbi as a network: its score, or its d theta / dt, at one observation or at each sample's own."""

    def __init__(self, estimator: Any, flow: bool, x: Tensor | None) -> None:
        super().__init__()
        self.estimator, self.flow = estimator, flow
        self.x: Tensor | None
        self.register_buffer("x", x)

    def forward(self, u: Tensor, t: Tensor, cond: Any = None) -> Tensor:
        x = cond if self.x is None else self.x
        x, t = (x.to(u.dtype) if x.is_floating_point() else x), t.to(u.dtype)
        return (self.estimator.ode_fn if self.flow else self.estimator.score)(u, x, t)


class Gradient(nn.Module):
    """The score of sbi's own potential: several observations composed, or one with guidance."""

    def __init__(self, estimator: Any, potential: Any) -> None:
        super().__init__()
        self.estimator, self.potential = estimator, potential  # the module is named, so that it is found

    def forward(self, u: Tensor, t: Tensor, cond: Any = None) -> Tensor:
        if not bool((t == t[0]).all()):
            raise ValueError(
                "sbi composes and guides scores at one time for all samples, and an adaptive solver gives each its "
                "own: use a solver with a grid"
            )
        devices = [u.device] if u.device.type == "cuda" else []
        with torch.random.fork_rng(devices):  # auto_gauss draws from sbi's own sampler, by torch's global state
            torch.manual_seed(0)
            tracked = torch.is_grad_enabled()
            score = self.potential.gradient(u[:, None], t[0].to(u.dtype), track_gradients=tracked)
        return score.reshape(u.shape)


def observations(estimator: Any, x: Any) -> Tensor:
    """Return observations, [n, *x_shape], on the device of an estimator; ValueError for another shape."""
    shape, x = tuple(estimator.condition_shape), torch.as_tensor(x)
    if tuple(x.shape[-len(shape) :]) != shape or x.ndim > len(shape) + 1 or not x.numel():
        raise ValueError(f"x is {tuple(x.shape)}; observations of this posterior are {shape}, or {('n', *shape)}")
    return x.reshape(-1, *shape).to(estimator.mean_base.device)


def estimator_of(posterior: Any) -> Any:
    """Return the network of a posterior; ValueError for one that is not of NPSE or FMPE."""
    estimator = getattr(posterior, "vector_field_estimator", None)
    if estimator is None:
        kind = type(posterior).__name__
        remedy = "give one of its posteriors" if hasattr(posterior, "posteriors") else "made by NPSE or FMPE"
        raise ValueError(f"from_sbi: a {kind} is no VectorFieldPosterior of sbi, {remedy}")
    return estimator


def _is(estimator: Any, name: str) -> bool:
    return any(kind.__name__ == name for kind in type(estimator).__mro__)


def _schedule(estimator: Any) -> Schedule:
    """Return the noise levels of an estimator, which must be those of its ``mean_t_fn`` and ``std_fn``."""
    end, T = float(estimator.t_min), float(estimator.t_max)
    kind, made = type(estimator).__name__, None
    if _is(estimator, "FlowMatchingEstimator") and T == 1.0:
        made = NoisyFlow(float(estimator.noise_scale)) if estimator.noise_scale else Flow(max(end, 1e-3))
    elif _is(estimator, "VPScoreEstimator") or _is(estimator, "SubVPScoreEstimator"):
        beta = LinearBeta(float(estimator.beta_min), float(estimator.beta_max))
        made = (VP if _is(estimator, "VPScoreEstimator") else SubVP)(beta, t_end=end, T=T)
    elif _is(estimator, "VEScoreEstimator") and T == 1.0:
        made = VE(float(estimator.sigma_min), float(estimator.sigma_max), t_end=end)
    t = torch.linspace(max(end, 0.01), 0.98 * T, 7, dtype=torch.float64)
    theirs = [np.ravel(f(t).double().numpy()) for f in (estimator.mean_t_fn, estimator.std_fn)]
    ours = [] if made is None else [made.alpha(t.numpy()), made.sigma(t.numpy())]
    if made is None or not np.allclose(ours, theirs, rtol=1e-4, atol=1e-6):
        raise ValueError(
            f"the noise levels of this {kind} are not those of sbi's VP, sub-VP, VE or flow matching from t = "
            f"{end:.4g} to {T:.4g}: make the model by hand, ScoreModel(net, shape, Pair(alpha, sigma), ..)"
        )
    return made


def _check(estimator: Any, x: Tensor | None, iid: str | None, guidance: str | None, flow: bool) -> None:
    """Raise ValueError for what does not go together."""
    if x is None and (iid is not None or guidance is not None):
        raise ValueError("iid and guidance belong to the posterior of given observations: from_sbi(posterior, x, ..)")
    if iid is not None and iid not in IID:
        raise unknown("iid", iid, IID)
    if x is not None and len(x) > 1 and iid is None:
        raise ValueError(
            f"x holds {len(x)} observations: of the same parameters? then say how, iid='auto_gauss'; of their own? "
            "then leave x out and give each sample its own, run(ids, cond=x)"
        )
    if iid is not None and guidance is not None:
        raise ValueError(f"iid = {iid!r} and guidance = {guidance!r}: sbi composes scores without guidance only")
    if (iid is not None or guidance is not None) and getattr(estimator, "compose_enabled", False):
        raise ValueError(
            f"iid = {iid!r}, guidance = {guidance!r}: sbi has none with compose_standardization, which this network "
            "was trained with"
        )
    if iid is not None and x is not None and x.ndim != 2:
        raise ValueError(f"iid = {iid!r}: sbi composes observations that are vectors, not {tuple(x.shape[1:])}")
    if iid == "fnpe" and flow:
        raise ValueError("iid = 'fnpe' of a flow starts at pure noise, where its score is singular; take auto_gauss")


def _columns(values: Tensor, shape: tuple[int, ...]) -> tuple[float, ...]:
    """Return numbers of a parameter, [*shape] or fewer, by its last axis, along which alone they may differ."""
    full = values.detach().double().cpu().expand(1, *shape)[0].reshape(-1, shape[-1])
    if bool((full != full[:1]).any()):
        raise ValueError(f"parameters {shape} are standardised one by one, here they can be by the last axis alone")
    return tuple(full[0].tolist())


def _plain(parameters: Mapping[str, Any] | None) -> dict[str, Any] | None:
    return None if parameters is None else dict(parameters)
