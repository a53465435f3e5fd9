"""Train a score network by denoising score matching, or the small classifier that judges samples.

Training is resumable: everything random is a function of (seed, number of images seen), so a run
that is stopped and started again sees the same images, times and noise as one that was not.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from fastscore.data.load import Dataset
from fastscore.model.folder import save_model
from fastscore.model.nets import build
from fastscore.model.score import ScoreModel
from fastscore.network.jit import has_compiler
from fastscore.ops.noise import NoiseKey
from fastscore.process.config import schedule_to_dict
from fastscore.process.parametrization import Parametrization
from fastscore.process.schedule import Schedule, diffuse
from fastscore.training import losses
from fastscore.training.checkpoint import CHECKPOINT, State, append_loss, fingerprint, resume

Progress = Callable[[int, int, dict[str, float]], None]
_NOISE_DRAW, _TIME_DRAW, _SLICE_DRAW = 0, 1, 2  # of one training image: z; (time, time, label dropout); v


@dataclass(frozen=True)
class TrainConfig:
    """Settings of a training run, saved beside its checkpoint.

    Attributes:
        images: training images (or points) to see in total.
        batch: per step.
        lr: peak learning rate of AdamW; warm-up over ``warmup`` images, linear decay to zero over
            the last ``cooldown`` fraction.
        ema: exponent gamma of the power-function average, beta = (1 - 1/step)^(gamma + 1);
            16.97 averages over about the last 5 % (Karras et al. 2024, eq. 2 and 3).
        loss: "dsm" (denoising score matching), or for small networks "implicit" or "sliced" score
            matching of the noised data, weighted by sigma^2.
        weighting, times: see losses; mean, std: of ln sigma for lognormal times.
        label_dropout: share of labels replaced by the null class.
        clip: gradient norm bound.
        dtype: "bf16" (autocast) or "fp32".
        compile: run the network through torch.compile.
        seed: of everything random.
        checkpoint_every: images between checkpoints.
    """

    images: int = 1_000_000
    batch: int = 128
    lr: float = 1e-3
    warmup: int = 50_000
    cooldown: float = 0.25
    ema: float = 16.97
    loss: str = "dsm"
    weighting: str = "simple"
    times: str = "lognormal"
    mean: float = -1.2
    std: float = 1.2
    label_dropout: float = 0.1
    clip: float = 1.0
    dtype: str = "bf16"
    compile: bool = True
    seed: int = 0
    checkpoint_every: int = 100_000

    def __post_init__(self) -> None:
        for name, low, high in (
            ("images", 1, None), ("batch", 1, None), ("lr", 0, None), ("warmup", 0, None), ("cooldown", 0, 1),
            ("ema", 0, None), ("std", 0, None), ("label_dropout", 0, 1), ("clip", 0, None), ("seed", 0, 2**64 - 1),
            ("checkpoint_every", 1, None),
        ):  # fmt: skip
            value = getattr(self, name)
            if not math.isfinite(value) or value < low or (high is not None and value > high):
                bound = f"at least {low}" if high is None else f"in {low} .. {high}"
                raise ValueError(f"{name} = {value} must be {bound}")
        for name, choices in (
            ("loss", losses.LOSSES),
            ("weighting", losses.WEIGHTINGS),
            ("times", losses.TIMES),
            ("dtype", ("bf16", "fp32")),
        ):
            if getattr(self, name) not in choices:
                raise ValueError(f"{name} = {getattr(self, name)!r} must be one of {', '.join(choices)}")

    def lr_at(self, seen: int) -> float:
        """Return the learning rate after ``seen`` images."""
        rise = min(1.0, (seen + self.batch) / max(self.warmup, 1))
        fall = min(1.0, (self.images - seen) / max(self.cooldown * self.images, 1.0))
        return self.lr * rise * max(fall, 0.0)


def train(
    out: Path,
    data: Dataset,
    spec: dict[str, Any],
    schedule: Schedule,
    parametrization: Parametrization,
    config: TrainConfig,
    info: dict[str, Any],
    device: str = "cpu",
    progress: Progress | None = None,
) -> ScoreModel:
    """Train a score network and write it to ``out`` as a model directory; resume if it is half done.

    Args:
        out: receives config.json, model.safetensors (the averaged weights, float16), loss.csv and
            checkpoint.safetensors, from which the same call goes on.
        data: the training set; labels are used if ``spec`` has classes.
        spec: of the network, for nets.build.
        info: kept in the model's config.
        progress: called as progress(seen, images, {"loss": ..., "images/s": ...}) after each step.

    Raises:
        ValueError: ``out`` holds a run of other settings, or the loss is no longer finite.
    """
    if config.loss == "implicit" and math.prod(data.shape) > 64:
        raise ValueError(f"loss = 'implicit' takes a backward pass a dimension; {math.prod(data.shape)} is above 64")
    out.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(config.seed)
    raw = nn.utils.convert_conv2d_weight_memory_format(build(spec).to(device), torch.channels_last)
    classes = int(spec.get("classes", 0))
    names, null = data.class_names if classes else (), classes if classes and config.label_dropout else None
    model = ScoreModel(raw, data.shape, schedule, parametrization, classes, names, info, null=null)
    settings = {
        "net": spec,
        "schedule": schedule_to_dict(schedule),
        "parametrization": asdict(parametrization),
        "train": asdict(config),
        "data": {"sha256": fingerprint(data)},
    }
    state = State(raw, config.lr)
    seen = resume(out, state, settings)
    net = torch.compile(raw) if config.compile and has_compiler(device) else raw

    def export() -> None:
        save_model(out, state.averaged(), spec, replace(model, info={**info, "images": seen}), torch.float16)

    window: list[Tensor] = []
    start, first = time.perf_counter(), seen
    while seen < config.images:
        x0, cond, t, z = _batch(data, schedule, config, seen, classes, device)
        for group in state.optimizer.param_groups:
            group["lr"] = config.lr_at(seen)
        if config.loss == "dsm":
            with torch.autocast(torch.device(device).type, torch.bfloat16, enabled=config.dtype == "bf16"):
                loss = losses.denoising_score_matching(net, x0, t, z, cond, schedule, parametrization, config.weighting)
        else:
            loss = _hessian_loss(raw, x0, cond, t, z, schedule, parametrization, config, seen)
        if config.times == "importance":
            loss = loss * torch.as_tensor(losses.importance_weight(schedule, t), dtype=loss.dtype, device=device)
        loss.mean().backward()
        nn.utils.clip_grad_norm_(raw.parameters(), config.clip)
        state.step(config.ema)
        seen += len(x0)
        window.append(loss.detach().mean())
        if len(window) == 50 or seen >= config.images:
            mean = torch.stack(window).mean().item()
            if not math.isfinite(mean):
                raise ValueError(f"loss is {mean} after {seen} images; lower --lr (now {config.lr}) and resume")
            append_loss(out / "loss.csv", seen, mean, config.lr_at(seen), time.perf_counter() - start)
            window.clear()
        if progress:
            rate = (seen - first) / (time.perf_counter() - start)
            progress(seen, config.images, {"loss": float(loss.detach().mean()), "images/s": rate})
        if seen // config.checkpoint_every > (seen - len(x0)) // config.checkpoint_every or seen >= config.images:
            state.save(out / CHECKPOINT, {"seen": seen, "settings": settings})
            export()
    return replace(model, net=state.averaged().eval())


def _hessian_loss(
    net: nn.Module,
    x0: Tensor,
    cond: Tensor | None,
    t: np.ndarray,
    z: Tensor,
    schedule: Schedule,
    parametrization: Parametrization,
    config: TrainConfig,
    seen: int,
) -> Tensor:
    """Return implicit or sliced score matching of x_t, times sigma^2; float32, since it differentiates twice."""
    x = diffuse(schedule, x0, t, z)
    score = losses.score_at(net, t, cond, schedule, parametrization, x)
    weight = torch.as_tensor(schedule.sigma(t) ** 2, dtype=x.dtype, device=x.device)
    if config.loss == "implicit":
        return weight * losses.implicit_score_matching(score, x)
    key = NoiseKey.of(config.seed, range(seen, seen + len(x)))
    v = key.normal(_SLICE_DRAW, x[0].numel()).reshape(x.shape).to(x)
    return weight * losses.sliced_score_matching(score, x, v)


def _batch(
    data: Dataset, schedule: Schedule, config: TrainConfig, seen: int, classes: int, device: str
) -> tuple[Tensor, Tensor | None, np.ndarray, Tensor]:
    """Return (x0, labels, times, z) of the batch that starts at image ``seen``."""
    count = min(config.batch, config.images - seen)
    index = np.fromiter(_order(len(data.x), config.seed, seen, count), np.int64, count)
    key = NoiseKey.of(config.seed, range(seen, seen + count))
    uniform = key.uniform(_TIME_DRAW, 3).to(torch.float64).numpy()
    first = uniform[:, :2] if config.times == "lognormal" else uniform[:, 0]
    t = losses.sample_times(schedule, first, config.times, config.mean, config.std)
    x0 = torch.from_numpy(data.network_range(index)).to(device)
    z = key.normal(_NOISE_DRAW, math.prod(data.shape)).reshape(x0.shape).to(device)
    cond = None
    if classes:
        assert data.labels is not None
        labels = np.where(uniform[:, 2] < config.label_dropout, classes, data.labels[index])
        cond = torch.from_numpy(labels).to(device)
    return x0, cond, t, z


def _order(n: int, seed: int, seen: int, count: int) -> Iterator[int]:
    """Yield the example at each position: one fresh permutation an epoch."""
    epoch, order = -1, np.empty(0, np.int64)
    for k in range(seen, seen + count):
        if k // n != epoch:
            epoch = k // n
            order = _permutation(n, seed, epoch)
        yield int(order[k % n])


_cache: dict[tuple[int, int, int], np.ndarray] = {}


def _permutation(n: int, seed: int, epoch: int) -> np.ndarray:
    if (n, seed, epoch) not in _cache:
        _cache.clear()
        _cache[n, seed, epoch] = np.random.default_rng([seed, epoch]).permutation(n)
    return _cache[n, seed, epoch]
