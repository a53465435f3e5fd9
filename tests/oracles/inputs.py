"""What goes in and what comes out, by trying: ``python tests/oracles/inputs.py`` writes the tables of data/README."""

from __future__ import annotations

import gzip
import re
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from fastscore.data import images
from fastscore.data.idx import TYPES
from fastscore.data.load import Dataset, load
from fastscore.data.masks import read_mask

README = Path(__file__).parents[2] / "fastscore/data/README.md"
GREY = np.array([[0, 128, 255], [255, 0, 0]], np.uint8)  # black, grey, white above
RGB = np.array([[[0] * 3, [128] * 3, [255] * 3], [[255, 0, 0], [0, 255, 0], [0, 0, 255]]], np.uint8)
CLEAR = np.array([[255, 255, 255], [255, 255, 0]], np.uint8)  # a hole in the corner, below at the right
WIDE = np.array([[0, 32896, 65535], [65535, 0, 0]], np.uint16)
SIXTEEN = ("I;16", "I;16L", "I;16B", "I;16N")


def picture(mode: str, opaque: bool = False) -> Image.Image:
    """An image of 3 x 2 pixels in a mode of Pillow: black, grey, white, and red, green, blue or white, black, black."""
    alpha = Image.fromarray(np.full_like(CLEAR, 255) if opaque else CLEAR)
    grey, colour = Image.fromarray(GREY), Image.fromarray(RGB)
    if mode in ("LA", "La", "RGBA", "RGBa", "PA"):
        layers = (grey if mode in ("LA", "La") else colour).copy()
        layers.putalpha(alpha)
        if mode == "PA":
            image = Image.new("PA", (3, 2))
            image.putpalette([v for k in range(6) for v in RGB.reshape(-1, 3)[k].tolist()])
            image.putdata([(k, int(CLEAR.reshape(-1)[k]) if not opaque else 255) for k in range(6)])
            return image
        return layers.convert(mode)
    if mode in ("P", "P grey"):
        image = (colour if mode == "P" else grey.convert("RGB")).quantize(8)
        return image
    if mode == "LAB":
        from PIL import ImageCms

        profiles = ImageCms.createProfile("sRGB"), ImageCms.createProfile("LAB")
        return ImageCms.profileToProfile(colour, *profiles, outputMode="LAB")  # pyright: ignore[reportReturnType]
    if mode in SIXTEEN:
        image = Image.frombytes(mode, (3, 2), WIDE.astype(">u2" if mode == "I;16B" else "<u2").tobytes())
        return image
    if mode == "I":
        return Image.fromarray(WIDE.astype(np.int32))
    if mode == "F":
        return Image.fromarray((GREY / 255.0).astype(np.float32))
    return grey.convert(mode, dither=Image.Dither.NONE) if mode in ("1", "L") else colour.convert(mode)


MODES = {
    "1": "png tiff bmp jpeg", "L": "png tiff bmp jpeg webp", "LA": "png tiff webp", "La": "", "P": "png tiff bmp",
    "P grey": "png", "PA": "tiff", "RGB": "png tiff bmp webp", "RGBA": "png tiff webp", "RGBa": "", "RGBX": "",
    "CMYK": "tiff", "YCbCr": "tiff", "LAB": "tiff", "HSV": "", "I": "tiff", "I;16": "png tiff", "I;16L": "",
    "I;16B": "tiff", "I;16N": "", "F": "tiff",
}  # fmt: skip


def mode_lines(folder: Path) -> Iterator[str]:
    yield "| mode | files tried | comes out | black, grey, white as the network sees them |"
    yield "|---|---|---|---|"
    for mode, formats in MODES.items():
        layered = mode in ("LA", "La", "PA", "RGBA", "RGBa")
        for opaque in (False, True) if layered else (True,):
            name = f"`{mode.split()[0]}`" + (", grey palette" if " " in mode else "")
            name += (", all opaque" if opaque else ", transparent in places") if layered else ""
            results: dict[tuple[str, str], list[str]] = {}
            for kind in formats.split() or [""]:
                options = {"webp": {"lossless": True}, "jpeg": {"quality": 100}}.get(kind, {})
                outcome = attempt(lambda k=kind, m=mode, o=opaque, s=options: decoded(folder, picture(m, o), k, s))
                results.setdefault(outcome, []).append(kind or "in memory")
            for (out, values), kinds in results.items():
                yield f"| {name} | {', '.join(kinds)} | {out} | {values} |"


def decoded(folder: Path, image: Image.Image, kind: str, options: dict[str, Any]) -> Dataset:
    """The data set of one image file; of a mode that no file has, of the image as if it had been decoded."""
    path = folder / f"x.{kind or 'png'}"
    if kind:
        image.save(path, kind, **options)
        return load(str(path))
    picture("L").save(path)
    layers, _layers = images._layers(image), images._layers
    try:
        images._layers = lambda _: layers
        return load(str(path))
    finally:
        images._layers = _layers


def attempt(read: Callable[[], Dataset]) -> tuple[str, str]:
    """What a data set is, and the first three values of its first channel; or why it is refused."""
    try:
        data = read()
    except ValueError as error:
        return f"refused: {reason(error)}", ""
    x = data.network_range(np.arange(1))
    if x.ndim == 2:
        return f"points of {x.shape[1]} columns", ""
    if x.ndim == 3:
        return f"sequences of {x.shape[1]} tokens of {x.shape[2]} numbers", ""
    _, c, h, w = x.shape
    bits = {"uint8": "8 bits", "uint16": "16 bits"}.get(str(data.x.dtype), "floats")
    colours = {1: "grey", 2: "grey and opacity", 3: "RGB", 4: "RGB and opacity"}.get(c, f"{c} channels")
    top = x[0, 0].reshape(-1)[:3]
    return f"{colours}, {bits}, {h} x {w}", ", ".join(f"{v:.1f}".replace("-0.0", "0.0") for v in top.tolist())


def reason(error: ValueError) -> str:
    """The first clause of an error without the name of the file."""
    text = re.sub(r"^(--mask )?/\S+", "", str(error)).strip(" :")
    return re.split(": |[.] Say|[.] Save", text)[0].replace("|", "/")


def idx_lines(folder: Path) -> Iterator[str]:
    yield "| IDX type | values | comes out | first three as the network sees them |"
    yield "|---|---|---|---|"
    path = folder / "train-images-idx3-ubyte"
    for code, kind in TYPES.items():
        dtype = np.dtype(kind)
        whole = {">i1": (GREY // 2,), ">i4": (GREY, WIDE)}.get(kind, (GREY,))
        for values in (GREY / 255.0,) if dtype.kind == "f" else whole:
            head = bytes([0, 0, code, 3]) + b"".join(n.to_bytes(4, "big") for n in (1, 2, 3))
            raw = head + values[None].astype(dtype).tobytes()
            path.write_bytes(raw)
            plain = attempt(lambda: load(str(folder)))
            path.unlink()
            path.with_name(path.name + ".gz").write_bytes(gzip.compress(raw))
            packed = attempt(lambda: load(str(folder)))
            path.with_name(path.name + ".gz").unlink()
            same = "plain and .gz" if plain == packed else "plain, and not .gz"
            name = f"0x{code:02X} {dtype.newbyteorder('=')}, {same}"
            yield f"| {name} | {values.min():g} .. {values.max():g} | {plain[0]} | {plain[1]} |"


def array_cases() -> Iterator[tuple[str, dict[str, Any] | np.ndarray]]:
    grey, colour = np.stack([GREY] * 5), np.stack([RGB] * 5)
    yield "uint8 [5, 2, 3, 1]", grey[..., None]
    yield "uint8 [5, 2, 3]: W = 3", grey
    yield "uint8 [5, 2, 3, 3]", colour
    yield "uint8 [5, 3, 2, 3]: 2 x 3 or 3 x 2", colour.transpose(0, 3, 1, 2)
    wide = np.zeros((5, 6, 9, 3), np.uint8)
    wide[:, 0, :3] = np.array([0, 128, 255])[:, None]
    yield "uint8 [5, 6, 9]", wide[..., 0]
    yield "uint8 [5, 6, 9, 3]", wide
    yield "uint8 [5, 3, 6, 9]", wide.transpose(0, 3, 1, 2)
    yield "uint8 [5, 6, 9, 3], 0 .. 1", wide // 255
    yield "bool [5, 6, 9]", wide[..., 0] > 200
    yield "int64 [5, 6, 9], 0 .. 255", wide[..., 0].astype(np.int64)
    yield "int64 [5, 6, 9], 0 .. 65535", wide[..., 0].astype(np.int64) * 257
    yield "int64 [5, 6, 9], -1 .. 255", wide[..., 0].astype(np.int64) - (np.arange(9) == 8)
    yield "uint16 [5, 6, 9, 3]", wide.astype(np.uint16) * 257
    yield "uint16 [5, 6, 9], up to 4080", wide[..., 0].astype(np.uint16) * 16
    yield "float [5, 6, 9, 3], 0 .. 1", wide / 255.0
    yield "float [5, 3, 6, 9], -1 .. 1", wide.transpose(0, 3, 1, 2) / 127.5 - 1.0
    yield "float [5, 6, 9, 3], 0 .. 255", wide.astype(np.float32)
    yield "float [5, 8, 8], 0 .. 1", wide[:, :1, :1, 0].repeat(8, 1).repeat(8, 2) / 255.0
    yield "float [5, 8, 9]", np.zeros((5, 8, 9))
    yield "float [5, 16, 2]", np.zeros((5, 16, 2))
    yield "float [5, 2]", np.zeros((5, 2))
    yield "int64 [5, 2]", np.zeros((5, 2), np.int64)
    yield "samples = uint8 [5, 2, 3, 3]", {"samples": colour}
    yield "images = float [5, 8, 9], 0 .. 1", {"images": wide[:, :1, :1, 0].repeat(8, 1).repeat(9, 2) / 255.0}
    yield "x_train, y_train, x_test, y_test", {"x_train": wide, "y_train": np.arange(5), "x_test": wide, "y_test": wide}
    yield "train_images, train_labels [5, 1]", {"train_images": wide, "train_labels": np.arange(5)[:, None]}
    yield "arr_0, arr_1", {"arr_0": wide, "arr_1": np.arange(5)}
    yield "x, y of floats", {"x": wide, "y": np.ones(5)}
    yield "x, y up to 10^10", {"x": wide, "y": np.full(5, 10**10)}
    yield "pictures", {"pictures": wide}


def array_lines(folder: Path) -> Iterator[str]:
    yield "| array, or keys of an .npz | comes out | labels | first three as the network sees them |"
    yield "|---|---|---|---|"
    for name, arrays in array_cases():
        path = folder / ("a.npz" if isinstance(arrays, dict) else "a.npy")
        np.savez(path, **arrays) if isinstance(arrays, dict) else np.save(path, arrays)
        out, values = attempt(lambda p=path: load(str(p)))
        classes = 0 if out.startswith("refused") else len(load(str(path)).class_names)
        yield f"| {name} | {out} | {classes or ''} | {values} |"


def mask_cases() -> Iterator[tuple[str, Image.Image | np.ndarray]]:
    """Masks of a hole of 2 x 4 pixels in images of 8 x 8, three of them."""
    hole = np.zeros((8, 8), bool)
    hole[2:4, 1:5] = True
    grey = Image.fromarray(hole.astype(np.uint8) * 255)
    photo = Image.fromarray(np.random.default_rng(0).integers(0, 256, (8, 8, 3), np.uint8))
    away = Image.fromarray(np.where(hole, 0, 255).astype(np.uint8))
    painted = grey.convert("RGB")
    yield "mode 1", grey.convert("1")
    yield "L, 0 and 255", grey
    yield "L, 0 and 1", Image.fromarray(hole.astype(np.uint8))
    yield "L, white all over", Image.new("L", (8, 8), 255)
    soft = np.where(hole, 250, 3).astype(np.uint8)
    soft[1, 1:5] = 90
    yield "L, JPEG noise and soft edges", Image.fromarray(soft)
    yield (
        "L, labels 0, 1 and 2",
        Image.fromarray(hole.astype(np.uint8) * 2 - (hole & (np.arange(8) > 2)).astype(np.uint8)),
    )
    yield "L, 100 and 200", Image.fromarray(np.where(hole, 200, 100).astype(np.uint8))
    yield "P, black and white", grey.quantize(2)
    yield "RGB, black and white", painted
    yield "RGB, red on black", Image.fromarray(hole[..., None] * np.array([255, 0, 0], np.uint8))
    yield "RGB, a photograph", photo
    yield "I;16, 0 and 65535", Image.fromarray(hole.astype(np.uint16) * 65535)
    for name, image in (("a photograph", photo), ("white all over", Image.new("RGB", (8, 8), (255, 255, 255)))):
        image = image.copy()
        image.putalpha(away)
        yield f"RGBA, {name}, transparent hole", image
    strokes = painted.copy()
    strokes.putalpha(grey)
    yield "RGBA, white strokes on nothing", strokes
    opaque = painted.copy()
    opaque.putalpha(255)
    yield "RGBA, black and white, opaque", opaque
    erased = Image.fromarray(np.full((8, 8), 77, np.uint8))
    erased.putalpha(away)
    yield "LA, transparent hole", erased
    for dtype in ("bool", "uint8", "int64", "float32"):
        yield f"{dtype} [8, 8], 0 and 1", hole.astype(dtype)
    yield "float32 [8, 8], 0 .. 1 with soft edges", soft.astype(np.float32) / 255.0
    yield "float32 [8, 8], -1 and 1", hole * 2.0 - 1.0
    yield "float32 [8, 8] with NaN", np.where(hole, np.nan, 0.0)
    for shape in ((8, 8, 1), (1, 8, 8), (1, 1, 8, 8), (1, 8, 8, 1)):
        yield f"bool {list(shape)}", hole.reshape(shape)
    three = np.stack([hole] * 3)
    yield "bool [3, 8, 8]: one an image", three
    yield "bool [3, 1, 8, 8]: one an image", three[:, None]
    yield "bool [3, 8, 8, 1]: one an image", three[..., None]
    yield "uint8 [8, 8, 3], channels alike", hole.astype(np.uint8)[..., None].repeat(3, 2)
    yield "bool [4, 8, 8]", np.stack([hole] * 4)
    yield "bool [8, 9]", np.zeros((8, 9), bool)


def mask_lines(folder: Path) -> Iterator[str]:
    yield "| mask of a hole of 8 of 64 pixels | masks | pixels filled in of each |"
    yield "|---|---|---|"
    for name, mask in mask_cases():
        path = folder / ("m.npy" if isinstance(mask, np.ndarray) else "m.png")
        np.save(path, mask) if isinstance(mask, np.ndarray) else mask.save(path)
        try:
            holes = read_mask(path, (3, 8, 8))
            yield f"| {name} | {len(holes)} | {holes[0].sum()} |"
        except ValueError as error:
            yield f"| {name} | | refused: {reason(error)} |"


TABLES = {"modes": mode_lines, "idx": idx_lines, "arrays": array_lines, "masks": mask_lines}


def page() -> str:
    """README.md of data/ with the tables as they are now."""
    text = README.read_text()
    for name, lines in TABLES.items():
        with tempfile.TemporaryDirectory() as folder:
            table = "\n".join(lines(Path(folder)))
        before, rest = text.split(f"<!-- {name} -->")
        text = f"{before}<!-- {name} -->\n{table}\n<!-- /{name} -->{rest.split(f'<!-- /{name} -->')[1]}"
    return text


if __name__ == "__main__":
    README.write_text(page())
