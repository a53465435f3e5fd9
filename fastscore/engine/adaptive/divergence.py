r"""The probability-flow ODE with the divergence of its right-hand side, from one evaluation of the network.

    d/dphi (x, l_1, .., l_P) = (v, e_1 . J e_1 / D, .., e_P . J e_P / D),     J = dv/dx,   E e e^T = I

Each l is an estimate of the change of ln p per dimension along the path (Skilling-Hutchinson), or with the D unit
vectors in place of probes the change itself. One forward pass gives v; each probe takes one backward pass through it.
On a subspace J is that of the projected field, P J P, probes are projected too, and D is the subspace's d.

Source: Grathwohl et al. 2019, section 3.1; Song et al. 2021, appendix D.2.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from fastscore.engine.adaptive.field import Field, ScoreField
from fastscore.engine.adaptive.levels import NoiseLevels
from fastscore.engine.request import Request
from fastscore.execution import Execution
from fastscore.model.score import ScoreModel
from fastscore.network.surroundings import repeatable
from fastscore.ops.noise import PROBE_DRAW
from fastscore.ops.norms import dot

PROBES = ("rademacher", "gaussian", "exact")


class DivergenceField:
    """The augmented field of the samples in the lanes.

    Args:
        score: evaluates the network; its quantity is v.
        kind: one of PROBES; "exact" takes D backward passes an evaluation.
        probes: P.
    """

    def __init__(self, score: ScoreField, kind: str, probes: int) -> None:
        self.score, self.kind = score, kind
        self.d, self.projects = score.parts[0], score.projects
        self.parts = (self.d, 1 if kind == "exact" else probes)
        # One direction at a time is made of the exact ones.
        count = 0 if kind == "exact" else probes
        self.probes = torch.zeros(count, score.lanes, self.d, dtype=score.dtype, device=score.levels.table.device)

    def begin(self, request: Request) -> None:
        """Take the request whose samples are about to enter; their probes are functions of its seed and ids."""
        self.score.begin(request)
        self.key = request.key

    @property
    def sizes(self) -> tuple[int | Tensor, int]:
        """What a tolerance's mean squares divide by."""
        return self.score.sizes[0], self.parts[1]

    @property
    def made(self) -> tuple[int, int]:
        """How often static inputs were made anew; those of its own never are."""
        return self.score.made

    def onto(self, y: Tensor, lam: Tensor) -> Tensor:
        """Return states brought back to their subspace."""
        return torch.cat([self.score.onto(y[:, : self.d], lam), y[:, self.d :]], 1) if self.projects else y

    def along(self, v: Tensor) -> Tensor:
        """Return differences of states along their subspace."""
        return torch.cat([self.score.along(v[:, : self.d]), v[:, self.d :]], 1) if self.projects else v

    def load(self, lanes: Tensor, positions: Tensor) -> None:
        """Draw the probes of the samples that enter lanes."""
        self.score.load(lanes, positions)
        key = self.key.part(positions)
        draw: Callable[..., Tensor] = key.sign if self.kind == "rademacher" else key.normal
        for j in range(len(self.probes)):
            self.probes[j, lanes] = self.score.settled(draw(PROBE_DRAW + j, self.d, self.score.dtype), positions, 0.0)

    def __call__(self, y: Tensor, lam: Tensor) -> Tensor:
        """Return the right-hand side, [lanes, D + P]; differentiable in y where y requires a gradient."""
        graph = torch.is_grad_enabled() and y.requires_grad
        level = self.score.levels.at(lam).first
        p, q = (column[: len(y), None].to(y.dtype) for column in (level.p, level.q))
        # The fused kernels of attention have no second derivatives.
        with torch.enable_grad(), repeatable(y.device), sdpa_kernel(SDPBackend.MATH) if graph else nullcontext():
            x = y[:, : self.d] if graph else y[:, : self.d].detach().requires_grad_()
            on = self.score.onto(x, lam)
            F = self.score.network(on, level)
            F = self.score.along(F.to(y.dtype)) if self.projects else F
        rates, d = [], self.score.sizes[0]
        if self.kind == "exact":
            trace = torch.zeros_like(y[:, 0])
            for j in range(self.d):
                trace = trace + self._product(F, x, self._axis(x, j), graph, j == self.d - 1)[:, j]
            rates.append(p[:, 0] + q[:, 0] * (trace / d))
        for j, e in enumerate(self.probes):
            product = dot(self._product(F, x, e, graph, j == len(self.probes) - 1), e)
            rates.append((p[:, 0] * dot(e, e) + q[:, 0] * product) / d)
        v = self.score.along(p * on + q * F.to(y.dtype))
        return torch.cat([v, torch.stack(rates, 1)], 1)

    @staticmethod
    def _product(F: Tensor, x: Tensor, e: Tensor, graph: bool, last: bool) -> Tensor:
        """Return e^T dF/dx, [lanes, D], with a graph of its own if wanted; ``last``: that of F is not needed again."""
        with repeatable(x.device):
            return torch.autograd.grad(F, x, e.to(F.dtype), retain_graph=graph or not last, create_graph=graph)[0]

    @staticmethod
    def _axis(x: Tensor, j: int) -> Tensor:
        e = torch.zeros_like(x)
        e[:, j] = 1.0
        return e


def field_of(
    model: ScoreModel, levels: NoiseLevels, execution: Execution, net_dtype: torch.dtype, kind: str | None, probes: int
) -> Field:
    """Return the right-hand side of a model's flow, with the divergence if it is of a ``kind``."""
    score = ScoreField(model, model, levels, "v", None, execution.batch, execution.dtype, net_dtype)
    return score if kind is None else DivergenceField(score, kind, probes)
