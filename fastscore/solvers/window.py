"""A window of stochastic steps in a run that is deterministic otherwise."""

from __future__ import annotations

from collections.abc import Set
from dataclasses import dataclass, replace
from operator import index
from typing import Any

from fastscore.errors import short, typed
from fastscore.plan.cfgpp import GuidedSteps
from fastscore.plan.rows import Row, Solver
from fastscore.process.schedule import Array, Schedule
from fastscore.solvers.cfgpp import CFGPlusPlus
from fastscore.solvers.compose import Churn, ScaledNoise, planned
from fastscore.solvers.multistep import DPMMultistep
from fastscore.solvers.sde import DDIM, Ancestral, ReverseDiffusion

Steps = tuple[int, int] | frozenset[int]


@dataclass(frozen=True)
@typed
class Window:
    """The steps of a solver in a window, and those of the ODE solver of its family outside.

    Reinforcement learning explores in a few steps, whose densities it replays, and pays for no others.

        Window(FlowSDE(0.7), (1, 4))  # steps 1, 2 and 3 add noise, the others are Euler's

    Args:
        solver: any solver with a grid that adds noise.
        window: (start, stop), half-open, of steps counted from 0, the noisiest; or a set or a range of their numbers.
        outside: the solver of the other steps; what ``without_noise`` makes of ``solver`` if left out.

    Raises:
        ValueError: a window without steps, or with steps that the grid has not; a solver whose ODE nobody knows; steps
            that read a history from before their start, but for DPMMultistep's, where both solvers keep the same.

    Source: Li et al. 2025 (MixGRPO, arXiv 2507.21802).
    """

    solver: Solver
    window: Any
    outside: Solver | None = None

    def __post_init__(self) -> None:
        planned("Window", self.solver)
        object.__setattr__(self, "window", checked_window(self.window))
        if self.outside is not None:
            planned("Window", self.outside)

    def steps(self, schedule: Schedule, t: Array) -> list[list[Row]]:
        """Return the groups of both solvers, those of the window from ``solver``."""
        last = max(self.window) - isinstance(self.window, tuple)
        if last >= len(t) - 1:
            raise ValueError(
                f"window = {short(self.window)} has step {last}; this grid has the steps 0 .. {len(t) - 2}"
            )
        chosen = frozenset(range(*self.window)) if isinstance(self.window, tuple) else self.window
        ode = self.outside or without_noise(self.solver)
        both = self.solver.steps(schedule, t), ode.steps(schedule, t)
        alike = isinstance(self.solver, DPMMultistep) and replace(self.solver, eta=0.0) == ode
        if not alike and any(_reads_back(group) for groups in both for group in groups):
            raise ValueError(
                f"Window: steps of {short(self.solver)} or {short(ode)} read what earlier steps have kept, which two "
                "solvers do not share; take one-step solvers, or DPMMultistep with eta"
            )
        if self.outside is None and any(row.noisy for group in both[1] for row in group):
            raise ValueError(f"Window: {short(ode)} adds noise all the same; say what runs outside: outside=")
        return [both[k not in chosen][k] for k in range(len(t) - 1)]


def without_noise(solver: Any) -> Solver:
    """Return the solver of the probability-flow ODE that belongs to a stochastic one.

    That is its noise level, eta or churn at 0; DDIM for ancestral sampling; and half the score without noise for
    reverse diffusion.

    Raises:
        ValueError: a solver with none of these.
    """
    if isinstance(solver, ScaledNoise):
        return without_noise(solver.solver)
    if isinstance(solver, GuidedSteps | CFGPlusPlus):
        return replace(solver, solver=without_noise(solver.solver))
    if isinstance(solver, Ancestral):
        return DDIM()
    if isinstance(solver, ReverseDiffusion):
        return ReverseDiffusion(probability_flow=True)
    name = "churn" if isinstance(solver, Churn) else "noise_level" if hasattr(solver, "noise_level") else "eta"
    if not isinstance(getattr(solver, name, None), float):
        raise ValueError(f"Window: {short(solver)} has no noise level that could be 0; say what runs outside: outside=")
    return replace(solver, **{name: 0.0})


def checked_window(window: Any) -> Steps:
    """Return a window as (start, stop) or a set of numbers; ValueError for one that is neither, or has no step."""
    try:
        numbers = [index(k) for k in window] if isinstance(window, tuple | Set | range) else []
    except TypeError:
        numbers = []
    pair = isinstance(window, tuple)
    if not numbers or min(numbers) < 0 or (pair and (len(numbers) != 2 or numbers[0] >= numbers[1])):
        raise ValueError(
            f"window = {short(window)} must be (start, stop) with 0 <= start < stop, or a set or range of steps from 0"
        )
    return (numbers[0], numbers[1]) if pair else frozenset(numbers)


def _reads_back(group: list[Row]) -> bool:
    """Return whether a step reads a slot that it has not filled itself."""
    filled: set[int] = set()
    for row in group:
        if any(w != 0.0 and slot not in filled for slot, w in enumerate(row.w)):
            return True
        if row.push is not None:
            filled.add(row.push)
    return False
