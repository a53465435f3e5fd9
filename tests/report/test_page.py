"""The page: one file, nothing from outside, a text for every picture, and no name that breaks it."""

from __future__ import annotations

import io
import math
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from fastscore.report import page as pages
from fastscore.report.chart import BOTTOM, LEFT, RIGHT, TOP, lay_out, number
from fastscore.report.page import Chart, Code, Facts, Frames, Picture, Section, Table, write_page

VOID = {"meta", "img", "input", "link", "br", "hr", "path"}
HOSTILE = """</title><script>alert(1)</script><img src=x onerror="alert(1)">'"&\0\x1b\ud800 {{ 7 * 7 }}"""


class Read(HTMLParser):
    """Reads a page, and fails on elements that are not closed, or closed by another."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.found: list[tuple[str, dict[str, str]]] = []
        self.texts: list[tuple[str, str]] = []
        self.feed(text)
        self.close()
        assert not self.open

    def handle_starttag(self, tag, attrs):
        assert len({k for k, _ in attrs}) == len(attrs)
        self.found.append((tag, {k: v or "" for k, v in attrs}))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.found.append((tag, {k: v or "" for k, v in attrs}))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if data.strip() and self.open:
            self.texts.append((self.open[-1], data))

    def all(self, tag: str) -> list[dict[str, str]]:
        return [attrs for name, attrs in self.found if name == tag]

    def words(self, tag: str) -> list[str]:
        return [text for name, text in self.texts if name == tag]


def check(path: Path) -> Read:
    """Read a page and check what holds for every one."""
    text = path.read_bytes().decode()
    page = Read(text)
    assert path.stat().st_size <= 3_000_000
    assert len(page.all("h1")) == len(page.all("title")) == len(page.all("main")) == 1
    assert page.all("html") == [{"lang": "en"}] and any(m.get("name") == "viewport" for m in page.all("meta"))
    assert "default-src 'none'" in next(m["content"] for m in page.all("meta") if "http-equiv" in m)
    for tag, attrs in page.found:
        assert not any(name.startswith("on") or name == "style" for name in attrs), (tag, attrs)
        for name in ("src", "href", "action", "srcset", "data"):
            assert attrs.get(name, "#").startswith(("#", "data:image/")), (tag, name)
    assert "url(" not in text and "@import" not in text and "<link" not in text
    assert all(img["alt"].strip() for img in page.all("img"))
    assert all(svg.get("aria-label", "").strip() or svg.get("aria-hidden") for svg in page.all("svg"))
    ids = [attrs["id"] for _, attrs in page.found if "id" in attrs]
    assert len(ids) == len(set(ids))
    links = {attrs["href"].removeprefix("#") for _, attrs in page.found if "href" in attrs}
    assert links <= set(ids) and all(a["aria-labelledby"] in ids for a in page.all("section"))
    return page


def png(width: int, height: int, noise: bool = False, mode: str = "RGB") -> bytes:
    x = np.random.default_rng(0).integers(0, 256, (height, width, len(mode))) if noise else np.zeros((height, width, 3))
    file = io.BytesIO()
    Image.fromarray(x.astype(np.uint8)).save(file, "PNG")
    return file.getvalue()


def everything(word: str) -> list[Section]:
    t = np.linspace(0.0, 1.0, 50)
    parts = [
        Facts({word: 1.5, "none": None, "list": [1, True, word]}),
        Table([word, "value"], [[word, 0.00012346], ["b", math.inf]], word),
        Chart({word: (t, t), "b": (t, -t)}, word, word, text=word, marks=t[::5]),
        Picture(png(4, 3), word),
        Frames([png(2, 2)] * 3, [word, "b", "c"], word),
        Code(word),
    ]
    return [Section(word, f"{word}\n\n{word}", parts), Section("next")]


def test_a_page_is_one_file_and_shows_every_word_as_it_is(tmp_path):
    file = tmp_path / "page.html"
    assert write_page(file, HOSTILE, everything(HOSTILE), HOSTILE) == file.stat().st_size
    page = check(file)
    seen = HOSTILE.replace("\0", "\ufffd").replace("\x1b", "\ufffd").replace("\ud800", "\ufffd")
    assert page.words("h1") == page.words("title") == [seen] and page.words("code") == [seen]
    assert page.words("td") == [seen, "0.0001235", "b", "inf"] and "1, yes, " + seen in page.words("dd")
    assert [img["alt"] for img in page.all("img")] == [seen, seen, "b", "c"]
    assert len(page.all("script")) == 1 and page.all("input")[0]["max"] == "2"
    assert any(seen in label for label in page.words("text"))


def test_a_policy_names_the_style_and_the_script_that_stand_there(tmp_path):
    """Chromium drops what another hash stands for, and the page would be bare."""
    import base64
    import hashlib
    import re

    write_page(file := tmp_path / "page.html", "a", everything("b"))
    text = file.read_text()
    policy = check(file).all("meta")[1]["content"]
    for tag in ("style", "script"):
        inside = re.search(f"<{tag}>(.*?)</{tag}>", text, re.S)[1]
        digest = base64.b64encode(hashlib.sha256(inside.encode()).digest()).decode()
        assert f"{tag}-src 'sha256-{digest}'" in policy
    write_page(file, "a", [Section("no slider")])
    assert "script" not in file.read_text()


def test_images_without_room_are_made_smaller_and_say_so(tmp_path, monkeypatch):
    monkeypatch.setattr(pages, "LARGEST", 60_000)
    file, small, large = tmp_path / "page.html", png(4, 3), png(300, 200, noise=True)
    write_page(file, "a", [Section("b", "", [Picture(small, "small"), Picture(large, "large")])])
    page, captions = check(file), Read(file.read_text()).words("figcaption")
    assert file.stat().st_size <= 60_000
    kinds = [(img["src"][:15], img["width"], img["height"]) for img in page.all("img")]
    assert kinds[0] == ("data:image/png;", "4", "3") and kinds[1][0] == "data:image/jpeg"
    assert captions[0] == "small" and "Made smaller" in captions[1]
    with pytest.raises(ValueError, match=r"300 x 200 pixels .* does not fit"):
        write_page(tmp_path / "no.html", "a", [Section("b", "", [Frames([large] * 90, ["c"] * 90, "many")])])
    with pytest.raises(ValueError, match="above 60000; leave out rows"):
        write_page(tmp_path / "no.html", "a", [Section("b" * 70_000)])
    assert not (tmp_path / "no.html").exists()


def test_parts_say_what_is_wrong_with_them(tmp_path):
    for make, message in (
        (lambda: Picture(b"", " "), "text is empty"),
        (lambda: Chart({}, "x", "y"), "text is empty"),
        (lambda: Chart({"a": ([1], [1, 2])}, "x", "y", text="t"), "'a' has x of shape"),
        (lambda: Chart({"a": ([1], [1])}, "x", "y", text="t", log_x=True, square=True), "two linear axes"),
        (lambda: Table(["a"], [[1, 2]], "t"), "a row of 2 cells"),
        (lambda: Table(["a"], []), "caption is empty"),
        (lambda: Frames([], [], "t"), "0 frames"),
        (lambda: Frames([b""], ["a", "b"], "t"), "1 frames and 2 labels"),
        (lambda: Section("a", "", ["b"]), "parts has a str"),
        (lambda: write_page(tmp_path / "a", "", []), "title is empty"),
        (lambda: write_page(tmp_path / "a", "a", [Section("b", "", [Picture(b"no", "t")])]), "give PNG or JPEG"),
    ):
        with pytest.raises(ValueError, match=message):
            make()


def test_a_line_breaks_where_there_is_no_value_and_stays_inside():
    x = np.arange(9.0)
    y = np.array([1.0, 2.0, math.nan, 4.0, math.inf, 0.0, -1.0, 8.0, 9.0])
    (linear,) = lay_out(Chart({"a": (x, y)}, "x", "y", text="t")).lines
    (log,) = lay_out(Chart({"a": (x, y)}, "x", "y", log_y=True, text="t")).lines
    assert [run.count("L") for run in linear.path.split("M")[1:]] == [1, 0, 3]
    assert [run.count("L") for run in log.path.split("M")[1:]] == [1, 0, 1] and log.path.count("h0") == 1
    for scale in (1e-300, 1e-8, 1.0, 1e299):
        for shift in (0.0, 1.0, 1e9):
            drawing = lay_out(Chart({"a": (x, shift + scale * x)}, "x", "y", text="t", marks=[-99, 3, 99]))
            points = np.array([p.split() for p in drawing.lines[0].path[1:].split("L")], float)
            assert points.min(0)[0] >= LEFT and points.max(0)[0] <= RIGHT
            assert points.min(0)[1] >= TOP and points.max(0)[1] <= BOTTOM
            assert 2 <= len(drawing.y_ticks) <= 8 and drawing.marks.count("M") == 1
            assert all(TOP <= v <= BOTTOM and len(name) <= 9 for v, name in drawing.y_ticks), drawing.y_ticks
    assert lay_out(Chart({"a": ([0.0], [math.nan])}, "x", "y", text="t")).empty


def test_ticks_are_round_numbers_at_their_place():
    drawing = lay_out(Chart({"a": ([0.0, 1.0], [1e-4, 1e6])}, "x", "y", log_y=True, text="t"))
    assert [name for _, name in drawing.x_ticks] == ["0", "0.2", "0.4", "0.6", "0.8", "1"]
    assert [name for _, name in drawing.y_ticks] == ["10⁻⁴", "0.01", "1", "100", "10⁴", "10⁶"]
    ends = [float(v) for v in drawing.lines[0].path[1:].replace("L", " ").split()]
    assert drawing.y_ticks[0][0] == pytest.approx(ends[1], abs=0.1)
    assert drawing.x_ticks[-1][0] == pytest.approx(ends[2], abs=0.1)
    dots = lay_out(Chart({"a": ([0, 4], [0, 1])}, "x", "y", text="t", dots=["a"], square=True))
    (u0, v0), (u1, v1) = (
        [float(n) for n in dot.split()] for dot in dots.lines[0].path.replace("h0", "")[1:].split("M")
    )
    assert dots.lines[0].kind == "dots" and (u1 - u0) / (v0 - v1) == pytest.approx(4.0, rel=0.01)
    long = lay_out(Chart({"a": (range(100_000), np.sin(np.arange(100_000)))}, "x", "y", text="t")).lines[0].path
    assert len(long) < 20_000
    assert [number(v) for v in (0.0, -0.0, 1234567.0, 1e-7, 0.04, 12345.6)] == [
        "0",
        "0",
        "1.235e6",
        "1e-7",
        "0.04",
        "12346",
    ]
