"""fastscore plot schedule, fastscore plot plan."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from fastscore.cli.groups import Grouped
from fastscore.cli.options import rule_option, schedule_options, solver_options
from fastscore.cli.plan import table_of
from fastscore.cli.plot.common import picture_options, put
from fastscore.cli.types import Name
from fastscore.process.names import SCHEDULES, SETTINGS


@click.command()
@click.argument("names", type=Name(SCHEDULES), nargs=-1, required=True, metavar="NAMES...")
@picture_options
@schedule_options
def schedule(names: tuple[str, ...], out: Path, overwrite: bool, **options: Any) -> None:
    """Draw schedules side by side. Over time: alpha, sigma, log-SNR, g^2, f and the spread of the marginal.

    \b
        fastscore plot schedule vp subvp ve flow --out schedules.png

    A setting changes those schedules that have it.
    """

    def make() -> Any:
        from fastscore.process.continuous import VP
        from fastscore.process.names import named_schedule
        from fastscore.report.plots.levels import schedules

        given = {k: options[k] for k in SETTINGS if options.get(k) is not None}
        for k in given:
            if not set(SETTINGS[k]) & set(names):
                flag = f"--{k.replace('_', '-')}"
                raise ValueError(f"{flag} belongs to {', '.join(SETTINGS[k])}, none of which is drawn; leave it out")
        found = {}
        for name in dict.fromkeys(names):
            found[name] = named_schedule(name, VP(), **{k: v for k, v in given.items() if name in SETTINGS[k]})
        return schedules(found)

    put(out, overwrite, make)


@click.command(cls=Grouped)
@picture_options
@rule_option
@solver_options
def plan(out: Path, overwrite: bool, **options: Any) -> None:
    """Draw the plan of a solver. As `fastscore plan` prints it: its knots on the log-SNR, and each row's a, b, w and c.

    \b
        fastscore plot plan --solver dpmpp-2m-sde --schedule vp --steps 20 --out plan.png
    """

    def make() -> Any:
        from fastscore.report.plots.levels import plan_rows

        table = table_of(options)
        return plan_rows(table, f"{options['solver']} on {type(table.schedule).__name__}")

    put(out, overwrite, make)
