"""fastscore sample: draw samples and write them to a folder."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import click

from fastscore.cli.groups import Grouped
from fastscore.cli.known import MODEL
from fastscore.cli.options import (
    BACKENDS,
    GRAPHS,
    GUIDED,
    NETWORKS,
    device_option,
    load,
    make_grid,
    make_schedule,
    make_solver,
    rule_option,
    solver_options,
)
from fastscore.cli.runs import draw_and_tell, run_options
from fastscore.cli.types import AutoCount, Count, Ids, Interval, Name, Number, StepNumbers, Sweeps
from fastscore.process.names import TUNED

if TYPE_CHECKING:
    import torch

    from fastscore.engine.request import Request
    from fastscore.execution import Execution
    from fastscore.guidance.denoiser import Guide
    from fastscore.model.score import ScoreModel
    from fastscore.plan.rows import Solver
    from fastscore.sampler import Sampler
    from fastscore.solvers.adaptive import Adaptive


def drawing_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Add the options of a command that draws: where to, guidance, how it is computed, schedule and solver."""
    options = [
        click.option("--seed", type=Count(0, 2**64 - 1), default=0, show_default=True, help="Seed of all noise."),
        click.option("--unconditional", is_flag=True, help="Use the null class of a class-conditional model."),
        click.option(
            "--guidance", type=Number(), help="Classifier-free guidance weight; 1 is none, above 1 sharpens the class."
        ),
        rule_option,
        click.option(
            "--guidance-interval",
            type=Interval("0.3,5", levels=True),
            help="LO,HI: mix where LO < sigma/alpha <= HI.  [default: everywhere]",
        ),
        click.option(
            "--guidance-model",
            type=MODEL,
            help="Lead away from this worse model instead of from the null class (autoguidance).",
        ),
        click.option("--negative", type=Count(), help="Lead away from this class instead of from the null class."),
        click.option(
            "--batch",
            type=AutoCount(1, 1 << 20),
            default=64,
            show_default=True,
            help="Micro-batch of the network; auto times it, and the threads, once.",
        ),
        click.option(
            "--network",
            type=Name(NETWORKS),
            default="auto",
            show_default=True,
            help="Path of the network. auto, fp32, bf16, on CUDA tf32: compiled once for this machine and kept; auto "
            "is bf16 where the device has it and the scores agree within 1 %. own: as it is. compile, regional: "
            "torch.compile in this process.",
        ),
        click.option("--dtype", "old_dtype", type=Name(("auto", "fp32", "bf16")), hidden=True),
        click.option("--compile", "old_compile", type=Name(("auto", "off", "full", "regional")), hidden=True),
        click.option(
            "--parallel",
            type=Sweeps(),
            help="Evaluate WINDOW steps of each sample in one network batch, by Picard sweeps, until a sweep changes a "
            "state by at most TOLERANCE (0 if left out: as one after the other; its paper has 0.1).",
        ),
        click.option("--graph", type=Name(GRAPHS), default="auto", show_default=True, help="CUDA graphs."),
        click.option(
            "--guided",
            type=Name(GUIDED),
            default="auto",
            show_default=True,
            help="Both evaluations of a guided step by one network: one call after the other (serial), or one of both "
            "(batched); auto is batched on CUDA up to 256 lines. Part of what samples are a function of.",
        ),
        click.option(
            "--backend",
            type=Name(BACKENDS),
            default="auto",
            show_default=True,
            help="What runs the solver's arithmetic: cpp on CPUs, triton on GPUs, reference (PyTorch) anywhere.",
        ),
        device_option,
        run_options,
        solver_options,
    ]
    for decorate in reversed(options):
        command = decorate(command)
    return command


@click.command(cls=Grouped)
@click.argument("model", type=MODEL)
@click.option("-n", "--num", type=Count(0, 10**12), help="Number of samples: ids 0 .. n-1.  [default: 64]")
@click.option("--ids", "--seeds", type=Ids(), help="Which samples instead: a list of ids and ranges, 0-63,100.")
@click.option("--class", "label", type=Count(), help="Class of every sample; a random one each if left out.")
@click.option(
    "--trajectory",
    is_flag=True,
    help="Also write trajectory.npz: times [K + 1], states [K + 1, n, ..] and estimates x0 [K, n, ..]; of an adaptive "
    "solver times [K + 1, n], NaN after a sample's last step.",
)
@click.option(
    "--trajectory-steps",
    type=StepNumbers(),
    metavar="STEPS",
    help="States of it to keep, and of memory to take: 0,5,-1 or ::10; 0 is noise, -1 the sample.  [default: all]",
)
@drawing_options
def sample(model: str, num: int | None, ids: list[int] | range | None, **options: Any) -> None:
    """Draw samples of MODEL: a bundled name (see `fastscore models`), a folder (diffusers' too), or analytic:NAME.

    \b
        fastscore sample fashion -n 64 --class 3 --guidance 2 --out dresses

    Writes samples.npz (key samples: uint8 images [N, H, W, C], or float32 points), grid.png and run.json (what was
    asked, how it was computed, plan hash, versions, timings). A sample is a function of the settings, --seed and its
    id: it does not depend on how many are drawn, or in which order. How the network ran is part of the settings; for
    the same bytes on another machine of the same kind use --network own.

    A run is drawn in shards: ended in whatever way and called again, it goes on, and a complete one is left as it is.
    `fastscore status` says how it stands, `fastscore verify` whether it is whole; `fastscore launch` writes the files
    for many machines. Ends with 75 if it was stopped and can be gone on with, 4 for NaN, 5 for storage.

    In Python this is fastscore.draw, and with --trajectory fastscore.trajectory.
    """
    from fastscore.ops.backend import named_device
    from fastscore.output.store.digest import digest
    from fastscore.output.store.job import Asked

    started = time.perf_counter()
    if num is not None and ids is not None:
        raise ValueError("-n and --ids exclude each other: -n 64 is --ids 0-63")
    chosen = ids if ids is not None else range(64 if num is None else num)
    solver, network = make_solver(options), network_of(options)
    device = named_device(options["device"])
    score_model = load(model, device)
    sampler = make_sampler(score_model, options, solver, make_execution(score_model, options, device, network))
    labels = options["label"]
    if labels is None and score_model.classes and not options["unconditional"]:
        labels = "random"
    settings = {"model": model, "seed": options["seed"], "num": len(chosen), "network": network}
    seed = options["seed"]
    negative = options["negative"]
    sampler.request(chosen[:1], seed, labels=labels, negative=negative)  # what is wrong with any request is said now

    def lines(positions: Sequence[int]) -> Request:
        ids = (
            chosen[positions.start : positions.stop] if isinstance(positions, range) else [chosen[k] for k in positions]
        )
        return sampler.request(ids, seed, labels=labels, negative=negative)

    told = [seed, labels] if negative is None else [seed, labels, negative]
    asked = Asked(chosen, lines, digest(told), seed)
    settings |= {"ids": asked.text} if ids is not None else {}
    draw_and_tell(sampler, asked, options, settings, started)


def network_of(options: dict[str, Any]) -> str:
    """Return --network; the options that it replaced keep their meaning for one version, and say what to write.

    Raises:
        ValueError: old and new options together, or old ones that exclude each other.
    """
    dtype, compiled = options["old_dtype"], options["old_compile"]
    if dtype is None and compiled is None:
        return options["network"]
    source = click.get_current_context().get_parameter_source("network")
    if source == click.core.ParameterSource.COMMANDLINE:
        raise ValueError("--network replaces --dtype and --compile; leave those out")
    if dtype == "bf16" and compiled not in (None, "auto"):
        raise ValueError(f"--dtype bf16 needs --compile auto, not {compiled}; say --network bf16 alone")
    network = {"off": "own", "full": "compile", "regional": "regional"}.get(compiled or "", dtype or "auto")
    typed = [f"{flag} {value}" for flag, value in (("--dtype", dtype), ("--compile", compiled)) if value]
    click.echo(f"fastscore: {' '.join(typed)} is now --network {network}", err=True)
    return network


def make_execution(model: ScoreModel, options: dict[str, Any], device: torch.device, network: str) -> Execution:
    """Return how the options say to compute; --batch auto is that of the run in --out, or times the model's network."""
    import torch

    from fastscore.execution import Execution
    from fastscore.network.timing import choose_batch
    from fastscore.output.store.resume import begun

    batch, there = options["batch"], begun(options["out"]) if options["batch"] == "auto" else None
    if there is not None and isinstance(there.numerics.get("batch"), int):
        batch = there.numerics["batch"]
    elif batch == "auto":
        choice = choose_batch(model, device)
        batch = choice.batch
        torch.set_num_threads(choice.threads or torch.get_num_threads())
    how = {name: options[name] for name in ("backend", "graph", "guided")}
    return Execution(device, batch, network=network, **how)


def make_sampler(
    score_model: ScoreModel,
    options: dict[str, Any],
    solver: Solver | Adaptive,
    execution: Execution,
    guide: Guide | None = None,
) -> Sampler:
    """Return the sampler that the options describe."""
    from fastscore.engine.picard import Picard
    from fastscore.guidance.mixture import Guidance
    from fastscore.sampler import Sampler

    if options["label"] is not None and options["unconditional"]:
        raise ValueError("--class and --unconditional exclude each other")
    guidance, away = None, options["guidance_model"]
    if options["guidance"] is not None:
        if options["unconditional"] and away is None and options["negative"] is None:
            raise ValueError("--guidance leads away from the null class, which --unconditional asks for; leave one out")
        interval = options["guidance_interval"] or (0.0, math.inf)
        second = load(away, execution.place) if away else None
        guidance = Guidance(options["guidance"], interval, second, rule=options["guidance_rule"] or "cfg")
    elif any(
        options[name] is not None for name in ("guidance_rule", "guidance_interval", "guidance_model", "negative")
    ):
        raise ValueError(
            "--guidance-rule, --guidance-interval, --guidance-model and --negative need --guidance, a weight"
        )
    schedule = make_schedule(options, score_model.schedule)
    grid = make_grid(options, solver, schedule, score_model, guide)
    source = click.get_current_context().get_parameter_source("solver")
    return Sampler(
        score_model,
        schedule=schedule,
        solver=None if grid == TUNED and source == click.core.ParameterSource.DEFAULT else solver,
        grid=grid,
        steps=options["steps"] if grid == TUNED else None,
        clip=options["clip"],
        parallel=None if options["parallel"] is None else Picard(*options["parallel"]),
        guidance=guidance,
        guide=guide,
        execution=execution,
    )
