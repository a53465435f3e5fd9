"""Files of anything: configs, weights, arrays and images are read, or refused in one line that names the file."""

from __future__ import annotations

import copy
import io
import json
import math
import shutil

import numpy as np
import pytest
from hypothesis import strategies as st
from PIL import Image

import fastscore as fs
from tests.hostile.generated import command, search, sizes, stub, tree

VALUES = [
    None, True, False, -1, 0, 1, 2, 7, 1.5, 1e308, math.nan, math.inf, 2**31, 2**63, 10**30, "", "x", "MLP", "VP", "3",
    [], [1], [1, 2], ["a"], [[1]], [None], {}, {"name": "MLP"}, {"name": "VP"}, {"a": 1}, "\ud800", "a" * 300,
]  # fmt: skip
ODD_JSON = ["", "{", "null", "[]", "1", '"x"', '{"format": 1}', "{" * 5000, "[" * 100000, '{"format": 1, "net": 1e999}',
            "\x00", '{"format": NaN}', "9" * 5000, '{"format": ' + "9" * 5000 + "}"]  # fmt: skip


def _paths(value, at=()):
    """Yield the place of everything in plain JSON."""
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, part in items:
        yield (*at, key)
        yield from _paths(part, (*at, key))


def _changed(config, changes):
    """Return a config with values at some places replaced, or left out."""
    config = copy.deepcopy(config)
    for place, value in changes:
        places = list(_paths(config))
        path = places[place % len(places)] if places else ()
        part = config
        for key in path[:-1]:
            part = part[key]
        if not path:
            continue
        if value is Ellipsis:
            del part[path[-1]]
        else:
            part[path[-1]] = copy.deepcopy(value)
    return config


CHANGES = st.lists(st.tuples(st.integers(0, 200), st.sampled_from([*VALUES, ...])), min_size=1, max_size=3)
CUTS = st.lists(st.tuples(st.floats(0, 1), st.binary(max_size=9) | st.none()), min_size=1, max_size=3)


def _cut(data: bytes, cuts) -> bytes:
    """Return bytes with others in some places, or ended early."""
    for share, other in cuts:
        at = int(share * len(data))
        data = data[:at] if other is None else data[:at] + other + data[at + len(other) :]
    return data


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """A small score model and a small classifier, with their configs and weights."""
    import torch

    from fastscore.data.load import Dataset
    from fastscore.training.classifier import train_classifier

    folder = tmp_path_factory.mktemp("models")
    config = fs.TrainConfig(images=1, batch=1, compile=False, dtype="fp32")
    net = {"name": "MLP", "dim": 2, "width": 8}
    fs.train(net, np.zeros((4, 2), np.float32), schedule=fs.VP(), config=config, out=folder / "score")
    data = Dataset(np.zeros((4, 28, 28, 1), np.uint8), np.arange(4) % 2, ("a", "b"))
    with torch.random.fork_rng():
        train_classifier(folder / "classifier", data, data, 1, 8, batch=2)
    for name in ("score", "classifier"):
        shutil.rmtree(folder / name / "new", ignore_errors=True)
    np.savez(folder / "images.npz", samples=data.x, labels=data.labels)
    return folder


@pytest.fixture
def world(models, tmp_path, monkeypatch):
    for name in ("score", "classifier"):
        (tmp_path / name).mkdir()
        for file in ("config.json", "model.safetensors"):
            shutil.copy(models / name / file, tmp_path / name)
    shutil.copy(models / "images.npz", tmp_path)
    monkeypatch.chdir(tmp_path)
    stub(monkeypatch)
    return tmp_path


LINES = {
    "score": ["sample", "./score", "--out", "out"],
    "classifier": ["evaluate", "images.npz", "--data", "images.npz", "--classifier", "./classifier"],
}


@sizes(15, 700)
@pytest.mark.parametrize("kind", LINES)
def test_no_config_escapes(world, kind, cases):
    file = world / kind / "config.json"
    config = json.loads(file.read_text())
    before = tree(world)

    def check(case):
        file.write_text(case if isinstance(case, str) else json.dumps(_changed(config, case)))
        code, said = command(LINES[kind], world, before)
        assert code in (-1, 2), said
        assert code == -1 or kind in said or "images" in said, f"names no file: {said}"

    search(CHANGES | CHANGES | CHANGES | st.sampled_from(ODD_JSON), check, cases)


@sizes(15, 400)
def test_no_weights_escape(world, cases):
    file = world / "score" / "model.safetensors"
    data, before = file.read_bytes(), tree(world)
    head = int.from_bytes(data[:8], "little")

    def check(case):
        where, cuts = case
        file.write_bytes(_cut(data, cuts) if where else data[:8] + _cut(data[8 : 8 + head], cuts) + data[8 + head :])
        code, said = command(LINES["score"], world, before)
        assert code in (-1, 2), said
        assert code == -1 or "model.safetensors" in said, f"names no file: {said}"

    search(st.tuples(st.booleans(), CUTS), check, cases)


def _bytes(save) -> bytes:
    file = io.BytesIO()
    save(file)
    return file.getvalue()


IMAGE = Image.fromarray(np.arange(784, dtype=np.uint8).reshape(28, 28))
POINTS = np.linspace(0, 1, 10, dtype=np.float32).reshape(5, 2)
FILES = {
    "x.png": _bytes(lambda f: IMAGE.save(f, "png")), "x.jpg": _bytes(lambda f: IMAGE.save(f, "jpeg")),
    "x.bmp": _bytes(lambda f: IMAGE.save(f, "bmp")), "x.webp": _bytes(lambda f: IMAGE.save(f, "webp")),
    "x.npy": _bytes(lambda f: np.save(f, POINTS)),
    "y.npy": _bytes(lambda f: np.save(f, np.ones((2, 28, 28), np.uint8))),
    "x.npz": _bytes(lambda f: np.savez(f, samples=POINTS)), "y.npz": _bytes(lambda f: np.savez_compressed(f, x=POINTS)),
    "o.npy": _bytes(lambda f: np.save(f, np.array([{}]), allow_pickle=True)),
}  # fmt: skip


@sizes(30, 1300)
def test_no_data_escape(world, cases):
    (world / "folder").mkdir()
    (world / "folder" / "ok.png").write_bytes(FILES["x.png"])
    made = []

    def check(case):
        name, cuts, use = case
        image = not name.endswith(("npy", "npz"))
        place = world / "folder" / name if image and use != "inpaint" else world / name
        place.write_bytes(_cut(FILES[name], cuts))
        source = "folder" if place.parent.name == "folder" else name
        words = {
            "train": ["train", source, "--out", "out"],
            "likelihood": ["likelihood", "analytic:gaussian", source],
            "inpaint": ["inpaint", "fashion", name, "--box", "1,1,2,2", "--out", "out"],
            "init": ["langevin", "analytic:gaussian", "--init", name, "--out", "out"],
            "evaluate": ["evaluate", name, "--data", "images.npz"],
        }[use]
        before = tree(world)
        try:
            code, said = command(words, world, before)
            assert code in (-1, 2), said
            assert code == -1 or source in said or name in said or use == "init", f"names no file: {said}"
            made.append(code)
        finally:
            place.unlink()

    uses = st.sampled_from(["train", "likelihood", "inpaint", "init", "evaluate"])
    search(st.tuples(st.sampled_from(sorted(FILES)), CUTS, uses), check, cases)
    assert 2 in made
