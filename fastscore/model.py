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
    parametrization: Parametrization = field(default_factory=Parametrization)
    classes: int = 0
    class_names: tuple[str, ...] = ()
    info: dict[str, Any] = field(default_factory=dict)


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
    folder = files.BUNDLED / str(path) if str(path) in files.bundled() else Path(path)
    config = files.read_config(folder)
    try:
        spec = config["net"]
        model = ScoreModel(
            net=files.load_weights(folder / "model.safetensors", build(spec)).to(device).eval(),
            shape=tuple(int(k) for k in config["shape"]),
            schedule=files.schedule_from_dict(config["schedule"]),
            parametrization=Parametrization(**config["parametrization"]),
            classes=int(config["classes"]),
            class_names=tuple(config["class_names"]),
            info=config.get("info", {}),
        )
    except (KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{folder / 'config.json'}: missing or malformed entry ({error})") from None
    return model
