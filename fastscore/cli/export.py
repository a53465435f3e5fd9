"""fastscore export and merge: a run in other files, and one run of parts that were drawn apart."""

from __future__ import annotations

from pathlib import Path

import click

from fastscore.cli.types import Name, Out

FORMS = ("npz", "adm-npz", "npy", "parquet", "tar", "png", "zarr")


@click.command()
@click.argument("run")
@click.option("--format", "form", type=Name(FORMS), required=True, help="What to write, see above.")
@click.option("--out", type=Out(), required=True, help="The file; or the folder, a new or an empty one.")
@click.option("--overwrite", is_flag=True, help="Replace a file.")
@click.option("--quiet", is_flag=True, help="No summary.")
def export(run: str, form: str, out: Path, overwrite: bool, quiet: bool) -> None:
    """Write the samples of RUN, a complete run in a folder or a bucket, in another form.

    One file: npz (samples, ids, labels), adm-npz (arr_0, arr_1, for ADM's evaluator), npy (the samples alone),
    parquet. A folder: tar (WebDataset, a tar a shard), png (000000/000123.png, as EDM names them), zarr (a chunk a
    shard). Memory does not grow with the run, and RUN stays as it is.
    """
    from fastscore.output.store.export import export as write
    from fastscore.output.store.runs import shards_of

    manifest, shards = shards_of(run)
    write(shards, out, form, manifest.n, overwrite=overwrite)
    if not quiet:
        click.echo(f"{manifest.n} samples: {out}")


@click.command()
@click.argument("runs", nargs=-1, required=True)
@click.option("--out", type=Out(buckets=True), required=True, help="Folder, or s3://, gs://, az://.")
@click.option("--quiet", is_flag=True, help="No summary.")
def merge(runs: tuple[str, ...], out: Path | str, quiet: bool) -> None:
    """Copy the shards of RUNS, parts of one run that were drawn apart (--shard I/N), to one place.

    All must have the same manifest. A shard that two of them have must be the same in both. What --out lacks then,
    the command of the run draws, with this --out and --shard 0/1.
    """
    from fastscore.output.store.place import place_of
    from fastscore.output.store.runs import merge as copy

    manifest, there = copy([place_of(run) for run in runs], place_of(out))
    if quiet:
        return
    missing = [number for number in range(manifest.count) if number not in there]
    lacks = f"; it lacks {', '.join(map(str, missing[:5]))}{', ..' if missing[5:] else ''}" if missing else ""
    click.echo(f"{len(there)} of {manifest.count} shards are in {out}{lacks}")
