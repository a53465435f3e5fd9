"""Weights and description out of the pickles of EDM and EDM2, of which nothing is executed.

Such a file holds the source text of its network's module, and loading it by pickle runs that text. Here an unpickler
knows nothing but containers, numbers, tensors and empty holders of an object's class name and attributes. Whatever else
a file names is refused before it is looked up.
"""

# pyright: reportPrivateUsage=false

from __future__ import annotations

import io
import json
import pickle
import re
from collections import OrderedDict
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor

from fastscore.adapters.weights import saved
from fastscore.data.limits import fits_memory, regular_file
from fastscore.errors import short
from fastscore.files import write_text
from fastscore.model.folder import write_tensors

TENSORS = 100_000  # of one network; a file may name the same one again and again
_MODULE = re.compile(r"torch\.nn\.modules\.\w+")


@dataclass(frozen=True)
class EDMPickle:
    """What a pickle says of one network.

    Attributes:
        state: its parameters and buffers by name, as ``load_state_dict`` takes them.
        class_name: of its class, in the module that the file carries and that is not run.
        init_args, init_kwargs: what it was made with, as plain values: the architecture is fully in there.
    """

    state: dict[str, Tensor]
    class_name: str
    init_args: list[Any]
    init_kwargs: dict[str, Any]

    def save(self, folder: Path | str) -> None:
        """Write ``model.safetensors`` and ``config.json`` into a folder, which is made."""
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        config = {"class_name": self.class_name, "init_args": self.init_args, "init_kwargs": self.init_kwargs}
        write_tensors(folder / "model.safetensors", self.state)
        write_text(folder / "config.json", json.dumps(config, indent=1) + "\n")


def read_edm_pickle(path: Path | str, which: str = "ema") -> EDMPickle:
    """Return weights and description of a network in a pickle of EDM or EDM2, without executing anything of it.

        saved = read_edm_pickle("edm-cifar10-32x32-cond-vp.pkl")
        net = EDMPrecond(**saved.init_kwargs)  # your own copy of the class
        net.load_state_dict(saved.state)

    Args:
        path: the file.
        which: the name of the network in it.

    Raises:
        ValueError: no such file, one too large for the memory, one that names anything but what is listed in this
            module, a network that it does not hold, or a file that is broken.
    """
    path = regular_file(Path(path))
    fits_memory(3 * path.stat().st_size, path, "convert it on a larger machine")
    try:
        with path.open("rb") as file:
            content = _Reader(file).load()
        found = content.get(which) if isinstance(content, Mapping) else content
        if not isinstance(found, _Holder):
            names = ", ".join(map(str, content)) if isinstance(content, Mapping) else "none"
            raise ValueError(f"it has no network {which!r}; it has {names}")
        state: dict[str, Tensor] = {}
        _collect(found, "", state, ())
        values = found.attributes
        return EDMPickle(
            state, found.class_name, _plain(values.get("_init_args", ())), _plain(values.get("_init_kwargs", {}))
        )
    except pickle.UnpicklingError as error:
        raise ValueError(f"{path}: {error}") from None
    except Exception as error:  # broken files fail in every way there is
        raise ValueError(f"{path} is not a readable pickle of EDM: {short(error, 200)}") from None


class _Holder:
    """An object of a file: the name of its class, and its attributes."""

    def __init__(self, class_name: str = "", attributes: Mapping[str, Any] | None = None) -> None:
        self.class_name, self.attributes = class_name, dict(attributes or {})

    def build(self, state: Any) -> None:
        self.attributes |= state


class _Dtype(_Holder):
    """A dtype of NumPy: its name, and its byte order."""

    def build(self, state: Any) -> None:
        self.attributes["order"] = state[1]

    def of(self, data: bytes) -> np.ndarray:
        if not re.fullmatch(r"[biuf][1248]", self.class_name):
            raise pickle.UnpicklingError(f"a NumPy array of {short(self.class_name)}; only numbers are read")
        order = self.attributes.get("order", "|")
        return np.frombuffer(data, np.dtype(self.class_name).newbyteorder(order if order in "<>" else "="))


class _Array(_Holder):
    """An array of NumPy, filled by its state."""

    values = np.zeros(0)

    def build(self, state: Any) -> None:
        _, shape, dtype, fortran, data = state
        self.values = dtype.of(data).reshape(shape, order="F" if fortran else "C")


class _Reader(pickle._Unpickler):
    """An unpickler that makes containers, numbers, tensors and holders.

    It is the one written in Python: that in C takes an index of its memo at its word and would allocate for it.
    """

    dispatch: Any = dict(pickle._Unpickler.dispatch)

    def find_class(self, module: str, name: str) -> Any:
        if module == "collections" and name == "OrderedDict":
            return OrderedDict
        if module == "dnnlib.util" and name == "EasyDict":
            return dict
        if _MODULE.fullmatch(module) and name.isidentifier():
            return type(name, (_Holder,), {"__new__": _named, "__init__": object.__init__})
        known = (module.replace("numpy._core", "numpy.core"), name)
        if known not in _KNOWN:
            raise pickle.UnpicklingError(f"it wants {short(f'{module}.{name}')}, which is not loaded from a file")
        return _KNOWN[known]

    def load_build(self) -> None:
        """Give the object on the stack its state; by default that may be any object and any attribute."""
        stack: list[Any] = cast(Any, self).stack
        state = stack.pop()
        if not isinstance(stack[-1], _Holder):
            raise pickle.UnpicklingError(f"it gives a state to a {type(stack[-1]).__name__}")
        stack[-1].build(state)

    dispatch[pickle.BUILD[0]] = load_build


def _named(cls: type[_Holder]) -> _Holder:
    """Return an empty holder of an object of torch.nn."""
    made = object.__new__(cls)
    made.class_name, made.attributes = cls.__name__, {}
    return made


def _persistent(meta: Any) -> _Holder:
    """Return the holder of an object whose source lies in ``meta["module_src"]``, which nobody reads."""
    return _Holder(str(meta["class_name"]), meta["state"])


def _storage(data: bytes) -> Any:
    return saved(io.BytesIO(data))


def _tensor(storage: Any, offset: int, size: Any, stride: Any, *rest: Any) -> Tensor:
    """Return a tensor of a storage, which it must lie in; an extent of its own would be memory of its own."""
    flat = torch.empty(0, dtype=storage.dtype).set_(storage)
    if min([offset, *size, *stride], default=0) < 0 or int(np.prod(size, dtype=object)) > len(flat):
        raise pickle.UnpicklingError(f"a tensor of size {short(tuple(size))} in {len(flat)} numbers")
    return flat.as_strided(size, stride, offset).clone()


def _parameter(data: Tensor, *rest: Any) -> Tensor:
    return data


def _scalar(dtype: _Dtype, data: bytes) -> Any:
    return dtype.of(data)[0].item()


_KNOWN: dict[tuple[str, str], Callable[..., Any]] = {
    ("torch_utils.persistence", "_reconstruct_persistent_obj"): _persistent,
    ("torch._utils", "_rebuild_tensor_v2"): _tensor,
    ("torch._utils", "_rebuild_parameter"): _parameter,
    ("torch.storage", "_load_from_bytes"): _storage,
    ("numpy", "dtype"): lambda name, *rest: _Dtype(str(name)),
    ("numpy", "ndarray"): lambda *rest: None,
    ("numpy.core.multiarray", "scalar"): _scalar,
    ("numpy.core.multiarray", "_reconstruct"): lambda *rest: _Array(),
}


def _collect(module: Any, prefix: str, state: dict[str, Tensor], above: tuple[int, ...]) -> None:
    """Add the parameters and buffers of a module and of those in it, by name."""
    if id(module) in above or len(state) > TENSORS:
        raise ValueError("its modules contain each other")
    values = module.attributes
    skipped = set(values.get("_non_persistent_buffers_set", ()))
    for kind in ("_parameters", "_buffers"):
        for name, value in values.get(kind, {}).items():
            if value is not None and name not in skipped:
                state[prefix + str(name)] = value
    for name, part in values.get("_modules", {}).items():
        if part is not None:
            _collect(part, f"{prefix}{name}.", state, (*above, id(module)))


def _plain(value: Any) -> Any:
    """Return a value as JSON has it.

    Raises:
        ValueError: it is none.
    """
    if isinstance(value, Mapping):
        return {str(k): _plain(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(v) for v in value]
    if isinstance(value, _Array):
        return value.values.tolist()
    if value is None or isinstance(value, bool | int | float | str):
        return value
    raise ValueError(f"its arguments hold a {type(value).__name__}, which is no plain value")
