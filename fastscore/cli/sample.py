"""fastscore sample: draw samples and write them to a folder."""

from __future__ import annotations

import math
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from fastscore.cli.options import checked_device, load, make_grid, make_schedule, make_solver, solver_options
from fastscore.cli.output import check_out, draw
from fastscore.cli.types import AutoCount, Count, Ids, Interval, Name, Number

if TYPE_CHECKING:
    from fastscore.model.score import ScoreModel
    from fastscore.plan.rows import Solver
    from fastscore.sampler import Sampler
    from fastscore.solvers.adaptive import Adaptive


@click.command()
@click.argument("model")
@click.option("-n", "--num", type=Count(0, 10_000_000), help="How many samples: ids 0 .. n-1.  [default: 64]")
@click.option("--ids", "--seeds", type=Ids(), help="Which samples instead: a list of ids and ranges, 0-63,100.")
@click.option("--seed", type=Count(0, 2**64 - 1), default=0, show_default=True, help="Of all noise.")
@click.option(
    "--out", "--outdir", type=click.Path(path_type=Path, file_okay=False), required=True, help="Folder to write."
)
@click.option("--class", "label", type=Count(), help="Class of every sample; a random one each if left out.")
@click.option("--unconditional", is_flag=True, help="Use the null class of a class-conditional model.")
@click.option(
    "--guidance", type=Number(), help="Classifier-free guidance weight; 1 is none, above 1 sharpens the class."
)
@click.option(
    "--guidance-interval", type=Interval(), help="LO,HI: guide where LO < sigma/alpha <= HI.  [default: everywhere]"
)
@click.option(
    "--guidance-model", help="Guide away from this worse model instead of from the null class (autoguidance)."
)
@click.option(
    "--batch",
    type=AutoCount(1, 1 << 20),
    default=64,
    show_default=True,
    help="Micro-batch of the network; auto times it, and the threads, once.",
)
@click.option(
    "--dtype",
    type=Name(("auto", "fp32", "bf16")),
    default="auto",
    show_default=True,
    help="Of the network's heavy layers; auto is bf16 where the CPU has it and the scores agree within 1 %.",
)
@click.option(
    "--compile",
    "compiled",
    type=Name(("auto", "off", "full", "regional")),
    default="auto",
    show_default=True,
    help="auto compiles the network once for this machine and keeps it; off runs it as it is, in fp32; full and "
    "regional are torch.compile in this process.",
)
@click.option(
    "--graph", type=Name(("auto", "off", "step", "loop")), default="auto", show_default=True, help="CUDA graphs."
)
@click.option(
    "--backend",
    type=Name(("auto", "reference", "cpp", "triton")),
    default="auto",
    show_default=True,
    help="What runs the rows.",
)
@click.option("--device", default="cpu", show_default=True, help="cpu, cuda or cuda:N.")
@click.option("--png", is_flag=True, help="Also write one PNG a sample, named by its id.")
@click.option("--subdirs", is_flag=True, help="With --png: one folder for each 1000 ids.")
@click.option("--overwrite", is_flag=True, help="Replace the results of an earlier run in --out.")
@click.option("--quiet", is_flag=True, help="No progress bar, no summary.")
@solver_options
def sample(model: str, num: int | None, ids: list[int] | None, seed: int, out: Path, **o: Any) -> None:
    """Draw samples of MODEL: a bundled name (see `fastscore models`), a folder, or analytic:NAME.

    Writes samples.npz (key samples: uint8 images [N, H, W, C], or float32 points), grid.png and
    run.json (settings, plan hash, versions, timings). A sample is a function of the settings, --seed
    and its id: it does not depend on how many are drawn, or in which order. How the network ran is part of
    the settings; for the same bytes on another machine of the same kind use --dtype fp32 --compile off.
    """
    start = time.perf_counter()
    if num is not None and ids is not None:
        raise ValueError("-n and --ids exclude each other: -n 64 is --ids 0-63")
    wanted = ids if ids is not None else range(64 if num is None else num)
    check_out(out, o["overwrite"])

    score_model = load(model, checked_device(o["device"]))
    sampler = make_sampler(score_model, o, make_solver(o))
    labels = o["label"]
    if labels is None and score_model.classes and not o["unconditional"]:
        labels = "random"
    if o["subdirs"] and not o["png"]:
        raise ValueError("--subdirs sorts the files of --png; add it, or leave --subdirs out")
    image = len(score_model.shape) == 3
    if not image and o["png"]:
        raise ValueError(f"samples of shape {score_model.shape} are not images; leave --png out")
    if image and o["png"] and score_model.shape[0] not in (1, 3):
        raise ValueError(f"a PNG needs 1 or 3 channels; this model has {score_model.shape[0]}")

    given = sampler.label_of(wanted, seed, labels)
    more = {} if given is None else {"labels": given.cpu().numpy()}
    settings = {"model": model, "seed": seed, "num": len(wanted)}
    settings |= {"ids": _ranges(list(wanted))} if ids is not None else {}
    draw(sampler, out, wanted, seed, o, start, settings, more, labels=labels)


def make_sampler(score_model: ScoreModel, o: dict[str, Any], solver: Solver | Adaptive, **more: Any) -> Sampler:
    """Return the sampler that the options describe; ``more`` goes to it as it is."""
    import torch

    from fastscore.guidance.mixture import Guidance
    from fastscore.network.timing import choose_batch
    from fastscore.sampler import Sampler

    if o["label"] is not None and o["unconditional"]:
        raise ValueError("--class and --unconditional exclude each other")
    guidance, away = None, o["guidance_model"]
    if o["guidance"] is not None:
        if o["unconditional"] and away is None:
            raise ValueError("--guidance leads away from the null class, which --unconditional asks for; leave one out")
        interval = o["guidance_interval"] or (0.0, math.inf)
        guidance = Guidance(o["guidance"], interval, load(away, o["device"]) if away else None)
    elif o["guidance_interval"] or away:
        raise ValueError("--guidance-interval and --guidance-model need --guidance, a weight")
    if o["dtype"] == "bf16" and o["compiled"] != "auto":
        raise ValueError(f"--dtype bf16 needs --compile auto, not {o['compiled']}")
    schedule = make_schedule(o["schedule"], o["sigma_min"], o["sigma_max"], score_model.schedule)
    batch = o["batch"]
    if batch == "auto":
        choice = choose_batch(score_model, o["device"])
        batch = choice.batch
        torch.set_num_threads(choice.threads or torch.get_num_threads())
    settings: dict[str, Any] = {"network": o["dtype"] if o["compiled"] == "auto" else "own", **more}
    return Sampler(
        score_model,
        schedule=schedule,
        solver=solver,
        grid=make_grid(o, schedule, score_model.schedule),
        batch=batch,
        clip=o["clip"],
        device=o["device"],
        backend=o["backend"],
        compile="off" if o["compiled"] == "auto" else o["compiled"],
        graph=o["graph"],
        guidance=guidance,
        **settings,
    )


def _ranges(ids: list[int]) -> str:
    """Write ids the way --ids reads them."""
    parts, start = [], 0
    for k in range(1, len(ids) + 1):
        if k == len(ids) or ids[k] != ids[k - 1] + 1:
            parts.append(f"{ids[start]}" if k - start == 1 else f"{ids[start]}-{ids[k - 1]}")
            start = k
    return ",".join(parts)
