"""fastscore likelihood: log-likelihoods of data under a model."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from fastscore.cli.options import SCHEDULES, checked_device, load, make_schedule
from fastscore.cli.types import Count, Name, Number

if TYPE_CHECKING:
    from fastscore.data.load import Dataset
    from fastscore.flow import Solver
    from fastscore.model.score import ScoreModel
    from fastscore.process.schedule import Schedule

ADAPTIVE, FIXED = ("dopri5", "bs32"), ("rk4", "midpoint", "heun", "euler")


@click.command()
@click.argument("model")
@click.argument("data")
@click.option("--split", type=Name(("train", "test")), default="test", show_default=True, help="Of data that has both.")
@click.option("--limit", type=Count(1), help="Use the first N examples.")
@click.option(
    "--probe",
    type=Name(("auto", "rademacher", "gaussian", "exact")),
    default="auto",
    show_default=True,
    help="Estimate of the divergence; auto is exact up to 16 dimensions.",
)
@click.option("--probes", type=Count(1, 65536), default=1, show_default=True, help="Probes an example.")
@click.option("--seed", type=Count(0, 2**64 - 1), default=0, show_default=True, help="Of probes and dequantisation.")
@click.option("--solver", type=Name(ADAPTIVE + FIXED), default="dopri5", show_default=True, help="Of the ODE.")
@click.option("--rtol", type=Number(0, 9, open=True), help=f"Relative tolerance of {' and '.join(ADAPTIVE)}.")
@click.option("--atol", type=Number(0, 9, open=True), help="Absolute tolerance of the same.")
@click.option("--steps", type=Count(1, 1_000_000), help=f"Steps of {', '.join(FIXED)}.  [default: 100]")
@click.option("--schedule", type=Name(SCHEDULES), help="Whose prior is meant; the model's own if left out.")
@click.option("--t-end", type=Number(), help="Where the data is; t = 1e-5 where the schedule goes there, if left out.")
@click.option("--unconditional", is_flag=True, help="Use the null class of a class-conditional model.")
@click.option("--batch", type=Count(1, 1 << 15), default=64, show_default=True, help="Examples at once.")
@click.option("--device", default="cpu", show_default=True, help="cpu, cuda or cuda:N.")
@click.option("--out", type=click.Path(path_type=Path, dir_okay=False), help="Write every example's nats to an .npz.")
@click.option("--quiet", is_flag=True, help="No progress bar.")
def likelihood(model: str, data: str, **o: Any) -> None:
    """Print the log-likelihood of DATA under MODEL as JSON.

    MODEL as in `fastscore sample`, DATA as in `fastscore train`. Images are dequantised: uniform noise, a function of
    --seed and the example's number, fills the cell of each level, and bits/dim count what the 256 levels need. Points
    have a density: nats, and bits/dim that may be negative.
    """
    import math

    import torch

    from fastscore.data.load import load as load_data
    from fastscore.flow import ProbabilityFlow, dequantize
    from fastscore.ops.noise import NoiseKey

    device = checked_device(o["device"])
    examples = load_data(data, o["split"])
    score_model = load(model, device)
    if examples.shape != score_model.shape:
        raise ValueError(f"{data} holds examples of shape {examples.shape}, {model} makes {score_model.shape}")
    schedule = make_schedule(o["schedule"], None, None, score_model.schedule)
    flow = ProbabilityFlow(
        score_model, schedule=schedule, solver=_solver(o), grid=_grid(o, schedule), batch=o["batch"], device=device
    )
    levels = torch.from_numpy(examples.x[: o["limit"]])
    image = levels.dtype == torch.uint8
    if image:
        levels = levels.permute(0, 3, 1, 2).contiguous()
        x = dequantize(levels, NoiseKey.of(o["seed"], range(len(levels))), 1.0 / 127.5, -1.0 - 0.5 / 127.5)
    else:
        x = levels
    found = flow.log_likelihood(
        x,
        probe=o["probe"],
        probes=o["probes"],
        seed=o["seed"],
        labels=_labels(examples, score_model, len(x), o["unconditional"]),
        progress=not o["quiet"],
    )
    bits = found.bits_per_dim(1.0 / 127.5 if image else 1.0)
    n, d = len(x), math.prod(score_model.shape)
    spread = float(bits.std()) / math.sqrt(n) if n > 1 else None
    probes = float(found.stderr.square().mean().sqrt() / (d * math.log(2.0) * math.sqrt(n)))
    report = {
        "bits_per_dim": round(float(bits.mean()), 6),
        "bits_per_dim_stderr": None if spread is None else round(spread, 6),
        "bits_per_dim_stderr_of_probes": round(probes, 6) if math.isfinite(probes) else None,
        "nats": round(float(found.nats.mean()), 6),
        "examples": n,
        "dimensions": d,
        "dequantised": image,
        "schedule": type(schedule).__name__,
        "solver": repr(flow.solver),
        "t_end": float(flow.grid(schedule)[-1]),
        "seed": o["seed"],
        **found.effort.summary(),
    }
    if o["out"] is not None:
        from fastscore.output.images import write_npz

        write_npz(o["out"], nats=found.nats.cpu(), stderr=found.stderr.cpu(), bits_per_dim=bits.cpu())
    click.echo(json.dumps(report, indent=1))


def _solver(o: dict[str, Any]) -> Solver:
    """Return the solver of the options.

    Raises:
        ValueError: steps for an adaptive one, or tolerances for another.
    """
    from fastscore import solvers as s

    name, given = o["solver"], {k: o[k] for k in ("rtol", "atol") if o[k] is not None}
    if name in ADAPTIVE:
        if o["steps"] is not None:
            raise ValueError(f"--steps belongs to the solvers {', '.join(FIXED)}; {name} takes --rtol and --atol")
        return (s.Dopri5 if name == "dopri5" else s.BogackiShampine)(**given)
    if given:
        raise ValueError(f"--{next(iter(given))} belongs to the solvers {' and '.join(ADAPTIVE)}; {name} takes --steps")
    makers: dict[str, Any] = {"rk4": s.RK4, "midpoint": s.RK2, "heun": s.Heun, "euler": s.Euler}
    return makers[name]()


def _grid(o: dict[str, Any], schedule: Schedule) -> Any:
    """Return the span of an adaptive solver, or a grid that suits the others."""
    from dataclasses import replace

    from fastscore.flow import likelihood_end
    from fastscore.process.grid import Span, default_grid

    end = likelihood_end(schedule) if o["t_end"] is None else o["t_end"]
    if o["solver"] in ADAPTIVE:
        return Span(end=end)
    return replace(default_grid(schedule, o["steps"] or 100), end=end, clean=False)


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
