"""Checks on data of one point, where noise is all that a state has: levels, the last step, exact steps."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

from fastscore.conformance.problem import Setting
from fastscore.conformance.report import Finding
from fastscore.conformance.trials import Trial, Trials

INF = math.inf
EARLY = 5  # calls: later ones carry the errors of those before
STEPS = 0.75  # how far a state's noise may be from its label's, in steps; a first-order step's own error is a fraction


def residues(trial: Trial) -> list[float]:
    """Return the noise of each call's state, in units of its label's sigma."""
    return [
        math.inf
        if c.level[1] == 0.0
        else float((c.x - c.level[0] * trial.target.means[0]).square().mean().sqrt()) / c.level[1]
        for c in trial.calls
    ]


def labels(trials: Trials, stochastic: bool, facts: dict[str, Any]) -> Iterator[Finding]:
    """A state has the noise that its label says, within less than a step."""
    trial = trials.run("point", 4)
    if not trial.whole:
        return
    ratio, times = residues(trial), [call.t for call in trial.calls]
    # A deterministic sampler's first state cancels, and with it the only chance that there is.
    first, error = (1.0, 5.0 / math.sqrt(2.0 * trial.x.numel())) if stochastic else (ratio[0], 100.0 * trial.rounding)
    shifts = []
    for k in range(1, min(EARLY, len(times))):
        after = next((j for j in range(k + 1, len(times)) if times[j] < times[k]), None)
        if after is None or not 0.0 < ratio[k] < INF or not 0.0 < first < INF or trial.calls[after].level[1] == 0.0:
            continue
        step = math.log(trial.calls[k].level[1] / trial.calls[after].level[1])
        if step > 4.0 * error:
            shifts.append((math.log(ratio[k] / first) / step, k))
    if not shifts:
        return
    shift, k = sorted(shifts)[len(shifts) // 2]
    facts["label shift"] = shift
    if abs(shift) > STEPS:
        yield Finding(
            "labels", f"the first states have {'more' if shift > 0.0 else 'less'} noise than the labels that the "
            f"network gets "
            f"with them (at t = {times[k]:.6g} {ratio[k] / first:.4g} times as much): in steps", shift, -STEPS, STEPS,
            "Is the network called with the time of the next or the last state, or a coefficient taken one row off?",
        )  # fmt: skip


def exact(trials: Trials, stochastic: bool, z: float, facts: dict[str, Any]) -> Iterator[Finding]:
    """A sampler that solves the linear part exactly is exact on a point at any number of steps."""
    trial = trials.run("point")
    if not trial.whole:
        return
    ratio, first = residues(trial), trial.calls[0]
    worst, at = 0.0, 0
    for k, call in enumerate(trial.calls):
        if call.level[1] == 0.0:
            continue
        if stochastic:
            gap = abs(ratio[k] - 1.0)
        else:
            there = trial.target.transport(first.x, first.level, call.level)
            gap = float((call.x - there).abs().max()) / max(call.level)
        worst, at = max((worst, at), (gap, k))
    bound = z / math.sqrt(2.0 * trial.x.numel()) + 0.005 if stochastic else 1e3 * trial.rounding
    facts["off a point"] = worst
    if worst > bound:
        yield Finding(
            "point", f"on data of one point the state at call {at + 1} of {len(ratio)} (t = {trial.calls[at].t:.6g}) "
            f"has "
            f"{ratio[at]:.4g} times the noise of its label; the worst distance from what an exact linear part gives",
            worst,
            -INF, bound,
            "Is a step taken to another time than the next label (a stride t - N // n of its own, a row off), or noise "
            "scaled by hand?",
        )  # fmt: skip


def last(trials: Trials, setting: Setting, end: float | None, facts: dict[str, Any]) -> Iterator[Finding]:
    """Samples have no more noise left than that of the declared end, and the data's spread is still in them."""
    trial = trials.run("point", 4)
    left = float((trial.x - trial.target.means[0]).square().mean().sqrt())
    allowed = 0.0 if end is None else setting.level(end)[1]
    before = trial.calls[-1].level
    bound = 1.05 * allowed + max(1e-3 * trials.scale, 100.0 * trial.rounding)
    if allowed:  # a last step that is long against the end's time leaves about the noise that it started with
        bound = max([bound, *(2.0 * sigma for _, sigma in trial.levels[-2:])])
    facts["noise left"] = left
    if left > bound:
        yield Finding(
            "last step", f"noise is left in the samples, of this standard deviation (the last call's sigma is "
            f"{before[1]:.4g})",
            left, -INF, bound,
            "Is the last step missing, does the grid end above sigma = 0, or is noise added in the last step? Give "
            "end= if a sampler stops earlier by intention.",
        )  # fmt: skip
    elif trials.run(times=4).denoised:
        narrow = float(trials.run(times=4).target.stds.min())
        kept = narrow * before[0] / math.hypot(narrow * before[0], before[1])
        if kept < 0.95:
            yield Finding(
                "last step", f"the last step jumps from sigma = {before[1]:.4g} to the estimate of x_0, which keeps "
                f"this share of "
                f"a standard deviation of {narrow:.3g}", kept, 0.95, 1.0, "Does the grid end too early for the data?",
            )  # fmt: skip
