r"""Checks of what is sampled: errors at N, 2N and 4N steps against exact solutions.

A right sampler's error falls at its order, error(N) = C N^-p; one that solves another equation keeps a part of it. A
deterministic sampler is compared with the exact ODE solution from its own first state, sample by sample, so that no
sampling error is left. A stochastic one runs twice with the same noise and moved data: how its mean follows is exact as
well, and so is its variance where the normals are known. Only the mixture's parts are always statistics.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from fastscore.conformance.noise import diagnosis
from fastscore.conformance.problem import CLASSES, Call, Setting, classes
from fastscore.conformance.report import Finding
from fastscore.conformance.trials import SHIFT, Trial, Trials

INF = math.inf
FALLS = 0.35  # an error that falls at a lower order than this does not go to 0
SLACK = 0.35  # on a declared order up to 2; a sixth of a higher one, whose first steps are of lower order
VISIBLE = 2e-3  # in standard deviations of the data: what may be left at 4 N steps however it got there


def ode(trials: Trials, setting: Setting, order: float | None, end: float, facts: dict[str, Any]) -> Iterator[Finding]:
    """A deterministic sampler's samples are the ODE's solution from its first state, to its order."""
    runs = trials.three()
    if not runs[0].whole:
        return
    errors = _by_place([_ode_errors(trial, setting, end) for trial in runs])
    what = "the samples' distance from the ODE's solution"
    yield from _judge(errors, order, runs, facts, what, _affine(runs[2], setting, end))


def _ode_errors(trial: Trial, setting: Setting, end: float) -> dict[str, float]:
    """Return distances from the ODE's solution, in standard deviations of the data, by what the last step does.

    "end": the samples are the state at the end; "estimate": they are the estimate of x_0 from a state, there or at the
    last call; "middle": the best state near sigma = alpha, where no last step has a say.
    """
    first, last, target = trial.calls[0], trial.calls[-1], trial.target
    ahead, data = setting.level(end), trial.target.stds[0]
    x = target.transport(first.x, first.level, ahead)
    errors = {"end": _rms((trial.x - x) / data), "estimate": _rms((trial.x - target.data(x, ahead)) / data)}
    if trial.denoised:
        exact = target.data(target.transport(first.x, first.level, last.level), last.level)
        errors["estimate"] = min(errors["estimate"], _rms((trial.x - exact) / data))
    near = _middle(trial)
    if near:
        errors["middle"] = min(
            _rms((call.x - target.transport(first.x, first.level, call.level)) / call.x.std(0)) for call in near
        )
    return errors


def _middle(trial: Trial) -> list[Call]:
    """Return the calls around sigma = alpha times the data's own scale: the nearest and those within a step of it."""
    scale = float(trial.target.stds[0].mean()) or 1.0
    place = [abs(math.log(max(c.level[1], 1e-300) / max(c.level[0] * scale, 1e-300))) for c in trial.calls]
    k = min(range(len(place)), key=place.__getitem__)
    return [] if k < 4 or place[k] > 1.0 else trial.calls[max(1, k - 3) : k + 4]


def _affine(trial: Trial, setting: Setting, end: float) -> str:
    """Say whether it is the spread or the mean of the samples that is off, as a regression on the first state."""
    first, ahead = trial.calls[0], setting.level(end)
    exact = trial.target.transport(first.x, first.level, ahead)
    spread = float((trial.x.std(0) / exact.std(0)).mean())
    move = float(((trial.x - exact).mean(0) / exact.std(0)).abs().mean())
    return (
        f"Their spread is {spread:.3g} times the exact one, their mean {move:.2g} standard deviations off. "
        "Is a factor of 2 in beta, f, g^2 or the score's 1/2, is alpha^2 used for alpha, are eps and x0 confused?"
    )


def mean(trials: Trials, setting: Setting, order: float | None, facts: dict[str, Any]) -> Iterator[Finding]:
    """A stochastic sampler's mean follows the mean of the data, to its order."""
    runs, moved = trials.three(), trials.three("moved")
    if not all(trial.whole for trial in (*runs, *moved)):
        return
    pairs = list(zip(runs, moved, strict=True))
    if not all(_same(a.calls[0].x, b.calls[0].x, a.rounding) for a, b in pairs):
        return  # the first state follows the data: some start at the exact marginal
    errors = _by_place([_mean_errors(a, b, trials.scale) for a, b in pairs])
    first = runs[2].calls[0]
    # The first state's own share in the mean is known by regression, and differences of large states by rounding.
    floor = 4.0 * first.level[0] / max(first.level[1], 1e-12) / math.sqrt(first.x.numel() / CLASSES)
    floor += 30.0 * runs[2].rounding * (1.0 + float(first.x.abs().max()) / (SHIFT * trials.scale))
    what = "what is missing of the data's mean in that of the samples"
    yield from _judge(errors, order, runs, facts, what, diagnosis(runs[2]), floor)


def _mean_errors(trial: Trial, moved: Trial, scale: float) -> dict[str, float]:
    first, kinds = trial.calls[0], classes(trial.target.means.shape[1:])

    def error(before: Tensor, after: Tensor, alpha: float) -> float:
        x = before.flatten(1)
        response = ((after - before).flatten(1)).mean(0) / (SHIFT * scale)
        gaps = []
        for k in range(min(CLASSES, len(kinds))):
            start, state = first.x.flatten(1)[:, kinds == k].flatten(), x[:, kinds == k].flatten()
            start, state = start - start.mean(), state - state.mean()
            gain = float(start @ state / (start @ start))  # the first state itself does not follow the data
            gaps.append(float(response[kinds == k].mean()) + gain * first.level[0] - alpha)
        return math.sqrt(sum(g * g for g in gaps) / len(gaps))

    errors = {"end": error(trial.x, moved.x, 1.0)}
    if trial.denoised:
        last, other = trial.calls[-1], moved.calls[-1]
        errors["estimate"] = error(last.x, other.x, last.level[0])
    near = _middle(trial)
    at = [k for k, call in enumerate(trial.calls) if any(call is c for c in near)]
    if at and len(trial.calls) == len(moved.calls):
        errors["middle"] = min(error(trial.calls[k].x, moved.calls[k].x, trial.calls[k].level[0]) for k in at)
    return errors


def spread(
    trials: Trials, setting: Setting, order: float | None, end: float, z: float, facts: dict[str, Any]
) -> Iterator[Finding]:
    """A stochastic sampler's variance is the data's.

    Samples are a linear function of the normals drawn for them, whose coefficients regression finds without error;
    their squares are the variance. Where noise comes from elsewhere, the variance is a statistic.
    """
    runs, kinds = trials.three(), classes(trials.shape)
    level = setting.level(end)
    exact = (level[0] ** 2 * runs[0].target.stds[0] ** 2 + level[1] ** 2).flatten()
    found = [_variances(trial) for trial in runs]
    known = [v for v in found if v is not None]
    if len(known) == len(found):
        errors: dict[str, list[float]] = {"end": [_rms(v / exact - 1.0) for v in known]}
        if all(trial.denoised for trial in runs):
            stds = runs[0].target.stds[0].flatten()
            kept = [(t.calls[-1].level[0] * stds) ** 2 for t in runs]
            kept = [k / (k + t.calls[-1].level[1] ** 2) for k, t in zip(kept, runs, strict=True)]
            errors["estimate"] = [_rms(v / (k * stds**2) - 1.0) for v, k in zip(known, kept, strict=True)]
        own: dict[str, Any] = {}
        yield from _judge(
            errors, order, runs, own, "the samples' error in the variance", diagnosis(runs[2]), 0.0, "spread"
        )
        facts["order"] = min(facts.get("order", INF), own["order"])
        facts["error of the variance"] = own["error"]
        return
    if facts.get("order") == INF:
        del facts["order"]  # the mean is exact, as ancestral steps make it, and says nothing of the variance
    shares = []
    for trial in runs:
        x = trial.x.flatten(1)
        centred = [
            (x[:, kinds == k] - x[:, kinds == k].mean()).square().mean() / exact[kinds == k].mean()
            for k in kinds.unique()
        ]
        shares.append(float(torch.stack(centred).mean()))
    reach = z * math.sqrt(2.0 / runs[2].x.numel())
    if _stays([share - 1.0 for share in shares], reach):
        yield Finding(
            "spread", f"the variance of the samples at {', '.join(str(t.steps) for t in runs)} steps is "
            f"{', '.join(f'{s:.3f}' for s in shares)} times the exact one, and does not go to 1", shares[2],
            1.0 - reach,
            1.0 + reach, diagnosis(runs[2]),
        )  # fmt: skip


def _variances(trial: Trial) -> Tensor | None:
    """Return the exact variance of each coordinate of the samples, [D]; None if torch did not draw all their noise."""
    kinds, first, x = classes(trial.target.means.shape[1:]), trial.calls[0], trial.x.flatten(1)
    found = torch.empty(len(kinds), dtype=torch.float64)
    for k in kinds.unique():
        at = kinds == k
        columns = [torch.ones(x[:, at].numel(), dtype=torch.float64), *(z[:, at].flatten() for z in trial.draws)]
        y, A = x[:, at].flatten(), torch.stack(columns, 1)
        if len(columns) < 2 or 4 * len(columns) > len(y):
            return None
        fit = torch.linalg.lstsq(A, y[:, None])
        b = fit.solution[:, 0]
        if int(fit.rank) < len(columns):  # the same normals twice: their coefficients cannot be told apart
            return None
        if float((A @ b - y).square().mean().sqrt()) > 1e3 * trial.rounding * float(y.square().mean().sqrt()):
            return None
        state = first.x.flatten(1)[:, at].flatten()
        gain = float(b[1]) / first.level[1] if first.level[1] else 0.0
        unit = bool((A[:, 1] * first.level[1] - state).abs().max() <= 1e3 * trial.rounding * state.abs().max())
        # What a first state without the data's spread lacks, which is not the steps' mistake.
        lack = (gain * first.level[0] * trial.target.stds[0].flatten()[at][0]) ** 2 if unit else 0.0
        found[at] = b[1:].square().sum() + lack
    return found


def parts(trials: Trials, z: float) -> Iterator[Finding]:
    """A mixture keeps its weights and the width of each part."""
    runs = trials.three("mixture")
    weight, std = float(runs[0].target.weights[1]), float(runs[0].target.stds[0].flatten()[0])
    count = runs[0].x.numel()
    measured = []
    for trial in runs:
        right = trial.x > 0.0
        sides = trial.x[right], trial.x[~right]
        widths = [float(side.std()) / std if len(side) > 1 else 0.0 for side in sides]
        middles = [float(side.mean()) / trials.scale if len(side) else 0.0 for side in sides]
        measured.append((float(right.double().mean()), sum(widths) / 2.0, middles[0] - middles[1]))
    for k, (what, exact, error, cause) in enumerate((
        ("the weight of its larger part", weight, math.sqrt(weight * (1.0 - weight) / count),
         "Is the drift or the label wrong where parts divide?"),
        ("the width of a part, in its own", 1.0, math.sqrt(1.0 / count),
        "Is noise left over or lost in the last steps?"),
        ("the distance of its parts", 2.0, 0.4 / math.sqrt(count), "Is x_0 scaled by alpha, or clipped?"),
    )):  # fmt: skip
        values = [m[k] for m in measured]
        if _stays([v - exact for v in values], z * error, 0.01):
            says = ", ".join(f"{v:.3f}" for v in values)
            yield Finding(
                "mixture", f"of a mixture, {what} is {says} at {', '.join(str(t.steps) for t in runs)} steps, and "
                f"does not go to {exact:g}", values[2], exact - z * error, exact + z * error, cause,
            )  # fmt: skip


def _stays(errors: list[float], reach: float, allowed: float = 0.0) -> bool:
    """Whether an error of statistics, each known to ``reach``, does not go to 0.

    Of a first-order sampler 2 e(4N) - e(2N) is what stays. Where errors fall slower, or steps are still too few, it is
    at most the difference that they made.
    """
    stays = 2.0 * errors[2] - errors[1]
    return (
        abs(stays) > math.sqrt(5.0) * reach + abs(errors[1] - errors[2]) + allowed and abs(errors[2]) > reach + allowed
    )


def _by_place(errors: list[dict[str, float]]) -> dict[str, list[float]]:
    """Return the errors of each place that every run has, run by run."""
    return {place: [e[place] for e in errors] for place in errors[0] if all(place in e for e in errors)}


def _judge(
    errors: dict[str, list[float]],
    order: float | None,
    runs: list[Trial],
    facts: dict[str, Any],
    what: str,
    cause: str,
    floor: float = 1e-9,
    check: str = "accuracy",
) -> Iterator[Finding]:
    """Judge errors of three runs by the best of the places where they were measured; below ``floor`` all are right."""
    floor = max(300.0 * runs[2].rounding, floor)
    orders = {name: _order(e, floor) for name, e in errors.items()}
    ends = {name: e for name, e in errors.items() if name != "middle"}
    name = min(ends, key=lambda k: ends[k][2])
    facts["error"], facts["order"] = ends[name][2], max(orders.values())
    says = f"{', '.join(f'{e:.2g}' for e in ends[name])} at {', '.join(str(t.steps) for t in runs)} steps"
    middle = ", ".join(f"{e:.2g}" for e in errors.get("middle", []))
    says = f"{says}; where sigma = alpha {middle}" if middle else says
    if orders[name] < FALLS and ends[name][2] > VISIBLE:
        yield Finding(check, f"{what} does not go to 0 ({says})", ends[name][2], -INF, VISIBLE, cause)
    elif order is not None and max(orders.values()) < (least := order - max(SLACK, order / 6.0)):
        yield Finding(
            "order", f"{what} ({says}) falls at a lower order than the {order:g} declared", max(orders.values()),
            least, INF,
            "Is a coefficient, a label or a weight of the history wrong, or the grid one on which no solver has its "
            "order?",
        )  # fmt: skip


def _order(errors: list[float], floor: float) -> float:
    """Return log2 e(2N) / e(4N), or that from N on where 4N is rounding; infinite where nothing is left to fall."""
    if errors[2] > floor:
        return math.log2(errors[1] / errors[2])
    return math.log2(errors[0] / errors[1]) if errors[1] > floor else INF


def _rms(x: Tensor) -> float:
    return float(x.square().mean().sqrt())


def _same(x: Tensor, y: Tensor, rounding: float) -> bool:
    return bool((x - y).abs().max() <= 10.0 * rounding * (1.0 + x.abs().max()))
