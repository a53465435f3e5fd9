r"""Noise of the steps of a solver, in units of Anderson's reverse SDE: one eta, or one a step.

Wherever a solver has an ``eta`` (SASolver calls it tau), it is a number, or a function eta(t, s) of a step's times,
constant within the step. The marginals are the same for every eta >= 0, so also for one that changes on the way.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from fastscore.errors import checked, short, typed
from fastscore.process.schedule import Array, Schedule

Eta = float | Callable[[float, float], float]


@dataclass(frozen=True)
@typed
class EtaWindow:
    """Noise in a window: ``eta`` for steps that start (or end) between low and high, else 0.

    Any frozen dataclass that is called as eta(t, s) will do in its place: a run's record keeps its repr.

    Args:
        low, high: the window, ends included. diffusers' SA-Solver has 200 and 800 (of 1000 indices).
        eta: inside.
        at: which end of a step decides: "start" as in diffusers, "end" as in ComfyUI.
        of: what low and high are: "time", the schedule's own; "ratio", sigma / alpha: EDM's sigma, on any schedule.

    Raises:
        ValueError: low above high, eta negative, or another ``at`` or ``of``.

    Source: Xue et al. 2023, section 6 and appendix E: noise in the middle of the run.
    """

    low: float
    high: float
    eta: float = 1.0
    at: str = "start"
    of: str = "time"

    def __post_init__(self) -> None:
        checked_eta("EtaWindow", self.eta)
        if not self.low <= self.high:
            raise ValueError(f"EtaWindow: low = {self.low} must not exceed high = {self.high}")
        if self.at not in ("start", "end"):
            raise ValueError(f"EtaWindow: at = {self.at!r} must be start or end")
        if self.of not in ("time", "ratio"):
            raise ValueError(f"EtaWindow: of = {self.of!r} must be time or ratio")

    def __call__(self, t: float, s: float) -> float:
        """Return eta of the step from ``t`` to ``s``, both in units of the window."""
        return self.eta if self.low <= (t if self.at == "start" else s) <= self.high else 0.0


def eta_of(
    name: str, eta: Eta, schedule: Schedule, t: float, s: float, symbol: str = "eta", most: float = math.inf
) -> float:
    """Return eta of the step from ``t`` to ``s``.

    Args:
        name, symbol: of the solver, and what it calls eta.
        most: the largest eta that it can have.

    Raises:
        ValueError: a function's value is no number, or out of range.
    """
    if not callable(eta):
        return eta
    times = np.array([t, s])
    if isinstance(eta, EtaWindow) and eta.of == "ratio":
        with np.errstate(divide="ignore"):  # pure noise
            times = schedule.sigma(times) / schedule.alpha(times)
    try:
        value = eta(*times.tolist())
    except TypeError as error:  # a network, say, whose signature takes anything
        raise ValueError(
            f"{name}: {symbol} = {short(eta)} raised {error}; it must take two numbers, the times of a step, and "
            "return one"
        ) from error
    value = checked(name, f"{symbol}(t, s)", value, "float", __name__)
    checked_eta(name, value, f"{symbol}(t, s)", most)
    return float(value)


def etas_of(
    name: str, eta: Eta, schedule: Schedule, t: Array, symbol: str = "eta", most: float = math.inf
) -> float | Array:
    """Return eta of all steps between the knots ``t``: one number for all, or one a step; errors as of ``eta_of``."""
    if not callable(eta):
        return eta
    return np.array([eta_of(name, eta, schedule, start, end, symbol, most) for start, end in pairwise(t)])


def checked_eta(name: str, eta: Eta, symbol: str = "eta", most: float = math.inf) -> None:
    """Raise ValueError unless eta, or what a solver calls it, is a finite number in 0 .. most, or a function (t, s)."""
    if callable(eta):
        try:
            inspect.signature(eta).bind(0.0, 0.0)
        except TypeError:
            raise ValueError(f"{name}: {symbol} = {short(eta)} must take two numbers, the times of a step") from None
        except ValueError:  # a builtin, which does not say
            pass
    elif not (0.0 <= eta <= most and eta < math.inf):
        bounds = "be at least 0" if math.isinf(most) else f"lie in 0 .. {most:g}"
        raise ValueError(f"{name}: {symbol} = {eta} must {bounds}")
