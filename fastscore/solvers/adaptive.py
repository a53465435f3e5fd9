r"""Adaptive solvers: what one step is, and how the next one is chosen; engine/adaptive/ takes the steps.

They know no grid. The state is brought to the unit circle, where x = alpha D + sigma eps has alpha = cos phi and
sigma = sin phi for every schedule, and is integrated in a clock of the noise level alone: the angle phi for
Runge-Kutta methods, lam = ln(alpha / sigma) for the others. The probability-flow ODE is then

    dx / dphi = v,   v = cos phi eps - sin phi D,

bounded at every noise level, pure noise included. A step's error is weighed on the chosen schedule's own x:

    e = rms_k [(x_high - x_low)_k / max(atol, rtol max(|x_low|_k, |x_low before|_k))]

(Lu et al. 2022a, appendix C; Jolicoeur-Martineau et al. 2021, section 3.1).
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Protocol, runtime_checkable

from fastscore.errors import typed, unknown

NORMS = ("sample", "batch")
Rows = tuple[tuple[float, ...], ...]


@dataclass(frozen=True)
@typed
class Control:
    r"""The controller: when a step is accepted, and the size of the next one.

        h' = h L(safety e_n^(-a) e_(n-1)^(-b) e_(n-2)^(-c)),   a = p + i + d,  b = -(p + 2 d),  c = d

    with p, i and d divided by the order of the solver. L keeps its argument within ``low`` .. ``high`` and a step is
    accepted if e <= 1; or, if ``smooth``, L(y) = 1 + arctan(y - 1) and a step is accepted if L >= 0.81. No step is
    ``longest`` or more, in units of the solver's clock, but a first one that is asked for.

    Source: Söderlind 2003, eq. 31 and 34; the smooth limiter of Söderlind & Wang 2006 is k-diffusion's.
    """

    i: float = 1.0
    p: float = 0.0
    d: float = 0.0
    safety: float = 0.9
    low: float = 0.2
    high: float = 5.0
    smooth: bool = False
    longest: float = math.inf

    def __post_init__(self) -> None:
        if not 0.0 < self.low < 1.0 < self.high < math.inf or not 0.0 < self.safety <= 1.0:
            raise ValueError(f"Control: low < 1 < high and 0 < safety <= 1 must hold, not {self}")
        if not self.longest > 0.0:
            raise ValueError(f"Control: longest = {self.longest} must be positive")


# Of the controllers tried on mixtures and Gaussians, the one with the fewest evaluations and rejections.
PI = Control(i=0.4, p=0.3)
K_DIFFUSION = Control(safety=1.0, smooth=True)
# Near pure noise errors are small whatever h is, so steps grow until one leaps over all that decides a sample, where
# two orders may agree by chance: without a bound one sample in a hundred was wrong by more than the data are wide.
BOUNDED = replace(PI, longest=1.25)


@runtime_checkable
class Adaptive(Protocol):
    """An adaptive solver, as far as the engine needs to know it.

    Attributes:
        rtol, atol: tolerances on x of the chosen schedule.
        first: first step tried, in units of the clock (radians, or lam).
        norm: "sample": each sample has its own steps; "batch": one for all samples of a micro-batch,
            from the mean square of their errors, as k-diffusion does; samples then depend on each other.
        control: see Control.
        attempts: most steps of a sample, rejected ones included.
        order: exponent of the controller.
        clock: "angle" or "lam".
        earliest: where lam starts if the schedule starts at pure noise, where lam = -inf.
    """

    @property
    def rtol(self) -> float: ...
    @property
    def atol(self) -> float: ...
    @property
    def first(self) -> float: ...
    @property
    def norm(self) -> str: ...
    @property
    def control(self) -> Control: ...
    @property
    def attempts(self) -> int: ...
    @property
    def order(self) -> float: ...
    @property
    def clock(self) -> str: ...
    @property
    def earliest(self) -> float: ...


@dataclass(frozen=True)
class Tableau:
    """An explicit Runge-Kutta method.

    Attributes:
        nodes: c_1 .., as fractions of the step.
        rows: A below its diagonal, then b.
        error: weights of b minus those of the embedded method; empty if there is none.
    """

    nodes: tuple[float, ...]
    rows: Rows
    error: tuple[float, ...] = ()

    @property
    def fsal(self) -> bool:
        """Whether the last stage is evaluated at the step's end, where it serves the next step too."""
        return len(self.rows) == len(self.nodes)


DORMAND_PRINCE = Tableau(
    (0.0, 1 / 5, 3 / 10, 4 / 5, 8 / 9, 1.0, 1.0),
    (
        (),
        (1 / 5,),
        (3 / 40, 9 / 40),
        (44 / 45, -56 / 15, 32 / 9),
        (19372 / 6561, -25360 / 2187, 64448 / 6561, -212 / 729),
        (9017 / 3168, -355 / 33, 46732 / 5247, 49 / 176, -5103 / 18656),
        (35 / 384, 0.0, 500 / 1113, 125 / 192, -2187 / 6784, 11 / 84),
    ),
    (71 / 57600, 0.0, -71 / 16695, 71 / 1920, -17253 / 339200, 22 / 525, -1 / 40),
)
BOGACKI_SHAMPINE = Tableau(
    (0.0, 1 / 2, 3 / 4, 1.0),
    ((), (1 / 2,), (0.0, 3 / 4), (2 / 9, 1 / 3, 4 / 9)),
    (-5 / 72, 1 / 12, 1 / 9, -1 / 8),
)


@dataclass(frozen=True)
@typed
class Dopri5:
    """Dormand-Prince 5(4) on the probability-flow ODE: 6 evaluations a step.

    The last one is the next step's first, and the denoised end's. Source: Dormand & Prince 1980.
    """

    rtol: float = 1e-5
    atol: float = 1e-5
    first: float = 0.05
    norm: str = "sample"
    control: Control = PI
    attempts: int = 10_000
    order, clock, earliest = 5.0, "angle", -math.inf
    tableau = DORMAND_PRINCE

    def __post_init__(self) -> None:
        _check(self)


@dataclass(frozen=True)
@typed
class BogackiShampine:
    """Bogacki-Shampine 3(2) on the probability-flow ODE: 3 evaluations a step, shared as by Dopri5.

    Source: Bogacki & Shampine 1989.
    """

    rtol: float = 1e-3
    atol: float = 1e-3
    first: float = 0.05
    norm: str = "sample"
    control: Control = PI
    attempts: int = 10_000
    order, clock, earliest = 3.0, "angle", -math.inf
    tableau = BOGACKI_SHAMPINE

    def __post_init__(self) -> None:
        _check(self)


@dataclass(frozen=True)
@typed
class DPMAdaptive:
    """DPM-Solver-12 (order 2) or -23 (order 3): single-step DPM-Solver with the order below as its error.

    2 or 3 evaluations a step, one less after a rejection. ``norm="batch"`` with ``control=K_DIFFUSION`` is
    k-diffusion's sample_dpm_adaptive. Steps of lam are bounded, see Control.
    Source: Lu et al. 2022a, appendix C and algorithm 1, 2.
    """

    order: int = 3
    rtol: float = 0.05
    atol: float = 0.0078
    first: float = 0.05
    norm: str = "sample"
    control: Control = BOUNDED
    attempts: int = 10_000
    clock, earliest = "lam", -9.0  # alpha = 1.2e-4

    def __post_init__(self) -> None:
        if self.order not in (2, 3):
            raise ValueError(f"DPMAdaptive: order = {self.order} must be 2 (DPM-Solver-12) or 3 (DPM-Solver-23)")
        _check(self)


@dataclass(frozen=True)
@typed
class GottaGoFast:
    r"""The adaptive solver of the reverse SDE, in lam: 2 evaluations a step, 1 after a rejection.

        dx = (sigma^2 x - 2 sigma eps) dlam + sqrt(2) sigma dW       on the unit circle,

    stochastic Improved Euler with the Euler-Maruyama step as its lower order, and extrapolation. A rejected step is
    tried again on the same Brownian path, unlike in the paper, whose fresh noise prefers the paths that passed. Of the
    exponents r = ``control.i`` of the paper's ablation, 0.5 takes the fewest evaluations here.

    Source: Jolicoeur-Martineau et al. 2021, algorithm 1.
    """

    rtol: float = 0.02
    atol: float = 0.0078
    first: float = 0.05
    norm: str = "sample"
    control: Control = Control(i=0.5)
    attempts: int = 10_000
    # At alpha = 9e-4 the reverse SDE has the whole way to forget that the data's mean was left out.
    order, clock, earliest = 1.0, "lam", -7.0

    def __post_init__(self) -> None:
        _check(self)


def _check(solver: Adaptive) -> None:
    name = type(solver).__name__
    for field in ("rtol", "atol"):
        value = getattr(solver, field)
        if not 0.0 < value < 10.0:
            raise ValueError(f"{name}: {field} = {value} must be above 0 and below 10")
    if not 0.0 < solver.first < math.inf or solver.attempts < 1:
        raise ValueError(f"{name}: first = {solver.first} and attempts = {solver.attempts} must be positive")
    if solver.norm not in NORMS:
        raise unknown(f"{name}: norm", solver.norm, NORMS)
