"""The page of every command's --help: ``python tests/oracles/commands.py`` writes it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import click

import fastscore
from fastscore.cli import group

PAGE = Path(fastscore.__file__).parent / "docs" / "COMMANDS.md"
WIDTH = 100
HEAD = """# Commands

What `--help` prints, of every command; written by `python tests/oracles/commands.py`. Sizes may be said as `50k` or
`1.5M`. Exit codes: 0 done, 2 bad input, 3 a missing package or memory, 4 NaN or Inf, 5 storage, 75 stopped and to be
called again. The same with examples: [`README.md`](../../README.md#on-the-command-line).
"""


def commands(inside: click.Group, above: click.Context) -> Iterator[tuple[click.Command, click.Context]]:
    """Yield every command of a group, and those of groups in it after the group."""
    for name, command in sorted(inside.commands.items()):
        if command.hidden:
            continue
        context = click.Context(command, above, name, terminal_width=WIDTH, max_content_width=WIDTH)
        context.help_option_names = ["-h", "--help"]
        yield command, context
        if isinstance(command, click.Group):
            yield from commands(command, context)


def page() -> str:
    """Return the page as it is now."""
    found = list(commands(group, click.Context(group, info_name="fastscore")))
    lines = [HEAD]
    for command, context in found:
        anchor = context.command_path.replace(" ", "-")
        lines.append(f"- [`{context.command_path}`](#{anchor}): {command.get_short_help_str(200)}")
    for command, context in found:
        lines += ["", f"## {context.command_path}", "", "```text", command.get_help(context), "```"]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    PAGE.write_text(page())
