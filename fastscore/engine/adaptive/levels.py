r"""A network as a function of the noise level, for solvers that choose their own.

On the unit circle (alpha = cos phi, sigma = sin phi) a network's coefficients depend on lam = ln(alpha / sigma)
alone. They are computed by the pass that folds any plan, on a plan with a row at each of some thousand nodes, and
interpolated on the device in float64. Between nodes 0.003 apart the error of the cubic is below 1e-10 where the
network's own schedule is smooth; a discrete one bends at its indices, and there the label is off by some 1e-3 of an
index.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from fastscore.guidance.mixture import Guidance
from fastscore.model.score import ScoreModel
from fastscore.plan.passes import Folding
from fastscore.plan.rows import Plan, Row
from fastscore.process.continuous import Trig
from fastscore.process.parametrization import Parametrization
from fastscore.process.schedule import Array, Schedule, lam, remembered, t_of_lam

SPACING, FEWEST = 0.003, 4096
PURE = -25.0  # stands for lam = -inf: alpha = 1.4e-11


@dataclass(frozen=True)
class Coefficients:
    """Coefficients of a network at some noise levels; each float64 [padded].

    Attributes:
        p, q: the quantity is p x + q F, x on the unit circle.
        c_in, c_noise: factor on x that makes the network's input; time label.
        a, b: the estimate of x_0 is a x + b F.
    """

    p: Tensor
    q: Tensor
    c_in: Tensor
    c_noise: Tensor
    a: Tensor
    b: Tensor


@dataclass(frozen=True)
class AtLevel:
    """The networks and the chosen schedule at some noise levels.

    Attributes:
        length: hypot(alpha, sigma) of the chosen schedule, whose state is length x; float64 [padded].
        first, second: the networks; the second is None where nothing is mixed.
        mixed: where the second counts, bool [padded].
    """

    length: Tensor
    first: Coefficients
    second: Coefficients | None
    mixed: Tensor | None


class NoiseLevels:
    """The table of all levels, on the device.

    Args:
        model: gives schedule and parametrization.
        schedule: the chosen one.
        quantity: what p x + q F shall be: "v", "eps", or the "drift" sigma^2 x - 2 sigma eps.
        start, end: times of ``schedule``, in any order.
        guidance: brings in a second network, mixed within its interval.
        guided: whether the estimate of x_0 must exist at every level, for a guide.

    Raises:
        ValueError: a network was never trained at so much noise, or is singular at one of the levels.
    """

    def __init__(
        self,
        model: ScoreModel,
        schedule: Schedule,
        quantity: str,
        start: float,
        end: float,
        device: torch.device,
        guidance: Guidance | None = None,
        guided: bool = False,
    ) -> None:
        low, high = sorted(max(float(lam(schedule, t)), PURE) for t in (start, end))
        if not low < high < math.inf:
            raise ValueError(f"from t = {start} to {end} there is nothing to integrate, or lam is infinite")
        count = max(FEWEST, int((high - low) / SPACING)) + 1
        self.guidance = None if guidance is None or guidance.weight == 1.0 else guidance
        models = [model] if self.guidance is None else [model, self.guidance.model or model]
        columns = [_length(schedule, low, high, count, start, end)[:, None]]
        for net in models:
            assert isinstance(net, ScoreModel)
            folded = _folded(net.schedule, net.parametrization, quantity, low, high, count)
            if not np.all(np.isfinite(folded if guided else folded[:, :4])):
                bad = np.linspace(low, high, count)[~np.isfinite(folded if guided else folded[:, :4]).all(1)][0]
                raise ValueError(
                    f"the network's coefficients are not finite at lam = {bad:.6g} of {low:.6g} .. {high:.6g}: "
                    f"prediction {net.parametrization.prediction!r} with label {net.parametrization.label!r} is "
                    "singular there; start later or end earlier"
                )
            columns.append(folded)
        self.table = torch.tensor(np.concatenate(columns, 1), device=device)
        self.low, self.spacing, self.count = low, (high - low) / (count - 1), count
        # Cubic Lagrange: the weight of a node is made of the distances to the other three.
        self.steps = torch.tensor([[-1], [0], [1], [2]], device=device)
        self.others = torch.tensor([[1, 0, 0, 0], [2, 2, 1, 1], [3, 3, 3, 2]], device=device)
        self.scales = torch.tensor([[-6.0], [2.0], [-2.0], [6.0]], dtype=torch.float64, device=device)

    def at(self, lam: Tensor) -> AtLevel:
        """Return the columns at ``lam``, float64 [padded]."""
        columns = self._between(self.table, lam).unbind(1)
        if self.guidance is None:
            return AtLevel(columns[0], Coefficients(*columns[1:7]), None, None)
        ratio, (lowest, highest) = torch.exp(-lam), self.guidance.interval
        return AtLevel(
            columns[0], Coefficients(*columns[1:7]), Coefficients(*columns[7:]), (lowest < ratio) & (ratio <= highest)
        )

    def length(self, lam: Tensor) -> Tensor:
        """Return hypot(alpha, sigma) of the chosen schedule at ``lam``, both float64 [padded]."""
        return self._between(self.table[:, :1], lam)[:, 0]

    def _between(self, table: Tensor, lam: Tensor) -> Tensor:
        """Return columns of the table at ``lam``, [padded, columns], by cubic Lagrange interpolation."""
        u = ((lam - self.low) / self.spacing).clamp_(0.0, self.count - 1.0)
        k = u.floor().clamp_(1.0, self.count - 3.0)
        one, two, three = ((u - k) - self.steps)[self.others].unbind(0)
        weights = (one * two).mul_(three).div_(self.scales)
        parts = table[k.to(torch.int64) + self.steps].mul_(weights[:, :, None])
        return parts[0].add_(parts[1]).add_(parts[2]).add_(parts[3])


def angle(lam: float) -> float:
    """Return phi with tan phi = e^-lam."""
    return math.atan2(1.0, math.exp(lam))


@remembered
def _folded(
    schedule: Schedule, parametrization: Parametrization, quantity: str, low: float, high: float, count: int
) -> Array:
    """Return p, q, c_in, c_noise, a and b at the nodes, [nodes, 6]: those of a plan on the unit circle."""
    nodes = np.linspace(low, high, count)
    phi = np.arctan2(1.0, np.exp(nodes))
    bottom = float(lam(schedule, schedule.T))
    # Rounding of phi must not lead beyond the network's own noise.
    phi = np.where(lam(Trig(), phi) < bottom, phi * (1.0 - 4e-16), phi)
    m = "v" if quantity == "v" else "eps"
    plan = Plan(Trig(), tuple(Row(t, t, 1.0, 1.0, m=m) for t in phi.tolist()))
    folding = Folding(plan, schedule, parametrization)
    (p, q), (a, b) = folding.coefficients(), folding.coefficients("x0")
    if quantity == "drift":
        sigma = np.sin(phi)
        p, q = sigma**2 - 2.0 * sigma * p, -2.0 * sigma * q
    return np.stack([p, q, folding.c_in, folding.c_noise, a, b], 1)


@remembered
def _length(schedule: Schedule, low: float, high: float, count: int, start: float, end: float) -> Array:
    """Return hypot(alpha, sigma) at the nodes; ``start`` and ``end`` stand for their own lam."""
    nodes = np.linspace(low, high, count)
    t = np.empty_like(nodes)
    t[0], t[-1] = max(start, end), min(start, end)
    t[1:-1] = t_of_lam(schedule, nodes[1:-1])
    return np.hypot(schedule.alpha(t), schedule.sigma(t))
