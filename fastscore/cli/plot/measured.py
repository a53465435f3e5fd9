"""fastscore plot langevin, loss, work-precision, quality: what other commands wrote."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import click

from fastscore.cli.plot.common import described, picture_options, put, read_json
from fastscore.cli.types import Count, shorten

LARGEST = 1 << 28  # bytes of records that are read


@click.command()
@click.argument("folder", type=click.Path(path_type=Path))
@click.option("--chains", type=Count(1, 6), default=4, show_default=True, help="Chains to draw as paths.")
@picture_options
def langevin(folder: Path, chains: int, out: Path, overwrite: bool) -> None:
    """Draw Langevin chains. FOLDER is what `fastscore langevin` wrote."""

    def make() -> Any:
        from fastscore.data.limits import numpy_arrays
        from fastscore.report.plots.paths import chains as draw

        file = folder / "samples.npz"
        found = numpy_arrays(file, lambda names: [k for k in ("states", "acceptance") if k in names])
        states = found.get("states")
        if states is None or states.ndim not in (3, 4, 5) or states.dtype.kind != "f" or not states.size:
            raise ValueError(
                f"{file} holds no states of chains; `fastscore langevin` writes them, with --steps >= --thin"
            )
        settings = read_json(folder / "run.json", "`fastscore langevin` writes it").get("settings")
        settings = settings if isinstance(settings, dict) else {}
        thin, burn_in = (v if isinstance(v := settings.get(k), int) else 0 for k in ("thin", "burn_in"))
        thin = max(1, thin)
        acceptance = found.get("acceptance")
        title = f"{shorten(settings.get('target', folder.name), 40)}, {settings.get('method', 'Langevin')}"
        return draw(states, acceptance, burn_in + thin, thin, title, chains)

    put(out, overwrite, make)


@click.command()
@click.argument("folder", type=click.Path(path_type=Path))
@picture_options
def loss(folder: Path, out: Path, overwrite: bool) -> None:
    """Draw the loss of a training. FOLDER is a model, or its loss.csv."""

    def make() -> Any:
        from fastscore.report.plots.curves import loss_curve, read_loss

        return loss_curve(*read_loss(folder / "loss.csv" if folder.is_dir() else folder), folder.name)

    put(out, overwrite, make)


@click.command("work-precision")
@click.argument("records", type=click.Path(path_type=Path))
@click.option("--solver", "solvers", multiple=True, help="Only this one; may be given more than once.")
@click.option("--target", help="Only this study of the file.")
@picture_options
def work_precision(records: Path, solvers: tuple[str, ...], target: str | None, out: Path, overwrite: bool) -> None:
    """Draw error against evaluations. RECORDS.jsonl has lines with target, solver, nfe and error.

    \b
        fastscore plot work-precision bench/results/work_precision.jsonl --target images --out work.png

    Where a solver has several records of one budget, or one nfe, on several grids, the best one counts.
    """

    def make() -> Any:
        from fastscore.report.plots.curves import work_precision

        studies = _studies(records)
        if target is not None and target not in studies:
            raise ValueError(f"--target {shorten(target)!r} must be one of {', '.join(studies)}")
        known = {name for lines in studies.values() for name in lines}
        for name in solvers:
            if name not in known:
                raise ValueError(f"--solver {shorten(name)!r} must be one of {', '.join(sorted(known))}")
        chosen = {
            study: {name: points for name, points in lines.items() if not solvers or name in solvers}
            for study, lines in studies.items()
            if target in (None, study)
        }
        return work_precision({study: lines for study, lines in chosen.items() if lines})

    put(out, overwrite, make)


def _studies(path: Path) -> dict[str, dict[str, list[tuple[float, float]]]]:
    """Return (evaluations, error) by target and solver, the best record of each budget.

    Raises:
        ValueError: no such file, or a line that is no record; the message names it.
    """
    from fastscore.data.limits import regular_file

    if regular_file(path).stat().st_size > LARGEST:
        raise ValueError(f"{path} has more than {LARGEST:,} bytes; split it")
    best: dict[str, dict[str, dict[float, tuple[float, float]]]] = {}
    for number, line in enumerate(path.read_text(encoding="utf-8", errors="replace").splitlines(), 1):
        if not line.strip():
            continue
        try:
            record = json.loads(line)
            solver, nfe, error = str(record["solver"]), record["nfe"], record["error"]
            target, budget = str(record.get("target", "")), float(record.get("budget") or nfe or 0.0)
            if nfe is None or error is None:  # a budget that is none, or samples that were not finite
                continue
            point = float(nfe), float(error)
        except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
            raise ValueError(f"{path}, line {number}: no record with solver, nfe and error: {shorten(line)}") from None
        if all(0.0 < v < math.inf for v in point):
            row = best.setdefault(target, {}).setdefault(solver, {})
            if budget not in row or point[1] < row[budget][1]:
                row[budget] = point
    return {target: {name: list(row.values()) for name, row in lines.items()} for target, lines in best.items()}


@click.command()
@click.argument("run", type=click.Path(path_type=Path))
@picture_options
def quality(run: Path, out: Path, overwrite: bool) -> None:
    """Draw quality over its floor. As bars, from RUN/quality.json, which `fastscore evaluate` writes."""

    def make() -> Any:
        from fastscore.report.plots.curves import quality
        from fastscore.report.run import stale

        file = run / "quality.json" if run.is_dir() else run
        found = read_json(file, "`fastscore evaluate RUN --against DATA` writes it")
        if run.is_dir() and stale(found, run):
            raise ValueError(f"{file} is of other samples than these: `fastscore evaluate` them again")
        overall = found.pop("overall", None)  # how many differ: a count, and no figure
        figures = {shorten(name, 40): entry for name, entry in found.items() if isinstance(entry, dict)}
        for name, entry in figures.items():
            kinds = [isinstance(entry.get(k), int | float) or entry.get(k) is None for k in ("floor", "stderr")]
            if not isinstance(entry.get("value"), int | float) or not all(kinds):
                raise ValueError(f"{file}: {name} has no numbers as value, floor and stderr")
        if not figures:
            raise ValueError(f'{file} holds no figures {{name: {{"value":, "floor":, "stderr":}}}}')
        titles = [described(run)] if run.is_dir() else []
        titles += [shorten(overall["verdict"], 80)] if isinstance(overall, dict) and "verdict" in overall else []
        return quality(figures, "\n".join(titles))

    put(out, overwrite, make)
