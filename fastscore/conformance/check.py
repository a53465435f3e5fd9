"""The conformance check: whether a sampler, anybody's, is right."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from fastscore.conformance import accuracy, conduct, levels, noise
from fastscore.conformance.problem import Network, Setting
from fastscore.conformance.report import Finding, Report
from fastscore.conformance.trials import Misuse, Trials
from fastscore.errors import typed

# Coordinates of all samples of a run together. With noise a variance is a statistic, known to 0.8 %.
NUMBERS, NOISY_NUMBERS = 8192, 32768
# Standard deviations that a statistic may be off: 8e-11 two-sided, with some fifty of them in a check below 1e-8.
Z = 6.5


@typed
def check(
    sampler_fn: Callable[[Network, int, int, int], Any],
    schedule: Any,
    *,
    prediction: str = "eps",
    label: str | Callable[[Any], Any] = "t",
    steps: int = 32,
    stochastic: bool = False,
    order: float | None = 1.0,
    knots: Callable[[int], Any] | None = None,
    end: float | None = None,
    exact_on_point: bool = False,
    coupled: bool = False,
    keyed: bool = False,
    shape: Sequence[int] = (4, 2, 2),
    scale: float = 1.0,
    seed: int = 0,
) -> Report:
    """Return what is wrong with a sampler, tried on problems whose solution is known.

        def mine(net, n, seed, steps):
            x = torch.normal(0.0, 1.0, (n, *net.shape), generator=torch.Generator().manual_seed(seed))
            ...  # x = the next state, from eps = net(x, t)
            return x

        print(check(mine, fs.VP(), order=1))

    A sampler that does as declared is not flagged: exact comparisons allow rounding and the declared order, statistics
    6.5 standard deviations.

    Args:
        sampler_fn: called as (net, n, seed, steps); returns samples [n, *net.shape], a tensor or an array.
            ``net(x, label)`` with x [n, *net.shape] is the exact network of a problem; all n samples are to go through
            it together. ``net.times(steps)`` are the declared knots, ``net.label(t)`` the label of a time, and
            ``net.noise(n, seed)`` normals, for samplers that take such things from outside.
        schedule: one of fastscore's, or anything with alpha(t) and sigma(t) on arrays, and T, t_end and t_clean where
            they are not 1, 0.001 and 0. The state is x_t = alpha x_0 + sigma z.
        prediction: what the network returns: "eps", "x0", "v", "score" or "flow" (dx/dt of the ODE).
        label: what it is called with: "t", "t/T", "999t", "sigma" (the ratio sigma / alpha), "log_sigma/4", or an
            increasing or decreasing function of the time.
        steps: of the coarsest run; finer ones have two and four times as many.
        stochastic: whether the sampler adds noise on the way.
        order: at which its error falls, on its own grid; that of mean and variance where stochastic. A grid that is
            uniform in the time of a VP schedule down to sigma = 0 leaves order 1 to every solver, and a table has
            kinks. None: not looked at.
        knots: the times that it must step through for a number of steps, noisiest first, steps + 1 of them; the network
            must be called at all but the last.
        end: the time at which it stops and leaves the noise of that time; if left out its samples are data.
        exact_on_point: whether it promises to be exact for data of one point at any number of steps, as DDIM,
            DPM-Solver, Euler in sigma and all that solve the linear part exactly do. The sharpest test of coefficients.
        coupled: whether samples are tied by intention, as by a norm over the batch.
        keyed: whether it promises that sample k depends on seed and k only, not on n.
        shape: of one sample.
        scale: of the data: means and deviations lie at 0.2 to 1.2 of it. Lower it for samplers that clip.
        seed: of the first run; the next ones count on from it.

    Raises:
        ValueError: an option out of range. What the sampler itself does wrong is in the report.
    """
    if steps < 8:
        raise ValueError(
            f"steps = {steps} must be at least 8: what steps do wrong is told from their error at 4 times as many"
        )
    if not 0.0 < scale < math.inf or not shape or any(size < 1 for size in shape):
        raise ValueError(f"scale = {scale} must be positive, and shape = {tuple(shape)} a list of positive sizes")
    setting = Setting.of(schedule, prediction, label, knots)
    n = max(64, -(-(NOISY_NUMBERS if stochastic else NUMBERS) // math.prod(shape)))
    trials = Trials(sampler_fn, setting, tuple(shape), n, steps, seed, scale)
    stop = setting.schedule.t_clean if end is None else end
    facts: dict[str, Any] = {}
    checks: dict[str, Callable[[], Iterable[Finding]]] = {
        "seeds": lambda: conduct.seeds(trials),
        "batch": lambda: conduct.batch(trials, coupled, keyed),
        "steps": lambda: conduct.steps(trials),
        "grid": lambda: conduct.grid(trials, setting, stochastic),
        "start": lambda: conduct.start(trials, setting, Z),
        "noise": lambda: noise.noise(trials, stochastic, Z),
    }
    if exact_on_point:
        checks["point"] = lambda: levels.exact(trials, stochastic, Z, facts)
    if stochastic:
        checks["accuracy"] = lambda: accuracy.mean(trials, setting, order, facts)
        checks["spread"] = lambda: accuracy.spread(trials, setting, order, stop, Z, facts)
    else:
        checks["accuracy"] = lambda: accuracy.ode(trials, setting, order, stop, facts)
    checks["labels"] = lambda: levels.labels(trials, stochastic, facts)
    checks["last step"] = lambda: levels.last(trials, setting, end, facts)
    if end is None:
        checks["mixture"] = lambda: accuracy.parts(trials, Z)
    failures: list[Finding] = []
    notes: list[str] = []
    try:
        facts["evaluations"] = len(trials.run().calls)
        for each in checks.values():
            failures += each()
        found, notes = conduct.manners(trials)
        failures += found
    except Misuse as error:
        cause = "sampler_fn(net, n, seed, steps) returns finite samples [n, *net.shape], from calls net(x, label)."
        failures.append(Finding("contract", str(error), math.nan, -math.inf, math.inf, cause))
    return Report(tuple(failures), tuple(notes), facts, ("contract", *checks, "mode"))
