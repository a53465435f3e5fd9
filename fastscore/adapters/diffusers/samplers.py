"""The settings of a Sampler that repeat a diffusers scheduler: its solver, and the very times it asks the network at.

The scheduler itself says its times (``set_timesteps``), so that spacings, offsets, Karras, exponential and beta levels,
shifts and roundings are its own. What is not repeated exactly is refused by name.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import pairwise
from typing import Any

import numpy as np

from fastscore.adapters.diffusers.config import PREDICTIONS
from fastscore.adapters.diffusers.schedules import schedule_of
from fastscore.adapters.diffusers.solvers import ANY, Run, bounds, refusal, rule_of
from fastscore.adapters.diffusers.steps import Steps
from fastscore.process.continuous import EDM, Flow, Trig
from fastscore.process.grid import Times
from fastscore.process.parametrization import Parametrization
from fastscore.process.schedule import Array, Schedule, Started, lam, t_of_lam

FLOAT32 = 1e-6  # relative, of what is float32 there, against its value here


@dataclass(frozen=True)
class Recipe:
    """What a scheduler says of a network and of how to sample it.

    Attributes:
        schedule, parametrization: of the score model.
        settings: of a Sampler.
        scale, pairs: of models.Labels: the labels that the network gets.
        sign: on the network's output.
    """

    schedule: Schedule
    parametrization: Parametrization
    settings: dict[str, Any] = field(default_factory=dict)
    scale: float = 1.0
    pairs: tuple[tuple[float, float], ...] = ()
    sign: float = 1.0


def described(config: Mapping[str, Any]) -> Recipe:
    """Return what a config says of the network, for a solver and steps of the caller's own.

    Raises:
        ValueError: a prediction type without a name here.
    """
    schedule, kind = schedule_of(config), str(config.get("_class_name", ""))
    prediction = "flow_prediction" if kind.startswith("FlowM") else config.get("prediction_type") or "epsilon"
    if isinstance(schedule, EDM) and prediction in ("epsilon", "v_prediction"):
        inside = Parametrization("edm", "log_sigma/4", sigma_data=float(config.get("sigma_data", 0.5)))
        return Recipe(schedule, inside, sign=-1.0 if prediction == "v_prediction" else 1.0)
    if prediction not in PREDICTIONS or isinstance(schedule, EDM):
        raise ValueError(f"{kind}: prediction_type = {prediction!r} is not known; known: {', '.join(PREDICTIONS)}")
    if config.get("timestep_type") == "continuous" and prediction == "v_prediction":
        top = config.get("sigma_max") or math.exp(-lam(schedule, schedule.T))  # which may be far beyond the table's
        return Recipe(Started(Trig(), math.atan(top), 1.0), Parametrization("v", "log_sigma/4"))
    predicts = Parametrization(PREDICTIONS[prediction], "t")
    if not isinstance(schedule, Flow):
        return Recipe(schedule, predicts)
    shift = float(config.get("shift") or config.get("flow_shift") or 1.0)
    shifted = shift != 1.0 and not config.get("use_dynamic_shifting")
    settings = {"schedule": Flow(shift=shift)} if shifted else {}
    return Recipe(schedule, predicts, settings, float(config.get("num_train_timesteps", 1000)))


def repeated(scheduler: Any, steps: int | None, eta: float = 0.0, **timing: Any) -> Recipe:
    """Return the recipe under which a Sampler's run equals the scheduler's own loop on the same normals.

    Args:
        scheduler: a scheduler of diffusers; a copy of it is asked.
        steps: its num_inference_steps; None where ``timing`` has the times.
        eta: of DDIM's step.
        timing: further arguments of its ``set_timesteps``: mu, sigmas, timesteps.

    Raises:
        ValueError: a scheduler or a setting of one that no solver here repeats exactly, with the nearest that does.
    """
    kind, ours = type(scheduler).__name__, isinstance(scheduler, Steps)
    rule, scheduler = None if ours else rule_of(kind, scheduler.config), copy.deepcopy(scheduler)
    scheduler.set_timesteps(**({} if steps is None else {"num_inference_steps": steps}), **timing)
    if rule is None:
        settings = {"solver": scheduler.solver, "grid": scheduler.rest(), "guide": scheduler.guide}
        return Recipe(scheduler.schedule, scheduler.parametrization, settings, scheduler.per_time)
    config = dict(scheduler.config) | {"_class_name": kind}
    recipe, asked = described(config), Asked.of(scheduler, rule.family)
    schedule = recipe.schedule
    if rule.family == "index":
        end = -1.0 if config.get("set_alpha_to_one", True) else 0.0
        placed: dict[str, Any] = {"grid": _knots(asked.labels, end)}
    elif rule.family == "sigma" and not isinstance(schedule, Flow):
        low = min(level for level in asked.levels if level > 0.0)
        on = Started(EDM(0.5 * low, 2.0 * asked.levels[0]), asked.levels[0], asked.std)
        placed = {"schedule": on, "grid": _knots(asked.levels[:-1], asked.levels[-1])}
    else:
        times = asked.times(kind, schedule)
        placed = {"grid": _knots(times[:-1], times[-1])}
        if isinstance(schedule, Flow) and times[0] < 1.0:
            placed["schedule"] = Started(schedule, times[0], asked.std)
    if recipe.parametrization.label == "t" and rule.family != "index":
        recipe = replace(recipe, pairs=asked.pairs(kind, schedule, recipe.scale))
    run = Run(len(asked.labels), asked.repeats_end, asked.levels[-1:] == (0.0,), _strides(asked.labels), eta)
    settings = {**placed, "solver": rule.solver(kind, config, run), **bounds(kind, config)}
    return replace(recipe, settings=settings)


def _knots(times: Sequence[float], end: float) -> Times:
    """Return the grid; a step from the last time to itself moves nothing, and is none."""
    return Times((*times, end) if end < times[-1] else tuple(times))


def _strides(labels: tuple[float, ...]) -> frozenset[float]:
    return frozenset(a - b for a, b in pairwise(labels))


@dataclass(frozen=True)
class Asked:
    """Where a scheduler asks the network, noisiest first.

    Attributes:
        labels: one a step.
        levels: sigma / alpha of each, and of the end; of a flow sigma. None of a scheduler that only has indices.
        inside: labels and levels within steps.
        std: of the starting noise.
    """

    labels: tuple[float, ...]
    levels: tuple[float, ...] = ()
    inside: tuple[tuple[float, float], ...] = ()
    std: float = 1.0

    @classmethod
    def of(cls, scheduler: Any, family: str) -> Asked:
        """Read a scheduler whose timesteps are set.

        Raises:
            ValueError: levels that do not fall from step to step.
        """
        labels = scheduler.timesteps.double().tolist()
        if family == "index":
            return cls(tuple(dict.fromkeys(labels)))
        levels, inside = scheduler.sigmas.double().tolist(), []
        middles = getattr(scheduler, "sigmas_interpol", None)
        if middles is not None:  # KDPM2's: an evaluation within each step but the last
            middles = [v for v in dict.fromkeys(middles.double().tolist()) if v > 0.0]
            inside, labels, levels = list(zip(labels[1::2], middles, strict=True)), labels[::2], dict.fromkeys(levels)
        elif getattr(scheduler, "order", 1) == 2 and len(levels) == len(labels) + 1:  # Heun's: all ends but one twice
            labels, levels = [labels[0], *labels[1::2]], [levels[0], *levels[1:-1:2], levels[-1]]
        levels = list(levels)[: len(labels) + 1]
        if abs(levels[-1] - levels[-2]) < FLOAT32 * levels[-1]:
            levels[-1] = levels[-2]
        if any(b >= a for a, b in pairwise(levels[:-1])) or levels[-1] > levels[-2]:
            raise ValueError(f"{type(scheduler).__name__}: its levels do not fall from step to step: {levels}")
        return cls(tuple(labels), tuple(levels), tuple(inside), float(getattr(scheduler, "init_noise_sigma", 1.0)))

    @property
    def repeats_end(self) -> bool:
        """Whether the last step goes from a level to itself."""
        return len(self.levels) > 1 and self.levels[-1] == self.levels[-2]

    def times(self, kind: str, schedule: Schedule) -> list[float]:
        """Return the times of the levels and of the end on the network's own schedule; whole indices where they are.

        Raises:
            ValueError: a level above those that the network knows.
        """
        if isinstance(schedule, Flow):
            return list(self.levels)
        found = _times(kind, schedule, self.levels)
        whole = np.round(found)
        with np.errstate(divide="ignore", invalid="ignore"):  # the data are at -1
            off = np.abs(lam(schedule, whole) - lam(schedule, found))
        return np.where((off < FLOAT32) | (whole == found), whole, found).tolist()

    def pairs(self, kind: str, schedule: Schedule, scale: float) -> tuple[tuple[float, float], ...]:
        """Return the times, in units of labels, at which the label is not the time; with their labels."""
        points = [*zip(self.labels, self.levels[:-1], strict=True), *self.inside]
        labels, levels = zip(*points, strict=True)
        times = scale * np.array(levels) if isinstance(schedule, Flow) else _times(kind, schedule, levels)
        first: dict[float, float] = {}
        for t, k in zip(times.tolist(), labels, strict=True):
            known = first.setdefault(round(t, 3), k)
            if abs(k - known) > 1e-5 * max(1.0, k):
                what = f"one level with two labels, {known:.6g} and {k:.6g},"  # KDPM2 ancestral's, of two evaluations
                raise refusal(kind, what, f"nearest are timestep_spacing='leading' and 'trailing'; {ANY}")
        return tuple((t, k) for t, k in zip(times.tolist(), labels, strict=True) if abs(t - k) > FLOAT32 * max(1.0, k))


def _times(kind: str, schedule: Schedule, levels: Sequence[float]) -> Array:
    """Return the times of levels sigma / alpha."""
    values = np.array(levels)
    times = np.full(len(values), schedule.t_clean)
    with np.errstate(divide="ignore"):
        lams = -np.log(values)
    bottom = float(lam(schedule, schedule.T))
    lams = np.where(np.abs(lams - bottom) < FLOAT32 * max(1.0, abs(bottom)), bottom, lams)
    if lams.min() < bottom:
        raise refusal(kind, f"sigma = {max(levels):.6g}, beyond the table's {np.exp(-bottom):.6g},", ANY)
    times[values > 0.0] = t_of_lam(schedule, lams[values > 0.0])
    return times
