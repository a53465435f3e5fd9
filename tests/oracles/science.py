"""Stand-ins with the interfaces of sbi and PhysicsNeMo, and runs of the libraries' own samplers recorded with them.

    python tests/oracles/science.py

writes tests/data/science.npz, with sbi 0.27 and nvidia-physicsnemo 2.2 installed: the libraries' estimators, schedulers
and samplers around the networks of this file, on normals that are recorded, too.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

FILE = Path(__file__).parents[1] / "data" / "science.npz"
MEAN_0, STD_0 = torch.tensor([3.0, -1.0]), torch.tensor([4.0, 0.5])
X, LEVELS, KNOTS, DRAWS = torch.tensor([0.3, -0.7]), ("vp", "subvp", "ve"), 21, 8
SHAPE, STEPS = (2, 2, 2), 6  # of PhysicsNeMo's samples; its steps
MEAN, VARIANCE = 0.7, 0.25  # of the Gaussian data of its exact predictor


class Wave(nn.Module):
    """A network of sbi, (theta, x, time) -> output: smooth, and of nothing but its input."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.tensor([[0.9, -0.4], [0.3, 0.7]]))

    def forward(self, theta: Tensor, x: Tensor, t: Tensor) -> Tensor:
        return torch.tanh(theta @ self.weight + 0.5 * x + t.reshape(-1, 1)) + 0.3 * theta


class _Estimator(ABC, nn.Module):
    """What VP, sub-VP, VE and flow-matching estimators of sbi have, as far as an adapter reads it."""

    t_min, t_max = 1e-3, 1.0
    input_shape = condition_shape = torch.Size([2])
    compose_enabled = False
    mean_0: Tensor
    std_0: Tensor

    def __init__(self, mean_0: Tensor = MEAN_0, std_0: Tensor = STD_0, net: nn.Module | None = None) -> None:
        super().__init__()
        self.net = Wave() if net is None else net
        for name, value in {"mean_0": mean_0, "std_0": std_0, "_theta_shift": mean_0, "_theta_scale": std_0}.items():
            self.register_buffer(name, value.clone())
        T = torch.tensor([self.t_max])
        alpha, sigma = self.mean_t_fn(T), self.std_fn(T)
        self.mean_base, self.std_base = alpha * mean_0, ((alpha * std_0).square() + sigma.square()).sqrt()

    @abstractmethod
    def mean_t_fn(self, t: Tensor) -> Tensor: ...

    @abstractmethod
    def std_fn(self, t: Tensor) -> Tensor: ...

    def score(self, u: Tensor, x: Tensor, t: Tensor) -> Tensor:
        t, x = t.expand(u.shape[:-1]), x.expand(u.shape)
        alpha, sigma = self.mean_t_fn(t), self.std_fn(t)
        mean, std = alpha * self.mean_0, ((alpha * self.std_0).square() + sigma.square()).sqrt()
        out = self.net(((u - mean) / std).reshape(-1, 2), x.reshape(-1, 2), sigma.reshape(-1)).view(u.shape)
        return -alpha / sigma * out - (u - mean) / std.square()


class VPScoreEstimator(_Estimator):
    """beta from 0.01 to 10."""

    beta_min, beta_max = 0.01, 10.0

    def mean_t_fn(self, t: Tensor) -> Tensor:
        return torch.exp(-0.25 * t.square() * (self.beta_max - self.beta_min) - 0.5 * t * self.beta_min)[..., None]

    def std_fn(self, t: Tensor) -> Tensor:
        return (1.0 - self.mean_t_fn(t).square()).sqrt()


class SubVPScoreEstimator(_Estimator):
    """As VP, with less noise; not a subclass of it there either."""

    t_min, beta_min, beta_max = 1e-2, 0.01, 10.0
    mean_t_fn = VPScoreEstimator.mean_t_fn

    def std_fn(self, t: Tensor) -> Tensor:
        return 1.0 - self.mean_t_fn(t).square()


class VEScoreEstimator(_Estimator):
    """sigma from 1e-4 to 10."""

    sigma_min, sigma_max = 1e-4, 10.0

    def mean_t_fn(self, t: Tensor) -> Tensor:
        return torch.ones_like(t)[..., None]

    def std_fn(self, t: Tensor) -> Tensor:
        return self.sigma_min * (self.sigma_max / self.sigma_min) ** t[..., None]


class FlowMatchingEstimator(_Estimator):
    """theta_t = (1 - t) theta_0 + (t + 1e-3) z, from N(0, 1)."""

    t_min, noise_scale = 0.0, 1e-3

    def __init__(self, mean_0: Tensor = MEAN_0, std_0: Tensor = STD_0, net: nn.Module | None = None) -> None:
        super().__init__(mean_0, std_0, net)
        self.mean_base, self.std_base = torch.zeros(1, 2), torch.ones(1, 2)

    def mean_t_fn(self, t: Tensor) -> Tensor:
        return (1.0 - t.clamp(max=0.99))[..., None]

    def std_fn(self, t: Tensor) -> Tensor:
        return (t + self.noise_scale)[..., None]

    def ode_fn(self, u: Tensor, x: Tensor, t: Tensor) -> Tensor:
        t, x = t.expand(u.shape[:-1]), x.expand(u.shape)
        mean = (1.0 - t[..., None]) * self.mean_0
        std = (((1.0 - t[..., None]) * self.std_0).square() + t[..., None].square() + 1e-6).sqrt()
        out = self.net(((u - mean) / std).reshape(-1, 2), x.reshape(-1, 2), t.reshape(-1)).view(u.shape)
        return out * (1.0 + self.std_0.square()).sqrt() - self.mean_0


ESTIMATORS = {
    "vp": VPScoreEstimator, "subvp": SubVPScoreEstimator, "ve": VEScoreEstimator, "flow": FlowMatchingEstimator
}  # fmt: skip


class Potential:
    """A potential of sbi with observations: the sum of their scores, for want of a better one."""

    def __init__(self, estimator: Any, prior: Any) -> None:
        self.vector_field_estimator, self.prior, self.device = estimator, prior, "cpu"
        self.set_x(None)

    def set_x(self, x_o: Any, x_is_iid: bool = False, **settings: Any) -> None:
        self.x_o, self.x_is_iid, self.settings = x_o, x_is_iid, settings
        self.guidance_method = settings.get("guidance_method")

    def gradient(self, theta: Tensor, time: Tensor, track_gradients: bool = False) -> Tensor:
        score = self.vector_field_estimator.score
        return torch.stack([score(theta, x, time) for x in self.x_o]).sum(0)


def posterior(estimator: Any, prior: Any = None, x: Tensor | None = None) -> Any:
    """Return what a VectorFieldPosterior has."""
    return SimpleNamespace(
        vector_field_estimator=estimator, potential_fn=Potential(estimator, prior), prior=prior, default_x=x
    )


class _Scheduler(ABC):
    def timesteps(self, n: int, *, device: Any = None, dtype: Any = None) -> Tensor:
        last, step = torch.zeros(1, dtype=dtype), torch.arange(n, dtype=dtype) / (n - 1)
        return torch.cat([self.spaced(step), last])

    @abstractmethod
    def spaced(self, step: Tensor) -> Tensor: ...


class EDMNoiseScheduler(_Scheduler):
    """alpha = 1, sigma = t."""

    sigma_min, sigma_max, rho = 0.002, 80.0, 7.0

    def alpha(self, t: Tensor) -> Tensor:
        return torch.ones_like(t)

    def alpha_dot(self, t: Tensor) -> Tensor:
        return torch.zeros_like(t)

    def sigma(self, t: Tensor) -> Tensor:
        return t

    def sigma_dot(self, t: Tensor) -> Tensor:
        return torch.ones_like(t)

    def spaced(self, step: Tensor) -> Tensor:
        top, low = self.sigma_max ** (1 / self.rho), self.sigma_min ** (1 / self.rho)
        return (top + step * (low - top)) ** self.rho


class VENoiseScheduler(EDMNoiseScheduler):
    """Its time is the variance."""

    sigma_min, sigma_max = 0.02, 100.0

    def sigma(self, t: Tensor) -> Tensor:
        return t.sqrt()

    def sigma_dot(self, t: Tensor) -> Tensor:
        return 0.5 / t.sqrt()

    def spaced(self, step: Tensor) -> Tensor:
        return self.sigma_max**2 * (self.sigma_min**2 / self.sigma_max**2) ** step


class VPNoiseScheduler(_Scheduler):
    """beta = 0.1 + 19.1 t."""

    beta_min, beta_d, epsilon_s, t_max = 0.1, 19.1, 1e-3, 1.0

    def alpha(self, t: Tensor) -> Tensor:
        return torch.exp(-0.5 * (0.5 * self.beta_d * t**2 + self.beta_min * t))

    def alpha_dot(self, t: Tensor) -> Tensor:
        return -0.5 * (self.beta_min + self.beta_d * t) * self.alpha(t)

    def sigma(self, t: Tensor) -> Tensor:
        return (1.0 - self.alpha(t) ** 2).sqrt()

    def sigma_dot(self, t: Tensor) -> Tensor:
        return -self.alpha(t) * self.alpha_dot(t) / self.sigma(t)

    def spaced(self, step: Tensor) -> Tensor:
        return self.t_max + step * (self.epsilon_s - self.t_max)


SCHEDULERS = {"edm": EDMNoiseScheduler, "vp": VPNoiseScheduler, "ve": VENoiseScheduler}


class Exact:
    """The x_0 predictor of data N(MEAN, VARIANCE) on the levels of a scheduler."""

    def __init__(self, scheduler: Any) -> None:
        self.scheduler = scheduler

    def __call__(self, x: Tensor, t: Tensor) -> Tensor:
        alpha, sigma = (f(t).reshape(-1, *[1] * (x.ndim - 1)) for f in (self.scheduler.alpha, self.scheduler.sigma))
        return MEAN + alpha * VARIANCE / (alpha**2 * VARIANCE + sigma**2) * (x - alpha * MEAN)


def normals(*shape: int) -> Tensor:
    """Return normals that are the same everywhere."""
    return torch.tensor(np.random.Generator(np.random.PCG64(7)).standard_normal(shape))


def _record() -> dict[str, Any]:
    return {**_sbi(), **_physicsnemo()}


def _sbi() -> dict[str, Any]:
    from foreign import recorded_normals, sbi_posterior

    out: dict[str, Any] = {}
    for kind in LEVELS:
        post = sbi_posterior(kind)
        for eta in (1.0, 0.5):
            with recorded_normals(normals(KNOTS, DRAWS, 1, 2).float()):
                theta = post.sample(
                    (DRAWS,), x=X, steps=KNOTS, predictor_params={"eta": eta}, reject_outside_prior=False,
                    show_progress_bars=False,
                )  # fmt: skip
            out[f"sbi/{kind}/{eta}"] = theta.numpy()
    post = sbi_posterior("flow")
    post.potential_fn.set_x(X[None])
    flow = post.potential_fn.neural_ode(X[None])
    out["sbi/flow/ode"] = flow.transform.inv(normals(DRAWS, 2).float()).detach().numpy()
    return out


def _physicsnemo() -> dict[str, Any]:
    from foreign import physicsnemo, recorded_normals

    samplers, schedulers = physicsnemo("samplers"), physicsnemo("noise_schedulers")
    out: dict[str, Any] = {}
    z = normals(1 + STEPS, 3, *SHAPE)
    for kind, own in SCHEDULERS.items():
        scheduler = getattr(schedulers, own.__name__)()
        start = scheduler.sigma(scheduler.timesteps(STEPS, dtype=torch.float64)[0]) * z[0]
        rhs = scheduler.get_denoiser(x0_predictor=Exact(scheduler))
        for solver in ("euler", "heun", *(["edm_stochastic_euler", "edm_stochastic_heun"] if kind == "edm" else [])):
            churn = {"S_churn": 2.0, "S_noise": 1.003, "num_steps": STEPS} if "stochastic" in solver else None
            with recorded_normals(z[1:]):
                x = samplers.sample(rhs, start, scheduler, STEPS, solver=solver, solver_options=churn)
            out[f"physicsnemo/{kind}/{solver}"] = x.numpy()
    return out


if __name__ == "__main__":
    np.savez_compressed(FILE, **_record())
    print({k: v.shape for k, v in np.load(FILE).items()}, math.ceil(FILE.stat().st_size / 1000), "kB")
