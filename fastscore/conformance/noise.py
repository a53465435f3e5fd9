r"""Checks of the noise that a sampler adds, from the states that its network sees.

With Gaussian data the network is linear, so a state is a linear function of those before it and of what noise was drawn
since. Its residual against all of them (Gram and Schmidt, over the coordinates of a class) is that noise, to rounding.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from fastscore.conformance.problem import classes
from fastscore.conformance.report import Finding
from fastscore.conformance.trials import Trial, Trials

INF = math.inf
CLASS = 0  # the class of coordinates that is looked at
SHARED = 100.0  # far beyond chance for a mean square of a dozen normals, far below a batch


@dataclass(frozen=True)
class Fresh:
    """The noise that entered between two calls, of unit variance, [n, d], and its share of the later variance."""

    z: Tensor
    share: float


def fresh(trial: Trial) -> list[Fresh]:
    """Return the fresh noise of every state behind the first, the samples being the last one."""
    pick = (classes(trial.target.means.shape[1:]) == CLASS).nonzero().flatten()
    states = [*(call.x.flatten(1)[:, pick] for call in trial.calls), trial.x.flatten(1)[:, pick]]
    shape, size = states[0].shape, states[0].numel()
    basis = torch.empty(len(states) + 1, size, dtype=torch.float64)
    basis[0], used, found = 1.0 / math.sqrt(size), 1, []
    for k, state in enumerate(states):
        y = state.flatten()
        spread = float((y - y.mean()).square().sum())
        for _ in range(2):  # twice: once leaves what cancelled
            y = y - basis[:used].T @ (basis[:used] @ y)
        share = float(y.square().sum()) / spread if spread > 0.0 else 0.0
        new = share > (1e3 * trial.rounding) ** 2
        if new:
            basis[used] = y / y.norm()
            used += 1
        if k:
            z = y.reshape(shape) * (math.sqrt(size) / float(y.norm())) if new else torch.zeros(shape, dtype=y.dtype)
            found.append(Fresh(z, share if new else 0.0))
    return found


def shared(trial: Trial) -> float:
    """Return the variance of coordinates' means over the batch, of the last call's state, in units of independence."""
    x = trial.calls[-1].x.flatten(1)
    kinds = classes(trial.target.means.shape[1:])
    means = torch.cat([x[:, kinds == k].mean(0) - x[:, kinds == k].mean() for k in kinds.unique()])
    spread = torch.cat([x[:, kinds == k].var(0) for k in kinds.unique()])
    return float((means.square() / spread.clamp_min(1e-300)).mean()) * len(x)


def noise(trials: Trials, stochastic: bool, z: float) -> Iterator[Finding]:
    """Noise is added by those who say so, anew at each step, for each sample and each coordinate, and is normal."""
    trial = trials.run()
    if not trial.whole:
        return
    together = shared(trial)
    if together > SHARED:
        yield Finding(
            "noise", "states of a batch move together: the variance of a coordinate's mean over the batch, in units "
            "of that "
            "of independent samples", together, -INF, SHARED, "Is one noise expanded over the batch?",
        )  # fmt: skip
        return
    found = fresh(trial)
    drawn = [f for f in found if f.share > 0.0]
    if not stochastic:
        if drawn:
            k = next(k for k, f in enumerate(found) if f.share > 0.0)
            yield Finding(
                "noise", "states of a sampler declared deterministic are no linear function of the first one: what "
                "enters "
                f"between calls {k + 1} and {k + 2}, as a share of the variance,", drawn[0].share, -INF, 0.0,
                "Is noise added (stochastic=True), or is a clip, a threshold or a step that depends on the state on?",
            )  # fmt: skip
        return
    if not drawn:
        yield Finding(
            "noise", "a sampler declared stochastic adds no noise: samples are a function of the first state; steps "
            "with "
            "noise", 0.0, 1.0, INF,
            "Is the noise argument (eta, churn, diffusion) dropped on the way, or the first state's noise used again?",
        )  # fmt: skip
        return
    if len(drawn) < 2:
        yield Finding(
            "noise", f"fresh noise enters only once in {trial.steps} steps", len(drawn), 2.0, INF,
            "Is the same noise added at every step, or a generator made anew with one seed at each step?",
        )  # fmt: skip
        return
    yield from _alike(drawn, z)


def _alike(drawn: list[Fresh], z: float) -> Iterator[Finding]:
    unit = torch.stack([f.z for f in drawn])  # [steps, n, d]
    # Of independent normals: a mean over k of them has variance 1/k, itself known to sqrt(2/how many there are).
    means, reach = unit.mean(2), z * math.sqrt(2.0 / unit[:, :, 0].numel()) + 0.02
    ratio = float(means.square().mean()) * unit.shape[2]
    if unit.shape[2] > 1 and ratio > 1.0 + 2.0 * reach:
        yield Finding(
            "noise", "the noise of a step is shared by coordinates of a sample: the variance of its mean over them, "
            "in units "
            "of that of independent noise", ratio, -INF, 1.0 + 2.0 * reach,
            "Is one number a sample expanded over its shape?",
        )  # fmt: skip
    tail, least = float(unit.pow(4).mean()), 2.95 - 2.0 * z * math.sqrt(24.0 / unit.numel())
    if tail < least:  # steps whose size depends on the state only raise it
        yield Finding(
            "noise", "the noise is not normal: its fourth moment", tail, least, INF,
            "Is it drawn uniformly, truncated or clipped?"
        )  # fmt: skip


def diagnosis(trial: Trial) -> str:
    """Say what the steps do wrong, judged by states at neighbouring times: their noise, or their drift.

    A step x' = g x + c z from variance V keeps the marginals if g^2 V + c^2 = V'; g and c are measured by regression.
    """
    pick = (classes(trial.target.means.shape[1:]) == CLASS).nonzero().flatten()
    mean, std = float(trial.target.means[0].flatten()[pick[0]]), float(trial.target.stds[0].flatten()[pick[0]])
    ratios, odes = [], []
    for one, two in zip(trial.calls, trial.calls[1:], strict=False):
        (alpha, sigma), (alpha2, sigma2) = one.level, two.level
        V, V2 = (alpha * std) ** 2 + sigma**2, (alpha2 * std) ** 2 + sigma2**2
        if not two.t < one.t or not 0.02 < sigma2 / max(alpha2, 1e-12) / max(std, 1e-12) < 20.0:
            continue
        x, y = (call.x.flatten(1)[:, pick].flatten() for call in (one, two))
        x, y = x - x.mean(), y - y.mean()
        gain = float(x @ y / (x @ x))
        added = float((y - gain * x).square().mean())
        wanted = V2 - gain**2 * V
        if wanted > 1e-3 * V2 and added > 1e-9 * V2:
            ratios.append(added / wanted)
        if added > 1e-9 * V2:
            right = math.sqrt(max(0.0, V2 - added) / V)
            odes.append(abs(gain - math.sqrt(V2 / V)) < 0.2 * abs(gain - right) + 1e-9)
    if odes and sum(odes) > 0.8 * len(odes):
        return "The drift of a step is that of the ODE, and noise is added to it: where is the drift that pays for it?"
    if not ratios:
        return f"Is the drift right (a factor of 2 in beta, f or the score)? Data here have mean {mean:.3g}, std "
        f"{std:.3g}."
    ratios.sort()
    if 0.8 < ratios[len(ratios) // 2] < 1.25 and ratios[-1] < 2.0 and ratios[0] > 0.5:
        return "The noise of a step fits its drift: is the drift right, as to a factor of 2 in beta, f or the score?"
    low, middle, high = ratios[0], ratios[len(ratios) // 2], ratios[-1]
    spread = f"{middle:.3g} times" + (f" ({low:.3g} .. {high:.3g} from step to step)" if high > 1.3 * low else "")
    return (
        f"The noise of a step has {spread} the variance that fits its drift: is diffusion g or g^2, the step's square "
        "root missing, or the score's factor 1/2 (ODE) used for 1 (SDE)?"
    )
