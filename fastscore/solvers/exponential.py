r"""Coefficients of exponential integrators, and rows, that the solvers in lam = ln(alpha / sigma) share.

The linear part of the probability-flow ODE, and of the reverse SDEs with the same marginals, is solved exactly.
Between t and s < t, with h = lam_s - lam_t and theta = (lam - lam_t) / h,

    x_s = A x_t + G int_0^1 H e^{-H (1 - theta)} m(theta) dtheta + c z

    m     A                               G                       H                c^2
    x0    sigma_s/sigma_t e^{-eta^2 h}    alpha_s                 (1 + eta^2) h    sigma_s^2 (1 - e^{-2 eta^2 h})
    eps   alpha_s/alpha_t                 (1 + eta^2) sigma_s     -h               eta^2 sigma_s^2 (e^{2h} - 1)

A solver replaces m by a polynomial through evaluations at some theta. Source: Lu et al. 2022a, eq. 3.4 (eps) and
2022b, eq. 8 and 17 (x0); any eta as in Xue et al. 2023, eq. 8.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np

from fastscore.plan.rows import Row
from fastscore.process.schedule import Array, Schedule, lam
from fastscore.solvers.sde import DDIM

# How far in lam a polynomial of third or higher order may reach: D of Gaussian data has branch points as far from the
# real axis. See ``within_reach``.
REACH = 0.5 * math.pi

Update = tuple[float, Sequence[float], float]  # a, weights of the evaluations (newest first), c
Weights = Sequence[float]
NODES, WEIGHTS = np.polynomial.legendre.leggauss(24)


def step_coefficients(
    schedule: Schedule, t: Array, s: Array, m: str, eta: float | Array = 0.0
) -> tuple[list[float], list[float], list[float], list[float]]:
    """Return A, G, H and c of the table above for steps from ``t`` to ``s``; ``eta`` is one number or one a step."""
    h = lam(schedule, s) - lam(schedule, t)
    (alpha, sigma), (alpha_s, sigma_s) = ((schedule.alpha(v), schedule.sigma(v)) for v in (t, s))
    if m == "x0":
        with np.errstate(invalid="ignore"):
            lost = np.where(np.asarray(eta) == 0.0, 0.0, eta**2 * h)  # of pure noise h is infinite
        a, gain = sigma_s / sigma * np.exp(-lost), alpha_s
        big, c = (1.0 + eta**2) * h, sigma_s * np.sqrt(-np.expm1(-2.0 * lost))
    else:
        a, gain = alpha_s / alpha, (1.0 + eta**2) * sigma_s
        big, c = -h, eta * sigma_s * np.sqrt(np.expm1(2.0 * h))
    return a.tolist(), gain.tolist(), big.tolist(), c.tolist()


def exponential_moments(H: float, n: int) -> Weights:
    """Return int_0^1 H e^{-H (1 - theta)} theta^k dtheta for k < n; that is H k! phi_{k+1}(-H)."""
    if abs(H) >= 1.0:
        values = [-math.expm1(-H)]
        for k in range(1, n):
            values.append(1.0 - k / H * values[-1])
        return values
    values = []
    for k in range(n):  # the series, where the recursion cancels
        term = total = 1.0 / (k + 1)
        for j in range(18):
            term *= -H / (k + j + 2)
            total += term
        values.append(H * total)
    return values


def within_reach(values: Array, order: int, reach: float, least: int = 2) -> list[tuple[int, bool]]:
    r"""Return for each step how many evaluations it takes, and whether it takes half the slope of a line through two.

    Step k goes from lam = values[k] to values[k + 1]; evaluations are at values[0] .. values[k]. More than ``least``
    are taken where all of their polynomial, from the oldest to the end of the step, is within ``reach``, in this step
    and in all that follow: orders rise in a run and do not fall again.

    On Gaussian data of standard deviation s, along a path of the probability-flow ODE,

        D - mu ~ (1 + e^{-2 (lam - lam_0)})^{-1/2},   lam_0 = -ln s

    with branch points at lam_0 +- i pi / 2, whatever the data's scale; a mixture is made of such terms, at the scales
    of its components and of their distances. The evaluation at lam_j multiplies the error of the polynomial at lam by
    (lam - lam_j) / (z - lam_j), z the nearest such point: below 1 for any lam_0 where lam - lam_j < pi / 2, and above
    1 for some lam_0 beyond. The worst Gaussian's exact error of a step says the same: third order is worse than DPM++
    2M from spans of 1.65 to 1.9 on, for steps that shrink or grow by 0.8 to 1.5; with Anderson's noise a run of even
    steps is from 1.5 on. Where steps are longer, D at their end is anyone's guess, and DPM++ 2M's half slope the better
    one: the exact integral of a line takes all of the slope to the end where e^h is large.

    Orders do not fall since D bends one way before lam_0 and the other way behind it, and the errors of steps of one
    order cancel in part. With third order in the middle of a run alone they do not: DPM++ 3M in 24 steps then made a
    standard deviation 5.0 % wrong where second and third order throughout make 2.7 % and 1.3 %.

    In eps the weight e^{h (1 - theta)} lies at the start of a step, where the evaluations are: there no step length
    makes third order worse, and three are taken whatever they span. A fourth is within the same reach.
    """
    found: list[tuple[int, bool]] = []
    most, too_long = order, False
    for k in range(len(values) - 2, -1, -1):
        while most > least and values[k + 1] - values[max(0, k + 1 - most)] > reach:
            most -= 1
        n = min(most, k + 1)
        too_long |= most < order or bool(values[k + 1] - values[k + 1 - n] > reach)
        found.append((n, n == most == 2 and too_long))
    return found[::-1]


def lagrange_weights(nodes: Weights, integrals: Weights) -> Weights:
    """Return the integral of each node's Lagrange polynomial, given the integrals of 1, theta, theta^2, .."""
    return np.linalg.solve(np.vander(nodes, increasing=True).T, np.array(integrals)).tolist()


def exact_weights(H: float, nodes: Weights) -> Weights:
    """Return the weights of evaluations at ``nodes``, the polynomial through them integrated exactly."""
    return lagrange_weights(nodes, exponential_moments(H, len(nodes)))


def half_slope_weights(H: float, node: float, B: float | None = None) -> Weights:
    """Return the weights of evaluations at 0 and ``node``: their slope times B / 2 in place of its exact integral.

    B is the integral of 1, unless given. Second order, as every B = H + O(H^2) is.
    """
    total = -math.expm1(-H)
    slope = 0.5 * (total if B is None else B) / node
    return [total - slope, slope]


def quadrature(low: float, high: float) -> tuple[Array, Array]:
    """Return nodes and weights of int f dv between positive numbers, Gauss-Legendre in ln v, to the last digits.

    Panels of one unit of ln v hold whatever changes like a power of v or an exponential of one.
    """
    edges = np.linspace(math.log(low), math.log(high), 1 + max(1, math.ceil(abs(math.log(high / low)))))
    half, middle = 0.5 * np.diff(edges), 0.5 * (edges[1:] + edges[:-1])
    v = np.exp(middle[:, None] + half[:, None] * NODES).ravel()
    return v, (half[:, None] * WEIGHTS).ravel() * v


def with_first_order_ends(
    schedule: Schedule,
    t: Array,
    inner: Callable[[Schedule, Array], list[list[Row]]],
    clean: bool = True,
    pure: bool = True,
) -> list[list[Row]]:
    """Return the groups of ``inner`` for all intervals with finite lam, and DDIM steps for the two ends.

    There the first order is all there is: nothing before pure noise depends on x, and a step to sigma = 0 is D.
    ``clean=False`` leaves that last step to ``inner``, ``pure=False`` the first one.
    """
    first = int(pure and lam(schedule, t[0]) == -np.inf)
    last = len(t) - 1 - int(clean and t[-1] == schedule.t_clean)
    if first > last:
        return DDIM().steps(schedule, t)
    groups = DDIM().steps(schedule, t[: first + 1]) if first else []
    if last > first:
        groups += inner(schedule, t[first : last + 1])
    return groups + DDIM().steps(schedule, t[last:])


def ancestral_split(rho: float | Array, rho_s: Array, eta: float | Array) -> tuple[Array, Array]:
    """Return k-diffusion's (down, up) of steps to rho_s: down^2 + up^2 = rho_s^2; see AncestralSplit."""
    share = np.maximum(1.0 - eta**2 + (eta * rho_s / rho) ** 2, 0.0)  # (down / rho_s)^2, without cancellation
    return np.sqrt(share) * rho_s, np.sqrt(1.0 - share) * rho_s


def split_coefficients(
    schedule: Schedule, t: Array, s: Array, eta: float | Array
) -> tuple[list[float], list[float], list[float], list[float]]:
    """Return A, G, H and c in x0 of steps down to less noise than wanted and the rest added; see AncestralSplit."""
    (alpha, sigma), (alpha_s, sigma_s) = ((schedule.alpha(v), schedule.sigma(v)) for v in (t, s))
    down, up = ancestral_split(sigma / alpha, sigma_s / alpha_s, eta)
    kept = down / (sigma / alpha)
    with np.errstate(divide="ignore"):  # eta so large that the noise is all new: H is infinite
        return (alpha_s / alpha * kept).tolist(), alpha_s.tolist(), (-np.log(kept)).tolist(), (alpha_s * up).tolist()


def flow_split(schedule: Schedule, t: Array, eta: float | Array) -> tuple[Array, Array]:
    """Return (down, up) of the steps between the knots ``t`` by the rule of rectified flow; see AncestralSplit."""
    alpha, sigma = schedule.alpha(t), schedule.sigma(t)
    s, rho_s = sigma / (alpha + sigma), sigma[1:] / alpha[1:]
    gap = np.minimum(eta * (1.0 - s[1:] / s[:-1]), 1.0) * s[1:]
    level = s[1:] - gap
    down = level / (1.0 - level)
    # rho_s^2 - down^2 without cancellation
    return down, np.sqrt(gap / ((1.0 - s[1:]) * (1.0 - level)) * (rho_s + down))


def highest_order(order: int, steps: int, left: int, lower: bool | int, euler: bool = False) -> int:
    """Return the order of a step that has ``left`` steps to go, itself included, of a run of ``steps``.

    Args:
        order: of the solver.
        lower: no order above ``left`` in runs of fewer steps than this number; True is 15, diffusers' number.
        euler: the last step is first order, whatever ``steps``.
    """
    below = 15 if lower is True else int(lower)
    return min(order, left) if steps < below or (euler and left == 1) else order


def multistep_rows(
    t: Array, updates: Sequence[Update], m: str, first: int = 0, slots: int | None = None
) -> list[list[Row]]:
    """Return one row for each update: one evaluation a step, earlier ones kept in a ring of history slots.

    Args:
        t: knots, one more than updates.
        updates: see ``Update``.
        m: what is evaluated and kept.
        first: number of the first step, for a ring that other rows have filled.
        slots: of the ring; what the updates need if left out.
    """
    ring = max(len(v) for _, v, _ in updates) - 1 if slots is None else slots
    groups = []
    for k, (a, v, c) in enumerate(updates):
        w = [0.0] * min(ring, first + k)
        for j in range(1, len(v)):
            w[(first + k - j) % ring] = v[j]
        read_later = any(len(later) > j for j, (_, later, _) in enumerate(updates[k + 1 : k + 1 + ring], 1))
        push = (first + k) % ring if read_later else None
        groups.append([Row(float(t[k]), float(t[k + 1]), a, v[0], c, tuple(w), m, push)])
    return groups


def one_step_rows(
    times: Sequence[float] | Array,
    a: Weights,
    weights: Sequence[Weights],
    m: str,
    slots: Sequence[int] = (0, 1, 2),
    noise: Weights | None = None,
) -> list[Row]:
    """Return the rows of an explicit one-step method; m_j is evaluated at times[j].

        x(times[i + 1]) = a_i x(times[0]) + sum_{j <= i} weights[i][j] m_j + n_i,   n_i = a_i / a_{i-1} n_{i-1} + c_i z

    Each row starts from the state before it, so x(times[0]) needs no slot. ``slots`` receive the m_j; ``noise`` is c.
    """
    rows, a0, before = [], 1.0, []
    for i, (a1, v) in enumerate(zip(a, weights, strict=True)):
        if a0 == 0.0:
            raise ValueError(
                f"a stage from t = {times[0]:.6g} to {times[i]:.6g} leaves nothing of the state, with which the next "
                "one goes on: take a smaller eta, or shorter steps"
            )
        change = [new - a1 / a0 * old for new, old in zip(v, [*before, 0.0], strict=True)]
        w = [0.0] * (max(slots[:i], default=-1) + 1)
        for slot, value in zip(slots, change[:i], strict=False):
            w[slot] = value
        push = slots[i] if i + 1 < len(a) else None
        c = 0.0 if noise is None else noise[i]
        rows.append(Row(float(times[i]), float(times[i + 1]), a1 / a0, change[i], c, tuple(w), m, push))
        a0, before = a1, v
    return rows


def checked_order(name: str, order: int, highest: int) -> None:
    """Raise ValueError unless 1 <= order <= highest."""
    if order not in range(1, highest + 1):
        raise ValueError(f"{name}: order = {order} must lie in 1 .. {highest}")


def checked_lowering(name: str, lower: bool | int) -> None:
    """Raise ValueError unless ``lower`` says when orders are lowered: no, yes or a number of steps."""
    if not isinstance(lower, int) or lower < 0:
        raise ValueError(
            f"{name}: lower_order_final = {lower!r} must be False, True (below 15 steps, as diffusers) or the number "
            "of steps from which on no order is lowered"
        )


def reach_of(name: str, reach: float | None, unlimited: bool) -> float:
    """Return the reach that counts: REACH if None, or none at all where ``unlimited``.

    Raises:
        ValueError: not positive.
    """
    if reach is None:
        return math.inf if unlimited else REACH
    if not reach > 0.0:
        raise ValueError(f"{name}: reach = {reach} must be positive; math.inf takes every order that is asked for")
    return reach


def checked_prediction(name: str, prediction: str) -> None:
    """Raise ValueError unless the prediction is one that exponential integrators integrate."""
    if prediction not in ("x0", "eps"):
        raise ValueError(f"{name}: prediction = {prediction!r} must be x0 or eps")
