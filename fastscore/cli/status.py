"""fastscore status: what is there of a run."""

from __future__ import annotations

import click


@click.command()
@click.argument("run")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@click.pass_context
def status(context: click.Context, run: str, as_json: bool) -> None:
    """Say how the run in RUN, a folder or a bucket, stands: what is there, who is at what, and how to go on.

    Exit code 0: it is complete; 75: it is not; 2: there is none. It reads, and may be called while others draw.
    """
    import json

    from fastscore.output.store.status import status as status_of

    found = status_of(run)
    if as_json:
        click.echo(json.dumps(found.to_dict(), indent=1))
    else:
        for line in found.lines():
            click.echo(line)
    context.exit(0 if found.complete else 75)
