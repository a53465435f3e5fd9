"""fastscore plot trajectory: samples on their way, as a strip, panels, paths, or a moving picture."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from fastscore.cli.plot.common import described, need_matplotlib, put
from fastscore.cli.types import Count, Out, StepNumbers

if TYPE_CHECKING:
    from numpy.typing import NDArray

COLUMNS, PANELS, FRAMES = 8, 10, 40


@click.command()
@click.argument("run", type=click.Path(path_type=Path))
@click.option("--out", type=Out(), help="File to write: .png, .svg or .pdf.")
@click.option("--gif", type=Out(), help="Also, or instead, a moving picture: FILE.gif.")
@click.option("--apng", type=Out(), help="The same as FILE.png, an APNG.")
@click.option(
    "--steps", type=StepNumbers(), help="States to show, of those in the run: 0,5,-1 or ::10.  [default: even]"
)
@click.option("--samples", type=Count(1, 20), default=2, show_default=True, help="Images to show on their way.")
@click.option("--paths", is_flag=True, help="Draw points as paths, not as panels; those of one coordinate always are.")
@click.option("--overwrite", is_flag=True, help="Replace files that are there.")
def trajectory(
    run: Path,
    out: Path | None,
    gif: Path | None,
    apng: Path | None,
    steps: str | None,
    samples: int,
    paths: bool,
    overwrite: bool,
) -> None:
    """Draw samples on their way from noise. RUN is a folder that was drawn with --trajectory, or its trajectory.npz.

    \b
        fastscore sample analytic:moons -n 1000 --trajectory --out moons
        fastscore plot trajectory moons --out moons.png --gif moons.gif

    Images: x_t and the estimates of x_0 at some steps, in rows. Points: the sampling process as panels, 2 x 5; with one
    coordinate, paths over t.
    """
    if not (out or gif or apng):
        raise click.UsageError("nothing to write: name --out, --gif or --apng.")
    for path, flag, suffixes in ((gif, "--gif", (".gif",)), (apng, "--apng", (".png", ".apng"))):
        if path is not None and path.suffix.lower() not in suffixes:
            raise ValueError(f"{flag} {path.name} must end in {' or '.join(suffixes)}")
    if len({p.absolute() for p in (out, gif, apng) if p}) < sum(p is not None for p in (out, gif, apng)):
        raise ValueError("--out, --gif and --apng must be different files")
    need_matplotlib()
    times, states, x0 = read(run)
    if out is not None:
        put(out, overwrite, lambda: _still(times, states, x0, steps, samples, paths, described(run)))
    for path, format in ((gif, "GIF"), (apng, "PNG")):
        if path is not None:
            _moving(path, format, overwrite, times, states, steps)


def read(run: Path) -> tuple[NDArray[Any], NDArray[Any], NDArray[Any] | None]:
    """Return times, states and estimates, or None, of a trajectory.npz.

    Raises:
        ValueError: there is none, or it holds something else.
    """
    import numpy as np

    from fastscore.data.limits import numpy_arrays

    file = run / "trajectory.npz" if run.is_dir() else run
    if not file.exists():
        raise ValueError(f"{run} holds no trajectory.npz; draw it with `fastscore sample .. --trajectory`")
    found = numpy_arrays(file, lambda names: [k for k in ("times", "states", "x0") if k in names])
    times, states, x0 = (found.get(k, np.empty(0)) for k in ("times", "states", "x0"))
    whole = 3 <= states.ndim <= 5 and states.size and times.shape in (states.shape[:1], states.shape[:2])
    if not whole:
        raise ValueError(f"{file} holds no times [S] or [S, n] with states [S, n, ..]; `fastscore sample` writes such")
    if any(x.dtype.kind != "f" for x in (times, states, x0)):
        raise ValueError(f"{file} holds numbers that are no floats; `fastscore sample` writes such")
    if x0.size and (x0.shape[1:] != states.shape[1:] or len(x0) > len(states)):
        raise ValueError(f"{file} holds x0 {x0.shape} with states {states.shape}; they must be of the same samples")
    if states.ndim == 4 and states.shape[-1] == 1:  # a sequence of numbers is a point
        states, x0 = states[..., 0], x0[..., 0] if x0.size else x0
    return np.asarray(times, np.float64), states, x0 if x0.size else None


def chosen(count: int, steps: str | None, most: int) -> list[int]:
    """Return the numbers of the states to show."""
    from fastscore.engine.kept import Kept
    from fastscore.report.plots.figures import spread_over

    return spread_over(count, most) if steps is None else Kept.of(StepNumbers.chosen(steps)).within(count)


def _still(
    times: NDArray[Any],
    states: NDArray[Any],
    x0: NDArray[Any] | None,
    steps: str | None,
    samples: int,
    paths: bool,
    title: str,
) -> Any:
    from fastscore.report.plots.paths import image_strip, labels_of, paths_over_time, point_panels

    images = states.ndim == 5
    if not images and (paths or states.shape[-1] == 1):
        rows = chosen(len(states), steps, len(states))
        return paths_over_time(states[rows], times[rows], title)
    rows = chosen(len(states), steps, COLUMNS if images else PANELS)
    if len(rows) > 40:
        raise ValueError(f"--steps {steps} are {len(rows)} panels; a picture has room for 40: choose fewer")
    names = labels_of(times[rows])
    if not images:
        return point_panels(states[rows], names, title)
    estimates = None if x0 is None else x0[[k for k in rows if k < len(x0)]]
    return image_strip(states[rows], estimates, names, title, samples)


def _moving(
    path: Path, format: str, overwrite: bool, times: NDArray[Any], states: NDArray[Any], steps: str | None
) -> None:
    from fastscore.output.commit import new_file
    from fastscore.output.progress import Progress
    from fastscore.report.plots.moving import animate, frames_of
    from fastscore.report.plots.paths import labels_of

    rows = chosen(len(states), steps, FRAMES)
    with new_file(path, overwrite) as write, Progress(unit="frames").begin(len(rows)) as progress:
        frames = list(frames_of(states[rows], labels_of(times[rows]), progress.reach))
        write(lambda file: animate(file, frames, format))
    click.echo(str(path))
