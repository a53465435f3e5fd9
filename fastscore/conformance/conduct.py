"""Checks of conduct: what a sampler takes, calls and returns, whatever its formulas."""

from __future__ import annotations

import math
from collections.abc import Iterator
from itertools import pairwise

import torch

from fastscore.conformance.problem import Setting
from fastscore.conformance.report import Finding
from fastscore.conformance.trials import FINER, Trial, Trials

INF = math.inf
COLLISIONS = 0.05  # of a batch: single float32 normals are now and then the same
LABEL = 2e-6  # relative: a label that went through float32


def seeds(trials: Trials) -> Iterator[Finding]:
    """The same seed gives the same bytes; another seed, and each sample of a batch, gives another sample."""
    first, again, other = trials.run(), trials.run(again=True), trials.run(seed=1)
    differ = float((first.x - again.x).abs().max())
    if differ or not torch.equal(first.raw, again.raw):
        yield Finding(
            "seeds", "two runs with the same seed differ", differ, -INF, 0.0,
            "Is noise drawn from a global generator, or the seed not passed on?",
        )  # fmt: skip
    same = float((first.x == other.x).double().mean())
    if same > 0.5:
        yield Finding(
            "seeds", "two seeds give the same samples, as a share of all numbers", same, -INF, 0.5,
            "Is the seed ignored, or a generator made anew with a fixed one?",
        )  # fmt: skip
    start = first.calls[0].x.flatten(1)
    doubled = 1.0 - len(start.unique(dim=0)) / len(start)
    if doubled > COLLISIONS:
        yield Finding(
            "seeds", "samples of a batch start from the same state, as a share of the batch", doubled, -INF, COLLISIONS,
            "Is one noise expanded over the batch, or a generator for each sample made with the same seed?",
        )  # fmt: skip


def batch(trials: Trials, coupled: bool, keyed: bool) -> Iterator[Finding]:
    """A sample depends on no other sample, and where that is promised, not on how many there are."""
    if not torch.equal(trials.run().raw, trials.run(again=True).raw):
        return  # seeds say so
    if not coupled:
        alone, disturbed = trials.run().x, trials.run(apart=True).x
        half = len(alone) // 2
        moved = float((alone[:half] - disturbed[:half]).abs().max())
        if moved > 0.0:
            yield Finding(
                "batch", "samples change when the network answers otherwise for the others of the batch", moved, -INF,
                0.0, "Is a norm, a threshold, a step size or a mean taken over the whole batch? coupled=True if meant.",
            )  # fmt: skip
    if keyed:
        few = 3
        whole, part = trials.run().x[:few], trials.run(n=few).x
        moved = float((whole - part).abs().max())
        if moved > 0.0:
            yield Finding(
                "batch", f"the first {few} samples of a batch are not those of a batch of {few}", moved, -INF, 0.0,
                "Is noise drawn for the whole batch at once? Draw it for each sample, by its own generator or number.",
            )  # fmt: skip


def steps(trials: Trials) -> Iterator[Finding]:
    """Asking for more steps calls the network more often, in proportion."""
    counts = [len(trial.calls) for trial in trials.three()]
    more = (counts[1] - counts[0], counts[2] - counts[1])
    growth = more[1] / more[0] if more[0] >= 0.5 * trials.steps else 0.0
    if not 1.8 <= growth <= 2.2:
        says = ", ".join(f"{c} at {m * trials.steps}" for c, m in zip(counts, FINER, strict=True))
        yield Finding(
            "steps", f"evaluations do not follow the steps ({says} steps): the second doubling adds this many times "
            f"what "
            "the first adds", growth, 1.8, 2.2, "Is the number of steps ignored, capped or defaulted?",
        )  # fmt: skip


def grid(trials: Trials, setting: Setting, stochastic: bool) -> Iterator[Finding]:
    """The network is called at noise levels that exist, and at the knots that were declared, in their order."""
    schedule, trial = setting.schedule, trials.run()
    times = [call.t for call in trial.calls]
    known = [t for t in times if t == t]
    if not known:
        return
    if any(level[1] <= 0.0 for level in trial.levels):
        k = next(k for k, level in enumerate(trial.levels) if level[1] <= 0.0)
        yield Finding(
            "grid", f"call {k + 1} of {len(times)} is labelled as data without noise (t, the last allowed being above "
            f"{schedule.t_clean:g})", times[k], schedule.t_clean, INF,
            "Are labels one knot ahead of the states, or does a step too many follow the last one?",
        )  # fmt: skip
    slack = LABEL * max(1.0, abs(schedule.T))
    # Churn adds noise before a step, at most sqrt(2) times as much as there is, to that of the prior too.
    churned = stochastic and 1.0 + LABEL < setting.level(max(known))[1] / setting.level(schedule.T)[1] < 1.5
    if max(known) > schedule.T + slack and not churned:
        yield Finding(
            "grid", "a label lies beyond the schedule's end T", max(known), -INF, schedule.T,
            "Is the label in other units (index, 0 .. 1, 0 .. 999, sigma), or shifted twice?",
        )  # fmt: skip
    if trial.changed:
        yield Finding(
            "grid", f"the caller's list of knots is changed: {trial.changed[0]:.6g} in it has another value",
            trial.changed[1],
            trial.changed[0], trial.changed[0], "Write into a copy: the next run of the caller starts from this list.",
        )  # fmt: skip
    if setting.times is None:
        return
    knots = [float(t) for t in setting.times(trial.steps)]
    wanted, k = knots[:-1], 0
    for t in times:  # stages between knots are the sampler's own affair
        k += k < len(wanted) and _near(t, wanted[k], schedule.T)
    if k < len(wanted):
        seen = ", ".join(f"{t:.6g}" for t in times[max(0, k - 1) : k + 3])
        yield Finding(
            "grid", f"knot {k} of the declared grid is {wanted[k]:.6g}, and the network is never called "
            f"there after the knot before it; it is called at .. {seen} ..", times[min(k, len(times) - 1)],
            wanted[k], wanted[k],
            "Is the grid shifted twice, rounded, clipped, one knot off, or another one than was asked for?",
        )  # fmt: skip
        return
    repeats = sum(_near(a, b, schedule.T) for a, b in pairwise(sorted(times)))
    if len(times) > 1 and _near(times[-2], times[-1], schedule.T) and repeats < len(wanted) // 2:  # Heun: at every knot
        yield Finding(
            "grid", "the network is called twice running at the last knot, t", times[-1], schedule.t_clean, wanted[-2],
            "Is the last knot repeated, or a step of zero length taken?",
        )  # fmt: skip


def start(trials: Trials, setting: Setting, z: float) -> Iterator[Finding]:
    """The first state is normal noise of the level that its label names."""
    trial = trials.run()
    call = trial.calls[0]
    if not trial.whole:
        return
    (alpha, sigma), means, stds = call.level, trial.target.means[0], trial.target.stds[0]
    unit = call.x / sigma if sigma > 0.0 else call.x
    with_data = unit - alpha / max(sigma, 1e-300) * means
    # Between the prior's N(0, sigma^2) and the exact marginal; either is how samplers start.
    most = float(((alpha * stds) ** 2 / max(sigma, 1e-300) ** 2).mean())
    error = z * math.sqrt(2.0 / unit.numel())
    std = math.sqrt(min(float(unit.square().mean()), float(with_data.square().mean()), float(unit.var())))
    low, high = math.sqrt(max(0.0, 1.0 - error)), math.sqrt((1.0 + most) * (1.0 + error))
    if not low <= std <= high:
        yield Finding(
            "start", f"the first state has this many times the noise of its label (t = {call.t:.6g}, sigma = "
            f"{sigma:.4g})",
            std, low, high, "Is the first state scaled by sigma_max or the prior's deviation? Is the label one knot "
            "off?",
        )  # fmt: skip
    else:
        unit = (unit - unit.mean(0)) / unit.std(0)
        tail = float(unit.pow(4).mean())
        if abs(tail - 3.0) > 2.0 * z * math.sqrt(24.0 / unit.numel()):
            reach = 2.0 * z * math.sqrt(24.0 / unit.numel())
            yield Finding(
                "start", "the first state is not normal: its fourth moment", tail, 3.0 - reach, 3.0 + reach,
                "Is it drawn uniformly, truncated or clipped?",
            )  # fmt: skip


def _near(t: float, knot: float, T: float) -> bool:
    """Whether a time is a knot, but for the float32 rounding of a label of a large or logarithmic scale."""
    return abs(t - knot) <= LABEL * max(abs(knot), 1e-3 * abs(T))


def manners(trials: Trials) -> tuple[list[Finding], list[str]]:
    """Return what is wrong and what is worth knowing about modes, dtypes and global state."""
    trial: Trial = trials.run()
    found, notes = [], []
    if trial.mode or any(call.training for call in trial.calls):
        cause = "Dropout and batch norms then change samples and weights: call train() nowhere, or restore it."
        text = "the network, given in eval mode, was called or left in training mode"
        found.append(Finding("mode", text, 1.0, -INF, 0.0, cause))
    dtypes = {str(call.dtype).removeprefix("torch.") for call in trial.calls}
    if len(dtypes) > 1:
        notes.append(f"the network is called with {' and '.join(sorted(dtypes))} in one run")
    if trial.ambient:
        notes.append("global random state is consumed or seeded: other code in the process changes with it")
    if not trial.whole:
        notes.append(
            "samples of one call have different times, or calls hold part of the batch: states are not compared"
        )
    return found, notes
