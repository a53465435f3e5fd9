"""fastscore demo: what score-based sampling is and what this engine does differently, in a minute."""

from __future__ import annotations

import json
import os
import shutil
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from fastscore.cli.types import Out, shorten

if TYPE_CHECKING:
    from fastscore.cli.demo.act import Act

REPORT, FIGURES, WORK, LOCK = "report.html", "demo.json", ".demo-work", ".demo-lock"
ROOM = 8_000_000  # bytes of disk that it takes at most, while it runs
TITLE = "fastscore, a demonstration"
ABOUT = """
Score-based sampling makes new images, or points, or whatever a model was trained on, out of noise: step by step, each
step asking a network in which direction the noise becomes more like data. This page was made by one command on one
CPU, offline, and everything on it was computed while that ran.

What this engine does differently: a sample is a function of the model, the settings, the seed and the sample's number.
It does not matter with which others it is drawn, in which order, on how many machines, or how often the run was ended
on the way. Solvers are tables of numbers that one loop runs, so all of them are counted alike: by evaluations.
"""


@click.command()
@click.option(
    "--out", type=Out(), default="demo", show_default=True, help="Folder to write; an earlier demo's will do."
)
@click.option("--quick", is_flag=True, help="A smaller one: fewer points, images and evaluations.")
def demo(out: Path, quick: bool) -> None:
    """Show in a minute what score-based sampling is, and write a page about it.

    Points and images are carried back from noise by several solvers, half an image is filled in, images are judged by
    their likelihood, and a run that is killed is gone on with. It needs no network, no GPU and no compiler. The page is
    report.html in --out, one file that opens anywhere; demo.json has its figures.
    """
    from fastscore.output.lock import locked
    from fastscore.output.places import checked, refuse_odd

    out = checked(out)
    _refuse_others(out)
    out.mkdir(parents=True, exist_ok=True)
    with locked(out / LOCK, out):
        for name in (REPORT, FIGURES):
            refuse_odd(out / name)
        _write(out / FIGURES, {"demo": 1, "complete": False})  # so that a demo that is ended can be given again
        work = out / WORK
        _remove(work)
        work.mkdir()
        try:
            if (free := shutil.disk_usage(out).free) < ROOM:
                raise OSError(f"{out} has {free / 1e6:.1f} MB of disk free, and a demo needs {ROOM / 1e6:.0f}")
            _play(out, work, quick)
        finally:
            _remove(work)


def _play(out: Path, work: Path, quick: bool) -> None:
    begun, before = time.perf_counter(), os.times()
    click.echo(f"fastscore demo: from noise to data, in five acts, on this machine's CPU. The page: {out / REPORT}")
    import torch

    from fastscore import __version__
    from fastscore.cli.demo import killed, pictures, points
    from fastscore.output.run import versions
    from fastscore.report.page import Code, Facts, Section, Table, write_page

    acts: dict[str, Act] = {}
    seconds: dict[str, float] = {}

    def play(number: int, title: str, act: Callable[[], Any]) -> Any:
        click.echo(f"\n{number}  {title}")
        start = time.perf_counter()
        result = act()
        acts[title], *rest = result if isinstance(result, tuple) else (result,)
        seconds[title] = time.perf_counter() - start
        return rest

    def say(line: str) -> None:
        click.echo(f"   {line}")

    play(1, "Points: eight clusters, out of noise, by four solvers", lambda: points.act(quick, say))
    images, labels = play(2, "Images: the bundled network, guided and not", lambda: pictures.drawn(quick, say, True))
    play(3, "Inpainting: half an image is known", lambda: pictures.filled(quick, say, True, images, labels))
    play(4, "Likelihood: what the model thinks of an image", lambda: pictures.likely(quick, say, True, images, labels))
    play(5, "A run that is killed and gone on with", lambda: killed.act(quick, say, work))

    wall, after = time.perf_counter() - begun, os.times()
    cpu = sum(after[:4]) - sum(before[:4])
    figures = {title: act.figures for title, act in acts.items()}
    took = [[title, value] for title, value in seconds.items()]
    table = Table(["act", "seconds"], took, f"All together {wall:.0f} s, and {cpu:.0f} s of the CPU.")
    end = Section(
        "Where this was made, and how to make it again",
        "The figures are the same in every run on one kind of machine with these versions; the times are not.",
        [
            table,
            Facts({**versions(), "threads": torch.get_num_threads(), "cores": os.cpu_count()}),
            Code(
                f"fastscore demo{' --quick' if quick else ''}\n"
                "fastscore sample fashion -n 64 --class 9 --guidance 2 --network own --out boots\n"
                "fastscore --help"
            ),
        ],
    )
    size = write_page(out / REPORT, TITLE, [*(act.section for act in acts.values()), end], ABOUT)
    entry = {"demo": 1, "complete": True, "version": __version__, "quick": quick, "figures": figures}
    _write(out / FIGURES, {**entry, "seconds": {**seconds, "wall": wall, "cpu": cpu}})
    click.echo(f"\n{out / REPORT}: {size / 1e6:.1f} MB, in {wall:.0f} s ({cpu:.0f} s of the CPU); open it in a browser")
    click.echo("Next: fastscore sample fashion -n 64 --class 9 --guidance 2 --network own --out boots")


def _refuse_others(out: Path) -> None:
    """Raise ValueError for a folder that holds something and is no earlier demo's."""
    if not out.is_dir():
        return
    held = sorted(name for name in os.listdir(out) if name not in (WORK, LOCK))
    if not held or _is_demo(out / FIGURES):
        return
    raise ValueError(
        f"{out} already holds {shorten(held[0])} and is no earlier demo's; choose another folder with --out"
    )


def _is_demo(file: Path) -> bool:
    with suppress(OSError, ValueError):
        if file.is_file() and not file.is_symlink():
            return "demo" in json.loads(file.read_text())
    return False


def _write(file: Path, values: dict[str, Any]) -> None:
    from fastscore.files import write_text

    write_text(file, json.dumps(values, indent=1) + "\n")


def _remove(work: Path) -> None:
    """Remove what a demo works in: its own, by its name."""
    if work.is_symlink():
        work.unlink()
    shutil.rmtree(work, ignore_errors=True)
