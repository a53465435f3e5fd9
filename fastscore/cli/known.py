"""Types of values that are one of some names, and what a shell may complete them to; all of it without torch."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path

import click
from click.shell_completion import CompletionItem

from fastscore.cli.types import Name

FOLDER = Path(__file__).parents[1] / "models"  # the bundled ones


class Completed(click.ParamType):
    """A text that may be one of some names, or a path: what it is the command finds out."""

    name = "text"

    def __init__(self, names: Callable[[], Iterable[str]]) -> None:
        self.names = names

    def shell_complete(self, ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem]:
        """Return the names that begin so; paths where none does."""
        found = [CompletionItem(name) for name in self.names() if name.startswith(incomplete)]
        return found or [CompletionItem(incomplete, type="file")]


def model_names() -> list[str]:
    """Return the names of models, bundled and analytic."""
    from fastscore.data.toys import TOYS

    bundled = sorted(file.parent.name for file in FOLDER.glob("*/config.json") if '"schedule"' in file.read_text())
    return [*bundled, *(f"analytic:{name}" for name in ("gaussian", "mixture", *TOYS))]


def data_names() -> list[str]:
    """Return the names of data sets."""
    from fastscore.data.toys import CIRCLES, TOYS

    return ["fashion-mnist", *TOYS, CIRCLES]


MODEL, DATA = Completed(model_names), Completed(data_names)


class PresetName(Name):
    """The name of a preset; too many for the usage."""

    def get_metavar(self, param: click.Parameter, ctx: click.Context | None = None) -> str:
        """Return what stands for the value in the usage."""
        return "NAME"
