"""The gallery: every picture that ``fastscore plot`` makes, and the page that shows them with their commands.

    python -m bench.gallery            # writes fastscore/docs/gallery/ and fastscore/docs/GALLERY.md
    python -m bench.gallery --to DIR   # the same below another folder

The commands of the page are the ones that are run, one process each, in an empty folder.
"""

from __future__ import annotations

import argparse
import shlex
import shutil
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "fastscore/docs"
LIMIT = 1_500_000  # bytes of all pictures


@dataclass(frozen=True)
class Picture:
    """A picture: its file, the command that makes it and nothing else, and what is to be seen."""

    file: str
    command: str
    title: str
    text: str


# What the pictures are of, made first.
RUNS = (
    "fastscore sample analytic:moons -n 600 --schedule vp --solver em --steps 100 --network own --trajectory "
    "--out moons",
    "fastscore sample analytic:four-gaussians -n 2000 --schedule vp --solver em --steps 200 --network own --out sde",
    "fastscore sample analytic:four-gaussians -n 2000 --schedule vp --solver dopri5 --rtol 1e-3 --atol 1e-3 "
    "--batch 2000 --network own --trajectory --out ode",
    "fastscore sample fashion -n 6 --class 9 --steps 10 --batch 6 --network own --trajectory --out boots",
    "fastscore langevin analytic:four-gaussians --method mala --steps 500 --step 0.1 -n 200 --spread 3 --out chains",
    "fastscore train four-gaussians --images 100k --no-compile --out points",
    "fastscore evaluate ode",
)
PICTURES = (
    Picture(
        "schedules.png",
        "fastscore plot schedule vp subvp ve edm flow vp-cosine ddpm",
        "Schedules side by side",
        "alpha, sigma, the log-SNR, g^2, f and the spread of x_t, in one time for all: a DDPM table lies on VP.",
    ),
    Picture(
        "plan.png",
        "fastscore plot plan --solver dpmpp-2m-sde --schedule vp --steps 20",
        "What a solver does",
        "The knots on the log-SNR of the schedule, and every coefficient of x <- a x + b m + sum w h + c z.",
    ),
    Picture(
        "forward.png",
        "fastscore plot forward --data analytic:moons --schedule vp",
        "The forward process",
        "Data turn into noise: x_t = alpha x_0 + sigma z.",
    ),
    Picture(
        "forward-images.png",
        "fastscore plot forward --data boots/samples.npz --schedule ve",
        "The forward process of images",
        "The same of four images; noise of any size is shown in its own range.",
    ),
    Picture(
        "density.png",
        "fastscore plot density --target analytic:mixture --schedule vp --solver em --steps 100",
        "Densities on both ways",
        "Above, the marginals of the forward process in closed form; below, samples of the reverse process at the same "
        "times, in the same cells and colours.",
    ),
    Picture(
        "sampling.png",
        "fastscore plot trajectory moons",
        "The sampling process",
        "600 points on their way from noise to data, at ten of a hundred steps.",
    ),
    Picture(
        "sampling.gif",
        "fastscore plot trajectory moons --steps ::4",
        "The sampling process, moving",
        "It loops, and rests at the samples.",
    ),
    Picture(
        "paths.png",
        "fastscore plot trajectory ode --paths",
        "Paths of the probability flow",
        "Of an adaptive solver: each sample has its own steps.",
    ),
    Picture(
        "strip.png",
        "fastscore plot trajectory boots",
        "Images on their way",
        "x_t, and below it the estimate of x_0 that the network made of it.",
    ),
    Picture(
        "strip-moving.png",
        "fastscore plot trajectory boots",
        "Images on their way, moving",
        "An animated PNG, in all colours.",
    ),
    Picture(
        "compare.png",
        "fastscore plot compare sde ode --data four-gaussians",
        "Original against SDE against ODE samples",
        "As many of each, titled by solver and network evaluations.",
    ),
    Picture(
        "langevin.png",
        "fastscore plot langevin chains",
        "Langevin chains",
        "MALA on four Gaussians: all kept states, and four of the chains.",
    ),
    Picture("loss.png", "fastscore plot loss points", "The loss of a training", "By the images seen."),
    Picture(
        "work-precision.png",
        "fastscore plot work-precision bench/results/work_precision.jsonl --target images",
        "Work and precision",
        "Classifier-FID of the bundled model by network evaluations, from the records of the study in `bench`.",
    ),
    Picture(
        "quality.png",
        "fastscore plot quality ode",
        "Quality over its floor",
        "What `fastscore evaluate` found, over what exact samples come to by chance.",
    ),
)


def words(picture: Picture) -> str:
    """Return the whole command of a picture, with the file that it writes."""
    flag = {"sampling.gif": "--gif", "strip-moving.png": "--apng"}.get(picture.file, "--out")
    return f"{picture.command} {flag} {picture.file}"


def draw(folder: Path) -> None:
    """Make the runs and then the pictures in a folder, each by its command.

    Raises:
        CalledProcessError: a command failed; what it said is on stderr.
    """
    (folder / "bench").symlink_to(ROOT / "bench")
    for command in RUNS:
        run(f"{command} --quiet", folder)
    for picture in PICTURES:
        run(words(picture), folder)


def run(command: str, folder: Path) -> None:
    """Run one command line of fastscore in a folder."""
    name, *rest = shlex.split(command)
    assert name == "fastscore"
    code = "from fastscore.cli import main; main()"
    subprocess.run([sys.executable, "-c", code, *rest], cwd=folder, check=True, stdout=subprocess.DEVNULL)


def page() -> str:
    """Return GALLERY.md."""
    lines = [
        "# Gallery",
        "",
        "Every picture that `fastscore plot` makes (`pip install 'fastscore[plots]'`), each by one command: PNG, SVG",
        "or PDF. `python -m bench.gallery` writes this page. The runs that some of them show were made by",
        "",
        *[f"- `{command}`" for command in RUNS],
    ]
    for picture in PICTURES:
        lines += ["", f"## {picture.title}", "", f"`{words(picture)}`", "", picture.text, ""]
        lines += [f"![{picture.title}](gallery/{picture.file})"]
    return "\n".join(lines) + "\n"


def main() -> None:
    """Draw all and write the page."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--to", type=Path, default=DOCS)
    to: Path = parser.parse_args().to
    with tempfile.TemporaryDirectory() as folder:
        draw(Path(folder))
        size = sum((Path(folder) / picture.file).stat().st_size for picture in PICTURES)
        assert size < LIMIT, f"the pictures have {size:,} bytes"
        (to / "gallery").mkdir(parents=True, exist_ok=True)
        for picture in PICTURES:
            shutil.copyfile(Path(folder) / picture.file, to / "gallery" / picture.file)
    (to / "GALLERY.md").write_text(page())
    print(f"{len(PICTURES)} pictures, {size:,} bytes: {to / 'GALLERY.md'}")


if __name__ == "__main__":
    main()
