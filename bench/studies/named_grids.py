"""Every grid that has a name: whose it is, its rule, where it runs and what its first levels are.

python -m bench.studies.named_grids    # results/grids.md
"""

from __future__ import annotations

import inspect
from dataclasses import fields

import numpy as np

from bench.records import publish
from fastscore.process import grid as rules
from fastscore.process.continuous import EDM, VE, VP, Flow, Trig
from fastscore.process.discrete import discrete_vp
from fastscore.process.grid import Grid
from fastscore.process.named_grids import NAMED_GRIDS
from fastscore.process.names import NAMED, SPACINGS
from fastscore.process.schedule import Schedule, lam

WHERE: dict[str, Schedule] = {
    "VP": VP(),
    "VE": VE(),
    "EDM": EDM(),
    "flow": Flow(),
    "flow, shift 3": Flow(shift=3.0),
    "table": discrete_vp("scaled-linear", 1000, 0.00085, 0.012),
    "pure noise": Trig(),
}
SHOWN = "table"  # whose levels sigma / alpha are printed, or those of a flow
COUNTS = {
    "time": "times",
    "index": "indices",
    "level": "noise",
    "ratio": "own list, sigma / alpha",
    "flow": "own list, sigma of a flow",
}
OWN = {
    "uniform": "Even in t. On Flow(shift) the shift is once in it.",
    "quadratic": "Even in sqrt(t).",
    "logsnr": "Even in ln(alpha / sigma).",
    "karras": "Even in (sigma / alpha)^(1/rho).",
    "arctan": "Even in arctan(sigma / (scale alpha))^(1/rho).",
    "leading": "Indices 0, k, 2k .., moved by offset.",
    "trailing": "Indices counted back from the last.",
    "linspace": "Even indices from the last to the first, rounded.",
}


def table() -> str:
    """Return the table, one row a name."""
    head = ["name", "whose", "rule", "spaces", "ends at 0", "runs on", "5 steps"]
    rows = [head, ["---"] * len(head)]
    for name in (*SPACINGS, *NAMED):
        whose, words, spaces, clean = _said(name)
        ran = {where: levels for where, schedule in WHERE.items() if (levels := _levels(name, schedule)) is not None}
        shown = SHOWN if SHOWN in ran else next(iter(ran), None)
        five = "" if shown is None else f"{' '.join(f'{v:.4g}' for v in ran[shown])} ({shown})"
        where = "all" if len(ran) == len(WHERE) else ", ".join(ran) or "none of these, but from a later start"
        rows.append([f"`{name}`", whose, words, spaces, clean, where, five])
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def _said(name: str) -> tuple[str, str, str, str]:
    if name in SPACINGS:
        maker = getattr(rules, name, rules.indices)
        source = next((line.split("Source: ")[1] for line in _lines(maker) if "Source: " in line), "")
        whose = "diffusers, DDIM" if maker is rules.indices else source.rstrip(".") or "fastscore"
        return whose, OWN[name], "indices" if maker is rules.indices else "noise or times", "if asked"
    named = NAMED_GRIDS[name]
    settings = {f.name: getattr(named.rule, f.name) for f in fields(named.rule)}
    values = [k if v is True else f"{k} = {v:g}" for k, v in settings.items() if v is True or _plain(v)]
    words = _lines(named.rule)[0].partition(" Source:")[0] + (f" With {', '.join(values)}." if values else "")
    return named.whose, words.replace("``", "`"), COUNTS[named.rule.counts], "yes" if named.rule.clean else "no"


def _plain(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _lines(documented: object) -> list[str]:
    return (inspect.getdoc(documented) or "").splitlines()


def _levels(name: str, schedule: Schedule) -> list[float] | None:
    """Return the levels of 5 steps, or of the 10 that a list has; None where the grid is refused."""
    for steps in (5, 10):
        try:
            t = Grid(name, steps, clean=None if name in NAMED else True)(schedule)
        except ValueError:
            continue
        with np.errstate(divide="ignore", over="ignore"):
            values = schedule.sigma(t) if isinstance(schedule, Flow) else np.exp(-lam(schedule, t))
        return values.tolist()
    return None


def main() -> None:
    text = (
        "What `grid=`, `--grid` and `fs.Grid` take, in any case, with hyphens or underscores; `default` is the grid of "
        "the solver. Rules are in [named_grids.py](../../fastscore/process/named_grids.py); `fs.Grid(rule, steps)` "
        "takes one with other parameters. `table` is Stable Diffusion 1.5's, whose levels sigma / alpha of 5 steps "
        "stand last, or of 10 where a list has no other length; where it does not have the grid, those of another "
        "schedule, of a flow its sigma.\n\n" + table()
    )
    print(publish("grids", "Named grids", text))


if __name__ == "__main__":
    main()
