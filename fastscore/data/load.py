"""Training data: IDX files, image folders, NumPy files and toy sets.

Images are uint8 NHWC in the file and in memory; a network sees them in [-1, 1]:

    x = u / 127.5 - 1,     u = clip(floor(127.5 x + 128), 0, 255)     (the rounding of EDM)
"""

from __future__ import annotations

import gzip
import os
import zlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from fastscore.data.toys import CIRCLES, TOYS, circles, toy

FASHION_MNIST = "fashion-mnist"
FASHION_MNIST_CLASSES = (
    "t-shirt", "trouser", "pullover", "dress", "coat", "sandal", "shirt", "sneaker", "bag", "ankle boot",
)  # fmt: skip
_FASHION_MNIST_FOLDER = "/usr/share/datasets/fashion-mnist"


@dataclass(frozen=True)
class Dataset:
    """Examples and, where there are any, class labels.

    Attributes:
        x: uint8 images [N, H, W, C], or float32 points [N, D], sequences [N, L, C] or arrays
            [N, C, H, W], used as they are.
        labels: int64 [N] or None.
        class_names: one per class; empty if unlabelled.
    """

    x: NDArray[np.uint8] | NDArray[np.float32]
    labels: NDArray[np.int64] | None = None
    class_names: tuple[str, ...] = ()

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of one network sample: [C, H, W] of an image, [D] of a point, [L, C] of a sequence or point set."""
        if self.x.dtype != np.uint8:
            return self.x.shape[1:]
        _, h, w, c = self.x.shape
        return (c, h, w)

    def network_range(self, index: NDArray[np.int64]) -> NDArray[np.float32]:
        """Return examples as the network sees them: float32, images as NCHW in [-1, 1]."""
        x = self.x[index]
        if x.dtype != np.uint8:
            return x.astype(np.float32)
        return np.ascontiguousarray(x.transpose(0, 3, 1, 2), dtype=np.float32) / 127.5 - 1.0


def load(source: str, split: str = "train", toy_size: int = 100_000) -> Dataset:
    """Load a data set by name or path.

    Args:
        source: "fashion-mnist" (the folder of Debian's package ``dataset-fashion-mnist``, or the one
            that the environment variable FASHION_MNIST names); a toy set (see data/toys.py;
            circles, whose samples are sets of 16 points); a folder of IDX files
            or of images (one subfolder a class); an .npy or .npz file of uint8 images [N, H, W(, C)],
            float points [N, D] or sequences [N, L, C] (keys ``samples``, ``images``, ``x`` or
            ``arr_0``; labels under ``labels``, ``y`` or ``arr_1``).
        split: "train" or "test", where the source has both.
        toy_size: points drawn of a toy set.

    Raises:
        ValueError: nothing usable there; the message says what was expected.
    """
    if split not in ("train", "test"):
        raise ValueError(f"split = {split!r} must be train or test")
    if source.replace("_", "-").lower() in TOYS:
        return Dataset(toy(source, toy_size, seed=0 if split == "train" else 1))
    if source == CIRCLES:
        return Dataset(circles(toy_size, seed=0 if split == "train" else 1))
    if source == FASHION_MNIST:
        folder = Path(os.environ.get("FASHION_MNIST", _FASHION_MNIST_FOLDER))
        if not folder.is_dir():
            raise ValueError(
                f"fashion-mnist: no folder {folder}; install Debian's package dataset-fashion-mnist "
                "or set FASHION_MNIST to a folder that holds the four .gz files"
            )
        return _idx_folder(folder, split, FASHION_MNIST_CLASSES)
    path = Path(source)
    if path.is_file() and path.suffix in (".npy", ".npz"):
        return _numpy_file(path)
    if path.is_dir():
        return _idx_folder(path, split, ()) if any(path.glob("*-idx3-ubyte*")) else _image_folder(path)
    names = ", ".join((FASHION_MNIST, *TOYS, CIRCLES))
    raise ValueError(f"data {source!r} is neither a known set ({names}) nor a folder, .npy or .npz file")


def read_idx(path: Path) -> NDArray[np.uint8]:
    """Read an IDX file of unsigned bytes, gzipped or not. Source: LeCun's MNIST page.

    Raises:
        ValueError: not an IDX file of bytes, or truncated.
    """
    try:
        raw = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
    except (OSError, EOFError, zlib.error) as error:
        raise ValueError(f"{path} cannot be read: {error}") from None
    if len(raw) < 4 or raw[:3] != b"\x00\x00\x08":
        raise ValueError(f"{path} is not an IDX file of unsigned bytes")
    rank = raw[3]
    shape = tuple(int.from_bytes(raw[4 + 4 * k : 8 + 4 * k], "big") for k in range(rank))
    body = np.frombuffer(raw, np.uint8, offset=4 + 4 * rank)
    if body.size != np.prod(shape):
        raise ValueError(f"{path} holds {body.size} values but its header says {shape}: truncated?")
    return body.reshape(shape)


def _idx_folder(folder: Path, split: str, class_names: tuple[str, ...]) -> Dataset:
    prefix = "train" if split == "train" else "t10k"
    files = {}
    for kind in ("images-idx3", "labels-idx1"):
        candidates = [folder / f"{prefix}-{kind}-ubyte{end}" for end in ("", ".gz")]
        files[kind] = next((p for p in candidates if p.is_file()), None)
    if files["images-idx3"] is None:
        raise ValueError(f"{folder} holds no {prefix}-images-idx3-ubyte or {prefix}-images-idx3-ubyte.gz")
    x = read_idx(files["images-idx3"])[..., None]
    if files["labels-idx1"] is None:
        return Dataset(x)
    labels = read_idx(files["labels-idx1"]).astype(np.int64)
    if len(labels) != len(x):
        raise ValueError(f"{folder}: {len(x)} {split} images but {len(labels)} labels")
    return Dataset(x, labels, class_names or tuple(str(k) for k in range(int(labels.max()) + 1)))


def _image_folder(folder: Path) -> Dataset:
    from PIL import Image

    files = sorted(p for p in folder.rglob("*") if p.suffix.lower() in (".png", ".jpg", ".jpeg", ".bmp", ".webp"))
    if not files:
        raise ValueError(f"{folder} holds no images (.png .jpg .jpeg .bmp .webp) and no IDX files")
    images = []
    for p in files:
        try:
            with Image.open(p) as image:
                images.append(np.asarray(image if image.mode in ("L", "RGB") else image.convert("RGB")))
        except Exception as error:  # a decoder raises anything
            raise ValueError(f"{p} is not a readable image: {error}") from None
        if images[-1].shape != images[0].shape:
            raise ValueError(f"{p} has shape {images[-1].shape}, {files[0]} {images[0].shape}: all must agree")
    x = np.stack(images)
    x = x[..., None] if x.ndim == 3 else x
    names = sorted({p.relative_to(folder).parts[0] for p in files if p.parent != folder})
    if not names or any(p.parent == folder for p in files):
        return Dataset(x)
    labels = [names.index(p.relative_to(folder).parts[0]) for p in files]
    return Dataset(x, np.asarray(labels, np.int64), tuple(names))


def _numpy_file(path: Path) -> Dataset:
    try:
        loaded = np.load(path, allow_pickle=False)
    except Exception as error:  # readers of NumPy files raise anything: TokenError, NotImplementedError
        raise ValueError(f"{path} is not a readable NumPy file: {error}") from None
    if isinstance(loaded, np.ndarray):
        x, labels = loaded, None
    else:
        try:
            arrays = {k: loaded[k] for k in loaded.files}
        except Exception as error:
            raise ValueError(f"{path} is not a readable NumPy file: {error}") from None
        finally:
            loaded.close()
        x = next((arrays[k] for k in ("samples", "images", "x", "arr_0") if k in arrays), None)
        labels = next((arrays[k] for k in ("labels", "y", "arr_1") if k in arrays), None)
        if x is None:
            raise ValueError(f"{path} has keys {list(arrays)}; expected samples, images, x or arr_0")
    if x.dtype == np.uint8 and x.ndim in (3, 4):
        x = x[..., None] if x.ndim == 3 else x
    elif x.dtype.kind == "f" and x.ndim in (2, 3):
        x = x.astype(np.float32)
    else:
        raise ValueError(
            f"{path}: {x.dtype} {x.shape} is neither uint8 images [N, H, W(, C)] nor float points [N, D] or sequences "
            "[N, L, C]"
        )
    if not len(x) or (x.dtype.kind == "f" and not np.isfinite(x).all()):
        raise ValueError(f"{path}: empty, or holds values that are not finite")
    if labels is None:
        return Dataset(x)
    if labels.shape != (len(x),) or labels.dtype.kind not in "iu" or labels.min() < 0:
        raise ValueError(f"{path}: labels must be {len(x)} non-negative integers, got {labels.dtype} {labels.shape}")
    return Dataset(x, labels.astype(np.int64), tuple(str(k) for k in range(int(labels.max()) + 1)))
