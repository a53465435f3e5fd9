"""fastscore tune: fit a time grid, and a solver, to a model."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from fastscore.cli.groups import Grouped
from fastscore.cli.known import MODEL
from fastscore.cli.options import NETWORKS, device_option, load, make_schedule, schedule_options
from fastscore.cli.types import Count, Ids, Interval, Name, Number, Out, SolverName
from fastscore.process.names import SCHEDULES, TUNED
from fastscore.solvers import names as n

if TYPE_CHECKING:
    from fastscore.engine.fitted import FittedGrid
    from fastscore.plan.rows import Solver


@click.command(cls=Grouped)
@click.argument("model", type=MODEL)
@click.option("--evaluations", type=Count(1, 1000), required=True, help="Of the network, a sample, without guidance.")
@click.option("--solver", type=SolverName(n.SOLVERS), help="One without noise or tolerance.  [default: searched]")
@click.option("--ids", type=Ids(), help="Samples to fit, of which each third is held out.  [default: 0-191]")
@click.option("--seed", type=Count(0, 2**64 - 1), default=0, show_default=True, help="Seed of their noise.")
@click.option("--class", "label", type=Count(), help="Class of every sample; a random one each if left out.")
@click.option("--unconditional", is_flag=True, help="Use the null class of a class-conditional model.")
@click.option("--guidance", type=Number(), help="Weight of the guidance that you sample with.")
@click.option("--guidance-interval", type=Interval("0.3,5", levels=True), help="LO,HI, as of `fastscore sample`.")
@click.option("--schedule", type=Name(SCHEDULES), help="Forward SDE; the model's own if left out.")
@schedule_options
@click.option("--batch", type=Count(1, 1 << 20), default=64, show_default=True, help="Micro-batch of the network.")
@click.option("--network", type=Name(NETWORKS), default="auto", show_default=True, help="As of `fastscore sample`.")
@device_option
@click.option("--time-limit", type=Number(0, open=True), help="Seconds until the best so far is taken.")
@click.option("--out", type=Out(), help=f"Folder for {TUNED}.json.  [default: the model's, or this user's own]")
@click.option("--json", "as_json", is_flag=True, help="Print the fit as JSON.")
@click.option("--quiet", is_flag=True, help="No progress bar, no table.")
def tune(model: str, evaluations: int, **options: Any) -> None:
    """Fit the times of few steps, and the solver, to MODEL; keep them for `fastscore sample MODEL --grid tuned`.

    \b
        fastscore tune fashion --evaluations 6
        fastscore sample fashion --grid tuned --steps 6 --out out

    Runs in few steps are compared with runs in many from the same noise, and the knots are moved until they end as near
    to each other as they get. A named grid that does better on ids that were held out is kept in their place.

    In Python this is fastscore.fit_grid.
    """
    from fastscore.engine.fit import IDS, fit_grid
    from fastscore.engine.fitted import home
    from fastscore.guidance.mixture import Guidance
    from fastscore.ops.backend import named_device

    if options["label"] is not None and options["unconditional"]:
        raise ValueError("--class and --unconditional exclude each other")
    if options["guidance_interval"] and options["guidance"] is None:
        raise ValueError("--guidance-interval needs --guidance, a weight")
    if options["guidance"] is not None and options["unconditional"]:
        raise ValueError("--guidance leads away from the null class, which --unconditional asks for; leave one out")
    out = options["out"]
    if out is not None and not Path(out).is_dir():
        raise ValueError(f"--out {out} is no folder; name the folder of a model")
    score_model = load(model, named_device(options["device"]))
    solver = None if options["solver"] is None else n.named(options["solver"])
    guidance = None
    if options["guidance"] is not None:
        guidance = Guidance(options["guidance"], options["guidance_interval"] or (0.0, math.inf))
    label = options["label"]
    if options["unconditional"] and score_model.classes:
        if not isinstance(score_model.null, int):
            raise ValueError(f"--unconditional: {model} was not trained with a null class; leave it out")
        label = score_model.null
    fit = fit_grid(
        score_model,
        steps_of(solver, evaluations),
        solver,
        schedule=make_schedule(options, score_model.schedule),
        guidance=guidance,
        ids=options["ids"] or range(IDS),
        seed=options["seed"],
        labels=label,
        time_limit=options["time_limit"],
        progress=not options["quiet"],
        device=options["device"] if options["device"] != "auto" else None,
        batch=options["batch"],
        network=options["network"],
    )
    file = fit.keep(out or home(score_model))
    if options["as_json"]:
        from fastscore.engine.fitted import to_dict

        click.echo(json.dumps({**to_dict(fit), "file": str(file)}, indent=1))
    elif not options["quiet"]:
        click.echo(table(fit))
        click.echo(f"kept in {file}; `fastscore sample {model} --grid {TUNED} --steps {fit.steps}` uses it")


def steps_of(solver: Solver | Any | None, evaluations: int) -> int:
    """Return the steps in which a solver makes so many evaluations; ValueError where it makes fewer or more."""
    from fastscore.plan.passes import make_plan
    from fastscore.process.continuous import EDM
    from fastscore.process.grid import karras
    from fastscore.solvers.adaptive import Adaptive

    if solver is None or isinstance(solver, Adaptive):
        return evaluations
    counts = {steps: make_plan(solver, EDM(), karras(steps)(EDM())).nfe for steps in range(1, evaluations + 2)}
    found = [steps for steps, nfe in counts.items() if nfe == evaluations]
    if not found:
        near = sorted(counts.values(), key=lambda nfe: abs(nfe - evaluations))[:2]
        raise ValueError(
            f"--evaluations {evaluations}: {solver} makes {' or '.join(map(str, sorted(near)))} in whole steps; take "
            "one of these, or a solver with one evaluation a step"
        )
    return found[0]


def table(fit: FittedGrid) -> str:
    """Return what was compared, the best on held-out ids first, and the knots."""
    rows = [("grid", "solver", "error, fit", "error, held out")]
    for one in sorted(fit.tried, key=lambda one: one.held_out):
        rows.append((one.grid, one.solver, f"{one.fit:.4g}", f"{one.held_out:.4g}"))
    widths = [max(len(row[k]) for row in rows) for k in range(4)]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
    knots = " ".join(f"{level:.4g}" for level in fit.levels)
    verdict = "" if fit.grid == "fitted" else f"; the fit was worse on held-out ids, so that {fit.grid} is kept"
    cost = f"{fit.cost:,} evaluations, {fit.seconds:.0f} s"
    return "\n".join([*lines, f"sigma / alpha: {knots}, {fit.solver}{verdict} ({cost})"])
