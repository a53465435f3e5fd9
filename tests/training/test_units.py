"""People's data as they are: points in any units, images of any size and depth, from the file to the sample."""

from __future__ import annotations

import json
import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

import fastscore as fs
from fastscore.cli import main
from fastscore.data.affine import Affine
from fastscore.data.load import Dataset
from fastscore.model.folder import load_model
from fastscore.model.nets import build
from fastscore.solvers.names import named
from fastscore.training.train import train

MLP = {"name": "MLP", "dim": 2, "width": 32}
SHORT = fs.TrainConfig(images=64, batch=32, compile=False, dtype="fp32")
POINTS = np.random.default_rng(0).normal([5000.0, 0.2], [1000.0, 1e-3], (300, 2))
UNET = "--images 64 --batch 8 --width 8 --blocks 1,1 --patch 1 --no-compile --dtype fp32 --quiet".split()


def run(*arguments):
    with pytest.raises(SystemExit) as end:
        main([str(a) for a in arguments])
    return int(end.value.code or 0)


def test_training_on_points_is_training_on_standardised_ones(tmp_path):
    """To the bit: the same weights as on (x - mean) / std, and samples that are mean + std times theirs."""
    mean, std = POINTS.mean(0), POINTS.std(0)
    model = fs.train(MLP, POINTS, config=SHORT)
    same = fs.train(MLP, (POINTS - mean) / std, config=SHORT)
    assert same.transform is None
    np.testing.assert_allclose(model.transform.shift, mean)
    assert all(torch.equal(a, b) for a, b in zip(model.net.parameters(), same.net.parameters(), strict=True))
    x, y = (fs.Sampler(m, steps=3, batch=4).run(range(4)) for m in (model, same))
    assert torch.equal(x, model.transform(y))
    assert fs.train(MLP, POINTS, config=SHORT, standardise=False).transform is None
    assert fs.train(MLP, (POINTS - mean) / std, config=SHORT, standardise=True).transform is not None


def test_a_folder_and_a_half_done_run_keep_the_units(tmp_path):
    whole = fs.train(MLP, POINTS, config=SHORT, out=tmp_path / "a")
    assert load_model(tmp_path / "a").transform == whole.transform
    fs.train(MLP, POINTS, config=replace(SHORT, images=32), out=tmp_path / "b")
    again = fs.train(MLP, POINTS, config=SHORT, out=tmp_path / "b")
    assert again.transform == whole.transform
    eps = (fs.VP(), fs.Parametrization("eps", "t/T"), SHORT)  # which says nothing of the data
    fs.train(MLP, POINTS, *eps, out=tmp_path / "c")
    with pytest.raises(ValueError, match=r"other settings \(.*data.sha256"):
        fs.train(MLP, POINTS, *eps, out=tmp_path / "c", standardise=False)


def test_a_module_of_ones_own_keeps_its_units_beside_its_weights(tmp_path):
    model = fs.train(build(MLP), POINTS, config=SHORT, out=tmp_path)
    assert Affine(**json.loads((tmp_path / "transform.json").read_text())) == model.transform


def test_sequences_are_standardised_by_channel():
    x = np.random.default_rng(0).normal([3e4, -1.0], [500.0, 20.0], (40, 6, 2))
    net = {"name": "Transformer", "tokens": 6, "dim": 2, "width": 16, "depth": 1, "heads": 2}
    model = fs.train(net, x, config=SHORT)
    np.testing.assert_allclose(model.transform.scale, x.std((0, 1)))
    out = fs.Sampler(model, steps=3, batch=4).run(range(4))
    assert out.shape == (4, 6, 2) and (out[..., 0] - 3e4).abs().max() < 50 * 500


@pytest.mark.slow
@pytest.mark.parametrize(
    ("mean", "std"),
    [
        pytest.param((5000.0, 5000.0), (1000.0, 1000.0), id="large", marks=pytest.mark.nightly),
        pytest.param((0.2, -7.0), (1e-3, 50.0), id="mixed"),
    ],
)
def test_trained_samples_have_the_units_of_the_data(tmp_path, mean, std):
    """Means within 6 % of a standard deviation, standard deviations within 6 %, log-likelihoods within 0.05 nats."""
    x = np.random.default_rng(1).normal(mean, std, (20_000, 2))
    np.save(tmp_path / "x.npy", x)
    base = "--images 100k --batch 256 --no-compile --dtype fp32 --quiet".split()
    assert run("train", tmp_path / "x.npy", "--out", tmp_path / "m", *base) == 0
    assert (
        run("sample", tmp_path / "m", "--out", tmp_path / "o", "-n", "4000", *"--batch 1000 --network own".split()) == 0
    )
    with np.load(tmp_path / "o/samples.npz") as saved:
        samples = saved["samples"].astype(np.float64)
    assert np.abs((samples.mean(0) - x.mean(0)) / x.std(0)).max() < 0.06
    assert np.abs(samples.std(0) / x.std(0) - 1).max() < 0.06
    np.save(tmp_path / "y.npy", x[:300])
    report = tmp_path / "nats.npz"
    assert run("likelihood", tmp_path / "m", tmp_path / "y.npy", "--out", report, "--quiet", "--batch", "300") == 0
    right = -(0.5 * np.square((x[:300] - mean) / std)).sum(1) - math.log(2 * math.pi) - np.log(std).sum()
    with np.load(report) as saved:
        assert abs((saved["nats"] - right).mean()) < 0.05
        np.testing.assert_allclose(saved["bits_per_dim"], -saved["nats"] / (2 * math.log(2)), rtol=1e-9)


def test_the_unet_takes_any_size():
    torch.manual_seed(0)
    net = build({"name": "UNet", "channels": 2, "size": [7, 13], "width": 8, "mult": [1, 2, 2], "blocks": [1, 1, 1]})
    for p in net.parameters():
        p.data.normal_(std=0.2)
    t = torch.tensor([0.1, -0.4])
    for h, w in ((7, 13), (1, 1), (8, 12), (5, 8)):
        u = torch.empty(2, 2, h, w).normal_()
        out = net(u, t)
        assert out.shape == u.shape
        padded = torch.zeros(2, 2, -(-h // 4) * 4, -(-w // 4) * 4)
        padded[:, :, :h, :w] = u
        assert torch.equal(out, net(padded, t)[:, :, :h, :w])


@pytest.mark.slow
@pytest.mark.parametrize("size", [(9, 14), pytest.param((16, 6), marks=pytest.mark.slow)], ids=["odd", "tall"])
def test_rectangular_images_are_trained_on_and_sampled(tmp_path, size):
    """From a folder of classes to PNG files, with the names of the classes in the model and in run.json."""
    rng = np.random.default_rng(0)
    for name in ("10", "9"):
        (tmp_path / "set" / name).mkdir(parents=True)
        for k in range(3):
            Image.fromarray(rng.integers(0, 256, (*size, 3), np.uint8)).save(tmp_path / "set" / name / f"{k}.png")
    assert run("train", tmp_path / "set", "--out", tmp_path / "m", *UNET) == 0
    model = load_model(tmp_path / "m")
    assert model.shape == (3, *size) and model.class_names == ("9", "10")
    base = "-n 3 --class 1 --steps 2 --batch 3 --network own --png --quiet".split()
    assert run("sample", tmp_path / "m", "--out", tmp_path / "o", *base) == 0
    with np.load(tmp_path / "o/samples.npz") as saved:
        assert saved["samples"].shape == (3, *size, 3)
    with Image.open(tmp_path / "o/png/000002.png") as image:
        assert image.size == size[::-1]
    record = json.loads((tmp_path / "o/run.json").read_text())
    assert record["class_names"] == ["9", "10"] and record["settings"]["label"] == 1


def grid_of_three():
    from fastscore.solvers.grids import default_grid
    from fastscore.solvers.likelihood_grids import likelihood_end

    return default_grid(named("euler"), fs.EDM(), fs.EDM(), 3, end=likelihood_end(fs.EDM()), clean=False)


def test_data_that_do_not_fit_a_described_network_are_named():
    for x, message in ((np.zeros((9, 28, 28)), r"\[28, 28\]"), (np.zeros((9, 1, 28, 27)), r"\[1, 28, 27\]")):
        with pytest.raises(ValueError, match=f"shape = {message} but the net makes"):
            fs.train({"name": "UNet", "channels": 1, "size": 28, "width": 8}, x, config=SHORT)


@pytest.mark.slow
def test_a_camera_of_twelve_bits_goes_round(tmp_path):
    """--range in training is that of inpaint and likelihood, without a word more."""
    values = np.random.default_rng(0).integers(0, 4096, (6, 8, 8), np.uint16)
    np.save(tmp_path / "x.npy", values)
    out = ("--out", tmp_path / "m", *UNET)
    assert run("train", tmp_path / "x.npy", *out) == 2
    assert run("train", tmp_path / "x.npy", "--range", "0,4095", *out) == 0
    assert load_model(tmp_path / "m").info["value_range"] == [0.0, 4095.0]
    argv = "--box 0,0,2,8 -n 1 --method replace --steps 2 --network own --batch 2 --limit 2 --quiet".split()
    assert run("inpaint", tmp_path / "m", tmp_path / "x.npy", "--out", tmp_path / "o", *argv) == 0
    with np.load(tmp_path / "o/samples.npz") as saved:
        np.testing.assert_allclose(saved["samples"][:, 2:, :, 0], values[:2, 2:] * (255 / 4095), atol=0.51)
    argv = "--solver euler --steps 3 --probe rademacher --quiet --out".split()
    assert run("likelihood", tmp_path / "m", tmp_path / "x.npy", *argv, tmp_path / "n.npz") == 0
    x = torch.from_numpy(values[:, None] / 2047.5 - 1.0).float()
    flow = fs.ProbabilityFlow(load_model(tmp_path / "m"), solver="euler", grid=grid_of_three())
    nats = flow.log_likelihood(x, probe="rademacher").nats.numpy() - 64 * math.log(2047.5)
    with np.load(tmp_path / "n.npz") as saved:
        np.testing.assert_allclose(saved["nats"], nats, rtol=1e-6)
        np.testing.assert_allclose(saved["bits_per_dim"], -nats / (64 * math.log(2)), rtol=1e-6)


@pytest.mark.slow
def test_sixteen_bits_count_as_such_in_a_likelihood(tmp_path, capsys):
    """Bits a dimension of 65,536 levels: those of the density, and 15.x for the width of a level."""
    values = np.random.default_rng(0).integers(0, 65536, (4, 4, 4), np.uint16)
    np.save(tmp_path / "x.npy", values)
    assert run("train", tmp_path / "x.npy", "--out", tmp_path / "m", *UNET) == 0
    capsys.readouterr()
    argv = "--solver euler --steps 3 --probe rademacher --quiet --out".split()
    assert run("likelihood", tmp_path / "m", tmp_path / "x.npy", *argv, tmp_path / "n.npz") == 0
    assert json.loads(capsys.readouterr().out)["dequantised"] is True
    with np.load(tmp_path / "n.npz") as saved:
        bits = -saved["nats"] / (16 * math.log(2)) + math.log2(32767.5)
        np.testing.assert_allclose(saved["bits_per_dim"], bits, rtol=1e-6)


def test_data_of_floats_keep_their_range_in_the_model():
    x = np.random.default_rng(0).uniform(0, 1, (4, 8, 8)).astype(np.float32)
    data = Dataset(2 * x[:, None] - 1, value_range=(0.0, 1.0))
    spec = {"name": "UNet", "channels": 1, "size": 8, "width": 8}
    assert train(spec, data, config=SHORT, info={"a": 1}).info == {"a": 1, "value_range": [0.0, 1.0]}
