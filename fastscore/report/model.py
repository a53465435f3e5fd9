"""The page of a model: what it is, its schedule, the plan of its default sampler, and how its training went."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from torch import nn

from fastscore.data.limits import regular_file
from fastscore.model.score import ScoreModel
from fastscore.plan.rows import Plan
from fastscore.report.page import Chart, Facts, Part, Picture, Section, Table
from fastscore.report.schedule import plan_parts, schedule_charts

LONGEST = 1 << 26  # bytes of a curve or a table of grids
PICTURE, LOSS, GRIDS = "samples.png", "loss.csv", "tuned.json"


def model_page(
    name: str, model: ScoreModel, plan: Plan, knots: Sequence[float], chosen: Mapping[str, str]
) -> tuple[str, str, list[Section]]:
    """Return the title, the text and the sections of a model's page.

    Args:
        name: as it was given.
        plan, knots: of its default sampler.
        chosen: solver and grid of that, in words.
    """
    folder = None if model.folder is None else Path(model.folder)
    schedule = repr(model.schedule) if len(repr(model.schedule)) < 500 else type(model.schedule).__name__
    net: Any = model.net
    facts = {
        "shape of a sample": " x ".join(map(str, model.shape)),
        "schedule": schedule,
        "predicts": model.parametrization.prediction,
        "time label": str(model.parametrization.label),
        "network": type(net).__name__,
        "parameters": f"{sum(p.numel() for p in net.parameters()):,}" if isinstance(net, nn.Module) else None,
        "classes": ", ".join(model.class_names) or model.classes or None,
        "folder": model.folder,
        **{f"made: {k}": v for k, v in model.info.items()},
    }
    sections = [
        Section("The model", "", [Facts({k: v for k, v in facts.items() if v is not None}), *_picture(folder)]),
        Section("Schedule", "", schedule_charts(model.schedule, knots)),
        Section("Default plan", f"{plan.nfe} evaluations of the network.", [Facts(chosen), *plan_parts(plan)]),
    ]
    if folder is not None and (folder / LOSS).is_file():
        sections.append(_loss(folder / LOSS))
    if folder is not None and (folder / GRIDS).is_file():
        sections.append(_grids(folder / GRIDS))
    return f"Model {name}", f"It makes samples of shape {facts['shape of a sample']} on {schedule}.", sections


def _picture(folder: Path | None) -> Iterator[Part]:
    if folder is not None and (folder / PICTURE).is_file():
        yield Picture((folder / PICTURE).read_bytes(), f"Samples of the model, {PICTURE} of its folder.")


def _loss(file: Path) -> Section:
    """Return the loss over the images seen, from loss.csv."""
    try:
        if regular_file(file).stat().st_size > LONGEST:
            raise ValueError(f"above {LONGEST} bytes")
        curve = np.genfromtxt(file, delimiter=",", names=True, ndmin=1)
        seen, loss = (np.asarray(curve[name], np.float64) for name in ("images", "loss"))
    except (ValueError, IndexError, OSError, UnicodeDecodeError) as error:
        return Section("Loss", f"{file.name} cannot be read ({error}).")
    if not len(loss):
        return Section("Loss", f"{file.name} holds no losses yet.")
    log = bool(np.all(loss > 0.0))
    text = f"Training loss, {LOSS}, means of 50 steps; the last is {loss[-1]:.4g} after {seen[-1]:,.0f} examples."
    return Section("Loss", "", [Chart({"loss": (seen, loss)}, "training examples", "loss", log_y=log, text=text)])


def _grids(file: Path) -> Section:
    """Return the grids that were fitted to the model, from tuned.json."""
    title = "Fitted grids"
    try:
        if regular_file(file).stat().st_size > LONGEST:
            raise ValueError(f"above {LONGEST} bytes")
        grids = json.loads(file.read_bytes())["grids"]
        rows, curves = list[list[Any]](), dict[str, tuple[Any, Any]]()
        for grid in grids:
            best = min((v["held_out"] for v in grid["tried"] if v["grid"] == grid["grid"]), default=None)
            solver = next((v["solver"] for v in grid["tried"]), None) or str(grid["solver"])
            rows.append([grid["evaluations"], solver, grid["grid"], grid.get("weight", 1.0), best, grid.get("date")])
            levels = np.array([np.inf if v is None else float(v) for v in grid["levels"]])
            guided = "" if grid.get("weight", 1.0) == 1.0 else f", guided {grid['weight']:g}"
            curves[f"{grid['evaluations']} evaluations, {solver}{guided}"] = np.arange(len(levels)), levels
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        return Section(title, f"{file.name} cannot be read ({error}).")
    head = ["evaluations", "solver", "grid", "guidance", "error held out", "date"]
    table = Table(head, rows[:200], "Fits that --grid tuned finds; the error is that of the fit's held-out samples")
    text = "Noise levels sigma / alpha of the knots; a last one of 0 is not drawn."
    chart = Chart(dict(list(curves.items())[:8]), "knot", "sigma / alpha", log_y=True, text=text)
    return Section(title, "", [table, chart] if rows else [table])
