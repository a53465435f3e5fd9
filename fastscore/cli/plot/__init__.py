"""fastscore plot: pictures of schedules, plans, processes, samples and what was measured."""

from __future__ import annotations

import click

from fastscore.cli.plot.levels import plan, schedule
from fastscore.cli.plot.measured import langevin, loss, quality, work_precision
from fastscore.cli.plot.points import compare, density, forward
from fastscore.cli.plot.trajectory import trajectory


@click.group()
def plot() -> None:
    """Draw one picture: a PNG, SVG or PDF, as --out ends. Needs matplotlib (pip install 'fastscore[plots]').

    \b
        fastscore plot schedule vp subvp ve --out schedules.png

    The same input gives the same bytes. All of them are shown in fastscore/docs/GALLERY.md, with their commands.
    """


for command in (schedule, plan, forward, density, trajectory, compare, langevin, loss, work_precision, quality):
    plot.add_command(command)
