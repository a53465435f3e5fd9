"""A score model: a network, what it predicts, and the schedule it was trained on; and the one call of a network."""

# pyright: reportUnnecessaryIsInstance=false
# What users pass is checked whatever its annotation says.

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from torch import Tensor, nn

from fastscore.data.affine import Affine
from fastscore.errors import short, typed
from fastscore.kernels import abi
from fastscore.kernels.checks import channels_last
from fastscore.model.condition_shapes import Condition, CondShape, Several, Told, declared, sizes
from fastscore.model.decoder import Decoder
from fastscore.model.projection import Projection
from fastscore.process.parametrization import Parametrization
from fastscore.process.schedule import Schedule

# What torch says of an embedding of floats, and of a table at floats.
NO_INDEX = ("following scalar types: Long", "tensors used as indices must be")


@dataclass(frozen=True)
@typed
class ScoreModel:
    """Any score network, with what a sampler must know of it.

    The call convention is ``net(u, c_noise, cond) -> F`` with u = c_in x [N, *shape] in the network's
    dtype, c_noise [N] float32 (float64 in float64 runs), cond int64 labels [N], a tensor
    [N, *cond_shape] in the dtype that it was given in, a dict of such tensors and of "labels", or None. Any
    ``nn.Module`` or plain function will do; one of two arguments is called as ``net(u, c_noise)``.

    Attributes:
        net: the network.
        shape: of one sample, without the batch axis.
        schedule: the forward SDE it was trained on; a sampler may use another one.
        parametrization: what F means and which label c_noise is.
        classes: number of class labels; 0 for an unconditional model.
        class_names: one a class, or empty.
        info: how it was made (training command, seed, ...), kept in its config.
        cond_shape: of the condition of one sample, if the network takes a tensor and not a class; or a dict of the
            shapes of several tensors by name, () for a number: the network then gets a dict, in which a class, if there
            are ``classes`` too, is "labels". A size of None is chosen by each request, one for all of its samples.
        scales: smallest and largest standard deviation of the data along any direction, where they are known: default
            grids then resolve the one and take the other for the extent of the noise.
        null: the condition that stands for none: a label, mostly ``classes``, a tensor [*cond_shape], or a dict of such
            by name, the label under "labels". It is what a run without labels or cond gives the network, and what
            guidance leads away from, keeping each sample's own value of names that are not in the dict. None: the
            network was not trained with one, so that every run must say its condition.
        modules: what a function runs, if ``net`` is one: in eval mode for the length of a run, and on its device. Those
            that the function closes over, belongs to or names as globals are found without it.
        transform: from what the network is trained on, y, to the units of the data, x = shift + scale y along the last
            axis. The network alone sees y; samples, states, ``init``, known data, guides and likelihoods are in x.
        projection: onto the subspace that the data lie in, which may depend on the condition: Padded sets, Centred
            ones, data that are Constrained; see model/projection.py. States, outputs of the network and noise are
            projected all along, and likelihoods are densities on the subspace.
        decoder: of a latent model, what turns its samples into images: those are written to files. A run returns the
            samples themselves, and ``model.decoder(x)`` decodes them.
        base: mean and standard deviation of x_T by column, T the schedule's, where samples start from another Gaussian
            than N(0, prior_std^2): one that keeps what is left of the data at T. In the units of y.
        two_times: whether the network maps between two times, as a flow map, x_r = x_t - (t - r) u(x_t, t, r), or a
            consistency trajectory model, and so takes the end of a step, too: c_noise is then [N, 2], the labels of t
            and r. Its F is read as constant on the way, x_r = alpha_r D + sigma_r eps. It is for solvers with one
            evaluation a step and no history: DDIM to any next time, or in one step to the data; Renoise.
        folder: that it was loaded from, if any; grids that are fitted to it are kept there.

    Raises:
        ValueError: a shape, a number of classes, a null condition or a projection that cannot be.
    """

    net: Callable[..., Tensor]
    shape: tuple[int, ...]
    schedule: Schedule
    parametrization: Parametrization = field(default_factory=Parametrization)
    classes: int = 0
    class_names: tuple[str, ...] = ()
    info: dict[str, Any] = field(default_factory=dict)
    cond_shape: CondShape = None
    scales: tuple[float, float] | None = None
    null: int | Tensor | Mapping[str, int | Tensor] | None = None
    modules: tuple[nn.Module, ...] = ()
    transform: Affine | None = None
    projection: Projection | None = None
    decoder: Decoder | None = None
    base: Affine | None = None
    two_times: bool = False
    folder: str | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "shape", sizes("shape", self.shape))
        for name, value in zip(("cond_shape", "null"), declared(self), strict=True):
            object.__setattr__(self, name, value)
        if self.scales is not None and not 0.0 < self.scales[0] <= self.scales[1] < math.inf:
            raise ValueError(f"scales = {self.scales} must be two standard deviations, positive and rising")
        for name, columns in (("transform", self.transform), ("base", self.base)):
            if columns is not None and len(columns.shift) != self.shape[-1]:
                raise ValueError(f"{name}: {len(columns.shift)} columns for samples of shape {self.shape}")
            if columns is not None and self.projection is not None:
                raise ValueError(
                    f"projection: it is orthogonal in one unit for all columns, and {name} gives each one of its own; "
                    f"scale the data yourself, by one number, and leave {name} out"
                )
        if self.two_times and self.parametrization.prediction == "flow":
            checked_linear(self.schedule)
        if self.projection is not None:
            self.projection.check(self.shape, self.cond_shape)
        if not callable(self.net):
            raise ValueError(f"net is a {type(self.net).__name__}; it must be a network, net(u, c_noise, cond) -> F")
        object.__setattr__(self, "modules", listed(self.modules))
        unconditional = not self.classes and self.cond_shape is None
        takes = _takes(self.net)
        if takes not in ("three", "two" if unconditional else "three"):
            raise ValueError(
                f"net is called as net(u, c_noise, cond){' or net(u, c_noise)' if unconditional else ''}, and "
                f"{type(self.net).__name__} cannot be: wrap it, ScoreModel(net=lambda u, c_noise, cond: net(..), ..)"
            )
        if takes == "two":
            two = TwoModule(self.net) if isinstance(self.net, nn.Module) else TwoFunction(self.net)
            object.__setattr__(self, "net", two)

    @property
    def networks(self) -> tuple[object, ...]:
        """The network, and the modules that it was said to run."""
        return (self.net, *self.modules)


class TwoModule(nn.Module):
    """A module of two arguments, ``net(u, c_noise)``, called with three."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def forward(self, u: Tensor, c_noise: Tensor, cond: Condition = None) -> Tensor:
        return self.net(u, c_noise)


@dataclass(frozen=True)
class TwoFunction:
    """A function of two arguments, ``net(u, c_noise)``, called with three."""

    net: Callable[[Tensor, Tensor], Tensor]

    def __call__(self, u: Tensor, c_noise: Tensor, cond: Condition = None) -> Tensor:
        return self.net(u, c_noise)


def listed(modules: Any) -> tuple[nn.Module, ...]:
    """Return the modules that a model names, or the one, as a tuple; ValueError for anything else."""
    found = (modules,) if isinstance(modules, nn.Module) else modules
    if not isinstance(found, tuple | list) or not all(isinstance(m, nn.Module) for m in found):
        raise ValueError(f"modules = {short(modules)}: each must be an nn.Module that the network's function runs")
    return tuple(found)


def _takes(net: Callable[..., Any]) -> str:
    """Return how many arguments a network takes: three, two or "other"; three where nobody can look."""
    try:
        signature = inspect.signature(net.forward if isinstance(net, nn.Module) else net)
    except (TypeError, ValueError):
        return "three"
    for n, name in ((3, "three"), (2, "two")):
        try:
            signature.bind(*range(n))
        except TypeError:
            continue
        return name
    return "other"


def evaluate(model: ScoreModel, u: Tensor, c_noise: Tensor, cond: Told, as_left: bool = False) -> Tensor:
    """Call the network of a model: the one place where that happens; return F, [N, D], in memory that is not u's.

    Args:
        u: c_in x, [N, *shape] in the network's dtype.
        c_noise: labels, [N] or [1] for all; of a network of two times [N, 2] or [1, 2].
        cond: of each line; of Several, F is the weighted sum of as many calls.
        as_left: whether F may stay [N, C, ...] where its channels lie last and a row reads it so (abi.CHANNELS).

    Raises:
        ValueError: an output that is no tensor, or of another shape, kind or device; a network that uses labels as
            indices; or one of two times without the end of a step, which only the rows of a plan have.
    """
    if model.two_times and c_noise.ndim != 2:
        raise ValueError(one_step_only("what evaluates it here knows of no step's end"))
    if isinstance(cond, Several):
        return cond.sum(lambda c: [evaluate(model, u.clone(), c_noise, c)])[0]  # which a network may write to
    n, own = u.shape[0], dict(cond) if isinstance(cond, dict) else cond  # a dict that it may take names out of
    try:
        F = model.net(u, c_noise.expand(n, -1) if c_noise.ndim == 2 else c_noise.expand(n), own)
    except (RuntimeError, IndexError) as error:
        if not any(said in str(error) for said in NO_INDEX):
            raise
        raise ValueError(
            f"the network uses a tensor of floats as an index: {error}. If that is c_noise, which is {c_noise.dtype}, "
            "and the label a table's index, wrap it: fastscore.adapters.wrap(net, 'x, round(t)')"
        ) from error
    F = apart(checked(F, u), u)
    if (F.ndim == 2 and F.is_contiguous()) or (as_left and 1 < channels_last(F) <= abi.CHANNELS):
        return F
    return F.reshape(n, -1).contiguous()  # kernels read it by one offset


def one_step_only(why: str) -> str:
    """Return what is said where a network of two times cannot be used."""
    return f"this network maps between two times (two_times), and {why}; use a Sampler with DDIM, Renoise or the like"


def checked_linear(schedule: Schedule) -> None:
    """Raise ValueError unless alpha and sigma are linear in t, so that a constant flow is a constant D and eps."""
    t = np.linspace(schedule.t_end, schedule.T, 5)
    for rate in (schedule.dalpha(t), schedule.dsigma(t)):
        if not np.ptp(rate) <= 1e-9 * np.abs(rate).max():
            raise ValueError(
                f"two_times with prediction 'flow' is x_r = x_t - (t - r) u, where alpha and sigma are linear in t; on "
                f"{type(schedule).__name__} they are not: use schedule=Flow(), or prediction 'x0', 'eps' or 'v'"
            )


def checked(F: Any, u: Tensor, part: str = "") -> Tensor:
    """Return an output of a network, if it is one for the input u.

    Raises:
        ValueError: it is not; the message says what to wrap the network in.
    """
    what = f"the network returned{f' for {part!r}' if part else ''}"
    if not isinstance(F, Tensor):
        way = "a tensor: wrap it, ScoreModel(net=lambda u, c_noise, cond: "
        if isinstance(F, tuple | list):
            raise ValueError(f"{what} a {type(F).__name__} of {len(F)}; it must return {way}net(u, c_noise, cond)[0])")
        if isinstance(getattr(F, "sample", None), Tensor):
            raise ValueError(f"{what} a {type(F).__name__}; it must return {way}net(u, c_noise, cond).sample)")
        if F is None:
            raise ValueError(f"{what} None; it must return a tensor (does its forward end in a return?)")
        raise ValueError(f"{what} a {type(F).__name__}; it must return {way}torch.as_tensor(net(u, c_noise, cond)))")
    if F.shape != u.shape:
        raise ValueError(f"{what} {tuple(F.shape)} for an input of {tuple(u.shape)}")
    if not F.is_floating_point():
        raise ValueError(f"{what} {F.dtype}; it must return real floating-point numbers")
    if F.device != u.device:
        raise ValueError(f"{what} a tensor on {F.device} for an input on {u.device}; move the network there")
    return F


def apart(F: Tensor, *inputs: Tensor) -> Tensor:
    """Return F, copied if a network that works in place handed back the memory of an input: rows overwrite that."""
    memory = F.untyped_storage()._cdata
    return F.clone() if any(memory == u.untyped_storage()._cdata for u in inputs) else F
