"""--log: who hears how a run or a training goes."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib import import_module
from typing import TYPE_CHECKING, Any

import click

from fastscore.cli.types import shorten

if TYPE_CHECKING:
    from fastscore.output.log import Log

KINDS = {"jsonl": "FILE", "trackio": "PROJECT", "wandb": "PROJECT"}


class LogTo(click.ParamType):
    """A kind of logger and where it writes to: jsonl:FILE, trackio:PROJECT or wandb:PROJECT."""

    name = "KIND:WHERE"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[str, str]:
        """Parse one pair."""
        kind, _, where = value if isinstance(value, tuple) else str(value).partition(":")
        if kind not in KINDS or not where.strip():
            known = ", ".join(f"{name}:{what}" for name, what in KINDS.items())
            self.fail(f"{shorten(value)!r} must be one of {known} (example: jsonl:run.jsonl).", param, ctx)
        return kind, where


def log_option(command: Callable[..., Any]) -> Callable[..., Any]:
    """Add --log to a command."""
    text = "Also tell jsonl:FILE, trackio:PROJECT or wandb:PROJECT how it goes; see fastscore/output/README.md."
    return click.option("--log", type=LogTo(), help=text)(command)


@contextmanager
def opened(to: tuple[str, str] | None) -> Iterator[Log | None]:
    """Give what the option names, None if it was left out; a run of wandb or trackio ends with the command.

    Raises:
        ValueError: a file that is no log, or a run that cannot begin.
        ImportError: the package is not installed.
    """
    if to is None:
        yield None
        return
    from fastscore.output.log import JsonLines, Log

    kind, where = to
    if kind == "jsonl":
        lines = JsonLines(where)
        yield Log(lines, rows=0, first=lines.next)  # a line has numbers only
        return
    module = import_module(kind)
    try:
        run = module.init(project=where, config={"command": shorten(" ".join(["fastscore", *sys.argv[1:]]), 2000)})
    except Exception as error:
        raise ValueError(f"--log {kind}:{where}: {kind}.init raised {type(error).__name__}: {error}") from error
    try:
        yield Log(run)
    finally:
        run.finish()
