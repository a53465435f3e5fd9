"""From a folder, pipeline or network of diffusers to a score model and the settings of a Sampler."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from fastscore.adapters.diffusers.latents import latents_of
from fastscore.adapters.diffusers.library import library
from fastscore.adapters.diffusers.models import Call, Labels, Network, call_of
from fastscore.adapters.diffusers.samplers import Recipe, described, repeated
from fastscore.errors import short, typed
from fastscore.guidance.mixture import Guidance
from fastscore.model.score import ScoreModel
from fastscore.plan.rows import Solver
from fastscore.solvers.adaptive import Adaptive

NETWORKS = ("unet", "transformer", "prior")  # components, by the names that pipelines give them
DECODERS = ("vae", "vqvae", "movq")
BESIDE = ("transformer_2", "controlnet", "motion_adapter")  # what a network is only part of a sampler with
STEPS = 50  # of a scheduler that is repeated, as in most pipelines; DDPM's are all those of its table
Source = str | Path | nn.Module | Any


@typed
def from_diffusers(
    source: Source,
    scheduler: Any = None,
    *,
    steps: int | None = None,
    solver: Solver | Adaptive | str | None = None,
    shape: tuple[int, ...] | None = None,
    guidance_scale: float | None = None,
    null: int | Tensor | Mapping[str, Tensor | int] | None = None,
    conditions: Mapping[str, tuple[int | None, ...]] | None = None,
    eta: float = 0.0,
    decoder: Any = True,
    decode_batch: int = 1,
    tiled: bool = False,
    dtype: Any = None,
    device: Any = None,
    **timing: Any,
) -> tuple[ScoreModel, dict[str, Any]]:
    """Return a network of diffusers as a score model, and the settings under which it samples as there.

        model, settings = from_diffusers("folder", steps=20)
        x = Sampler(model, **settings).run(ids=range(64), seed=0)

    Without ``solver`` a run equals the loop of the source's own scheduler on the same normals; a scheduler that cannot
    be repeated exactly is refused, with the nearest that can. With one the settings are that solver and ``steps``, on
    the schedule and the prediction that the scheduler says. Nothing is downloaded, and no code of a folder is run.

    Args:
        source: the folder of a pipeline or of one network, a pipeline, or a network.
        scheduler: in place of the source's own: a scheduler, its folder, or its config as a dict; one without
            ``_class_name`` says only what the network was trained on, and goes with ``solver``.
        steps: the scheduler's num_inference_steps: 50 if left out, and of DDPM all; or those of ``solver``.
        solver: see Sampler.
        shape: of one sample, [C, H, W]; the network's sample_size if left out.
        guidance_scale: w of classifier-free guidance, u + w (c - u); of a network with embedded guidance its number,
            3.5 if left out, as in Flux' pipeline.
        null: the condition that stands for none: a label, or a dict {name: tensor}, as ScoreModel's.
        conditions: {argument: shape} of further tensors that the network's forward takes.
        eta: of DDIM.
        decoder: an autoencoder that turns samples into images; True is the source's own, None is none.
        decode_batch: samples that are decoded together, always so many.
        tiled: decode in tiles, for images that are larger than the autoencoder was trained on.
        dtype, device: that weights of a folder are converted and moved to.
        timing: further arguments of the scheduler's ``set_timesteps``: mu, sigmas, timesteps.

    Returns: (model, settings) for ``Sampler(model, **settings)``.

    Raises:
        ImportError: a folder or a config, and no diffusers.
        ValueError: what is not there, not known or not repeated; the message names it.
    """
    parts = _parts(source, scheduler, decoder, dtype)
    if device is not None and isinstance(source, str | Path):
        for net in (parts.net, parts.decoder):
            if isinstance(net, nn.Module):
                net.to(device)
    call = call_of(parts.net, conditions)
    recipe, settings = _sampled(parts, call, steps, solver, eta, timing)
    if guidance_scale is not None and not call.guidance and guidance_scale != 1.0:
        settings["guidance"] = Guidance(guidance_scale)
    labels = Labels(recipe.scale, *zip(*recipe.pairs, strict=True)) if recipe.pairs else Labels(recipe.scale)
    net = Network(parts.net, call, labels, recipe.sign, 3.5 if guidance_scale is None else guidance_scale)
    shape = _shape(parts.net, call, shape)
    model = ScoreModel(
        net, shape, recipe.schedule, recipe.parametrization,
        classes=call.classes, cond_shape=dict(call.conditions) or None,
        null=call.null if null is None else null,
        decoder=None if parts.decoder is None else latents_of(parts.decoder, shape, decode_batch, tiled),
    )  # fmt: skip
    return model, settings


@dataclass(frozen=True)
class _Parts:
    net: nn.Module
    scheduler: Any
    decoder: Any


def _sampled(
    parts: _Parts, call: Call, steps: int | None, solver: Any, eta: float, timing: Mapping[str, Any]
) -> tuple[Recipe, dict[str, Any]]:
    scheduler = parts.scheduler
    if solver is not None:
        named = isinstance(scheduler, Mapping)
        recipe = described(scheduler if named else dict(scheduler.config) | {"_class_name": type(scheduler).__name__})
        if timing:
            raise ValueError(f"{', '.join(timing)}: these go to a scheduler that is repeated; leave solver out")
        return recipe, {**recipe.settings, "solver": solver, **({} if steps is None else {"steps": steps})}
    if isinstance(scheduler, Mapping):
        raise ValueError("scheduler: this config has no _class_name, so that only solver= says how to step")
    if steps is None and not {"sigmas", "timesteps"} & timing.keys():
        steps = STEPS
        if type(scheduler).__name__ == "DDPMScheduler":
            steps = scheduler.config.num_train_timesteps
    recipe = repeated(scheduler, steps, eta, **timing)
    return recipe, dict(recipe.settings)


def _parts(source: Source, scheduler: Any, decoder: Any, dtype: Any) -> _Parts:
    found: dict[str, Any] = {}
    if isinstance(source, str | Path):
        found = _folder(Path(source), scheduler is None, decoder is True, dtype)
    elif isinstance(source, nn.Module):
        found = {"unet": source}
    elif isinstance(getattr(source, "components", None), Mapping):
        found = dict(source.components)
    else:
        raise ValueError(f"source = {short(source)} must be a folder, a pipeline of diffusers or a network")
    if beside := [name for name in BESIDE if found.get(name) is not None]:
        raise ValueError(f"source has {', '.join(beside)} beside its network, which is not sampled here")
    nets = [found[name] for name in NETWORKS if isinstance(found.get(name), nn.Module)]
    if len(nets) != 1:
        raise ValueError(f"source has {len(nets)} networks ({', '.join(NETWORKS)}); give one, and scheduler=")
    scheduler = found.get("scheduler") if scheduler is None else scheduler
    if isinstance(scheduler, str | Path):
        scheduler = _loaded(None, Path(scheduler), {})
    if isinstance(scheduler, Mapping) and "_class_name" in scheduler:  # whose defaults are part of it
        scheduler = _made(scheduler)
    if not isinstance(scheduler, Mapping) and not hasattr(scheduler, "config"):
        raise ValueError("scheduler is missing: give one of diffusers, its config as a dict, or the folder it lies in")
    if decoder is True:
        decoder = next((found[name] for name in DECODERS if found.get(name) is not None), None)
    return _Parts(nets[0], scheduler, decoder)


def _made(config: Mapping[str, Any]) -> Any:
    """Return the scheduler of a config."""
    name = config["_class_name"]
    kind = _class(str(name))
    if kind is None or not hasattr(kind, "set_timesteps"):
        raise ValueError(f"scheduler: _class_name = {short(name)} is no scheduler of diffusers")
    return kind.from_config(dict(config))


def _class(name: str) -> Any:
    """Return a class of diffusers, or our scheduler of pipelines; None if there is none of that name."""
    diffusers = library()
    return import_module("fastscore").Scheduler if name == "Scheduler" else getattr(diffusers, name, None)


def _folder(folder: Path, scheduler: bool, decoder: bool, dtype: Any) -> dict[str, Any]:
    """Return the components of a folder that are asked for, from its files alone."""
    index = folder / "model_index.json"
    if not index.is_file():
        return _one(folder, dtype)
    names = [*NETWORKS, *BESIDE, *(["scheduler"] if scheduler else []), *(DECODERS if decoder else [])]
    entries = {k: v for k, v in json.loads(index.read_text()).items() if k in names and v != [None, None]}
    for name, entry in entries.items():
        ours = entry == ["fastscore", "Scheduler"]
        if not ours and not (isinstance(entry, list) and len(entry) == 2 and entry[0] == "diffusers"):
            raise ValueError(f"{index}: {name} is {short(entry)}; only classes of diffusers itself are made")
    return {
        name: _loaded(kind, folder / name, {} if name == "scheduler" else {"torch_dtype": dtype})
        for name, (_, kind) in entries.items()
    }


def _one(folder: Path, dtype: Any) -> dict[str, Any]:
    """Return the network in a folder without a pipeline, and the scheduler beside it if there is one."""
    place = next((folder / name for name in NETWORKS if (folder / name / "config.json").is_file()), folder)
    if not (place / "config.json").is_file():
        raise ValueError(f"{folder} has no model_index.json, no unet/config.json and no config.json of diffusers")
    found = {"unet": _loaded(None, place, {"torch_dtype": dtype})}
    for at in (folder / "scheduler", folder):
        if "scheduler" not in found and (at / "scheduler_config.json").is_file():
            found["scheduler"] = _loaded(None, at, {})
    return found


def _loaded(kind: str | None, place: Path, options: Mapping[str, Any]) -> Any:
    """Return a component as its own class loads it, offline."""
    files = [place / name for name in ("config.json", "scheduler_config.json") if (place / name).is_file()]
    if not files:  # where diffusers would ask a server for it
        raise ValueError(f"{place} holds no config.json and no scheduler_config.json")
    kind = kind or json.loads(files[0].read_text()).get("_class_name")
    found = _class(str(kind))
    if not hasattr(found, "from_pretrained"):
        raise ValueError(f"{place}: {short(kind)} is no class of diffusers {library().__version__}")
    options = {k: v for k, v in options.items() if v is not None}
    return found.from_pretrained(str(place), local_files_only=True, **options)


def _shape(net: nn.Module, call: Call, shape: tuple[int, ...] | None) -> tuple[int, ...]:
    """Return the shape of a network's samples: as given, or by its config."""
    config: Any = getattr(net, "config", {})
    size, channels = config.get("sample_size"), config.get("in_channels")
    outputs = config.get("out_channels") or channels
    if channels is not None and outputs not in (channels, 2 * channels):
        raise ValueError(
            f"{type(net).__name__} reads {channels} channels and writes {outputs}: what the others condition on has no "
            "name here; put it into a module of your own, with forward(sample, timestep, ..)"
        )
    if shape is not None:
        return tuple(shape)
    if size is None or channels is None:
        kind = type(net).__name__
        raise ValueError(f"{kind} does not say the size of its samples: give shape=(channels, height, width)")
    sides = tuple(size) if isinstance(size, list | tuple) else (size,) * (1 if "1D" in type(net).__name__ else 2)
    return (channels // 4 if call.packs else channels, *sides)
