"""The same small denoisers and velocities under the samplers of their libraries and under ours, on the same noise.

``python tests/oracles/denoised.py`` records what the libraries return in tests/data/denoised.json; tests compare ours
with that everywhere, and the libraries with it where they are installed.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from importlib.metadata import version
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import others
import pytest
import torch
from torch import Tensor, nn

import fastscore as fs
from fastscore.adapters import from_denoiser, from_velocity

FILE = Path(__file__).parents[1] / "data/denoised.json"
N, SHAPE, NULL = 4, (1, 2, 3), 3
STD = 0.5
_RNG = np.random.default_rng(7)
MEAN, X, Z = (
    torch.from_numpy(_RNG.standard_normal((*leading, *SHAPE))) for leading in ((NULL + 1,), (N,), (20, N))
)  # Z[0] belongs to the prior, which X replaces
LABELS = torch.tensor([0, 2, 1, 2])
WEIGHT = 2.5


def wide(value: Tensor, like: Tensor) -> Tensor:
    """Return numbers a sample, or one for all, with axes to broadcast."""
    value = torch.as_tensor(value).to(like)
    return value.reshape(-1, *[1] * (like.ndim - 1))


def estimate(x: Tensor, alpha: Tensor, sigma: Tensor, labels: Tensor | None = None) -> Tensor:
    """Return E[x_0 | x] of data around the mean of each label; a little off Gaussian, so that orders differ."""
    alpha, sigma, mean = wide(alpha, x), wide(sigma, x), MEAN[NULL if labels is None else labels].to(x)
    return (STD**2 * alpha * x + sigma**2 * torch.sin(mean + 0.2 * x)) / (STD**2 * alpha**2 + sigma**2)


class KDenoiser(nn.Module):
    """D(x, sigma, y=None)."""

    sigma_min, sigma_max = torch.tensor(1e-3), torch.tensor(80.0)

    def forward(self, x: Tensor, sigma: Tensor, y: Tensor | None = None) -> Tensor:
        return estimate(x, torch.ones_like(sigma), sigma, y)


class ImageDenoiser(nn.Module):
    """D(x, sigma) in [0, 1], in the float32 that deepinv computes denoisers in."""

    def forward(self, x: Tensor, sigma: Any, y: Tensor | None = None) -> Tensor:
        sigma = torch.as_tensor(sigma).to(x)
        return 0.5 * estimate(2.0 * x - 1.0, torch.ones_like(sigma), 2.0 * sigma, y) + 0.5


class Posterior:
    """What azula's denoisers return."""

    def __init__(self, mean: Tensor) -> None:
        self.mean = mean


class AzulaDenoiser(nn.Module):
    """D(x, t).mean with a schedule."""

    def __init__(self, schedule: Callable[[Tensor], tuple[Tensor, Tensor]]) -> None:
        super().__init__()
        self.schedule = schedule

    def forward(self, x: Tensor, t: Tensor, label: Tensor | None = None) -> Posterior:
        return Posterior(estimate(x, *self.schedule(t), label))


def azula_vp(t: Tensor) -> tuple[Tensor, Tensor]:
    """azula's VPSchedule."""
    alpha = 1e-3 ** (t**2)
    return alpha, torch.sqrt(1.0 - alpha**2 + 1e-6)


def azula_rectified(t: Tensor) -> tuple[Tensor, Tensor]:
    """azula's RectifiedSchedule."""
    return t * 1e-3 + (1.0 - t), t + (1.0 - t) * 1e-3


class Velocity:
    """v(x, t) on a path in its own time."""

    def __init__(self, path: Callable[[Tensor], tuple[Tensor, ...]]) -> None:
        self.path = path

    def __call__(self, x: Tensor, t: Tensor, y: Tensor | None = None) -> Tensor:
        alpha, sigma, dalpha, dsigma = (wide(v, x) for v in self.path(torch.as_tensor(t)))
        x0 = estimate(x, alpha, sigma, y)
        return dalpha * x0 + dsigma * (x - alpha * x0) / sigma


def straight(t: Tensor) -> tuple[Tensor, ...]:
    """Noise at 0, data at 1: flow_matching's CondOTScheduler."""
    return t, 1.0 - t, torch.ones_like(t), -torch.ones_like(t)


def rectified(t: Tensor) -> tuple[Tensor, ...]:
    """Data at 0, noise at 1."""
    return 1.0 - t, t, -torch.ones_like(t), torch.ones_like(t)


def cosine(t: Tensor) -> tuple[Tensor, ...]:
    """flow_matching's CosineScheduler."""
    quarter = 0.5 * torch.pi
    alpha, sigma = torch.sin(quarter * t), torch.cos(quarter * t)
    return alpha, sigma, quarter * sigma, -quarter * alpha


def cosine_pair(t: Tensor) -> tuple[Tensor, ...]:
    """alpha and sigma of ``cosine``."""
    return cosine(t)[:2]


@dataclass(frozen=True)
class Run:
    """One sampler of a library and ours: ``theirs`` and ``ours`` return the same samples."""

    name: str
    theirs: Callable[[], Tensor]
    ours: Callable[[], Tensor]
    tolerance: float = 1e-9


def draw(model: fs.ScoreModel, solver: Any, knots: Any, x: Tensor = X, **settings: Any) -> Tensor:
    """Sample from the state x on the recorded noise."""
    labels = settings.pop("labels", None)
    sampler = fs.Sampler(
        model, solver=solver, grid=fs.Times(tuple(knots)), start="state", batch=N, dtype=torch.float64, **settings
    )
    return sampler.run(range(N), init=x, noise=Z, **({} if labels is None else {"labels": labels}))


def recorded(call: Callable[[], Tensor]) -> Tensor:
    """Call a sampler whose torch.randn_like are the recorded draws after the prior's."""
    draws = iter(Z[1:])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch, "randn_like", lambda *args, **kwargs: next(draws))
        return call()


SIGMAS = [10.0, 6.1, 3.2, 1.4, 0.5, 0.15, 0.03, 0.0]


def k_diffusion_runs() -> list[Run]:
    """k-diffusion: plain, ancestral, and guided with labels."""
    sigmas, D = torch.tensor(SIGMAS, dtype=torch.float64), KDenoiser()
    model = from_denoiser(D, SHAPE)
    classes = from_denoiser(D, SHAPE, call="x, sigma, y=labels", classes=NULL, null=NULL)

    def guided(x: Tensor, sigma: Tensor) -> Tensor:
        return torch.lerp(D(x, sigma), D(x, sigma, LABELS), WEIGHT)

    def theirs(name: str, D: Any) -> Callable[[], Tensor]:
        def call() -> Tensor:
            sampling, draws = others.k_diffusion(), iter(Z[1:])
            noise = {"noise_sampler": lambda *levels: next(draws)} if "ancestral" in name else {}
            return getattr(sampling, f"sample_{name}")(D, SIGMAS[0] * X, sigmas, disable=True, **noise)

        return call

    solvers = {
        "euler": fs.Euler(), "heun": fs.Heun(), "dpmpp_2m": fs.DPMpp2M(), "dpm_2": fs.DPMSolver(2),
        "euler_ancestral": fs.DDIM(eta=1.0),
    }  # fmt: skip
    start = SIGMAS[0] * X
    plain = [
        Run(f"k-diffusion {k}", theirs(k, D), lambda s=s: draw(model, s, SIGMAS, start)) for k, s in solvers.items()
    ]
    settings: Any = {"guidance": fs.Guidance(WEIGHT), "labels": LABELS}
    return [
        *plain,
        *(
            Run(
                f"k-diffusion {k}, guided",
                theirs(k, guided),
                lambda k=k: draw(classes, solvers[k], SIGMAS, start, **settings),
            )
            for k in ("heun", "dpmpp_2m")
        ),
    ]


def azula_runs() -> list[Run]:
    """azula: DDIM, DDPM, Adams-Bashforth and guidance, whose weight is above 1 here by one."""
    times = torch.linspace(1.0, 0.0, 9, dtype=torch.float64).tolist()

    def run(name: str, schedule: Any, solver: Any, guided: bool = False, **options: Any) -> Run:
        D = AzulaDenoiser(schedule)

        def theirs() -> Tensor:
            sample = others.library("azula.sample")
            denoiser: Any = D
            if guided:
                denoiser = import_module("azula.guidance.cfg").CFGDenoiser(D)
            sampler = getattr(sample, f"{name}Sampler")(denoiser, steps=8, silent=True, dtype=torch.float64, **options)
            condition = {"positive": {"label": LABELS}, "guidance": WEIGHT - 1.0} if guided else {}
            return recorded(lambda: sampler(X, **condition))

        def ours() -> Tensor:
            if not guided:
                return draw(from_denoiser(D, SHAPE, kind="azula"), solver, times)
            model = from_denoiser(D, SHAPE, kind="azula", call="x, t, label=labels", classes=NULL, null=NULL)
            return draw(model, solver, times, guidance=fs.Guidance(WEIGHT), labels=LABELS)

        words = [name, schedule.__name__, *(f"{k} {v}" for k, v in options.items()), *["guided"] * guided]
        return Run(" ".join(["azula", *words]), theirs, ours)

    return [
        run("DDIM", azula_vp, fs.DDIM()),
        run("DDIM", azula_vp, fs.DDIM(eta=0.5**0.5), eta=0.5),  # theirs is a factor on the variance
        run("DDPM", azula_rectified, fs.DDIM(eta=1.0)),
        run("zAB", azula_rectified, fs.LMS(2), order=2),
        run("DDIM", azula_vp, fs.DDIM(), guided=True),
    ]


def deepinv_runs() -> list[Run]:
    """deepinv, whose denoisers are computed in float32 whatever the state is in."""
    times = [1.0, 0.8, 0.6, 0.45, 0.3, 0.2, 0.1, 0.05]
    levels = [sigma_of(t) for t in times]
    start = levels[0] * X
    model = from_denoiser(ImageDenoiser(), SHAPE, kind="deepinv", sigma_min=1e-3, sigma_max=80.0)

    def theirs(name: str) -> Callable[[], Tensor]:
        def call() -> Tensor:
            sampling = others.library("deepinv").sampling
            solver = getattr(sampling, name)(timesteps=np.array(times))
            made = sampling.EDMDiffusionSDE(
                sigma_t=sigma_of, variance_exploding=True, alpha=0.0, denoiser=ImageDenoiser(), solver=solver
            )
            return 2.0 * made.sample(start) - 1.0

        return call

    schedule = fs.Pair(one, sigma_of)
    solvers = {"EulerSolver": fs.Euler(), "HeunSolver": fs.Heun(), "AncestralSolver": fs.DDIM()}
    return [
        Run(f"deepinv {k}", theirs(k), lambda s=s: draw(model, s, times, start, schedule=schedule), 1e-6)
        for k, s in solvers.items()
    ]


def sigma_of(t: Any) -> Any:
    """An uneven sigma(t)."""
    return 10.0 * t * (1.0 + t)


def one(t: Any) -> Any:
    """alpha = 1."""
    return 1.0 + 0.0 * t


def velocity_runs() -> list[Run]:
    """flow_matching, whose time has the noise at 0, and a rectified flow, whose time has it at 1."""
    own = [0.0, 0.1, 0.22, 0.35, 0.5, 0.68, 0.85, 0.97]
    turned = [1.0 - t for t in own]

    def theirs(path: Any, method: str, extra: dict[str, Any], guided: bool) -> Callable[[], Tensor]:
        def call() -> Tensor:
            solver = others.library("flow_matching.solver")
            v = Velocity(path)

            def mixed(x: Tensor, t: Tensor) -> Tensor:
                return torch.lerp(v(x, t), v(x, t, LABELS), WEIGHT)

            grid = torch.tensor(own, dtype=torch.float64)
            options = {"x_init": X, "step_size": None, "method": method, "time_grid": grid}
            return solver.ODESolver(mixed if guided else v).sample(**options, **extra)

        return call

    def ours(path: Any, pair: Any, solver: Any, guided: bool) -> Callable[[], Tensor]:
        def call() -> Tensor:
            if not guided:
                return draw(from_velocity(Velocity(path), SHAPE, noise_at=0, path=pair), solver, turned)
            fields: Any = {"call": "x, t, labels", "classes": NULL, "null": NULL}
            model = from_velocity(Velocity(path), SHAPE, noise_at=0, path=pair, **fields)
            return draw(model, solver, turned, guidance=fs.Guidance(WEIGHT), labels=LABELS)

        return call

    def euler_loop(path: Any, times: list[float]) -> Callable[[], Tensor]:
        def call() -> Tensor:
            x, v = X, Velocity(path)
            for t, s in pairwise(times):
                x = x + (s - t) * v(x, torch.tensor(t, dtype=torch.float64))
            return x

        return call

    def time_first(t: Tensor, x: Tensor) -> Tensor:
        return Velocity(straight)(x, t)

    methods = {"euler": fs.Euler(), "midpoint": fs.RK2(), "heun2": fs.Heun()}
    runs = [
        Run(f"flow_matching {k} {p.__name__}{g * ' guided'}", theirs(p, k, {}, g), ours(p, pair, s, g))
        for p, pair in ((straight, None), (cosine, cosine_pair))
        for k, s in methods.items()
        for g in (False, True)
        if not g or k == "midpoint"
    ]
    flow = from_velocity(Velocity(rectified), SHAPE, noise_at=1)
    cfm = from_velocity(time_first, SHAPE, noise_at=0, call="t, x")  # torchcfm's order
    whole = [*own, 1.0]
    return [
        *runs,
        Run("rectified flow, euler", euler_loop(rectified, turned), lambda: draw(flow, fs.Euler(), turned)),
        Run(
            "torchcfm, euler to the data",
            euler_loop(straight, whole),
            lambda: draw(cfm, fs.Euler(), [1.0 - t for t in whole]),
        ),
    ]


RUNS = {run.name: run for runs in (k_diffusion_runs, azula_runs, deepinv_runs, velocity_runs) for run in runs()}


def data() -> dict[str, Tensor]:
    """Return what the libraries gave when it was recorded."""
    runs = json.loads(FILE.read_text())["runs"]
    return {k: torch.tensor(v, dtype=torch.float64) for k, v in runs.items()}


def error(a: Tensor, b: Tensor) -> float:
    """Return the largest difference, relative to the largest number."""
    return float((a - b).abs().max() / b.abs().max())


if __name__ == "__main__":
    versions = {name: version(name) for name in ("azula", "deepinv", "flow_matching", "k-diffusion", "torch")}
    recorded_runs = {name: run.theirs().tolist() for name, run in RUNS.items()}
    FILE.write_text(json.dumps({"versions": versions, "runs": recorded_runs}, indent=0) + "\n")
