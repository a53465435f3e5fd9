"""What a network was when something was made of it: a later change of any kind is seen, whatever made it.

A package holds the weights as constants, a recorded graph their addresses. Version counters do not tell: they miss
``p.data.add_()``. So values are compared with a copy, bit by bit, which costs one read of both.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

_SIMPLE = (bool, int, float, complex, str, bytes, type(None), torch.dtype, torch.device)
_SAME_SIZE = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
_KEPT_BY_TORCH = {"training", "_parameters", "_buffers", "_modules"}  # of a module: told otherwise, or not its nature


class Snapshot:
    """A network at one moment.

    Args:
        net: parameters, buffers, tensors that are plain attributes, other plain attributes, hooks and submodules count.
        by: what of a tensor counts: "values", of which a copy is kept, for what was made with them; "objects", for
            what holds the tensor itself.
    """

    def __init__(self, net: nn.Module, by: str) -> None:
        self.net, self.by = net, by
        self.structure, tensors = _read(net, by)
        self.values = [t.detach().clone() for t in tensors] if by == "values" else []

    def holds(self) -> bool:
        """Return whether the network is still what it was, to the bit."""
        structure, tensors = _read(self.net, self.by)
        if structure != self.structure:
            return False
        flags = []  # on a device, which is waited for once
        for a, b in zip(tensors, self.values, strict=False):  # there are no values of objects
            same = _equal(a, b)
            if same is False:
                return False
            if isinstance(same, Tensor):
                flags.append(same)
        return not flags or bool(torch.stack(flags).all())

    def alike(self) -> bool:
        """Return whether the network is what it was but for the values of its tensors."""
        return _read(self.net, self.by)[0] == self.structure


def attributes(net: nn.Module) -> list[tuple[str, ...]]:
    """Return the plain attributes of each module as text that is the same in every process: numbers, names, flags."""
    return [
        (name, key, repr(value))
        for name, m in net.named_modules()
        for key, value in sorted(vars(m).items())
        if key not in _KEPT_BY_TORCH and isinstance(value, (*_SIMPLE, tuple)) and _timeless(value)
    ]


def tensors(net: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """Yield names and tensors that modules hold: parameters, buffers, and those that are plain attributes."""
    for name, m in net.named_modules(remove_duplicate=False):
        for key, value in _own(m):
            yield f"{name}.{key}", value


def frozen(modules: Iterable[nn.Module]) -> list[Any]:
    """Return what a recording of these modules, submodules among them, depends on: where tensors lie, and the rest."""
    return [item for m in modules for item in _structure(m, "addresses")]


def _own(m: nn.Module) -> Iterator[tuple[str, Tensor]]:
    for group in (m._parameters, m._buffers, vars(m)):
        for key, value in group.items():
            if isinstance(value, Tensor):
                yield key, value


def _read(net: nn.Module, by: str) -> tuple[list[Any], list[Tensor]]:
    """Return what tells a network apart but for the values of its tensors, and these."""
    structure: list[Any] = []
    for name, m in net.named_modules(remove_duplicate=False):
        structure += [name, *_structure(m, by)]
    return structure, [t for _, t in tensors(net)]


def _structure(m: nn.Module, by: str) -> list[Any]:
    structure: list[Any] = [type(m)]
    for key, value in vars(m).items():
        if key not in _KEPT_BY_TORCH and not isinstance(value, Tensor) and not _empty(value):
            structure += [key, _plain(value)]
    for key, t in _own(m):
        if is_lazy(t):  # which has no shape yet
            structure += [key, id(t)]
            continue
        structure += [key, t.dtype, t.shape, t.device, t.is_inference()]
        if by != "values":
            structure += [id(t)] if by == "objects" else [t.data_ptr(), t.stride()]
    return structure


def _plain(value: Any) -> Any:
    """Return a value that equals itself later exactly if nothing of it changed; an object without one is its id."""
    if isinstance(value, float):
        return value.hex()  # NaN equals itself, 0.0 is not -0.0
    if isinstance(value, _SIMPLE):
        return value
    if isinstance(value, dict):
        return [(_plain(k), _plain(v)) for k, v in value.items()] if value else ()
    if isinstance(value, list | tuple):
        return [_plain(v) for v in value]
    return id(value)


def _empty(value: Any) -> bool:
    return isinstance(value, dict) and not value


def _timeless(value: Any) -> bool:
    return all(map(_timeless, value)) if isinstance(value, tuple) else isinstance(value, _SIMPLE)


def _equal(a: Tensor, b: Tensor) -> bool | Tensor:
    """Return whether two tensors of one shape and dtype have the same bits; NaN is itself here.

    On another device than the CPU that is a flag on it, so that nobody waits for each tensor.
    """
    if a.layout != torch.strided or a.is_quantized:
        return False
    if a.is_complex():
        a, b = torch.view_as_real(a.resolve_conj()), torch.view_as_real(b.resolve_conj())
    a, b = (v.detach().view(_SAME_SIZE[v.element_size()]) for v in (a, b))
    if a.device.type == "cpu":  # a third of torch.equal's time
        return bool((a.numpy() == b.numpy()).all())
    return (a == b).all()
