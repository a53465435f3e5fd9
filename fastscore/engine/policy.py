"""A sampler as a policy: rollouts of it, and replays with gradients to its network; methods of Sampler."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from torch import Tensor

from fastscore.engine.actor import Actor, Replay
from fastscore.engine.request import Request, RequestFields
from fastscore.engine.rollout import FORMS, REDUCTIONS, Rollout, numbers_of
from fastscore.engine.turn import keep_up
from fastscore.errors import short, typed, unknown
from fastscore.model.score import ScoreModel
from fastscore.ops.noise import WINDOW_DRAW, NoiseKey
from fastscore.output.progress import Told
from fastscore.solvers.window import checked_window

if TYPE_CHECKING:
    from typing_extensions import Unpack

LONGEST = 1 << 24  # rows of a plan


@typed
def rollout(
    sampler: Any,
    ids: Sequence[int] | Tensor | Request,
    seed: int | Sequence[int] | Tensor = 0,
    *,
    window: Any = None,
    reduction: str = "sum",
    form: str = "gaussian",
    progress: Told = False,
    **fields: Unpack[RequestFields],
) -> Rollout:
    """Draw samples, and return them with the transitions that led to them; see engine/rollout.py.

        rollout = sampler.rollout(range(64), seed=0, window=(1, 4), prior_ids=[k // 8 for k in range(64)])
        ratio = (sampler.replay(rollout) - rollout.replayed).exp()

    The samples are those of ``run``, of a sampler with solver=Window(solver, window) if there is a window. Networks
    are in eval mode, and run as they are, uncaptured. Memory is that of K + 1 states and K means a sample.

    Args:
        ids, seed, progress, fields: as for ``run``. Members of a group have ids of their own, and so noise of their
            own in every step; with one number for all of them in ``prior_ids`` they start from one state.
        window: (start, stop), half-open, of steps that add noise, or a set or range of their numbers; the other
            steps are those of the ODE, and nothing of them is kept. None for the solver as it is.
        reduction: of log-probabilities over the elements of a sample: "sum", the density, or "mean".
        form: "gaussian", the density; "exponent", without the normaliser; "square", -|x' - mean|^2.

    Raises:
        ValueError: as for ``run``; no step that adds noise; a step that is no Gaussian; or settings that have no
            density that can be replayed: an adaptive solver, Picard sweeps, a guide, a projection, known data, a
            network compiled ahead of time.
        NonFiniteError: a sample became NaN or Inf.
    """
    for name, value, allowed in (("reduction", reduction, REDUCTIONS), ("form", form, FORMS)):
        if value not in allowed:
            raise unknown(f"{name}", value, allowed)
    if isinstance(ids, Request):
        request = sampler._fitting(ids)
    else:
        request = sampler.request(ids, seed, **fields)
    if request.known is not None:
        raise ValueError("rollout: known data replace what the policy does, which has no density then; leave it out")
    return _actor(sampler, window).roll(request, reduction, form, progress)


@typed
def replay(
    sampler: Any,
    rollout: Rollout,
    model: ScoreModel | None = None,
    *,
    steps: Sequence[int] | None = None,
    batch: int | None = None,
) -> Tensor:
    """Return the log-probabilities of a rollout's actions under a network as it is now: [K, n], float64.

    States, actions, conditions, coefficients, form and reduction are those of the rollout; the gradient goes to
    the parameters of the networks, through the means alone. With the network of the rollout and its micro-batch it
    is ``rollout.replayed`` to the bit. Networks are evaluated in eval mode, so that dropout is off and batch
    statistics stay, and without autocast, as in the rollout; afterwards they are in the mode that they were in.

    Args:
        rollout: of this sampler, or of one with the same settings; ``rollout.at(..)`` for some of its samples.
        model: another network in the place of the first, as a reference: ScoreModel(other, ..).
        steps: numbers of the transitions, 0 .. K - 1 and rising, to replay these alone: [len(steps), n]. Graphs of
            all that is replayed are kept until backward.
        batch: micro-batch of the network; the execution's if left out. Another one rounds differently.

    Raises:
        ValueError: a rollout of another plan.
    """
    return rollout.log_probs_of(sampler.replay_means(rollout, model, steps=steps, batch=batch), steps)


@typed
def replay_means(
    sampler: Any,
    rollout: Rollout,
    model: ScoreModel | None = None,
    *,
    steps: Sequence[int] | None = None,
    batch: int | None = None,
) -> Tensor:
    """Return the means of a rollout's transitions under a network as it is now: [K, n, *shape]; as ``replay``.

    The KL divergence from one policy to another at the states of a rollout is |mean - other|^2 / (2 c^2).
    """
    if batch is not None and batch < 1:
        raise ValueError(f"batch = {batch} must be at least 1")
    if model is None:
        replay = _actor(sampler, rollout.window).replay
    else:
        keep_up(sampler, *sampler.networks)
        replay = Replay.of(sampler, rollout.window, model)
    return replay.means(rollout, numbers_of(rollout, steps), batch)


@typed
def random_window(size: int, among: tuple[int, int], seed: int, id: int = 0) -> tuple[int, int]:
    """Return a window of so many steps that lies in ``among``, half-open as well; each is as likely.

    It is a function of seed and id, whatever else is drawn: give every request, or every iteration, its own.

    Raises:
        ValueError: a size that does not fit, or a bad seed or id.
    """
    within: Any = checked_window(among)
    if not isinstance(within, tuple) or within[1] > LONGEST:
        raise ValueError(f"among = {short(among)} must be (start, stop) with 0 <= start < stop <= {LONGEST}")
    low, high = within
    if not 1 <= size <= high - low:
        raise ValueError(f"size = {size} must lie in 1 .. {high - low}, the steps of {short(among)}")
    start = low + int(NoiseKey.of(seed, [id]).integer(WINDOW_DRAW, high - low - size + 1))
    return start, start + size


def _actor(sampler: Any, window: Any) -> Actor:
    """Return what draws the rollouts of a sampler with this window: the last one, if it had the same."""
    keep_up(sampler, *sampler.networks)
    window = None if window is None else checked_window(window)
    kept = vars(sampler).get("actor")
    if kept is None or kept.window != window:
        kept = vars(sampler)["actor"] = Actor(sampler, window)
    return kept
