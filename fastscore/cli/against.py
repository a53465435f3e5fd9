"""What `fastscore evaluate` compares: samples as they lie, and data or a target that they should be like."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from fastscore.data.load import Dataset

FASHION = "fashion-mnist"
_DRAW = 0xE0000000  # of the exact samples; no plan has as many draws


@dataclass
class Known:
    """What samples are compared with: data to compare, further real data, training data, or the target itself."""

    name: str
    y: Any
    kind: str = "test images"
    real: Any = None
    train: Any = None
    labels: Any = None
    score: Any = None
    log_density: Any = None
    caveats: list[str] = field(default_factory=list)


def samples_of(samples: str) -> Dataset:
    """Return the samples of a run, in one file or in shards, or of a file."""
    import numpy as np

    from fastscore.data.load import Dataset, load
    from fastscore.output.commit import settle

    path = Path(samples)
    if path.is_dir():
        settle(path)
    if "://" in samples or (
        path.is_dir() and not (path / "samples.npz").exists() and (path / "manifest.json").exists()
    ):
        from fastscore.output.store.runs import shards_of

        parts = [shard.arrays for shard in shards_of(samples)[1]]
        x = np.concatenate([part["samples"] for part in parts])
        labels = np.concatenate([part["labels"] for part in parts]) if "labels" in parts[0] else None
        return Dataset(x, labels)
    return load(str(path / "samples.npz" if path.is_dir() else path))


def own_target(samples: str, x: Any) -> str:
    """Return what the samples are compared with if nobody says it: the exact target of their run, or Fashion-MNIST."""
    settings = settings_of(samples)
    if str(settings.get("model", "")).startswith("analytic:"):
        return settings["model"]
    if x.dtype.kind == "f":
        raise ValueError(
            f"{samples} holds points or floats; say what they should be like: --against DATA or analytic:NAME"
        )
    return FASHION


def settings_of(samples: str) -> dict[str, Any]:
    """Return the settings that a run's record or manifest has; none if there is no such thing."""
    try:
        settings = json.loads((Path(samples) / "run.json").read_text())["settings"]
        return settings if isinstance(settings, dict) else {}
    except (OSError, ValueError, KeyError, TypeError):
        return {}


def reference_of(data: str, n: int, seed: int) -> Known:
    """Return what ``data`` names, for n samples."""
    import numpy as np

    from fastscore.data.load import load

    if data.startswith("analytic:"):
        return _exact(data, n, seed)
    test = load(data, "test")
    known = Known(data, test.x, "test images" if test.x.ndim == 4 else "rows")
    train = load(data, "train")
    if np.array_equal(train.x, test.x):
        known.labels = test.labels
    elif test.x.dtype.kind == "u" or test.x.ndim == 4:
        known.real = known.train = train.x
        known.labels = train.labels
    else:
        known.real = train.x
    if known.real is not None and len(known.real) < n:
        known.caveats.append(f"floors are of {len(known.real)} real rows, the figures of {n} samples")
    return known


def _exact(data: str, n: int, seed: int) -> Known:
    """Return exact draws of an analytic model, and its score and density where it has them."""
    import torch

    from fastscore.model.analytic import GaussianMixture, target_by_name
    from fastscore.ops.noise import NoiseKey

    target = target_by_name(data.removeprefix("analytic:"))
    m = min(max(4 * n, 10_000), max(n, 200_000))
    key = NoiseKey.of(seed, range(m + n))
    u = key.uniform(_DRAW, 1)[:, 0].double()
    if isinstance(target, GaussianMixture):
        z = key.normal(_DRAW + 1, target.means[0].numel(), torch.float64).reshape(-1, *target.means.shape[1:])
        x = target.sample(z, u).numpy()
        return Known(data, x[:m], "exact samples", x[m:], score=target.score, log_density=target.log_density)
    x = target.points[(u * len(target.points)).long().clamp_max(len(target.points) - 1)].double().numpy()
    return Known(
        data, x[:m], "exact samples", x[m:],
        caveats=[f"{data} is {len(target.points)} points, which have no density and no score"],
    )  # fmt: skip


def check(samples: str, x: Any, known: Known) -> None:
    """Raise ValueError for samples that cannot be compared with the data."""
    import numpy as np

    y = known.y
    whole = [v.dtype.kind == "u" for v in (x, y)]
    if whole[0] != whole[1] or (all(whole) and x.dtype != y.dtype):
        raise ValueError(
            f"{samples} holds {_words(x)}, {known.name} {_words(y)}; compare samples with data of their own kind"
        )
    if x.shape[1:] != y.shape[1:]:
        kind = "images" if x.ndim == 4 else "examples"
        raise ValueError(f"{samples} has {kind} of shape {x.shape[1:]}, {known.name} of {y.shape[1:]}")
    for name, rows in (("samples", x), (known.name, y)):
        if len(rows) < 2:
            raise ValueError(f"{name}: {len(rows)} example; at least two are compared")
    if np.array_equal(x, y[: len(x)]):
        what = "images" if x.ndim == 4 else "examples"
        raise ValueError(
            f"{samples} and {known.name} hold the same {what}; compare samples with data that they were not made of"
        )


def _words(x: Any) -> str:
    kind = "images of 8 bits" if x.dtype.str[1:] == "u1" else "images of 16 bits" if x.dtype.kind == "u" else "floats"
    return f"{kind} {x.shape}"
