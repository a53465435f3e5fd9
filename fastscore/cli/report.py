"""fastscore report: a run, a bench or a model as one HTML file."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import TYPE_CHECKING

import click

from fastscore.cli.types import Out

if TYPE_CHECKING:
    from fastscore.report.opened import Drawn, Run
    from fastscore.report.page import Section

Page = tuple[str, str, "list[Section]"]


@click.command()
@click.argument("target")
@click.option(
    "--out", type=Out(), metavar="FILE",
    help="The file to write.  [default: report.html in the folder of a run, else NAME.html here]",
)  # fmt: skip
def report(target: str, out: Path | None) -> None:
    """Write a page about TARGET: a run, the records of a bench (.json, .jsonl), or a model.

    \b
        fastscore sample fashion -n 16 --trajectory --out boots
        fastscore report boots

    The page is one HTML file of at most 3 MB that needs nothing else, no network either. Of a run: samples, a slider
    through its trajectory, schedule, plan, speed, quality, environment, and the command and hashes to repeat it. Of a
    bench: tables of medians, and charts where there is an axis. Of a model: its schedule, its default plan, its loss
    and fitted grids. A report that is there is replaced, any other file is not.
    """
    from fastscore.report.page import write_page

    file, (title, text, sections) = _page(target)
    path = out or file
    _refuse(path)
    size = write_page(path, title, sections, text)
    click.echo(f"{path} ({size / 1e6:.2f} MB)")


def _page(target: str) -> tuple[Path, Page]:
    """Return where the page of a target goes if nothing else is said, and what it holds."""
    path = Path(target)
    if path.name == "run.json":
        target, path = os.fspath(path.parent), path.parent
    if path.suffix in (".json", ".jsonl") and not path.is_dir():
        from fastscore.report.bench import bench_page

        return Path(f"{path.stem}.html"), bench_page(path)
    bucket = re.match(r"[A-Za-z0-9+.-]+://", target) is not None
    if bucket or (path / "run.json").exists() or (path / "manifest.json").exists() or (path / ".run").exists():
        from fastscore.report.opened import open_run
        from fastscore.report.run import run_page

        run = open_run(target)
        page = run_page(run, _drawn(run))
        return path / "report.html" if run.folder else Path(f"{_stem(target)}.html"), page
    return Path(f"{_stem(target)}.html"), _of_model(target)


def _drawn(run: Run) -> Drawn:
    """Return what drew a run, from the command in its manifest; no network is prepared, and nothing is drawn."""
    from fastscore.cli.again import asked_again
    from fastscore.output.store.job import drawn_by
    from fastscore.report.opened import Drawn

    if run.manifest is None or run.manifest.argv is None:
        return Drawn(why="It was drawn from Python: print(sampler.plan) shows its plan there.")
    try:
        sampler = drawn_by(asked_again(run.manifest, run.name).source)
    except (ValueError, ImportError, OSError, ArithmeticError, click.ClickException) as error:
        words = error.format_message() if isinstance(error, click.ClickException) else str(error)
        return Drawn(why=f"What drew it cannot be made again here: {words}")
    if sampler.plan is None:
        return Drawn(sampler.schedule)
    return Drawn(sampler.schedule, sampler.plan, sampler.grid(sampler.schedule).tolist())


def _of_model(name: str) -> Page:
    """Return the page of a model, with the plan that a sampler has by default."""
    import torch

    from fastscore.cli.options import load
    from fastscore.report.model import model_page
    from fastscore.sampler import Sampler

    path = Path(name)
    if path.is_dir() and not any((path / file).exists() for file in ("config.json", "model_index.json")):
        raise ValueError(f"{name} holds neither a run (run.json, manifest.json) nor a model (config.json)")
    model = load(name, torch.device("cpu"))
    sampler = Sampler(model, steps=20, network="own")
    assert sampler.plan is not None
    knots = sampler.grid(sampler.schedule).tolist()
    return model_page(name, model, sampler.plan, knots, {"solver": repr(sampler.solver), "grid": repr(sampler.grid)})


def _stem(target: str) -> str:
    """Return the name of a target as that of a file."""
    return re.sub(r"[^\w.-]+", "-", re.sub(r".*://", "", target)).strip("-.") or "report"


def _refuse(path: Path) -> None:
    """Raise ValueError if a file is there that is no report, or a folder."""
    if path.is_dir():
        raise ValueError(f"{path} is a folder; name a file, --out {path / 'report.html'}")
    if not path.exists():
        return
    from fastscore.report.page import MADE

    with path.open("rb") as file:
        if MADE.encode() not in file.read(4096):
            raise ValueError(f"{path} is there, and no report; choose another file, --out FILE, or move it away")
