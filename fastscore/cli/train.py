"""fastscore train and train-classifier."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import click

from fastscore.cli.known import DATA
from fastscore.cli.log import log_option, opened
from fastscore.cli.options import device_option, make_schedule, schedule_end_option, schedule_options
from fastscore.cli.types import Count, Interval, Name, Number, Out
from fastscore.process.names import SCHEDULES

PREDICTIONS = ("eps", "x0", "v", "score", "flow", "edm")
NETS = ("auto", "unet", "scorenet", "mlp", "transformer")
LABELS = ("t", "t/T", "999t", "sigma", "log_sigma/4", "tanh")


def choice(flag: str, names: Sequence[str], default: str, text: str) -> Callable[..., Any]:
    """Return an option that takes one of some names, its default in its help."""
    return click.option(flag, type=Name(names), default=default, show_default=True, help=text)


@click.command()
@click.argument("data", type=DATA)
@click.option(
    "--out",
    type=Out(),
    required=True,
    help="Model folder to write; a half-done run there is resumed.",
)
@click.option("--images", type=Count(1), default=1_000_000, show_default=True, help="Training images to see in total.")
@choice(
    "--net",
    NETS,
    "auto",
    "auto: U-Net for images, MLP for points, Transformer for sequences and point sets.",
)
@click.option("--width", type=Count(8, 4096), help="Channels of the first level, or hidden units.  [default: 64 / 128]")
@click.option("--mult", default="1,2", show_default=True, help="U-Net: factor on the width of each level.")
@click.option("--blocks", default="2,1", show_default=True, help="U-Net: residual blocks of each level.")
@click.option("--patch", type=Count(1, 16), default=2, show_default=True, help="U-Net: space-to-depth factor.")
@click.option("--ordered/--unordered", default=True, show_default=True, help="Transformer: whether tokens have places.")
@click.option(
    "--range",
    "value_range",
    type=Interval("0,4095"),
    help="BLACK,WHITE of image values.  [default: that of their type; of floats 0,1, or -1,1 with negative ones]",
)
@choice("--alpha", ["refuse", "keep", "white", "black"], "refuse", "Transparent images: a channel more, or laid on.")
@click.option(
    "--latents", is_flag=True, help="DATA is an autoencoder's: floats [N, C, H, W] in any units, and no images."
)
@click.option(
    "--standardise/--raw",
    default=None,
    help="Whether the network sees columns of points at mean 0 and std 1; the model undoes it.  [default: if needed]",
)
@click.option("--conditional/--unconditional", default=True, show_default=True, help="Use the labels of labelled data.")
@click.option("--schedule", type=Name(SCHEDULES), default="edm", show_default=True, help="Forward SDE.")
@schedule_options
@schedule_end_option
@choice("--prediction", PREDICTIONS, "edm", "Quantity whose error --weighting simple takes; F itself with no scaling.")
@click.option(
    "--scaling",
    type=Name(["unit", "none"]),
    help="unit: input and output of unit variance; none: F is the prediction.  [default: unit]",
)
@click.option("--label", type=Name(LABELS), help="Time label.  [default: tanh; with no scaling t/T]")
@choice("--embedding", ["fourier", "sinusoidal", "learned"], "fourier", "Features of the time label.")
@click.option("--sigma-data", type=Number(0, open=True), help="Standard deviation of the data.  [default: measured]")
@choice(
    "--loss",
    ["dsm", "implicit", "sliced"],
    "dsm",
    "Denoising score matching, or implicit or sliced for small networks.",
)
@click.option(
    "--weighting",
    type=Name(["edm", "simple", "sigma2", "likelihood"]),
    help="Weight of the loss over time.  [default: edm; with no scaling sigma2 of a score, else simple]",
)
@click.option(
    "--times",
    type=Name(["uniform", "lognormal", "importance"]),
    help="Distribution of training times.  [default: lognormal; for smld uniform]",
)
@click.option("--p-mean", type=Number(), help="Mean of ln sigma of lognormal times.  [default: ln(sigma_data) - 0.5]")
@click.option(
    "--p-std",
    type=Number(0, open=True),
    help="Its standard deviation.  [default: 1.2; both higher where the data's largest component needs it]",
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
@click.option("--warmup", type=Count(0), help="Images of warm-up.  [default: 50k or a tenth of all]")
@choice("--optimizer", ["adamw", "adam"], "adamw", "AdamW with betas 0.9, 0.99; or Adam with 0.9, 0.999.")
@click.option("--weight-decay", type=Number(0), default=1e-4, show_default=True, help="Of the optimizer.")
@click.option("--grad-clip", type=Number(0), default=1.0, show_default=True, help="Bound on the gradient; 0 is none.")
@click.option("--ema", type=Number(0), default=16.97, show_default=True, help="Exponent of the average of the weights.")
@click.option("--no-ema", is_flag=True, help="Keep the last weights, no average.")
@choice("--dtype", ["bf16", "fp32"], "bf16", "Type of the network's arithmetic.")
@click.option(
    "--compile/--no-compile", "compiled", default=True, show_default=True, help="Run the network through torch.compile."
)
@click.option("--seed", type=Count(0, 2**64 - 1), default=0, show_default=True, help="Seed of everything random.")
@device_option
@log_option
@click.option("--quiet", is_flag=True, help="No progress bar.")  # fmt: skip
def train(data: str, out: Path, **options: Any) -> None:
    """Train a score network on DATA by denoising score matching.

    DATA is fashion-mnist (Debian's package dataset-fashion-mnist), a toy set of points (moons, rings, checkerboard,
    grid, three-gaussians, four-gaussians, eight-gaussians, swiss-roll, spirals) or of point sets (circles), a folder
    of IDX files or of images, an image, or an .npy/.npz file; points in any units. Writes a model folder that
    `fastscore sample` reads, with loss.csv and loss.png. Stop it at any time: the same command goes on from the last
    checkpoint.
    """
    from fastscore.data.load import load
    from fastscore.ops.backend import named_device
    from fastscore.process.continuous import EDM
    from fastscore.training import recipe
    from fastscore.training.settings import TrainConfig
    from fastscore.training.train import train as run

    config = TrainConfig(
        images=options["images"],
        batch=options["batch"],
        lr=options["lr"],
        warmup=options["warmup"],
        cooldown=options["cooldown"],
        optimizer=options["optimizer"],
        weight_decay=options["weight_decay"],
        clip=options["grad_clip"],
        ema=None if options["no_ema"] else options["ema"],
        loss=options["loss"],
        weighting=options["weighting"],
        times=options["times"],
        mean=options["p_mean"],
        std=options["p_std"],
        dtype=options["dtype"],
        compile=options["compiled"],
        seed=options["seed"],
    )
    device = named_device(options["device"])
    kind = {"unet": "images", "scorenet": "images", "transformer": "sequences"}.get(options["net"], "auto")
    kind = "latents" if options["latents"] else kind
    dataset = load(data, kind=kind, value_range=options["value_range"], alpha=options["alpha"])
    dataset = dataset.standardised(options["standardise"], options["sigma_data"])
    if options["schedule"] == "smld" and options["sigma_max"] is None:
        options["sigma_max"] = recipe.farthest(dataset)
    schedule = make_schedule(options, EDM())
    parametrization = recipe.parametrize(
        options["prediction"],
        options["sigma_data"] or recipe.measured_std(dataset),
        net=options["net"],
        schedule=schedule,
        label=options["label"],
        scaling=options["scaling"],
    )
    spec = recipe.describe(
        dataset.shape,
        schedule,
        parametrization,
        net=options["net"],
        classes=len(dataset.class_names) if options["conditional"] and dataset.labels is not None else 0,
        width=options["width"],
        mult=_levels(options["mult"], "--mult"),
        blocks=_levels(options["blocks"], "--blocks"),
        patch=options["patch"],
        ordered=options["ordered"],
        embedding=options["embedding"],
    )
    run(
        spec,
        dataset,
        schedule,
        parametrization,
        config,
        out=out,
        info={"command": _command(), "data": data, "seed": options["seed"]},
        device=device,
        progress=None if options["quiet"] else _Bar("images"),
        log=click.get_current_context().with_resource(opened(options["log"])),
        standardise=False if dataset.transform is None else None,
    )
    click.echo(f"{out}: " + ", ".join(["model.safetensors", "config.json", "loss.csv", *_plot(out)]))


@click.command("train-classifier")
@click.argument("data", type=DATA)
@click.option("--out", type=Out(), required=True, help="Folder to write.")
@click.option("--overwrite", is_flag=True, help="Replace the classifier in --out.")
@click.option("--epochs", type=Count(1, 1000), default=6, show_default=True, help="Passes over the data.")
@click.option("--width", type=Count(8, 512), default=32, show_default=True, help="Channels of the first layer.")
@click.option("--seed", type=Count(0, 2**63 - 1), default=0, show_default=True, help="Seed of weights and order.")
@click.option("--quiet", is_flag=True, help="No progress bar.")
def train_classifier(data: str, out: Path, epochs: int, width: int, seed: int, quiet: bool, overwrite: bool) -> None:
    """Train the small classifier that `fastscore evaluate` judges samples with."""
    from fastscore.data.load import load
    from fastscore.training.classifier import train_classifier as run

    accuracy = run(
        out, load(data), load(data, "test"), epochs, width,
        seed=seed, info={"command": _command(), "data": data}, progress=None if quiet else _Bar("steps"),
        overwrite=overwrite,
    )  # fmt: skip
    click.echo(f"{out}: test accuracy {accuracy:.4f}")


class _Bar:
    """Progress that begins with the first step and shows the last figures."""

    def __init__(self, unit: str) -> None:
        self.unit, self.progress = unit, None

    def __call__(self, count: int, total: int, figures: dict[str, float]) -> None:
        from fastscore.output.progress import Progress

        if self.progress is None:
            self.progress = Progress(unit=self.unit).begin(total)
        self.progress.note = ", ".join(f"{k}={v:.4g}" for k, v in figures.items())
        self.progress.reach(count)
        if count >= total:
            self.progress.end()


def _command() -> str:
    import shlex
    import sys

    return shlex.join(["fastscore", *sys.argv[1:]])


def _levels(text: str, flag: str) -> tuple[int, ...]:
    try:
        values = tuple(int(v) for v in text.split(","))
    except ValueError:
        values = ()
    if not 1 <= len(values) <= 6 or not all(1 <= v <= 64 for v in values):
        raise ValueError(f"{flag} {text[:40]!r} must be 1 to 6 numbers from 1 to 64, as in 1,2,2")
    return values


def _plot(out: Path) -> list[str]:
    """Draw loss.png where matplotlib is installed; return what was written."""
    import importlib.util

    if importlib.util.find_spec("matplotlib") is None:
        click.echo("no loss.png: it needs matplotlib (pip install 'fastscore[plots]')", err=True)
        return []
    from fastscore.report.plots import plot_loss

    plot_loss(out / "loss.csv", out / "loss.png")
    return ["loss.png"]
