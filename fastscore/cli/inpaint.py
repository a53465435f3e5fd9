"""fastscore inpaint: fill in parts of images and write the results to a folder."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import click

from fastscore.cli.options import load, make_solver
from fastscore.cli.sample import draw_and_tell, drawing_options, make_execution, make_sampler, network_of
from fastscore.cli.types import Count, Name, Number, shorten

METHODS = ("repaint", "replace", "pigdm")


class Box(click.ParamType):
    """A rectangle of pixels, TOP,LEFT,HEIGHT,WIDTH."""

    name = "TOP,LEFT,HEIGHT,WIDTH"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[int, ...]:
        """Parse one box."""
        parts = value if isinstance(value, tuple) else str(value).split(",")
        if len(parts) != 4 or not all(str(k).isdecimal() and len(str(k)) < 6 for k in parts):
            self.fail(f"{shorten(value)!r} is not TOP,LEFT,HEIGHT,WIDTH in pixels (example: 8,8,12,12).", param, ctx)
        return tuple(int(k) for k in parts)


@click.command()
@click.argument("model")
@click.argument("images")
@click.option(
    "--mask", type=click.Path(path_type=Path), help="Image, .npy or .npz; what is white (non-zero) is filled in."
)
@click.option("--box", type=Box(), help="Rectangle to fill in, in place of --mask.")
@click.option("-n", "--num", type=Count(1, 10_000), default=4, show_default=True, help="Results for each image.")
@click.option("--limit", type=Count(1), help="Use the first N images.")
@click.option(
    "--method",
    type=Name(METHODS),
    default="repaint",
    show_default=True,
    help="replace: known pixels at every step. repaint: also go back and forth, ddpm unless --solver is given. "
    "pigdm: also guide the rest by the known pixels.",
)
@click.option("--jump", type=Count(1, 10_000), default=5, show_default=True, help="Steps that repaint goes back.")
@click.option("--resample", type=Count(1, 10_000), default=5, show_default=True, help="Times that repaint goes down.")
@click.option(
    "--noise",
    type=Number(0),
    default=0.02,
    show_default=True,
    help="Noise of known pixels, for pigdm; they are in -1 .. 1.",
)
@click.option("--class", "label", type=Count(), help="Class of every image; its own label, or none, if left out.")
@drawing_options
def inpaint(model: str, images: str, mask: Path | None, num: int, **options: Any) -> None:
    """Fill in the masked part of IMAGES with MODEL.

    IMAGES is an image, a folder of them, an .npy or .npz file, or a set that `fastscore train` knows. Writes
    samples.npz (samples [N, H, W, C], the number of each one's image, originals, mask), grid.png (a line an image:
    original, masked, results) and run.json. Result j of image k has the id k n + j. A class-conditional model is told
    --class, else the labels that come with the images, else none. The other options are those of `fastscore sample`.
    """
    from fastscore.output.run import refuse_earlier_run

    started, method = time.perf_counter(), options["method"]
    if (mask is None) == (options["box"] is None):
        raise ValueError("say what to fill in: either --mask FILE or --box TOP,LEFT,HEIGHT,WIDTH")
    refuse_earlier_run(options["out"], options["overwrite"])
    _refuse_unused(method)
    if method == "repaint" and not _typed("solver"):
        options["solver"] = "ddpm"
    solver, network = make_solver(options), network_of(options)

    import numpy as np
    import torch

    from fastscore.guidance.guides import PiGDM
    from fastscore.guidance.measurements import Masked
    from fastscore.model.conditions import Known
    from fastscore.ops.backend import named_device
    from fastscore.output.images import contact_sheet
    from fastscore.solvers import RePaint
    from fastscore.solvers.adaptive import Adaptive

    if method == "repaint":
        if isinstance(solver, Adaptive):
            raise ValueError(
                f"solver {options['solver']} chooses its own steps, and repaint goes back and forth on a grid; use "
                "another solver, or --method replace"
            )
        solver = RePaint(solver, options["jump"], options["resample"])
    elif method == "pigdm":
        if network in ("fp32", "bf16"):
            raise ValueError(f"--method pigdm differentiates the network, which --network {network} rules out; use own")
        network = "own" if network == "auto" else network
    device = named_device(options["device"])
    score_model = load(model, device)
    data = _images(images, score_model.shape, options["limit"])
    unknown = _unknown(mask, options["box"], data.x.shape)
    y = torch.from_numpy(data.network_range(np.arange(len(data.x)))).repeat_interleave(num, 0)
    known = torch.from_numpy(~unknown).permute(0, 3, 1, 2)
    known = known.repeat_interleave(num, 0) if len(known) > 1 else known[0]
    guide, measured = None, {}
    if method == "pigdm":
        spread = float(score_model.parametrization.sigma_data)
        guide = PiGDM(Masked(known.to(device)), options["noise"], spread)
        measured = {"y": torch.where(known, y, 0.0)}
    labels = options["label"]
    if labels is None and not options["unconditional"] and data.labels is not None and score_model.classes:
        labels = torch.from_numpy(data.labels).repeat_interleave(num)
    if options["guidance"] is not None and labels is None and options["guidance_model"] is None:
        raise ValueError("--guidance leads away from the null class: give --class, or images with labels")
    execution = make_execution(score_model, options, device, network)
    sampler = make_sampler(score_model, options, solver, execution, guide)
    ids = range(len(data.x) * num)
    request = sampler.request(ids, options["seed"], labels=labels, known=Known(y, known), **measured)

    def sheet(results: Any) -> Any:
        """Draw one line an image: original, masked in grey, results."""
        lines = [np.stack([data.x[k], np.where(unknown[k % len(unknown)], 128, data.x[k])]) for k in range(len(data.x))]
        panels = [np.concatenate([line, results[k * num : (k + 1) * num][:8]]) for k, line in enumerate(lines[:20])]
        return contact_sheet(np.concatenate(panels).astype(np.uint8), columns=len(panels[0]))

    settings = {"model": model, "images": images, "mask": str(mask) if mask else None, "num": num, "network": network}
    arrays = {"image": np.repeat(np.arange(len(data.x)), num), "originals": data.x, "mask": unknown}
    draw_and_tell(sampler, request, options, settings, started, sheet=sheet, extra_arrays=arrays)


def _images(source: str, shape: tuple[int, ...], limit: int | None) -> Any:
    """Return the images as a Dataset, of the model's shape."""
    import numpy as np

    from fastscore.data.load import Dataset
    from fastscore.data.load import load as load_data

    if len(shape) != 3 or shape[0] not in (1, 3):
        raise ValueError(f"inpaint works on grey and RGB images; this model has samples of shape {shape}")
    path = Path(source)
    if path.is_file() and path.suffix not in (".npy", ".npz"):
        dataset = Dataset(_picture(path, "L" if shape[0] == 1 else "RGB")[None])
    else:
        dataset = load_data(source, "test")
    x, labels = dataset.x, dataset.labels
    if x.dtype != np.uint8 or dataset.shape != shape:
        raise ValueError(f"{source} holds {x.dtype} {dataset.shape}; this model has images of shape {shape}")
    return Dataset(x[:limit], None if labels is None else labels[:limit], dataset.class_names)


def _picture(path: Path, mode: str) -> Any:
    """Return an image file as uint8 [H, W, C]."""
    import numpy as np
    from PIL import Image

    try:
        with Image.open(path) as image:
            values = np.asarray(image.convert(mode))
    except Exception as error:  # a decoder raises anything
        raise ValueError(f"{path} is not a readable image: {error}") from None
    return values[:, :, None] if mode == "L" else values


def _unknown(mask: Path | None, box: tuple[int, ...] | None, shape: tuple[int, ...]) -> Any:
    """Return where to fill in, bool [1 or N, H, W, 1], for images of this shape [N, H, W, C]."""
    import numpy as np

    n, h, w, _ = shape
    if box is not None:
        top, left, height, width = box
        unknown = np.zeros((1, h, w, 1), bool)
        unknown[:, top : top + height, left : left + width] = True
        if top + height > h or left + width > w:
            raise ValueError(f"--box {','.join(map(str, box))} leaves the images, which are {h} x {w}")
    else:
        assert mask is not None
        values = _mask_values(mask)
        values = values.reshape(1, *values.shape) if values.ndim == 2 else values
        if values.shape not in ((1, h, w), (n, h, w)):
            raise ValueError(f"--mask {mask} has shape {values.shape}; expected {h} x {w}, or {n} of them")
        unknown = values[:, :, :, None] != 0
    if not unknown.any():
        raise ValueError("the mask is black (zero) everywhere: there is nothing to fill in")
    return unknown


def _mask_values(path: Path) -> Any:
    import numpy as np

    if not path.is_file():
        raise ValueError(f"--mask {path}: no such file")
    if path.suffix not in (".npy", ".npz"):
        return _picture(path, "L")[:, :, 0] > 127
    try:
        values = np.load(path, allow_pickle=False)
        values = values if isinstance(values, np.ndarray) else values[values.files[0]]
    except Exception as error:
        raise ValueError(f"--mask {path} is not a readable NumPy file: {error}") from None
    return values[:, :, :, 0] if values.ndim == 4 else values


def _refuse_unused(method: str) -> None:
    """Raise ValueError for an option on the command line that the method would ignore."""
    owner = {"jump": "repaint", "resample": "repaint", "noise": "pigdm"}
    for option, of in owner.items():
        if method != of and _typed(option):
            raise ValueError(f"--{option} belongs to --method {of}, not {method}")


def _typed(option: str) -> bool:
    """Return whether an option stands on the command line."""
    return click.get_current_context().get_parameter_source(option) == click.core.ParameterSource.COMMANDLINE
