"""fastscore plan: print what a solver does, row by row."""

from __future__ import annotations

from typing import Any

import click

from fastscore.cli.options import make_grid, make_schedule, make_solver, solver_options


@click.command()
@solver_options
def plan(**o: Any) -> None:
    """Print the table of a schedule and a solver: every coefficient of every step.

    A row does x <- a x + b m + sum w_k h_k + c z, where m is what the network says about x at
    time t, and then stores m in a history slot (push). Nothing is sampled.
    """
    from fastscore import plan as plans
    from fastscore.process.continuous import VP
    from fastscore.solvers.adaptive import Adaptive

    solver = make_solver(o)
    if isinstance(solver, Adaptive):
        raise ValueError(f"--solver {o['solver']} chooses its steps while it runs; there is no table to print")
    schedule = make_schedule(o["schedule"], o["sigma_min"], o["sigma_max"], VP())
    made = plans.make_plan(solver, schedule, make_grid(o, schedule, schedule)(schedule))
    if o["clip"] is not None:
        made = plans.clip(made, o["clip"])
    click.echo(str(made))
    counts = f"{made.nfe} network evaluations, {made.draws} noise draws, {made.slots} history slots"
    click.echo(f"{type(schedule).__name__}: {counts}")
