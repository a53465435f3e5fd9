"""Image files: any mode of Pillow as grey or colour of 8 or 16 bits or floats; folders of them, and their classes.

Nothing is dropped in silence: transparency is refused unless it is said what becomes of it, several frames are refused,
and an error names its file.
"""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps

from fastscore.data.limits import fits_memory, image_file

SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".webp", ".tif", ".tiff")
ALPHAS = ("refuse", "keep", "white", "black")
SPLITS = {"train": ("train", "training"), "test": ("test", "val", "valid", "validation")}
_OTHERS = ("__macosx", "@eadir", "thumbs.db")  # what systems leave beside people's files


def read_image(path: Path, alpha: str = "refuse") -> NDArray[Any]:
    """Read an image file, upright as its EXIF tag says: [H, W, C] uint8, uint16, int32 or float32.

    Mode 1 becomes grey 0 and 255; L stays; palettes become RGB, or grey if all their colours in use are; RGB stays;
    CMYK, YCbCr, HSV and LAB become RGB; I;16, I and F are grey of their own type. Pillow reads 16-bit colour as 8-bit.

    Args:
        path: of the file.
        alpha: what becomes of transparency: "refuse" it, "keep" it as a last channel, or lay the image on "white" or
            "black". Where all is opaque, there is none.

    Raises:
        ValueError: no regular file, no readable image, an animation, or transparency that is refused; with the path.
    """
    values, opacity = read_layers(path)
    if opacity is None:
        return values
    if alpha == "refuse":
        raise ValueError(
            f"{path} is transparent in places: say what becomes of it, --alpha white or black (the image is laid on "
            "that) or keep (a channel more); in Python alpha="
        )
    if alpha == "keep":
        return np.concatenate([values, opacity], 2)
    share = opacity / 255.0
    ground = 255.0 if alpha == "white" else 0.0
    return np.floor(values * share + ground * (1.0 - share) + 0.5).astype(np.uint8)


def read_layers(path: Path) -> tuple[NDArray[Any], NDArray[np.uint8] | None]:
    """Read an image file: its colours [H, W, C] as in ``read_image``, and its opacity [H, W, 1], None if it is full.

    Raises:
        ValueError: as ``read_image``.
    """
    values = opacity = None
    with image_file(path) as image:
        frames = int(getattr(image, "n_frames", 1))
        if frames == 1:
            values, opacity = _layers(ImageOps.exif_transpose(image))
    if values is None:
        raise ValueError(f"{path} holds {frames} frames; save the one that is meant as an image of its own")
    return values, None if opacity is None or (opacity == 255).all() else opacity


def _layers(image: Image.Image) -> tuple[NDArray[Any], NDArray[np.uint8] | None]:
    mode = image.mode
    if mode in ("I", "F") or mode.startswith("I;16"):
        return np.asarray(image).astype({"I": np.int32, "F": np.float32}.get(mode, np.uint16))[:, :, None], None
    transparent = mode in ("LA", "La", "PA", "RGBA", "RGBa") or "transparency" in image.info
    if mode == "La":
        image = image.convert("LA")
    elif mode == "LAB":
        image = _of_lab(image)
    elif transparent and mode not in ("RGBA", "LA"):
        image = image.convert("LA" if mode in ("1", "L") else "RGBA")
    elif mode == "1":
        image = image.convert("L")
    elif mode not in ("L", "RGB", "RGBA", "LA"):
        image = image.convert("RGB")
    values = np.array(image)
    values = values[:, :, None] if values.ndim == 2 else values
    colours, opacity = (values[:, :, :-1], values[:, :, -1:]) if transparent else (values, None)
    if mode in ("P", "PA") and (colours == colours[:, :, :1]).all():
        colours = colours[:, :, :1]
    return colours, opacity


def _of_lab(image: Image.Image) -> Image.Image:
    from PIL import ImageCms

    profiles = ImageCms.createProfile("LAB"), ImageCms.createProfile("sRGB")
    converted = ImageCms.profileToProfile(image, *profiles, outputMode="RGB")
    assert converted is not None
    return converted


def image_folder(
    folder: Path, split: str = "train", alpha: str = "refuse"
) -> tuple[NDArray[Any], NDArray[np.int64] | None, tuple[str, ...]]:
    """Read the images of a folder: (values [N, H, W, C], labels [N] or None, names of the classes).

    Files and folders are in natural order, 2 before 10; hidden ones and those that systems leave are skipped. A folder
    below is a class, with all that lies in it; folders train and test (or val) are the splits. Grey images among
    coloured ones become coloured.

    Raises:
        ValueError: no images, an image that cannot be read, images beside class folders, or sizes or types that differ;
            the message names the files.
    """
    files = _files(folder)
    names = {_class(p, folder) for p in files}
    all_splits = {name for group in SPLITS.values() for name in group}
    if names and {name.lower() for name in names} <= all_splits:
        meant = [name for name in sorted(names) if name.lower() in SPLITS[split]]
        if not meant:
            raise ValueError(f"{folder} has the folders {', '.join(sorted(names))}, and none for the split {split!r}")
        return image_folder(folder / meant[0], split, alpha)
    if not files:
        raise ValueError(f"{folder} holds no images ({' '.join(SUFFIXES)}) and no IDX files")
    images = [read_image(files[0], alpha)]
    count = 2 * len(files) * images[0].nbytes  # each by itself and all in one
    fits_memory(count, f"{folder}, {len(files):,} images,", "scale them down, or split the folder")
    images += [read_image(p, alpha) for p in files[1:]]
    for p, image in zip(files, images, strict=True):
        if image.shape[:2] != images[0].shape[:2]:
            size, first = ("{1} x {0}".format(*v.shape) for v in (image, images[0]))  # as image viewers say it
            raise ValueError(f"{p} is {size} pixels, {files[0]} {first}: all must agree (width x height)")
        if image.dtype != images[0].dtype:
            raise ValueError(
                f"{p} holds {image.dtype} values, {files[0]} {images[0].dtype}: bring all to one type; all must agree"
            )
    x = _stacked(images)
    if names == {""}:
        return x, None, ()
    if "" in names:
        beside = next(p for p in files if p.parent == folder)
        raise ValueError(f"{beside} lies beside class folders: move it into one, or all images into one folder")
    ordered = sorted(names, key=natural)
    return x, np.asarray([ordered.index(_class(p, folder)) for p in files], np.int64), tuple(ordered)


def natural(name: str) -> tuple[Any, ...]:
    """Return a key that sorts names as people number them: 2 before 10."""
    parts = re.split(r"(\d+)", name.casefold())
    return tuple(int(part) if k % 2 else part for k, part in enumerate(parts)), name


def _class(path: Path, folder: Path) -> str:
    """Return the name of the folder right below ``folder`` that holds a file, "" if it lies there itself."""
    parts = path.relative_to(folder).parts
    return parts[0] if len(parts) > 1 else ""


def _hidden(name: str) -> bool:
    return name.startswith(".") or name.lower() in _OTHERS


def _files(folder: Path) -> list[Path]:
    """Return the image files below a folder in natural order, through links to folders, each folder once."""
    found, seen = [], set()
    for root, folders, files in os.walk(folder, followlinks=True):
        here = os.path.realpath(root)
        folders[:] = [] if here in seen else [name for name in folders if not _hidden(name)]
        if here not in seen:
            found += [Path(root, name) for name in files if not _hidden(name) and name.lower().endswith(SUFFIXES)]
        seen.add(here)
    return sorted(found, key=lambda p: [natural(part) for part in p.relative_to(folder).parts])


def _stacked(images: list[NDArray[Any]]) -> NDArray[Any]:
    """Return images of 1 to 4 channels (grey, grey and opacity, RGB, RGB and opacity) as one array."""
    colour, opacity = any(v.shape[2] > 2 for v in images), any(v.shape[2] in (2, 4) for v in images)
    channels = (3 if colour else 1) + opacity
    x = np.empty((len(images), *images[0].shape[:2], channels), images[0].dtype)
    for k, image in enumerate(images):
        layers = image.shape[2] - (image.shape[2] in (2, 4))
        x[k, :, :, : channels - opacity] = image[:, :, :layers]
        if opacity:
            x[k, :, :, -1:] = image[:, :, layers:] if image.shape[2] > layers else 255
    return x
