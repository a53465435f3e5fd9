"""Guides one after the other, and what a guide asks of the sampler that it is given to."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor

from fastscore.errors import short, typed
from fastscore.guidance.denoiser import Denoiser, Guide, Pair
from fastscore.guidance.mixture import Guidance
from fastscore.plan.rows import Plan
from fastscore.process.schedule import Schedule


@dataclass(frozen=True)
@typed
class Chain:
    """Guides one after the other: each sees the estimate that the ones before it made.

    Raises:
        ValueError: a rule of both estimates (APG, ..) after another guide, which leaves one.
    """

    guides: tuple[Guide, ...]

    def __post_init__(self) -> None:
        if not isinstance(self.guides, tuple | list) or not all(map(callable, self.guides)):
            raise ValueError(f"Chain: guides = {short(self.guides)} must be a tuple of guides")
        for guide in list(parts_of(self))[1:]:
            if getattr(guide, "on_pairs", False):
                raise ValueError(
                    f"Chain: {type(guide).__name__} makes one estimate of both, which no guide before it leaves: put "
                    "it first"
                )

    def __call__(self, denoise: Denoiser, x: Tensor, alpha: Tensor, sigma: Tensor, y: Tensor | None) -> Tensor:
        return _Chained(denoise, self.guides, alpha, sigma, y)(x)

    @property
    def bounding(self) -> tuple[Guide | None, Callable[[Tensor], Tensor] | None]:
        """The chain as guides and a bound of what they make, None where it does not end in one."""
        if not self.guides:
            return self, None
        before, bound = getattr(self.guides[-1], "bounding", (self.guides[-1], None))
        return Chain((*self.guides[:-1], *(() if before is None else (before,)))), bound


class _Chained:
    """The estimate that some guides of a chain made; ``first`` is the network's own, of the last evaluation."""

    def __init__(
        self, denoise: Denoiser, guides: tuple[Guide, ...], alpha: Tensor, sigma: Tensor, y: Tensor | None
    ) -> None:
        self.denoise, self.guides, self.alpha, self.sigma, self.y = denoise, guides, alpha, sigma, y
        self.first: Tensor | None = None

    def __call__(self, x: Tensor) -> Tensor:
        return self.both(x)[0]

    def both(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return the estimate, and the network's own without its mixture."""
        if not self.guides:
            D, self.first = self.denoise.both(x)
            return D, self.first
        before = _Chained(self.denoise, self.guides[:-1], self.alpha, self.sigma, self.y)
        D = self.guides[-1](before, x, self.alpha, self.sigma, self.y)  # pyright: ignore[reportArgumentType]
        self.first = D if before.first is None else before.first
        return D, self.first

    def pair(self, x: Tensor) -> Pair:
        """Return what is mixed; after a guide nothing is."""
        if not self.guides:
            pair = self.denoise.pair(x)
            self.first = pair.first
            return pair
        one = torch.ones(len(x), *[1] * (x.ndim - 1), dtype=x.dtype, device=x.device)
        return Pair(self.both(x)[0], None, one, math.inf * one)

    @property
    def memory(self) -> dict[str, Tensor]:
        """What guides keep, as ``Denoiser.memory``."""
        return self.denoise.memory


def parts_of(guide: Guide | None) -> Iterator[Guide]:
    """Yield the guides of a chain, of chains in it too; or the one."""
    if isinstance(guide, Chain):
        for part in guide.guides:
            yield from parts_of(part)
    elif guide is not None:
        yield guide


def check_guide(
    guide: Guide | None,
    guidance: Guidance | None,
    schedule: Schedule,
    plan: Plan | None,
    start: float,
    swept: bool = False,
) -> None:
    """Check that a sampler has what its guide and its guidance ask for.

    Args:
        plan: of its rows; None of an adaptive solver.
        start: time of its first evaluation. swept: whether Picard's sweeps do them.

    Raises:
        ValueError: it has not.
    """
    if plan is None and guidance is not None and guidance.steps != (0.0, 1.0):
        raise ValueError(
            f"guidance steps = {guidance.steps} are shares of a grid's steps, and an adaptive solver has no grid; give "
            "an interval of noise levels"
        )
    for part in parts_of(guide):
        name = type(part).__name__
        if getattr(part, "on_pairs", False) and guidance is None:
            raise ValueError(
                f"{name} makes one estimate of both that guidance evaluates, and there is none: "
                f"Sampler(guidance=Guidance(weight), guide={name}(..))"
            )
        if guidance is not None and guidance.total == 0.0 and guidance.several:
            if getattr(part, "on_pairs", False) or name == "CFGRescale":
                raise ValueError(f"{name}: weights {guidance.weights} sum to 0, which leaves no conditional estimate")
        if getattr(part, "space", "x0") == "eps" and schedule.alpha(start) == 0.0:
            raise ValueError(
                f"{name}: eps says nothing of the data where alpha = 0, at t = {start:.6g}; use space='flow', or start "
                "the grid later"
            )
        if plan is None and getattr(part, "zero_steps", 0):
            raise ValueError(f"{name}: zero_steps counts a grid's steps, which an adaptive solver has not; set it to 0")
        again = "" if not getattr(part, "remembers", False) else _again(plan, swept)
        if again:
            raise ValueError(f"{name}: momentum follows evaluations down the noise levels, and {again}; set it to 0")


def _again(plan: Plan | None, swept: bool) -> str:
    """Say what a sampler does in place of going down the noise levels once; nothing if it does that."""
    if plan is None or swept:
        return "Picard sweeps over them again" if swept else "an adaptive solver tries steps again"
    times = [row.t for row in plan.rows if row.evaluate]
    rises = any(after > before for before, after in pairwise(times))
    return "this solver goes back up" if rises else ""
