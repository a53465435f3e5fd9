"""What holds for every page of fastscore.report.page, by a parser that knows nothing of how it is made."""

from __future__ import annotations

from html.parser import HTMLParser
from pathlib import Path

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
