"""fastscore train and train-classifier."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import click

from fastscore.cli.options import device_option, make_schedule, schedule_end_option, schedule_options
from fastscore.cli.types import Count, Name, Number
from fastscore.process.names import SCHEDULES

PREDICTIONS = ("eps", "x0", "v", "score", "flow", "edm")
NETS = {"image": ("unet", "scorenet"), "point": ("mlp",), "sequence": ("transformer",)}
LABELS = ("t", "999t", "sigma", "log_sigma/4")


def choice(flag: str, names: Sequence[str], default: str, text: str) -> Callable[..., Any]:
    """Return an option that takes one of some names, its default in its help."""
    return click.option(flag, type=click.Choice(names), default=default, show_default=True, help=text)


@click.command()
@click.argument("data")
@click.option(
    "--out",
    type=click.Path(path_type=Path, file_okay=False),
    required=True,
    help="Model folder to write; a half-done run there is resumed.",
)
@click.option("--images", type=Count(1), default=1_000_000, show_default=True, help="Training images to see in total.")
@choice(
    "--net",
    ["auto", *NETS["image"], *NETS["point"], *NETS["sequence"]],
    "auto",
    "auto: U-Net for images, MLP for points, Transformer for sequences and point sets.",
)
@click.option("--width", type=Count(8, 4096), help="Channels of the first level, or hidden units.  [default: 64 / 128]")
@click.option("--mult", default="1,2", show_default=True, help="U-Net: factor on the width of each level.")
@click.option("--blocks", default="2,1", show_default=True, help="U-Net: residual blocks of each level.")
@click.option("--patch", type=Count(1, 16), default=2, show_default=True, help="U-Net: space-to-depth factor.")
@click.option("--ordered/--unordered", default=True, show_default=True, help="Transformer: whether tokens have places.")
@click.option("--conditional/--unconditional", default=True, show_default=True, help="Use the labels of labelled data.")
@click.option("--schedule", type=Name(SCHEDULES), default="edm", show_default=True, help="Forward SDE.")
@schedule_options
@schedule_end_option
@choice("--prediction", PREDICTIONS, "edm", "Quantity that the network predicts.")
@click.option("--label", type=click.Choice(LABELS), help="Time label.  [default: log_sigma/4 for edm, else t]")
@click.option(
    "--sigma-data", type=Number(0, open=True), help="Standard deviation of the data, for edm.  [default: measured]"
)
@choice(
    "--loss",
    ["dsm", "implicit", "sliced"],
    "dsm",
    "Denoising score matching, or implicit or sliced for small networks.",
)
@choice("--weighting", ["simple", "sigma2", "likelihood"], "simple", "Weight of the loss over time.")
@click.option(
    "--times",
    type=click.Choice(["uniform", "lognormal", "importance"]),
    help="Training times.  [default: lognormal for edm, else uniform]",
)
@click.option("--p-mean", type=Number(), default=-1.2, show_default=True, help="Mean of ln sigma for lognormal times.")
@click.option(
    "--p-std", type=Number(0, open=True), default=1.2, show_default=True, help="Standard deviation of ln sigma."
)
@click.option("--batch", type=Count(1, 1 << 20), default=128, show_default=True, help="Images a step.")
@click.option("--lr", type=Number(0, open=True), default=1e-3, show_default=True, help="Peak learning rate.")
@click.option(
    "--cooldown",
    type=Number(0, 1),
    default=0.25,
    show_default=True,
    help="Last share of the run over which the rate falls to 0.",
)
@choice("--dtype", ["bf16", "fp32"], "bf16", "Type of the network's arithmetic.")
@click.option(
    "--compile/--no-compile", "compiled", default=True, show_default=True, help="Run the network through torch.compile."
)
@click.option("--seed", type=Count(0, 2**64 - 1), default=0, show_default=True, help="Seed of everything random.")
@device_option
@click.option("--quiet", is_flag=True, help="No progress bar.")  # fmt: skip
def train(data: str, out: Path, **options: Any) -> None:
    """Train a score network on DATA by denoising score matching.

    DATA is fashion-mnist (Debian's package dataset-fashion-mnist), a toy set of points (moons, rings, checkerboard,
    grid, three-gaussians, four-gaussians, eight-gaussians, swiss-roll, spirals) or of point sets (circles), a folder
    of IDX files or of images, or an .npy/.npz file. Writes a model folder that `fastscore sample` reads, with loss.csv
    and loss.png. Stop it at any time: the same command goes on from the last checkpoint.
    """
    from fastscore.data.load import load
    from fastscore.ops.backend import named_device
    from fastscore.process.continuous import EDM
    from fastscore.process.parametrization import Parametrization
    from fastscore.training.train import TrainConfig
    from fastscore.training.train import train as run

    edm = options["prediction"] == "edm"
    schedule = make_schedule(options, EDM())
    config = TrainConfig(
        images=options["images"],
        batch=options["batch"],
        lr=options["lr"],
        cooldown=options["cooldown"],
        loss=options["loss"],
        weighting=options["weighting"],
        times=options["times"] or ("lognormal" if edm else "uniform"),
        mean=options["p_mean"],
        std=options["p_std"],
        dtype=options["dtype"],
        compile=options["compiled"],
        seed=options["seed"],
    )
    device = str(named_device(options["device"]))
    dataset = load(data)
    sigma_data = options["sigma_data"] or _measure(dataset)
    label = options["label"] or ("log_sigma/4" if edm else "t")
    classes = len(dataset.class_names) if options["conditional"] and dataset.labels is not None else 0
    run(
        out,
        dataset,
        _spec(dataset.shape, classes, options),
        schedule,
        Parametrization(options["prediction"], label, sigma_data),
        config,
        {"command": _command(), "data": data, "seed": options["seed"]},
        device,
        None if options["quiet"] else _Bar("image"),
    )
    click.echo(f"{out}: " + ", ".join(["model.safetensors", "config.json", "loss.csv", *_plot(out)]))


@click.command("train-classifier")
@click.argument("data")
@click.option("--out", type=click.Path(path_type=Path, file_okay=False), required=True, help="Folder to write.")
@click.option("--epochs", type=Count(1, 1000), default=6, show_default=True, help="Passes over the data.")
@click.option("--width", type=Count(8, 512), default=32, show_default=True, help="Channels of the first layer.")
@click.option("--seed", type=Count(0, 2**63 - 1), default=0, show_default=True, help="Seed of weights and order.")
@click.option("--quiet", is_flag=True, help="No progress bar.")
def train_classifier(data: str, out: Path, epochs: int, width: int, seed: int, quiet: bool) -> None:
    """Train the small classifier that `fastscore evaluate` judges samples with."""
    from fastscore.data.load import load
    from fastscore.training.classifier import train_classifier as run

    accuracy = run(
        out, load(data), load(data, "test"), epochs, width,
        seed=seed, info={"command": _command(), "data": data}, progress=None if quiet else _Bar("step"),
    )  # fmt: skip
    click.echo(f"{out}: test accuracy {accuracy:.4f}")


class _Bar:
    """A progress bar that is made on the first step and shows the last figures."""

    def __init__(self, unit: str) -> None:
        self.unit, self.bar = unit, None

    def __call__(self, count: int, total: int, figures: dict[str, float]) -> None:
        from tqdm import tqdm

        if self.bar is None:
            self.bar = tqdm(total=total, unit=self.unit, initial=0)
        self.bar.update(count - self.bar.n)
        self.bar.set_postfix({k: f"{v:.4g}" for k, v in figures.items()}, refresh=False)
        if count >= total:
            self.bar.close()


def _command() -> str:
    import shlex
    import sys

    return shlex.join(["fastscore", *sys.argv[1:]])


def _measure(dataset: Any) -> float:
    """Return the root mean square deviation of the data as the network sees it, to two digits."""
    import numpy as np

    x = dataset.network_range(np.arange(min(len(dataset.x), 10_000)))
    return float(f"{x.std():.2g}")


def _levels(text: str, flag: str) -> list[int]:
    try:
        values = [int(v) for v in text.split(",")]
    except ValueError:
        values = []
    if not 1 <= len(values) <= 6 or not all(1 <= v <= 64 for v in values):
        raise ValueError(f"{flag} {text[:40]!r} must be 1 to 6 numbers from 1 to 64, as in 1,2,2")
    return values


def _spec(shape: tuple[int, ...], classes: int, options: dict[str, Any]) -> dict[str, Any]:
    """Return the network's description for data of a shape."""
    choices = NETS[{3: "image", 2: "sequence", 1: "point"}[len(shape)]]
    net = options["net"] if options["net"] != "auto" else choices[0]
    if net not in choices:
        raise ValueError(f"--net {net} does not fit samples of shape {shape}; use --net {' or '.join(choices)}")
    if net != "transformer" and not options["ordered"]:
        raise ValueError(f"--unordered belongs to --net transformer; leave it out with --net {net}")
    if net == "transformer":
        sizes = {"tokens": shape[0], "dim": shape[1], "width": options["width"] or 128}
        return {"name": "Transformer", **sizes, "ordered": options["ordered"], "classes": classes}
    if net == "mlp":
        return {"name": "MLP", "dim": shape[0], "width": options["width"] or 128, "classes": classes}
    if shape[1] != shape[2]:
        raise ValueError(f"images must be square; these are {shape[1]}x{shape[2]}")
    if net == "scorenet":
        if shape[1] != 28:
            raise ValueError(f"--net scorenet is made for 28x28 images; these are {shape[1]}x{shape[2]}")
        if options["prediction"] != "score" or options["schedule"] != "tutorial":
            raise ValueError("--net scorenet predicts the score of its own SDE: --prediction score --schedule tutorial")
        return {"name": "ScoreNet", "channels": shape[0]}
    return {
        "name": "UNet",
        "channels": shape[0],
        "size": shape[1],
        "width": options["width"] or 64,
        "mult": _levels(options["mult"], "--mult"),
        "blocks": _levels(options["blocks"], "--blocks"),
        "patch": options["patch"],
        "classes": classes,
    }


def _plot(out: Path) -> list[str]:
    """Draw loss.png from loss.csv, where matplotlib is installed; return what was written."""
    import importlib.util

    if importlib.util.find_spec("matplotlib") is None:
        click.echo("no loss.png: it needs matplotlib (pip install 'fastscore[plots]')", err=True)
        return []
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt
    import numpy as np

    curve = np.genfromtxt(out / "loss.csv", delimiter=",", names=True, ndmin=1)
    figure, axes = plt.subplots(figsize=(6.4, 3.6), layout="constrained")
    axes.semilogy(curve["images"], curve["loss"], lw=1)
    axes.set(xlabel="training images", ylabel="loss (mean of 50 steps)")
    axes.grid(True, which="both", alpha=0.3)
    figure.savefig(out / "loss.png", dpi=100)
    plt.close(figure)
    return ["loss.png"]
