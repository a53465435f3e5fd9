"""Model folders: ``config.json``, a plain description, and ``model.safetensors``. Nothing in one is ever executed."""

from __future__ import annotations

import json
import math
import os
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save
from torch import Tensor, nn

from fastscore.data.affine import Affine
from fastscore.data.limits import MAX_CLASSES, regular_file
from fastscore.errors import nearest, typed
from fastscore.files import atomic, write_text
from fastscore.model.nets import build, outline
from fastscore.model.score import ScoreModel
from fastscore.process.config import schedule_from_dict, schedule_to_dict
from fastscore.process.parametrization import Parametrization
from fastscore.process.schedule import Schedule

FORMAT = 1
MAX_CONFIG = 1 << 26  # bytes of a config.json, which may hold a table of a million levels, or of a header of weights
MAX_NUMBERS = 1 << 26  # of one sample
FLOATS = ("F64", "F32", "F16", "BF16")

BUNDLED = Path(__file__).parents[1] / "models"


def bundled() -> list[str]:
    """Return the names of the models that ship with fastscore."""
    return sorted(p.parent.name for p in BUNDLED.glob("*/config.json") if "schedule" in p.read_text())


def read_config(folder: Path) -> dict[str, Any]:
    """Read and check the head of a model directory's config.json.

    Raises:
        ValueError: absent, not JSON, or of another format version.
    """
    file = folder / "config.json"
    if not os.path.lexists(file):
        names = ", ".join(bundled()) or "none"
        near = nearest(folder, bundled())
        raise ValueError(
            f"model {str(folder)!r}{near} is neither a bundled model ({names}) nor a folder with a config.json"
        )
    size = regular_file(file).stat().st_size
    if size > MAX_CONFIG:
        raise ValueError(
            f"{file} has {size:,} bytes; at most {MAX_CONFIG:,} are read, and a model's has a few thousand"
        )
    try:
        config = json.loads(file.read_text())
    except (OSError, ValueError, RecursionError) as error:
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


def check_weights(path: Path, net: nn.Module) -> None:
    """Raise ValueError unless a safetensors file holds the state of a network, by its header; nothing else is read.

    Args:
        net: the network, or its outline.
    """
    expected = {k: (tuple(v.shape), v.dtype.is_floating_point) for k, v in net.state_dict().items()}
    actual = tensor_shapes(path)
    for name in sorted(expected.keys() | actual.keys()):
        wanted, floating = expected.get(name, (None, True))
        shape, dtype = actual.get(name, (None, "F32"))
        if wanted != shape:
            raise ValueError(f"{path}: {name} has shape {shape} but the network wants {wanted}")
        if floating != (dtype in FLOATS):
            raise ValueError(f"{path}: {name} is of {dtype}; the network wants {' '.join(FLOATS)}")


def tensor_shapes(path: Path) -> dict[str, tuple[tuple[int, ...], str]]:
    """Return shape and type of each tensor of a safetensors file.

    Raises:
        ValueError: no file, or no safetensors file; or a header that is too long or lies about what follows.
    """
    size = regular_file(path).stat().st_size
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
    if not 8 <= length + 8 <= min(size, MAX_CONFIG):
        bound = max(0, min(size - 8, MAX_CONFIG))
        raise ValueError(
            f"{path}: not a readable safetensors file (a header of {length:,} bytes; at most {bound:,} can be)"
        )
    try:
        with safe_open(path, "pt") as opened:
            slices = {name: opened.get_slice(name) for name in opened.keys()}
            return {name: (tuple(part.get_shape()), part.get_dtype()) for name, part in slices.items()}
    except (SafetensorError, OSError, ValueError) as error:
        raise ValueError(f"{path}: not a readable safetensors file ({error})") from None


def load_weights(path: Path, net: nn.Module) -> nn.Module:
    """Fill a network from a safetensors file, in the network's own dtype.

    Raises:
        ValueError: the file is unreadable, or its names, shapes or values do not fit the network.
    """
    check_weights(path, net)
    try:
        state = load_file(path)
    except (SafetensorError, OSError) as error:
        raise ValueError(f"{path}: not a readable safetensors file ({error})") from None
    if not all(bool(v.isfinite().all()) for v in state.values()):
        raise ValueError(f"{path}: holds NaN or Inf")
    net.load_state_dict(state)
    return net


def save_model(path: Path, net: nn.Module, spec: dict[str, Any], model: ScoreModel, dtype: torch.dtype) -> None:
    """Write a model directory; parameters are stored in ``dtype``, buffers as they are.

    Raises:
        ValueError: a model with conditioning tensors, of which no network of a description knows, or a projection.
    """
    if model.cond_shape is not None:
        raise ValueError(f"cond_shape = {model.cond_shape}: a model folder holds networks of classes; pickle it")
    if model.projection is not None:
        raise ValueError(f"projection = {model.projection}: a model folder holds none; pickle the model")
    config = {
        "format": FORMAT,
        "net": spec,
        "shape": list(model.shape),
        "schedule": schedule_to_dict(model.schedule),
        "parametrization": asdict(model.parametrization),
        "classes": model.classes,
        "null": model.null,
        "class_names": list(model.class_names),
        "info": model.info,
    }
    for name, columns in (("transform", model.transform), ("base", model.base)):
        if columns is not None:
            config[name] = asdict(columns)
    save_weights(path / "model.safetensors", net, dtype)
    write_text(path / "config.json", json.dumps(config, indent=1) + "\n")


@typed
def load_model(path: Path | str, device: torch.device | str = "cpu") -> ScoreModel:
    """Load a model directory, or a bundled model by its name.

    Raises:
        ValueError: no such model, or a config or weights file that does not fit; the message names
            the file and the first difference.
    """
    folder = _folder(path)
    config = read_config(folder)
    try:
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError):
        raise ValueError(f"device = {str(device)!r} must be cpu, or a CUDA device that is here") from None
    try:
        spec = config["net"]
        schedule = schedule_from_dict(config["schedule"])
        if not isinstance(schedule, Schedule):
            raise ValueError(f"{type(schedule).__name__} is no schedule")
        shape, classes = tuple(int(k) for k in config["shape"]), int(config["classes"])
        check_shape(spec, shape, classes)
        outlined = outline(spec)
        parametrization, names = Parametrization(**config["parametrization"]), tuple(config["class_names"])
        columns: dict[str, Any] = {k: Affine(**config[k]) for k in ("transform", "base") if config.get(k) is not None}
        null = config.get("null", classes or None)  # folders that do not say it were trained with label dropout
    except (KeyError, TypeError, AttributeError, ValueError, ArithmeticError, RuntimeError) as error:
        raise ValueError(f"{folder / 'config.json'}: missing or malformed entry ({error})") from None
    check_weights(folder / "model.safetensors", outlined)
    net = load_weights(folder / "model.safetensors", build(spec, outlined=outlined)).to(device).eval()
    info = config.get("info", {})
    columns |= {"null": null, "folder": str(folder)}
    return ScoreModel(net, shape, schedule, parametrization, classes, names, info, **columns)


def _folder(path: Path | str) -> Path:
    """Return the folder of a bundled model's name, or of a path."""
    if not isinstance(path, str) or path not in bundled():
        return Path(path)
    if (Path(path) / "config.json").exists():
        raise ValueError(f"{path!r} is a bundled model and a folder here; write ./{path} for the folder")
    return BUNDLED / path


def check_shape(spec: dict[str, Any], shape: tuple[int, ...], classes: int) -> None:
    """Raise ValueError unless a network of this description makes samples of this shape and these classes."""
    if int(spec.get("classes", 0)) != classes or not 0 <= classes <= MAX_CLASSES:
        raise ValueError(f"classes = {classes} but the net has {spec.get('classes', 0)}, of at most {MAX_CLASSES}")
    size: Any = spec.get("size")
    expected = {
        "UNet": (spec.get("channels"), *(size if isinstance(size, list) else (size, size))),
        "ScoreNet": (spec.get("channels", 1), 28, 28),
        "MLP": (spec.get("dim"),),
        "Transformer": (spec.get("tokens"), spec.get("dim")),
    }.get(str(spec.get("name")), shape)
    if shape != expected or not all(1 <= k <= 65536 for k in shape):
        raise ValueError(f"shape = {list(shape)} but the net makes {list(expected)}")
    if math.prod(shape) > MAX_NUMBERS:
        raise ValueError(f"shape = {list(shape)} is of {math.prod(shape):,} numbers; at most {MAX_NUMBERS:,} are taken")
