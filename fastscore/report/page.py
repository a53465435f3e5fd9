"""A page of results: one HTML file that needs no other, made of sections and a few kinds of parts.

The file holds everything, pictures as data: URLs, so it opens from a disk without a network, can be mailed, and says
the same in ten years. Its Content-Security-Policy forbids every request and every script but the slider's own.
"""

from __future__ import annotations

import base64
import hashlib
import io
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

from fastscore.errors import typed
from fastscore.files import write_text
from fastscore.report import chart as charts
from fastscore.report.chart import Chart, number

LARGEST = 3_000_000  # bytes of a page
LARGEST_SIDE = 8192  # pixels of a picture; a phone's browser draws no larger one
SCALES = (1.0, 0.7, 0.5, 0.35, 0.25, 0.15)
_HERE = Path(__file__).parent
_NO_TEXT = re.compile(r"[\0-\x08\x0b-\x1f\x7f-\x9f\ud800-\udfff\ufffe\uffff]")


@dataclass(frozen=True, eq=False)
@typed
class Facts:
    """Names and what they are, in two columns."""

    facts: Mapping[str, Any]


@dataclass(frozen=True, eq=False)
@typed
class Table:
    """Rows of cells below a head; what a narrow screen has no room for scrolls inside the table's box.

    Raises:
        ValueError: no caption, or a row of another length than the head.
    """

    head: Sequence[str]
    rows: Sequence[Sequence[Any]]
    caption: str = ""

    def __post_init__(self) -> None:
        _need("Table", "caption", self.caption)
        for row in self.rows:
            if len(row) != len(self.head):
                raise ValueError(f"Table: a row of {len(row)} cells below a head of {len(self.head)}; make them equal")

    @property
    def numeric(self) -> list[bool]:
        """Whether the first cell of each column that is there is a number."""
        firsts = [next((row[k] for row in self.rows if row[k] is not None), None) for k in range(len(self.head))]
        return [_is_number(cell) for cell in firsts]


@dataclass(frozen=True, eq=False)
@typed
class Picture:
    """An image, PNG or JPEG, and what it shows: the text stands below it, and in its place where none is seen.

    Raises:
        ValueError: no text.
    """

    png: bytes
    text: str = ""

    def __post_init__(self) -> None:
        _need("Picture", "text", self.text)


@dataclass(frozen=True, eq=False)
@typed
class Frames:
    """Images in an order, the chosen one by a slider; the last one without scripts, all of them on paper.

    Raises:
        ValueError: no text, no frame, or another number of labels than frames.
    """

    pngs: Sequence[bytes]
    labels: Sequence[str]
    text: str = ""

    def __post_init__(self) -> None:
        _need("Frames", "text", self.text)
        if not self.pngs or len(self.pngs) != len(self.labels):
            raise ValueError(f"Frames: {len(self.pngs)} frames and {len(self.labels)} labels; give one label a frame")


@dataclass(frozen=True, eq=False)
@typed
class Code:
    """A command or a program, as it is."""

    text: str


Part = Facts | Table | Chart | Picture | Frames | Code


@dataclass(frozen=True, eq=False)
@typed
class Section:
    """A part of a page with a title of its own: what it says, and what it shows.

    Args:
        text: paragraphs, with empty lines between them.
        parts: Facts, Table, Chart, Picture, Frames and Code, in order.
    """

    title: str
    text: str = ""
    parts: Sequence[Any] = ()

    def __post_init__(self) -> None:
        for part in self.parts:
            if not isinstance(part, Part):
                raise ValueError(
                    f"Section: parts has a {type(part).__name__}; give Facts, Table, Chart, Picture, Frames or Code"
                )


@dataclass(frozen=True)
class Shown:
    """An image as it goes into a page."""

    kind: str
    data: str
    width: int
    height: int
    scale: float | None  # None: as it was given


@typed
def write_page(path: Path, title: str, sections: Sequence[Section], text: str = "") -> int:
    """Write one HTML file, and return its bytes, at most LARGEST.

        write_page(Path("report.html"), "Boots", [Section("Samples", "", [Picture(png, "64 boots on a square grid")])])

    Images that a page has no room for are scaled down and written as JPEG, and their caption says so.

    Args:
        path: of the file, which is replaced.
        title: of the page, its only heading of the first level.
        sections: what follows, in order.
        text: paragraphs below the title, with empty lines between them.

    Raises:
        ValueError: no title, bytes that are no image, or a page above LARGEST bytes however small its images are.
        OSError: the file cannot be written.
    """
    _need("write_page", "title", title)
    images = [(part, image) for section in sections for part in section.parts for image in _images(part)]
    bare = _render(title, text, sections, [(part, Shown("image/jpeg", "", 9999, 9999, 1.0)) for part, _ in images])
    share = _share([len(image) for _, image in images], (LARGEST - len(bare.encode())) // 4 * 3)  # of base64
    page = _render(title, text, sections, [(part, _fitted(image, share)) for part, image in images])
    size = len(page.encode())
    if size > LARGEST:
        raise ValueError(
            f"{path}: a page of {size} bytes, above {LARGEST}; leave out rows of tables or points of charts"
        )
    write_text(path, page)
    return size


def _render(title: str, text: str, sections: Sequence[Section], images: list[tuple[Any, Shown]]) -> str:
    from jinja2 import Environment, FileSystemLoader, StrictUndefined
    from markupsafe import Markup

    shown: dict[Any, list[Shown]] = {}
    for part, image in images:
        shown.setdefault(part, []).append(image)
    frames = any(isinstance(part, Frames) for part in shown)
    style, script = (_HERE / "page.css").read_text(), (_HERE / "page.js").read_text() if frames else ""
    rules = ["default-src 'none'", "base-uri 'none'", "form-action 'none'", "img-src data:"]
    rules += [f"style-src {_hashed(style)}", *([f"script-src {_hashed(script)}"] if script else [])]
    environment = Environment(
        autoescape=True,
        finalize=_printable,
        loader=FileSystemLoader(_HERE),
        lstrip_blocks=True,
        trim_blocks=True,
        undefined=StrictUndefined,
    )
    environment.filters |= {"kind": lambda part: type(part).__name__, "words": words, "paragraphs": _paragraphs}
    return environment.get_template("page.html.j2").render(
        title=title,
        text=text,
        sections=sections,
        shown=shown,
        policy="; ".join(rules),
        style=Markup(style),
        script=Markup(script),
        version=version("fastscore"),
        area=charts,
        is_number=_is_number,
    )


def _share(sizes: list[int], room: int) -> int:
    """Return the most bytes of one image: all fit into the room if those above it are made as small as it."""
    for k, size in enumerate(sorted(sizes)):
        if size > (share := room // (len(sizes) - k)):
            return share
        room -= size
    return LARGEST


def _fitted(image: bytes, share: int) -> Shown:
    """Return an image as it is, or as the largest JPEG of at most ``share`` bytes."""
    from PIL import Image

    try:
        with Image.open(io.BytesIO(image)) as opened:
            kind = opened.format
            opened.load()
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise ValueError(f"an image of {len(image)} bytes cannot be read ({error}); give PNG or JPEG") from error
    if kind in ("PNG", "JPEG", "GIF") and len(image) <= share and max(opened.size) <= LARGEST_SIDE:
        return Shown(f"image/{kind.lower()}", base64.b64encode(image).decode(), opened.width, opened.height, None)
    clear = opened.convert("RGBA")
    flat = Image.alpha_composite(Image.new("RGBA", clear.size, "white"), clear).convert("RGB")
    for scale in SCALES:
        width, height = (max(1, round(side * scale)) for side in flat.size)
        if max(width, height) > LARGEST_SIDE:
            continue
        flat.resize((width, height), Image.Resampling.LANCZOS).save(file := io.BytesIO(), "JPEG", quality=80)
        if len(data := file.getvalue()) <= share:
            return Shown("image/jpeg", base64.b64encode(data).decode(), width, height, scale)
    raise ValueError(
        f"an image of {opened.width} x {opened.height} pixels has a share of {max(share, 0)} bytes of a page of "
        f"at most {LARGEST}, and does not fit; leave out other images or frames, or draw it smaller"
    )


def _images(part: Part) -> Sequence[bytes]:
    return part.pngs if isinstance(part, Frames) else [part.png] if isinstance(part, Picture) else []


def words(value: Any) -> str:
    """Return a value as a cell shows it: numbers short, yes and no, none for nothing, lists with commas."""
    match value:
        case None:
            return "none"
        case bool():
            return "yes" if value else "no"
        case float():
            return number(value)
        case Mapping():
            return ", ".join(f"{name} {words(v)}" for name, v in value.items()) or "none"
        case list() | tuple():
            return ", ".join(map(words, value)) or "none"
    return str(value.item() if hasattr(value, "item") else value)


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _paragraphs(text: str) -> list[str]:
    return [line for line in re.split(r"\n\s*\n", text.strip()) if line]


def _printable(value: Any) -> Any:
    """Return text without what no page may hold: control characters and halves of surrogate pairs."""
    return _NO_TEXT.sub("\ufffd", value) if type(value) is str else value


def _hashed(text: str) -> str:
    """Return the source expression of a Content-Security-Policy that allows one inline text."""
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"


def _need(owner: str, name: str, text: str) -> None:
    if not text.strip():
        raise ValueError(f"{owner}: {name} is empty; say in a sentence what is shown")
