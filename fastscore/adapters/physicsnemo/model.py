r"""Networks and noise schedulers of PhysicsNeMo on this engine, and its solvers in PhysicsNeMo's ``sample``.

    x_t = alpha(t) x_0 + sigma(t) z,   samples start from sigma(T) z,   drift = alpha' / alpha x,   ``diffusion`` = g^2

What a network is given, and what it says:

    network                                          called as                               predicts
    preconditioners, any ``DiffusionModel``          net(x, t, condition=condition)          "x0", "score", "epsilon"
    EDMPrecond and its likes (legacy)                net(x, t, condition=condition, ..)      "x0"
    EDMPrecondSuperResolution (legacy, CorrDiff)     net(x, condition, t, ..)                "x0"
    a ``Predictor``, multi-diffusion's patches too   net(x, t)                               "x0", "score", "epsilon"
    a ``Denoiser`` of denoising_type "ode"           net(x, t)                               "ode"

Source: physicsnemo 2.2, diffusion/{base, noise_schedulers, preconditioners, samplers, multi_diffusion}.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike
from torch import Tensor, nn

from fastscore.data.affine import Affine
from fastscore.errors import typed, unknown
from fastscore.model.conditions import finite
from fastscore.model.score import ScoreModel
from fastscore.network.surroundings import behind
from fastscore.process.continuous import EDM
from fastscore.process.grid import Times
from fastscore.process.parametrization import Parametrization
from fastscore.process.schedule import Array, Schedule

PREDICTS = {"x0": "x0", "score": "score", "epsilon": "eps", "ode": "flow"}
EDM_LIKE = ("EDMNoiseScheduler", "EDMLogUniformNoiseScheduler")


@dataclass(frozen=True)
class LinearGaussian:
    """A linear Gaussian noise scheduler of PhysicsNeMo as a schedule, on its own time.

    Attributes:
        scheduler: with alpha, sigma and their derivatives.
        T, t_end: the first of its time steps, and the last one above 0.
    """

    scheduler: Any
    T: float
    t_end: float
    t_clean = 0.0

    @property
    def prior_std(self) -> float:
        return float(self.sigma(self.T))

    def alpha(self, t: ArrayLike) -> Array:
        return self._of("alpha", t)

    def sigma(self, t: ArrayLike) -> Array:
        return self._of("sigma", t)

    def dalpha(self, t: ArrayLike) -> Array:
        return self._of("alpha_dot", t)

    def dsigma(self, t: ArrayLike) -> Array:
        return self._of("sigma_dot", t)

    def _of(self, name: str, t: ArrayLike) -> Array:
        time = torch.as_tensor(np.array(t, np.float64))
        return getattr(self.scheduler, name)(time).expand(time.shape).numpy().astype(np.float64)

    def __repr__(self) -> str:
        numbers = [f"{k}={v!r}" for k, v in vars(self.scheduler).items() if isinstance(v, int | float)]
        return f"{type(self.scheduler).__name__}({', '.join(numbers)})"


class Residual(Affine):
    """x = mean + r: samples around a mean field, as CorrDiff's around its regression.

    Everything but the network is in the units of x; equal only to itself.
    """

    def __init__(self, mean: Tensor) -> None:
        super().__init__((0.0,) * mean.shape[-1], (1.0,) * mean.shape[-1])
        object.__setattr__(self, "mean", mean.detach())

    mean: Tensor

    def __call__(self, y: Any) -> Any:
        return y + self._like(y)

    def inverse(self, x: Any) -> Any:
        """Return r = x - mean."""
        return x - self._like(x)

    def shift_like(self, x: Tensor) -> Tensor:
        """Return the mean field, of the type of x."""
        return self.mean.to(x)

    def _like(self, x: Any) -> Any:
        return self.mean.cpu().numpy() if isinstance(x, np.ndarray) else self.mean.to(x)

    def __eq__(self, other: object) -> bool:
        return self is other

    def __hash__(self) -> int:
        return id(self)


def schedule_of(scheduler: Any) -> Schedule:
    """Return the schedule of a noise scheduler.

    Raises:
        ValueError: no linear Gaussian one, or one whose noise is Student's t.
    """
    kind = type(scheduler).__name__
    if hasattr(scheduler, "nu"):
        raise ValueError(f"{kind}: its noise is Student's t, and every solver here adds Gaussian noise")
    missing = [k for k in ("alpha", "sigma", "alpha_dot", "sigma_dot", "timesteps") if not hasattr(scheduler, k)]
    if missing:
        raise ValueError(f"{kind} has no {', '.join(missing)}: a LinearGaussianNoiseScheduler of PhysicsNeMo has")
    T, end = scheduler.timesteps(2, dtype=torch.float64)[:2].tolist()
    if kind in EDM_LIKE:
        return EDM(float(scheduler.sigma_min), float(scheduler.sigma_max))
    return LinearGaussian(scheduler, float(T), float(end))


@typed
def times(scheduler: Any, steps: int) -> Times:
    """Return the grid of a noise scheduler, its ``timesteps(steps)``, in float64; they end at 0.

    Raises:
        ValueError: fewer than two steps, of which no scheduler makes times.
    """
    if steps < 2:
        raise ValueError(f"steps = {steps} must be at least 2: PhysicsNeMo divides by steps - 1")
    return Times(tuple(scheduler.timesteps(steps, dtype=torch.float64).tolist()))


@typed
def from_physicsnemo(
    network: Callable[..., Tensor],
    scheduler: Any,
    shape: tuple[int, ...],
    *,
    predicts: str = "x0",
    cond_shape: Any = None,
    mean: Tensor | None = None,
) -> ScoreModel:
    r"""Return the score model of a diffusion model of PhysicsNeMo and its noise scheduler.

        model = from_physicsnemo(net, EDMNoiseScheduler(sigma_max=800), (3, 64, 64), cond_shape=(12, 64, 64))
        members = Sampler(model, solver="heun", grid=times(scheduler, 18), batch=8).run(range(100), cond=image)

    Member k is a function of seed and id k: draw ids in batches of any size, on any machine, and later more of them.

    Args:
        network: see the table above; its parameters' names say which it is.
        scheduler: linear and Gaussian, PhysicsNeMo's or your own.
        shape: of a sample, [C, H, W] say.
        predicts: one of PREDICTS; "ode" loses digits at small t.
        cond_shape: of the condition of a sample, without the batch axis; a dict by name becomes a TensorDict, and of
            legacy networks keywords, those of ``condition`` (``img_lr``) apart. None: the network takes none.
        mean: [*shape]: samples are mean + what the network was trained on, the residual of a regression. Another mean
            is another model: a forecast of another day, say.

    Raises:
        ValueError: an unknown prediction, a network that is called otherwise, a scheduler that is not Gaussian, or a
            mean of another shape or not finite.
    """
    if predicts not in PREDICTS:
        raise unknown("predicts", predicts, PREDICTS)
    if mean is not None and (tuple(mean.shape) != tuple(shape) or not bool(finite("mean", mean[None]).numel())):
        raise ValueError(f"mean has shape {tuple(mean.shape)}; it must be that of a sample, {tuple(shape)}")
    net = Called(network, convention(network))
    return ScoreModel(
        net,
        shape,
        schedule_of(scheduler),
        Parametrization(PREDICTS[predicts], "t"),
        cond_shape=cond_shape,
        transform=None if mean is None else Residual(mean),
        modules=() if isinstance(network, nn.Module) else tuple(behind(network)),
    )


class Called(nn.Module):
    """A network of PhysicsNeMo as ``net(u, c_noise, cond)``."""

    def __init__(self, network: Callable[..., Tensor], convention: str) -> None:
        super().__init__()
        self.network, self.convention = network, convention

    def forward(self, u: Tensor, c_noise: Tensor, cond: Any = None) -> Tensor:
        t = c_noise.to(u.dtype).contiguous()
        if self.convention == "plain":
            if cond is not None:
                raise ValueError("this network is called as (x, t) and takes no condition; leave cond_shape out")
            return self.network(u, t)
        if self.convention == "new":
            if isinstance(cond, dict):
                cond = _tensor_dict()(cond, batch_size=[len(u)])
            return self.network(u, t) if cond is None else self.network(u, t, condition=cond)
        named = dict(cond) if isinstance(cond, dict) else {} if cond is None else {"condition": cond}
        if self.convention == "super":
            return self.network(u, named.pop("img_lr", named.pop("condition", None)), t, **named)
        return self.network(u, t, **named)


def convention(network: Any) -> str:
    """Return how a network is called: "super", "legacy", "new" or "plain", by the names of its parameters.

    Raises:
        ValueError: none of these.
    """
    inner: Any = network
    while isinstance(inner, nn.Module):  # compiled, or in a wrapper of torch's for many devices
        wrapped = getattr(inner, "_orig_mod", None) or getattr(inner, "module", None)
        if not isinstance(wrapped, nn.Module):
            break
        inner = wrapped
    try:
        parameters = inspect.signature(inner.forward if isinstance(inner, nn.Module) else inner).parameters
    except (TypeError, ValueError):
        parameters = {}
    names = list(parameters)
    needed = [p for p in parameters.values() if p.default is p.empty and p.kind <= p.POSITIONAL_OR_KEYWORD]
    if names[1:3] == ["img_lr", "sigma"]:
        return "super"
    if names[1:2] == ["sigma"]:
        return "legacy"
    if "condition" in names:
        return "new"
    if len(needed) == 2:
        return "plain"
    raise ValueError(
        f"a {type(inner).__name__} called as ({', '.join(names)}) is no network of PhysicsNeMo, (x, t, condition), "
        "(x, sigma, ..), (x, img_lr, sigma) or (x, t): wrap it, lambda x, t, condition: .."
    )


def _tensor_dict() -> Any:
    try:
        return import_module("tensordict").TensorDict
    except ModuleNotFoundError as error:
        message = "a condition by name becomes a TensorDict for a network of PhysicsNeMo: pip install tensordict"
        raise ImportError(message, name="tensordict") from error
