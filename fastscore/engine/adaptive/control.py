"""Step control: which steps are good enough, and how long the next ones are."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from fastscore.solvers.adaptive import Adaptive, Control


@dataclass(frozen=True)
class StepRule:
    """The rule for steps: when one is good, and what comes next.

    Attributes:
        control, order: the controller; see solvers/adaptive.py.
        rtol, atol: on x of the chosen schedule.
        first: first step.
        attempts: most steps.
        coupled: one step for all samples ("batch" norm).
        knots: times of the clock to step between instead, without any control; float64 [K] or None.
    """

    control: Control = field(default_factory=Control)
    order: float = 1.0
    rtol: float = 0.0
    atol: float = 1.0
    first: float = 0.0
    attempts: int = 0
    coupled: bool = False
    knots: Tensor | None = None

    @classmethod
    def of(cls, s: Adaptive) -> StepRule:
        """Return the rule of an adaptive solver."""
        return cls(s.control, s.order, s.rtol, s.atol, s.first, s.attempts, s.norm == "batch")


class Controller:
    """The memory of the controller, one a lane."""

    def __init__(self, rule: StepRule, padded: int, device: torch.device) -> None:
        self.rule = rule
        # 1/e of the last two accepted steps; of a fresh sample, that of its first.
        self.before = torch.zeros(2, padded, dtype=torch.float64, device=device)
        self.fresh = torch.ones(padded, dtype=torch.bool, device=device)

    def __call__(self, squared: Tensor, complete: Tensor) -> tuple[Tensor, Tensor]:
        """Return the factor on the step and whether it is accepted, [padded]; see solvers/adaptive.py.

        Args:
            squared: e^2, float64 [padded].
            complete: the lanes whose step is, for which it counts; bool.
        """
        rule, control = self.rule, self.rule.control
        if rule.coupled:
            squared = ((squared * complete).sum() / complete.sum().clamp_min(1)).expand_as(squared)
        e = squared.sqrt()
        inverse = 1.0 / (e + 1e-8)
        older = torch.where(self.fresh, inverse, self.before)
        p, i, d = (value / rule.order for value in (control.p, control.i, control.d))
        factor = control.safety * inverse ** (p + i + d)
        if p or d:
            factor = factor * older[0] ** (-p - 2.0 * d)
        if d:
            factor = factor * older[1] ** d
        if control.smooth:
            factor = 1.0 + torch.atan(factor - 1.0)
            accepted = factor >= 0.81
        else:
            accepted = e <= 1.0
            factor = torch.where(accepted, factor, factor.clamp_max(control.safety))
            factor = factor.nan_to_num(control.low).clamp(control.low, control.high)
        advancing = complete & accepted
        torch.where(advancing, torch.stack([inverse, older[0]]), older, out=self.before)
        self.fresh.masked_fill_(complete, False)
        return factor, accepted
