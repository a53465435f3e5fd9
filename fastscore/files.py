"""Files of a model directory: weights as safetensors, everything else as JSON; never a pickle."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any, BinaryIO

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor, nn

from fastscore.beta import CosineBeta, ExponentialBeta, LinearBeta
from fastscore.schedule import EDM, VE, VP, Flow, SubVP, Trig, TutorialVE
from fastscore.tables import DiscreteVE, DiscreteVP

FORMAT = 1
BUNDLED = Path(__file__).parent / "models"
_SCHEDULES = (
    VP,
    SubVP,
    VE,
    TutorialVE,
    EDM,
    Flow,
    Trig,
    DiscreteVP,
    DiscreteVE,
    LinearBeta,
    ExponentialBeta,
    CosineBeta,
)
_CLASSES = {c.__name__: c for c in _SCHEDULES}


def bundled() -> list[str]:
    """Return the names of the models that ship with fastscore."""
    return sorted(p.parent.name for p in BUNDLED.glob("*/config.json") if "schedule" in p.read_text())


def read_config(folder: Path) -> dict[str, Any]:
    """Read and check the head of a model directory's config.json.

    Raises:
        ValueError: absent, not JSON, or of another format version.
    """
    file = folder / "config.json"
    try:
        config = json.loads(file.read_text())
    except (FileNotFoundError, NotADirectoryError):
        names = ", ".join(bundled()) or "none"
        raise ValueError(
            f"model {str(folder)!r} is neither a bundled model ({names}) nor a folder with a config.json"
        ) from None
    except (OSError, UnicodeDecodeError, json.JSONDecodeError, RecursionError) as error:
        raise ValueError(f"{file} is not readable JSON: {error}") from None
    if not isinstance(config, dict) or config.get("format") != FORMAT:
        raise ValueError(f'{file}: expected an object with "format": {FORMAT}, written by fastscore')
    return config


def save_weights(path: Path, net: nn.Module, dtype: torch.dtype) -> None:
    """Write the state of a network as safetensors; parameters in ``dtype``, buffers as they are."""
    parameters = {name for name, _ in net.named_parameters()}
    write_tensors(path, {k: v.to(dtype) if k in parameters else v for k, v in net.state_dict().items()})


def write_tensors(path: Path, tensors: dict[str, Tensor], metadata: dict[str, str] | None = None) -> None:
    """Write tensors as safetensors."""
    with atomic(path) as file:
        file.write(save({k: v.detach().cpu().contiguous() for k, v in tensors.items()}, metadata))


def load_weights(path: Path, net: nn.Module) -> nn.Module:
    """Fill a network from a safetensors file, in the network's own dtype.

    Raises:
        ValueError: the file is unreadable, or its names, shapes or values do not fit the network.
    """
    try:
        state = load_file(path)
    except (SafetensorError, OSError) as error:
        raise ValueError(f"{path}: not a readable safetensors file ({error})") from None
    wanted = {k: tuple(v.shape) for k, v in net.state_dict().items()}
    found = {k: tuple(v.shape) for k, v in state.items()}
    for name in sorted(wanted.keys() | found.keys()):
        if wanted.get(name) != found.get(name):
            raise ValueError(f"{path}: {name} has shape {found.get(name)} but the network wants {wanted.get(name)}")
    if not all(math.isfinite(float(v.double().abs().sum())) for v in state.values()):
        raise ValueError(f"{path}: holds NaN or Inf")
    net.load_state_dict(state)
    return net


def cache_folder() -> Path:
    """Return where this user keeps what can be made again: $XDG_CACHE_HOME/fastscore, or ~/.cache/fastscore."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "fastscore"


def write_text(path: Path, text: str) -> None:
    """Write a text file."""
    with atomic(path) as file:
        file.write(text.encode())


@contextmanager
def atomic(path: Path) -> Iterator[BinaryIO]:
    """Open a file to write such that others see the old one or the whole new one, whatever happens."""
    partial = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with partial.open("wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)


def schedule_to_dict(schedule: Any) -> dict[str, Any]:
    """Return a schedule as plain JSON values, with its class under ``name``."""
    name = type(schedule).__name__
    if name not in _CLASSES:
        raise ValueError(f"{name} holds Python functions and cannot be saved; only {', '.join(_CLASSES)} can")
    values = {k.name: getattr(schedule, k.name) for k in fields(schedule)}
    nested = {k: schedule_to_dict(v) if is_dataclass(v) else v for k, v in values.items()}
    return {"name": name, **nested}


def schedule_from_dict(data: dict[str, Any]) -> Any:
    """Build the schedule that ``schedule_to_dict`` described.

    Raises:
        ValueError: unknown name or argument.
    """
    values = dict(data)
    name = values.pop("name", None)
    if name not in _CLASSES:
        raise ValueError(f"schedule name = {name!r} must be one of {', '.join(_CLASSES)}")
    values = {k: schedule_from_dict(v) if isinstance(v, dict) else v for k, v in values.items()}
    if "beta" in values and not callable(values["beta"]):
        raise ValueError(f"schedule {name}: beta = {values['beta']!r} must describe a noise rate")
    try:
        return _CLASSES[name](**values)
    except TypeError as error:
        raise ValueError(f"schedule {name}: {error}") from None
