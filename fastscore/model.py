"""Score models: a network, what it predicts, and the schedule it was trained on.

A model directory holds ``config.json`` (a plain description) and ``model.safetensors``. Nothing in it
is executed, and no pickle is ever read.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from fastscore import files
from fastscore.nets import build
from fastscore.parametrization import Parametrization
from fastscore.schedule import Schedule


@dataclass(frozen=True)
class ScoreModel:
    """Any score network, with what a sampler must know of it.

    The call convention is ``net(u, c_noise, cond) -> F`` with u = c_in x [N, *shape] in the network's
    dtype, c_noise [N] float32 (float64 in float64 runs), cond int64 labels [N], a tensor
    [N, *cond_shape] like c_noise, or None. Any ``nn.Module`` or plain function will do.

    Attributes:
        net: the network.
        shape: of one sample, without the batch axis.
        schedule: the forward SDE it was trained on; a sampler may use another one.
        parametrization: what F means and which label c_noise is.
        classes: number of class labels; 0 for an unconditional model.
        class_names: one a class, or empty.
        info: how it was made (training command, seed, ...), kept in its config.
        cond_shape: of the condition of one sample, if the network takes a tensor and not a class; else None.
    """

    net: Callable[[Tensor, Tensor, Tensor | None], Tensor]
    shape: tuple[int, ...]
    schedule: Schedule
    parametrization: Parametrization = field(default_factory=Parametrization)
    classes: int = 0
    class_names: tuple[str, ...] = ()
    info: dict[str, Any] = field(default_factory=dict)
    cond_shape: tuple[int, ...] | None = None

    def __post_init__(self) -> None:
        if self.classes and self.cond_shape is not None:
            raise ValueError("a model takes classes or a conditioning tensor, not both: put the class into the tensor")
        if not self.shape or not all(isinstance(k, int) and k > 0 for k in self.shape):
            raise ValueError(f"shape = {self.shape} must be positive integers, without the batch axis")


def save_model(path: Path, net: nn.Module, spec: dict[str, Any], model: ScoreModel, dtype: torch.dtype) -> None:
    """Write a model directory; parameters are stored in ``dtype``, buffers as they are."""
    config = {
        "format": files.FORMAT,
        "net": spec,
        "shape": list(model.shape),
        "schedule": files.schedule_to_dict(model.schedule),
        "parametrization": asdict(model.parametrization),
        "classes": model.classes,
        "class_names": list(model.class_names),
        "info": model.info,
    }
    files.save_weights(path / "model.safetensors", net, dtype)
    files.write_text(path / "config.json", json.dumps(config, indent=1) + "\n")


def load_model(path: Path | str, device: torch.device | str = "cpu") -> ScoreModel:
    """Load a model directory, or a bundled model by its name.

    Raises:
        ValueError: no such model, or a config or weights file that does not fit; the message names
            the file and the first difference.
    """
    folder = _folder(path)
    config = files.read_config(folder)
    try:
        spec = config["net"]
        schedule = files.schedule_from_dict(config["schedule"])
        if not isinstance(schedule, Schedule):
            raise ValueError(f"{type(schedule).__name__} is no schedule")
        shape, classes = tuple(int(k) for k in config["shape"]), int(config["classes"])
        _fits(spec, shape, classes)
        net = build(spec)
        parametrization, names = Parametrization(**config["parametrization"]), tuple(config["class_names"])
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        raise ValueError(f"{folder / 'config.json'}: missing or malformed entry ({error})") from None
    net = files.load_weights(folder / "model.safetensors", net).to(device).eval()
    return ScoreModel(net, shape, schedule, parametrization, classes, names, config.get("info", {}))


def _folder(path: Path | str) -> Path:
    """Return the folder of a bundled model's name, or of a path."""
    if not isinstance(path, str) or path not in files.bundled():
        return Path(path)
    if (Path(path) / "config.json").exists():
        raise ValueError(f"{path!r} is a bundled model and a folder here; write ./{path} for the folder")
    return files.BUNDLED / path


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
