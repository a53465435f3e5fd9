"""Train a score network by denoising score matching.

Training is resumable: everything random is a function of (seed, number of images seen), so a run
that is stopped and started again sees the same images, times and noise as one that was not.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from fastscore.data.load import Dataset
from fastscore.errors import typed
from fastscore.execution import Execution
from fastscore.files import write_text
from fastscore.model.folder import check_shape, save_model, save_weights
from fastscore.model.nets import build
from fastscore.model.score import ScoreModel
from fastscore.network.jit import has_compiler
from fastscore.ops.noise import NoiseKey
from fastscore.output.commit import claim
from fastscore.output.record import MODEL
from fastscore.process.config import schedule_to_dict
from fastscore.process.continuous import EDM
from fastscore.process.parametrization import Parametrization
from fastscore.process.schedule import Schedule, diffuse
from fastscore.training import losses
from fastscore.training.checkpoint import CHECKPOINT, FILES, State, append_loss, fingerprint, resume
from fastscore.training.log import TrainLog
from fastscore.training.order import order
from fastscore.training.recipe import label_range, measured_std, noise_levels
from fastscore.training.settings import TrainConfig

Progress = Callable[[int, int, dict[str, float]], None]
_NOISE_DRAW, _TIME_DRAW, _SLICE_DRAW = 0, 1, 2  # of one training image: z; (time, time, label dropout); v


@typed
def train(
    net: nn.Module | dict[str, Any],
    data: Dataset | np.ndarray | Tensor,
    schedule: Schedule | None = None,
    parametrization: Parametrization | None = None,
    config: TrainConfig | None = None,
    *,
    out: Path | str | None = None,
    classes: int = 0,
    info: dict[str, Any] | None = None,
    device: torch.device | str | None = None,
    progress: Progress | None = None,
    log: Any = None,
    standardise: bool | None = None,
) -> ScoreModel:
    """Train a score network; return the model with the average of its weights.

    Args:
        net: a module with the call convention of ScoreModel, which is trained in place, where it is; or the
            description of one for model.nets.build.
        data: the training set, or its examples as an array: float points [N, D] or sequences [N, L, C] in any units,
            other floats as the network sees them, or uint8 images [N, H, W, C]. A data set's labels are used if the
            network has classes.
        schedule: the forward SDE; EDM if left out.
        parametrization: how the network is called and what it predicts; if left out, input and output are of unit
            variance, as EDM's. Parametrization("eps", "t/T") is the tutorials' own: F is the noise estimate.
        config: settings of the run.
        out: folder that receives model.safetensors (the average, float16), loss.csv and checkpoint.safetensors,
            from which the same call goes on; and config.json, if ``net`` is a description, so that load_model reads
            the folder, or transform.json of a module, if there is a transform: ScoreModel(transform=Affine(**..)).
            Nothing is written if it is left out.
        classes: labels that a module takes; a description says it itself.
        info: kept in the model and its config.json.
        device: where a described network is trained; "cpu" if left out.
        progress: called as progress(seen, images, {"loss": ..., "images/s": ...}) after each step.
        log: what has log(dict, step=), or a Log; told loss, rate and speed as of so many images: see output/README.md.
        standardise: whether the network sees columns of points and sequences at mean 0 and standard deviation 1; the
            model keeps the ``transform``, and what it makes is in the units of the data. Left out: where their scale is
            neither near one nor the parametrization's sigma_data within a factor of 2, see data/affine.py.

    Raises:
        ValueError: ``out`` of other settings, of no run or in use; a schedule that cannot be saved; infinite labels or
            times; data that do not fit; or a loss that is not finite.
    """
    data = data if isinstance(data, Dataset) else Dataset.of(data)
    data = data.standardised(standardise, parametrization.sigma_data if parametrization else None)
    config, schedule = config or TrainConfig(), schedule or EDM()
    if config.loss == "implicit" and math.prod(data.shape) > 64:
        raise ValueError(f"loss = 'implicit' takes a backward pass a dimension; {math.prod(data.shape)} is above 64")
    parametrization = parametrization or Parametrization("edm", "tanh", measured_std(data), "unit")
    config = _resolved(config, schedule, parametrization, data)
    spec = net if isinstance(net, dict) else None
    where = Execution(device or "cpu").place if isinstance(net, dict) else next(net.parameters()).device
    with torch.random.fork_rng([where] if where.type == "cuda" else []):  # the caller's generators are the caller's
        torch.manual_seed(config.seed)
        if isinstance(net, dict):
            raw, classes = build(net, copies=5), int(net.get("classes", 0))
            check_shape(net, data.shape, classes)
            raw = nn.utils.convert_conv2d_weight_memory_format(raw.to(where), torch.channels_last)
        else:
            raw = net
        if classes and data.labels is None:
            raise ValueError(f"the network takes {classes} classes, and the data have no labels")
        names = data.class_names if len(data.class_names) == classes else ()
        rest = {"null": classes if classes and config.label_dropout else None, "transform": data.transform}
        info = {**(info or {}), **({"value_range": list(data.value_range)} if data.value_range else {})}
        info |= {"latents": True} if data.latents else {}
        model = ScoreModel(raw, data.shape, schedule, parametrization, classes, names, info, **rest)
        run = _Run(model, raw, data, config, where)
        modes = [(module, module.training) for module in raw.modules()]
        try:
            raw.train()
            with nullcontext() if out is None else claim(out, (CHECKPOINT, *MODEL, *FILES)) as folder:
                state = _steps(run, spec, folder, progress, TrainLog.of(log))
        finally:
            for module, mode in modes:
                module.training = mode
    return replace(model, net=state.averaged().eval())


@dataclass(frozen=True)
class _Run:
    """What every step reads."""

    model: ScoreModel
    net: nn.Module
    data: Dataset
    config: TrainConfig
    device: torch.device


def _steps(
    run: _Run, spec: dict[str, Any] | None, out: Path | None, progress: Progress | None, log: TrainLog | None
) -> State:
    """Take all steps, from the checkpoint on if ``out`` has one; return the last state."""
    config, state, seen = run.config, State(run.net, run.config), 0
    state.optimizer.zero_grad(set_to_none=True)
    settings: dict[str, Any] = {}
    if out is not None:
        settings = _settings(run, spec)
        seen = resume(out, state, settings)
    net = torch.compile(run.net) if config.compile and has_compiler(run.device.type) else run.net
    window: list[Tensor] = []
    start, first = time.perf_counter(), seen
    while seen < config.images:
        for group in state.optimizer.param_groups:
            group["lr"] = config.lr_at(seen)
        torch.manual_seed(
            int(np.random.SeedSequence([config.seed, seen]).generate_state(1, np.uint64)[0])
        )  # of dropout
        loss = step_loss(net, run, seen)
        loss.mean().backward()
        if config.clip:
            nn.utils.clip_grad_norm_(run.net.parameters(), config.clip)
        state.step()
        seen += len(loss)
        window.append(loss.detach().mean())
        if log is not None:
            log.step(seen, window[-1], config, state)
        if len(window) == 50 or seen >= config.images:
            mean = torch.stack(window).mean().item()
            if not math.isfinite(mean):
                raise ValueError(
                    f"loss is {mean} after {seen} images; take a lower --lr than {config.lr}, and another --out"
                )
            if out is not None:
                append_loss(out / "loss.csv", seen, mean, config.lr_at(seen), time.perf_counter() - start)
            window.clear()
        if progress:
            rate = (seen - first) / (time.perf_counter() - start)
            progress(seen, config.images, {"loss": float(loss.detach().mean()), "images/s": rate})
        at_checkpoint = seen // config.checkpoint_every > (seen - len(loss)) // config.checkpoint_every
        if out is not None and (at_checkpoint or seen >= config.images):
            state.save(out / CHECKPOINT, {"seen": seen, "settings": settings})
            if spec is None:
                save_weights(out / "model.safetensors", state.averaged(), torch.float16)
                if run.data.transform is not None:
                    write_text(out / "transform.json", json.dumps(asdict(run.data.transform)) + "\n")
            else:
                model = replace(run.model, info={**run.model.info, "images": seen})
                save_model(out, state.averaged(), spec, model, torch.float16)
    return state


def step_loss(net: Callable[..., Any], run: _Run, seen: int) -> Tensor:
    """Return the loss of each example of the batch that starts at image ``seen``, [N]: what a step descends."""
    config, model = run.config, run.model
    x0, cond, t, z = _batch(run.data, model.schedule, config, seen, model.classes, run.device)
    if config.loss == "dsm":
        assert config.weighting is not None
        with torch.autocast(run.device.type, torch.bfloat16, enabled=config.dtype == "bf16"):
            loss = losses.denoising_score_matching(
                net, x0, t, z, cond, model.schedule, model.parametrization, config.weighting
            )
    else:
        loss = _hessian_loss(run.net, x0, cond, t, z, model.schedule, model.parametrization, config, seen)
    if config.times == "importance":
        loss = loss * loss.new_tensor(losses.importance_weight(model.schedule, t, config.t_end))
    return loss


def _resolved(config: TrainConfig, schedule: Schedule, parametrization: Parametrization, data: Dataset) -> TrainConfig:
    """Return the settings with what was left out filled in, checked against the schedule."""
    end, times = (
        schedule.t_end if config.t_end is None else config.t_end,
        config.times or losses.default_times(schedule),
    )
    if not schedule.t_clean < end <= schedule.T or float(schedule.sigma(end)) == 0.0:
        raise ValueError(
            f"t_end = {end} must lie between {type(schedule).__name__}'s T = {schedule.T} and its clean end"
        )
    label_range(schedule, parametrization, end)
    if times == "importance":
        losses.importance_weight(schedule, np.array([end]), end)  # raises where it is no density
    mean, std = noise_levels(data, parametrization.sigma_data, config.mean, config.std)
    return replace(
        config,
        times=times,
        weighting=losses.default_weighting(parametrization) if config.weighting is None else config.weighting,
        mean=mean,
        std=std,
    )


def _settings(run: _Run, spec: dict[str, Any] | None) -> dict[str, Any]:
    """Return what a checkpoint must agree with to be continued, as JSON values."""
    config, schedule = asdict(run.config), run.model.schedule
    if callable(run.config.weighting):  # a function is known by its values
        times = np.linspace(schedule.T, schedule.t_end, 9)
        config["weighting"] = np.broadcast_to(run.config.weighting(times), times.shape).tolist()
    try:
        saved = schedule_to_dict(schedule)
    except ValueError as error:
        raise ValueError(f"{error}; leave out the folder to train in Python without saving") from None
    return {
        "net": spec or {k: list(v.shape) for k, v in run.net.state_dict().items()},
        "schedule": saved,
        "parametrization": asdict(run.model.parametrization),
        "train": config,
        "data": {"sha256": fingerprint(run.data)},
    }


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
    data: Dataset, schedule: Schedule, config: TrainConfig, seen: int, classes: int, device: torch.device
) -> tuple[Tensor, Tensor | None, np.ndarray, Tensor]:
    """Return (x0, labels, times, z) of the batch that starts at image ``seen``."""
    count = min(config.batch, config.images - seen)
    index = np.fromiter(order(len(data.x), config.seed, seen, count), np.int64, count)
    key = NoiseKey.of(config.seed, range(seen, seen + count))
    uniform = key.uniform(_TIME_DRAW, 3).to(torch.float64).numpy()
    first = uniform[:, :2] if config.times == "lognormal" else uniform[:, 0]
    assert config.mean is not None and config.std is not None and config.times is not None
    t = losses.sample_times(schedule, first, config.times, config.mean, config.std, config.t_end)
    x0 = torch.from_numpy(data.network_range(index)).to(device)
    z = key.normal(_NOISE_DRAW, math.prod(data.shape)).reshape(x0.shape).to(device)
    cond = None
    if classes:
        assert data.labels is not None
        labels = np.where(uniform[:, 2] < config.label_dropout, classes, data.labels[index])
        cond = torch.from_numpy(labels).to(device)
    return x0, cond, t, z
