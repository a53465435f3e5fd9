"""fastscore plot forward, fastscore plot density, fastscore plot compare."""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from fastscore.cli.groups import Grouped
from fastscore.cli.options import make_grid, make_schedule, make_solver, option, schedule_options, solver_options
from fastscore.cli.plot.common import described, examples, picture_options, put, samples_of
from fastscore.cli.types import Count, Name
from fastscore.process.names import SCHEDULES

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from fastscore.process.schedule import Schedule

PANELS = 5


class Numbers(click.ParamType):
    """Finite numbers, by commas."""

    name = "numbers"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> list[float]:
        """Parse one list."""
        if isinstance(value, list):
            return value
        try:
            numbers = [float(part) for part in str(value).split(",")]
        except ValueError:
            numbers = []
        if not 1 <= len(numbers) <= 20 or not all(map(math.isfinite, numbers)):
            self.fail(f"{str(value)[:60]!r} is not 1 to 20 numbers (example: 0,0.5,1).", param, ctx)
        return numbers


@click.command()
@click.option("--data", required=True, help="What `fastscore train` takes, an .npz file of samples, or analytic:NAME.")
@option("--schedule", Name(SCHEDULES), "Forward SDE.", "vp")
@option("--times", Numbers(), "Times in the schedule's unit, 0,0.5,1.", "five, even in arctan(sigma / alpha)")
@click.option("-n", "--num", type=Count(1, 100_000), default=4000, show_default=True, help="Points; of images 4.")
@click.option("--seed", type=Count(0, 2**64 - 1), default=0, show_default=True, help="Seed of the noise.")
@picture_options
@schedule_options
def forward(
    data: str, times: list[float] | None, num: int, seed: int, out: Path, overwrite: bool, **options: Any
) -> None:
    """Draw data that turn into noise. The forward process, x_t = alpha x_0 + sigma z, at some times.

    \b
        fastscore plot forward --data analytic:moons --schedule vp --out forward.png
    """

    def make() -> Any:
        import numpy as np
        import torch

        from fastscore.ops.noise import NoiseKey
        from fastscore.process.continuous import VP
        from fastscore.process.schedule import diffuse
        from fastscore.report.plots.points import forward

        schedule = make_schedule(options, VP())
        at = times or even_times(schedule)
        for t in at:
            if not schedule.t_clean <= t <= schedule.T:
                raise ValueError(f"--times {t:g} must lie in {schedule.t_clean:g} .. {schedule.T:g}, noise at the end")
        x0 = torch.from_numpy(np.ascontiguousarray(examples(data, num), dtype=np.float64))
        x0 = x0[:4] if x0.ndim == 4 else x0
        z = NoiseKey.of(seed, range(len(x0))).normal(2, x0[0].numel(), torch.float64).reshape(x0.shape)
        states = [diffuse(schedule, x0, t, z).numpy() for t in at]
        title = f"{data}, forward by {type(schedule).__name__}"
        return forward(states, at, schedule.alpha(at), schedule.sigma(at), title)

    put(out, overwrite, make)


def even_times(schedule: Schedule, count: int = PANELS) -> list[float]:
    """Return times from the data to T, evenly apart in the angle arctan(sigma / alpha)."""
    import numpy as np

    from fastscore.process.schedule import t_of_lam

    last = math.atan2(float(schedule.sigma(schedule.T)), float(schedule.alpha(schedule.T)))
    angles = np.linspace(0.0, last, count)[1:-1]
    return [schedule.t_clean, *t_of_lam(schedule, -np.log(np.tan(angles))).tolist(), schedule.T]


@click.command(cls=Grouped)
@click.option("--target", required=True, metavar="analytic:NAME", help="Density that is known; see `fastscore models`.")
@click.option("-n", "--num", type=Count(100, 1_000_000), default=20_000, show_default=True, help="Samples drawn.")
@click.option("--seed", type=Count(0, 2**64 - 1), default=0, show_default=True, help="Seed of all noise.")
@picture_options
@solver_options
def density(target: str, num: int, seed: int, out: Path, overwrite: bool, **options: Any) -> None:
    """Draw densities on both ways. The forward process exactly, and samples of the reverse one at the same times.

    \b
        fastscore plot density --target analytic:mixture --solver em --steps 200 --out density.png

    Above, the marginals of x_t in closed form; below, the states of a solver as histograms, in the same cells and
    colours. Where the rows differ by more than grain, the solver has an error.
    """

    def make() -> Any:
        import numpy as np

        from fastscore.model.analytic import GaussianMixture, score_model, target_by_name
        from fastscore.process.schedule import lam
        from fastscore.report.plots import points as draw
        from fastscore.report.plots.figures import reach
        from fastscore.sampler import Sampler
        from fastscore.solvers.adaptive import Adaptive

        if not target.startswith("analytic:"):
            raise ValueError(f"--target {target[:60]!r} must be analytic:NAME: a density that is known")
        law = target_by_name(target.removeprefix("analytic:"))
        model, solver = score_model(law), make_solver(options)
        if isinstance(solver, Adaptive):
            raise ValueError(f"--solver {options['solver']} has no times that all samples share; name one with steps")
        schedule = make_schedule(options, model.schedule)
        grid = make_grid(options, solver, schedule, model)
        sampler = Sampler(
            model, schedule=schedule, solver=solver, grid=grid, clip=options["clip"], batch=min(num, 4096)
        )
        knots = np.asarray(sampler.grid(sampler.schedule))
        with np.errstate(all="ignore"):
            angles = np.arctan(np.exp(-lam(schedule, knots)))
        wanted = np.linspace(angles[-1], angles[0], PANELS)
        chosen = sorted({int(np.abs(angles - angle).argmin()) for angle in wanted} | {0, len(knots) - 1})
        path = sampler.trajectory(range(num), seed, steps=chosen, progress=True)
        times, states = path.times.tolist()[::-1], list(path.states.double().numpy()[::-1])
        if isinstance(law, GaussianMixture):
            weights, means, stds = (v.double().numpy() for v in (law.weights, law.means, law.stds))
        else:
            means = law.points.double().numpy()
            weights, stds = np.full(len(means), 1.0 / len(means)), np.zeros(len(means))
        squares = []
        for t, x in zip(times, states, strict=True):  # around the samples, and around what they should be
            mu, s = (
                schedule.alpha(t) * means,
                np.sqrt((schedule.alpha(t) * stds) ** 2 + schedule.sigma(t) ** 2)[:, None],
            )
            squares.append(draw.around([reach(x, 0.99), reach(np.concatenate([mu - 2 * s, mu + 2 * s]), 1.0)]))
        squares = draw.shared(squares)
        exact = [
            draw.exact_density(weights, means, stds, float(schedule.alpha(t)), float(schedule.sigma(t)), square)
            for t, square in zip(times, squares, strict=True)
        ]
        counted = [draw.counted_density(x, square) for x, square in zip(states, squares, strict=True)]
        assert sampler.plan is not None
        title = f"{target}, {type(schedule).__name__}, {options['solver']}, {sampler.plan.nfe} evaluations"
        return draw.density(exact, counted, squares, times, f"{title}, {num:,} samples")

    put(out, overwrite, make)


@click.command()
@click.argument("runs", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option("--data", help="Data to show first; what `fastscore train` takes, or analytic:NAME.")
@click.option("-n", "--num", type=Count(1, 100_000), default=4000, show_default=True, help="Points; of images 25.")
@picture_options
def compare(runs: tuple[Path, ...], data: str | None, num: int, out: Path, overwrite: bool) -> None:
    """Draw samples of runs side by side. After data, if named: original against SDE against ODE samples, say.

    \b
        fastscore plot compare sde ode --data four-gaussians --out compare.png

    Each is titled by its solver and network evaluations.
    """

    def make() -> Any:
        from fastscore.report.plots.points import compare

        sets: dict[str, NDArray[Any]] = {} if data is None else {"data": examples(data, num)}
        words = [described(run) for run in runs]
        for run, title in zip(runs, words, strict=True):
            title = title.replace(", ", "\n", 1)
            title = f"{title}\n{run.name}" if words.count(described(run)) > 1 else title
            sets[title if title not in sets else f"{title} "] = samples_of(run, num)
        return compare(sets)

    put(out, overwrite, make)
