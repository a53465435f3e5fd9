"""The network path: a score network made as fast as the machine allows, at a checked cost in accuracy.

Two numerics besides the network's own: "fp32" is the network compiled, whose roundings differ in the last
digits; "bf16" also runs its heavy layers on bfloat16 operands (see network/bf16.py).

Neither is taken on trust. Before its first evaluation a prepared network is compared with the original on
noisy inputs over the whole schedule, in every process that uses it, and is used only within LIMIT.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
import torch
from torch import Tensor, nn

from fastscore.execution import Execution, evaluating
from fastscore.model.score import ScoreModel
from fastscore.network import package
from fastscore.network.bf16 import Traced, native_bf16
from fastscore.network.jit import Net, compiled, has_compiler
from fastscore.ops.noise import NoiseKey
from fastscore.process.grid import arctan
from fastscore.process.parametrization import components, convert

# The largest relative error over the schedule: of the network's output, and of the score made from it.
LIMIT = {"fp32": (1e-4, math.inf), "bf16": (math.inf, 1e-2)}
SMALL = 250_000  # parameters; compiling less costs more than it saves

Say = Callable[[str], None]


@dataclass(frozen=True)
class Numerics:
    """The arithmetic of a network as it is evaluated; part of what its samples are a function of.

    Attributes:
        dtype: "own" (as the network is), "fp32" or "bf16".
        compile: "off", "package" (AOTInductor, on a CPU), "full" or "regional" (torch.compile).
        error: relative error of the score against the network itself, the largest over the schedule.
        threads: that the package was compiled for.
        key: of the package: weights, code, shapes, versions and processor.
    """

    dtype: str = "own"
    compile: str = "off"
    error: float | None = None
    threads: int | None = None
    key: str | None = None


class Prepared:
    """A prepared network, which takes inputs of one kind only; called as ``net(u, c_noise, cond)``.

    Args:
        call: the compiled network.
        example: its inputs: u [N, *shape], c_noise [N], both float32, and int64 labels [N] if it has classes.
        numerics: how it computes.
    """

    def __init__(self, call: Callable[..., Tensor], example: tuple[Tensor, ...], numerics: Numerics) -> None:
        self.call, self.inputs, self.numerics = call, _kinds(example), numerics

    def __call__(self, u: Tensor, c_noise: Tensor, cond: Tensor | None = None) -> Tensor:
        """Evaluate; F [N, *shape] float32."""
        inputs = (u, c_noise) if cond is None else (u, c_noise, cond)
        if _kinds(inputs) != self.inputs:
            raise ValueError(
                f"the network was prepared for inputs {', '.join(self.inputs)}, not {', '.join(_kinds(inputs))}; "
                "prepare it at the sampler's batch, or sample with network='own'"
            )
        # Compiled code reads memory as it was shown it: a label that is expanded must be written out.
        return self.call(*(v.contiguous() for v in inputs))


def numerics(net: Net, network: str = "own") -> Numerics:
    """Return how a network is evaluated, that ``prepare`` returned for this choice."""
    if isinstance(net, Prepared):
        return net.numerics
    return Numerics(compile={"compile": "full", "regional": "regional"}.get(network, "off"))


def prepare(
    model: ScoreModel,
    batch: int = 64,
    device: torch.device | str | None = None,
    network: str = "auto",
    say: Say | None = None,
) -> ScoreModel:
    """Return the model with its network prepared for sampling at one micro-batch.

    On a CPU the network is compiled ahead of time and the package kept (see network/package.py), so that
    the next process needs neither a compiler nor the time. On CUDA it runs through torch.compile.

    Args:
        model: for "fp32" and "bf16" its network must be an nn.Module with float32 weights. It is neither moved nor
            changed. Any other network stays as it is, and the reason is said.
        batch: micro-batch; a network compiled ahead of time takes no other.
        device: that it runs on; where its parameters live if left out.
        network: "own" does nothing; "fp32" compiles ahead of time; "bf16" also runs heavy layers in bfloat16; "auto"
            is bf16 on a CPU with bfloat16 arithmetic if its error is within LIMIT and fp32 otherwise, and
            own for networks under SMALL parameters, where there is no compiler, and on CUDA, where
            nothing has been measured; "compile" and "regional" are torch.compile's, without a check.
        say: called with one line when something takes long or does not work; warnings.warn if left out.

    Raises:
        ValueError: an unknown choice, a network that is prepared already, or one on another device.
    """
    say, place = say or _warn, Execution(device, batch, network=network).on(model.net).place
    if network in ("own", "compile", "regional"):
        return model if network == "own" else replace(model, net=compiled(model.net, network, place))
    if isinstance(model.net, Prepared):
        raise ValueError("the network is prepared already; use network='own'")
    if model.cond_shape is not None:
        reason = f"{network} does not know what conditioning tensors to try"
        return model if network == "auto" else _as_it_is(model, say, reason)
    net = model.net
    if not isinstance(net, nn.Module):
        return model if network == "auto" else _as_it_is(model, say, f"{network} needs an nn.Module")
    kinds = sorted({str(p.dtype) for p in net.parameters() if p.is_floating_point()})
    small = sum(p.numel() for p in net.parameters()) < SMALL
    if network == "auto" and (small or place.type == "cuda" or kinds != ["torch.float32"]):
        return model
    if kinds != ["torch.float32"]:
        return _as_it_is(model, say, f"{network} needs float32 weights, not {' and '.join(kinds) or 'none'}")
    with evaluating(net):
        return _ahead_of_time(model, Trial(model, net, batch, place), network, say)


def _ahead_of_time(model: ScoreModel, trial: Trial, network: str, say: Say) -> ScoreModel:
    """Return the model with the first of the wanted numerics that its network can be compiled in, or as it is."""
    reason = ""
    for kind in [network] if network != "auto" else ["bf16", "fp32"] if native_bf16() else ["fp32"]:
        try:
            return replace(model, net=(_packaged if trial.device.type == "cpu" else _jit)(trial, kind, say))
        except Inexact as error:
            reason = str(error)
        except Unfit as error:
            reason = str(error)
            break
    return _as_it_is(model, say, reason)


class Unfit(Exception):
    """A network cannot be prepared; the message says why."""


class Inexact(Unfit):
    """A prepared network differs from the original by more than LIMIT."""


class Trial:
    """Noisy inputs over the whole schedule, and what the network itself makes of them.

    x_t = alpha D + sigma eps with D ~ N(0, sigma_data^2), at the times of an arctan grid,
    one a sample; as many micro-batches as the grid needs.
    """

    def __init__(self, model: ScoreModel, net: nn.Module, batch: int, device: torch.device) -> None:
        self.model, self.net, self.device = model, net, device
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
        """Outputs of the network itself, [batch, D] a micro-batch."""
        return [self.net(*_three(inputs)).flatten(1) for inputs, _, _ in self.micro_batches()]

    @torch.no_grad()
    def errors(self, call: Net) -> Tensor:
        """Return the relative errors of a call, of its output and of the score, [2, samples]."""
        results = []
        for (inputs, px, q), reference in zip(self.micro_batches(), self.expected, strict=True):
            difference = call(*_three(inputs)).flatten(1) - reference
            results.append(torch.stack([_ratio(difference, reference), _ratio(q * difference, px + q * reference)]))
        return torch.cat(results, dim=1)

    def checked(self, call: Net, kind: str) -> float:
        """Return the error of the score; raise Inexact if one is above its limit or not a number."""
        errors = self.errors(call).amax(dim=1).tolist()
        for value, limit, quantity in zip(errors, LIMIT[kind], ("output", "score"), strict=True):
            if not value <= limit:
                raise Inexact(f"in {kind} the network's {quantity} errs by {value:.2g}, above {limit:g}")
        return float(f"{errors[1]:.3g}")


def _packaged(trial: Trial, kind: str, say: Say) -> Prepared:
    """Return the network as a package: the one that is kept, or a new one."""
    key = package.key_of(trial.net, trial.shape, kind)

    def prepared(call: Callable[..., Tensor]) -> Prepared:
        net = Prepared(call, trial.example, Numerics(kind, "package", None, torch.get_num_threads(), key))
        net.numerics = replace(net.numerics, error=trial.checked(net, kind))
        return net

    call = package.load(key, say)
    if call is not None:
        try:
            return prepared(call)
        except (Inexact, RuntimeError) as error:
            say(f"compiled network {key} ignored: {error}")
    if not has_compiler():
        raise Unfit("no C++ compiler (g++ or clang++)")
    traced = Traced(trial.net, kind)
    if kind == "bf16":
        trial.checked(traced, kind)
    say(f"compiling the network for this machine in {kind}, once for these weights and this batch: half a minute")
    try:
        call = package.build(key, traced, trial.example, say)
    except Exception as error:  # torch.export and the compiler fail in every way there is
        raise Unfit(f"torch cannot compile it ({package.one_line(error)})") from error
    return prepared(call)


def _jit(trial: Trial, kind: str, say: Say) -> Prepared:
    """Return the network under torch.compile."""
    try:
        program = torch.export.export(Traced(trial.net, kind), trial.example, strict=False)
        net = Prepared(compiled(program.module(), "compile", trial.device), trial.example, Numerics(kind, "full"))
        net.numerics = replace(net.numerics, error=trial.checked(net, kind))
    except Unfit:
        raise
    except Exception as error:  # as above
        raise Unfit(f"torch cannot compile it ({package.one_line(error)})") from error
    return net


def _three(inputs: tuple[Tensor, ...]) -> tuple[Tensor, Tensor, Tensor | None]:
    u, c_noise, *cond = inputs
    return u, c_noise, cond[0] if cond else None


def _kinds(inputs: tuple[Tensor, ...]) -> list[str]:
    return [f"{str(v.dtype).removeprefix('torch.')}{list(v.shape)}" for v in inputs]


def _ratio(difference: Tensor, reference: Tensor) -> Tensor:
    """Return the relative error of each sample; 0 where both are 0."""
    error, size = difference.double().norm(dim=1), reference.double().norm(dim=1)
    return torch.where(error == 0.0, 0.0, error / size)


def _as_it_is(model: ScoreModel, say: Say, reason: str) -> ScoreModel:
    say(f"the network runs as it is: {reason}")
    return model


def _warn(line: str) -> None:
    warnings.warn(line, stacklevel=3)
