"""The check of a prepared network: noisy inputs over the whole schedule, and what the network itself makes of them."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterator
from functools import cached_property

import numpy as np
import torch
from torch import Tensor, nn

from fastscore.model.score import ScoreModel, checked
from fastscore.network.jit import Net
from fastscore.network.surroundings import undisturbed
from fastscore.ops.noise import NoiseKey
from fastscore.process.grid import arctan
from fastscore.process.parametrization import components, convert

# The largest relative error over the schedule: of the network's output, and of the score made from it.
LIMIT = {"fp32": (1e-4, math.inf), "bf16": (math.inf, 1e-2), "tf32": (math.inf, 1e-2)}


CHECK = 1  # of what a check computes; another one is done anew


class Unfit(Exception):
    """A network cannot be prepared; the message says why."""


class Inexact(Unfit):
    """A prepared network differs from the original by more than LIMIT."""


class Trial:
    """Noisy inputs over the whole schedule, and what the network itself makes of them.

    x_t = alpha D + sigma eps with D ~ N(0, sigma_data^2), at the times of an arctan grid,
    one a sample; as many micro-batches as the grid needs. ``anew``: whether a verdict that was kept does not count.
    """

    def __init__(self, model: ScoreModel, net: nn.Module, batch: int, device: torch.device, anew: bool = False) -> None:
        self.model, self.net, self.device, self.anew = model, net, device, anew
        self.shape = (batch, *model.shape)
        schedule, parametrization = model.schedule, model.parametrization
        knots = arctan(20)(schedule)
        alpha, sigma = schedule.alpha(knots), schedule.sigma(knots)
        with np.errstate(divide="ignore", invalid="ignore"):
            p, q = convert(
                components("eps", schedule, knots), parametrization.components(schedule, knots), alpha, sigma
            )
            inputs = parametrization.c_in(schedule, knots), parametrization.c_noise(schedule, knots)
            columns = np.stack([alpha, sigma, p, q, *inputs], axis=1)
        columns = columns[np.isfinite(columns).all(axis=1) & (sigma > 0)]
        rounds = -(-len(columns) // batch)
        at = np.arange(rounds * batch) * len(columns) // (rounds * batch)
        self.columns = torch.tensor(columns[at], dtype=torch.float32, device=device)
        self.key = NoiseKey.of(0, range(len(at)), device)

    @property
    def digest(self) -> str:
        """The digest of all that the check depends on, but for the network and its package."""
        limits = {kind: LIMIT[kind] for kind in ("fp32", "bf16")}  # of the CPU, where verdicts are kept
        facts = [CHECK, self.shape, self.model.classes, self.model.parametrization.sigma_data, limits]
        return hashlib.sha256(repr(facts).encode() + self.columns.cpu().numpy().tobytes()).hexdigest()[:16]

    @property
    def example(self) -> tuple[Tensor, ...]:
        """Inputs of one micro-batch."""
        return next(self.micro_batches())[0]

    def micro_batches(self) -> Iterator[tuple[tuple[Tensor, ...], Tensor, Tensor]]:
        """Yield (inputs of the network, p x, q), such that p x + q F is the noise estimate -sigma score."""
        d, batch = math.prod(self.model.shape), self.shape[0]
        for start in range(0, len(self.columns), batch):
            key = NoiseKey(self.key.seed, self.key.ids[start : start + batch])
            alpha, sigma, p, q, c_in, c_noise = self.columns[start : start + batch].unbind(1)
            data = self.model.parametrization.sigma_data * key.normal(0, d)
            x = alpha[:, None] * data + sigma[:, None] * key.normal(1, d)
            inputs = ((c_in[:, None] * x).view(self.shape), c_noise)
            cond = (key.ids % self.model.classes,) if self.model.classes else ()
            yield tuple(v.contiguous() for v in (*inputs, *cond)), p[:, None] * x, q[:, None]

    @cached_property
    @torch.no_grad()
    def expected(self) -> list[Tensor]:
        """Outputs of the network itself in true float32, [batch, D] a micro-batch.

        Raises:
            ValueError: what it returns is no output.
        """
        with undisturbed(place=self.device, tf32=False):
            asked = [inputs for inputs, _, _ in self.micro_batches()]
            return [checked(self.net(*three(inputs)), inputs[0]).flatten(1) for inputs in asked]

    @torch.no_grad()
    def errors(self, call: Net) -> Tensor:
        """Return the relative errors of a call, of its output and of the score, [2, samples]."""
        results = []
        for (inputs, px, q), reference in zip(self.micro_batches(), self.expected, strict=True):
            difference = call(*three(inputs)).flatten(1) - reference
            results.append(torch.stack([_ratio(difference, reference), _ratio(q * difference, px + q * reference)]))
        return torch.cat(results, dim=1)

    def checked(self, call: Net, kind: str) -> float:
        """Return the error of the score; raise Inexact if one is above its limit or not a number."""
        errors = self.errors(call).amax(dim=1).tolist()
        for value, limit, quantity in zip(errors, LIMIT[kind], ("output", "score"), strict=True):
            if not value <= limit:
                raise Inexact(f"in {kind} the network's {quantity} errs by {value:.2g}, above {limit:g}")
        return float(f"{errors[1]:.3g}")


def three(inputs: tuple[Tensor, ...]) -> tuple[Tensor, Tensor, Tensor | None]:
    """Return inputs of a network as the three that it takes."""
    u, c_noise, *cond = inputs
    return u, c_noise, cond[0] if cond else None


def _ratio(difference: Tensor, reference: Tensor) -> Tensor:
    """Return the relative error of each sample; 0 where both are 0."""
    error, size = difference.double().norm(dim=1), reference.double().norm(dim=1)
    return torch.where(error == 0.0, 0.0, error / size)
