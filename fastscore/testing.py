"""Checks for code that must be captured: nothing in it may make the host wait for the device."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

aten = torch.ops.aten
_INDEX = {
    getattr(getattr(aten, name), overload)
    for name, overload in (("index", "Tensor"), ("index_put_", "default"), ("index_put", "default"))
}
_SHAPED_BY_VALUES = {aten.repeat_interleave.Tensor, aten.bincount.default, aten._linalg_check_errors.default}
_ON_THE_HOST = {
    Tensor.tolist, Tensor.numpy, Tensor.cpu, Tensor.item, Tensor.__array__, Tensor.__bool__, Tensor.__float__,
    Tensor.__int__, Tensor.__index__, Tensor.__repr__, Tensor.__format__, Tensor.__contains__, torch.cuda.synchronize,
}  # fmt: skip


class HostSyncError(RuntimeError):
    """The host would have read a device value, or drawn or copied one."""


class _NoDispatchSync(TorchDispatchMode):
    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
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
        if func in (aten.lift_fresh.default, aten.scalar_tensor.default):
            raise HostSyncError(f"{func}: makes a tensor of a Python number, a copy from the host")
        if func in (aten._to_copy.default, aten.copy_.default):
            source = args[0] if func is aten._to_copy.default else args[1]
            target = kwargs.get("device") if func is aten._to_copy.default else args[0].device
            if target is not None and torch.device(target).type != source.device.type:
                raise HostSyncError(f"{func}: copies from {source.device} to {target}")
        return func(*args, **kwargs)


class _NoFunctionSync(TorchFunctionMode):
    """On CPU tensors tolist, numpy and print never reach the dispatcher."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func in _ON_THE_HOST:
            raise HostSyncError(f"{getattr(func, '__name__', func)}: reads a device value on the host")
        return func(*args, **(kwargs or {}))


class no_host_sync:
    """Context in which whatever would stall or break a capture raises HostSyncError, on any device."""

    def __enter__(self) -> no_host_sync:
        self._modes = (_NoFunctionSync(), _NoDispatchSync())
        for mode in self._modes:
            mode.__enter__()
        return self

    def __exit__(self, *error: Any) -> None:
        for mode in reversed(self._modes):
            mode.__exit__(*error)
