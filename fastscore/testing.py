"""Checks for code that must be captured: nothing in it may make the host wait for the device."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

aten = torch.ops.aten
_INDEX = {
    getattr(getattr(aten, name), overload)
    for name, overload in (("index", "Tensor"), ("index_put_", "default"), ("index_put", "default"))
}
_SHAPED_BY_VALUES = {aten.repeat_interleave.Tensor, aten.bincount.default, aten._linalg_check_errors.default}
_NO_KERNEL = {aten.empty, aten.empty_strided, aten.empty_like, aten.new_empty, aten.new_empty_strided, aten.lift_fresh}
_ON_THE_HOST = {
    Tensor.tolist, Tensor.numpy, Tensor.cpu, Tensor.item, Tensor.__array__, Tensor.__bool__, Tensor.__float__,
    Tensor.__int__, Tensor.__index__, Tensor.__repr__, Tensor.__format__, Tensor.__contains__, torch.cuda.synchronize,
}  # fmt: skip


class HostSyncError(RuntimeError):
    """The host would have read a device value, or drawn or copied one."""


class Capturable(TorchDispatchMode):
    """Context in which an operation that no CUDA graph can hold raises HostSyncError before it is done.

    It is told before a capture: one that breaks may leave the process's allocator and streams in a state of their own.

    Args:
        device: where the work is; elsewhere, on a card, a value may be read and a number made a tensor. A CPU stands
            for a card, so that nothing of this is allowed there.

    Attributes:
        read: tensors that the work found, by where their memory begins; a graph knows them by that address alone.
        launches: kernels, about: operations that are no views.
    """

    def __init__(self, device: torch.device | None = None) -> None:
        super().__init__()
        self.device = device or torch.device("cpu")
        self.read: dict[int, Tensor] = {}
        self.launches = 0
        self._made: set[int] = set()  # addresses; what is freed of them can only be used by what is made here

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        given = [t for t in tree_leaves((args, kwargs)) if isinstance(t, Tensor)]
        named = kwargs.get("device")
        here = any(t.device.type == self.device.type for t in given) or (
            named is not None and torch.device(named).type == self.device.type
        )
        if here or self.device.type == "cpu":
            self._refuse(func, args, kwargs)
        out = func(*args, **kwargs)
        if here or self.device.type == "cpu":
            self._note(func, given, out)
        return out

    def _note(self, func: Any, given: list[Tensor], out: Any) -> None:
        places = [t.untyped_storage().data_ptr() for t in given]
        for place, t in zip(places, given, strict=True):
            if place not in self._made and t.device.type == self.device.type:
                self.read.setdefault(place, t.detach())
        outs = [t.untyped_storage().data_ptr() for t in tree_leaves(out) if isinstance(t, Tensor)]
        fresh = set(outs) - set(places)
        self._made |= fresh
        schema = getattr(func, "_schema", None)
        changes = schema is not None and schema.is_mutable
        self.launches += changes or (bool(fresh) and getattr(func, "overloadpacket", func) not in _NO_KERNEL)

    def _refuse(self, func: Any, args: Any, kwargs: dict[str, Any]) -> None:
        if func in _INDEX:  # integer indices are fine, masks have a size that only the device knows
            masks = [i for i in args[1] or () if isinstance(i, Tensor) and i.dtype in (torch.bool, torch.uint8)]
            if masks:
                raise HostSyncError(f"{func}: the size of a mask is a device value")
        elif {torch.Tag.data_dependent_output, torch.Tag.dynamic_output_shape} & set(func.tags):
            raise HostSyncError(f"{func}: its result is needed on the host")
        if func in _SHAPED_BY_VALUES:
            raise HostSyncError(f"{func}: its shape or success is a device value")
        if torch.Tag.nondeterministic_seeded in func.tags:
            raise HostSyncError(f"{func}: draws from a generator; noise comes from counters")
        lifted = func is aten.lift_fresh.default and args[0].device.type == self.device.type
        if lifted or (func is aten.scalar_tensor.default and self.device.type == "cpu"):
            raise HostSyncError(f"{func}: makes a tensor of a Python number, a copy from the host")
        if func in (aten._to_copy.default, aten.copy_.default):
            source = args[0] if func is aten._to_copy.default else args[1]
            target = kwargs.get("device") if func is aten._to_copy.default else args[0].device
            if target is not None and torch.device(target).type != source.device.type:
                raise HostSyncError(f"{func}: copies from {source.device} to {target}")


class _NoFunctionSync(TorchFunctionMode):
    """On CPU tensors tolist, numpy and print never reach the dispatcher."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func in _ON_THE_HOST:
            raise HostSyncError(f"{getattr(func, '__name__', func)}: reads a device value on the host")
        return func(*args, **(kwargs or {}))


class no_host_sync:
    """Context in which whatever would stall or break a capture raises HostSyncError, on any device."""

    def __enter__(self) -> no_host_sync:
        self._modes = (_NoFunctionSync(), Capturable())
        for mode in self._modes:
            mode.__enter__()
        return self

    def __exit__(self, *error: Any) -> None:
        for mode in reversed(self._modes):
            mode.__exit__(*error)
