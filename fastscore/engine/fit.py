"""Grids fitted to a model: few knots, and a solver, that end nearest to where many steps from the same noise end.

Noise is addressable, so a run in few steps starts from the very x_T of a fine one, and the distance between their ends
is an error without sampling noise, smooth in the knots. It is searched without gradients: of the named grids and the
cheapest paths of a dynamic programme (solvers/gits.py) the best few are improved one knot at a time. Ids that nothing
was fitted to decide in the end whether the result is better than the best named grid, which is otherwise returned.
"""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import replace
from datetime import date
from typing import TYPE_CHECKING, Any

from torch import Tensor

from fastscore import solvers as s
from fastscore.engine.bind import fitting
from fastscore.engine.fit_error import EndError
from fastscore.engine.fit_paths import Paths, Teacher
from fastscore.engine.fit_search import Levels, compass
from fastscore.engine.fitted import FittedGrid, Tried, described, digest_of, home, levels_of
from fastscore.engine.request import Request
from fastscore.errors import short, typed
from fastscore.execution import Execution, ExecutionFields
from fastscore.guidance.mixture import Guidance
from fastscore.model.conditions import Given, Labels
from fastscore.model.score import ScoreModel
from fastscore.output.progress import Told, followed
from fastscore.plan.rows import Solver
from fastscore.process.names import GRIDS, INDICES
from fastscore.process.schedule import Schedule
from fastscore.solvers.adaptive import Adaptive
from fastscore.solvers.gits import COEFFS, cheapest_path
from fastscore.solvers.names import DEFAULT, named

if TYPE_CHECKING:
    from typing_extensions import Unpack

IDS, HELD = 192, 3  # one of so many is held out
FITTED, ENDS = "fitted", ("default", "karras")  # the name of a fit; grids whose last level is also tried as an end
FINE, FINER = 40, 4  # steps of the teacher: at least so many, and so many for each step of the student
SCREENED, STARTS, FINALISTS = 32, 3, 2  # samples that choose starts and solvers; starts; those that are improved
ROUGH, FULL = 24, 24  # trials of each finalist on a part of the samples, and of the best one on all
NOISE, QUIET = 20.0, 0.02  # least noise of the first knot, and most of the last one, over the rms of the data
# One evaluation a step, no noise; first the default solver, with which what is found is compared.
SEARCHED: tuple[Solver, ...] = (
    s.DPMpp2M(),
    s.DPMMultistep(2),
    s.DPMMultistep(3),
    s.UniPC(2),
    s.UniPC(3, lower_order_final=True),
    s.DEIS(2),
    s.IPNDM(2),
)


@typed
def fit_grid(
    model: ScoreModel,
    steps: int,
    solver: Solver | Adaptive | str | None = None,
    *,
    schedule: Schedule | None = None,
    guidance: Guidance | None = None,
    ids: Sequence[int] | Tensor = range(IDS),
    seed: int = 0,
    labels: Labels = None,
    cond: Given = None,
    time_limit: float | None = None,
    keep: bool = False,
    progress: Told = False,
    execution: Execution | None = None,
    **fields: Unpack[ExecutionFields],
) -> FittedGrid:
    """Fit the knots of ``steps`` steps, and the solver if none is given, to a model; the same call, the same grid.

        fit = fs.fit_grid(model, 6, keep=True)
        x = fs.Sampler(model, grid="tuned", steps=6).run(range(64))

    A fit is for runs as it was fitted, guidance included; bench/studies/tuned_grids.py measures what one gains.

    Args:
        model: images, points or sets; exact models too.
        steps: at least 1, of the solver; each is one evaluation but of solvers with stages.
        solver: that draws no noise, as one that does ends elsewhere whatever its knots; those of SEARCHED if left out.
        schedule: that is sampled; the model's own if left out.
        guidance: of the runs to be fitted.
        ids, seed: of the samples; each third of them is held out. At least 6.
        labels, cond: as for ``Sampler.run``; random labels if left out.
        time_limit: seconds after which no knot is moved any more; the result then depends on the machine.
        keep: whether to write it beside the model, where ``grid="tuned"`` finds it; see ``FittedGrid.keep``.
        progress: as for ``Sampler.run``, in evaluations of the network.
        execution, fields: as for ``Sampler``; network="auto" is some four times as fast on a CPU.

    Raises:
        ValueError: a solver that chooses its steps or draws noise, too few ids, or what ``Sampler`` refuses.
    """
    started = time.monotonic()
    if not 1 <= steps <= 1000:
        raise ValueError(f"steps = {steps} must lie in 1 .. 1000; from some 20 on a fitted grid gains little")
    if time_limit is not None and not time_limit > 0.0:
        raise ValueError(f"time_limit = {time_limit} must be positive, in seconds")
    if guidance is not None:
        guidance.check(model)
    second = (guidance and guidance.model) or model
    if not isinstance(second, ScoreModel):
        raise ValueError(f"guidance: the second model is a {type(second).__name__}; a fit takes a ScoreModel")
    asked, dtype = Execution.of(execution, **fields).around(*model.networks, *second.networks)
    if asked.place.type == "cpu":  # where a batch that is not full costs as much as one that is
        asked = replace(asked, batch=min(asked.batch, SCREENED))
    if labels is None and cond is None and model.classes:
        labels = "random"
    request = Request.of(model, asked.place, ids, seed, labels=labels, cond=cond)
    n = len(request)
    if n < 2 * HELD:
        raise ValueError(f"ids are {n}; a fit takes at least {2 * HELD}, of which it holds each third out")
    held = range(HELD - 1, n, HELD)
    request = request.at([*sorted(set(range(n)) - set(held)), *held])
    paths = Paths(model, schedule or model.schedule, guidance, asked, dtype, request)
    search = Search(paths, steps, _solvers(solver, paths, steps), n - len(held), started, time_limit or math.inf)
    with followed(progress, search.planned, "evaluations") as reach:
        if reach is not None:
            paths.told = lambda cost: reach(min(cost, search.planned))
        levels, chosen, tried = search.run()
    best = min(tried, key=lambda one: (one.held_out, one.grid != FITTED))
    if best.grid != FITTED:  # the named grid is better where nothing was fitted
        chosen = next(one for one in (chosen, SEARCHED[0]) if repr(one) == best.solver)
        levels = search.named_levels(chosen)[best.grid]
    plan = paths.bound(chosen, levels).plan
    result = FittedGrid(
        levels, chosen, best.grid, plan.nfe, tried, described(paths.schedule),
        1.0 if guidance is None else guidance.total, int(request.key.seed[0]), n - len(held), len(held),
        paths.cost, round(time.monotonic() - started, 1), date.today().isoformat(), digest_of(model),
    )  # fmt: skip
    if keep:
        result.keep(home(model))
    return result


def _solvers(solver: Solver | Adaptive | str | None, paths: Paths, steps: int) -> tuple[Solver, ...]:
    """Return the solvers to fit; ValueError for one whose samples its grid does not decide."""
    if solver is None:
        return SEARCHED
    chosen = named(solver) if isinstance(solver, str) else solver
    if isinstance(chosen, Adaptive):
        raise ValueError(f"{short(chosen)} chooses its steps by rtol and atol; fit a solver with a grid, as {DEFAULT}")
    levels = levels_of(paths.schedule, fitting(paths.model, paths.schedule, chosen, None, steps)(paths.schedule))
    if any(row.noisy for row in paths.bound(chosen, levels).plan.rows[1:]):
        raise ValueError(
            f"{short(chosen)} draws noise in its steps, other noise in few of them than in many, so that the grid does "
            f"not decide where a sample ends; fit a solver without, as {DEFAULT}"
        )
    return (chosen,)


class Search:
    """One fit: what it tries, in which order, and what that costs.

    Args:
        paths: of all samples, those of the fit first.
        steps, solvers: to be fitted.
        n: samples of the fit.
        started, limit: seconds after ``started`` at which no knot is moved any more.
    """

    def __init__(
        self, paths: Paths, steps: int, solvers: Sequence[Solver], n: int, started: float, limit: float
    ) -> None:
        self.paths, self.steps, self.solvers, self.n, self.total = paths, steps, solvers, n, len(paths.request)
        self.end, self.fine = started + limit, max(FINE, FINER * steps)
        self.few, self.half = min(SCREENED, n), min(n, 2 * SCREENED)
        self.names = [name for name in GRIDS if name not in INDICES]
        self.known: dict[tuple[Any, ...], float] = {}

    @property
    def planned(self) -> int:
        """Evaluations of the network, at most; solvers with stages and guidance take more for each step."""
        finalists = min(FINALISTS, len(self.solvers))
        starts = len(self.names) + 2 * len(ENDS) + len(COEFFS) + len(self.solvers) * STARTS
        runs = starts * self.few + finalists * ROUGH * self.half + FULL * self.n
        named_runs = (STARTS + 1) * (1 + (len(self.solvers) > 1)) * self.total + len(self.names) * self.few
        return self.fine * self.total + self.steps * (runs + named_runs)

    def run(self) -> tuple[Levels, Solver, tuple[Tried, ...]]:
        """Return the fitted levels, their solver, and the table of what was compared."""
        teacher = self.paths.teacher(self.fine)
        self.error = EndError(teacher.ends, self.paths.model.shape)
        few, half, all_ids = slice(0, self.few), slice(0, self.half), slice(0, self.n)
        first, starts = self.solvers[0], self.starts(teacher)
        starts = sorted(starts, key=lambda levels: self.of(first, levels, few))[:STARTS]
        pairs = sorted(
            ((self.of(solver, levels, few), k, levels) for k, solver in enumerate(self.solvers) for levels in starts),
        )
        best_of = {k: levels for _, k, levels in reversed(pairs)}  # of each solver its best start
        order = list(dict.fromkeys(k for _, k, _ in pairs))[:FINALISTS]
        rough = []
        for k in order:
            levels = self.improved(self.solvers[k], best_of[k], half, ROUGH)
            rough.append((self.of(self.solvers[k], levels, half), k, levels))
        _, k, levels = min(rough)
        solver = self.solvers[k]
        levels = self.improved(solver, levels, all_ids, FULL, first=0.1)
        return levels, solver, self.compared(solver, levels)

    def starts(self, teacher: Teacher) -> list[Levels]:
        """Return grids to begin with: the named ones, to the data and to little noise, and those of the programme."""
        first, paths, found = self.solvers[0], self.paths, list[Levels | None]()
        found += self.named_levels(first).values()
        for name in ENDS:
            more = paths.named(first, self.steps + 1, name)
            found += [more and more[:-1]]
        for coeff in COEFFS:
            path, _ = cheapest_path(teacher.costs, self.steps + 1, coeff)
            found.append(tuple(teacher.levels[k] for k in path))
        return list(dict.fromkeys(levels for levels in found if levels is not None))

    def named_levels(self, solver: Solver) -> dict[str, Levels]:
        """Return the levels of the named grids that a solver can have, each once, under the first of its names."""
        first: dict[Levels, str] = {}
        for name in self.names:
            levels = self.paths.named(solver, self.steps, name)
            if levels is not None:
                first.setdefault(levels, name)
        return {name: levels for levels, name in first.items()}

    def improved(self, solver: Solver, levels: Levels, at: slice, trials: int, **how: Any) -> Levels:
        """Return the levels after a search on some of the samples."""
        first = min(levels[0], NOISE * self.error.scale)  # x_T is noise alone: a start with signal loses that
        last = max(levels[-1], QUIET * self.error.scale)

        def error(moved: Levels) -> float:
            late = time.monotonic() > self.end and moved != levels
            return math.inf if late or moved[0] < first or moved[-1] > last else self.of(solver, moved, at)

        return compass(error, levels, trials, **how)

    def of(self, solver: Solver, levels: Levels, at: slice) -> float:
        """Return the error of levels on some of the samples; inf where they cannot be run."""
        key = (repr(solver), levels, at.start, at.stop)
        if key not in self.known:
            ends = self.paths.ends(solver, levels, at)
            self.known[key] = math.inf if ends is None else self.error(ends, at)
        return self.known[key]

    def compared(self, solver: Solver, levels: Levels) -> tuple[Tried, ...]:
        """Return the fitted levels and the named grids that come nearest, on the ids of the fit and on the others."""
        fitted, held, few = slice(0, self.n), slice(self.n, self.total), slice(0, self.few)
        rows = [(FITTED, solver, levels)]
        for one in dict.fromkeys((solver, self.solvers[0])):
            known = self.named_levels(one)
            near = sorted(known, key=lambda name: (name != "default", self.of(one, known[name], few)))[: STARTS + 1]
            rows += [(name, one, known[name]) for name in near]
        return tuple(
            Tried(name, repr(one), self.of(one, grid, fitted), self.of(one, grid, held)) for name, one, grid in rows
        )
