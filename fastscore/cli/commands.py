"""The group of all commands: what it says by itself, a second name, and the nearest one to a name that is none."""

from __future__ import annotations

import click

from fastscore import __version__
from fastscore.errors import nearest, short

SYNONYMS = {"mcmc": "langevin"}
GREETING = f"""\
fastscore {__version__} draws samples of score-based generative models, the same to the bit each time.

Commands to try, offline and without a GPU:

  fastscore demo                                                 what this is about, on one page
  fastscore sample analytic:mixture -n 1k --out points           points of a density known exactly
  fastscore sample fashion --class 9 --network own --out boots   64 boots by the bundled network
  fastscore plan --preset edm-heun-18                            what a published sampler does

With data of your own:

  fastscore new my_project                                       a script that trains and samples

fastscore --help lists all commands, fastscore sample --help what one of them takes, and
fastscore completion bash lets the Tab key finish their names.
"""


class Commands(click.Group):
    """All commands by their names."""

    def add_command(self, cmd: click.Command, name: str | None = None) -> None:
        """Add a command; its -h is --help however it is called, since click keeps what it was first called with."""
        for command in (cmd, *getattr(cmd, "commands", {}).values()):
            command.context_settings.setdefault("help_option_names", ["-h", "--help"])
        super().add_command(cmd, name)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Return the command of a name, or of a second one."""
        return super().get_command(ctx, SYNONYMS.get(cmd_name, cmd_name))

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """Return the command that words begin with.

        Raises:
            click.UsageError: there is none; the message has the nearest.
        """
        if not ctx.resilient_parsing and args[0][:1] != "-" and self.get_command(ctx, args[0]) is None:
            names = self.list_commands(ctx)
            near = nearest(args[0], names)
            raise click.UsageError(f"No such command {short(args[0])}{near}; there are {', '.join(names)}.", ctx)
        return super().resolve_command(ctx, args)
