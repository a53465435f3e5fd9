"""fastscore completion: what lets a shell complete commands, options and names."""

from __future__ import annotations

import os
from typing import Any

import click
from click.shell_completion import (
    BashComplete,
    CompletionItem,
    add_completion_class,
    get_completion_class,
    split_arg_string,
)

from fastscore.cli.types import Name

VARIABLE = "_FASTSCORE_COMPLETE"  # by which the script asks for completions


@click.command()
@click.argument("shell", type=Name(("bash", "zsh", "fish")))
def completion(shell: str) -> None:
    """Print the script with which SHELL completes commands, options and names of models, solvers, grids and presets.

    \b
        eval "$(fastscore completion bash)"      in ~/.bashrc
        eval "$(fastscore completion zsh)"       in ~/.zshrc, after compinit
        fastscore completion fish | source       in ~/.config/fish/config.fish
    """
    kind: Any = get_completion_class(shell)
    click.echo(kind(click.get_current_context().find_root().command, {}, "fastscore", VARIABLE).source())


@add_completion_class
class Bash(BashComplete):
    """Bash's completion, which takes a colon for the end of a word: in analytic:mixture there is none."""

    name = "bash"

    def get_completion_args(self) -> tuple[list[str], str]:
        """Return the words before the one that is completed, and what of that is there."""
        words, at = split_arg_string(os.environ["COMP_WORDS"]), int(os.environ["COMP_CWORD"])
        args = list[str]()
        for word in words[1 : at + 1] + [""] * (at >= len(words)):
            if args and (word[:1] == ":" or args[-1].endswith(":")):
                args[-1] += word
            else:
                args.append(word)
        self.before, _, _ = args[-1].rpartition(":")
        return args[:-1], args[-1]

    def format_completion(self, item: CompletionItem) -> str:
        """Return a line for the script: what follows the last colon, since bash replaces no more."""
        known = f"{self.before}:" if self.before else ""
        return f"{item.type},{item.value.removeprefix(known)}"
