"""Command lines of all commands and options: each ends in a documented way, says little and leaves nothing behind."""

from __future__ import annotations

import json

import click
import numpy as np
import pytest
from hypothesis import strategies as st
from PIL import Image

from fastscore import cli
from tests.hostile.generated import JUNK, WORDS, command, search, sizes, stub, tree

# What is valid of options whose type does not tell; long runs would cost time, and no more is checked of them.
VALID = {
    "--steps": ["1", "2", "3", "5", "9"],
    "--corrections": ["1", "2"],
    "--resample": ["1", "2"],
    "--jump": ["1", "2"],
    "-n": ["0", "1", "3", "50k"],
    "--ids": ["0", "0-3", "7,3"],
    "--width": ["8", "16"],
    "--mult": ["1", "1,2"],
    "--blocks": ["1", "1,1"],
    "--box": ["8,8,12,12", "0,0,99,99", "0,0,0,0"],
    "--table-steps": ["1", "2", "10", "1000"],
    "--guidance-interval": ["0,1", "0.3,inf"],
    "--levels": ["2", "5"],
    "--thin": ["1", "2"],
    "--burn-in": ["0", "2"],
    "--guidance-model": ["fashion", "tiny", "analytic:mixture"],
    "--classifier": ["fashion-classifier", "tiny"],
    "--mask": ["grey.png", "mask.npy", "broken.png"],
    "--init": ["points.npy", "mask.npy"],
    "--data": ["images.npz", "points.npy", "grey", "idx"],
    "--device": ["cpu", "cuda", "cuda:9", "auto", "meta", "mps"],
    "--out": ["out", "new/deep", "grey.png", "points.npy/x"],
    "--limit": ["1", "2", "100"],
    "--images": ["1", "100"],
    "--seed": ["0", "5"],
    "--probes": ["1", "2"],
}
MODELS = [
    "analytic:gaussian",
    "analytic:mixture",
    "analytic:moons",
    "analytic:circles",
    "fashion",
    "fashion-classifier",
    "tiny",
    "broken",
    "nowhere",
]
DATA = [
    "moons",
    "circles",
    "images.npz",
    "points.npy",
    "mask.npy",
    "grey",
    "colour",
    "grey.png",
    "broken.png",
    "idx",
    "fashion-mnist",
    "broken",
    "broken.npz",
    "tiny",
    "nowhere",
    "deep",
]
ARGUMENTS = {"model": MODELS, "target": MODELS, "data": DATA, "images": DATA, "samples": DATA}


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """A folder with a few of each thing that a command reads."""
    import fastscore as fs

    folder = tmp_path_factory.mktemp("world")
    rng = np.random.default_rng(0)
    np.save(folder / "points.npy", rng.normal(size=(5, 2)).astype(np.float32))
    np.save(folder / "mask.npy", np.eye(28, dtype=bool))
    images = rng.integers(0, 255, (4, 28, 28, 1), np.uint8)
    np.savez(folder / "images.npz", samples=images, labels=np.arange(4))
    Image.fromarray(images[0, :, :, 0]).save(folder / "grey.png")
    (folder / "broken.png").write_bytes((folder / "grey.png").read_bytes()[:50])
    (folder / "broken.npz").write_bytes((folder / "images.npz").read_bytes()[:200])
    for name, mode in (("grey", "L"), ("colour", "RGB")):
        for label in "ab":
            (folder / name / label).mkdir(parents=True)
            Image.fromarray(images[1, :, :, 0]).convert(mode).save(folder / name / label / "0.png")
    (folder / "idx").mkdir()
    for prefix in ("train", "t10k"):
        head = b"\x00\x00\x08\x03" + b"".join(k.to_bytes(4, "big") for k in (4, 28, 28))
        (folder / "idx" / f"{prefix}-images-idx3-ubyte").write_bytes(head + images.tobytes())
        labels = b"\x00\x00\x08\x01" + (4).to_bytes(4, "big") + bytes(range(4))
        (folder / "idx" / f"{prefix}-labels-idx1-ubyte").write_bytes(labels)
    config = fs.TrainConfig(images=1, batch=1, compile=False, dtype="fp32")
    fs.train({"name": "MLP", "dim": 2, "width": 8}, np.zeros((4, 2), np.float32), config=config, out=folder / "tiny")
    (folder / "broken").mkdir()
    (folder / "broken" / "config.json").write_text(json.dumps({"format": 1, "net": {"name": "UNet"}}))
    return folder


@pytest.fixture
def inside(world, monkeypatch):
    monkeypatch.chdir(world)
    monkeypatch.setenv("FASHION_MNIST", str(world / "idx"))
    stub(monkeypatch)
    return world


def _value(option: click.Option) -> st.SearchStrategy[str]:
    valid = next((VALID[flag] for flag in option.opts if flag in VALID), None)
    if valid is None:
        choices = getattr(option.type, "choices", None)
        valid = list(map(str, choices)) if choices else ["0.1", "0.5", "1", "2", "7.5", "40"]
    return st.one_of(st.sampled_from(valid), st.sampled_from(valid), WORDS)


def _option(option: click.Option) -> st.SearchStrategy[list[str]]:
    flags = st.sampled_from([*option.opts, *option.secondary_opts])
    if option.is_flag:
        return flags.map(lambda flag: [flag])
    return st.tuples(flags, _value(option)).map(list)


def _line(name: str, command: click.Command) -> st.SearchStrategy[list[str]]:
    params = command.params
    words = [
        st.sampled_from(ARGUMENTS.get(p.name or "", JUNK)) | st.sampled_from(ARGUMENTS.get(p.name or "", JUNK)) | WORDS
        for p in params
        if isinstance(p, click.Argument)
    ]
    options = [p for p in params if isinstance(p, click.Option)]
    parts = [_option(p) for p in options] or [st.just([])]
    some = st.lists(st.one_of(parts), max_size=5).map(lambda found: [w for pair in found for w in pair])
    out = st.just([] if not any("--out" in p.opts for p in options) else ["--out", "out"])
    out = st.one_of(out, out, out, st.just([]))
    return st.tuples(st.tuples(*words).map(list), out, some, st.lists(WORDS, max_size=1)).map(
        lambda p: [name, *p[0], *p[1], *p[2], *(p[3] if len(p[2]) % 4 == 3 else [])]
    )


LINES = {name: _line(name, command) for name, command in sorted(cli.group.commands.items())}
HEAVY = ("sample", "plan", "inpaint", "train", "langevin", "likelihood")  # most options, most of the cases
LINE = st.one_of(*LINES.values(), *(LINES[name] for name in HEAVY), LINES["sample"], LINES["plan"])
ANYTHING = st.lists(st.sampled_from([*LINES, "--help", "-h", "--version", "--out", "-n"]) | WORDS, max_size=5)


@sizes(60, 3500)
def test_no_command_line_escapes(inside, cases):
    before, ends = tree(inside), []
    search(LINE, lambda words: ends.append(command(words, inside, before)[0]), cases)
    shares = {code: ends.count(code) / len(ends) for code in set(ends)}
    assert min(shares.get(code, 0.0) for code in (-1, 0, 2)) > 0.01, f"the cases are one-sided: {shares}"


@sizes(20, 1000)
def test_no_words_escape(inside, cases):
    before = tree(inside)
    search(ANYTHING, lambda words: command(words, inside, before), cases)
