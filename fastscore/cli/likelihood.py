"""fastscore likelihood: log-likelihoods of data under a model."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import click

from fastscore.cli.groups import Grouped
from fastscore.cli.known import DATA, MODEL
from fastscore.cli.options import device_option, load, make_schedule, schedule_options, value_range
from fastscore.cli.types import Count, GridName, Name, Number, Out
from fastscore.process.names import GRIDS, SCHEDULES
from fastscore.solvers.names import named

if TYPE_CHECKING:
    from fastscore.data.load import Dataset
    from fastscore.model.score import ScoreModel

ADAPTIVE, FIXED = ("dopri5", "bs32"), ("rk4", "midpoint", "heun", "euler")


@click.command(cls=Grouped)
@click.argument("model", type=MODEL)
@click.argument("data", type=DATA)
@click.option(
    "--split", type=Name(("train", "test")), default="test", show_default=True, help="Split of data that has both."
)
@click.option("--limit", type=Count(1), help="Use the first N examples.")
@click.option(
    "--probe",
    type=Name(("auto", "rademacher", "gaussian", "exact")),
    default="auto",
    show_default=True,
    help="Estimate of the divergence; auto is exact up to 16 dimensions.",
)
@click.option("--probes", type=Count(1, 65536), default=1, show_default=True, help="Probes an example.")
@click.option(
    "--seed", type=Count(0, 2**64 - 1), default=0, show_default=True, help="Seed of probes and dequantisation."
)
@click.option("--solver", type=Name(ADAPTIVE + FIXED), default="dopri5", show_default=True, help="Solver of the ODE.")
@click.option("--rtol", type=Number(0, 9, open=True), help=f"Relative tolerance of {' and '.join(ADAPTIVE)}.")
@click.option("--atol", type=Number(0, 9, open=True), help="Absolute tolerance of the same.")
@click.option("--steps", type=Count(1, 1_000_000), help=f"Steps of {', '.join(FIXED)}.  [default: 100]")
@click.option("--grid", type=GridName(GRIDS), help=f"Rule that spaces the times of {', '.join(FIXED)}.")
@click.option("--schedule", type=Name(SCHEDULES), help="Whose prior is meant; the model's own if left out.")
@schedule_options
@click.option("--t-end", type=Number(), help="Where the data is; t = 1e-5 where the schedule goes there, if left out.")
@click.option("--unconditional", is_flag=True, help="Use the null class of a class-conditional model.")
@click.option("--batch", type=Count(1, 1 << 15), default=64, show_default=True, help="Examples at once.")
@device_option
@click.option("--out", type=Out(), help="Write every example's nats to an .npz.")
@click.option("--overwrite", is_flag=True, help="Replace the file --out.")
@click.option("--quiet", is_flag=True, help="No progress bar.")
def likelihood(model: str, data: str, **options: Any) -> None:
    """Print the log-likelihood of DATA under MODEL as JSON.

    MODEL as in `fastscore sample`, DATA as in `fastscore train`. Images are dequantised: uniform noise, a function of
    --seed and the example's number, fills the cell of each level, and bits/dim count what the 256 levels need. Points
    and images of floats, or of a --range of their own, have a density in their own units: nats, and bits/dim that may
    be negative.
    """
    import numpy as np

    from fastscore.output.commit import new_file

    out = options["out"]
    write = click.get_current_context().with_resource(new_file(out, options["overwrite"])) if out is not None else None
    report, arrays = measure(model, data, **options)
    if write is not None:
        write(np.savez, **arrays)
    click.echo(json.dumps(report, indent=1))


def measure(model: str, data: str, **options: Any) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return what the command prints, and what it writes of each example, for its options."""
    import math

    import torch

    from fastscore.data.load import load as load_data
    from fastscore.flow import ProbabilityFlow, dequantize
    from fastscore.ops.backend import named_device
    from fastscore.ops.noise import NoiseKey
    from fastscore.solvers.likelihood_grids import likelihood_grid

    solver: Any = named(options["solver"], rtol=options["rtol"], atol=options["atol"])
    device = named_device(options["device"])
    score_model = load(model, device)
    shape, values = score_model.shape, value_range(score_model)
    examples = load_data(data, options["split"], shape=shape, value_range=values)
    if examples.shape != score_model.shape:
        raise ValueError(f"{data} holds examples of shape {examples.shape}, {model} makes {score_model.shape}")
    schedule = make_schedule(options, score_model.schedule)
    flow = ProbabilityFlow(
        score_model,
        schedule=schedule,
        solver=solver,
        grid=likelihood_grid(solver, schedule, options["steps"], options["grid"], options["t_end"]),
        batch=options["batch"],
        device=device,
    )
    values, step = examples.x[: options["limit"]], examples.step
    if step is not None:
        levels = torch.from_numpy(values.astype("int32").transpose(0, 3, 1, 2).copy())
        x = dequantize(levels, NoiseKey.of(options["seed"], range(len(levels))), step, -1.0 - 0.5 * step)
    else:
        x = torch.from_numpy(values)
    result = flow.log_likelihood(
        x,
        probe=options["probe"],
        probes=options["probes"],
        seed=options["seed"],
        labels=_labels(examples, score_model, len(x), options["unconditional"]),
        progress=not options["quiet"],
    )
    n, d = len(x), math.prod(score_model.shape)
    # Of floats and of a range that was said the density is in their own units, as that of points is.
    black, white = examples.value_range or (-1.0, 1.0)
    width = 1.0 if step is not None else (white - black) / 2.0
    nats, bits = result.nats - d * math.log(width), result.bits_per_dim(step or 1.0 / width)
    spread = float(bits.std()) / math.sqrt(n) if n > 1 else None
    probes = float(result.stderr.square().mean().sqrt() / (d * math.log(2.0) * math.sqrt(n)))
    report = {
        "bits_per_dim": round(float(bits.mean()), 6),
        "bits_per_dim_stderr": None if spread is None else round(spread, 6),
        "bits_per_dim_stderr_of_probes": round(probes, 6) if math.isfinite(probes) else None,
        "nats": round(float(nats.mean()), 6),
        "examples": n,
        "dimensions": d,
        "dequantised": step is not None,
        "schedule": type(schedule).__name__,
        "solver": repr(flow.solver),
        "t_end": float(flow.grid(schedule)[-1]),
        "seed": options["seed"],
        **result.cost.summary(),
    }
    return report, {"nats": nats.cpu(), "stderr": result.stderr.cpu(), "bits_per_dim": bits.cpu()}


def _labels(examples: Dataset, model: ScoreModel, n: int, unconditional: bool) -> Any:
    """Return the labels of the data, if the model knows any and they are not unwanted.

    Raises:
        ValueError: the data has labels that the model does not know.
    """
    if unconditional or not model.classes or examples.labels is None:
        return None
    labels = examples.labels[:n]
    if labels.max() >= model.classes:
        raise ValueError(f"the data has labels up to {labels.max()}, the model {model.classes} classes")
    return labels.tolist()
