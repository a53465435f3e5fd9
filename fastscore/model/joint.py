"""Models of several tensors at once, each with a schedule of its own, around one network."""

# pyright: reportUnnecessaryIsInstance=false, reportUnnecessaryComparison=false
# What users' networks return is checked whatever their annotation says.

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor, nn

from fastscore.errors import short, typed
from fastscore.model.condition_shapes import Condition, CondShape, Several, Told, declared, each, sizes
from fastscore.model.projection import Projection
from fastscore.model.score import ScoreModel, apart, checked, listed
from fastscore.process.parametrization import Parametrization
from fastscore.process.schedule import Schedule

Tensors = dict[str, Tensor]


@dataclass(frozen=True)
@typed
class Part:
    """One tensor of a coupled state.

    Attributes:
        shape: of one sample, without the batch axis.
        schedule: the forward SDE of this part.
        parametrization: what the network's output for this part means, and which label it receives.
        projection: onto the subspace that this part's data lie in, as for a ScoreModel.
    """

    shape: tuple[int, ...]
    schedule: Schedule
    parametrization: Parametrization = field(default_factory=Parametrization)
    projection: Projection | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "shape", sizes("shape", self.shape))


@dataclass(frozen=True)
@typed
class JointModel:
    """A network of several tensors.

    Attributes:
        net: ``net(u, c_noise) -> F``, each a dict by part: u = c_in x [N, *shape], labels [N], F like u. Of a model
            with classes or a condition ``net(u, c_noise, cond) -> F``, cond as for a ScoreModel.
        parts: by name, in the order that numbers their noise.
        classes, cond_shape, null, modules: as for a ScoreModel.
    """

    net: Callable[..., Mapping[str, Tensor]]
    parts: Mapping[str, Part]
    classes: int = 0
    cond_shape: CondShape = None
    null: int | Tensor | Mapping[str, int | Tensor] | None = None
    modules: tuple[nn.Module, ...] = ()

    def __post_init__(self) -> None:
        if not self.parts or not all(isinstance(part, Part) for part in self.parts.values()):
            raise ValueError(f"JointModel: parts = {short(self.parts)} must be a dict of Part(..), at least one")
        for name, value in zip(("cond_shape", "null"), declared(self), strict=True):
            object.__setattr__(self, name, value)
        for part in self.parts.values():
            if part.projection is not None:
                part.projection.check(part.shape, self.cond_shape)
        object.__setattr__(self, "modules", listed(self.modules))

    @property
    def networks(self) -> tuple[object, ...]:
        """The network, and the modules that it was said to run."""
        return (self.net, *self.modules)

    @property
    def shape(self) -> dict[str, tuple[int, ...]]:
        """Shape of each part of one sample."""
        return {name: part.shape for name, part in self.parts.items()}

    def evaluate(self, u: Tensors, c_noise: Tensors, cond: Told) -> list[Tensor]:
        """Call the network; return F of each part, [N, D], in memory that is no input's; of Several, the sums."""
        if isinstance(cond, Several):
            return cond.sum(lambda c: self.evaluate({name: v.clone() for name, v in u.items()}, c_noise, c))
        conditional = self.classes or self.cond_shape is not None
        out = self.net(dict(u), c_noise, each(lambda v: v, cond)) if conditional else self.net(dict(u), c_noise)
        if not isinstance(out, Mapping) or set(out) != set(u):
            returned = ", ".join(map(str, out)) if isinstance(out, Mapping) else f"a {type(out).__name__}"
            raise ValueError(f"the network returned {returned}; it must return a dict of {', '.join(u)}")
        outputs = {name: checked(out[name], u[name], name) for name in self.parts}
        return [apart(F, *u.values()).reshape(len(F), -1) for F in outputs.values()]


def alone(part: Part, cond_shape: Any = None) -> ScoreModel:
    """Return one part as a model of its own, for its coefficients and its projection; the network is the joint model's.

    Args:
        cond_shape: of the joint model, where the projection depends on a condition.
    """

    def absent(u: Tensor, c_noise: Tensor, cond: Condition) -> Tensor:
        raise AssertionError("a part has no network of its own")

    shaped = {} if part.projection is None else {"cond_shape": cond_shape, "projection": part.projection}
    return ScoreModel(absent, part.shape, part.schedule, part.parametrization, **shaped)
