r"""Spaces that rules of guidance act in: G = k D + m x, the same for both estimates at one state.

    x0: D,   eps: (x - alpha D) / sigma,   flow: eps - D,   v: (alpha eps - sigma D) / hypot(alpha, sigma)

An affine rule is the same in all of them; one with norms or projections is not.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from fastscore.errors import unknown

SPACES = ("x0", "eps", "flow", "v")


@dataclass(frozen=True)
class Space:
    """A space at one state.

    Attributes:
        k, m: see above; None in x0, where D is what counts.
        x: the state.
    """

    k: Tensor | None
    m: Tensor | None
    x: Tensor

    @classmethod
    def at(cls, name: str, x: Tensor, alpha: Tensor, sigma: Tensor) -> Space:
        """Return the space of a name at the states x = alpha x_0 + sigma z, [N, *shape]; alpha and sigma [N, 1, ..]."""
        if name == "x0":
            return cls(None, None, x)
        if name == "v":
            length = torch.hypot(alpha, sigma)
            return cls(-length / sigma, alpha / (length * sigma), x)
        return cls(-(alpha if name == "eps" else alpha + sigma) / sigma, 1.0 / sigma, x)

    def of(self, D: Tensor) -> Tensor:
        """Return an estimate in this space."""
        return D if self.k is None or self.m is None else self.k * D + self.m * self.x

    def estimate(self, G: Tensor) -> Tensor:
        """Return the estimate of x_0 that a quantity in this space is."""
        return G if self.k is None or self.m is None else (G - self.m * self.x) / self.k


def check_space(rule: str, name: str) -> None:
    """Raise ValueError unless it is the name of a space."""
    if name not in SPACES:
        raise unknown(f"{rule}: space", name, SPACES)
