"""Denoisers D(x, noise) and velocities v(x, t) of other libraries as score models."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

from torch import Tensor, nn

from fastscore.adapters.curves import Curves
from fastscore.adapters.edm import from_edm
from fastscore.adapters.wrapped import Out, wrap
from fastscore.errors import unknown
from fastscore.model.score import ScoreModel
from fastscore.process.continuous import EDM, Flow
from fastscore.process.parametrization import Parametrization
from fastscore.process.schedule import Schedule

KINDS = ("k-diffusion", "edm", "azula", "deepinv")


def from_denoiser(
    D: Callable[..., Any],
    shape: tuple[int, ...],
    *,
    kind: str | None = None,
    call: str | None = None,
    sigma_min: float | None = None,
    sigma_max: float | None = None,
    **fields: Any,
) -> ScoreModel:
    r"""Return the score model of a denoiser, D = E[x_0 | x].

        k-diffusion   D(x, sigma[N], **extra)       x = x_0 + sigma z
        edm           D(x, sigma, class_labels)     the same, labels one-hot; see from_edm
        azula         D(x, t, **extra).mean         (alpha, sigma) = D.schedule(t), x = alpha x_0 + sigma z
        deepinv       D(x, sigma, **extra)          as k-diffusion with images in [0, 1]

    Samples of a deepinv denoiser are in [-1, 1] here, as all images: it gets (x + 1) / 2 and sigma / 2.

    Args:
        D: the denoiser; a plain function D(x, sigma) counts as k-diffusion's.
        shape: of one sample.
        kind: whose convention it follows; found by the library that its class comes from if left out.
        call: how it takes a condition, as in ``wrap``: "x, sigma, y=labels".
        sigma_min, sigma_max: the noise that it was trained on, in units of the samples. Left out, D's own attributes
            of these names; azula's are those of its schedule.
        fields: of ScoreModel: classes, cond_shape, null, scales, ..

    Raises:
        ValueError: an unknown kind, a condition without a ``call`` that names it, or noise levels that are not known.
    """
    kind = _kind(D) if kind is None else kind
    if kind not in KINDS:
        raise unknown("kind", kind, KINDS)
    if kind == "edm":
        return from_edm(D, shape, call=call, sigma_min=sigma_min, sigma_max=sigma_max, **fields)
    if call is None and (fields.get("classes") or fields.get("cond_shape")):
        raise ValueError('say how the denoiser takes its condition: call="x, sigma, y=labels", see fastscore.adapters')
    net = wrap(D, call or "x, sigma", out="mean" if kind == "azula" else None)
    if kind == "azula":
        if sigma_min is not None or sigma_max is not None:
            raise ValueError("sigma_min, sigma_max: azula's denoisers have a schedule; give that these levels")
        return ScoreModel(net, shape, Curves(_attribute(D, "schedule")), Parametrization("x0", "t"), **fields)
    levels = (_level(D, "sigma_min", sigma_min), _level(D, "sigma_max", sigma_max))
    net = Signed(net) if kind == "deepinv" else net
    return ScoreModel(net, shape, EDM(*levels), Parametrization("x0", "sigma"), **fields)


def from_velocity(
    v: Callable[..., Any],
    shape: tuple[int, ...],
    *,
    noise_at: int,
    path: Callable[[Tensor], Any] | None = None,
    sigma_min: float = 0.0,
    call: str = "x, t",
    out: Out = None,
    **fields: Any,
) -> ScoreModel:
    r"""Return the score model of a flow-matching velocity, v = dx/dt in the network's own time.

        noise_at = 1    x_t = (1 - t) x_0 + t z                  rectified flow, Stable Diffusion 3, Flux
        noise_at = 0    x_t = t x_0 + (1 - (1 - sigma_min) t) z  Lipman et al., flow_matching, torchcfm

    Time runs one way here, data at 0 and noise at 1: of a network with noise_at = 0 time and sign are turned.

    A network trained on a coupling of noise and data (minibatch optimal transport, reflow) has a velocity but no score:
    sample it with solvers of the ODE on its own schedule.

    Args:
        v: the network.
        shape: of one sample.
        noise_at: the time at which its state is noise; nothing in a network says so.
        path: another pair than the straight one: a function of its time that returns (alpha, sigma), or a scheduler of
            flow_matching.
        sigma_min: noise left at the data, of the straight path.
        call, out: as in ``wrap``: ``x`` the state and ``t`` the network's own time; torchcfm's networks are called
            "t, x", those with steps for labels "x, 1000 * t".
        fields: of ScoreModel: classes, cond_shape, null, scales, ..

    Raises:
        ValueError: noise_at other than 0 and 1, sigma_min outside 0 .. 1 or beside a path, or a path on which noise
            does not grow.

    Source: Lipman et al. 2022, eq. 20 to 23; Liu et al. 2022; Esser et al. 2024, section 2.
    """
    if noise_at not in (0, 1):
        raise ValueError(f"noise_at = {noise_at!r} must be 1 or 0, the time at which the network's state is noise")
    if not 0.0 <= sigma_min < 1.0 or (path is not None and sigma_min):
        raise ValueError(f"sigma_min = {sigma_min} must lie in 0 .. 1, and belongs to the straight path")
    net = wrap(v, call, out)
    if path is None and sigma_min == 0.0:
        schedule: Schedule = Flow()
    else:
        schedule = Curves(path or partial(_straight, sigma_min, noise_at), noise_at)
    parametrization = Parametrization("flow", "t")
    return ScoreModel(net if noise_at else Turned(net), shape, schedule, parametrization, **fields)


class Signed(nn.Module):
    """A denoiser of images in [0, 1] for images in [-1, 1], whose noise is twice as large."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def forward(self, u: Tensor, c_noise: Tensor, cond: Any = None) -> Tensor:
        return 2.0 * self.net(0.5 * (u + 1.0), 0.5 * c_noise, cond) - 1.0


class Turned(nn.Module):
    """A velocity whose time runs from noise at 0 to data at 1, in time from data at 0 to noise at 1."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def forward(self, u: Tensor, c_noise: Tensor, cond: Any = None) -> Tensor:
        return -self.net(u, 1.0 - c_noise, cond)


def _straight(sigma_min: float, noise_at: int, t: Tensor) -> tuple[Tensor, Tensor]:
    """Return alpha and sigma of the straight path that leaves noise sigma_min at the data."""
    noise = t if noise_at else 1.0 - t
    return 1.0 - noise, noise + (1.0 - noise) * sigma_min


def _kind(D: Any) -> str:
    """Return whose convention a denoiser follows, by the libraries of its class and of those that it derives from."""
    libraries = {str(c.__module__).split(".")[0] for c in type(D).__mro__}
    if "azula" in libraries:
        return "azula"
    if "deepinv" in libraries:  # whose wrapper of this name has changed the range to [-1, 1] already
        return "k-diffusion" if type(D).__name__ == "MinusOneOneDenoiserWrapper" else "deepinv"
    return "edm" if hasattr(D, "round_sigma") or {"label_dim", "sigma_data"} <= set(dir(D)) else "k-diffusion"


def _attribute(D: Any, name: str) -> Any:
    found = getattr(D, name, None)
    if found is None:
        raise ValueError(f"the denoiser, a {type(D).__name__}, has no {name}")
    return found


def _level(D: Any, name: str, value: float | None) -> float:
    found = getattr(D, name, None) if value is None else value
    if found is None:
        raise ValueError(f"{name}: this denoiser does not say what noise it was trained on; give sigma_min, sigma_max")
    return float(found)
