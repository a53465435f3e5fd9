"""Model folders: ``config.json``, a plain description, and ``model.safetensors``. Nothing in one is ever executed."""

from __future__ import annotations

import json
import math
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor, nn

from fastscore.errors import typed
from fastscore.files import atomic, write_text
from fastscore.model.nets import build
from fastscore.model.score import ScoreModel
from fastscore.process.config import schedule_from_dict, schedule_to_dict
from fastscore.process.parametrization import Parametrization
from fastscore.process.schedule import Schedule

FORMAT = 1


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
    try:
        config = json.loads(file.read_text())
    except (FileNotFoundError, NotADirectoryError):
        names = ", ".join(bundled()) or "none"
        raise ValueError(
            f"model {str(folder)!r} is neither a bundled model ({names}) nor a folder with a config.json"
        ) from None
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


def load_weights(path: Path, net: nn.Module) -> nn.Module:
    """Fill a network from a safetensors file, in the network's own dtype.

    Raises:
        ValueError: the file is unreadable, or its names, shapes or values do not fit the network.
    """
    try:
        state = load_file(path)
    except (SafetensorError, OSError) as error:
        raise ValueError(f"{path}: not a readable safetensors file ({error})") from None
    expected = {k: tuple(v.shape) for k, v in net.state_dict().items()}
    actual = {k: tuple(v.shape) for k, v in state.items()}
    for name in sorted(expected.keys() | actual.keys()):
        if expected.get(name) != actual.get(name):
            raise ValueError(f"{path}: {name} has shape {actual.get(name)} but the network wants {expected.get(name)}")
    if not all(math.isfinite(float(v.double().abs().sum())) for v in state.values()):
        raise ValueError(f"{path}: holds NaN or Inf")
    net.load_state_dict(state)
    return net


def save_model(path: Path, net: nn.Module, spec: dict[str, Any], model: ScoreModel, dtype: torch.dtype) -> None:
    """Write a model directory; parameters are stored in ``dtype``, buffers as they are."""
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
        _fits(spec, shape, classes)
        net = build(spec)
        parametrization, names = Parametrization(**config["parametrization"]), tuple(config["class_names"])
        null = config.get("null", classes or None)  # folders that do not say it were trained with label dropout
    except (KeyError, TypeError, AttributeError, ValueError, ArithmeticError, RuntimeError) as error:
        raise ValueError(f"{folder / 'config.json'}: missing or malformed entry ({error})") from None
    net = load_weights(folder / "model.safetensors", net).to(device).eval()
    return ScoreModel(net, shape, schedule, parametrization, classes, names, config.get("info", {}), null=null)


def _folder(path: Path | str) -> Path:
    """Return the folder of a bundled model's name, or of a path."""
    if not isinstance(path, str) or path not in bundled():
        return Path(path)
    if (Path(path) / "config.json").exists():
        raise ValueError(f"{path!r} is a bundled model and a folder here; write ./{path} for the folder")
    return BUNDLED / path


def _fits(spec: dict[str, Any], shape: tuple[int, ...], classes: int) -> None:
    """Raise ValueError unless a network of this description makes samples of this shape and these classes."""
    if int(spec.get("classes", 0)) != classes or classes < 0:
        raise ValueError(f"classes = {classes} but the net has {spec.get('classes', 0)}")
    expected = {
        "UNet": (spec.get("channels"), spec.get("size"), spec.get("size")),
        "ScoreNet": (spec.get("channels", 1), 28, 28),
        "MLP": (spec.get("dim"),),
        "Transformer": (spec.get("tokens"), spec.get("dim")),
    }.get(str(spec.get("name")), shape)
    if shape != expected or not all(1 <= k <= 65536 for k in shape):
        raise ValueError(f"shape = {list(shape)} but the net makes {list(expected)}")
