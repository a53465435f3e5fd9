"""The page of published settings: ``python tests/oracles/preset_page.py`` writes it."""

from __future__ import annotations

from pathlib import Path

import fastscore
from fastscore.solvers.presets import PRESETS, Preset

PAGE = Path(fastscore.__file__).parent / "solvers" / "PRESETS.md"
HEAD = """# Published settings by name

Written by `python tests/oracles/preset_page.py`. `fastscore sample MODEL --preset NAME` samples as a paper did, or its
code; `fastscore plan --preset NAME` prints every coefficient of it, and `Sampler(model, **fs.preset(NAME))` is the same
in Python. A preset is nothing but the options below: others on the command line take the place of its own, which is
said, and what belongs to a solver, a schedule or a grid goes with it.

```bash
fastscore plan --preset edm-heun-18 --steps 4
fastscore sample analytic:mixture -n 100 --preset dpm-solver++-20 --out points
```

```python
import fastscore as fs
from fastscore.model.analytic import mixture

sampler = fs.Sampler(fs.score_model(mixture()), **fs.preset("edm-heun-18"), batch=64)
assert sampler.plan.nfe == 35
x = sampler.run(range(64))
fs.preset("edm-heun-18", steps=40)  # another number of steps
```

The numbers are those of the source. Where its network has a schedule of its own, `--schedule` names that one.
"""


def words(options: dict) -> str:
    """Return options as they are typed."""
    found = []
    for name, value in options.items():
        flag = name.replace("_", "-")
        if isinstance(value, bool):
            found.append(f"--{flag}" if value else f"--no-{flag}")
        elif isinstance(value, tuple):
            found += [f"--{flag} {','.join(map(str, one))}" for one in value]
        else:
            found.append(f"--{flag} {value:.6g}" if isinstance(value, float) else f"--{flag} {value}")
    return " ".join(found)


def row(name: str, preset: Preset) -> str:
    """Return a line of the table."""
    return f"| `{name}` | `{words(dict(preset.options))}` | {preset.source}{'; ' * bool(preset.note)}{preset.note} |"


def page() -> str:
    """Return the page as it is now."""
    return "\n".join([HEAD, "| name | options | source |", "|---|---|---|", *map(row, PRESETS, PRESETS.values()), ""])


if __name__ == "__main__":
    PAGE.write_text(page())
