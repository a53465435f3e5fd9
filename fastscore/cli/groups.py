"""The help of commands with many options, by what they say: what is drawn, by which solver, how, and where to."""

from __future__ import annotations

import click

GROUPS = {
    "What": (
        "num", "evaluations", "ids", "mask", "box", "limit", "label", "unconditional", "seed", "trajectory",
        "method", "jump", "resample", "noise", "guidance", "guidance_rule", "guidance_interval", "guidance_model",
        "negative",
        "split", "probe", "probes",
    ),
    "Solver": (
        "solver", "steps", "rtol", "atol", "grid", "rho", "clean", "t_start", "t_end", "eta", "eta_window",
        "s_noise", "variance", "clip", "predictor", "corrector", "corrections", "snr", "norm",
    ),
    "Schedule": (
        "schedule", "sigma_min", "sigma_max", "beta_min", "beta_max", "base", "shift", "table_steps", "zero_snr",
    ),
    "How": ("batch", "network", "device", "backend", "graph", "workers", "devices", "time_limit"),
    "Where to": (
        "out", "overwrite", "png", "subdirs", "format", "shards", "shard_size", "shard", "mixed", "manifest_only",
        "metrics", "log", "as_json", "quiet",
    ),
}  # fmt: skip
TITLE = {name: title for title, names in GROUPS.items() for name in names}


class Grouped(click.Command):
    """A command whose --help lists its options under the titles of GROUPS, and what has none under Options."""

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        options = [p for p in self.get_params(ctx) if isinstance(p, click.Option)]
        records = {p.name or "": p.get_help_record(ctx) for p in options}
        known = {title: [records.pop(name) for name in names if name in records] for title, names in GROUPS.items()}
        for title, found in {**known, "Options": list(records.values())}.items():
            rows = [row for row in found if row is not None]  # hidden ones have none
            if rows:
                with formatter.section(title):
                    formatter.write_dl(rows)
