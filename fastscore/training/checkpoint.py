"""The checkpoint of a training run: all that the next step depends on, as one file, so that a run can be stopped."""

from __future__ import annotations

import csv
import hashlib
import json
import os
from copy import deepcopy
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file
from torch import nn

from fastscore.data.limits import regular_file
from fastscore.data.load import Dataset
from fastscore.files import write_text
from fastscore.model.folder import write_tensors
from fastscore.output.record import MODEL
from fastscore.training.settings import TrainConfig

CHECKPOINT, FILES = "checkpoint.safetensors", ("loss.csv", "loss.png")


class State:
    """Weights, their average and the optimizer, saved and restored as one file."""

    def __init__(self, net: nn.Module, config: TrainConfig) -> None:
        self.net, self.steps, self.gamma = net, 0, config.ema
        self.parameters = {k: v for k, v in net.named_parameters() if v.requires_grad}
        make, betas = {"adamw": (torch.optim.AdamW, (0.9, 0.99)), "adam": (torch.optim.Adam, (0.9, 0.999))}[
            config.optimizer
        ]
        self.optimizer = make(self.parameters.values(), lr=config.lr, betas=betas, weight_decay=config.weight_decay)
        self.ema = {} if self.gamma is None else {k: v.detach().clone() for k, v in self.parameters.items()}

    def step(self) -> None:
        """Apply the gradients, then fold the new weights into the average."""
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        self.steps += 1
        for k, average in self.ema.items():
            assert self.decay is not None
            average.lerp_(self.parameters[k].detach(), 1.0 - self.decay)

    @property
    def decay(self) -> float | None:
        """The factor beta that the average had in the last step; None without one."""
        return None if self.gamma is None else (1.0 - 1.0 / max(self.steps, 1)) ** (self.gamma + 1.0)

    def averaged(self) -> nn.Module:
        """Return a copy of the network that carries the averaged weights."""
        net = deepcopy(self.net)
        net.load_state_dict({**net.state_dict(), **self.ema})
        return net

    def save(self, path: Path, progress: dict[str, Any]) -> None:
        """Write everything that the next step depends on, as one file."""
        tensors = {f"net.{k}": v for k, v in self.net.state_dict().items()}
        tensors |= {f"ema.{k}": v for k, v in self.ema.items()}
        for k, v in self.parameters.items():
            slot = self.optimizer.state.get(v)  # none of a parameter that the loss does not reach
            if slot:
                tensors |= {f"m.{k}": slot["exp_avg"], f"v.{k}": slot["exp_avg_sq"]}
        write_tensors(path, {**tensors, "steps": torch.tensor(self.steps)}, {"progress": json.dumps(progress)})

    def load(self, path: Path) -> None:
        """Restore what ``save`` wrote."""
        tensors = load_file(path)
        self.steps = int(tensors["steps"])
        self.net.load_state_dict({k[4:]: v for k, v in tensors.items() if k.startswith("net.")})
        for k, average in self.ema.items():
            average.copy_(tensors[f"ema.{k}"])
        for k, v in self.parameters.items():
            if f"m.{k}" not in tensors:
                continue
            self.optimizer.state[v] = {
                "step": torch.tensor(float(self.steps)),
                "exp_avg": tensors[f"m.{k}"].to(v),
                "exp_avg_sq": tensors[f"v.{k}"].to(v),
            }


def resume(out: Path, state: State, settings: dict[str, Any]) -> int:
    """Restore the run that ``out`` holds, or begin one by its first checkpoint; return how many images it has seen.

    Rows of loss.csv that were written after the checkpoint go, since their images are seen again.

    Raises:
        ValueError: the checkpoint cannot be read, or belongs to a run of other settings; or there is none and yet a
            model or a loss.csv, which no run here wrote.
    """
    file = out / CHECKPOINT
    for name in (CHECKPOINT, *MODEL, *FILES):
        if (out / name).is_symlink():
            raise ValueError(f"{out / name} is a symbolic link, and training goes through none; choose another --out")
    if not os.path.lexists(file):
        if other := [name for name in (*MODEL, *FILES) if os.path.lexists(out / name)]:
            raise ValueError(f"{out} holds {other[0]} and no {CHECKPOINT} of a run to go on with; choose another --out")
        state.save(file, {"seen": 0, "settings": settings})  # so that what is written from now on is known as a run's
        return 0
    regular_file(file)
    try:
        with safe_open(file, "pt") as opened:
            saved = json.loads((opened.metadata() or {})["progress"])
    except (SafetensorError, KeyError, ValueError, OSError) as error:
        raise ValueError(f"{file} is not a readable checkpoint ({error}); choose another --out") from None
    # A longer or shorter total and another checkpoint interval continue the same run.
    free = ("images", "checkpoint_every", "compile")
    old, new = (json.loads(json.dumps(s)) for s in (saved["settings"], settings))
    for s in (old, new):
        for k in free:
            s["train"].pop(k)
    if old != new:
        changed = [f"{k}.{j}" for k in new for j in new[k] if old.get(k, {}).get(j) != new[k][j]]
        raise ValueError(
            f"{out} holds a run with other settings ({', '.join(changed)}); choose another --out or delete it"
        )
    try:
        state.load(file)
    except (SafetensorError, KeyError, ValueError, RuntimeError, OSError) as error:
        raise ValueError(f"{file} does not hold the state of this run ({error}); choose another --out") from None
    _cut(out / "loss.csv", int(saved["seen"]))
    return int(saved["seen"])


def fingerprint(data: Dataset) -> str:
    """Return a digest of examples, labels and their transform, by which a checkpoint knows its data."""
    digest = hashlib.sha256(np.ascontiguousarray(data.x).tobytes())
    digest.update(b"" if data.labels is None else data.labels.tobytes())
    digest.update(b"" if data.transform is None else repr(data.transform).encode())
    return digest.hexdigest()


def _cut(path: Path, seen: int) -> None:
    """Drop the rows that were written after the checkpoint."""
    if path.exists():
        head, *rows = path.read_text().splitlines()
        write_text(path, "\n".join([head, *(row for row in rows if int(row.split(",")[0]) <= seen)]) + "\n")


def append_loss(path: Path, seen: int, loss: float, lr: float, seconds: float) -> None:
    """Add a row to loss.csv; the first one brings the header."""
    new = not path.exists()
    with path.open("a", newline="") as file:
        writer = csv.writer(file)
        if new:
            writer.writerow(["images", "loss", "lr", "seconds"])
        writer.writerow([seen, f"{loss:.6f}", f"{lr:.3e}", f"{seconds:.1f}"])
