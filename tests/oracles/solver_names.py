"""The page of what other projects' names of solvers are here: ``python tests/oracles/solver_names.py`` writes it."""

from __future__ import annotations

import re
from pathlib import Path

import fastscore
from fastscore.solvers.aliases import OWNERS, Alias
from fastscore.solvers.names import named

PAGE = Path(fastscore.__file__).parent / "solvers" / "NAMES.md"
TITLES = {"comfyui": "ComfyUI", "k-diffusion": "k-diffusion", "a1111": "A1111", "diffusers": "diffusers"}
HEAD = """# Names of other projects

Written by `python tests/oracles/solver_names.py`. `fs.solver(name)`, `Sampler(solver=name)` and `--solver` take all of
them, in any case and with spaces, hyphens or underscores, and a grid behind, as in "DPM++ 2M Karras". Where a name is
ours too, `comfyui:deis` is theirs; so are names in the spelling of one project: `sample_euler`, "DPM++ SDE",
`EulerDiscreteScheduler`. Their grids are in [`process/`](../process/README.md).
"""


def here(owner: str, name: str, alias: Alias) -> str:
    """Return what a name is here: a solver's name, or the solver; empty if it cannot be had."""
    if alias.solver is None:
        return ""
    if isinstance(alias.solver, str):
        return f"`{alias.solver}`"
    text = re.sub(r", (eta=0.0|keep_eps=False|on_grid=False)(?=[,)])", "", repr(named(f"{owner}:{name}")))
    return f"`{text}`"


def page() -> str:
    """Return the page as it is now."""
    lines = [HEAD]
    for owner, table in OWNERS.items():
        lines += [f"## {TITLES[owner]}", "", "| there | here | |", "|---|---|---|"]
        for name, alias in table.items():
            note = alias.note if alias.solver is not None else f"cannot be had: {alias.note}"
            lines.append(f"| `{name}` | {here(owner, name, alias)} | {note} |")
        lines.append("")
    return "\n".join(lines)


if __name__ == "__main__":
    PAGE.write_text(page())
