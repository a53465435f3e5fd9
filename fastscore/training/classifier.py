"""Train the small classifier whose features judge samples (see metrics)."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F

from fastscore.data.load import Dataset
from fastscore.files import write_text
from fastscore.model.folder import BUNDLED, FORMAT, check_weights, load_weights, read_config, save_weights
from fastscore.model.nets import build, outline
from fastscore.model.nets.classifier import Classifier
from fastscore.output.commit import begin
from fastscore.output.record import MODEL, Written
from fastscore.report.metrics import features

Progress = Callable[[int, int, dict[str, float]], None]


def train_classifier(
    out: Path,
    train: Dataset,
    test: Dataset,
    epochs: int = 4,
    width: int = 32,
    batch: int = 128,
    lr: float = 2e-3,
    seed: int = 0,
    info: dict[str, Any] | None = None,
    progress: Progress | None = None,
    overwrite: bool = False,
) -> float:
    """Train on labelled images with AdamW and a one-cycle rate; write a directory; return test accuracy.

    Raises:
        ValueError: data without labels, or points instead of images; or the folder holds a model already, and is not
            to be overwritten, or not of a classifier.
    """
    if train.labels is None or test.labels is None or not train.x.dtype == test.x.dtype == np.uint8:
        raise ValueError("a classifier needs labelled images of 8 bits")
    with begin(out, overwrite=overwrite, planned=Written(MODEL), earlier=_written) as stage:
        torch.manual_seed(seed)
        spec = {
            "name": "Classifier",
            "channels": train.shape[0],
            "classes": int(train.labels.max()) + 1,
            "width": width,
        }
        net = build(spec)
        assert isinstance(net, Classifier)
        steps = epochs * (len(train.x) // batch)
        optimizer = torch.optim.AdamW(net.parameters(), lr=lr, weight_decay=1e-2)
        cycle = torch.optim.lr_scheduler.OneCycleLR(optimizer, lr, total_steps=steps)
        rng = np.random.default_rng(seed)
        for step in range(steps):
            if step % (len(train.x) // batch) == 0:
                order = rng.permutation(len(train.x))
            start = step % (len(train.x) // batch) * batch
            index = order[start : start + batch]
            with torch.autocast("cpu", torch.bfloat16):
                logits = net(torch.from_numpy(train.network_range(index)))
            loss = F.cross_entropy(logits.float(), torch.from_numpy(train.labels[index]), label_smoothing=0.05)
            loss.backward()
            optimizer.step()
            cycle.step()
            optimizer.zero_grad(set_to_none=True)
            if progress:
                progress(step + 1, steps, {"loss": float(loss.detach())})
        net.eval()
        accuracy = float((features(net, test.x)[1] == test.labels).mean())
        config = {
            "format": FORMAT,
            "net": spec,
            "class_names": list(train.class_names),
            "info": {**(info or {}), "test accuracy": round(accuracy, 4)},
        }
        save_weights(stage.new / MODEL[0], net, torch.float16)
        write_text(stage.new / MODEL[1], json.dumps(config, indent=1) + "\n")
        stage.commit(record=MODEL[1])
        return accuracy


def _written(folder: Path) -> Written:
    """Return the files of the classifier that a folder holds; none if it holds something else."""
    try:
        spec = read_config(folder)["net"]
        return Written(MODEL if spec["name"] == "Classifier" else ())
    except (ValueError, KeyError, TypeError):
        return Written()


def load_classifier(path: Path | str) -> tuple[Classifier, list[str]]:
    """Load a classifier directory, or a bundled one by name; return it with its class names.

    Raises:
        ValueError: not a classifier directory.
    """
    folder = BUNDLED / str(path) if (BUNDLED / str(path) / "config.json").is_file() else Path(path)
    config = read_config(folder)
    try:
        spec, names = config["net"], [str(k) for k in config.get("class_names", [])]
        outlined = outline(spec)
    except (KeyError, TypeError, AttributeError, ValueError, ArithmeticError, RuntimeError) as error:
        raise ValueError(f"{folder / 'config.json'}: missing or malformed entry ({error})") from None
    if not isinstance(outlined, Classifier):
        raise ValueError(f"{folder} holds a {type(outlined).__name__}, not a Classifier")
    check_weights(folder / "model.safetensors", outlined)
    net = load_weights(folder / "model.safetensors", build(spec, outlined=outlined))
    assert isinstance(net, Classifier)
    return net.eval(), names
