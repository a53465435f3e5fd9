"""Runs of the sampler under test on the problems, each once, with what its network saw."""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from fastscore.conformance.problem import Call, Level, Network, Setting, Target, gaussian, mixture, point

SamplerFn = Callable[[Network, int, int, int], Any]
FINER = (1, 2, 4)  # times the steps: what an error does as they double tells discretisation from a mistake
SHIFT = 0.25  # of the means, in scales, between two runs with the same noise


class Misuse(Exception):
    """The sampler under test did not return what it must, or raised."""


@dataclass(frozen=True)
class Trial:
    """One run: its samples [n, *shape], as returned and in float64, and its network's calls, noisiest first.

    Attributes:
        changed: a knot that the sampler changed in the list that it was handed, and what it made of it; or None.
        ambient: whether global random state of torch, NumPy or Python was consumed.
        mode: whether the network was left in training mode.
        draws: what torch drew for the whole batch on the way, [n, D] each; another source of noise is not seen.
    """

    target: Target
    steps: int
    raw: Tensor
    x: Tensor
    calls: list[Call]
    changed: tuple[float, float] | None
    ambient: bool
    mode: bool
    draws: list[Tensor]

    @property
    def whole(self) -> bool:
        """Whether every call had all samples at one time, so that states can be compared call by call."""
        return all(len(call.x) == len(self.x) and call.t == call.t for call in self.calls)

    @property
    def levels(self) -> list[Level]:
        """Return (alpha, sigma) of each call."""
        return [call.level for call in self.calls]

    @property
    def denoised(self) -> bool:
        """Whether the samples are the last call's estimate of x_0."""
        last = self.calls[-1]
        gap = (self.x - self.target.data(last.x, last.level)).abs().max()
        return bool(gap <= 1e3 * self.rounding * (1.0 + self.x.abs().max()))

    @property
    def rounding(self) -> float:
        """Unit of rounding of the coarsest numbers that the network got or the samples have."""
        return max(torch.finfo(self.raw.dtype).eps, *(call.rounding for call in self.calls))


@dataclass
class Trials:
    """Runs of one sampler, kept by what they are runs of."""

    sampler: SamplerFn
    setting: Setting
    shape: tuple[int, ...]
    n: int
    steps: int
    seed: int
    scale: float
    kept: dict[tuple[Any, ...], Trial] = field(default_factory=dict)

    def run(
        self,
        problem: str = "gaussian",
        times: int = 1,
        *,
        seed: int = 0,
        n: int | None = None,
        apart: bool = False,
        again: bool = False,
    ) -> Trial:
        """Return a run of ``times`` the steps; ``seed`` counts from the check's own.

        Raises:
            Misuse: what the sampler did instead of returning samples.
        """
        key = (problem, times, seed, n, apart, again)
        if key not in self.kept:
            self.kept[key] = self._run(problem, self.steps * times, self.seed + seed, n or self.n, apart)
        return self.kept[key]

    def three(self, problem: str = "gaussian") -> list[Trial]:
        """Return the runs of once, twice and four times the steps."""
        return [self.run(problem, times) for times in FINER]

    def target(self, problem: str) -> Target:
        """Return a problem by its name."""
        if problem == "mixture":
            return mixture(self.shape, self.scale)
        if problem == "point":
            return point(self.shape, self.scale)
        return gaussian(self.shape, self.scale, SHIFT if problem == "moved" else 0.0)

    def _run(self, problem: str, steps: int, seed: int, n: int, apart: bool) -> Trial:
        net = Network(self.target(problem), self.setting, apart)
        with own_randomness(len(self.kept)) as untouched, Draws(n, net.shape) as drawn:
            try:
                samples = self.sampler(net, n, seed, steps)
            except Exception as error:
                raise Misuse(f"it raised {type(error).__name__} at {steps} steps: {error}") from error
            ambient = not untouched()
        if not isinstance(samples, Tensor | np.ndarray):
            raise Misuse(f"it returned a {type(samples).__name__}; samples [{n}, *shape] are a tensor or an array")
        raw = torch.as_tensor(samples).detach().cpu()
        if tuple(raw.shape) != (n, *self.shape):
            raise Misuse(f"it returned samples of shape {tuple(raw.shape)}; asked for were {(n, *self.shape)}")
        if not raw.is_floating_point() or not raw.isfinite().all():
            raise Misuse(f"its samples at {steps} steps are {'not finite' if raw.is_floating_point() else raw.dtype}")
        if not net.calls:
            raise Misuse("it never called the network")
        return Trial(
            net.target, steps, raw, raw.double(), net.calls, net.changed(steps), ambient, net.training, drawn.seen
        )


class Draws(TorchFunctionMode):
    """Context that keeps the standard normals that torch draws for a whole batch at once."""

    def __init__(self, n: int, shape: tuple[int, ...]) -> None:
        super().__init__()
        self.n, self.size = n, n * math.prod(shape)
        self.seen: list[Tensor] = []

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        drawn = getattr(func, "__name__", "").startswith(("randn", "normal"))
        if drawn and isinstance(out, Tensor) and out.is_floating_point() and out.numel() == self.size:
            z = out.detach().cpu().double().reshape(self.n, -1).clone()
            if abs(float(z.square().mean()) - 1.0) < 0.1:  # others stand in no regression, whose residual then tells
                self.seen.append(z)
        return out


@contextmanager
def own_randomness(salt: int) -> Iterator[Callable[[], bool]]:
    """Give a run global random states that no other run has, and restore the caller's.

    So a sampler that lives on them, and not on its seed, repeats nothing. Yields whether they are as they were given.
    """
    before = torch.get_rng_state(), np.random.get_state(), random.getstate()
    try:
        torch.manual_seed(7919 + salt)
        np.random.seed(7919 + salt)
        random.seed(7919 + salt)
        given = torch.get_rng_state(), str(np.random.get_state()), random.getstate()

        def untouched() -> bool:
            now = torch.get_rng_state(), str(np.random.get_state()), random.getstate()
            return bool(torch.equal(now[0], given[0])) and now[1:] == given[1:]

        yield untouched
    finally:
        torch.set_rng_state(before[0])
        np.random.set_state(before[1])
        random.setstate(before[2])
