r"""The right-hand side of an adaptive solver: a network's quantity at each sample's own noise level.

    m = p y + q F,   or w m_1 + (1 - w) m_2 within the interval of a mixture,   or made of a guide's estimate D:

    eps = (y - cos phi D) / sin phi,   v = (cos phi y - D) / sin phi,   drift = sin^2 phi y - 2 sin phi eps

with y on the unit circle. Known data follow the path cos phi y_0 + sin phi z of their own, whose eps is z and whose v
is cos phi z - sin phi y_0: both exactly, so that no error estimate sees them.

Of a model with a projection the field is that of P y + cos phi o, projected: a field along the subspace.
"""

from __future__ import annotations

import math
from typing import Any, Protocol

import torch
from torch import Tensor

from fastscore.engine.adaptive.levels import AtLevel, Coefficients, NoiseLevels
from fastscore.engine.request import Request
from fastscore.guidance.denoiser import Denoiser, Guide, Level
from fastscore.guidance.per_sample import with_lines
from fastscore.guidance.told import Conditions, lines_of
from fastscore.model.condition_shapes import Several, Told, each
from fastscore.model.projection import dimensions, onto
from fastscore.model.score import ScoreModel, evaluate


class Field(Protocol):
    """The field that is integrated: k = f(y, lam).

    Attributes:
        parts: columns of the state that a tolerance is the root mean square over, [state, further ones].
        sizes: what those mean squares divide by: columns, or the dimensions of each lane's subspace, [lanes].
        projects: whether states lie in a subspace.
    """

    parts: tuple[int, int]

    @property
    def sizes(self) -> tuple[int | Tensor, int]: ...
    @property
    def projects(self) -> bool: ...
    @property
    def made(self) -> tuple[int, int]:
        """How often its static inputs were made anew."""
        ...

    def begin(self, request: Request) -> None:
        """Take the request whose samples are about to enter."""
        ...

    def load(self, lanes: Tensor, positions: Tensor) -> None:
        """Take notice of the samples that enter lanes."""
        ...

    def onto(self, y: Tensor, lam: Tensor) -> Tensor:
        """Return states at ``lam`` brought back to their subspace."""
        ...

    def along(self, v: Tensor) -> Tensor:
        """Return differences of states, [lanes, width], along their subspace."""
        ...

    def __call__(self, y: Tensor, lam: Tensor) -> Tensor:
        """Return k, [lanes, width] like y; lam is float64 [padded]."""
        ...


class ScoreField:
    """The quantity of ``levels`` for the sample in each lane.

    Args:
        model, second: the networks as they run.
        levels: their coefficients.
        quantity: what those make; see levels.py.
        guide: what changes the estimate of x_0, or None.
        lanes: how many samples at once.
        dtype: of the state; net_dtype: of the networks' inputs.
    """

    def __init__(
        self,
        model: ScoreModel,
        second: ScoreModel,
        levels: NoiseLevels,
        quantity: str,
        guide: Guide | None,
        lanes: int,
        dtype: torch.dtype,
        net_dtype: torch.dtype,
    ) -> None:
        self.model, self.second, self.levels, self.quantity, self.guide = model, second, levels, quantity, guide
        self.lanes, self.dtype, self.net_dtype = lanes, dtype, net_dtype
        self.parts: tuple[int, int] = (math.prod(model.shape), 0)
        self.conditions = Conditions(model, levels.guidance, lanes)
        self.denoiser = Denoiser(model, second, net_dtype)
        self.projects = model.projection is not None
        self.sizes: tuple[int | Tensor, int] = self.parts
        if self.projects:
            self.sizes = torch.ones(lanes, dtype=torch.int64, device=levels.table.device), 0
        self.inputs_made, self.kinds = 0, list[Any]()

    def begin(self, request: Request) -> None:
        """Take the request whose samples are about to enter the lanes.

        Static inputs stay where they are until they come in another dtype or length, as Conditions do.
        """
        self.conditions.load(request.told)
        self.request, self.guided = request, self.guide
        given = (request.y, request.mask, request.known, *request.guide)
        kinds = [None if v is None else (v.dtype, v.shape[1:]) for v in given]
        if self.kinds == kinds:
            return
        self.y, self.mask, known, *lines = (None if v is None else v.new_zeros(self.lanes, *v.shape[1:]) for v in given)
        self.known = None if known is None else known.to(self.dtype)
        self.z = None if self.known is None else torch.zeros_like(self.known)
        self.lines = tuple(v for v in lines if v is not None)
        self.kinds, self.inputs_made = kinds, self.inputs_made + 1  # once all of them are there

    @property
    def made(self) -> tuple[int, int]:
        """How often static inputs were made anew."""
        return self.conditions.made, self.inputs_made

    def load(self, lanes: Tensor, positions: Tensor) -> None:
        """Give lanes what was asked for their new samples."""
        request = self.request
        assert request is not None
        for buffer, values in (
            (self.y, request.y), (self.known, request.known), (self.mask, request.mask),
            *zip(self.conditions.buffers, lines_of(request.told), strict=bool(self.conditions.buffers)),
        ):  # fmt: skip
            if buffer is not None and values is not None:
                buffer[lanes] = values[positions].to(buffer.dtype)
        for line, values in zip(self.lines, request.guide, strict=True):
            line[lanes] = values[positions]
        if isinstance(size := self.sizes[0], Tensor):
            cond = each(lambda v: v[positions], request.cond)
            size[lanes] = dimensions(self.model, cond, len(positions), size.device).clamp_min(1)
        self.guided = with_lines(self.guide, len(self.model.shape), self.lines)
        if self.z is not None:
            self.z[lanes] = prior_draw(request, positions, self.parts[0], self.dtype)

    def on_path(self, y: Tensor, lam: Tensor, positions: Tensor) -> Tensor:
        """Return states [n, D] at ``lam`` [n] on their subspace, with their known part on its own path."""
        request = self.request
        assert request is not None
        if request.known is not None and request.mask is not None:
            cos, sin = (v[:, None].to(self.dtype) for v in circle(lam))
            z = prior_draw(request, positions, self.parts[0], self.dtype)
            y = torch.where(request.mask[positions], cos * request.known[positions].to(self.dtype) + sin * z, y)
        return self.settled(y, positions, circle(lam)[0])

    def settled(self, y: Tensor, positions: Tensor, alpha: float | Tensor) -> Tensor:
        """Return states [n, D] of some samples of the request on their subspace."""
        if not self.projects or self.request is None:
            return y
        return onto(self.model, y, each(lambda v: v[positions.to(v.device)], self.request.cond), alpha)

    def onto(self, y: Tensor, lam: Tensor) -> Tensor:
        """Return states of the lanes at ``lam``, float64 [padded], on their subspace; differentiable."""
        return onto(self.model, y, self.conditions.first, circle(lam)[0][: len(y)]) if self.projects else y

    def along(self, v: Tensor) -> Tensor:
        """Return the part of differences of states that lies along the subspace, [lanes, D]."""
        return onto(self.model, v, self.conditions.first, 0.0)

    def __call__(self, y: Tensor, lam: Tensor) -> Tensor:
        """Return the quantity of ``levels``, [lanes, D]; lam is float64 [padded]."""
        level, y = self.levels.at(lam), self.onto(y, lam)
        m = self._mixture(y, level) if self.guided is None else self._guided(self.guided, y, lam, level)
        if self.mask is not None and self.known is not None and self.z is not None:
            cos, sin = (v[: len(y), None].to(self.dtype) for v in circle(lam))
            path = self.z if self.quantity == "eps" else cos * self.z - sin * self.known
            m = torch.where(self.mask, path, m)
        return self.along(m)

    def network(self, y: Tensor, network: Coefficients) -> Tensor:
        """Return F of the first network, [lanes, D] in its dtype."""
        return self._network(self.model, y, network, self.conditions.first)

    def _network(self, model: ScoreModel, y: Tensor, network: Coefficients, cond: Told) -> Tensor:
        u = (network.c_in[: len(y), None].to(self.dtype) * y).to(self.net_dtype).view(-1, *model.shape)
        F = evaluate(model, u, network.c_noise[: len(y)].to(self.dtype), cond)
        if u.requires_grad and not F.requires_grad:
            raise ValueError("the network's output does not depend on its input in a way that can be differentiated")
        return F

    def _mixture(self, y: Tensor, level: AtLevel) -> Tensor:
        def quantity(model: ScoreModel, network: Coefficients, cond: Told, scale: float | Tensor = 1.0) -> Tensor:
            p, q = (column[: len(y), None].to(self.dtype) for column in (network.p, network.q))
            return scale * p * y + q * self._network(model, y, network, cond).to(self.dtype)

        guidance = self.levels.guidance
        if level.second is None or level.mixed is None or guidance is None:
            return quantity(self.model, level.first, self.conditions.first)
        w, mixed = guidance.total, level.mixed[: len(y), None]
        if guidance.several:
            # F is the sum of w_i F_i where the level is mixed, so that p counts w times there.
            count = torch.where(mixed, w, 1.0).to(self.dtype)
            m = quantity(self.model, level.first, self._told(level, len(y)), count)
            share = torch.where(mixed, 1.0 - w, 0.0).to(self.dtype)
            return m if w == 1.0 else m + share * quantity(self.second, level.second, self.conditions.second)
        m, m2 = (
            quantity(self.model, level.first, self.conditions.first),
            quantity(self.second, level.second, self.conditions.second),
        )
        return torch.where(mixed, w * m + (1.0 - w) * m2, m)

    def _told(self, level: AtLevel, n: int) -> Told:
        """Return what the first output is evaluated with, at a level that mixes."""
        guidance = self.levels.guidance
        if guidance is None or level.mixed is None or not guidance.several:
            return self.conditions.first
        return Several(self.conditions.all, guidance.weights, level.mixed[:n])

    def _guided(self, guide: Guide, y: Tensor, lam: Tensor, level: AtLevel) -> Tensor:
        n, (cos, sin), length = len(y), circle(lam), level.length
        first, second = level.first, level.second or level.first
        w, guidance = torch.ones_like(lam), self.levels.guidance
        if level.mixed is not None and guidance is not None:
            w = torch.where(level.mixed, guidance.total, w)
        several = guidance is not None and guidance.several  # F is then the sum of w_i F_i where the level is mixed
        columns = {
            "p": (w * first.a + (1.0 - w) * second.a) / length, "q": first.b if several else w * first.b,
            "q2": (1.0 - w) * second.b, "p1": first.a / length, "q1": first.b / w if several else first.b,
            "p2": second.a / length, "r2": second.b, "c_in": first.c_in / length, "c_noise": first.c_noise,
            "c_in2": second.c_in / length, "c_noise2": second.c_noise, "alpha": cos * length, "sigma": sin * length,
            "weight": w, "step": torch.full_like(lam, math.inf),
        }  # fmt: skip
        at = Level(**{name: column[:n].to(self.dtype) for name, column in columns.items()})
        x = (length[:n, None].to(self.dtype) * y).view(n, *self.model.shape)
        mixed = level.second is not None and guidance is not None and guidance.total != 1.0
        denoise = self.denoiser.at(at, mixed, self._told(level, n), self.conditions.second)
        D, _ = denoise.guided(guide, x, self.y)
        cos, sin = (v[:n, None].to(self.dtype) for v in (cos, sin))
        if self.quantity == "v":
            return (cos * y - D) / sin
        return (y - cos * D) / sin if self.quantity == "eps" else sin * sin * y - 2.0 * (y - cos * D)


def prior_draw(request: Request, positions: Tensor | slice, d: int, dtype: torch.dtype) -> Tensor:
    """Return the normals of draw 0 of some samples, [n, d]: recorded, or of their seed and prior id."""
    if request.noise is not None:
        return request.noise[0, positions].to(dtype)
    return request.prior.part(positions).normal(0, d, dtype)


def circle(lam: Tensor) -> tuple[Tensor, Tensor]:
    """Return cos phi and sin phi, tan phi = e^-lam."""
    return 1.0 / torch.sqrt(1.0 + torch.exp(-2.0 * lam)), 1.0 / torch.sqrt(1.0 + torch.exp(2.0 * lam))
