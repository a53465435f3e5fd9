"""fastscore launch: a run on many machines. Files for schedulers are written, never submitted."""

from __future__ import annotations

import shlex
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from fastscore.cli.sample import sample
from fastscore.cli.types import Count, Number, Out


@click.group()
def launch() -> None:
    """Run a `fastscore sample` command on many machines.

    \b
        fastscore launch slurm --parts 100 --output job.sh -- sample fashion -n 10M --out /shared/run
        fastscore launch k8s --parts 100 --image my/image:1 --dry-run -- sample fashion -n 10M --out s3://bucket/run

    slurm, k8s and skypilot write a file in which each job draws one part of the run, and goes on where it was when it
    is started again; the file is for you to look at and to submit.
    """


def file_command(command: Callable[..., Any]) -> Callable[..., Any]:
    """Make a command that turns the words of a `sample` command into a file: its options, and what it takes."""
    options = [
        click.argument("words", nargs=-1, type=click.UNPROCESSED, metavar="-- sample MODEL [OPTIONS] --out RUN"),
        click.option("--parts", type=Count(1), required=True, metavar="N", help="Jobs that the run is cut into."),
        click.option("--at-once", type=Count(1), metavar="N", help="Jobs that may run at a time.  [default: all]"),
        click.option("--name", default="fastscore", show_default=True, help="Of the jobs."),
        click.option("--output", type=Out(), metavar="FILE", help="Write the file here."),
        click.option("--overwrite", is_flag=True, help="Replace --output if it is there."),
        click.option("--dry-run", is_flag=True, help="Only print the file."),
    ]
    for decorate in reversed(options):
        command = decorate(command)
    return launch.command(context_settings={"allow_interspersed_args": False})(command)


@file_command
@click.option("--time", default="4:00:00", show_default=True, help="Longest time of a job; it then is queued again.")
@click.option("--gpus", type=Count(), default=1, show_default=True, help="GPUs of a job.")
@click.option("--cpus", type=Count(1), default=4, show_default=True, help="Cores of a job.")
@click.option("--memory", help="Memory of a job, such as 32G.")
@click.option("--partition", help="Partition to queue in.")
@click.option("--account", help="Account to charge.")
@click.option("--grace", type=Count(), default=60, show_default=True, help="Seconds from the call to stop to the end.")
@click.option("--setup", multiple=True, metavar="LINE", help="Line of bash before the command; may be repeated.")
def slurm(words: tuple[str, ...], **options: Any) -> None:
    """Write a batch script of an array of jobs for Slurm."""
    from fastscore.launch.slurm import slurm as text

    _file(words, text, "sbatch {file}", options)


@file_command
@click.option("--image", required=True, help="Container image with fastscore on its path.")
@click.option("--gpus", type=Count(), default=1, show_default=True, help="NVIDIA GPUs of a pod.")
@click.option("--cpus", help="Cores of a pod, such as 4 or 500m.")
@click.option("--memory", help="Memory of a pod, such as 32Gi.")
@click.option("--namespace", help="Namespace of the Job.")
@click.option("--service-account", help="Service account of the pods, such as one that may write to the bucket.")
@click.option("--secret", help="Secret whose keys become environment variables.")
@click.option("--volume", metavar="CLAIM:/PATH", help="PersistentVolumeClaim, and where it is mounted.")
@click.option("--grace", type=Count(), default=60, show_default=True, help="Seconds from the call to stop to the end.")
def k8s(words: tuple[str, ...], **options: Any) -> None:
    """Write an Indexed Job for Kubernetes, 1.29 or newer."""
    from fastscore.launch.kubernetes import kubernetes as text

    _file(words, text, "kubectl apply -f {file}", options)


@file_command
@click.option("--accelerators", help="Of a job, such as A100:1.")
@click.option("--cpus", help="Cores of a job, such as 4+.")
@click.option("--memory", help="Memory of a job in GB, such as 32+.")
@click.option("--spot/--no-spot", default=True, show_default=True, help="Machines that may be taken away.")
@click.option("--setup", multiple=True, metavar="LINE", help="Line of bash that installs fastscore; may be repeated.")
def skypilot(words: tuple[str, ...], **options: Any) -> None:
    """Write a task for SkyPilot, launched once for each part."""
    from fastscore.launch.skypilot import skypilot as text

    _file(words, text, "sky jobs launch --num-jobs {parts} {file}", options)


@launch.command()
@click.argument("run")
@click.option("--workers", type=Count(1, 100_000), default=1, show_default=True, help="Actors, with a model each.")
@click.option("--address", default="auto", show_default=True, help="Of the cluster; local: a new one, of this machine.")
@click.option("--gpus", type=Number(0), help="GPUs of an actor.  [default: 1 if the cluster has any]")
@click.option("--cpus", type=Number(0), default=1.0, show_default=True, help="Cores of an actor.")
@click.option("--quiet", is_flag=True, help="No progress, no summary.")
def ray(run: str, workers: int, address: str, gpus: float | None, cpus: float, quiet: bool) -> None:
    """Draw what RUN lacks by actors of a Ray cluster. (extra: ray)

    \b
        fastscore sample fashion -n 10M --out s3://bucket/run --manifest-only
        fastscore launch ray --address auto --workers 64 s3://bucket/run

    RUN is a place that every machine of the cluster can write: a bucket, or a folder that all share.
    """
    from fastscore.cli.again import opened
    from fastscore.launch.ray import Drawn, draw
    from fastscore.output.progress import Progress

    with Progress(not quiet, "shards") as progress:

        def told(_: Drawn) -> None:
            progress.advance(1)

        draw(run, opened, workers, address=address, gpus=gpus, cpus=cpus, total=progress.begin, told=told)
    if not quiet:
        click.echo(f"all {progress.total} shards are in {run}")


def _file(words: tuple[str, ...], text: Callable[..., str], submit: str, options: dict[str, Any]) -> None:
    """Print a file, or write it and say how it is submitted; a command that `sample` would refuse makes none."""
    from fastscore.launch.parts import Parts

    count, at_once, name = (options.pop(k) for k in ("parts", "at_once", "name"))
    output, overwrite, dry_run = (options.pop(k) for k in ("output", "overwrite", "dry_run"))
    if dry_run == (output is not None):
        raise click.UsageError("say --dry-run to print the file, or --output FILE to write it.")
    parts = Parts(words, count, at_once, name)
    sample.make_context("fastscore sample", list(words[1:])).close()
    content = text(parts, **options)
    if dry_run:
        click.echo(content, nl=False)
        return
    from fastscore.output.commit import new_file

    with new_file(Path(output), overwrite) as write:
        write(lambda file: file.write(content.encode()))
    file = shlex.quote(f"./{output}" if str(output).startswith("-") else str(output))
    click.echo(f"{output} is written; submit it with: {submit.format(file=file, parts=count)}")
