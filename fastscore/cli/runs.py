"""Runs of samples as the command line makes them: options of where, in how many processes and parts; what is told."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from fastscore.cli.log import log_option, opened
from fastscore.cli.types import Count, Devices, Name, Out, Part, StepNumbers, shorten

if TYPE_CHECKING:
    from fastscore.engine.request import Request
    from fastscore.output.store.job import Asked, Job
    from fastscore.output.store.place import Place
    from fastscore.output.store.work import Beat, Tally
    from fastscore.sampler import Sampler

FORMATS = ("npz", "adm-npz", "npy", "tar", "parquet")
# Options that say where to and by whom, not what: a manifest leaves them out, with how many words follow each.
_ELSEWHERE = {
    "--out": 1, "--outdir": 1, "--fresh": 0, "--overwrite": 0, "--quiet": 0, "--workers": 1, "--devices": 1,
    "--shard": 1, "--worker": 1, "--shard-size": 1, "--allow-mixed-numerics": 0, "--device": 1, "--manifest-only": 0,
    "--metrics": 1, "--log": 1,
}  # fmt: skip
JOB = "fastscore.job"  # in a context's meta: what is given the job, in place of drawing it
_NOT_SETTINGS = (
    "out", "overwrite", "quiet", "old_dtype", "old_compile", "workers", "devices", "shard", "shard_size", "worker",
    "format", "mixed", "manifest_only", "shards", "metrics", "log",
)  # fmt: skip


def run_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Add the options of a command that makes a run: where to, in which files, drawn by whom."""
    options = [
        click.option(
            "--out", "--outdir", type=Out(buckets=True), required=True,
            help="Folder to write; or s3://, gs://, az:// (extra: objects).",
        ),
        click.option("--png", is_flag=True, help="Also write one PNG a sample, named by its id."),
        click.option("--subdirs", is_flag=True, help="With --png: one folder for each 1000 ids."),
        click.option(
            "--format", type=Name(FORMATS), default="npz", show_default=True,
            help="Files of samples. npz, adm-npz: one file up to 1 GiB, else shards; the others: shards.",
        ),
        click.option("--shards", is_flag=True, help="Leave the samples in shards, however few they are."),
        click.option(
            "--fresh", "--overwrite", "overwrite", is_flag=True,
            help="Start over, and replace the run in --out once this one is complete. Without it a run that was ended "
            "is gone on with.",
        ),
        click.option("--workers", type=Count(1, 4096), help="Processes.  [default: 1, or one for each of --devices]"),
        click.option("--devices", type=Devices(), help="CUDA devices, a process each: 0,1 or all."),
        click.option(
            "--shard", type=Part(), envvar="FASTSCORE_SHARD",
            help="I/N: draw the I-th of N parts of a run that other commands draw too, here or on other machines.",
        ),
        click.option("--shard-size", type=Count(1, 1 << 24), help="Samples a shard.  [default: seconds of work]"),
        click.option(
            "--allow-mixed-numerics", "mixed", is_flag=True,
            help="Go on with a run of other versions or another kind of machine; bytes may differ.",
        ),
        click.option("--manifest-only", is_flag=True, help="Write manifest.json, for others to draw, and end."),
        click.option("--worker", hidden=True),
        click.option("--metrics", type=Out(), metavar="FILE", help="Write how far it is here, for Prometheus."),
        log_option,
        click.option("--quiet", is_flag=True, help="No progress, no summary."),
    ]  # fmt: skip
    for decorate in reversed(options):
        command = decorate(command)
    return command


def draw_and_tell(
    sampler: Sampler,
    request: Request | Asked,
    options: dict[str, Any],
    settings: dict[str, Any],
    started: float,
    **arguments: Any,
) -> None:
    """Write the samples of a request to --out, and say in one line what was done.

    Args:
        settings: what was asked for beside the options.
        started: when the command began, by time.perf_counter.
        arguments: of output.run.draw.
    """
    from fastscore.output.run import draw, files

    source: Any = sampler
    if options.get("trajectory_steps") is not None:
        options["trajectory"] = True
    if options.get("trajectory"):
        from fastscore.engine.trajectory import Traced

        source = Traced(sampler, StepNumbers.chosen(options["trajectory_steps"]))
        arguments |= {"further": source.write, "further_bytes": source.bytes(request)}
    argv, sizes = argv_of(options), {"shard": options["shard_size"], "format": options["format"]}
    if (give := click.get_current_context().meta.get(JOB)) is not None:
        from fastscore.output.store.job import job_of

        return give(job_of(source, request, gathered=False, **sizes))
    if options["worker"]:
        return _serve(source, request, options, sizes, arguments)
    if (part := _part(options)) is not None:
        return _share(source, request, options, sizes, part, argv, arguments)
    arguments["log"] = click.get_current_context().with_resource(opened(options["log"]))
    out, quiet = options["out"], options["quiet"]
    crew = None
    if (options["workers"] or 1) > 1 or options["devices"]:
        if options.get("trajectory"):
            raise ValueError("--trajectory is drawn by one process; leave --workers and --devices out")
        crew = _crew(options, argv)
    run = draw(
        source,
        request,
        out,
        png=options["png"],
        subdirs=options["subdirs"],
        overwrite=options["overwrite"],
        settings={k: v for k, v in options.items() if k not in _NOT_SETTINGS and v is not None} | settings,
        command=shorten(" ".join(["fastscore", *sys.argv[1:]]), 2000),
        argv=argv,
        started=started,
        progress=not quiet,
        metrics=options["metrics"],
        gathered=False if options["shards"] else None,
        mixed=options["mixed"],
        crew=crew,
        **sizes,
        **arguments,
    )
    if run.get("already_complete") and options.get("trajectory"):
        kept = run["settings"].get("trajectory_steps")
        if kept != options["trajectory_steps"]:
            there = "all states" if kept is None else f"the states {kept}"
            raise ValueError(
                f"{out} already holds this run, with {there} of its trajectory; choose another folder, or --fresh"
            )
    if quiet:
        return
    if run.get("already_complete"):
        click.echo(f"complete already, {len(request)} samples: {out}/{', '.join(files(out))}")
        return
    drawn = "nfe" in run or run["adaptive"]["samples"]
    evaluations = f"{run['nfe']} evaluations each" if "nfe" in run else str(sampler.cost) if drawn else "adaptive steps"
    rate = run["timings"]["samples_per_s"]
    speed = f", {rate:.1f} samples/s on {sampler.execution.place}" if rate else ""
    click.echo(f"{len(request)} samples, {evaluations}{speed}: {out}/{', '.join(files(out))}")


def argv_of(options: dict[str, Any]) -> list[str]:
    """Return the words of this command line without where to and by whom; paths in them absolute.

    A device is one of a machine, but for the CPU: to draw that again where there is another needs the word.
    """
    context = click.get_current_context()
    words: Sequence[str] = context.find_root().obj or sys.argv[1:]
    params = context.params
    paths = {Path(params[k]) for k in ("model", "guidance_model", "images", "mask") if params.get(k) is not None}
    kept, skip = list[str](), 0
    for word in words:
        name, _, value = word.partition("=")
        if skip:
            skip -= 1
        elif name in _ELSEWHERE:
            skip = _ELSEWHERE[name] if not value else 0
        elif Path(word) in paths and os.path.exists(word):
            kept.append(os.path.abspath(word))
        elif value and Path(value) in paths and os.path.exists(value):
            kept.append(f"{name}={os.path.abspath(value)}")
        else:
            kept.append(word)
    return [*kept, "--device", "cpu"] if params.get("device") == "cpu" else kept


def _part(options: dict[str, Any]) -> tuple[int, int] | None:
    """Return which part of a shared run this command draws; None for a run of its own.

    A launcher that starts one process a device, as torchrun, says it by RANK and WORLD_SIZE.
    """
    part, out = options["shard"], options["out"]
    rank, size = os.environ.get("RANK", ""), os.environ.get("WORLD_SIZE", "")
    if part is None and rank.isdecimal() and size.isdecimal() and int(size) > 1:
        part = (int(rank), int(size))
        click.echo(f"fastscore: RANK and WORLD_SIZE are set: this is --shard {rank}/{size}", err=True)
    if part is None and (options["manifest_only"] or not isinstance(out, Path)):
        part = (0, 1)
    if part is None:
        return None
    for name in ("png", "overwrite", "trajectory"):
        if options.get(name):
            flag = {"overwrite": "fresh"}.get(name, name)
            raise ValueError(f"--{flag} belongs to a run of one command in a folder; not with --shard or a bucket")
    return part


def _share(
    source: Any,
    request: Request | Asked,
    options: dict[str, Any],
    sizes: dict[str, Any],
    part: tuple[int, int],
    argv: list[str],
    arguments: dict[str, Any],
) -> None:
    """Draw a part of a run that other commands draw too, straight into its place."""
    from fastscore.output.commit import settle
    from fastscore.output.metrics import Metrics
    from fastscore.output.progress import Progress
    from fastscore.output.store.job import job_of
    from fastscore.output.store.place import place_of
    from fastscore.output.store.resume import joined
    from fastscore.output.store.share import share

    _refuse_extras(arguments)
    if options["log"]:
        raise ValueError("--log follows a run of one command; of one that many draw take --metrics, or `status`")
    out = options["out"]
    if isinstance(out, Path):
        settle(out)
        if (out / "run.json").exists():
            raise ValueError(f"{out} holds a complete run; choose another folder for one that many commands draw")
        if (out / ".run").exists():
            raise ValueError(
                f"{out} holds an unfinished run of one command, which goes on with it; choose another folder for one "
                "that many commands draw"
            )
    place = place_of(out)
    job = job_of(source, request, gathered=False, argv=argv, **sizes).ready()
    job = joined(job, place, options["shard_size"] is not None, options["mixed"])
    if options["manifest_only"]:
        click.echo(f"{out}/manifest.json: {job.manifest.n} samples in {job.manifest.count} shards")
        return
    crew = _crew(options, argv) if (options["workers"] or 1) > 1 or options["devices"] else None
    watch = None if options["metrics"] is None else Metrics(options["metrics"], place.url, part)
    with Progress(not options["quiet"], watch=watch) as progress:
        tally, there = share(job, place, part, progress.begin, progress.advance, crew)
    if not options["quiet"]:
        click.echo(
            f"part {part[0]}/{part[1]} of {out}: {tally.drawn} shards drawn, {tally.found} were there; {there} of "
            f"{len(job.manifest.part(*part))} are there now"
        )


def _serve(
    source: Any, request: Request | Asked, options: dict[str, Any], sizes: dict[str, Any], arguments: dict[str, Any]
) -> None:
    """Be one of the processes that another one has started: draw what is missing until it is gone or all is there."""
    from fastscore.launch.local import serve
    from fastscore.output.pictures import beside
    from fastscore.output.store.job import job_of
    from fastscore.output.store.manifest import Manifest
    from fastscore.output.store.place import place_of
    from fastscore.output.store.resume import joined

    number, workers, part, of, parent, where = options["worker"].split(":", 5)
    place = place_of(where)
    there = Manifest.read(place)
    job = job_of(source, request, gathered=there is not None and there.gathered, **sizes).ready()
    job = joined(job, place, sized=False, mixed=options["mixed"])
    kept = beside(Path(where) / "new" if job.manifest.gathered else Path(where), options["png"], options["subdirs"])
    serve(job, place, int(number), int(workers), (int(part), int(of)), int(parent), kept)


def _crew(options: dict[str, Any], argv: list[str]) -> Callable[[Job, Place, Beat], Tally]:
    """Return what draws in processes of their own."""
    import torch

    from fastscore.launch.local import crew

    devices = options["devices"]
    if devices == "all":
        devices = list(range(torch.cuda.device_count()))
    if devices is not None and (not devices or max(devices) >= torch.cuda.device_count()):
        raise ValueError(
            f"--devices: torch sees {torch.cuda.device_count()} CUDA devices here; leave it out for the CPU"
        )
    workers = options["workers"] or len(devices or [0])
    device = ["--device", "cuda"] if devices else ["--device", options["device"]]
    again = [*argv, *device, *(["--allow-mixed-numerics"] if options["mixed"] else []), "--quiet"]
    return crew([*again, "--out", str(options["out"])], workers, devices, _part(options) or (0, 1))


def _refuse_extras(arguments: dict[str, Any]) -> None:
    """Raise ValueError for what belongs to a run that one command makes."""
    with suppress(StopIteration):
        name = next(k for k in ("sheet", "extra_arrays") if arguments.get(k))
        raise ValueError(f"this command writes {name} beside its samples; draw it into a folder, without --shard")
