"""What every scheduler is told: the command of a run, cut into parts, and how its words are written into files.

Each part is a job of its own, `fastscore sample ... --shard I/N`, and knows nothing of the others. What ends it decides
what follows, by its exit code: 75, stopped and resumable, starts it again, and so does 5, storage, some times; 2, 3, 4
and 70 would only fail again. 143 is 75 before a run is under way, as while a model is loaded.
"""

from __future__ import annotations

import posixpath
import re
import shlex
from collections.abc import Sequence
from dataclasses import dataclass

MOST = 100_000  # parts: as many indexes as a Kubernetes Job may have with failures counted by index
STOPPED = (75, 143)  # exit codes of what goes on when it is started again
HOPELESS = (2, 3, 4, 70)  # exit codes of what would fail again
RETRIES = 10  # after storage failed
MEANINGS = "2 bad input, 3 a package or memory is missing, 4 NaN or a failed self-check, 70 a fault of fastscore's"
_NAME = re.compile(r"[a-z]([a-z0-9-]{0,48}[a-z0-9])?")  # 50, so that Kubernetes has room for the index
_WORD = re.compile(r"[\w.,:=/@+-]+", re.ASCII)
_ANEW = "which would begin the run anew whenever a job is started again"
_ONE = "which belongs to a run of one command"
_REFUSED = {
    "--shard": "which is what the jobs differ in, and set by the file",
    "--fresh": _ANEW,
    "--overwrite": _ANEW,
    "--png": _ONE,
    "--trajectory": _ONE,
    "--trajectory-steps": _ONE,
    "--manifest-only": "which draws nothing",
}


@dataclass(frozen=True)
class Parts:
    """A command that draws a run, and into how many jobs it is cut.

    Attributes:
        words: of the command, after `fastscore`: "sample", MODEL and options, "--out" and where to among them.
        count: number of parts, 1 .. 100,000.
        at_once: how many may run at a time; None: all.
        name: of the jobs: lower-case letters, digits and hyphens, at most 50, a letter first.

    Raises:
        ValueError: a number or name outside these; no `sample` command with --out; one with --shard, which is set here,
            with --fresh, which would begin the run anew at every restart, or with what only a run of one command can.
    """

    words: tuple[str, ...]
    count: int
    at_once: int | None = None
    name: str = "fastscore"

    def __post_init__(self) -> None:
        if not 1 <= self.count <= MOST:
            raise ValueError(f"parts = {self.count} must be in 1 .. {MOST:,}; a part may draw any number of shards")
        if self.at_once is not None and not 1 <= self.at_once <= self.count:
            raise ValueError(f"at once = {self.at_once} must be in 1 .. {self.count}, the number of parts")
        if not _NAME.fullmatch(self.name):
            raise ValueError(
                f"name = {self.name[:60]!r} must be of a-z, 0-9 and -, a letter first and no - last, at most 50 of them"
            )
        if not self.words or self.words[0] != "sample":
            raise ValueError("the command to launch must be `sample MODEL ... --out RUN`, after --")
        for word in self.words:
            flag = word.partition("=")[0]
            if flag in _REFUSED:
                raise ValueError(f"the command to launch has {flag}, {_REFUSED[flag]}; leave it out")
            if "\0" in word or word != word.encode(errors="replace").decode():
                raise ValueError(f"{word[:60]!r} holds what no file of text can; use another name")
        if not self.out:
            raise ValueError("the command to launch says nowhere where its samples go; add --out")

    @property
    def out(self) -> str:
        """Where the samples go; empty if that is not said."""
        found = ""
        for word, following in zip(self.words, (*self.words[1:], ""), strict=True):
            flag, _, value = word.partition("=")
            if flag in ("--out", "--outdir"):
                found = value or following
        return found

    @property
    def in_bucket(self) -> bool:
        """Whether samples go to an object store, where any machine can write."""
        return re.match(r"(?i)(s3|gs|az)://", self.out) is not None

    def below(self, folder: str) -> bool:
        """Whether samples go to a folder, or further down; both as absolute paths."""
        out, top = (posixpath.normpath(path.removeprefix("file://")) for path in (self.out, folder))
        return top[0] == out[0] == "/" and posixpath.commonpath([top, out]) == top

    def shell(self, index: str) -> str:
        """Return the command in bash; index: the variable that says which part a job is, such as "$RANK"."""
        return " ".join(["fastscore", *map(bash, self.words), "--shard", f'"{index}/$N"'])


def bash(word: str) -> str:
    """Return a word as bash reads it, whatever the locale: on one line, in characters that print."""
    if word.isprintable():
        return shlex.quote(word)
    plain = (c if c.isascii() and c.isalnum() else "".join(f"\\x{byte:02x}" for byte in c.encode()) for c in word)
    return f"$'{''.join(plain)}'"


def yaml(text: str) -> str:
    """Return a text as a double-quoted scalar of YAML, on one line, in characters that print."""
    escaped = text.replace("\\", "\\\\").replace('"', '\\"')
    return '"' + "".join(c if c.isprintable() else f"\\U{ord(c):08x}" for c in escaped) + '"'


def mapping(key: str, value: object, indent: str = "") -> list[str]:
    """Return lines of a mapping, without what is None or empty."""
    if isinstance(value, dict):
        inner = [line for k, v in value.items() for line in mapping(k, v, f"{indent}  ")]
        return [f"{indent}{key}:", *inner] if inner else []
    if value is None:
        return []
    plain = str(value).lower() if isinstance(value, bool) else str(value)
    return [f"{indent}{key}: {yaml(value) if isinstance(value, str) else plain}"]


def script(lines: Sequence[str]) -> str:
    """Return lines of bash that a user gave, each with its end.

    Raises:
        ValueError: one that is not one line of characters that print.
    """
    for line in lines:
        if not line.isprintable():
            raise ValueError(f"setup = {line[:60]!r} holds a character that does not print; give one line at a time")
    return "".join(f"{line}\n" for line in lines)


def indented(lines: str | Sequence[str], by: int) -> str:
    """Return lines further to the right, as YAML nests them."""
    lines = lines.rstrip("\n").split("\n") if isinstance(lines, str) else lines
    return "\n".join(" " * by + line if line else "" for line in lines)


def within(name: str, value: int, low: int, high: int) -> None:
    """Raise ValueError for a number outside low .. high."""
    if not low <= value <= high:
        raise ValueError(f"{name} = {value} must be in {low} .. {high}")


def word(name: str, value: str | None) -> str | None:
    """Return what must be one word of a file; None is left out.

    Raises:
        ValueError: it is not.
    """
    if value is not None and not _WORD.fullmatch(value):
        raise ValueError(f"{name} = {value[:60]!r} must be one word of letters, digits and . , : = / @ + -")
    return value
