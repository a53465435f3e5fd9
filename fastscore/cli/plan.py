"""fastscore plan: print what a solver does, row by row."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from fastscore.cli.groups import Grouped
from fastscore.cli.options import make_grid, make_schedule, make_solver, rule_option, solver_options

if TYPE_CHECKING:
    from fastscore.plan.rows import Plan


@click.command(cls=Grouped)
@rule_option
@solver_options
def plan(**options: Any) -> None:
    """Print the table of a schedule and a solver: every coefficient of every step.

    A row does x <- a x + b m + sum w_k h_k + c z, where m is what the network says about x at
    time t, and then stores m in a history slot (push). Nothing is sampled. With --guidance-rule
    cfg++, guide is 1 for the guided m, 0 for the unguided one and "change" for their difference.
    """
    table = table_of(options)
    click.echo(str(table))
    counts = f"{table.nfe} network evaluations, {table.draws} noise draws, {table.slots} history slots"
    click.echo(f"{type(table.schedule).__name__}: {counts}")


def table_of(options: dict[str, Any]) -> Plan:
    """Return the plan of the options.

    Raises:
        ValueError: a solver or a grid that has none without a model.
    """
    from fastscore import plan as plans
    from fastscore.plan.cfgpp import with_cfgpp
    from fastscore.process.continuous import VP
    from fastscore.process.grid import Span
    from fastscore.solvers.adaptive import Adaptive

    solver = make_solver(options)
    if isinstance(solver, Adaptive):
        raise ValueError(
            f"solver {options['solver']} chooses its steps while it runs; it has no table to print or draw"
        )
    schedule = make_schedule(options, VP())
    grid = make_grid(options, solver, schedule)
    if isinstance(grid, str):
        raise ValueError(
            f"--grid {grid} belongs to a model; `fastscore sample MODEL --grid {grid}` has it, a plan has none"
        )
    assert not isinstance(grid, Span)
    if options["guidance_rule"] == "cfg++":
        solver = with_cfgpp(solver)
    table = plans.make_plan(solver, schedule, grid(schedule))
    return table if options["clip"] is None else plans.clip(table, options["clip"])
