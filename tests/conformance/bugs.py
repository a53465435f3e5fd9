"""Mistakes of published samplers, each a small sampler in plain torch with a switch that undoes the mistake.

A sampler is ``f(net, n, seed, steps, wrong)``. They are written from the formulas and from the reports of the mistakes,
not from the programs that had them; a report is named as repository and number, a code of others by its name.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from itertools import pairwise
from typing import Any

import numpy as np
import torch

import fastscore as fs

VP, EDM, FLOW, TABLE = fs.VP(), fs.EDM(), fs.Flow(), fs.discrete_vp()
GRID = {
    "vp": lambda n: fs.logsnr(n)(VP),
    "edm": lambda n: fs.karras(n)(EDM),
    "flow": lambda n: np.linspace(1.0, 0.0, n + 1),
}


@dataclass(frozen=True)
class Bug:
    """A mistake: where it was made, the sampler, what it declares of itself and the checks that may find it first."""

    source: str
    sampler: Callable[..., Any]
    schedule: Any
    finds: tuple[str, ...]
    options: dict[str, Any] = field(default_factory=dict)

    def fn(self, wrong: bool) -> Callable[..., Any]:
        return partial(self.sampler, wrong=wrong)


BUGS: dict[str, Bug] = {}


def bug(source: str, schedule: Any, *finds: str, **options: Any) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    def note(sampler: Callable[..., Any]) -> Callable[..., Any]:
        BUGS[sampler.__name__.replace("_", " ")] = Bug(source, sampler, schedule, finds, options)
        return sampler

    return note


def draws(n: int, shape: tuple[int, ...], seed: int, dtype: torch.dtype = torch.float64) -> Callable[[], torch.Tensor]:
    """Normals [n, *shape], anew at each call."""
    generator = torch.Generator().manual_seed(seed)
    return lambda: torch.normal(0.0, 1.0, (n, *shape), generator=generator, dtype=dtype)


def a(t: float) -> float:
    return float(VP.alpha(t))


def s(t: float) -> float:
    return float(VP.sigma(t))


def beta(t: float) -> float:
    return 0.1 + 19.9 * t


def to(x, eps, t, u):
    """DDIM's step on VP."""
    return a(u) * (x - s(t) * eps) / a(t) + s(u) * eps


def ancestral(x, D, t, u, z):
    """Ancestral step in sigma, eta = 1: to sigma_down, then noise sigma_up."""
    up = min(u, u * math.sqrt(t * t - u * u) / t)
    down = math.sqrt(u * u - up * up)
    return D + down / t * (x - D) + up * z


def h_of(t, u):
    return math.log(t / u)


# --- schedules, drift and noise ----------------------------------------------------------------

SDE = {"stochastic": True, "end": 1e-3, "knots": lambda n: fs.uniform(n)(VP)}


def euler_maruyama(net, n, seed, steps, drift=beta, diffusion=lambda t: math.sqrt(beta(t)), factor=1.0):
    normal = draws(n, net.shape, seed, torch.float32)
    x = normal()
    for t, u in pairwise(net.times(steps)):
        h = t - u
        mean = x + h * (0.5 * drift(t) * x - factor * drift(t) * net(x, t) / s(t))
        x = mean + diffusion(t) * math.sqrt(h) * normal()
    return mean


@bug("deepinv PR 1343", VP, "accuracy", **SDE)
def vp_off_by_a_factor_of_two(net, n, seed, steps, wrong):
    k = 2.0 if wrong else 1.0
    return euler_maruyama(net, n, seed, steps, lambda t: k * beta(t), lambda t: math.sqrt(k * beta(t)))


@bug("zea PR 551", VP, "spread", **SDE)
def noise_without_its_drift(net, n, seed, steps, wrong):
    return euler_maruyama(net, n, seed, steps, factor=0.5 if wrong else 1.0)


@bug("common", VP, "spread", **SDE)
def g_squared_for_g(net, n, seed, steps, wrong):
    return euler_maruyama(net, n, seed, steps, diffusion=beta if wrong else lambda t: math.sqrt(beta(t)))


@bug("common", VP, "spread", **SDE)
def noise_twice_too_strong(net, n, seed, steps, wrong):
    return euler_maruyama(net, n, seed, steps, diffusion=lambda t: math.sqrt((2.0 if wrong else 1.0) * beta(t)))


@bug("diffusers 590", EDM, "spread", stochastic=True)
def churn_missing_a_square(net, n, seed, steps, wrong):
    normal, knots = draws(n, net.shape, seed), GRID["edm"](steps).tolist()
    x = knots[0] * normal()
    for t, u in pairwise(knots):
        hat = t * (1.0 + min(6.0 / steps, math.sqrt(2.0) - 1.0)) if u > 0.0 and t < 20.0 else t
        x = x + math.sqrt(hat - t if wrong else hat**2 - t**2) * normal()
        x = x + (u - hat) * net(x, hat)
    return x


@bug(
    "anemoi-core PR 1096",
    FLOW,
    "spread",
    prediction="flow",
    stochastic=True,
    knots=lambda n: np.linspace(0.98, 0.0, n + 1),
)
def heuristic_noise_on_an_interpolant(net, n, seed, steps, wrong):
    normal, knots = draws(n, net.shape, seed), net.times(steps)
    x = knots[0] * normal()
    for t, u in pairwise(knots):
        h, v = t - u, net(x, t)
        if u == 0.0:
            return x - h * v
        score = -(x + (1.0 - t) * v) / t  # of v = z - x0
        x = x - h * v + (0.0 if wrong else 0.5 * h * t * score) + math.sqrt(h * t) * normal()
    return x


@bug("ComfyUI res_multistep_ancestral", FLOW, "accuracy", prediction="x0", stochastic=True, knots=GRID["flow"])
def ancestral_on_a_flow_with_alpha_forgotten(net, n, seed, steps, wrong):
    normal, knots = draws(n, net.shape, seed), net.times(steps)
    x = normal()
    for t, u in pairwise(knots):
        D = net(x, t)
        if u == 0.0:
            return D
        if wrong or t == 1.0:
            x = ancestral(x, D, t, u, normal()) if wrong else (1.0 - u) * D + u * normal()
            continue
        down = u * u / t
        q = (1.0 - u) / (1.0 - down)
        x = q * (D + down / t * (x - D)) + math.sqrt(u * u - (q * down) ** 2) * normal()
    return x


@bug("physicsnemo 1163", EDM, "noise", prediction="x0", stochastic=True, knots=GRID["edm"])
def stochastic_but_deterministic(net, n, seed, steps, wrong):
    normal, knots = draws(n, net.shape, seed), net.times(steps)
    x = knots[0] * normal()
    for t, u in pairwise(knots):
        D = net(x, t)
        x = D + u / t * (x - D) if wrong else ancestral(x, D, t, u, normal())
    return x


@bug(
    "sglang 21204", FLOW, "last step", prediction="flow", stochastic=True, knots=lambda n: np.linspace(0.96, 0.0, n + 1)
)
def noise_in_the_last_step(net, n, seed, steps, wrong):
    normal, knots = draws(n, net.shape, seed), net.times(steps)
    x = knots[0] * normal()
    for t, u in pairwise(knots):
        h, v = t - u, net(x, t)
        g2 = t if u > 0.0 or wrong else 0.0
        x = x - h * v - 0.5 * h * g2 * (x + (1.0 - t) * v) / t + math.sqrt(h * g2) * normal()
    return x


# --- seeds and batches -------------------------------------------------------------------------

KEYED = {"prediction": "x0", "stochastic": True, "knots": GRID["edm"]}


def noisy_edm(net, steps, normal):
    knots = net.times(steps)
    x = knots[0] * normal()
    for t, u in pairwise(knots):
        x = ancestral(x, net(x, t), t, u, normal())
    return x


def each_its_own(n, shape, steps, seed_of, stride=1):
    """Normals [n, *shape] from a generator for each sample, of whose draws every ``stride``-th is used."""
    own = [torch.Generator().manual_seed(seed_of(k)) for k in range(n)]
    z = torch.stack([torch.normal(0.0, 1.0, (stride * (steps + 1), *shape), generator=g) for g in own]).double()
    taken = iter(range(0, stride * (steps + 1), stride))
    return lambda: z[:, next(taken)]


@bug("mattergen 256", EDM, "seeds", **KEYED)
def seed_ignored(net, n, seed, steps, wrong):
    return noisy_edm(net, steps, draws(n, net.shape, 0 if wrong else seed))


@bug("foundry 170", EDM, "seeds", **KEYED)
def noise_from_a_global_generator(net, n, seed, steps, wrong):
    own = draws(n, net.shape, seed)
    return noisy_edm(net, steps, (lambda: torch.normal(0.0, 1.0, (n, *net.shape))) if wrong else own)


@bug("UniRL patches of sglang", EDM, "noise", **KEYED)
def same_noise_at_every_step(net, n, seed, steps, wrong):
    own = draws(n, net.shape, seed)
    return noisy_edm(net, steps, (lambda: draws(n, net.shape, seed)()) if wrong else own)


@bug("verl-omni PR 60", EDM, "noise", **KEYED)
def noise_shared_by_the_batch(net, n, seed, steps, wrong):
    own, one = draws(n, net.shape, seed), draws(1, net.shape, seed + 1000)
    first = [own()]
    return noisy_edm(net, steps, lambda: first.pop() if first else one().expand(n, *net.shape) if wrong else own())


@bug("common", EDM, "seeds", **KEYED)
def one_generator_seed_for_all_samples(net, n, seed, steps, wrong):
    return noisy_edm(net, steps, each_its_own(n, net.shape, steps, lambda k: seed if wrong else seed + 100003 * k))


@bug("sglang 0.5.23, FlowRolloutController", EDM, "batch", keyed=True, **KEYED)
def noise_that_depends_on_the_batch(net, n, seed, steps, wrong):
    # A view to write into was resized: each generator went on by a whole batch at every step.
    stride = 2 if wrong and n > 3 else 1
    return noisy_edm(net, steps, each_its_own(n, net.shape, steps, lambda k: seed + 100003 * k, stride))


@bug("score_sde_pytorch 41", VP, "batch", stochastic=True, order=None, knots=lambda n: fs.logsnr(n)(VP))
def langevin_step_from_norms_of_the_batch(net, n, seed, steps, wrong):
    normal, knots = draws(n, net.shape, seed), net.times(steps)
    x = normal()
    for t, u in pairwise(knots):
        score, z = -net(x, t) / s(t), normal()
        ratio = z.flatten(1).norm(dim=1) / score.flatten(1).norm(dim=1)
        step = 2.0 * (0.05 * (ratio.mean().expand(n) if wrong else ratio)) ** 2
        step = step.reshape(-1, *[1] * (x.ndim - 1))
        x = x + step * score + (2.0 * step).sqrt() * z
        x = to(x, net(x, t), t, u)
    return x


@bug("common", EDM, "start", prediction="x0", knots=GRID["edm"])
def first_state_drawn_uniformly(net, n, seed, steps, wrong):
    knots, generator = net.times(steps), torch.Generator().manual_seed(seed)
    even = math.sqrt(12.0) * (torch.rand(n, *net.shape, generator=generator, dtype=torch.float64) - 0.5)
    x = knots[0] * (even if wrong else draws(n, net.shape, seed)())
    for t, u in pairwise(knots):
        x = x + (u - t) * (x - net(x, t)) / t
    return x


@bug("common", EDM, "start", prediction="x0", knots=GRID["edm"])
def first_state_not_scaled(net, n, seed, steps, wrong):
    knots = net.times(steps)
    x = (1.0 if wrong else knots[0]) * draws(n, net.shape, seed)()
    for t, u in pairwise(knots):
        x = x + (u - t) * (x - net(x, t)) / t
    return x


# --- grids and labels --------------------------------------------------------------------------


@bug("physicsnemo PR 1364", VP, "steps")
def number_of_steps_ignored(net, n, seed, steps, wrong):
    x = draws(n, net.shape, seed)()
    for t, u in pairwise(GRID["vp"](18 if wrong else steps).tolist()):
        x = to(x, net(x, t), t, u)
    return x


def shifted(t, k=3.0):
    return k * t / (1.0 + (k - 1.0) * t)


@bug("diffusers 13243, 14461", FLOW, "grid", prediction="flow", knots=lambda n: shifted(np.linspace(1.0, 0.0, n + 1)))
def shift_applied_twice(net, n, seed, steps, wrong):
    x = draws(n, net.shape, seed)()
    knots = [shifted(t) for t in np.linspace(1.0, 0.0, steps + 1)]
    for t, u in pairwise([shifted(t) for t in knots] if wrong else knots):
        x = x + (u - t) * net(x, t)
    return x


@bug("ComfyUI ddim_uniform", VP, "grid", knots=GRID["vp"])
def one_step_too_many(net, n, seed, steps, wrong):
    x = draws(n, net.shape, seed)()
    for t, u in pairwise(GRID["vp"](steps + 1 if wrong else steps).tolist()):
        x = to(x, net(x, t), t, u)
    return x


@bug("diffusers 9261, 11347, 12633", TABLE, "point", steps=16, exact_on_point=True,
     knots=lambda n: [*np.round(np.linspace(999, 0, n)), -1.0])  # fmt: skip
def next_timestep_of_its_own(net, n, seed, steps, wrong):
    x, knots = draws(n, net.shape, seed)(), net.times(steps)
    for t, u in pairwise(knots):
        u = max(-1.0, t - 1000 // steps) if wrong else u
        alpha, alpha2 = (float(TABLE.alpha(v)) for v in (t, u))
        sigma, sigma2 = (float(TABLE.sigma(v)) for v in (t, u))
        eps = net(x, int(t))
        x = alpha2 * (x - sigma * eps) / alpha + sigma2 * eps
    return x


def ddim_labelled(net, n, seed, steps, label):
    x, knots = draws(n, net.shape, seed)(), net.times(steps)
    for k, (t, u) in enumerate(pairwise(knots)):
        x = to(x, net(x, label(k, knots)), t, u)
    return x


@bug("common", VP, "grid", knots=GRID["vp"])
def label_of_the_next_state(net, n, seed, steps, wrong):
    return ddim_labelled(net, n, seed, steps, lambda k, knots: knots[k + wrong] if k < steps - 1 else knots[k])


@bug("common", EDM, "labels", "start", prediction="x0")
def label_of_the_next_state_on_an_undeclared_grid(net, n, seed, steps, wrong):
    knots = GRID["edm"](steps).tolist()
    x = knots[0] * draws(n, net.shape, seed)()
    for k, (t, u) in enumerate(pairwise(knots)):
        D = net(x, knots[k + wrong] if u > 0.0 else t)
        x = x + (u - t) * (x - D) / t
    return x


@bug("common", EDM, "labels", prediction="x0")
def row_of_the_last_step(net, n, seed, steps, wrong):
    knots = GRID["edm"](steps).tolist()
    x = knots[0] * draws(n, net.shape, seed)()
    for k, (t, u) in enumerate(pairwise(knots)):
        D = net(x, t)
        if wrong and u > 0.0:
            t, u = knots[max(0, k - 1)], t  # coefficients of the row before
        x = x + (u - t) * (x - D) / t
    return x


@bug("common", VP, "grid", knots=GRID["vp"])
def labels_clipped(net, n, seed, steps, wrong):
    return ddim_labelled(net, n, seed, steps, lambda k, knots: max(knots[k], 0.05 if wrong else 0.0))


@bug("common", VP, "point", exact_on_point=True)
def labels_clipped_on_an_undeclared_grid(net, n, seed, steps, wrong):
    x, knots = draws(n, net.shape, seed)(), GRID["vp"](steps).tolist()
    for t, u in pairwise(knots):
        x = to(x, net(x, max(t, 0.05 if wrong else 0.0)), t, u)
    return x


@bug("score_sde 11", VP, "grid", label="999t", knots=GRID["vp"])
def labels_to_1000_instead_of_999(net, n, seed, steps, wrong):
    return ddim_labelled(net, n, seed, steps, lambda k, knots: (1000.0 if wrong else 999.0) * knots[k])


@bug("ComfyUI uni_pc", EDM, "grid", prediction="x0", knots=GRID["edm"])
def writes_into_the_callers_list(net, n, seed, steps, wrong):
    knots = net.times(steps)
    mine = knots if wrong else list(knots)
    mine[-1] = 1e-3
    x = mine[0] * draws(n, net.shape, seed)()
    for t, u in pairwise(mine):
        D = net(x, t)
        x = D + (u if u > 1e-3 else 0.0) / t * (x - D)
    return x


# --- the last step -----------------------------------------------------------------------------


def euler_edm(net, n, seed, knots):
    x = knots[0] * draws(n, net.shape, seed)()
    for t, u in pairwise(knots):
        x = x + (u - t) * (x - net(x, t)) / t
    return x


@bug("diffusers 5689, 5433", EDM, "last step", prediction="x0")
def last_step_missing(net, n, seed, steps, wrong):
    return euler_edm(net, n, seed, fs.karras(steps, end=0.02)(EDM).tolist()[: -1 if wrong else None])


@bug("diffusers 6477; DEIS and SA-Solver with Karras levels", EDM, "grid", "last step", prediction="x0",
     knots=lambda n: fs.karras(n, end=0.02)(EDM))  # fmt: skip
def last_level_repeated(net, n, seed, steps, wrong):
    knots = net.times(steps)
    return euler_edm(net, n, seed, [*knots[:-1], knots[-2]] if wrong else knots)


@bug("ComfyUI sa_solver (2025)", EDM, "grid", "last step", prediction="x0", end=0.02,
     knots=lambda n: fs.karras(n, end=0.02, clean=False)(EDM))  # fmt: skip
def last_step_dropped_above_zero(net, n, seed, steps, wrong):
    return euler_edm(net, n, seed, net.times(steps)[: -1 if wrong else None])


@bug("diffusers 9007, 10748", EDM, "contract", prediction="x0", order=2.0, knots=GRID["edm"])
def not_a_number_at_sigma_zero(net, n, seed, steps, wrong):
    knots = net.times(steps)
    x = knots[0] * draws(n, net.shape, seed)()
    for t, u in pairwise(knots):
        if u == 0.0 and not wrong:
            return net(x, t)
        lam = -torch.tensor([t, u], dtype=torch.float64).log()
        r = torch.exp(-0.5 * (lam[1] - lam[0]))
        middle = float(t * r)
        y = r * x - torch.expm1(-0.5 * (lam[1] - lam[0])) * net(x, t)
        D = net(y, middle) if middle > 0.0 else y
        x = r * r * x - torch.expm1(lam[0] - lam[1]) * D + 0.0 * (lam[1] - lam[0])
    return x


# --- orders ------------------------------------------------------------------------------------


@bug("diffusers 1512", EDM, "order", prediction="x0", order=2.0, knots=GRID["edm"])
def heun_with_the_wrong_sigma(net, n, seed, steps, wrong):
    knots = net.times(steps)
    x = knots[0] * draws(n, net.shape, seed)()
    for t, u in pairwise(knots):
        d = (x - net(x, t)) / t
        y = x + (u - t) * d
        if u > 0.0:
            d = 0.5 * (d + (y - net(y, u)) / (t if wrong else u))
        x = x + (u - t) * d
    return x


@bug("ComfyUI and diff-sampler ipndm_v", EDM, "order", prediction="eps", order=3.0,
     knots=lambda n: [*_alternating(n), 0.0])  # fmt: skip
def misplaced_parenthesis_on_uneven_steps(net, n, seed, steps, wrong):
    knots = net.times(steps)
    x = knots[0] * draws(n, net.shape, seed)()
    past, widths = [], []
    for k, (t, u) in enumerate(pairwise(knots)):
        d, h = net(x, t), u - t
        past, widths = [d, *past[:2]], [h, *widths[:2]]
        if k == 0 or u == 0.0:
            step = d
        elif k == 1:
            r = h / widths[1]
            step = (1.0 + 0.5 * r) * d - 0.5 * r * past[1]
        else:
            h1, h2 = widths[1:]
            outer = h * (h + h1) / (h1 * (h1 + h2))
            inner = h / (3.0 * (h + h1))
            c = (1.0 - inner * outer) / 2.0 if wrong else (1.0 - inner) * outer / 2.0
            step = (1.0 + 0.5 * h / h1 + c) * d - (0.5 * h / h1 + (1.0 + h1 / h2) * c) * past[1] + h1 / h2 * c * past[2]
        x = x + h * step
    return x


def _alternating(n):
    """Karras' levels with steps that are short and long in turn."""
    u = np.arange(n, dtype=np.float64)
    u[1:-1:2] += 0.4
    top, low = 80.0 ** (1 / 7), 0.02 ** (1 / 7)
    return (top + u / (n - 1) * (low - top)) ** 7


@bug("diffusers sde-dpmsolver++, order 3", EDM, "order", prediction="x0", stochastic=True, order=2.0,
     knots=lambda n: fs.logsnr(n, start=20.0, end=0.02)(EDM))  # fmt: skip
def sign_of_the_quadratic_weight(net, n, seed, steps, wrong):
    knots, normal = net.times(steps), draws(n, net.shape, seed)
    x = knots[0] * normal()
    past, widths = [], []
    for t, u in pairwise(knots):
        D = net(x, t)
        if u == 0.0:
            return D
        h = h_of(t, u)
        H = 2.0 * h
        e1 = -math.expm1(-H)
        e2 = (math.exp(-H) - 1.0 + H) / H
        e3 = e2 / H - 0.5 + (1.0 if wrong else 0.0)
        new = u / t * math.exp(-h) * x + e1 * D + u * math.sqrt(-math.expm1(-2.0 * h)) * normal()
        if len(past) == 1:
            new = new + e2 * (D - past[0]) * h / widths[0]
        elif len(past) == 2:
            q, w = widths[0] / h, widths[1] / h
            slopes = (D - past[0]) / q, (past[0] - past[1]) / w
            d2 = (slopes[0] - slopes[1]) / (q + w)
            new = new + e2 * (slopes[0] + q * d2) - e3 * d2
        x, past, widths = new, [D, *past[:1]], [h, *widths[:1]]
    return x


@bug("none published: ComfyUI's RES is right", EDM, "order", prediction="x0", stochastic=True, order=2.0,
     knots=lambda n: fs.logsnr(n, start=20.0, end=0.02)(EDM))  # fmt: skip
def spacing_of_the_history_to_the_wrong_level(net, n, seed, steps, wrong):
    knots, normal = net.times(steps), draws(n, net.shape, seed)
    x, last, before = knots[0] * normal(), None, 0.0
    for t, u in pairwise(knots):
        D = net(x, t)
        if u == 0.0:
            return D
        h = h_of(t, u)
        H = 2.0 * h
        x = u / t * math.exp(-h) * x - math.expm1(-H) * D + u * math.sqrt(-math.expm1(-2.0 * h)) * normal()
        if last is not None:
            x = x + (math.exp(-H) - 1.0 + H) / H * (D - last) * h / before
        last, before = D, 2.0 * h if wrong else h  # the distance to the level below the noise, not to the next one
    return x


# --- everything else ---------------------------------------------------------------------------


@bug("diffusers, clip_sample", VP, "noise", knots=GRID["vp"])
def estimate_clipped_by_default(net, n, seed, steps, wrong):
    x, knots = draws(n, net.shape, seed)(), net.times(steps)
    for t, u in pairwise(knots):
        D = (x - s(t) * net(x, t)) / a(t)
        D = D.clamp(-1.0, 1.0) if wrong else D
        x = a(u) * D + s(u) * (x - a(t) * D) / s(t)
    return x


@bug("ComfyUI APG", VP, "accuracy", knots=GRID["vp"])
def guidance_with_one_unit_too_much(net, n, seed, steps, wrong, weight=1.0):
    x, knots = draws(n, net.shape, seed)(), net.times(steps)
    for t, u in pairwise(knots):
        given, free = net(x, t), net(x, t, null=True)
        x = to(x, given + (weight if wrong else weight - 1.0) * (given - free), t, u)
    return x


@bug("ComfyUI deis, rhoab", VP, "contract", knots=GRID["vp"])
def raises_for_some_numbers_of_steps(net, n, seed, steps, wrong):
    weights = torch.ones(3)
    return ddim_labelled(
        net, n, seed, steps, lambda k, knots: knots[k] + 0.0 * float(weights[3 if wrong and k > 3 else 0])
    )


@bug("ER-SDE-Solver, prediction score", VP, "contract", knots=GRID["vp"])
def returns_nothing(net, n, seed, steps, wrong):
    x = ddim_labelled(net, n, seed, steps, lambda k, knots: knots[k])
    return None if wrong else x


@bug("wrappers around training code", VP, "mode", knots=GRID["vp"])
def network_in_training_mode(net, n, seed, steps, wrong):
    net.train(wrong)
    return ddim_labelled(net, n, seed, steps, lambda k, knots: knots[k])
