"""Prepared networks: called as networks are, and never stale."""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable, Generator, Iterable
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from fastscore.model.condition_shapes import Condition, tensors_of
from fastscore.model.score import ScoreModel
from fastscore.network import arithmetic
from fastscore.network.jit import Net
from fastscore.network.stored import Stored
from fastscore.network.surroundings import undisturbed
from fastscore.network.trial import three
from fastscore.network.watch import Snapshot

Say = Callable[[str], None]


@dataclass(frozen=True)
class Numerics:
    """The arithmetic of a network as it is evaluated; part of what its samples are a function of.

    Attributes:
        dtype: "own" (as the network is), "fp32", "tf32" or "bf16".
        compile: "off", "package" (AOTInductor, on a CPU), "full" or "regional" (torch.compile).
        error: relative error of the score against the network itself in true float32, the largest over the schedule.
        threads: that the package was compiled for.
        key: of the package: weights, code, shapes, versions and processor; of what torch.compile made, without weights.
        lines: samples that the package evaluates at a time; None for the whole micro-batch.
        residual: in bf16 on CUDA, the dtype of residual sums, "bf16" or "fp32".
        tf32: float32 products that CUDA rounds to TF32: "off", "matmul", "convolutions" or "both"; None on a CPU.
        instead: why it is not the faster arithmetic that "auto" would have taken.
    """

    dtype: str = "own"
    compile: str = "off"
    error: float | None = None
    threads: int | None = None
    key: str | None = None
    lines: int | None = None
    residual: str | None = None
    tf32: str | None = None
    instead: str | None = None


class Prepared:
    """A prepared network, which takes inputs of one kind only; called as ``net(u, c_noise, cond)``.

    A package computes some lines at a time, ``numerics.lines``, and any number of them in turns: what it makes of one
    sample depends neither on how many there are nor on the micro-batch.

    It stands for the network that it was made of. Once that has changed, in weights, buffers or structure and in
    whatever way, a run makes it again first, and says so.

    Args:
        call: the compiled network.
        example: inputs: u [N, *shape], c_noise [N], both float32, and int64 labels [N] if it has classes.
        numerics: how it computes.

    F lies as the network leaves it: images with their channels last, where the recipe has them so.
    """

    def __init__(self, call: Callable[..., Tensor], example: tuple[Tensor, ...], numerics: Numerics) -> None:
        self.call, self.inputs, self.numerics = call, _kinds(example), numerics
        self.origin: Origin | None = None
        self.seen: Snapshot | None = None
        self.held = False

    def follow(self, origin: Origin) -> Prepared:
        """Return it, standing for the network of ``origin`` from now on."""
        assert isinstance(origin.model.net, nn.Module)
        self.origin, self.seen = origin, Snapshot(origin.model.net, "values")
        return self

    def refresh(self) -> None:
        """Make it again if the network that it stands for has changed."""
        if self.origin is None or self.seen is None or self.seen.holds():
            return
        call, start = self.call, time.perf_counter()
        net = self.origin.made(call if isinstance(call, Stored) and self.seen.alike() else None)
        if isinstance(net, Prepared):
            self.call, self.numerics, mode = net.call, net.numerics, f"compiled in {net.numerics.dtype}"
        else:  # it runs as it is now, for a reason that was said
            self.numerics, mode = Numerics(tf32=self.numerics.tf32), "used as it is"
            self.call = lambda *inputs: net(*three(inputs))
        self.follow(self.origin)
        if self.call is call:  # it has read the new weights, and nothing was compiled
            return
        (self.origin.say or warn)(
            f"the network has changed since it was compiled; {mode} again in {time.perf_counter() - start:.1f} s "
            "(network='own' needs no such time)"
        )

    @contextmanager
    def steady(self, look: bool = True) -> Generator[None]:
        """Stand for the network as it is now, or if not to ``look`` as it was, and look no more until the end."""
        if look and not self.held:
            self.refresh()
        held, self.held = self.held, True
        try:
            yield
        finally:
            self.held = held

    def __call__(self, u: Tensor, c_noise: Tensor, cond: Condition = None) -> Tensor:
        """Evaluate; F [N, *shape] float32."""
        if not self.held:
            with self.steady(), undisturbed(place=u.device, tf32=self.tf32):
                return self(u, c_noise, cond)
        inputs = (u, c_noise, *tensors_of(cond))
        n, lines = len(u), self.numerics.lines
        if (kinds := _kinds(inputs)) != self.inputs and (
            lines is None or [v[1:] for v in kinds] != [v[1:] for v in self.inputs] or {len(v) for v in inputs} != {n}
        ):
            raise ValueError(
                f"the network was prepared for inputs {_text(self.inputs)}, not {_text(kinds)}; "
                "prepare it at the sampler's batch, or sample with network='own'"
            )
        if lines in (None, n):
            return self.call(*map(_as_compiled, inputs))
        parts = [[_as_compiled(_filled(v[at : at + lines], lines)) for v in inputs] for at in range(0, n, lines)]
        return torch.cat([self.call(*part) for part in parts])[:n]

    @property
    def tf32(self) -> bool | None:
        """Whether it multiplies float32 in TF32; None where torch's settings say that, and on a CPU."""
        return {"both": True, "off": False}.get(self.numerics.tf32 or "")

    def needed(self, count: int) -> int:
        """Return how many lines must be computed where the first ``count`` count."""
        lines = self.numerics.lines
        return -(-count // lines) * lines if lines else self.inputs[0][0]

    def __reduce__(self) -> tuple[Any, ...]:
        """Travel as what it was made of: code compiled for one process or machine is no other's."""
        if self.origin is None:
            raise TypeError("this prepared network stands for no network that it could be made of again")
        return remade, (replace(self.origin, say=None),)


@dataclass(frozen=True)
class Origin:
    """What a prepared network was made of, and how: enough to make it again."""

    model: ScoreModel
    batch: int
    device: torch.device
    network: str
    say: Say | None
    make: Callable[..., ScoreModel]

    def made(self, stored: Stored | None = None) -> Net:
        """Make it: a Prepared, or the network as it is where it cannot be prepared.

        Args:
            stored: what was compiled of this network when it had other weights.
        """
        return self.make(self.model, self.batch, self.device, self.network, self.say, stored=stored).net


def remade(origin: Origin) -> Net:
    """Return the prepared network of an origin that arrived from elsewhere."""
    return origin.made()


def numerics(net: Net, network: str = "own", place: torch.device | None = None) -> Numerics:
    """Return how a network is evaluated on a device, that ``prepare`` returned for this choice."""
    if isinstance(net, Prepared):
        return net.numerics
    tf32 = arithmetic.tf32() if place is not None and place.type == "cuda" else None
    return Numerics(compile={"compile": "full", "regional": "regional"}.get(network, "off"), tf32=tf32)


def tf32_of(networks: Iterable[object]) -> bool | None:
    """Return whether the prepared ones among networks multiply float32 in TF32; None if none of them says."""
    return next((net.tf32 for net in networks if isinstance(net, Prepared) and net.tf32 is not None), None)


def _kinds(inputs: tuple[Tensor, ...]) -> list[tuple[Any, ...]]:
    return [(len(v) if v.ndim else 0, v.dtype, *v.shape[1:]) for v in inputs]


def _text(kinds: list[tuple[Any, ...]]) -> str:
    return ", ".join(f"{str(kind).removeprefix('torch.')}{[n, *shape]}" for n, kind, *shape in kinds)


def _filled(v: Tensor, lines: int) -> Tensor:
    """Return a tensor of so many lines, the last repeated."""
    return v if len(v) == lines else torch.cat([v, v[-1:].expand(lines - len(v), *v.shape[1:])])


def _as_compiled(v: Tensor) -> Tensor:
    """Return a tensor in memory as compiled code was shown it: expanded values written out, at a whole cache line.

    Libraries of a CPU may add in another order where memory begins elsewhere.
    """
    v = v.contiguous()
    return v if v.is_cuda or v.data_ptr() % 64 == 0 else v.clone()


def warn(line: str) -> None:
    """Say it as a warning."""
    warnings.warn(line, stacklevel=3)
