"""fastscore new: a folder with a script of one's own."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING

import click

from fastscore import __version__
from fastscore.cli.types import Name, Out

if TYPE_CHECKING:
    import numpy as np

SCRIPTS = Path(__file__).parent / "projects"
KINDS = {"images": "data/", "points": "data/points.npy", "sequences": "data/sequences.npy"}
README = """\
# {name}

- `python main.py` trains a score network on {data} and draws new {kind} into samples/; run again, it goes on.
- For {kind} of your own put them in place of {data}, raise EXAMPLES in main.py, and remove model/.
- `fastscore sample model -n 1k --out more` draws more; `fastscore sample --help` says what else there is.

Made by fastscore {version}, with {made} as an example.
"""


@click.command()
@click.argument("folder", type=Out())
@click.option(
    "--data", "kind", type=Name(tuple(KINDS)), default="points", show_default=True, help="What is to be learnt."
)
def new(folder: Path, kind: str) -> None:
    """Make FOLDER, with a script that trains a score network on your own data and draws new ones.

    \b
        fastscore new my_project --data images
        cd my_project && python main.py

    The script is thirty lines that are meant to be changed. It runs as it is, in less than a minute on two cores, on
    a small example that lies in data/: put your own in its place.
    """
    import shutil

    from fastscore.output.folder import new_folder

    if not re.fullmatch(r"\w[\w.-]{0,99}", folder.name):
        raise ValueError(f"name = {folder.name[:60]!r} must be of letters, digits, _, - and ., as my_project is")
    with new_folder(folder) as place:
        (place / "data").mkdir()
        made = {"images": _images, "points": _points, "sequences": _sequences}[kind](place / "data")
        shutil.copyfile(SCRIPTS / f"{kind}.py", place / "main.py")
        text = README.format(name=folder.name, data=KINDS[kind], kind=kind, made=made, version=__version__)
        (place / "README.md").write_text(text)
    click.echo(f"{folder}: main.py, README.md and data/ with {made}")
    click.echo(f"next: cd {folder} && python main.py")


def _points(folder: Path) -> str:
    """Write two half-moons, in units of their own."""
    import numpy as np

    from fastscore.data.toys import toy

    np.save(folder / "points.npy", toy("moons", 2000))
    return "2,000 points of two half-moons"


def _sequences(folder: Path) -> str:
    """Write waves of any phase and of a few frequencies."""
    import numpy as np

    rng = np.random.default_rng(0)
    phase, turns = rng.uniform(0.0, 2.0 * np.pi, (1000, 1)), rng.uniform(1.0, 2.0, (1000, 1))
    angle = phase + 2.0 * np.pi * turns * np.linspace(0.0, 1.0, 16)
    np.save(folder / "sequences.npy", np.stack([np.sin(angle), np.cos(angle)], 2).astype(np.float32))
    return "1,000 waves of 16 places with two values each"


def _images(folder: Path) -> str:
    """Write bright discs and squares anywhere on dark ground, a folder for each."""
    import numpy as np
    from PIL import Image

    rng = np.random.default_rng(0)
    for kind, shape in (("discs", _disc), ("squares", _square)):
        (folder / kind).mkdir()
        for k in range(100):
            centre, radius = rng.uniform(5.0, 11.0, 2), rng.uniform(2.5, 4.5)
            inside = shape(np.indices((16, 16)) + 0.5 - centre[:, None, None], radius)
            Image.fromarray((255.0 * inside).astype(np.uint8)).save(folder / kind / f"{k:03d}.png")
    return "200 images of discs and squares, a folder for each class"


def _disc(at: np.ndarray, radius: float) -> np.ndarray:
    import numpy as np

    return np.clip(radius + 0.5 - np.hypot(at[0], at[1]), 0.0, 1.0)


def _square(at: np.ndarray, radius: float) -> np.ndarray:
    import numpy as np

    return np.clip(radius + 0.5 - np.abs(at).max(0), 0.0, 1.0)
