"""fastscore inpaint: fill in parts of images and write the results to a folder."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from fastscore.cli.groups import Grouped
from fastscore.cli.known import DATA, MODEL
from fastscore.cli.options import load, make_solver, value_range
from fastscore.cli.runs import draw_and_tell
from fastscore.cli.sample import drawing_options, make_execution, make_sampler, network_of
from fastscore.cli.types import Count, Name, Number, shorten

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

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


@click.command(cls=Grouped)
@click.argument("model", type=MODEL)
@click.argument("images", type=DATA)
@click.option(
    "--mask",
    type=click.Path(path_type=Path),
    help="Image, .npy or .npz; what is white (non-zero), or transparent, is filled in.",
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

    started, method = time.perf_counter(), options["method"]
    if (mask is None) == (options["box"] is None):
        raise ValueError("say what to fill in: either --mask FILE or --box TOP,LEFT,HEIGHT,WIDTH")
    _refuse_unused(method)
    if method == "repaint" and not _typed("solver"):
        options["solver"] = "ddpm"
    solver, network = make_solver(options), network_of(options)

    import numpy as np
    import torch

    from fastscore.data.limits import fits_memory
    from fastscore.data.masks import known_images
    from fastscore.guidance.guides import PiGDM
    from fastscore.guidance.measurements import Masked
    from fastscore.model.conditions import Known
    from fastscore.ops.backend import named_device
    from fastscore.ops.quantize import quantize_ref
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
    shape = score_model.shape
    if len(shape) != 3 or shape[0] not in (1, 3) or score_model.decoder is not None:
        raise ValueError(f"inpaint works on grey and RGB images; this model's samples are {shape}")
    data, clear = known_images(images, shape, value_range(score_model), options["limit"])
    total = len(data.x) * num
    fits_memory(8 * total * data.x[0].size, f"{total:,} results", "take fewer images (--limit) or results (-n)")
    unknown = _unknown(mask, options["box"], len(data.x), *shape[1:])
    if clear is not None and (clear & ~unknown).any():
        raise ValueError(
            f"{images} is transparent in {(clear & ~unknown).sum()} pixels that the mask leaves: fill those "
            f"in too (--mask {images} does), or lay the image on a colour first"
        )
    y = torch.from_numpy(data.network_range(np.arange(len(data.x))))
    pictures = quantize_ref(y).numpy()
    y = y.repeat_interleave(num, 0)
    known = torch.from_numpy(~unknown).permute(0, 3, 1, 2)
    known = known.repeat_interleave(num, 0) if len(known) > 1 else known[0]
    guide: Any = None
    measured: dict[str, Any] = {}
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
    measured["negative"] = options["negative"]
    request = sampler.request(ids, options["seed"], labels=labels, known=Known(y, known), **measured)

    def sheet(results: Any) -> Any:
        """Draw one line an image: original, masked in grey, results."""
        lines = [np.stack([v, np.where(unknown[k % len(unknown)], 128, v)]) for k, v in enumerate(pictures)]
        panels = [np.concatenate([line, results[k * num : (k + 1) * num][:8]]) for k, line in enumerate(lines[:20])]
        return contact_sheet(np.concatenate(panels).astype(np.uint8), columns=len(panels[0]))

    settings = {"model": model, "images": images, "mask": str(mask) if mask else None, "num": num, "network": network}
    arrays = {"image": np.repeat(np.arange(len(data.x)), num), "mask": unknown}
    arrays["originals"] = data.x if data.x.dtype.kind == "u" else data.x.transpose(0, 2, 3, 1)
    draw_and_tell(sampler, request, options, settings, started, sheet=sheet, extra_arrays=arrays)


def _unknown(mask: Path | None, box: tuple[int, ...] | None, n: int, h: int, w: int) -> NDArray[np.bool_]:
    """Return where to fill in, bool [1 or N, H, W, 1], for N images of H x W."""
    import numpy as np

    from fastscore.data.masks import read_mask

    if box is not None:
        top, left, height, width = box
        unknown = np.zeros((1, h, w), bool)
        unknown[:, top : top + height, left : left + width] = True
        if top + height > h or left + width > w:
            raise ValueError(f"--box {','.join(map(str, box))} leaves the images, which are {h} x {w}")
    else:
        assert mask is not None
        unknown = read_mask(mask, (n, h, w))
    if not unknown.any():
        raise ValueError("the mask is black (zero) everywhere: there is nothing to fill in")
    return unknown[:, :, :, None]


def _refuse_unused(method: str) -> None:
    """Raise ValueError for an option on the command line that the method would ignore."""
    owner = {"jump": "repaint", "resample": "repaint", "noise": "pigdm"}
    for option, of in owner.items():
        if method != of and _typed(option):
            raise ValueError(f"--{option} belongs to --method {of}, not {method}")


def _typed(option: str) -> bool:
    """Return whether an option stands on the command line."""
    return click.get_current_context().get_parameter_source(option) == click.core.ParameterSource.COMMANDLINE
