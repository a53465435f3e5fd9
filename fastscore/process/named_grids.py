"""Grids by the names that ComfyUI, A1111, diffusers, k-diffusion and others give them, on every schedule.

Their codes know a table of noise levels, or a most and a least noise. Here a schedule between two times is both:

- The noise of a level is sigma / alpha, but on ``Flow`` its sigma, as in the codes.
- The table of a discrete schedule is its own, ln(sigma / alpha) linear between two indices. A continuous one has that
  of a network trained at N even times, of which t_end is the one next to the data: N = 1000 on ``Flow()``. Where t_end
  is no such step N is 1000; on ``EDM`` the levels of the table are even in ln sigma, as in ComfyUI.
- One level alone is the most noise, where a code that spaces them to both ends has the least, or divides by 0.
- ``start`` and ``end`` cut the table, or are the most and the least noise. Lists of their own keep to their levels
  whatever the end, and may begin no noisier than the start; "even" goes to the data.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from fastscore.process import level_rules as r
from fastscore.process.continuous import EDM, Flow
from fastscore.process.discrete import LONGEST, DiscreteVE, DiscreteVP
from fastscore.process.rules import (
    BetaIndices,
    DDIMUniform,
    Distilled,
    Even,
    EvenIndices,
    Leading,
    Rule,
    Simple,
    TheseIndices,
)
from fastscore.process.schedule import Array, Schedule, lam, t_of_lam

ENTRIES = 1000  # of the table of a continuous schedule whose t_end is no step of one
ROUNDED = 1e-3  # relative, by which published lists exceed the noise of their tables
SAME = 1e-9  # difference of two ln(alpha / sigma) that is rounding


@dataclass(frozen=True)
class Named:
    """A rule with where its name comes from."""

    rule: Rule
    whose: str


def _named() -> dict[str, Named]:
    sd15 = (
        14.6146412293, 6.4745760956, 3.8636745985, 2.6946151520, 1.8841921177, 1.3943805092, 0.9642583904, 0.6523686016,
        0.3977456272, 0.1515232662, 0.0291671582,
    )  # fmt: skip
    sdxl = (
        14.6146412293, 6.3184485287, 3.7681790315, 2.1811480769, 1.3405244945, 0.8620721141, 0.5550693289, 0.3798540708,
        0.2332364134, 0.1114188177, 0.0291671582,
    )  # fmt: skip
    svd = (700.0, 54.5, 15.886, 7.977, 4.248, 1.789, 0.981, 0.403, 0.173, 0.034, 0.002)
    # Rounded by A1111 and diffusers, not always to the nearest.
    sd15_3 = (14.615, 6.475, 3.861, 2.697, 1.886, 1.396, 0.963, 0.652, 0.399, 0.152)
    sdxl_3 = (14.615, 6.315, 3.771, 2.181, 1.342, 0.862, 0.555, 0.380, 0.234, 0.113)
    flux = (0.9968, 0.9886, 0.9819, 0.975, 0.966, 0.9471, 0.9158, 0.8287, 0.5512, 0.2808, 0.001)
    wan = (
        1.0, 0.997, 0.995, 0.993, 0.991, 0.989, 0.987, 0.985, 0.98, 0.975, 0.973, 0.968, 0.96, 0.946, 0.927, 0.902,
        0.864, 0.776, 0.539, 0.208, 0.001,
    )  # fmt: skip
    chroma = (
        0.992, 0.99, 0.988, 0.985, 0.982, 0.978, 0.973, 0.968, 0.961, 0.953, 0.943, 0.931, 0.917, 0.9, 0.881, 0.858,
        0.832, 0.802, 0.769, 0.731, 0.69, 0.646, 0.599, 0.55, 0.501, 0.451, 0.402, 0.355, 0.311, 0.27, 0.232, 0.199,
        0.169, 0.143, 0.12, 0.101, 0.084, 0.07, 0.058, 0.048, 0.001,
    )  # fmt: skip
    return {
        "simple": Named(Simple(), "ComfyUI, A1111"),
        "normal": Named(EvenIndices(), "ComfyUI, A1111, where it is Uniform, too"),
        "sgm-uniform": Named(EvenIndices(open_end=True), "ComfyUI, A1111"),
        "ddim-uniform": Named(DDIMUniform(), "ComfyUI; DDIM of A1111"),
        "beta": Named(BetaIndices(), "ComfyUI"),
        "beta57": Named(BetaIndices(0.5, 0.7), "RES4LYF"),
        "even": Named(Even(), "FlowMapEuler of diffusers; what pipelines of flows pass"),
        "leading-dpm": Named(Leading(), "leading of diffusers' DPM-Solver, DEIS, UniPC, SA-Solver"),
        "linspace-dpm": Named(EvenIndices(open_end=True, rounded=True), "linspace of the same"),
        "linspace-euler": Named(EvenIndices(linear=True), "linspace of diffusers' Euler, Heun, LMS, KDPM2"),
        "lcm": Named(Distilled(), "LCM and TCD of diffusers"),
        "exponential": Named(r.Polyexponential(), "ComfyUI, A1111, k-diffusion, diffusers"),
        "polyexponential": Named(r.Polyexponential(), "A1111, k-diffusion"),
        "karras-comfyui": Named(r.Karras(), "karras of ComfyUI, k-diffusion, diffusers: on a flow of its sigma"),
        "kl-optimal": Named(r.KLOptimal(), "ComfyUI"),
        "kl-optimal-a1111": Named(r.KLOptimalNoisy(), "A1111"),
        "beta-a1111": Named(r.BetaLevels(), "A1111, diffusers"),
        "linear-quadratic": Named(r.LinearQuadratic(), "ComfyUI, Mochi"),
        "laplace": Named(r.Laplace(), "ComfyUI"),
        "piecewise": Named(r.Piecewise(), "anemoi"),
        "karras-exponential": Named(r.KarrasExponential(), "A1111"),
        "vp": Named(r.VPLevels(), "k-diffusion"),
        "boltz": Named(r.Structures(), "Boltz, AlphaFold 3"),
        "bong-tangent": Named(r.BongTangent(), "RES4LYF"),
        "ays-sd15": Named(r.Nodes(sd15), "ComfyUI, NVIDIA"),
        "ays-sdxl": Named(r.Nodes(sdxl), "ComfyUI, NVIDIA"),
        "ays-svd": Named(r.Nodes(svd), "ComfyUI, NVIDIA"),
        "ays-sd15-a1111": Named(r.NodesBeforeClean((*sd15_3, 0.029)), "A1111"),
        "ays-sdxl-a1111": Named(r.NodesBeforeClean((*sdxl_3, 0.029)), "A1111"),
        "ays-sd15-diffusers": Named(r.TheseLevels(sd15_3), "diffusers"),
        "ays-sdxl-diffusers": Named(r.TheseLevels(sdxl_3), "diffusers"),
        "ays-svd-diffusers": Named(r.TheseLevels(svd[:-1]), "diffusers"),
        "ays-sd15-timesteps": Named(TheseIndices((999, 850, 736, 645, 545, 455, 343, 233, 124, 24)), "diffusers"),
        "ays-sdxl-timesteps": Named(TheseIndices((999, 845, 730, 587, 443, 310, 193, 116, 53, 13)), "diffusers"),
        "optimal-steps-flux": Named(r.FlowNodes(flux), "ComfyUI"),
        "optimal-steps-wan": Named(r.FlowNodes(wan), "ComfyUI"),
        "optimal-steps-chroma": Named(r.FlowNodes(chroma), "ComfyUI"),
    }


NAMED_GRIDS = _named()


def place(rule: Rule, name: str, schedule: Schedule, start: float, end: float, n: int, to_label: bool) -> Array:
    """Return the times of a rule's n levels on a schedule, decreasing, without the clean end.

    Args:
        name: of the grid, for messages.
        start, end: times between which the rule spaces them.
        to_label: whether the end is the schedule's own, so that rules that read its noise as a time may do so.

    Raises:
        ValueError: a schedule on which the rule has no meaning; the message says what to take instead.
    """
    kind = type(schedule).__name__
    if rule.counts == "time":
        if math.isinf(schedule.t_clean):
            raise ValueError(f"{name}: {kind} reaches the data at no time; take uniform or normal")
        return rule(n, start, schedule.t_clean)
    if rule.counts == "index":
        return _indexed(rule, name, schedule, start, end, n, to_label)
    first, last = (float(v) for v in lam(schedule, np.array([start, end])))
    flow = rule.counts == "flow"
    if rule.counts == "level":
        flow = isinstance(schedule, Flow)
        if first == -math.inf and not (flow or isinstance(rule, r.KLOptimal)):
            raise ValueError(
                f"{name}: sigma / alpha of {kind} has no bound at t = {start:.6g}; move start off it, or take a grid "
                "that has pure noise: kl-optimal, arctan, normal, beta"
            )
        if last == math.inf:
            raise ValueError(f"{name}: the last level before sigma = 0 has noise; move end = {end:.6g} to more")
    most = float(lam(schedule, schedule.T)) if isinstance(rule, r.KarrasExponential) else first
    high, low = (1.0 / (1.0 + np.exp([first, last])) if flow else np.exp([-first, -last])).tolist()
    levels = _made(rule, name, n, high, low)
    if not np.all(levels > 0.0):
        raise ValueError(f"{name}: {n} levels are not all above 0; take other steps, or the rule's own parameters")
    with np.errstate(divide="ignore", invalid="ignore"):
        values = np.log1p(-np.minimum(levels, 1.0)) - np.log(levels) if flow else -np.log(levels)
        values = np.where((values < most) & (values > most - ROUNDED), most, values)
        if not values[0] >= most or (flow and levels[0] > 1.0 + ROUNDED):
            raise ValueError(
                f"{name} begins at {_ratio(values[0])}, noisier than {kind} from t = {start:.6g} with {_ratio(most)}; "
                "take a later start where the grid has one, or kl-optimal or karras, which go between any ends"
            )
        knots = t_of_lam(schedule, values)
        # An end itself, and a whole index of a table, is not to be missed by the rounding of a logarithm.
        knots = np.where(abs(values - last) < SAME, end, knots)
        return np.where((abs(values - first) < SAME) | (values == first), start, knots)


def _made(rule: Rule, name: str, n: int, high: float, low: float) -> Array:
    try:
        return rule(n, high, low)
    except ValueError as error:
        raise ValueError(f"{name}: {error}") from None


def _ratio(value: float) -> str:
    return f"sigma / alpha = {math.exp(-value):.6g}" if value > -700.0 else "pure noise"


def _indexed(rule: Rule, name: str, schedule: Schedule, start: float, end: float, n: int, to_label: bool) -> Array:
    """Return the times of a rule for indices of the schedule's table between start and end."""
    discrete = isinstance(schedule, DiscreteVP | DiscreteVE)
    if isinstance(rule, TheseIndices) and not discrete:
        other = type(schedule).__name__
        raise ValueError(f"{name} are indices of a discrete table; on {other} take the levels of ays-sd15 or ays-sdxl")
    places = np.array([start, end, schedule.T, schedule.t_end])
    if isinstance(schedule, EDM):
        if end <= 0.0:
            raise ValueError(f"{name}: the last level before sigma = 0 has noise; move end = {end:.6g} to more")
        places = np.log(places)
    top, bottom, whole = places[0], places[1], places[2] - places[3]
    last = float(np.round((top - bottom) / whole * (entries(schedule) - 1))) if start > end else 0.0
    low = 0.0
    if to_label and isinstance(schedule, Flow) and isinstance(rule, EvenIndices) and last > 0.0:
        low = float(schedule.sigma(end) - end) / (start - end) * last
    index = _made(rule, name, n, last, low)
    if len(index) == 0 or index[0] > last or index[-1] < 0.0:
        raise ValueError(
            f"{name} leaves the {last + 1:g} noise levels of {type(schedule).__name__} from t = {start:.6g} to "
            f"{end:.6g}; take other steps"
        )
    times = bottom + (top - bottom) * index / max(last, 1.0)
    knots = np.exp(times) if isinstance(schedule, EDM) else times
    knots = _between(schedule, knots, getattr(rule, "linear", False)) if discrete else knots
    return np.where(index == 0.0, end, np.where(index == last, start, knots))


def entries(schedule: Schedule) -> int:
    """Return how many noise levels the table of a schedule has."""
    if isinstance(schedule, DiscreteVP | DiscreteVE):
        return int(schedule.T) + 1
    steps = (schedule.T - schedule.t_clean) / (schedule.t_end - schedule.t_clean)
    own = not isinstance(schedule, EDM) and 1.5 < steps <= LONGEST and abs(steps - round(steps)) < 1e-6 * steps
    return round(steps) if own else ENTRIES


def _between(table: Schedule, t: Array, linear: bool) -> Array:
    """Return the times of the levels that a line through the table has at fractional indices.

    The line is one in ln(sigma / alpha), or in sigma / alpha; a table of betas has ln alpha linear there instead.
    """
    below, above = np.floor(t), np.ceil(t)
    here, next_ = (lam(table, at) for at in (below, above))
    share = t - below
    with np.errstate(invalid="ignore", over="ignore"):
        if linear:
            values = -np.log((1.0 - share) * np.exp(-here) + share * np.exp(-next_))
        else:
            values = (1.0 - share) * here + share * next_
    apart = (share > 0.0) & np.isfinite(here) & np.isfinite(next_)
    if np.any(apart):
        t = t.copy()
        t[apart] = t_of_lam(table, values[apart])
    return t
