r"""Problems with known answers, and the exact network of one, which remembers how it was called.

The coordinates of the data are independent, and coordinate j is a mixture sum_k w_k N(mu_kj, s_kj^2). So at every
noise level x_t = alpha x_0 + sigma z each coordinate has a known density, with variances V_k = alpha^2 s_k^2 + sigma^2,
and the network is elementwise: nothing in it ties samples or depends on the size of a batch. Of a Gaussian the network
is linear, and the probability-flow ODE takes x_t to alpha' mu + sqrt(V' / V) (x_t - alpha mu).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fastscore.errors import unknown
from fastscore.ops.noise import NoiseKey
from fastscore.process.continuous import Pair
from fastscore.process.parametrization import LABELS, Parametrization, components
from fastscore.process.schedule import Schedule, t_of_lam

PREDICTIONS = ("eps", "x0", "v", "score", "flow")
CLASSES = 4  # coordinates j, j + 4, j + 8, .. are alike
Level = tuple[float, float]  # alpha, sigma
Label = str | Callable[[Any], Any]


@dataclass(frozen=True)
class Target:
    """Data of independent coordinates, each sum_k w_k N(mu_k, s_k^2).

    Attributes:
        weights: [K], positive, summing to 1.
        means, stds: [K, *shape] float64; a standard deviation of 0 is a point.
    """

    weights: Tensor
    means: Tensor
    stds: Tensor

    def noise(self, x: Tensor, level: Level) -> Tensor:
        """Return E[z | x_t = x], like x: sigma sum_k r_k (x - alpha mu_k) / V_k, finite at sigma = 0 where s > 0."""
        alpha, sigma = level
        variance = self._variance(level)
        pull = (x - alpha * self.means[:, None]) / variance
        if len(self.weights) == 1:  # adds and multiplies only: the same bits in every batch
            return sigma * pull[0]
        log = self.weights.log().reshape(-1, *[1] * x.ndim) - 0.5 * (pull * (x - alpha * self.means[:, None]))
        r = torch.softmax(log - 0.5 * variance.log(), dim=0)
        return sigma * (r * pull).sum(0)

    def data(self, x: Tensor, level: Level) -> Tensor:
        """Return E[x_0 | x_t = x], like x."""
        alpha, variance = level[0], self._variance(level)
        offset = x - alpha * self.means[:, None]
        each = self.means[:, None] + alpha * self.stds[:, None] ** 2 / variance * offset
        if len(self.weights) == 1:
            return each[0]
        log = self.weights.log().reshape(-1, *[1] * x.ndim) - 0.5 * (offset**2 / variance + variance.log())
        return (torch.softmax(log, dim=0) * each).sum(0)

    def transport(self, x: Tensor, start: Level, end: Level) -> Tensor:
        """Return where the probability-flow ODE of a Gaussian takes x of one noise level at another one, like x."""
        gain = (self._variance(end) / self._variance(start)).sqrt()
        return end[0] * self.means[0] + gain[0] * (x - start[0] * self.means[0])

    def _variance(self, level: Level) -> Tensor:
        return ((level[0] * self.stds[:, None]) ** 2 + level[1] ** 2).clamp_min(1e-300)


def gaussian(shape: Sequence[int], scale: float, shift: float = 0.0) -> Target:
    """Return a Gaussian of four means and standard deviations; ``shift`` moves every mean by as many scales."""
    means, stds = (0.8, -0.5, 0.3, -1.0), (0.3, 0.5, 0.8, 1.2)
    return _target((1.0,), [[scale * (m + shift) for m in means]], [[scale * s for s in stds]], shape)


def point(shape: Sequence[int], scale: float) -> Target:
    """Return data of one point, whose noise is all that a state has."""
    return _target((1.0,), [[scale * m for m in (0.8, -0.5, 0.3, -1.0)]], [[0.0] * CLASSES], shape)


def mixture(shape: Sequence[int], scale: float) -> Target:
    """Return coordinates at -1 and 1 scales, of weights 0.3 and 0.7, each 0.2 wide."""
    return _target((0.3, 0.7), [[-scale] * CLASSES, [scale] * CLASSES], [[0.2 * scale] * CLASSES] * 2, shape)


def classes(shape: Sequence[int]) -> Tensor:
    """Return the class of each coordinate, [D] int64."""
    return torch.arange(math.prod(shape)) % CLASSES


def _target(weights: Sequence[float], means: Any, stds: Any, shape: Sequence[int]) -> Target:
    kind = classes(shape)
    means, stds = (torch.tensor(v, dtype=torch.float64)[:, kind].reshape(len(weights), *shape) for v in (means, stds))
    return Target(torch.tensor(weights, dtype=torch.float64), means, stds)


# --- the network --------------------------------------------------------------------------------


@dataclass(frozen=True)
class Setting:
    """What the network stands for: the schedule, the prediction, and the label and its inverse."""

    schedule: Schedule
    prediction: str
    label: Label
    times: Callable[[int], Any] | None

    @staticmethod
    def of(schedule: Any, prediction: str, label: Label, times: Callable[[int], Any] | None) -> Setting:
        """Check what a caller gave.

        Raises:
            ValueError: an unknown prediction or label, or a schedule without alpha and sigma.
        """
        if prediction not in PREDICTIONS:
            raise unknown("prediction", prediction, PREDICTIONS)
        if not callable(label) and label not in LABELS:
            raise unknown("label", label, LABELS, ", or a function of the time")
        if not isinstance(schedule, Schedule):
            if not (callable(getattr(schedule, "alpha", None)) and callable(getattr(schedule, "sigma", None))):
                raise ValueError(f"schedule = {schedule!r} must have functions alpha(t) and sigma(t) of the time")
            ends = {
                name: float(getattr(schedule, name)) for name in ("T", "t_end", "t_clean") if hasattr(schedule, name)
            }
            schedule = Pair(schedule.alpha, schedule.sigma, **ends)
        return Setting(schedule, prediction, label, times)

    def level(self, t: float) -> Level:
        """Return (alpha, sigma) of a time."""
        return float(self.schedule.alpha(t)), float(self.schedule.sigma(t))

    def label_of(self, t: Any) -> Any:
        """Return the network's label of a time."""
        if callable(self.label):
            return self.label(t)
        return Parametrization("x0", self.label, exact=True).c_noise(self.schedule, t)

    def time_of(self, label: float) -> float:
        """Return the time of a label; one beyond the prior's is the prior's."""
        schedule = self.schedule
        if self.label == "t":
            return label
        if self.label in ("t/T", "999t"):
            return label * (schedule.T if self.label == "t/T" else 1.0 / 999.0)
        low = schedule.t_clean if math.isfinite(schedule.t_clean) else schedule.T - 64.0
        if self.label in ("sigma", "log_sigma/4"):
            ratio = label if self.label == "sigma" else math.exp(4.0 * label)
            first = float(schedule.alpha(schedule.T) / schedule.sigma(schedule.T))
            if ratio <= 0.0:
                return schedule.t_clean
            return schedule.T if first * ratio >= 1.0 else float(t_of_lam(schedule, -math.log(ratio))[0])
        up = float(self.label_of(schedule.T)) > float(self.label_of(low))
        high = schedule.T
        for _ in range(100):
            middle = 0.5 * (low + high)
            low, high = (middle, high) if (float(self.label_of(middle)) < label) == up else (low, middle)
        return 0.5 * (low + high)


@dataclass(frozen=True)
class Call:
    """One call of the network.

    Attributes:
        t, level: its time and (alpha, sigma) there; nan where samples have different times.
        x: the state, [n, *shape] float64.
        dtype: of the state as it was given.
        rounding: unit of rounding of state or label, the larger one.
        training: whether the network was in training mode.
    """

    t: float
    level: Level
    x: Tensor
    dtype: torch.dtype
    rounding: float
    training: bool


class Network(torch.nn.Module):
    """The exact network of a problem: called with a state and a label, it returns the prediction that was asked for.

    Attributes:
        shape: of one sample.
        calls: what it was called with.
    """

    def __init__(self, target: Target, setting: Setting, apart: bool = False) -> None:
        super().__init__()
        self.target, self.setting, self.apart = target, setting, apart
        self.shape, self.spread = tuple(target.means.shape[1:]), float(target.means.abs().max())
        self.calls: list[Call] = []
        self.known: dict[float, float] = {}
        self.handed: list[list[float]] = []
        self.eval()

    def times(self, steps: int) -> list[float]:
        """Return the knots that ``check(knots=)`` declares, noisiest first, steps + 1 of them.

        Raises:
            ValueError: none were declared.
        """
        if self.setting.times is None:
            raise ValueError("times: no grid was declared; give check(.., knots=function of the number of steps)")
        knots = [float(t) for t in self.setting.times(steps)]
        self.handed.append(knots)
        return knots

    def changed(self, steps: int) -> tuple[float, float] | None:
        """Return the first knot that was changed in a list that was handed out, and its new value; or None."""
        pairs = [
            (a, b) for knots in list(self.handed) for a, b in zip(self.times(steps), knots, strict=False) if a != b
        ]
        return pairs[0] if pairs else None

    def label(self, t: float) -> float:
        """Return the label of a time."""
        return float(self.setting.label_of(t))

    def noise(self, n: int, seed: int) -> Tensor:
        """Return standard normals [n, *shape] float32 for samplers that take their first state from outside."""
        key = NoiseKey(torch.tensor([seed]), torch.arange(n))
        return key.normal(torch.zeros(1, dtype=torch.int64), math.prod(self.shape), torch.float32).reshape(
            n, *self.shape
        )

    def forward(self, x: Any, label: Any, *others: Any, null: bool = False, **options: Any) -> Any:
        """Return the prediction, like x.

        Args:
            x: [N, *shape], a tensor or an array.
            label: a number, or as many as samples.
            null: for guidance, the prediction without condition, which is that of other data. At the weight at which a
                rule is the conditional one, samples must not notice it.
            others, options: conditions and the like, which are ignored.
        """
        given, x = x, torch.as_tensor(x)
        if tuple(x.shape[1:]) != self.shape or not x.is_floating_point():
            raise ValueError(
                f"the network takes floats [N, {', '.join(map(str, self.shape))}]; got {x.dtype} {tuple(x.shape)}"
            )
        labels = torch.as_tensor(label, dtype=torch.float64 if isinstance(label, float) else None).detach()
        rounding = max(torch.finfo(d).eps for d in (x.dtype, labels.dtype) if d.is_floating_point)
        labels = labels.cpu().double().reshape(-1)
        if labels.numel() not in (1, len(x)):
            raise ValueError(f"the network takes one label or one a sample; got {labels.numel()} for {len(x)} samples")
        y = x.detach().cpu().double()
        values, index = labels.unique(return_inverse=True)
        times = [self._time(v) for v in values.tolist()]
        target = gaussian(self.shape, self.spread, 1.0) if null else self.target
        if len(times) == 1:
            F = self._predict(target, y, times[0])
            t, level = times[0], self.setting.level(times[0])
        else:
            F, t, level = torch.empty_like(y), math.nan, (math.nan, math.nan)
            for k, time in enumerate(times):
                F[index == k] = self._predict(target, y[index == k], time)
        if not null:
            self.calls.append(Call(t, level, y.clone(), x.dtype, rounding, self.training))
        if self.apart:  # another answer for the second half, which must not change the first
            F[len(F) // 2 :] = 1.25 * F[len(F) // 2 :] + 0.1
        F = F.to(x)
        return F.numpy() if isinstance(given, np.ndarray) else F

    def _time(self, label: float) -> float:
        if label not in self.known:
            self.known[label] = self.setting.time_of(label)
        return self.known[label]

    def _predict(self, target: Target, x: Tensor, t: float) -> Tensor:
        setting, level = self.setting, self.setting.level(t)
        if setting.prediction == "x0":
            return target.data(x, level)
        if setting.prediction == "score":
            return -target.noise(x, level) / max(level[1], 1e-150)
        if setting.prediction == "eps":
            return target.noise(x, level)
        a, b = components(setting.prediction, setting.schedule, t)
        return float(a) * target.data(x, level) + float(b) * target.noise(x, level)
