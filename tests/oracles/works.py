"""What works with what, found by trying: ``python tests/oracles/works.py`` writes the page of it."""

from __future__ import annotations

import warnings
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import fastscore as fs

PAGE = Path(__file__).parents[2] / "fastscore" / "WORKS.md"
SHAPE, IDS = (2, 3), (4, 0, 9)
COLUMNS = ("plan", "plan + Langevin", "Picard", "adaptive ODE", "adaptive SDE", "joint", "Engine")


def net(u: Tensor, c_noise: Tensor, cond: Tensor | dict | None = None) -> Tensor:
    if isinstance(cond, dict):
        cond = (cond["tokens"] * cond["mask"]).sum(1) + cond["labels"]
    shift = 0.0 if cond is None else 0.3 * cond.to(u).reshape(len(u), -1)[:, :1].reshape(-1, *[1] * (u.ndim - 1))
    return u / (1.0 + u * u) + 0.1 * c_noise.reshape(-1, *[1] * (u.ndim - 1)) + shift


def worse(u: Tensor, c_noise: Tensor, cond: Tensor | None = None) -> Tensor:
    return 0.5 * net(u, c_noise, cond)


def both(u: dict, c_noise: dict, cond: Tensor | None = None) -> dict:
    return {name: net(u[name], c_noise[name], cond) for name in u}


def both_worse(u: dict, c_noise: dict, cond: Tensor | None = None) -> dict:
    return {name: worse(u[name], c_noise[name], cond) for name in u}


def run(
    column: str, model: dict, settings: dict, asked: dict, batch: int = 2, ids: tuple[int, ...] = IDS, seed: Any = 3
) -> Tensor:
    """Draw with one kind of sampler; return [n, D]."""
    if column == "joint":
        model, on = {k: v for k, v in model.items() if k != "projection"}, {"projection": model.get("projection")}
        parts = {"a": fs.Part(SHAPE, fs.VP(), **on), "b": fs.Part(SHAPE, fs.VE(), **on)}
        init = asked.get("init")
        asked = {**asked, "init": {"a": init, "b": init}} if init is not None else asked
        guidance = settings.get("guidance")
        if guidance is not None and guidance.model is not None:
            settings = {**settings, "guidance": replace(guidance, model=fs.JointModel(both_worse, parts, **model))}
        sampler: Any = fs.JointSampler(fs.JointModel(both, parts, **model), grid=fs.uniform(4), batch=batch, **settings)
        result = sampler.run(ids, seed, **asked)
        return torch.cat([result[k].flatten(1) for k in parts], 1)
    solver = {
        "plan": fs.DDIM(0.5),
        "plan + Langevin": fs.PredictorCorrector(fs.DDIM(), fs.Langevin()),
        "Picard": fs.DDIM(0.5),
        "adaptive ODE": fs.BogackiShampine(0.1, 0.1),
        "adaptive SDE": fs.GottaGoFast(1.0, 1.0),
        "Engine": fs.DDIM(0.5),
    }[column]
    grid = None if column.startswith("adaptive") else fs.uniform(4)
    parallel = fs.Picard(3) if column == "Picard" else None
    sampler = fs.Sampler(
        fs.ScoreModel(net, SHAPE, fs.VP(), fs.Parametrization("v"), **model),
        solver=solver,
        grid=grid,
        batch=batch,
        parallel=parallel,
        **settings,
    )
    if column == "Engine":
        engine = fs.Engine(sampler.model, batch=batch)
        return engine.submit(sampler, ids, seed, **asked).result().flatten(1)
    return sampler.run(ids, seed, **asked).flatten(1)


def _second() -> fs.ScoreModel:
    return fs.ScoreModel(worse, SHAPE, fs.VP(), fs.Parametrization("v"), classes=3, null=3)


def features() -> dict[str, tuple[dict, dict, dict, dict]]:
    """Each feature: model, what a run is given anyway, settings and arguments that bring the feature in."""
    labels, classes = {"labels": [0, 1, 2]}, {"classes": 3, "null": 3}
    y = 0.25 * torch.ones(SHAPE)
    mask = torch.zeros(SHAPE, dtype=torch.bool)
    mask[0] = True
    named = {"classes": 3, "cond_shape": {"tokens": (None,), "mask": (2,)}}
    null = {"labels": 3, "tokens": torch.zeros(2, dtype=torch.int64), "mask": torch.ones(2, dtype=torch.bool)}
    told = {"labels": 1, "cond": {"tokens": torch.tensor([[4, 0], [2, 5], [7, 1]])}}
    sets = {"cond_shape": (2,), "null": torch.ones(2, dtype=torch.bool), "projection": fs.Padded()}
    rule = {"guidance": fs.Guidance(3.0)}
    recorded = torch.linspace(-1.0, 1.0, 12 * 3 * 12).reshape(12, 3, 12)
    return {
        "labels": (classes, {}, {}, labels),
        "conditioning tensors": ({"cond_shape": (2,), "null": torch.zeros(2)}, {}, {}, {"cond": torch.ones(2)}),
        "labels beside named tensors": ({**named, "null": null}, {}, {"guidance": fs.Guidance(2.0)}, told),
        "sets and subspaces (a projection)": (sets, {}, {}, {"cond": torch.tensor([[1, 0], [1, 1], [0, 1]]).bool()}),
        "guidance": (classes, labels, {"guidance": fs.Guidance(2.0)}, {}),
        "guidance in an interval": (classes, labels, {"guidance": fs.Guidance(2.0, (0.1, 5.0))}, {}),
        "guidance by a second model": (classes, labels, {"guidance": fs.Guidance(2.0, model=_second())}, {}),
        "guidance by CFG++": (classes, labels, {"guidance": fs.Guidance(0.6, rule="cfg++")}, {}),
        "several conditions": (classes, labels, {"guidance": fs.Guidance((2.0, 1.5))}, {"others": [[2, 0, 1]]}),
        "negative conditions": (classes, labels, {"guidance": fs.Guidance(2.0)}, {"negative": [1, 2, 0]}),
        "rules of guidance (APG, ..)": (classes, labels, {**rule, "guide": fs.APG(0.2, 0.1)}, {}),
        "rules with momentum": (classes, labels, {**rule, "guide": fs.APG(0.2, 0.1, -0.5)}, {}),
        "guides (DPS, PiGDM, ..)": ({}, {}, {"guide": fs.DynamicThreshold(0.5, 0.2)}, {}),
        "known data": ({}, {}, {}, {"known": fs.Known(y, mask)}),
        "start from data or a state": ({}, {}, {"start": "data"}, {"init": y}),
        "clip": ({}, {}, {"clip": 0.3}, {}),
        "recorded noise": ({}, {}, {}, {"noise": recorded}),
        "callback": ({}, {}, {}, {"callback": lambda step: None}),
    }


@cache
def attempt(feature: str, column: str, batch: int = 2) -> tuple[Tensor | None, str]:
    """Return samples with a feature; None and the reason where they do not go together."""
    model, given, settings, asked = features()[feature]
    if feature == "recorded noise" and column != "joint":
        asked = {"noise": asked["noise"][..., :6]}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Langevin in few dimensions
        try:
            return run(column, model, settings, {**given, **asked}, batch), ""
        except (ValueError, TypeError) as error:
            return None, str(error)


_plain: dict[str, Tensor] = {}  # what several features have in common


def without(feature: str, column: str) -> Tensor:
    """Return the samples of a model that could have a feature, without it."""
    model, given, _, _ = features()[feature]
    key = repr((column, model, given))
    if key not in _plain:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            _plain[key] = run(column, model, {}, given)
    return _plain[key]


def works(feature: str, column: str) -> bool:
    return attempt(feature, column)[0] is not None


def table() -> str:
    """The table in Markdown."""
    lines = ["| | " + " | ".join(COLUMNS) + " |", "|---" * (1 + len(COLUMNS)) + "|"]
    for feature in features():
        cells = ["yes" if works(feature, column) else "no" for column in COLUMNS]
        lines.append(f"| {feature} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def page() -> str:
    """The page with the table as it is now."""
    head = PAGE.read_text().split("\n| |")[0]
    return f"{head}\n{table()}\n"


if __name__ == "__main__":
    PAGE.write_text(page())
