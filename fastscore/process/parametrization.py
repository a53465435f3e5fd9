r"""Predictions of a network, as affine maps.

Data and noise span everything a score network can be asked for. With x = alpha D + sigma eps,

    ============  =====================================  =========
    prediction    A D + B eps                            (A, B)
    ============  =====================================  =========
    x0            D                                      (1, 0)
    eps           eps                                    (0, 1)
    score         -eps / sigma                           (0, -1/sigma)
    v             alpha eps - sigma D                    (-sigma, alpha)
    flow          dx/dt = alpha' D + sigma' eps          (alpha', sigma')
    edm           (D - c_skip x) / c_out                 Karras 2022, table 1
    ============  =====================================  =========

so any of them is p x + q F of any other one, F, and the conversion folds into the coefficients
of a plan row. "flow" is also the right-hand side of the probability-flow ODE.

A network of other people is called as they trained it. One that is trained here has input and output
of unit variance whatever it predicts (scaling "unit"): with L = sqrt(alpha^2 sigma_data^2 + sigma^2),

    u = x / L,     F = sigma / (sigma_data L) D - sigma_data alpha / L eps,

which is the edm row above on any schedule, finite at pure noise (alpha = 0) and at clean data
(sigma = 0); its prediction is p x + q F of that.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

from fastscore.errors import typed, unknown
from fastscore.process.schedule import Array, Schedule, lam, t_of_lam

PREDICTIONS = ("eps", "x0", "v", "score", "flow", "edm")
LABELS = ("t", "t/T", "999t", "sigma", "log_sigma/4", "tanh")
SCALINGS = ("none", "unit")


@dataclass(frozen=True)
@typed
class Parametrization:
    """The way to call a score network and to read its output.

    Args:
        prediction: what the output F is, or with scaling "unit" what training compares; one of PREDICTIONS.
        label: the time label c_noise that the network receives; one of LABELS. "t" is the
            schedule's own time (a table's index), "t/T" that in 0 .. 1, "999t" Song's label of
            continuous VP models, "sigma" the noise-to-signal ratio, "log_sigma/4" EDM's, "tanh" the
            same bounded to -1 .. 1: tanh(ln(sigma / (alpha sigma_data)) / 4), finite at pure noise.
        sigma_data: standard deviation of the data, for input and output scaling, and the label "tanh".
        scaling: "none", input x_t and output F are the network's own (EDM's for "edm"); "unit", both are of unit
            variance for data of this sigma_data. Source: Karras et al. 2022, table 1 and appendix B.6.
        exact: whether the model knows every noise level, as one in closed form does. A network knows those it was
            trained on: a default grid ends there, and no table's index goes below 0.

    Raises:
        ValueError: an unknown prediction, label or scaling, or a sigma_data that is not positive.
    """

    prediction: str = "eps"
    label: str = "t"
    sigma_data: float = 0.5
    scaling: str = "none"
    exact: bool = False

    def __post_init__(self) -> None:
        if self.prediction not in PREDICTIONS:
            raise unknown("prediction", self.prediction, PREDICTIONS)
        if self.label not in LABELS:
            raise unknown("label", self.label, LABELS)
        if self.scaling not in SCALINGS:
            raise unknown("scaling", self.scaling, SCALINGS)
        if not 0.0 < self.sigma_data < math.inf:
            raise ValueError(f"sigma_data = {self.sigma_data} must be positive")

    @property
    def unit(self) -> bool:
        """Whether the network's input and output are of unit variance."""
        return self.scaling == "unit" or self.prediction == "edm"

    def c_in(self, schedule: Schedule, t: ArrayLike) -> Array:
        """Return the factor on x_t that makes the network's input."""
        alpha, sigma = schedule.alpha(t), schedule.sigma(t)
        return 1.0 / np.hypot(sigma, alpha * self.sigma_data) if self.unit else np.ones_like(alpha)

    def c_noise(self, schedule: Schedule, t: ArrayLike) -> Array:
        """Return the time label of the network."""
        t = np.asarray(t, np.float64)
        if schedule.t_clean == -1.0 and not self.exact:
            t = np.maximum(t, schedule.t_end)
        if self.label == "t":
            return t
        if self.label == "t/T":
            return t / (schedule.T or 1.0)  # a table of one level ends at index 0
        if self.label == "999t":
            return 999.0 * t
        if self.label == "sigma":
            return schedule.sigma(t) / schedule.alpha(t)
        if self.label == "log_sigma/4":
            return -0.25 * lam(schedule, t)
        noise, data = np.sqrt(schedule.sigma(t)), np.sqrt(schedule.alpha(t) * self.sigma_data)
        return (noise - data) / (noise + data)

    @property
    def at_pure_noise(self) -> bool:
        """Whether label and estimate of x_0 exist where alpha = 0, at which eps says nothing of the data."""
        return (self.unit or self.prediction not in ("eps", "score")) and self.label not in ("sigma", "log_sigma/4")

    def components(self, schedule: Schedule, t: ArrayLike) -> tuple[Array, Array]:
        """Return (A, B) with F = A D + B eps."""
        if not self.unit:
            return components(self.prediction, schedule, t)
        alpha, sigma = schedule.alpha(t), schedule.sigma(t)
        length = np.hypot(sigma, alpha * self.sigma_data)
        return sigma / (self.sigma_data * length), -self.sigma_data * alpha / length


def components(prediction: str, schedule: Schedule, t: ArrayLike) -> tuple[Array, Array]:
    """Return (A, B) of a prediction other than "edm": the quantity is A D + B eps."""
    alpha, sigma = schedule.alpha(t), schedule.sigma(t)
    zero, one = np.zeros_like(alpha), np.ones_like(alpha)
    if prediction == "x0":
        return one, zero
    if prediction == "eps":
        return zero, one
    if prediction == "score":
        return zero, -1.0 / sigma
    if prediction == "v":
        return -sigma, alpha
    if prediction == "flow":
        return schedule.dalpha(t), schedule.dsigma(t)
    raise unknown("prediction", prediction, ("x0", "eps", "score", "v", "flow"))


def convert(
    target: tuple[Array, Array], source: tuple[Array, Array], alpha: Array, sigma: Array
) -> tuple[Array, Array]:
    """Return (p, q) with target = p x + q F, both given by their (A, B); exactly (0, 1) if equal."""
    (a, b), (a0, b0) = target, source
    det = alpha * b0 - sigma * a0
    with np.errstate(divide="ignore", invalid="ignore"):
        return (a * b0 - b * a0) / det, (alpha * b - sigma * a) / det


def network_time(model: Schedule, schedule: Schedule, t: ArrayLike) -> tuple[Array, Array]:
    """Return (t', k): a network trained on ``model`` sees x_t of ``schedule`` as k x at time t'.

    Two schedules with the same ratio sigma/alpha differ by a factor on x, which is why any
    solver on any schedule can use any network.

    Raises:
        ValueError: the network was never trained at so much noise.
    """
    t = np.asarray(t, np.float64)
    if model == schedule:
        return t, np.ones_like(t)
    times = t_of_lam(model, lam(schedule, t)).reshape(t.shape)
    # The ratio of lengths, not of alphas, which are both 0 at pure noise.
    length = np.hypot(schedule.alpha(t), schedule.sigma(t))
    return times, np.hypot(model.alpha(times), model.sigma(times)) / length
