"""Score models: a network, what it predicts, and the schedule it was trained on.

A model directory holds ``config.json`` (a plain description) and ``model.safetensors``. Nothing in it
is executed, and no pickle is ever read.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from fastscore import schedule as schedules
from fastscore.nets import build
from fastscore.parametrization import Parametrization
from fastscore.schedule import Schedule

FORMAT = 1
BUNDLED = Path(__file__).parent / "models"


@dataclass(frozen=True)
class ScoreModel:
    """Any score network, with what a sampler must know of it.

    The call convention is ``net(u, c_noise, cond) -> F`` with u = c_in x [N, *shape] in the network's
    dtype, c_noise [N] float32 (float64 in float64 runs), cond int64 labels [N] or None. Any
    ``nn.Module`` or plain function will do.

    Attributes:
        net: the network.
        shape: of one sample, without the batch axis.
        schedule: the forward SDE it was trained on; a sampler may use another one.
        parametrization: what F means and which label c_noise is.
        classes: number of class labels; 0 for an unconditional model.
        class_names: one a class, or empty.
        info: how it was made (training command, seed, ...), kept in its config.
    """

    net: Callable[[Tensor, Tensor, Tensor | None], Tensor]
    shape: tuple[int, ...]
    schedule: Schedule
    parametrization: Parametrization = Parametrization()
    classes: int = 0
    class_names: tuple[str, ...] = ()
    info: dict[str, Any] = field(default_factory=dict)


def save_model(path: Path, net: nn.Module, spec: dict[str, Any], model: ScoreModel, dtype: torch.dtype) -> None:
    """Write a model directory; parameters are stored in ``dtype``, buffers as they are."""
    config = {
        "format": FORMAT,
        "net": spec,
        "shape": list(model.shape),
        "schedule": schedules.to_dict(model.schedule),
        "parametrization": asdict(model.parametrization),
        "classes": model.classes,
        "class_names": list(model.class_names),
        "info": model.info,
    }
    save_weights(path / "model.safetensors", net, dtype)
    write_atomic(path / "config.json", json.dumps(config, indent=1) + "\n")


def load_model(path: Path | str, device: torch.device | str = "cpu") -> ScoreModel:
    """Load a model directory, or a bundled model by its name.

    Raises:
        ValueError: no such model, or a config or weights file that does not fit; the message names
            the file and the first difference.
    """
    folder = BUNDLED / str(path) if str(path) in bundled() else Path(path)
    config = read_config(folder)
    try:
        spec = config["net"]
        model = ScoreModel(
            net=load_weights(folder / "model.safetensors", build(spec)).to(device).eval(),
            shape=tuple(int(k) for k in config["shape"]),
            schedule=schedules.from_dict(config["schedule"]),
            parametrization=Parametrization(**config["parametrization"]),
            classes=int(config["classes"]),
            class_names=tuple(config["class_names"]),
            info=config.get("info", {}),
        )
    except (KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{folder / 'config.json'}: missing or malformed entry ({error})") from None
    return model


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
        raise ValueError(f"model {str(folder)!r} is neither a bundled model ({names}) nor a folder with a config.json") from None
    except (OSError, UnicodeDecodeError, json.JSONDecodeError, RecursionError) as error:
        raise ValueError(f"{file} is not readable JSON: {error}") from None
    if not isinstance(config, dict) or config.get("format") != FORMAT:
        raise ValueError(f"{file}: expected an object with \"format\": {FORMAT}, written by fastscore")
    return config


def save_weights(path: Path, net: nn.Module, dtype: torch.dtype) -> None:
    """Write the state of a network as safetensors, atomically; parameters in ``dtype``."""
    parameters = {name for name, _ in net.named_parameters()}
    state = {
        k: v.detach().to("cpu", dtype if k in parameters else v.dtype).contiguous() for k, v in net.state_dict().items()
    }
    partial = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    save_file(state, partial)
    os.replace(partial, path)


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


def write_atomic(path: Path, text: str) -> None:
    """Write a text file so that a reader sees the old one or the new one, never a part."""
    partial = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    partial.write_text(text)
    os.replace(partial, path)
