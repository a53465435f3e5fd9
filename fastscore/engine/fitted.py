"""Grids fitted to a model: what one is, where it is kept, and how it is found again by the name "tuned".

A fit lies in ``tuned.json`` beside the model, or, of a model that has no folder to write in, in this user's own. It
goes with one network and one solver, so it holds the digest of the weights, and nothing else is taken for them.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
from collections.abc import Iterator
from dataclasses import asdict, dataclass, fields, is_dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from fastscore import solvers
from fastscore.data.limits import regular_file
from fastscore.errors import short, typed
from fastscore.files import write_text
from fastscore.guidance.mixture import Guidance
from fastscore.model.folder import BUNDLED, MAX_CONFIG
from fastscore.model.score import ScoreModel
from fastscore.network import cache
from fastscore.network.prepared import Prepared
from fastscore.network.surroundings import behind
from fastscore.ops.machine import raw
from fastscore.plan.rows import Solver
from fastscore.process.discrete import DiscreteVE, DiscreteVP
from fastscore.process.grid import Grid, Span, Times
from fastscore.process.names import TUNED
from fastscore.process.schedule import Array, Schedule, lam, t_of_lam
from fastscore.solvers.adaptive import Adaptive
from fastscore.solvers.grids import in_time
from fastscore.solvers.names import named

FILE, FORMAT = f"{TUNED}.json", 1


@dataclass(frozen=True)
class Tried:
    """A grid and its solver that a fit has compared: the objective on the ids of the fit, and on those held out."""

    grid: str
    solver: str
    fit: float
    held_out: float


@dataclass(frozen=True)
class FittedGrid:
    """The knots that a fit found for one model and one solver, and what it is known by.

        fit = fs.fit_grid(model, steps=6)
        x = fs.Sampler(model, solver=fit.solver, grid=fit.times(model.schedule)).run(range(64))

    Attributes:
        levels: sigma / alpha of the knots, noisiest first, inf at pure noise. The last one is not evaluated: it is 0,
            where the last step gives the estimate of x_0, or at most 2 % of the data's rms, which is noise that stays.
        solver: what they were fitted for, and with.
        grid: "fitted"; or the named grid that was better on held-out ids, and is therefore what ``levels`` are.
        evaluations: of the network, a sample.
        tried: the fitted grid, first, and the named ones, with the objective of each; see fit_error.py.
        schedule: that was sampled.
        weight: of the guidance that was fitted; 1 is none.
        seed: of the noise. ids, held_out: how many samples were fitted, and how many were kept out of it.
        cost: evaluations of the network that the fit took. seconds: how long.
        date: of the fit, in ISO 8601.
        model: digest of the network; "" of one whose weights nobody can see, whose fit is not kept.
    """

    levels: tuple[float, ...]
    solver: Solver
    grid: str
    evaluations: int
    tried: tuple[Tried, ...]
    schedule: str = ""
    weight: float = 1.0
    seed: int = 0
    ids: int = 0
    held_out: int = 0
    cost: int = 0
    seconds: float = 0.0
    date: str = ""
    model: str = ""

    @property
    def steps(self) -> int:
        """Steps of the solver."""
        return len(self.levels) - 1

    @property
    def error(self) -> float:
        """The objective on held-out ids."""
        return min(tried.held_out for tried in self.tried if tried.grid == self.grid)

    def times(self, schedule: Schedule, trained: Schedule | None = None) -> Times:
        """Return the knots on a schedule: whole indices on the table that the network was ``trained`` on.

        Raises:
            ValueError: a schedule with less noise; or another one than was fitted, of a solver that steps in its time.
        """
        if in_time(self.solver) and self.schedule != described(schedule):
            raise ValueError(
                f"{self.solver} steps in the time of {self.schedule}, to which this grid was fitted, and not in that "
                f"of {described(schedule)}; fit it there, or fit a solver that steps in lam, as dpmpp-2m"
            )
        return times_of(self.levels, schedule, trained)

    def keep(self, folder: Path | str | None) -> Path:
        """Write it to ``tuned.json`` of a folder, in place of one for the same solver, steps and weight; return it.

        Args:
            folder: of the model; this user's own if it is None or cannot be written.

        Raises:
            ValueError: a network or a solver that nobody would know again.
        """
        if not self.model:
            raise ValueError(
                "this network is a function whose weights nobody can see, so that its grid cannot be told from one of "
                "other weights; name its modules, ScoreModel(modules=..), or keep fit.times(schedule) yourself"
            )
        entry = to_dict(self)
        writable = folder is not None and os.access(folder, os.W_OK)
        file = Path(folder) / FILE if folder and writable else cache.private(TUNED) / f"{self.model[:32]}.json"
        others = [kept for kept in read(file) if _key(kept) != _key(self)] if file.exists() else []
        write_text(file, json.dumps({"format": FORMAT, "grids": [*map(to_dict, others), entry]}, indent=1) + "\n")
        return file


def times_of(levels: Any, schedule: Schedule, trained: Schedule | None = None) -> Times:
    """Return the times of levels sigma / alpha on a schedule; see ``FittedGrid.times``."""
    levels = np.asarray(levels, np.float64)
    inner = np.isfinite(levels) & (levels > 0.0)
    if np.isinf(levels[0]) and math.isfinite(float(lam(schedule, schedule.T))):
        raise ValueError(f"this grid begins at pure noise, which {described(schedule)} has not; fit one there")
    t = np.where(levels > 0.0, schedule.T, schedule.t_clean)
    t[inner] = t_of_lam(schedule, -np.log(levels[inner]))
    if isinstance(schedule, DiscreteVP | DiscreteVE) and schedule == trained:
        t[:-1] = np.round(t[:-1])  # where the network is evaluated
    return Times(tuple(t.tolist()))


def levels_of(schedule: Schedule, t: Array) -> tuple[float, ...]:
    """Return sigma / alpha of times."""
    return tuple(np.exp(-lam(schedule, t)).tolist())


def described(schedule: Schedule) -> str:
    """Return a schedule in one line; of one with a long table its kind."""
    return repr(schedule) if len(repr(schedule)) < 500 else type(schedule).__name__


def settled(
    model: ScoreModel,
    schedule: Schedule,
    solver: Solver | Adaptive | str | None,
    grid: Grid | Times | Span | str | None,
    steps: int | None,
    guidance: Guidance | None,
) -> tuple[Any, Any, int | None, bool]:
    """Return solver, grid, steps, and whether they are fitted ones: those that grid="tuned" stands for, else as given.

    They stand for themselves from then on: a sampler that is sent elsewhere, or copied later, has the same knots.
    """
    if not isinstance(grid, str) or grid.strip().lower() != TUNED:
        return solver, grid, steps, False
    fit = fitted(model, named(solver) if isinstance(solver, str) else solver, steps, guidance)
    return fit.solver, fit.times(schedule, model.schedule), None, True


@typed
def fitted(
    model: ScoreModel,
    solver: Solver | Adaptive | None = None,
    steps: int | None = None,
    guidance: Guidance | None = None,
) -> FittedGrid:
    """Return the grid that is kept for a model: for a solver, or the solver that did best on held-out ids.

    One that was fitted without guidance stands in where there is none of this weight.

    Raises:
        ValueError: none for this solver and number of steps, or only those of other weights; with the remedy.
    """
    digest = digest_of(model)
    places = [file for file in _places(model.folder, digest) if file.exists()]
    kept = [fit for file in places for fit in read(file)]
    known = list({_key(fit): fit for fit in reversed(kept) if fit.model == digest}.values())  # a user's own first
    n = steps or 6
    remedy = f"fastscore tune MODEL --evaluations {n}, or fs.fit_grid(model, {n}, keep=True)"
    if not known:
        why = f"{places[0]} is of other weights" if kept else "none was fitted to these weights"
        raise ValueError(f"grid = {TUNED!r}: {why}; fit one: {remedy}")
    weights = {1.0, 1.0 if guidance is None else guidance.weight}
    found = [fit for fit in known if fit.weight in weights]
    found = [fit for fit in found if solver is None or fit.solver == solver]
    if not found:
        fits = ", ".join(sorted({f"{fit.solver} in {fit.steps} steps" for fit in known}))
        raise ValueError(f"grid = {TUNED!r}: fitted for {fits}, not for {short(solver)}; leave solver out, or {remedy}")
    there = sorted({fit.steps for fit in found})
    if steps is None and len(there) == 1:
        steps = there[0]
    found = [fit for fit in found if fit.steps == steps]
    if not found:
        raise ValueError(
            f"grid = {TUNED!r}: fitted for {', '.join(map(str, there))} steps, not for {steps}; take one of "
            f"them, or fit another: {remedy}"
        )
    return min(found, key=lambda fit: (fit.weight == 1.0 and len(weights) > 1, fit.error))


def digest_of(model: ScoreModel) -> str:
    """Return the digest of a network's weights and kinds of layers; "" if nobody can see its weights."""
    net: Any = model.net.origin.model.net if isinstance(model.net, Prepared) and model.net.origin else model.net
    modules = behind(net, *model.modules)
    tensors = [t for m in modules for t in (*m.parameters(recurse=False), *m.buffers(recurse=False))]
    if not modules and is_dataclass(net):  # an exact model
        tensors = [value for value in vars(net).values() if isinstance(value, Tensor)]
    layers = [type(m).__name__ for m in modules]
    digest = hashlib.sha256(repr([model.shape, model.classes, layers]).encode())
    for tensor in tensors:
        digest.update(f"{tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(raw(tensor))
    return digest.hexdigest() if tensors else ""


def home(model: ScoreModel) -> str | None:
    """Return the folder that fits of a model belong to; None for a bundled one, whose folder is fastscore's own."""
    return None if model.folder is None or Path(model.folder).parent == BUNDLED else model.folder


def _places(folder: Path | str | None, digest: str) -> Iterator[Path]:
    """Yield where grids of a model may lie: this user's own place, and beside the model."""
    try:
        yield cache.private(TUNED, make=False) / f"{digest[:32]}.json"
    except OSError:  # no such place
        pass
    if folder is not None:
        yield Path(folder) / FILE


def _key(fit: FittedGrid) -> tuple[Any, ...]:
    return fit.model, fit.steps, repr(fit.solver), fit.weight, fit.schedule if in_time(fit.solver) else ""


def to_dict(fit: FittedGrid) -> dict[str, Any]:
    """Return a fit as plain JSON values; ValueError for a solver that is none of fastscore's own, or made of others."""
    values = {f.name: getattr(fit, f.name) for f in fields(fit)} | {"tried": [asdict(tried) for tried in fit.tried]}
    values["levels"] = [None if level == math.inf else level for level in fit.levels]
    solver: Any = fit.solver
    plain = is_dataclass(solver) and all(
        isinstance(v, bool | int | float | str | tuple | None) for v in vars(solver).values()
    )
    if not plain or type(solver).__name__ not in solvers.__all__:
        raise ValueError(f"{short(solver)} cannot be kept by name; keep fit.times(schedule) with it yourself")
    return {**values, "solver": {"name": type(solver).__name__, **vars(solver)}}


def from_dict(values: dict[str, Any]) -> FittedGrid:
    """Return the fit that ``to_dict`` described; ValueError, TypeError or KeyError for what is none."""
    of_solver = {k: tuple(v) if isinstance(v, list) else v for k, v in values["solver"].items()}
    name = of_solver.pop("name")
    if name not in solvers.__all__:
        raise ValueError(f"solver {short(name)} is none of fastscore's")
    levels = tuple(math.inf if level is None else float(level) for level in values["levels"])
    if len(levels) < 2 or not levels[-1] >= 0.0 or not all(a > b for a, b in pairwise(levels)):
        raise ValueError(f"levels = {short(levels)} must decrease, to 0 at least")
    rows = [(str(t["grid"]), str(t["solver"]), float(t["fit"]), float(t["held_out"])) for t in values["tried"]]
    tried = tuple(Tried(*row) for row in rows)
    fit = FittedGrid(**{**values, "levels": levels, "solver": getattr(solvers, name)(**of_solver), "tried": tried})
    if fit.grid not in {t.grid for t in tried}:
        raise ValueError(f"grid = {short(fit.grid)} is none of those that were tried")
    return replace(fit, weight=float(fit.weight), evaluations=int(fit.evaluations))


def read(file: Path) -> list[FittedGrid]:
    """Return the fits of a file.

    Raises:
        ValueError: a file that fastscore did not write.
    """
    try:
        size = regular_file(file).stat().st_size
        content = json.loads(file.read_text()) if size <= MAX_CONFIG else None
        if not isinstance(content, dict) or content.get("format") != FORMAT:
            raise ValueError(f'it is no object with "format": {FORMAT}')
        return [from_dict(values) for values in content["grids"]]
    except (OSError, ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        raise ValueError(f"{file} holds no fitted grids ({short(error)}); delete it and fit again") from None
