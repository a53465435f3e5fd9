"""Commands with many options: their help by topic, a screen each, and presets, which stand for several of them."""

from __future__ import annotations

import inspect
import re
from typing import Any

import click

from fastscore.cli.runs import JOB
from fastscore.errors import nearest
from fastscore.solvers.presets import merged

GROUPS = {
    "What": (
        "num", "evaluations", "ids", "mask", "box", "limit", "label", "unconditional", "seed", "trajectory",
        "trajectory_steps", "method", "jump", "resample", "noise", "guidance", "guidance_rule", "guidance_interval",
        "guidance_model", "negative", "target",
        "split", "probe", "probes",
    ),
    "Solver": (
        "preset", "solver", "steps", "rtol", "atol", "grid", "rho", "clean", "t_start", "t_end", "eta", "eta_window",
        "s_noise", "s_churn", "s_min", "s_max", "restart", "order", "prediction", "variance", "clip", "predictor",
        "corrector", "corrections", "snr", "norm",
    ),
    "Schedule": (
        "schedule", "sigma_min", "sigma_max", "beta_min", "beta_max", "base", "shift", "table_steps", "zero_snr",
    ),
    "How": ("batch", "network", "parallel", "device", "backend", "graph", "guided", "workers", "devices", "time_limit"),
    "Where to": (
        "out", "overwrite", "png", "subdirs", "format", "shards", "shard_size", "shard", "mixed", "manifest_only",
        "metrics", "log", "as_json", "quiet",
    ),
}  # fmt: skip
EVERYDAY = (
    "num", "evaluations", "mask", "box", "method", "label", "guidance", "seed", "probes", "preset", "solver", "steps",
    "grid", "schedule", "batch", "network", "device", "out", "overwrite", "png", "as_json", "quiet",
)  # fmt: skip
TOPICS = {title.split()[0].lower(): title for title in GROUPS}
_TOPIC = "fastscore.topic"  # in a context's meta: of which the help is wanted


class Grouped(click.Command):
    """A command whose --help shows everyday options, a line each, and --help TOPIC all of one of GROUPS.

    With --preset, options that were left out are those of the preset.
    """

    @property
    def topics(self) -> dict[str, str]:
        """The title of each topic of this command, and of all."""
        names = {p.name for p in self.params if isinstance(p, click.Option) and not p.hidden}
        return {k: v for k, v in TOPICS.items() if names.intersection(GROUPS[v])} | {"all": "All"}

    def get_help_option(self, ctx: click.Context) -> click.Option:
        """Return --help, which may be followed by a topic."""
        names = self.get_help_option_names(ctx)
        text = f"Show this message; or all of one topic: {', '.join(self.topics)}."
        kind: Any = {"is_flag": False, "flag_value": "", "is_eager": True, "expose_value": False, "metavar": "[TOPIC]"}
        return click.Option(names, callback=_show, help=text, **kind)

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Parse words, and put the options of a preset where none was said."""
        rest = super().parse_args(ctx, args)
        if (name := ctx.params.get("preset")) is not None:
            said = click.core.ParameterSource.COMMANDLINE
            given = {k: v for k, v in ctx.params.items() if k != "preset" and ctx.get_parameter_source(k) == said}
            options, ctx.meta["fastscore.instead"] = merged(name, given)
            for option in options.keys() & ctx.params.keys():
                ctx.params[option] = options[option]
                ctx.set_parameter_source(option, said)
        return rest

    def invoke(self, ctx: click.Context) -> Any:
        """Run the command; say first in what it leaves its preset."""
        instead = ctx.meta.get("fastscore.instead")
        if instead and JOB not in ctx.meta and not ctx.params.get("quiet"):
            click.echo(f"fastscore: preset {ctx.params['preset']}, {', '.join(instead)}", err=True)
        return super().invoke(ctx)

    def format_help(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the help of the topic that was asked for; all of it where none was."""
        topic = ctx.meta.get(_TOPIC, "all")
        self.format_usage(ctx, formatter)
        if topic == "all":
            self.format_help_text(ctx, formatter)
            self.format_options(ctx, formatter)
        elif topic:
            self._section(formatter, self.topics[topic], self._records(ctx)[self.topics[topic]])
        else:
            self._everyday(ctx, formatter)

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write all options, under the titles of GROUPS; what is in none of them under Options."""
        for title, rows in self._records(ctx).items():
            self._section(formatter, title, rows)

    def _everyday(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        summary = inspect.cleandoc(self.help or "").split("\n\n")
        formatter.write_paragraph()
        with formatter.indentation():
            formatter.write_text(" ".join(summary[0].split()))
            if len(summary) > 1 and summary[1].startswith("\b"):  # an example
                formatter.write("\n" + summary[1].split("\n", 1)[1] + "\n")
        records = self._records(ctx)
        for title, rows in records.items():
            self._section(formatter, title, {k: (v[0], _first(v[1])) for k, v in rows.items() if k in EVERYDAY})
        more = [(f"--help {k}", ", ".join(_flags(records.get(v, {}), EVERYDAY))) for k, v in self.topics.items()]
        rows = [(flag, flags) for flag, flags in more if flags]
        with formatter.section("More"):
            formatter.write_dl([*rows, ("--help all", "every option, and all that there is to say")])

    @staticmethod
    def _section(formatter: click.HelpFormatter, title: str, rows: dict[str, tuple[str, str]]) -> None:
        if rows:
            with formatter.section(title):
                formatter.write_dl(list(rows.values()))

    def _records(self, ctx: click.Context) -> dict[str, dict[str, tuple[str, str]]]:
        """Return flags and text of each option by its name, under each title that has any."""
        options = {p.name or "": p.get_help_record(ctx) for p in self.get_params(ctx) if isinstance(p, click.Option)}
        # The second spelling, --t_end of --t-end, is for who comes from EDM, and need not be read.
        shown = {k: (re.sub(r", --\w*_\w+", "", v[0]), v[1]) for k, v in options.items() if v is not None}
        records = {title: {k: shown.pop(k) for k in names if k in shown} for title, names in GROUPS.items()}
        return {title: rows for title, rows in {**records, "Options": shown}.items() if rows}


def _show(ctx: click.Context, parameter: click.Parameter, value: str | None) -> None:
    """Print the help of a topic and end; a word that is none, and near to none, is an argument of the command."""
    if value is None or ctx.resilient_parsing:
        return
    assert isinstance(ctx.command, Grouped)
    topic, topics = value.strip().lower(), ctx.command.topics
    if topic and topic not in topics:
        if near := nearest(topic, topics):
            raise click.UsageError(f"--help {topic[:20]}{near}: its topics are {', '.join(topics)}.", ctx)
        topic = ""
    ctx.meta[_TOPIC] = topic
    click.echo(ctx.get_help(), color=ctx.color)
    ctx.exit()


def _first(text: str) -> str:
    """Return the first sentence of an option's help, and its default."""
    sentence = re.split(r"(?<=[.;:]) ", text)[0].rstrip(".;:") + "."
    default = re.search(r"\[default: .*\]$|\[required\]$", text)
    return sentence if default is None or default[0] in sentence else f"{sentence}  {default[0]}"


def _flags(rows: dict[str, tuple[str, str]], without: tuple[str, ...]) -> list[str]:
    """Return the first flag of each option that is not among some."""
    return [re.findall(r"--[\w-]+", v[0])[0] for k, v in rows.items() if k not in without]
