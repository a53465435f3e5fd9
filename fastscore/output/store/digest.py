"""What samples depend on, as a hash: two runs are the same only if all of it is."""

from __future__ import annotations

import hashlib
import types
from collections.abc import Mapping
from dataclasses import fields, is_dataclass
from typing import Any

import numpy as np
import torch
from torch import nn

from fastscore.ops.machine import raw

# What torch keeps in a module about itself, beside weights and buffers: no user's attribute.
_INTERNAL = {*vars(nn.Module()), "_is_torch_compile"} - {"_parameters", "_buffers"}
_OURS = ("torch", "fastscore")  # whose code is known by its version


def digest(value: Any) -> str:
    """Return the sha256 of a value: of tensors the bytes, of modules, dataclasses and functions all that they hold.

    A function is known by its code, the values that it closes over and the global tensors, modules and plain values
    that it names, not by what it calls; a module by weights, buffers, attributes and hooks, and the code of a forward
    that is neither torch's nor ours. What cannot be told apart counts as different.
    """
    state = hashlib.sha256()
    _feed(state, value, set())
    return state.hexdigest()


def described(value: Any) -> Any:
    """Return a plain value as it is, settings of such values as they print, anything else as its kind and digest."""
    if value is None or isinstance(value, bool | int | float | str):
        return value
    text = repr(value) if is_dataclass(value) and _plain(value) else ""
    return text if 0 < len(text) < 300 else f"{type(value).__name__} {digest(value)[:16]}"


def _plain(value: Any) -> bool:
    """Return whether a value's text says all of it."""
    if is_dataclass(value) and not isinstance(value, type):
        return all(f.repr and _plain(getattr(value, f.name)) for f in fields(value))
    if isinstance(value, tuple):
        return all(map(_plain, value))
    return value is None or type(value) in (bool, int, float, str)


def _feed(state: Any, value: Any, above: set[int]) -> None:
    """Add a value to a hash; one that holds itself is named where it comes again."""

    def say(*words: object) -> None:
        state.update("\0".join([*map(str, words), ""]).encode())

    if id(value) in above:
        return say("again")
    above = above | {id(value)}
    if value is None or isinstance(value, bool | int | float | complex | str | bytes | torch.dtype | torch.device):
        return say(type(value).__name__, repr(value))
    if isinstance(value, torch.Tensor):
        say("tensor", value.dtype, tuple(value.shape))
        return state.update(raw(value))
    if isinstance(value, np.ndarray | np.generic):
        array = np.ascontiguousarray(value)
        say("array", array.dtype, array.shape)
        return state.update(array.tobytes() if array.dtype != object else repr(array.tolist()).encode())
    if isinstance(value, nn.Module):
        parts = dict(getattr(value, "_orig_mod", value).named_modules(remove_duplicate=False))
        say("module", len(parts))
        for name, part in parts.items():
            _feed(state, (name, type(part), _held(part)), above)
        return None
    if isinstance(value, Mapping):
        say("mapping", len(value))
        for key in sorted(value, key=digest):
            _feed(state, (key, value[key]), above)
        return None
    if isinstance(value, list | tuple | range):
        say("sequence", len(value))
        for part in value:
            _feed(state, part, above)
        return None
    if isinstance(value, set | frozenset):
        return _feed(state, sorted(digest(part) for part in value), above)
    if isinstance(value, types.MethodType):
        return _feed(state, (value.__func__, value.__self__), above)
    if isinstance(value, types.FunctionType):
        value = getattr(value, "_torchdynamo_orig_callable", value)  # of one that torch compiles
        say("function", value.__qualname__)
        cells = [cell.cell_contents for cell in value.__closure__ or () if cell != types.CellType()]
        held = (value.__code__, cells, value.__defaults__, value.__kwdefaults__, _named(value))
        return _feed(state, held, above)
    if isinstance(value, types.CodeType):
        return _feed(state, (value.co_code, value.co_names, value.co_consts), above)
    if isinstance(value, types.BuiltinFunctionType) and not isinstance(value.__self__, types.ModuleType | None):
        return _feed(state, (value.__name__, value.__self__), above)
    if isinstance(value, types.ModuleType):
        return say("name", value.__name__)
    if isinstance(value, type) or (callable(value) and hasattr(value, "__qualname__")):
        say("name", getattr(value, "__module__", ""), value.__qualname__)
        return _feed(state, getattr(value, "__wrapped__", None), above) if not isinstance(value, type) else None
    say("object", type(value).__module__, type(value).__qualname__)
    if is_dataclass(value):
        return _feed(state, {f.name: getattr(value, f.name) for f in fields(value)}, above)
    return _feed(state, _pickled(value), above)


def _held(module: nn.Module) -> list[Any]:
    """Return what one module holds, without the modules in it."""
    kind = type(module)
    own = None if kind.__module__.split(".")[0] in _OURS else kind.forward
    hooks = [*module._forward_pre_hooks.values(), *module._forward_hooks.values()]
    plain = {} if hasattr(module, "_orig_mod") else {k: v for k, v in vars(module).items() if k not in _INTERNAL}
    return [plain, own, hooks]


def _named(function: types.FunctionType) -> dict[str, Any]:
    """Return the values that a function finds by name where it stands: those that are data."""
    kinds = bool | int | float | complex | str | torch.Tensor | np.ndarray | nn.Module
    codes, names = [function.__code__], set[str]()
    while codes:
        code = codes.pop()
        names |= {*code.co_names}
        codes += [const for const in code.co_consts if isinstance(const, types.CodeType)]
    found = function.__globals__
    return {name: found[name] for name in names if name in found and isinstance(found[name], kinds)}


def _pickled(value: Any) -> Any:
    """Return what an object is made from again; its name in memory, which no other has, if it cannot say that."""
    try:
        made = value.__reduce_ex__(4)
    except Exception:
        return getattr(value, "__dict__", None) or repr(value)
    if isinstance(made, str):
        return made
    return [*made[1:3], *(list(part) for part in made[3:5] if part is not None)]
