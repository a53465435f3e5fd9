from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image
from safetensors.torch import save_file

from fastscore import files
from fastscore.model.folder import load_model, save_model
from fastscore.model.nets import build
from fastscore.model.score import ScoreModel
from fastscore.output.images import contact_sheet, density_sheet, write_npz, write_png
from fastscore.process.continuous import SubVP
from fastscore.process.parametrization import Parametrization

SPEC = {"name": "MLP", "dim": 2, "width": 16, "depth": 1, "classes": 2}


def saved(folder):
    folder.mkdir(exist_ok=True)
    net = build(SPEC)
    model = ScoreModel(net, (2,), SubVP(), Parametrization("v", "999t"), 2, ("a", "b"), {"seed": 1})
    save_model(folder, net, SPEC, model, torch.float32)
    return model


def test_a_model_comes_back_as_it_was(tmp_path):
    model = saved(tmp_path / "m")
    loaded = load_model(tmp_path / "m")
    for name in ("shape", "schedule", "parametrization", "classes", "class_names", "info"):
        assert getattr(loaded, name) == getattr(model, name)
    u, t = torch.ones(3, 2), torch.tensor([0.1, 0.2, 0.3])
    assert torch.equal(loaded.net(u, t, None), model.net(u, t, None))
    assert sorted(p.name for p in (tmp_path / "m").iterdir()) == ["config.json", "model.safetensors"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda s: {**s, "extra": torch.zeros(1)}, "extra has shape .1,. but the network wants None"),
        (lambda s: {k: v for k, v in s.items() if k != "stem.bias"}, "stem.bias has shape None"),
        (lambda s: {**s, "stem.bias": torch.zeros(3)}, "stem.bias has shape .3,. but the network wants .16,."),
        (lambda s: {**s, "stem.bias": torch.full((16,), float("nan"))}, "holds NaN or Inf"),
    ],
)
def test_weights_that_do_not_fit_are_named(tmp_path, change, message):
    saved(tmp_path / "m")
    file = tmp_path / "m" / "model.safetensors"
    save_file(change(build(SPEC).state_dict()), file)
    with pytest.raises(ValueError, match=message):
        load_model(tmp_path / "m")


@pytest.mark.slow
@given(data=st.data())
@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_damaged_weights_are_refused_or_harmless(tmp_path, data):
    """Flip, cut or extend bytes anywhere: a ValueError, or a network with finite weights; never a crash."""
    saved(tmp_path / "m")
    file = tmp_path / "m" / "model.safetensors"
    raw = bytearray(file.read_bytes())
    for _ in range(data.draw(st.integers(1, 4))):
        raw[data.draw(st.integers(0, len(raw) - 1))] = data.draw(st.integers(0, 255))
    cut = data.draw(st.integers(0, len(raw)))
    file.write_bytes(raw[:cut] if data.draw(st.booleans()) else raw)
    try:
        model = load_model(tmp_path / "m")
    except ValueError as error:
        assert "model.safetensors" in str(error)
    else:
        assert all(torch.isfinite(p).all() for p in model.net.parameters())


def test_a_failed_write_leaves_the_old_file(tmp_path):
    file = tmp_path / "x"
    files.write_text(file, "old")
    with pytest.raises(RuntimeError), files.atomic(file) as out:
        out.write(b"new")
        raise RuntimeError
    assert file.read_text() == "old"
    assert [p.name for p in tmp_path.iterdir()] == ["x"]


def test_npz_bytes_are_a_function_of_the_arrays(tmp_path):
    for name in "ab":
        write_npz(tmp_path / name, samples=np.arange(12).reshape(3, 4))
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


@pytest.mark.parametrize("channels", [1, 3])
def test_png_round_trip(tmp_path, channels):
    image = np.random.default_rng(0).integers(0, 256, (5, 6, channels), dtype=np.uint8)
    write_png(tmp_path / "a.png", image)
    with Image.open(tmp_path / "a.png") as read:
        assert np.array_equal(np.asarray(read).reshape(image.shape), image)
    with pytest.raises(ValueError, match="1 or 3 channels"):
        write_png(tmp_path / "b.png", np.zeros((2, 2, 2), np.uint8))


def test_contact_sheet_holds_every_image():
    images = np.arange(5, dtype=np.uint8).reshape(5, 1, 1, 1) * np.ones((5, 4, 3, 1), np.uint8)
    sheet = contact_sheet(images, columns=2, scale=2, gap=1)
    assert sheet.shape == (3 * 9 + 1, 2 * 7 + 1, 1)
    assert [int(sheet[1 + 9 * (k // 2), 1 + 7 * (k % 2), 0]) for k in range(5)] == [0, 1, 2, 3, 4]
    assert (sheet[19:27, 8:14] == 255).all()


def test_density_sheet_shows_where_points_are():
    points = np.concatenate([np.full((900, 2), 1.0), np.full((100, 2), -1.0)])
    sheet = density_sheet(points)
    n = len(sheet)
    assert sheet[: n // 2, n // 2 :].min() == 0  # up is positive
    assert sheet[: n // 2, : n // 2].min() == 255
    assert density_sheet(np.zeros((1, 1))).min() == 0


EDITS = [
    ({"shape": [3]}, "shape = .3. but the net makes .2."),
    ({"shape": "abc"}, "config.json: missing or malformed"),
    ({"classes": 3}, "classes = 3 but the net has 2"),
    ({"schedule": {"name": "VP", "beta": 3}}, "must describe a noise rate"),
    ({"schedule": {"name": "LinearBeta"}}, "LinearBeta is no schedule"),
    ({"net": {**SPEC, "width": -1}}, "net MLP"),
    ({"net": {**SPEC, "name": "UNet"}}, "shape|net UNet"),
    ({"parametrization": {"prediction": "noise"}}, "prediction = 'noise'"),
]


@pytest.mark.parametrize(("edit", "message"), EDITS)
def test_a_config_that_does_not_fit_its_net_is_named(tmp_path, edit, message):
    saved(tmp_path / "m")
    file = tmp_path / "m" / "config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **edit}))
    with pytest.raises(ValueError, match=message):
        load_model(tmp_path / "m")


def test_a_name_that_is_also_a_folder_is_refused(tmp_path, monkeypatch):
    saved(tmp_path / "fashion")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match=r"write \./fashion for the folder"):
        load_model("fashion")
    assert load_model("./fashion").shape == (2,)
